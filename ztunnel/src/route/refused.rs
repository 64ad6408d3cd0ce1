//! Why a connection goes nowhere, in words, as a flag, and with what to do about it.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::{GatewayAddress, Network, NoEndpoint};

use crate::hint::Hint;
use crate::report::Failure;
use crate::traffic::Flag;

/// Why a connection goes nowhere.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// To our own listener, through ourselves.
    #[error("attempted recursive call to ourselves")]
    SelfCall,
    /// The service has nowhere to send it.
    #[error("no healthy upstream: {service}: {why}")]
    NoUpstream {
        /// `namespace/hostname`
        service: String,
        /// What each endpoint lacked.
        why: NoEndpoint,
    },
    /// The waypoint is named but not known. Going around it would go around its policies.
    #[error(
        "waypoint {0} not found; traffic that must pass it is refused (is its Gateway programmed, are its pods up?)"
    )]
    WaypointNotFound(String),
    /// The waypoint is known but has nobody to answer.
    #[error("waypoint {waypoint} has no healthy pod: {why}")]
    WaypointNotReady {
        /// `namespace/hostname`
        waypoint: String,
        /// What each of its pods lacked.
        why: NoEndpoint,
    },
    /// The gateway of another network is named but not known.
    #[error(
        "gateway {gateway} of network {network} not found; {workload} can be reached in no other way"
    )]
    GatewayNotFound {
        /// Service or address.
        gateway: Box<GatewayAddress>,
        /// Which it leads to.
        network: Network,
        /// Who is there.
        workload: Arc<str>,
    },
    /// The gateway of another network is known but has nobody to answer.
    #[error("gateway {gateway} has no healthy pod: {why}")]
    GatewayNotReady {
        /// `namespace/hostname`
        gateway: String,
        /// What each of its pods lacked.
        why: NoEndpoint,
    },
    /// A gateway is asked for a service, and none was called.
    #[error("{0} is on network {1}, where gateways lead to services only; call a service of it")]
    OtherNetwork(Arc<str>, Network),
    /// Whoever is behind a gateway is believed only if the service vouches for it.
    #[error("service {0} names nobody (subject_alt_names) who could answer for it on network {1}")]
    NobodyVouched(String, Network),
    /// The endpoint has no address.
    #[error("workload {0} has no address")]
    NoAddress(Arc<str>),
    /// Nobody is known there, and connections to who is unknown are refused.
    #[error(
        "egress refused by {by}: the mesh knows nobody at {destination} (a ServiceEntry with this address and port would let it pass, or one with its host name, looked up where DNS is captured)"
    )]
    Egress {
        /// Where the app meant to go.
        destination: SocketAddr,
        /// The setting.
        by: Arc<str>,
    },
    /// The next hop's names do not make an identity, so it could not prove who it is.
    #[error("workload {0} has no valid identity: {1}")]
    NoIdentity(Arc<str>, hbone::IdentityError),
}

impl Failure for Refused {
    fn flag(&self) -> Flag {
        match self {
            Self::Egress { .. } => Flag::Egress,
            _ => Flag::Connect,
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::SelfCall => Hint::OwnPort,
            Self::NoUpstream { why, .. } => Hint::of_no_endpoint(*why),
            Self::WaypointNotFound(_) => Hint::WaypointMissing,
            Self::WaypointNotReady { .. } => Hint::WaypointNotReady,
            Self::GatewayNotFound { .. } | Self::GatewayNotReady { .. } => Hint::GatewayMissing,
            Self::OtherNetwork(..) => Hint::OtherNetwork,
            Self::NobodyVouched(..) => Hint::NobodyVouched,
            Self::NoAddress(_) => Hint::NoAddress,
            Self::Egress { .. } => Hint::Egress,
            Self::NoIdentity(..) => Hint::BadNames,
        })
    }

    fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::Egress { by, .. } => Some(by),
            _ => None,
        }
    }
}
