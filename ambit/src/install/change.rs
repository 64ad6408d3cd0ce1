//! What the caller wants otherwise than the manifest says. Pure.
//!
//! Each wish changes exact places of named objects, and a wish that finds its place nowhere is an
//! error: a mesh with half of its settings is worse than none. Whatever is not here, Helm can do.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::bundle::Object;
use crate::parts::Part;

/// The wishes.
#[derive(Debug, Default, Args)]
pub(crate) struct Wishes {
    /// Where images come from: `REGISTRY/PATH`.
    #[arg(long, value_name = "HUB")]
    hub: Option<String>,
    /// Tag of the images.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Image of one part in full, digest and all: `ztunnel=REGISTRY/PATH@sha256:…`. May be repeated.
    /// `waypoint` is what the control plane deploys.
    #[arg(long = "image", value_name = "PART=IMAGE", value_parser = image)]
    images: Vec<(Option<Part>, String)>,
    /// Name of this cluster in a mesh of several.
    #[arg(long, value_name = "NAME")]
    cluster_id: Option<String>,
    /// Trust domain of every identity.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Replicas of the control plane.
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Directory of CNI plugins on the nodes.
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Option<String>,
    /// Directory of CNI configuration on the nodes.
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<String>,
    /// An environment variable of one part: `istiod:RUST_LOG=debug`. May be repeated.
    #[arg(long = "env", value_name = "PART:NAME=VALUE", value_parser = variable)]
    variables: Vec<(Part, String, String)>,
}

/// `istiod=registry/istiod-lite@sha256:…`
/// Waypoints are no part that is installed.
fn image(text: &str) -> Result<(Option<Part>, String), String> {
    let (part, image) = text.split_once('=').ok_or("write PART=IMAGE")?;
    let part = match part {
        WAYPOINT => None,
        part => Some(part_named(part).map_err(|why| format!("{why}, or {WAYPOINT}"))?),
    };
    Ok((part, image.to_owned()))
}

/// `istiod:RUST_LOG=debug`
fn variable(text: &str) -> Result<(Part, String, String), String> {
    let (part, rest) = text.split_once(':').ok_or("write PART:NAME=VALUE")?;
    let (name, value) = rest.split_once('=').ok_or("write PART:NAME=VALUE")?;
    Ok((part_named(part)?, name.to_owned(), value.to_owned()))
}

fn part_named(name: &str) -> Result<Part, String> {
    let known = Part::ALL.into_iter().find(|part| part.name() == name);
    known.ok_or_else(|| format!("no part {name:?}: istiod, istio-cni-node or ztunnel"))
}

impl Wishes {
    /// Changes `objects` accordingly.
    pub(super) fn apply(&self, objects: &mut [Object]) -> anyhow::Result<()> {
        for part in Part::ALL {
            let object = part_of(objects, part)?;
            each_container(object, |container| {
                if let Some(old) = container["image"].as_str() {
                    container["image"] =
                        renamed(old, self.hub.as_deref(), self.tag.as_deref()).into();
                }
            });
        }
        let istiod = part_of(objects, Part::Istiod)?;
        for variable in [WAYPOINT_IMAGE, ZTUNNEL_IMAGE, CNI_IMAGE] {
            if let Some(old) = variable_of(istiod, variable) {
                let image = renamed(&old, self.hub.as_deref(), self.tag.as_deref());
                set_variable(istiod, variable, &image);
            }
        }
        for (part, image) in &self.images {
            match part {
                Some(part) => {
                    each_container(part_of(objects, *part)?, |container| {
                        container["image"] = image.as_str().into()
                    });
                    // The control plane puts the same into pods that ask for a proxy of their own.
                    let told = match part {
                        Part::Ztunnel => ZTUNNEL_IMAGE,
                        Part::Agent => CNI_IMAGE,
                        Part::Istiod => continue,
                    };
                    let istiod = part_of(objects, Part::Istiod)?;
                    if variable_of(istiod, told).is_some() {
                        set_variable(istiod, told, image);
                    }
                }
                None => set_variable(part_of(objects, Part::Istiod)?, WAYPOINT_IMAGE, image),
            }
        }
        if let Some(replicas) = self.replicas {
            part_of(objects, Part::Istiod)?["spec"]["replicas"] = replicas.into();
        }
        let everywhere = [
            ("CLUSTER_ID", &self.cluster_id),
            ("TRUST_DOMAIN", &self.trust_domain),
        ];
        for (name, value) in everywhere {
            let Some(value) = value else { continue };
            set_variable(part_of(objects, Part::Istiod)?, name, value);
            if name == "CLUSTER_ID" {
                set_variable(part_of(objects, Part::Ztunnel)?, name, value);
            }
        }
        if let Some(domain) = &self.trust_domain {
            mesh_setting(objects, "trustDomain", domain)?;
        }
        let paths = [
            ("/opt/cni/bin", &self.cni_bin_dir),
            ("/etc/cni/net.d", &self.cni_conf_dir),
        ];
        for (old, new) in paths {
            let Some(new) = new else { continue };
            move_host_path(part_of(objects, Part::Agent)?, old, new)?;
        }
        for (part, name, value) in &self.variables {
            set_variable(part_of(objects, *part)?, name, value);
        }
        Ok(())
    }
}

