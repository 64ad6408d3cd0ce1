//! What the plugin tells the agent when a pod's network has been made: `POST /cmdadd`.
//!
//! The JSON is Istio's (docs/wire.md, "Plugin ADD"), so either side can be Istio's own. It is Go's
//! encoding of its network types: masks are base64, an absent gateway is the empty string.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A pod whose interfaces are up and which is about to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CmdAdd {
    /// Path of the pod's network namespace, as the runtime knows it.
    pub netns: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// Its UID, if the runtime told it: a pod and its successor of the same name are told apart by it. Not in
    /// the body, which is Istio's, but in the header [`POD_UID`].
    #[serde(skip)]
    pub pod_uid: Option<String>,
    /// Its addresses.
    #[serde(rename = "IPs", default, deserialize_with = "null_is_empty")]
    pub ips: Vec<PodAddress>,
}

/// The header with the pod's UID. Istio's plugin does not send it, and its agent does not mind it.
pub const POD_UID: &str = "ambit-pod-uid";

/// One address of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PodAddress {
    /// Index into the CNI result's interfaces.
    #[serde(default)]
    pub interface: Option<u32>,
    /// The address and its network's mask.
    pub address: Masked,
    /// Where its packets leave, if anywhere.
    #[serde(default, with = "go_ip")]
    pub gateway: Option<IpAddr>,
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The address itself.
    pub ip: IpAddr,
    /// Leading one bits of the mask.
    pub prefix: u8,
}

impl Serialize for Masked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match self.ip {
            IpAddr::V4(_) => STANDARD.encode(mask(self.prefix, 32).to_be_bytes().split_at(12).1),
            IpAddr::V6(_) => STANDARD.encode(mask(self.prefix, 128).to_be_bytes()),
        };
        GoNet {
            ip: self.ip,
            mask: text,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Masked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let GoNet { ip, mask } = GoNet::deserialize(deserializer)?;
        let bytes = STANDARD
            .decode(mask)
            .map_err(|error| serde::de::Error::custom(format!("Mask: {error}")))?;
        let prefix = bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
        let prefix = u8::try_from(prefix).map_err(serde::de::Error::custom)?;
        Ok(Self { ip, prefix })
    }
}

#[derive(Serialize, Deserialize)]
struct GoNet {
    #[serde(rename = "IP")]
    ip: IpAddr,
    #[serde(rename = "Mask")]
    mask: String,
}

/// The mask of `prefix` ones in the last `width` bits.
fn mask(prefix: u8, width: u32) -> u128 {
    let zeros = width.saturating_sub(u32::from(prefix));
    let ones = u128::MAX >> (128 - width);
    u128::MAX.checked_shl(zeros).unwrap_or(0) & ones
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's `net.IP`: text, empty when absent.
mod go_ip {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        ip: &Option<IpAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match ip {
            Some(ip) => serializer.collect_str(ip),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bodies_are_read_and_written_to_the_byte() {
        let golden = include_str!("../testdata/nftables-dns/cmdadd.jsonl");
        let mut seen = 0;
        for line in golden.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let body: CmdAdd = serde_json::from_value(line["request_body"].clone()).unwrap();
            let ours = serde_json::to_string(&body).unwrap();
            let length = line["request_headers"]
                .as_array()
                .unwrap()
                .iter()
                .find_map(|header| header.as_str()?.strip_prefix("Content-Length: "))
                .unwrap();
            assert_eq!(ours.len().to_string(), length, "{ours}");
            let again: serde_json::Value = serde_json::from_str(&ours).unwrap();
            assert_eq!(again, line["request_body"]);
            seen += 1;
        }
        assert_eq!(seen, 8);
    }

    #[test]
    fn absent_parts_are_written_as_go_writes_them() {
        let body = CmdAdd {
            netns: "/n".into(),
            pod_name: "p".into(),
            pod_namespace: "ns".into(),
            pod_uid: None,
            ips: vec![PodAddress {
                interface: None,
                address: Masked {
                    ip: "10.0.0.1".parse().unwrap(),
                    prefix: 24,
                },
                gateway: None,
            }],
        };
        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            r#"{"Netns":"/n","PodName":"p","PodNamespace":"ns","IPs":[{"Interface":null,"Address":{"IP":"10.0.0.1","Mask":"////AA=="},"Gateway":""}]}"#
        );
        let none: CmdAdd =
            serde_json::from_str(r#"{"Netns":"","PodName":"p","PodNamespace":"n","IPs":null}"#)
                .unwrap();
        assert!(none.ips.is_empty());
    }

    proptest! {
        #[test]
        fn every_address_survives_the_journey(ip: IpAddr, gateway: Option<IpAddr>, interface: Option<u32>, prefix in 0u8..=128) {
            let prefix = if ip.is_ipv4() { prefix % 33 } else { prefix };
            let address = PodAddress { interface, address: Masked { ip, prefix }, gateway };
            let text = serde_json::to_string(&address).unwrap();
            prop_assert_eq!(serde_json::from_str::<PodAddress>(&text).unwrap(), address);
        }
    }
}
