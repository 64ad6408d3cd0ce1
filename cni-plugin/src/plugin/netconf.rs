//! The network configuration a runtime writes to our stdin, with the previous plugin's result.
//!
//! Results come in two shapes: one with `ip4` and `ip6` up to version 0.2, one with a list of `ips`
//! since 0.3, whose entries carry a `version` until 1.0. A runtime hands the previous result over in
//! the configuration's version, so passing on means giving back what came, with that version set.

use std::io::Read;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::failure::Failure;
use crate::cmdadd::{Masked, PodAddress};

/// Our part of the network configuration; keys as Istio writes them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetConf {
    #[serde(default = "oldest")]
    pub(super) cni_version: String,
    #[serde(default)]
    pub(super) prev_result: Option<PrevResult>,
    /// Level from which lines reach the agent's log.
    #[serde(default, rename = "plugin_log_level")]
    pub(super) plugin_log_level: String,
    /// Where the agent's sockets are.
    #[serde(default = "run_dir", rename = "cni_agent_run_dir")]
    pub(super) cni_agent_run_dir: String,
    /// `false` leaves every pod alone.
    #[serde(default = "yes", rename = "ambient_enabled")]
    pub(super) ambient_enabled: bool,
    /// Namespaces whose pods are never in the mesh.
    #[serde(default, rename = "exclude_namespaces")]
    pub(super) exclude_namespaces: Vec<String>,
    /// Where the agent itself runs.
    #[serde(default, rename = "pod_namespace")]
    pub(super) pod_namespace: String,
    /// There is no plugin before this one, and none is missed.
    #[serde(default, rename = "ambit_alone")]
    pub(super) alone: bool,
}

/// All of stdin.
pub(super) fn text(stdin: impl Read) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    match stdin.take(LIMIT).read_to_end(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::Io("stdin", error)),
    }
}

/// The previous plugin's result, kept whole.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct PrevResult(serde_json::Map<String, Value>);

impl PrevResult {
    /// The same result, said in `version`.
    pub(super) fn in_version(&self, version: &str) -> Value {
        let mut result = self.0.clone();
        result.insert("cniVersion".into(), version.into());
        let family_is_written = matches!(version, "0.3.0" | "0.3.1" | "0.4.0");
        for ip in result
            .get_mut("ips")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let v6 = ip["address"]
                .as_str()
                .is_some_and(|address| address.contains(':'));
            let Some(ip) = ip.as_object_mut() else {
                continue;
            };
            if family_is_written {
                ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
            } else {
                ip.remove("version");
            }
        }
        result
            .entry("dns")
            .or_insert_with(|| Value::Object(Default::default()));
        Value::Object(result)
    }

    /// The pod's addresses, for the agent.
    pub(super) fn addresses(&self) -> Result<Vec<PodAddress>, Failure> {
        let listed = self
            .0
            .get("ips")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let old = ["ip4", "ip6"]
            .iter()
            .filter_map(|family| self.0.get(*family));
        listed
            .map(|ip| address(ip, "address"))
            .chain(old.map(|ip| address(ip, "ip")))
            .collect()
    }
}

fn address(entry: &Value, key: &str) -> Result<PodAddress, Failure> {
    let text = entry[key].as_str().unwrap_or_default();
    let bad = || Failure::Address(text.to_owned());
    let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    let prefix = prefix.parse().map_err(|_| bad())?;
    if prefix > if ip.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    Ok(PodAddress {
        interface: entry["interface"]
            .as_u64()
            .and_then(|index| u32::try_from(index).ok()),
        address: Masked { ip, prefix },
        gateway: entry["gateway"]
            .as_str()
            .and_then(|gateway| gateway.parse().ok()),
    })
}

/// The specification: a configuration without a version is of the first one.
fn oldest() -> String {
    "0.1.0".into()
}

fn run_dir() -> String {
    "/var/run/istio-cni".into()
}

fn yes() -> bool {
    true
}

/// A configuration with its result is a few kilobytes.
const LIMIT: u64 = 1 << 20;