/// Moves every object of the manifest's namespace, and every reference to it, to `wanted`.
pub(super) fn namespace(objects: &mut [Object], wanted: &str) -> anyhow::Result<()> {
    let istiod = objects
        .iter()
        .find(|object| object.name() == Part::Istiod.name() && object.kind() == "Deployment");
    let old = istiod
        .and_then(Object::namespace)
        .context("the manifest has no Deployment istiod")?
        .to_owned();
    if old == wanted {
        return Ok(());
    }
    // Names of the control plane stand in service names, account lists and webhook names, which a
    // program cannot tell from other texts that contain the same word.
    bail!(
        "the manifest is for namespace {old}; for another one render it with Helm and give it with --filename"
    )
}

fn part_of(objects: &mut [Object], part: Part) -> anyhow::Result<&mut Value> {
    let found = objects.iter_mut().find(|object| {
        object.name() == part.name() && matches!(object.kind(), "Deployment" | "DaemonSet")
    });
    Ok(&mut found
        .with_context(|| format!("the manifest has no {part}"))?
        .0)
}

fn each_container(object: &mut Value, mut change: impl FnMut(&mut Value)) {
    for list in ["initContainers", "containers"] {
        let containers = object.pointer_mut(&format!("/spec/template/spec/{list}"));
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            change(container);
        }
    }
}

fn set_variable(object: &mut Value, name: &str, value: &str) {
    each_container(object, |container| {
        if !container["env"].is_array() {
            container["env"] = json!([]);
        }
        let Some(variables) = container["env"].as_array_mut() else {
            return;
        };
        variables.retain(|variable| variable["name"] != name);
        variables.push(json!({ "name": name, "value": value }));
    });
}

fn variable_of(object: &mut Value, name: &str) -> Option<String> {
    let mut found = None;
    each_container(object, |container| {
        let variables = container["env"].as_array().into_iter().flatten();
        for variable in variables.filter(|it| it["name"] == name) {
            found = variable["value"].as_str().map(str::to_owned);
        }
    });
    found
}

/// Sets a line of the settings that all parts share: they count over variables.
fn mesh_setting(objects: &mut [Object], name: &str, value: &str) -> anyhow::Result<()> {
    let settings = objects
        .iter_mut()
        .find(|object| object.kind() == "ConfigMap" && object.name() == "istio")
        .and_then(|object| object.0.pointer_mut("/data/mesh"))
        .context("the manifest has no ConfigMap istio with key mesh")?;
    let old = settings.as_str().unwrap_or_default();
    let others = old
        .lines()
        .filter(|line| !line.starts_with(&format!("{name}:")));
    let mut new: Vec<String> = others.map(str::to_owned).collect();
    new.push(format!("{name}: {}", json!(value)));
    *settings = Value::String(new.join("\n") + "\n");
    Ok(())
}

fn move_host_path(object: &mut Value, old: &str, new: &str) -> anyhow::Result<()> {
    let volumes = object
        .pointer_mut("/spec/template/spec/volumes")
        .and_then(Value::as_array_mut);
    let volume = volumes
        .into_iter()
        .flatten()
        .find(|volume| volume["hostPath"]["path"] == old);
    let volume =
        volume.with_context(|| format!("the manifest's node agent does not mount {old}"))?;
    volume["hostPath"]["path"] = new.into();
    Ok(())
}

/// `image` from another hub or with another tag; a digest names one image only, so it goes with the
/// tag it stood for.
fn renamed(image: &str, hub: Option<&str>, tag: Option<&str>) -> String {
    let (place, digest) = match image.split_once('@') {
        Some((place, digest)) => (place, Some(digest)),
        None => (image, None),
    };
    let (path, file) = place.rsplit_once('/').unwrap_or(("", place));
    let (name, old_tag) = match file.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (file, None),
    };
    let path = hub.unwrap_or(path);
    let mut new = if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}/{name}")
    };
    if let Some(tag) = tag.or(old_tag) {
        new.push(':');
        new.push_str(tag);
    }
    if let (None, Some(digest)) = (tag, digest) {
        new.push('@');
        new.push_str(digest);
    }
    new
}

