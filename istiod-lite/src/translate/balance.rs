//! How clients choose among a service's endpoints.

use api::workload::LoadBalancing;
use api::workload::load_balancing::{HealthPolicy, Mode, Scope};

/// How near an endpoint should be (`trafficDistribution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Anywhere.
    Any,
    /// In the same zone if one is there, else the same region.
    Zone,
    /// On the same node if one is there, else as near as possible.
    Node,
}

impl Distribution {
    /// From a field or an annotation; what is not known means anywhere.
    pub fn named(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Self::Zone,
            "prefersamenode" => Self::Node,
            _ => Self::Any,
        }
    }
}

/// What a Kubernetes Service wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// `internalTrafficPolicy: Local`.
    pub local: bool,
    /// `publishNotReadyAddresses`.
    pub unready_too: bool,
    /// Its own; else its namespace's applies.
    pub distribution: Option<Distribution>,
}

impl Wish {
    /// Nothing where any healthy endpoint will do.
    pub fn balancing(self, namespace: Option<Distribution>) -> Option<LoadBalancing> {
        let (scopes, mode): (&[Scope], Mode) = match self.distribution.or(namespace) {
            _ if self.local => (&[Scope::Node], Mode::Strict),
            Some(Distribution::Zone) => (
                &[Scope::Network, Scope::Region, Scope::Zone],
                Mode::Failover,
            ),
            Some(Distribution::Node) => (
                &[
                    Scope::Network,
                    Scope::Region,
                    Scope::Zone,
                    Scope::Subzone,
                    Scope::Node,
                ],
                Mode::Failover,
            ),
            Some(Distribution::Any) | None => (&[], Mode::UnspecifiedMode),
        };
        let health = if self.unready_too {
            HealthPolicy::AllowAll
        } else {
            HealthPolicy::OnlyHealthy
        };
        let balancing = LoadBalancing {
            routing_preference: scopes.iter().map(|scope| i32::from(*scope)).collect(),
            mode: mode.into(),
            health_policy: health.into(),
        };
        (balancing != LoadBalancing::default()).then_some(balancing)
    }
}

/// To the address the client asked for (ServiceEntry with resolution NONE).
pub fn passthrough() -> LoadBalancing {
    LoadBalancing {
        mode: Mode::Passthrough.into(),
        health_policy: HealthPolicy::AllowAll.into(),
        ..LoadBalancing::default()
    }
}
