//! Pure: which of our kinds this cluster has.
//!
//! Kubernetes' own kinds are always there. Those of Istio and of Gateway API are there while a
//! CustomResourceDefinition says so, which may come and go while we run.
//!
//! Enters: the definitions there are, each as far as it matters ([`Definition`]). Leaves: the kinds
//! and how to ask for them ([`served`]); what to start and what to stop ([`difference`]).

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::k8s::objects::Kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, ClusterResourceScope};
use serde::Deserialize;

/// A CustomResourceDefinition without its schemas, which are most of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Definition {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Spec {
    pub(super) group: String,
    pub(super) names: Names,
    pub(super) versions: Vec<Version>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Names {
    pub(super) kind: String,
    pub(super) plural: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) served: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    /// `null` in the first moments.
    pub(super) conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) r#type: String,
    pub(super) status: String,
}

impl Resource for Definition {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "CustomResourceDefinition".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "apiextensions.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "customresourcedefinitions".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Kubernetes' own kinds, that every cluster has. (No account is asked for by itself: who may act
/// as one is in the pods.)
pub(super) const NATIVE: [Kind; 5] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
];

/// The kinds that are defined, established and served under a version we read, with the first such
/// version in the order of our preference.
pub(super) fn served<'a>(
    definitions: impl IntoIterator<Item = &'a Definition>,
) -> BTreeMap<Kind, ApiResource> {
    let known =
        |definition| of(definition).map(|(kind, version)| (kind, resource(definition, version)));
    definitions.into_iter().filter_map(known).collect()
}

/// Whether it is one of ours at all, whatever its state.
pub(super) fn concerns_us(definition: &Definition) -> bool {
    kind(definition).is_some()
}

fn of(definition: &Definition) -> Option<(Kind, &'static str)> {
    let established =
        |condition: &Condition| condition.r#type == "Established" && condition.status == "True";
    let mut conditions = definition.status.conditions.iter().flatten();
    if !conditions.any(established) {
        return None;
    }
    let kind = kind(definition)?;
    let is_served = |version: &&str| {
        let served = |known: &Version| known.served && known.name == *version;
        definition.spec.versions.iter().any(served)
    };
    versions(kind, &definition.spec.group)
        .find(is_served)
        .map(|version| (kind, version))
}

fn kind(definition: &Definition) -> Option<Kind> {
    let kind: Kind = definition.spec.names.kind.parse().ok()?;
    versions(kind, &definition.spec.group).next().map(|_| kind)
}

/// The versions of a kind in a group. (`v1` alone is Kubernetes' core, which nobody defines.)
fn versions(kind: Kind, group: &str) -> impl Iterator<Item = &'static str> {
    kind.api_versions().iter().filter_map(move |known| {
        let (known, version) = known.split_once('/')?;
        (known == group).then_some(version)
    })
}

