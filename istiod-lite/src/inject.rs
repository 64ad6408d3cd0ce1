//! A pod that asks for a proxy of its own is given one before it is stored. Pure.
//!
//! Enters: a Pod as JSON, as its author wrote it or as others have changed it since. Leaves: the same pod with what a node's agent
//! and a node's proxy do for pods elsewhere; or that it stays as it is, and why; or why it must not be made.
//!
//! | step | where |
//! |---|---|
//! | whether it is for us                                              | [`Injector::inject`] |
//! | what its annotations say of capture, as arguments                  | `capture` |
//! | what kubelet asks its containers goes by way of the proxy          | `probes` |
//! | an init container for the packet rules, a sidecar for the proxy     | `parts` |
//!
//! It may be asked again, which API servers do when another webhook changed the pod after us: what was put in stays, and only
//! probes of containers that came since are looked at.

mod capture;
mod chart;
mod parts;
mod probes;
#[cfg(test)]
pub(crate) mod tests;

use api::k8s::labels;
use serde_json::{Value, json};

pub use chart::{Chart, Images};

use crate::deploy::Mesh;

/// How proxies are put into pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Injector {
    /// As the chart has it.
    pub chart: Chart,
    /// What runs in them.
    pub images: Images,
    /// Whose they are.
    pub mesh: Mesh,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Injected {
    /// This.
    Changed {
        /// The pod as it shall be.
        pod: Value,
        /// What will not be as its author may think.
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Left(Left),
}

/// Why a pod stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    /// Rules would be the node's.
    #[error(
        "the pod uses the node's network, which is everybody's there: it is not brought into the mesh"
    )]
    HostNetwork,
    /// Ours, complete, or another mesh's.
    #[error("the pod has a proxy already (annotation sidecar.istio.io/status)")]
    Sidecar,
    /// Its node's proxy serves it.
    #[error("the pod is in ambient mode (label istio.io/dataplane-mode)")]
    Ambient,
    /// Its own label, or annotation.
    #[error("the pod is kept out by its own label")]
    OptedOut,
    /// We have no programs for it.
    #[error("the pod is not for Linux: it is not brought into the mesh")]
    NotLinux,
}

impl Left {
    /// Whether its author should hear of it: whoever wrote a label knows.
    pub fn surprises(self) -> bool {
        matches!(self, Self::HostNetwork | Self::NotLinux)
    }
}

/// Why a pod must not be made: it asks for what cannot be had, and without it would run outside of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It asks for a proxy by its own label, and cannot have one.
    #[error(
        "label istio.io/dataplane-mode=dedicated asks for a proxy of the pod's own, and {0}; take one of the two away"
    )]
    Contradiction(Left),
    /// Nobody understands it.
    #[error("annotation {name}: {why}")]
    Annotation {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What we put in has that name.
    #[error("spec.{list}: {name:?} is there already; the mesh's proxy brings one of that name")]
    Taken {
        /// `containers`, `initContainers` or `volumes`.
        list: &'static str,
        /// Of what is there.
        name: &'static str,
    },
    /// It has no containers that could be read.
    #[error("spec: no pod that could be given a proxy")]
    NoPod,
}

impl Injector {
    /// What becomes of `pod`.
    ///
    /// # Errors
    /// Why it must not be made.
    pub fn inject(&self, pod: &Value) -> Result<Injected, Refused> {
        if !pod["spec"]["containers"].is_array() {
            return Err(Refused::NoPod);
        }
        if parts::are_in(pod) {
            return Ok(self.again(pod));
        }
        if let Some(left) = left(pod) {
            let asks = label(pod, labels::DATAPLANE_MODE) == Some(labels::DEDICATED);
            return match asks && left.surprises() {
                true => Err(Refused::Contradiction(left)),
                false => Ok(Injected::Left(left)),
            };
        }
        parts::free(pod)?;
        let capture = capture::read(pod, self.chart.capture_exclusions)?;
        let mut injected = pod.clone();
        let mut warnings = Vec::new();
        let asked = probes::lead(&mut injected, probes::Asked::default(), &mut warnings);
        warnings.extend(probes::hooks(pod));
        warnings.extend(parts::crowded(pod));
        warnings.extend(capture::idle(pod));
        self.put(&mut injected, &capture, &asked)?;
        Ok(Injected::Changed {
            pod: injected,
            warnings,
        })
    }

    /// One that has ours: containers may have come since.
    fn again(&self, pod: &Value) -> Injected {
        let mut injected = pod.clone();
        let mut warnings = Vec::new();
        let before = parts::asked_in(pod);
        let asked = probes::lead(&mut injected, before.clone(), &mut warnings);
        if asked == before {
            return Injected::Left(Left::Sidecar);
        }
        parts::ask(&mut injected, &asked);
        Injected::Changed {
            pod: injected,
            warnings,
        }
    }
}

fn left(pod: &Value) -> Option<Left> {
    const INJECT: &str = "sidecar.istio.io/inject";
    let unwanted = |said: Option<&str>| said == Some("false");
    if annotation(pod, labels::SIDECAR_STATUS).is_some() {
        return Some(Left::Sidecar);
    }
    match label(pod, labels::DATAPLANE_MODE) {
        Some(labels::AMBIENT) => return Some(Left::Ambient),
        Some(labels::NONE) => return Some(Left::OptedOut),
        _ => {}
    }
    if unwanted(label(pod, INJECT)) || unwanted(annotation(pod, INJECT)) {
        return Some(Left::OptedOut);
    }
    if pod["spec"]["hostNetwork"] == true {
        return Some(Left::HostNetwork);
    }
    let os = pod["spec"]["os"]["name"].as_str();
    os.is_some_and(|os| os != "linux").then_some(Left::NotLinux)
}

/// What has to be done to `old` so that it is `new`, by RFC 6902. Members of metadata and spec are replaced as wholes: nobody
/// changes them in between.
pub fn patch(old: &Value, new: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    for part in ["metadata", "spec"] {
        let Some(before) = old[part].as_object() else {
            operations.push(json!({"op": "add", "path": format!("/{part}"), "value": new[part]}));
            continue;
        };
        let after = new[part].as_object().into_iter().flatten();
        let changed = after.filter(|(name, value)| before.get(*name) != Some(value));
        operations.extend(changed.map(|(name, value)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            json!({"op": "add", "path": format!("/{part}/{name}"), "value": value})
        }));
    }
    operations
}

fn label<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["labels"][name].as_str()
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["annotations"][name].as_str()
}

/// The items of a list, which may not be there.
fn items<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod["spec"][list].as_array().into_iter().flatten()
}
