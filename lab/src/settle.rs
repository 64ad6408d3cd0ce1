//! Waiting until the mesh has heard: what the nodes' ztunnels know, as their admin pages tell it.

use anyhow::Result;
use serde_json::Value;

use crate::{
    control_plane::PROPAGATION,
    lab::{Lab, Shared},
    node::Node,
    pod::{Pod, split},
    wait::{self, Probe},
};

impl Lab {
    /// Waits until what a node's ztunnel knows is as `fits` wants it.
    pub fn until_dump(
        &self,
        node: usize,
        what: &str,
        fits: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        self.shared().until_dump(self.node(node), what, fits)
    }

    /// [`Lab::until_dump`] on every node; without a mesh there is nothing to wait for.
    pub fn until_all_dumps(&self, what: &str, mut fits: impl FnMut(&Value) -> bool) -> Result<()> {
        self.nodes()
            .iter()
            .filter(|node| node.meshed())
            .try_for_each(|node| self.shared().until_dump(node, what, &mut fits))
    }

    /// Waits until an AuthorizationPolicy (`namespace/name`) is in force on every node, or no longer known. One that selects
    /// workloads is in force when a workload names it, which proxies are told after the policy itself.
    pub fn until_policy(&self, key: &str, present: bool) -> Result<()> {
        let (namespace, name) = split(key)?;
        let what = format!("policy {key}, present: {present}");
        self.until_all_dumps(&what, |dump| {
            let found = all(dump, "policies")
                .find(|policy| policy["namespace"] == namespace && policy["name"] == name);
            let in_force = found.is_some_and(|policy| {
                policy["scope"] != "WorkloadSelector"
                    || all(dump, "workloads")
                        .any(|it| all(it, "authorizationPolicies").any(|it| *it == key))
            });
            in_force == present && found.is_some() == present
        })
    }
}

fn all<'a>(dump: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    dump[field].as_array().into_iter().flatten()
}

impl Shared {
    /// Waits until the pod is enrolled where it should be, and every ztunnel knows it as what it is.
    pub(crate) fn until_known(&self, pod: &Pod) -> Result<()> {
        if !pod.home(self)?.meshed() {
            return Ok(());
        }
        // The pod's own word, else its namespace's.
        let meshed = match pod.label("istio.io/dataplane-mode").as_deref() {
            Some(mode) => mode == "ambient",
            None => self.is_ambient(pod.namespace()),
        };
        let wanted = if meshed { "HBONE" } else { "TCP" };
        for node in &self.nodes {
            self.until_dump(
                node,
                &format!("{}/{} as {wanted}", pod.namespace(), pod.name()),
                |dump| {
                    let workloads = dump["workloads"]
                        .as_array()
                        .map(Vec::as_slice)
                        .unwrap_or_default();
                    let address = pod.ip().to_string();
                    workloads.iter().any(|w| {
                        w["name"] == pod.name()
                            && w["namespace"] == pod.namespace()
                            && w["workloadIps"]
                                .as_array()
                                .is_some_and(|ips| ips.iter().any(|ip| *ip == address.as_str()))
                            && (w["protocol"] == "HBONE") == meshed
                    })
                },
            )?;
        }
        Ok(())
    }

    fn until_dump(
        &self,
        node: &Node,
        what: &str,
        mut fits: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        wait::until(
            &format!("ztunnel on {} to know {what}", node.name()),
            PROPAGATION,
            || {
                Ok(match node.config_dump() {
                    Ok(dump) if fits(&dump) => Probe::Ready(()),
                    Ok(dump) => Probe::NotYet(format!("it knows {}", brief(&dump))),
                    Err(error) => Probe::NotYet(format!("{error:#}")),
                })
            },
        )
    }
}

/// Workloads and policies by name, for the error of a wait.
fn brief(dump: &Value) -> String {
    let names = |list: &str, more: &str| -> Vec<String> {
        let all = dump[list].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter()
            .map(|o| format!("{}/{} {}", o["namespace"], o["name"], o[more]).replace('"', ""))
            .collect()
    };
    format!(
        "workloads {:?}, services {:?}, policies {:?}",
        names("workloads", "protocol"),
        names("services", "hostname"),
        names("policies", "action")
    )
}
