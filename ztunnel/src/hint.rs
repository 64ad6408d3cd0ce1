//! What a person can do about a connection that was refused or failed: one hint a kind of failure, in the access log
//! (`hint`) and in `/explain`. The error beside it says what happened; the hint says where to look and what to change.
//!
//! docs/operations.md has them all in one table, and a test keeps the two equal.

use hbone::{AcceptError, Alert, CertificateError, ConnectionError, OpenError, TlsError};
use mesh::{DeniedBy, NoEndpoint};

use crate::arrival::Misdirected;

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    OwnPort,
    NoPort,
    NoEndpoints,
    NoneReady,
    NoneReachable,
    NoneNear,
    WaypointMissing,
    WaypointNotReady,
    GatewayMissing,
    OtherNetwork,
    NobodyVouched,
    NoAddress,
    Egress,
    BadNames,
    NotTold,
    NotAnswered,
    NoCertificate,
    NoTunnelPort,
    Unanswered,
    SlowHandshake,
    Revoked,
    RevokedHere,
    Revocations,
    Expired,
    Untrusted,
    TrustDomain,
    NoTls,
    NoTunnel,
    AnotherIdentity,
    DeniedThere,
    RefusedThere,
    TunnelLost,
    CannotConnect,
    NameUnknown,
    Denied,
    NotAllowed,
    Strict,
    OnlyThroughWaypoint,
    PolicyMissing,
    WorkloadGone,
    StaleAddress,
    NotServedHere,
    BadRequest,
    Flood,
    AppRefuses,
    AppSilent,
    SourceAddress,
    PodGoing,
    GaveUp,
    Full,
    NoDatagrams,
}

impl Hint {
    #[cfg(test)]
    pub(crate) const ALL: &[Self] = &[
        Self::OwnPort,
        Self::NoPort,
        Self::NoEndpoints,
        Self::NoneReady,
        Self::NoneReachable,
        Self::NoneNear,
        Self::WaypointMissing,
        Self::WaypointNotReady,
        Self::GatewayMissing,
        Self::OtherNetwork,
        Self::NobodyVouched,
        Self::NoAddress,
        Self::Egress,
        Self::BadNames,
        Self::NotTold,
        Self::NotAnswered,
        Self::NoCertificate,
        Self::NoTunnelPort,
        Self::Unanswered,
        Self::SlowHandshake,
        Self::Revoked,
        Self::RevokedHere,
        Self::Revocations,
        Self::Expired,
        Self::Untrusted,
        Self::TrustDomain,
        Self::NoTls,
        Self::NoTunnel,
        Self::AnotherIdentity,
        Self::DeniedThere,
        Self::RefusedThere,
        Self::TunnelLost,
        Self::CannotConnect,
        Self::NameUnknown,
        Self::Denied,
        Self::NotAllowed,
        Self::Strict,
        Self::OnlyThroughWaypoint,
        Self::PolicyMissing,
        Self::WorkloadGone,
        Self::StaleAddress,
        Self::NotServedHere,
        Self::BadRequest,
        Self::Flood,
        Self::AppRefuses,
        Self::AppSilent,
        Self::SourceAddress,
        Self::PodGoing,
        Self::GaveUp,
        Self::Full,
        Self::NoDatagrams,
    ];

