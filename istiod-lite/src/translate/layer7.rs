//! Policies that need HTTP to be read: what waypoints are told of them.
//!
//! 1. of an object its spec is kept, and whom it is for                ([`Layer7::read`])
//! 2. its spec becomes the wire's, each kind in a file of its own
//! 3. for which waypoints it is, and where there, is the world's to say ([`crate::world`])
//!
//! | file | from | to |
//! |---|---|---|
//! | [`authorization`] | AuthorizationPolicy with targets | Authorization |
//! | [`authentication`] | RequestAuthentication | Authentication |
//! | [`backend`] | DestinationRule | BackendPolicy, Subset |
//! | [`gateway_backend`] | BackendTLSPolicy, XBackendTrafficPolicy | parts of a BackendPolicy |
//! | [`virtual_service`] | VirtualService | Route, TcpRoute |
//! | [`telemetry`] | Telemetry | Telemetry |
//! | [`limit`] | RateLimitPolicy, QuotaPolicy | RateLimit |
//! | [`processor`] | ExternalProcessor | Processing |
//! | [`provider`], [`report`] | extension providers of the mesh | Provider |
//! | [`duration`], [`host`] | parts of the above | |

pub mod authentication;
pub mod authorization;
pub mod backend;
pub mod duration;
pub mod gateway_backend;
pub mod host;
pub mod limit;
pub mod processor;
pub mod provider;
pub mod report;
pub mod telemetry;
pub mod virtual_service;

use std::sync::Arc;

use api::k8s::aim::Aim;
use api::k8s::backends::{BackendTlsPolicySpec, BackendTrafficPolicySpec};
use api::k8s::istio::TargetRef;
use api::k8s::istio::destination_rule::DestinationRuleSpec;
use api::k8s::istio::request_authentication::RequestAuthenticationSpec;
use api::k8s::istio::telemetry::TelemetrySpec;
use api::k8s::istio::virtual_service::VirtualServiceSpec;
use api::k8s::limits::LimitSpec;
use api::k8s::objects::{Kind, Object, ObjectKey, ObjectMeta};
use api::k8s::processors::ExternalProcessorSpec;
use api::waypoint as wire;

use super::credential;
use super::policy::{Reading, Target};

/// What matters of a policy of layer 7.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer7 {
    /// The object.
    pub key: ObjectKey,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// What it is attached to.
    pub targets: Vec<Target>,
    /// Hosts it is for, complete; may begin with `*`.
    pub hosts: Vec<String>,
    /// Hosts that it sends to, or fetches keys from, complete.
    pub destinations: Vec<String>,
    /// Secrets and ConfigMaps that it names, and what it needs of them.
    pub credentials: credential::Named,
    /// What it says.
    pub spec: Arc<Spec>,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// RequestAuthentication.
    Authentication(RequestAuthenticationSpec),
    /// What cannot be read, and why: of a RequestAuthentication no token is good, of a limit no request passes.
    Closed(String),
    /// DestinationRule.
    Destination(Box<DestinationRuleSpec>),
    /// VirtualService.
    Virtual(VirtualServiceSpec),
    /// Telemetry.
    Telemetry(TelemetrySpec),
    /// RateLimitPolicy.
    RateLimit(LimitSpec),
    /// QuotaPolicy.
    Quota(LimitSpec),
    /// ExternalProcessor.
    Processor(ExternalProcessorSpec),
    /// BackendTLSPolicy.
    BackendTls(BackendTlsPolicySpec),
    /// XBackendTrafficPolicy.
    BackendTraffic(BackendTrafficPolicySpec),
}

impl Layer7 {
    /// Keeps what matters; none of an object of another kind. `domain`: of Kubernetes' services.
    pub fn read(object: &Object, reading: &Reading, domain: &str) -> Option<Self> {
        let key = object.key();
        let spec = match object {
            Object::RequestAuthentication(it) => Spec::Authentication(it.spec.clone()),
            Object::DestinationRule(it) => Spec::Destination(Box::new(it.spec.clone())),
            Object::VirtualService(it) => Spec::Virtual(it.spec.clone()),
            Object::Telemetry(it) => Spec::Telemetry(it.spec.clone()),
            Object::RateLimitPolicy(it) => Spec::RateLimit(it.spec.clone()),
            Object::QuotaPolicy(it) => Spec::Quota(it.spec.clone()),
            Object::ExternalProcessor(it) => Spec::Processor(it.spec.clone()),
            Object::BackendTlsPolicy(it) => Spec::BackendTls(it.spec.clone()),
            Object::BackendTrafficPolicy(it) => Spec::BackendTraffic(it.spec.clone()),
            _ => return None,
        };
        let hosts = match &spec {
            Spec::Destination(it) => std::slice::from_ref(&it.host),
            Spec::Virtual(it) => it.hosts.as_slice(),
            _ => &[],
        };
        let complete = |host: &String| host::complete(host, &key.namespace, domain);
        Some(Self {
            created: created(object.metadata()),
            generation: object.metadata().generation,
            targets: targets(&spec, &key, reading),
            hosts: hosts.iter().map(complete).collect(),
            destinations: match &spec {
                Spec::Virtual(it) => virtual_service::destinations(it).map(complete).collect(),
                Spec::Authentication(it) => authentication::issuers(it, domain),
                _ => Vec::new(),
            },
            credentials: match &spec {
                Spec::Destination(it) => credential::of_rule(it, &key.namespace),
                Spec::BackendTls(it) => credential::of_backend_tls(it, &key.namespace),
                _ => credential::Named::new(),
            },
            spec: Arc::new(spec),
            key,
        })
    }