fn resource(definition: &Definition, version: &str) -> ApiResource {
    let Spec { group, names, .. } = &definition.spec;
    ApiResource {
        group: group.clone(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: names.kind.clone(),
        plural: names.plural.clone(),
    }
}

/// What must change so that `wanted` is watched where `running` is: kinds to stop, and kinds to
/// start. A kind that is asked for in another way than before is in both.
pub(super) fn difference(
    running: &BTreeMap<Kind, ApiResource>,
    wanted: &BTreeMap<Kind, ApiResource>,
) -> (Vec<Kind>, Vec<(Kind, ApiResource)>) {
    let differs = |kind: &Kind, resource: &ApiResource, other: &BTreeMap<Kind, ApiResource>| {
        other.get(kind) != Some(resource)
    };
    let stop = running
        .iter()
        .filter(|(kind, it)| differs(kind, it, wanted));
    let start = wanted
        .iter()
        .filter(|(kind, it)| differs(kind, it, running));
    (
        stop.map(|(kind, _)| *kind).collect(),
        start.map(|(kind, it)| (*kind, it.clone())).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(
        group: &str,
        kind: &str,
        versions: &[(&str, bool)],
        established: &str,
    ) -> Definition {
        let version = |(name, served): &(&str, bool)| Version {
            name: (*name).into(),
            served: *served,
        };
        Definition {
            metadata: ObjectMeta::default(),
            spec: Spec {
                group: group.into(),
                names: Names {
                    kind: kind.into(),
                    plural: format!("{}s", kind.to_lowercase()),
                },
                versions: versions.iter().map(version).collect(),
            },
            status: Status {
                conditions: Some(vec![Condition {
                    r#type: "Established".into(),
                    status: established.into(),
                }]),
            },
        }
    }

    fn found(definition: &Definition) -> Option<(Kind, String)> {
        let found = served([definition]).pop_first();
        found.map(|(kind, resource)| (kind, resource.api_version))
    }

    #[test]
    fn a_kind_is_there_when_it_is_established_and_served_under_a_version_we_read() {
        let entry = Kind::ServiceEntry;
        let istio = "networking.istio.io";
        let cases = [
            (
                istio,
                "ServiceEntry",
                &[("v1", true), ("v1beta1", true)][..],
                "True",
                Some((entry, "v1")),
            ),
            (
                istio,
                "ServiceEntry",
                &[("v1beta1", true), ("v1", true)],
                "True",
                Some((entry, "v1")),
            ),
            (
                istio,
                "ServiceEntry",
                &[("v1", false), ("v1alpha3", true)],
                "True",
                Some((entry, "v1alpha3")),
            ),
            (istio, "ServiceEntry", &[("v1", true)], "False", None),
            (istio, "ServiceEntry", &[("v2", true)], "True", None),
            (istio, "Sidecar", &[("v1", true)], "True", None),
            // Istio's Gateway is another than that of Gateway API.
            (istio, "Gateway", &[("v1", true)], "True", None),
            (
                "gateway.networking.k8s.io",
                "Gateway",
                &[("v1", true)],
                "True",
                Some((Kind::Gateway, "v1")),
            ),
            // Somebody's own Pod is not ours.
            ("example.org", "Pod", &[("v1", true)], "True", None),
            ("", "Pod", &[("v1", true)], "True", None),
        ];
        for (group, kind, versions, established, expected) in cases {
            let found = found(&definition(group, kind, versions, established));
            let expected = expected.map(|(kind, version)| (kind, format!("{group}/{version}")));
            assert_eq!(found, expected, "{group} {kind} {versions:?} {established}");
        }
    }

    #[test]
    fn what_changed_is_stopped_and_started_and_what_did_not_goes_on() {
        let entry = |version| {
            definition(
                "networking.istio.io",
                "ServiceEntry",
                &[(version, true)],
                "True",
            )
        };
        let policy = definition(
            "security.istio.io",
            "PeerAuthentication",
            &[("v1", true)],
            "True",
        );
        let (old, new) = (
            served([&entry("v1beta1"), &policy]),
            served([&entry("v1"), &policy]),
        );
        let names = |start: Vec<(Kind, ApiResource)>| -> Vec<_> {
            start
                .into_iter()
                .map(|(kind, it)| (kind, it.version))
                .collect()
        };
        let none = BTreeMap::new();
        let (stop, start) = difference(&old, &new);
        assert_eq!(stop, [Kind::ServiceEntry]);
        assert_eq!(names(start), [(Kind::ServiceEntry, "v1".to_owned())]);
        assert_eq!(difference(&new, &new), (vec![], vec![]));
        assert_eq!(difference(&new, &none).0.len(), 2);
        assert_eq!(difference(&none, &new).1.len(), 2);
    }

    #[test]
    fn a_definition_is_read_without_its_schemas() {
        let text = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition",
            "metadata":{"name":"serviceentries.networking.istio.io"},
            "spec":{"group":"networking.istio.io","scope":"Namespaced",
              "names":{"kind":"ServiceEntry","plural":"serviceentries","shortNames":["se"]},
              "versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]},
            "status":{"conditions":[{"type":"Established","status":"True","reason":"x","message":"y"}]}}"#;
        let definition: Definition = serde_json::from_str(text).unwrap();
        let resource = served([&definition]).remove(&Kind::ServiceEntry).unwrap();
        assert_eq!(
            (&*resource.plural, &*resource.version),
            ("serviceentries", "v1")
        );
    }

    #[test]
    fn one_that_was_just_made_is_not_there_yet() {
        let text = r#"{"metadata":{"name":"x"},"spec":{"group":"networking.istio.io",
            "names":{"kind":"ServiceEntry","plural":"serviceentries"},"versions":[{"name":"v1","served":true}]},
            "status":{"conditions":null,"acceptedNames":{"plural":"","kind":""},"storedVersions":["v1"]}}"#;
        let definition: Definition = serde_json::from_str(text).unwrap();
        assert!(concerns_us(&definition));
        assert_eq!(found(&definition), None);
    }

    #[test]
    fn every_kind_is_either_native_or_can_be_defined_or_is_not_asked_for() {
        for kind in Kind::ALL {
            let defined = kind
                .api_versions()
                .iter()
                .any(|version| version.contains(".io/"));
            let native = NATIVE.contains(&kind);
            // Those that are named are asked for one by one.
            let named = matches!(kind, Kind::ServiceAccount | Kind::Secret | Kind::ConfigMap);
            assert!(native || defined || named, "{kind}");
        }
    }
}