    /// What failed, in a few words.
    #[cfg(test)]
    const fn of(self) -> &'static str {
        match self {
            Self::OwnPort => "an app called ztunnel's own port",
            Self::NoPort => "the Service does not offer the port",
            Self::NoEndpoints => "the Service has no endpoint",
            Self::NoneReady => "none of its endpoints is ready",
            Self::NoneReachable => "none of them can be reached on this port",
            Self::NoneNear => "none of them is near enough",
            Self::WaypointMissing => "the waypoint is not known",
            Self::WaypointNotReady => "the waypoint has no pod to answer",
            Self::GatewayMissing => {
                "the gateway of another network is not known or has no pod to answer"
            }
            Self::OtherNetwork => "a pod of another network was called by its address",
            Self::NobodyVouched => "nobody may answer for the service in another network",
            Self::NoAddress => "the endpoint has no address",
            Self::Egress => "nobody is known there, and a setting refuses that",
            Self::BadNames => "the names of a workload make no identity",
            Self::NotTold => "ztunnel has not been told of its own pod",
            Self::NotAnswered => {
                "ztunnel asked who is there (XDS_ON_DEMAND) and was not told in time, or not so that it understood"
            }
            Self::NoCertificate => "no certificate for this end",
            Self::NoTunnelPort => {
                "port 15008 of the other end refused the connection or cannot be reached"
            }
            Self::Unanswered => "port 15008 of the other end said nothing",
            Self::SlowHandshake => "the handshake took too long",
            Self::Revoked => "the other end's certificate was revoked",
            Self::RevokedHere => "the other end refused this end's certificate, for it was revoked",
            Self::Revocations => "it cannot be told whether a certificate was revoked",
            Self::Expired => "a certificate is not valid now",
            Self::Untrusted => "a certificate is signed by somebody else",
            Self::TrustDomain => "the other end is of another trust domain",
            Self::NoTls => "TLS failed otherwise",
            Self::NoTunnel => "what answered is no tunnel",
            Self::AnotherIdentity => "the other end is somebody else",
            Self::DeniedThere => "the other end denied it (401)",
            Self::RefusedThere => "the other end refused it (another status)",
            Self::TunnelLost => "the tunnel broke before there was an answer",
            Self::CannotConnect => "a destination outside of the mesh cannot be connected to",
            Self::NameUnknown => "a name could not be resolved",
            Self::Denied => "a DENY policy matched",
            Self::NotAllowed => "ALLOW policies apply, none matched",
            Self::Strict => "plain text, where it is not taken",
            Self::OnlyThroughWaypoint => "not through the waypoint, which is demanded",
            Self::PolicyMissing => "a policy is named that ztunnel was not sent",
            Self::WorkloadGone => "the control plane lists the workload no more",
            Self::StaleAddress => "the address belongs to another pod",
            Self::NotServedHere => "the service is not one of this pod's",
            Self::BadRequest => "the other end asked for something that is no tunnel",
            Self::Flood => "the other end broke the rules of HTTP/2 and was cut off",
            Self::AppRefuses => "the app refused the connection",
            Self::AppSilent => "the app did not answer",
            Self::SourceAddress => "the client's address could not be kept",
            Self::PodGoing => "the pod is leaving, or ztunnel is stopping",
            Self::GaveUp => "the other end gave up",
            Self::Full => "ztunnel had no room for it",
            Self::NoDatagrams => "UDP cannot be carried there",
        }
    }

    /// What a person can do.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::OwnPort => {
                "the app must call another port: 15001, 15006 and 15008 are the mesh's in every pod"
            }
            Self::NoPort => "spec.ports of the Service, or the port that the client calls",
            Self::NoEndpoints => {
                "the Service's selector against the labels of its pods; is anything scaled to 0; where all are on other networks, its label istio.io/global"
            }
            Self::NoneReady => {
                "readiness of the Service's pods: kubectl get endpointslices, kubectl describe pod"
            }
            Self::NoneReachable => {
                "targetPort and ipFamilies of the Service against its pods; ambit explain says what each lacks"
            }
            Self::NoneNear => {
                "internalTrafficPolicy and trafficDistribution of the Service; pods of it on this node or in this zone"
            }
            Self::WaypointMissing => {
                "label istio.io/use-waypoint of the Service, pod or namespace; is that Gateway there and Programmed: ambit waypoint status"
            }
            Self::WaypointNotReady => "pods of the waypoint: ambit waypoint status -A",
            Self::GatewayMissing => {
                "the Gateway of class istio-east-west or istio-remote for that network, its address and its pods"
            }
            Self::OtherNetwork => {
                "call a Service: gateways of other networks lead to no single pods"
            }
            Self::NobodyVouched => {
                "subjectAltNames of the ServiceEntry, or service accounts of its WorkloadEntries"
            }
            Self::NoAddress => {
                "address of the WorkloadEntry, or the pod's IP: kubectl get pod -o wide"
            }
            Self::Egress => {
                "a ServiceEntry for this host or address and port, or label ambit.io/egress on the namespace or pod"
            }
            Self::BadNames => {
                "trust domain, namespace and service account of that workload: they may have no slash and no blank"
            }
            Self::NotTold => {
                "ztunnel's connection to istiod (:15014/debug/syncz), and whether the pod has the annotation ambient.istio.io/redirection"
            }
            Self::NotAnswered => {
                "ztunnel's connection to istiod (:15014/debug/syncz); ambit_on_demand_requests_total says what came of other questions"
            }
            Self::NoCertificate => {
                "ztunnel's way to istiod:15012 and its token; istiod's log says whom it refuses to sign for"
            }
            Self::NoTunnelPort => {
                "ztunnel on the destination's node: is it ready, and is the pod enrolled there (ambit status)"
            }
            Self::Unanswered => {
                "NetworkPolicies and firewalls between the nodes: they must let TCP 15008 pass; is the node up"
            }
            Self::SlowHandshake => {
                "load of the other end's node, and packets lost on the way (MTU)"
            }
            Self::Revoked => "ConfigMap istio-ca-crl; whoever it names needs a new certificate",
            Self::RevokedHere => {
                "this end's own workload, or who signed for it, is in ConfigMap istio-ca-crl: it needs a new certificate"
            }
            Self::Revocations => {
                "ConfigMap istio-ca-crl: it must hold a current list of every authority between root and leaf"
            }
            Self::Expired => "clocks of both nodes; renewal of certificates in ztunnel's log",
            Self::Untrusted => {
                "the roots of both ends: ConfigMap istio-ca-root-cert; two clusters need one root"
            }
            Self::TrustDomain => {
                "trustDomainAliases of the mesh must name the other end's trust domain; proxies hear of them by AMBIT_TRUST_DOMAINS"
            }
            Self::NoTls => "what listens on 15008 there; versions and TLS settings of both ends",
            Self::NoTunnel => "what listens on 15008 there: it must be a ztunnel or a waypoint",
            Self::AnotherIdentity => {
                "a pod whose IP was reused, or stale endpoints: it passes when the control plane has told of it; else ambit status"
            }
            Self::DeniedThere => {
                "the line of the destination's node names the policy; ambit explain SRC DST:PORT asks both ends"
            }
            Self::RefusedThere => {
                "the line of the destination's node, the waypoint's or the gateway's, says why: its app, or its configuration"
            }
            Self::TunnelLost => {
                "did ztunnel on the destination's node end at that time; loss on the way; the app may simply try again"
            }
            Self::CannotConnect => {
                "does anything listen there; routes, firewalls and NetworkPolicies for egress"
            }
            Self::NameUnknown => {
                "the ServiceEntry's endpoints, and the resolver of the node (/etc/resolv.conf)"
            }
            Self::Denied => {
                "the AuthorizationPolicy that the error names; ambit explain SRC DST:PORT says which condition matched"
            }
            Self::NotAllowed => {
                "an ALLOW rule for this caller; ambit explain SRC DST:PORT says what each policy lacks"
            }
            Self::Strict => {
                "put the caller into the mesh (ambit enroll, label istio.io/dataplane-mode=ambient), or make PeerAuthentication PERMISSIVE for this port"
            }
            Self::OnlyThroughWaypoint => {
                "call the Service, so that its waypoint stands between, or take label ambit.io/waypoint-only away"
            }
            Self::PolicyMissing => {
                "istiod's log and ztunnel's connection to it (:15014/debug/syncz): the policy was rejected or is late"
            }
            Self::WorkloadGone => {
                "was the pod deleted; else ztunnel's connection to istiod (:15014/debug/syncz)"
            }
            Self::StaleAddress => {
                "a pod made anew under an old address: it passes when the control plane has told of it; else ambit status"
            }
            Self::NotServedHere => {
                "ports and endpoints of the Service, as the caller's node knows them: ambit explain SRC DST:PORT"
            }
            Self::BadRequest => {
                "what calls port 15008 of this pod: only ztunnels, waypoints and gateways may"
            }
            Self::Flood => "who that is (src.identity): a broken client, or an attack",
            Self::AppRefuses => {
                "does the app listen on this port on the pod's address, not only on 127.0.0.1"
            }
            Self::AppSilent => "load and backlog of the app; a packet filter inside the pod",
            Self::SourceAddress => "ztunnel's capability NET_ADMIN, or ENABLE_ORIG_SRC=false",
            Self::PodGoing => {
                "nothing, if a roll-out was under way; else why the pod or ztunnel ended"
            }
            Self::GaveUp => {
                "the client's own timeout; what this end was waiting for (policies, certificate, the app)"
            }
            Self::Full => {
                "what opens so many connections; the bounds of ztunnel (AMBIT_MAX_..., RLIMIT_NOFILE, its memory), which the error names"
            }
            Self::NoDatagrams => {
                "label ambit.io/udp of the namespaces or pods of both ends, and that no waypoint stands between"
            }
        }
    }

    pub(crate) fn of_no_endpoint(why: NoEndpoint) -> Self {
        match why {
            NoEndpoint::NoPort(_) => Self::NoPort,
            NoEndpoint::Empty | NoEndpoint::Passthrough => Self::NoEndpoints,
            NoEndpoint::Unhealthy => Self::NoneReady,
            NoEndpoint::Unusable(_) => Self::NoneReachable,
            NoEndpoint::TooFar => Self::NoneNear,
        }
    }

    pub(crate) fn of_denial(why: &DeniedBy) -> Self {
        match why {
            DeniedBy::Explicit(policy) => match Origin::of(policy) {
                Origin::AuthorizationPolicy => Self::Denied,
                Origin::PeerAuthentication => Self::Strict,
                Origin::WaypointOnly => Self::OnlyThroughWaypoint,
            },
            DeniedBy::NoAllowMatched => Self::NotAllowed,
            DeniedBy::UnknownPolicy(_) => Self::PolicyMissing,
        }
    }

    pub(crate) fn of_opening(why: &OpenError) -> Self {
        match why {
            OpenError::Certificate(why) => Self::of_certificate(why),
            OpenError::Dial { .. } => Self::NoTunnelPort,
            OpenError::DialTimeout { .. } => Self::Unanswered,
            OpenError::HandshakeTimeout(_) => Self::SlowHandshake,
            OpenError::IdentityMismatch(_) => Self::AnotherIdentity,
            OpenError::Tls(why) => Self::of_tls(why),
            OpenError::Http2(_) => Self::NoTunnel,
            OpenError::Refused(401) => Self::DeniedThere,
            OpenError::Refused(_) => Self::RefusedThere,
            OpenError::Reset(_) | OpenError::ConnectionLost(_) | OpenError::AnswerTimeout(_) => {
                Self::TunnelLost
            }
            OpenError::Malformed(_) => Self::BadNames,
        }
    }

    pub(crate) fn of_accepting(why: &AcceptError) -> Self {
        match why {
            AcceptError::Slow(_) => Self::SlowHandshake,
            AcceptError::Tls(why) => Self::of_tls(why),
            AcceptError::Preface(_) => Self::BadRequest,
        }
    }

    /// Who has none cannot do anything about the why: it is the way to whoever signs.
    pub(crate) fn of_certificate(_: &CertificateError) -> Self {
        Self::NoCertificate
    }

    pub(crate) fn of_end(why: &ConnectionError) -> Self {
        match why {
            ConnectionError::Flood(_) | ConnectionError::Protocol(_) => Self::Flood,
            ConnectionError::Unresponsive | ConnectionError::Lost(_) => Self::TunnelLost,
            ConnectionError::Disbelieved(why) => Self::of_tls(why),
            ConnectionError::HandedOver | ConnectionError::DrainDeadline(_) => Self::PodGoing,
        }
    }

    pub(crate) fn of_misdirection(why: &Misdirected) -> Self {
        match why {
            Misdirected::IpMismatch { .. } | Misdirected::Moved { .. } => Self::StaleAddress,
            Misdirected::UnknownHost(_) | Misdirected::UnknownPort(..) => Self::NotServedHere,
            Misdirected::SelfCall => Self::OwnPort,
            Misdirected::Framed(_) => Self::Strict,
        }
    }

    pub(crate) fn of_tls(why: &TlsError) -> Self {
        match why {
            TlsError::Revoked => Self::Revoked,
            TlsError::RevocationUnknown(_) => Self::Revocations,
            TlsError::Alert(Alert::CERTIFICATE_REVOKED) => Self::RevokedHere,
            TlsError::Expired(_) | TlsError::Alert(Alert::CERTIFICATE_EXPIRED) => Self::Expired,
            TlsError::UnknownCa(_) | TlsError::Alert(Alert::UNKNOWN_CA | Alert::DECRYPT_ERROR) => {
                Self::Untrusted
            }
            TlsError::TrustDomain(_) => Self::TrustDomain,
            TlsError::IdentityMismatch { .. } => Self::AnotherIdentity,
            TlsError::NotSpiffe(_) | TlsError::NoCertificate => Self::BadRequest,
            TlsError::Alert(_) | TlsError::Io(_) | TlsError::Protocol(_) => Self::NoTls,
        }
    }
}

