//! Istio's kinds, and annotations of its sidecars, that have no effect in this mesh, and what does instead.
//!
//! Nobody reads these. Whoever comes upon one says so: its author would believe that it holds.

/// A kind without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// Its group.
    pub group: &'static str,
    /// The version that API servers keep.
    pub version: &'static str,
    /// Its name.
    pub kind: &'static str,
    /// The name of its objects in paths.
    pub plural: &'static str,
    /// Why not, and what to write instead.
    pub instead: &'static str,
}

/// All of them. What has no effect in Istio's ambient mode either comes first.
pub const IDLE: [Idle; 5] = [
    Idle {
        group: "networking.istio.io",
        version: "v1",
        kind: "Sidecar",
        plural: "sidecars",
        instead: "there are no sidecars, and in Istio's ambient mode it has no effect either; \
                  who may call out of the mesh is said by label ambit.io/egress and ServiceEntries, who may call whom inside by AuthorizationPolicies of who is called",
    },
    Idle {
        group: "networking.istio.io",
        version: "v1beta1",
        kind: "ProxyConfig",
        plural: "proxyconfigs",
        instead: "proxies are set up by the chart's values, waypoints by their Gateway's parametersRef",
    },
    Idle {
        group: "networking.istio.io",
        version: "v1alpha3",
        kind: "EnvoyFilter",
        plural: "envoyfilters",
        instead: "no proxy of this mesh is an Envoy; what is needed most is said by RateLimitPolicy, QuotaPolicy, ExternalProcessor (ambit.io) and Telemetry",
    },
    Idle {
        group: "extensions.istio.io",
        version: "v1alpha1",
        kind: "WasmPlugin",
        plural: "wasmplugins",
        instead: "no proxy of this mesh runs Wasm; an ExternalProcessor (ambit.io) is asked about requests instead",
    },
    Idle {
        group: "networking.istio.io",
        version: "v1",
        kind: "Gateway",
        plural: "gateways",
        instead: "this mesh has no ingress or egress gateways yet; waypoints and east-west gateways are Gateways of gateway.networking.k8s.io",
    },
];

/// An annotation of pods without effect, in Istio's ambient mode as here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleAnnotation {
    /// Its name.
    pub name: &'static str,
    /// What is so whatever it says, and what to write instead.
    pub instead: &'static str,
    /// The value that says no more than what is so.
    pub harmless: &'static str,
}

impl IdleAnnotation {
    /// Whether who writes this would believe in what is not so.
    pub fn misleads(&self, value: &str) -> bool {
        value.trim() != self.harmless
    }
}

/// All of those that are about capture.
pub const IDLE_ANNOTATIONS: [IdleAnnotation; 4] = [
    IdleAnnotation {
        name: "traffic.sidecar.istio.io/includeInboundPorts",
        instead: "all that comes to the pod is captured; traffic.sidecar.istio.io/excludeInboundPorts names the ports that are not",
        harmless: "*",
    },
    IdleAnnotation {
        name: "traffic.sidecar.istio.io/includeOutboundPorts",
        instead: "where includeOutboundIPRanges is said too, these ports are captured within its ranges alone: add ranges, or take it away; \
                  otherwise all that the pod calls is captured",
        harmless: "",
    },
    IdleAnnotation {
        name: "traffic.sidecar.istio.io/excludeInterfaces",
        instead: "interfaces are not told apart; traffic.sidecar.istio.io/excludeOutboundIPRanges and excludeInboundPorts say what is not captured",
        harmless: "",
    },
    IdleAnnotation {
        name: "traffic.sidecar.istio.io/kubevirtInterfaces",
        instead: "what lives behind interfaces of the pod is named by istio.io/reroute-virtual-interfaces, in ambient mode",
        harmless: "",
    },
];

/// A kind of any version, as documents name it (`group/version` and kind), if it has no effect.
pub fn of(api_version: &str, kind: &str) -> Option<&'static Idle> {
    let (group, _) = api_version.split_once('/')?;
    IDLE.iter()
        .find(|idle| idle.group == group && idle.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::yaml::{Parsed, parse};

    #[test]
    fn what_has_no_effect_is_no_kind_that_is_read_and_is_known_under_every_version() {
        for idle in IDLE {
            for version in [idle.version, "v1beta1"] {
                let api_version = format!("{}/{version}", idle.group);
                assert_eq!(of(&api_version, idle.kind), Some(&idle));
                let text = format!(
                    "apiVersion: {api_version}\nkind: {}\nmetadata: {{name: a}}\n",
                    idle.kind
                );
                let ignored = Parsed::Ignored {
                    kind: format!("{api_version}/{}", idle.kind),
                };
                assert_eq!(parse(&text), [ignored]);
            }
        }
    }

    #[test]
    fn no_annotation_without_effect_is_one_that_is_read() {
        use crate::k8s::labels;
        for idle in IDLE_ANNOTATIONS {
            for read in [
                labels::EXCLUDE_INBOUND_PORTS,
                labels::EXCLUDE_OUTBOUND_PORTS,
                labels::EXCLUDE_OUTBOUND_RANGES,
                labels::INCLUDE_OUTBOUND_RANGES,
                labels::REROUTE_VIRTUAL_INTERFACES,
            ] {
                assert_ne!(idle.name, read);
            }
            assert!(idle.misleads("8080") && !idle.misleads(idle.harmless));
        }
        let [inbound, outbound, ..] = IDLE_ANNOTATIONS;
        assert!(
            !inbound.misleads(" * ") && inbound.misleads(""),
            "no port is captured"
        );
        assert!(
            !outbound.misleads(" ") && outbound.misleads("*"),
            "all are, regardless of ranges"
        );
    }

    #[test]
    fn kinds_of_others_are_others_affair() {
        for (api_version, kind) in [
            ("v1", "Gateway"),
            ("gateway.networking.k8s.io/v1", "Gateway"),
            ("networking.istio.io/v1", "ServiceEntry"),
            ("example.org/v1", "Sidecar"),
        ] {
            assert_eq!(of(api_version, kind), None, "{api_version} {kind}");
        }
    }
}
