//! The manifest, as objects in the order in which they may be applied. Pure.
//!
//! Enters: text of many YAML documents. Leaves: [`Object`]s, labelled as ours, in [`Stage`]s.

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use crate::parts::{MANAGED_BY, OURS};

/// What `manifests/` renders with the chart's default values.
pub(super) const BUILT_IN: &str = include_str!("../../../manifests/ambit.yaml");

/// One object, as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object(pub(super) Value);

/// The order: what a stage needs stands in an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Namespace and CRDs: the ground of all others.
    Ground,
    /// Accounts, rights, settings, services.
    Rights,
    /// The control plane.
    ControlPlane,
    /// What the API server must ask the control plane: it would wait for it in vain earlier.
    Admission,
    /// The node agent.
    Agent,
    /// The node proxy.
    Proxy,
}

impl Stage {
    /// As it is announced.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Ground => "namespace and custom resources",
            Self::Rights => "accounts, rights and settings",
            Self::ControlPlane => "control plane",
            Self::Admission => "admission of policies",
            Self::Agent => "node agent",
            Self::Proxy => "node proxy",
        }
    }
}

impl Object {
    /// `kind`.
    pub(super) fn kind(&self) -> &str {
        self.text("/kind")
    }

    /// `apiVersion`.
    pub(super) fn api_version(&self) -> &str {
        self.text("/apiVersion")
    }

    /// `metadata.name`.
    pub(super) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// `metadata.namespace`, if it has one.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.0
            .pointer("/metadata/namespace")
            .and_then(Value::as_str)
    }

    /// `Kind/name`, for people.
    pub(super) fn title(&self) -> String {
        format!("{}/{}", self.kind(), self.name())
    }

    fn text(&self, pointer: &str) -> &str {
        self.0
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn stage(&self) -> Stage {
        match (self.kind(), self.name()) {
            ("Namespace" | "CustomResourceDefinition" | "PriorityClass", _) => Stage::Ground,
            ("Deployment", _) => Stage::ControlPlane,
            ("ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration", _) => {
                Stage::Admission
            }
            ("DaemonSet", "ztunnel") => Stage::Proxy,
            ("DaemonSet", _) => Stage::Agent,
            _ => Stage::Rights,
        }
    }
}

/// Every document of `text`. A document without kind or name is an error: applying half a manifest
/// is worse than none.
pub(super) fn read(text: &str) -> anyhow::Result<Vec<Object>> {
    let mut objects = Vec::new();
    for (number, document) in documents(text).enumerate() {
        let value: Value = serde_saphyr::from_str(&document)
            .with_context(|| format!("document {} of the manifest", number + 1))?;
        if value.is_null() {
            continue;
        }
        let object = Object(value);
        if object.kind().is_empty() || object.name().is_empty() || object.api_version().is_empty() {
            bail!(
                "document {} of the manifest has no apiVersion, kind or metadata.name",
                number + 1
            );
        }
        objects.push(object);
    }
    if objects.is_empty() {
        bail!("the manifest holds no object");
    }
    Ok(objects)
}

/// Texts between the lines that are `---`.
fn documents(text: &str) -> impl Iterator<Item = String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let said = |document: &String| {
        document
            .lines()
            .any(|line| !line.trim().is_empty() && !line.starts_with('#'))
    };
    documents.into_iter().filter(said)
}

/// Marks all as ours, so that a later version finds what it no longer has.
pub(super) fn label(objects: &mut [Object]) {
    for Object(value) in objects {
        let Some(metadata) = value
            .pointer_mut("/metadata")
            .and_then(Value::as_object_mut)
        else {
            continue;
        };
        let labels = metadata
            .entry("labels")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(MANAGED_BY.into(), OURS.into());
        }
    }
}

/// The objects by stage, stages in order, empty ones left out.
pub(super) fn stages(objects: &[Object]) -> Vec<(Stage, Vec<&Object>)> {
    let mut stages: Vec<(Stage, Vec<&Object>)> = Vec::new();
    let mut sorted: Vec<&Object> = objects.iter().collect();
    sorted.sort_by_key(|object| (object.stage(), object.kind() != "Namespace"));
    for object in sorted {
        match stages.last_mut() {
            Some((stage, members)) if *stage == object.stage() => members.push(object),
            _ => stages.push((object.stage(), vec![object])),
        }
    }
    stages
}

/// As YAML again.
pub(super) fn print(objects: &[Object]) -> anyhow::Result<String> {
    let mut text = String::new();
    for Object(value) in objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(value)?);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# head\n---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: ztunnel, namespace: istio-system}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\ndata:\n  mesh: |\n    a: b\n    --- not a border\n---\n# only a remark\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n";

    #[test]
    fn the_manifest_built_in_reads_and_every_part_of_the_mesh_is_in_it() {
        let objects = read(BUILT_IN).unwrap();
        for part in crate::parts::Part::ALL {
            let kind = if part.on_every_node() {
                "DaemonSet"
            } else {
                "Deployment"
            };
            assert!(
                objects
                    .iter()
                    .any(|o| o.kind() == kind && o.name() == part.name()),
                "no {kind} {part}"
            );
        }
    }

    #[test]
    fn documents_end_at_border_lines_only() {
        let objects = read(TEXT).unwrap();
        let titles: Vec<_> = objects.iter().map(Object::title).collect();
        assert_eq!(
            titles,
            [
                "DaemonSet/ztunnel",
                "ConfigMap/istio",
                "Namespace/istio-system"
            ]
        );
        assert_eq!(objects[1].0["data"]["mesh"], "a: b\n--- not a border\n");
    }

    #[test]
    fn what_others_stand_on_comes_first() {
        let objects = read(TEXT).unwrap();
        let order: Vec<_> = stages(&objects).iter().map(|(stage, _)| *stage).collect();
        assert_eq!(order, [Stage::Ground, Stage::Rights, Stage::Proxy]);
    }

    #[test]
    fn a_document_without_a_name_is_refused_with_its_number() {
        let error = read("kind: Pod\napiVersion: v1\nmetadata: {}\n").unwrap_err();
        assert!(error.to_string().contains("document 1"), "{error}");
        assert!(read("# nothing\n").is_err());
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same_objects() {
        let mut objects = read(TEXT).unwrap();
        label(&mut objects);
        assert_eq!(read(&print(&objects).unwrap()).unwrap(), objects);
        assert_eq!(objects[0].0["metadata"]["labels"][MANAGED_BY], OURS);
    }
}