    /// What stands in the place of a RequestAuthentication or a limit that cannot be read and never was.
    pub fn closed(key: &ObjectKey, aim: &Aim, why: &str, reading: &Reading) -> Self {
        Self {
            key: key.clone(),
            created: 0,
            generation: None,
            targets: aimed_at(key, aim, reading),
            hosts: Vec::new(),
            destinations: Vec::new(),
            credentials: credential::Named::new(),
            spec: Arc::new(Spec::Closed(why.to_owned())),
        }
    }

    /// What stands in its place, if it cannot be read.
    pub fn closed_words(&self) -> Option<&'static str> {
        match (&*self.spec, self.key.kind) {
            (Spec::Closed(_), Kind::RequestAuthentication) => {
                Some("until it is mended requests that carry a token are refused")
            }
            (Spec::Closed(_), Kind::ExternalProcessor) => {
                Some("until it is mended requests are refused")
            }
            (Spec::Closed(_), _) => Some(limit::REFUSES),
            _ => None,
        }
    }

    /// One resource of it. `rule` is its name in the object, or its number; empty if it is all of it.
    pub fn resource(&self, rule: &str, index: u32, kind: wire::resource::Kind) -> wire::Resource {
        resource(&self.key, self.created, rule, index, kind)
    }
}

/// A resource of an object.
pub fn resource(
    key: &ObjectKey,
    created: i64,
    rule: &str,
    index: u32,
    kind: wire::resource::Kind,
) -> wire::Resource {
    let name = key.kind.name().to_ascii_lowercase();
    let mut resource_key = format!("{name}/{}/{}", key.namespace, key.name);
    if !rule.is_empty() {
        resource_key.push('/');
        resource_key.push_str(rule);
    }
    wire::Resource {
        key: resource_key,
        origin: Some(wire::Origin {
            kind: key.kind.name().to_owned(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            rule: rule.to_owned(),
            created,
            index,
        }),
        kind: Some(kind),
    }
}

/// When an object was made, in seconds since 1970.
pub fn created(metadata: &ObjectMeta) -> i64 {
    let created = metadata.creation_timestamp.as_ref();
    created.map_or(0, |time| time.0.as_second())
}

fn targets(spec: &Spec, key: &ObjectKey, reading: &Reading) -> Vec<Target> {
    let (one, several) = match spec {
        Spec::Authentication(it) => (it.target_ref.as_ref(), it.target_refs.as_slice()),
        Spec::Telemetry(it) => (it.target_ref.as_ref(), it.target_refs.as_slice()),
        Spec::RateLimit(it) | Spec::Quota(it) => (None, it.target_refs.as_slice()),
        Spec::Processor(it) => (None, it.target_refs.as_slice()),
        Spec::BackendTls(it) => return backends(&it.target_refs, key),
        Spec::BackendTraffic(it) => return backends(&it.target_refs, key),
        Spec::Closed(_) | Spec::Destination(_) | Spec::Virtual(_) => (None, &[][..]),
    };
    let all = one.into_iter().chain(several);
    all.map(|it| target(it, key, reading)).collect()
}

fn target(it: &TargetRef, key: &ObjectKey, reading: &Reading) -> Target {
    let limits = matches!(
        key.kind,
        Kind::RateLimitPolicy | Kind::QuotaPolicy | Kind::ExternalProcessor
    );
    match route(it).filter(|_| limits) {
        Some(kind) => Target {
            shown: format!("{} {}/{}", it.kind, key.namespace, it.name),
            object: Some(ObjectKey::new(kind, &key.namespace, &it.name)),
        },
        None => Target::read(it, &key.namespace, &reading.root_namespace),
    }
}

/// What a refused policy is attached to: where that cannot be told, everything that it may be.
pub fn aimed_at(key: &ObjectKey, aim: &Aim, reading: &Reading) -> Vec<Target> {
    let anywhere = || Target::anywhere(&key.namespace, &reading.root_namespace);
    match aim {
        Aim::Somewhere => vec![anywhere()],
        Aim::Attached(refs) => {
            let targets: Vec<Target> = refs.iter().map(|it| target(it, key, reading)).collect();
            match targets.iter().all(|it| it.object.is_some()) {
                true => targets,
                false => vec![anywhere()],
            }
        }
        Aim::Selected(_) | Aim::All | Aim::Nobody => Vec::new(),
    }
}

/// Routes of Gateway API, which limits and processors may be attached to.
fn route(target: &TargetRef) -> Option<Kind> {
    match (target.group.as_str(), target.kind.as_str()) {
        ("gateway.networking.k8s.io", "HTTPRoute") => Some(Kind::HttpRoute),
        ("gateway.networking.k8s.io", "GRPCRoute") => Some(Kind::GrpcRoute),
        _ => None,
    }
}

fn backends(targets: &[api::k8s::backends::Target], key: &ObjectKey) -> Vec<Target> {
    let target = |it: &api::k8s::backends::Target| {
        let kind = match (it.group.as_str(), it.kind.as_str()) {
            ("" | "core", "Service") => Some(Kind::Service),
            ("networking.istio.io", "ServiceEntry") => Some(Kind::ServiceEntry),
            _ => None,
        };
        Target {
            shown: format!("{} {}/{}", it.kind, key.namespace, it.name),
            object: kind.map(|kind| ObjectKey::new(kind, &key.namespace, &it.name)),
        }
    };
    targets.iter().map(target).collect()
}
