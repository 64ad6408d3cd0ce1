//! Objects of Istio's, and annotations of pods, that would have no effect: what a cluster brings along from a mesh with
//! sidecars.

use std::collections::BTreeMap;

use anyhow::Context as _;
use api::k8s::idle::{IDLE, IDLE_ANNOTATIONS, Idle, IdleAnnotation};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Api, Client, ResourceExt as _};

/// The objects of one such kind, `namespace/name`; at least one.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) kind: Idle,
    pub(super) objects: Vec<String>,
}

/// Looks for all of them. A kind that the cluster does not define has none.
pub(super) async fn collect(client: &Client) -> anyhow::Result<Vec<Found>> {
    let mut all = Vec::new();
    for kind in IDLE {
        let resource = ApiResource {
            group: kind.group.into(),
            version: kind.version.into(),
            api_version: format!("{}/{}", kind.group, kind.version),
            kind: kind.kind.into(),
            plural: kind.plural.into(),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let listed = match api.list_metadata(&ListParams::default()).await {
            Ok(listed) => listed,
            Err(kube::Error::Api(answer)) if answer.code == 404 => continue,
            Err(error) => {
                let what = format!("cannot list {}.{}", kind.plural, kind.group);
                return Err(error).context(what);
            }
        };
        let name = |namespace: Option<String>, name: String| match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        };
        let objects: Vec<String> = listed
            .iter()
            .map(|object| name(object.namespace(), object.name_any()))
            .collect();
        if !objects.is_empty() {
            all.push(Found { kind, objects });
        }
    }
    Ok(all)
}

/// The pods that have one such annotation, `namespace/name`; at least one.
#[derive(Debug, Clone)]
pub(super) struct Annotated {
    pub(super) annotation: IdleAnnotation,
    pub(super) pods: Vec<String>,
}

/// Looks through all pods.
pub(super) async fn annotated(client: &Client) -> anyhow::Result<Vec<Annotated>> {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut all = IDLE_ANNOTATIONS.map(|annotation| Annotated {
        annotation,
        pods: Vec::new(),
    });
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let found = pods.list_metadata(&page).await;
        let found = found.context("cannot list Pods")?;
        for pod in &found {
            note(&mut all, pod.annotations(), || {
                format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
            });
        }
        match found.metadata.continue_ {
            Some(next) if !next.is_empty() => page = page.continue_token(&next),
            _ => break,
        }
    }
    Ok(all.into_iter().filter(|it| !it.pods.is_empty()).collect())
}

fn note(all: &mut [Annotated], said: &BTreeMap<String, String>, name: impl Fn() -> String) {
    for it in all {
        let value = said.get(it.annotation.name);
        if value.is_some_and(|value| it.annotation.misleads(value)) {
            it.pods.push(name());
        }
    }
}

/// Pods of one answer of the API server.
const PAGE: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_noted_for_each_annotation_that_asks_for_what_is_not_so() {
        let mut all = IDLE_ANNOTATIONS.map(|annotation| Annotated {
            annotation,
            pods: Vec::new(),
        });
        let said = |pairs: &[(&str, &str)]| {
            let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            pairs.iter().map(pair).collect::<BTreeMap<_, _>>()
        };
        let prefix = "traffic.sidecar.istio.io";
        let (inbound, outbound) = (
            format!("{prefix}/includeInboundPorts"),
            format!("{prefix}/includeOutboundPorts"),
        );
        note(
            &mut all,
            &said(&[(&inbound, "8080"), (&outbound, "443")]),
            || "a/both".into(),
        );
        note(&mut all, &said(&[(&inbound, "*")]), || "a/all".into());
        note(&mut all, &said(&[("other", "8080")]), || "a/none".into());
        let noted: Vec<(&str, usize)> = all
            .iter()
            .filter(|it| !it.pods.is_empty())
            .map(|it| (it.annotation.name, it.pods.len()))
            .collect();
        assert_eq!(noted, [(&*inbound, 1), (&*outbound, 1)]);
    }
}