/// Which object a policy was made from, told by its name: istiod makes policies of other objects too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    AuthorizationPolicy,
    PeerAuthentication,
    /// Label `ambit.io/waypoint-only`.
    WaypointOnly,
}

impl Origin {
    /// Of the policy of this name, with or without its namespace.
    pub(crate) fn of(policy: &str) -> Self {
        let name = policy.rsplit_once('/').map_or(policy, |(_, name)| name);
        if name == STRICT || name.starts_with(PEER_AUTHENTICATION) {
            Self::PeerAuthentication
        } else if name.starts_with(WAYPOINT_ONLY) {
            Self::WaypointOnly
        } else {
            Self::AuthorizationPolicy
        }
    }
}

/// Istio's names for what it makes of PeerAuthentications, and ours for what we make of the label.
const STRICT: &str = "istio_converted_static_strict";
pub(crate) const PEER_AUTHENTICATION: &str = "converted_peer_authentication_";
const WAYPOINT_ONLY: &str = "ambit_only_through_waypoint_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_page_has_every_hint_and_no_other() {
        let page = include_str!("../../docs/operations.md");
        let (_, table) = page.split_once("<!-- hints -->\n").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let written: Vec<&str> = table.lines().skip(2).collect();
        let known: Vec<String> = Hint::ALL
            .iter()
            .map(|hint| format!("| {} | {} |", hint.of(), hint.text()))
            .collect();
        assert_eq!(written, known, "the table should be:\n{}", known.join("\n"));
    }

    #[test]
    fn each_kind_has_a_hint_of_its_own_that_a_log_line_can_hold() {
        for (at, hint) in Hint::ALL.iter().enumerate() {
            assert_eq!(*hint as usize, at, "the list has them all, in order");
            let text = hint.text();
            let alike = Hint::ALL.iter().filter(|other| other.text() == text);
            assert_eq!(alike.count(), 1, "{text}");
            assert!(!text.contains(['"', '|', '\n']), "{text}");
        }
    }

    /// Of the end that calls a LOCAL service, and of one that is LOCAL where it runs: nothing else says so to the caller.
    #[test]
    fn who_is_kept_in_his_network_by_a_scope_is_told_where_to_look() {
        let here = Hint::of_no_endpoint(NoEndpoint::Empty);
        assert!(here.text().contains("istio.io/global"), "{}", here.text());
        let there = Hint::of_opening(&OpenError::Refused(503));
        assert!(there.text().contains("the gateway's"), "{}", there.text());
    }

    #[test]
    fn a_policy_is_told_by_its_name_to_be_of_a_peer_authentication_or_a_label() {
        for (policy, origin) in [
            (
                "istio-system/istio_converted_static_strict",
                Origin::PeerAuthentication,
            ),
            (
                "shop/converted_peer_authentication_db",
                Origin::PeerAuthentication,
            ),
            (
                "shop/ambit_only_through_waypoint_pod_db",
                Origin::WaypointOnly,
            ),
            ("shop/deny-db", Origin::AuthorizationPolicy),
            (
                "converted_peer_authentication_x/deny",
                Origin::AuthorizationPolicy,
            ),
        ] {
            assert_eq!(Origin::of(policy), origin, "{policy}");
        }
    }
}