/// What the control plane deploys; not installed itself.
const WAYPOINT: &str = "waypoint";
/// By which it is told of what image.
const WAYPOINT_IMAGE: &str = "AMBIT_WAYPOINT_IMAGE";
/// The same of what it puts into pods that ask for a proxy of their own.
const ZTUNNEL_IMAGE: &str = "AMBIT_ZTUNNEL_IMAGE";
const CNI_IMAGE: &str = "AMBIT_CNI_IMAGE";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::bundle;

    fn changed(wishes: Wishes) -> Vec<Object> {
        let mut objects = bundle::read(bundle::BUILT_IN).unwrap();
        wishes.apply(&mut objects).unwrap();
        objects
    }

    #[test]
    fn an_image_keeps_what_nobody_wants_otherwise() {
        let cases = [
            ("a.b/c/ztunnel:1", None, None, "a.b/c/ztunnel:1"),
            (
                "a.b/c/ztunnel:1",
                Some("x:5000/y"),
                None,
                "x:5000/y/ztunnel:1",
            ),
            (
                "a.b:5000/ztunnel:1@sha256:0",
                None,
                Some("2"),
                "a.b:5000/ztunnel:2",
            ),
            (
                "a.b/ztunnel@sha256:0",
                Some("x"),
                None,
                "x/ztunnel@sha256:0",
            ),
            ("ztunnel", None, Some("2"), "ztunnel:2"),
        ];
        for (old, hub, tag, new) in cases {
            assert_eq!(renamed(old, hub, tag), new, "{old} {hub:?} {tag:?}");
        }
    }

    #[test]
    fn every_wish_finds_its_place_in_the_manifest_built_in() {
        let mut objects = changed(Wishes {
            hub: Some("registry.test/mesh".into()),
            cluster_id: Some("west".into()),
            trust_domain: Some("west.test".into()),
            replicas: Some(3),
            cni_bin_dir: Some("/var/lib/cni/bin".into()),
            cni_conf_dir: Some("/var/lib/cni/net.d".into()),
            images: vec![
                image("ztunnel=other/ztunnel@sha256:1").unwrap(),
                image("waypoint=other/waypoint@sha256:2").unwrap(),
            ],
            variables: vec![variable("istio-cni-node:RUST_LOG=debug").unwrap()],
            ..Wishes::default()
        });
        let istiod = part_of(&mut objects, Part::Istiod).unwrap().to_string();
        assert!(
            istiod.contains("registry.test/mesh/") && istiod.contains(r#""value":"west""#),
            "{istiod}"
        );
        assert!(
            istiod.contains(r#""value":"west.test""#) && istiod.contains(r#""replicas":3"#),
            "{istiod}"
        );
        assert!(istiod.contains("other/waypoint@sha256:2"), "{istiod}");
        // Pods that bring their own proxy bring the same one.
        assert!(istiod.contains("other/ztunnel@sha256:1"), "{istiod}");
        assert!(istiod.contains("registry.test/mesh/cni:"), "{istiod}");
        let settings = objects
            .iter()
            .find(|o| o.kind() == "ConfigMap" && o.name() == "istio")
            .unwrap();
        let mesh = settings.0["data"]["mesh"].as_str().unwrap();
        assert_eq!(mesh.matches("trustDomain:").count(), 1, "{mesh}");
        assert!(
            mesh.contains("trustDomain: \"west.test\"")
                && mesh.contains("rootNamespace: istio-system"),
            "{mesh}"
        );
        let agent = part_of(&mut objects, Part::Agent).unwrap().to_string();
        assert!(
            agent.contains("/var/lib/cni/bin") && agent.contains("/var/lib/cni/net.d"),
            "{agent}"
        );
        assert!(agent.contains(r#""value":"debug""#), "{agent}");
        let ztunnel = part_of(&mut objects, Part::Ztunnel).unwrap().to_string();
        assert!(ztunnel.contains("other/ztunnel@sha256:1"), "{ztunnel}");
    }

    #[test]
    fn waypoints_come_from_the_hub_of_the_other_images() {
        let mut objects = changed(Wishes {
            hub: Some("registry.test/mesh".into()),
            tag: Some("7".into()),
            ..Wishes::default()
        });
        let istiod = part_of(&mut objects, Part::Istiod).unwrap();
        let image = variable_of(istiod, WAYPOINT_IMAGE).unwrap();
        assert_eq!(image, "registry.test/mesh/waypoint:7");
    }

    #[test]
    fn a_part_that_does_not_exist_is_named_with_those_that_do() {
        let error = image("dashboard=x").unwrap_err();
        assert!(
            error.contains("istio-cni-node") && error.contains("waypoint"),
            "{error}"
        );
        assert!(variable("ztunnel:X").is_err());
    }
}
