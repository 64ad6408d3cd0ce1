//! Routes of Gateway API: HTTPRoute, GRPCRoute, TCPRoute, TLSRoute.
//!
//! 1. what an object says is kept, and read once for mistakes             ([`Route::read`])
//! 2. its rules become what waypoints are told, references resolved       ([`translate`])
//! 3. for whom they are is said by its parents                            ([`crate::world`])
//!
//! A route with a mistake is not accepted: its last version without one stays in force. A rule whose
//! backend or filter cannot be had is sent as it is, and answers 500 for that share of its requests.
//!
//! | file | |
//! |---|---|
//! | `rules` | the whole of a rule |
//! | `matches` | what a request must be like |
//! | `filters` | what is done to requests and answers |
//! | `hedge` | what annotations say of requests made twice |
//! | `durations` | how Gateway API writes them |

mod durations;
mod filters;
mod hedge;
mod matches;
mod rules;

use std::sync::Arc;

use api::k8s::objects::{GrpcRoute, HttpRoute, Kind, ObjectKey, ObjectMeta, TcpRoute, TlsRoute};
use api::k8s::routes::{
    BackendRef, Filter, GrpcRouteSpec, HttpRouteSpec, ParentRef, StreamRouteSpec,
};
use api::waypoint as wire;

pub use rules::{Body, Rule, Translated, translate};

/// What matters of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The object.
    pub key: ObjectKey,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// What it says.
    pub spec: Arc<Spec>,
    /// What is wrong with that.
    pub faults: Vec<String>,
    /// What is in force: what it says, or said when nothing was wrong.
    pub good: Option<Arc<Spec>>,
    /// Whether requests are made once more beside slow ones, or why that cannot be; none if it is not asked for.
    pub hedge: Option<Result<wire::Hedge, String>>,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// HTTPRoute.
    Http(HttpRouteSpec),
    /// GRPCRoute.
    Grpc(GrpcRouteSpec),
    /// TCPRoute.
    Tcp(StreamRouteSpec),
    /// TLSRoute.
    Tls(StreamRouteSpec),
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unresolved {
    /// One word, as in the route's status.
    pub reason: &'static str,
    /// For people.
    pub text: String,
}

/// Where a reference to a backend leads.
pub type Resolve<'a> = dyn Fn(&BackendRef) -> Result<wire::ServiceRef, Unresolved> + 'a;

impl Route {
    /// Keeps what matters; `before`: the same route as it was until now.
    pub fn read(metadata: &ObjectMeta, spec: Spec, before: Option<&Self>) -> Self {
        let created = metadata.creation_timestamp.as_ref();
        let anywhere = |_: &BackendRef| Ok(wire::ServiceRef::default());
        let faults = translate(&spec, "", &anywhere).faults;
        let spec = Arc::new(spec);
        let good = if faults.is_empty() {
            Some(spec.clone())
        } else {
            before.and_then(|it| it.good.clone())
        };
        Self {
            key: ObjectKey::new(
                spec.kind(),
                metadata.namespace.as_deref().unwrap_or("default"),
                metadata.name.as_deref().unwrap_or_default(),
            ),
            created: created.map_or(0, |time| time.0.as_second()),
            generation: metadata.generation,
            hedge: hedge::read(spec.kind(), metadata),
            spec,
            faults,
            good,
        }
    }

    /// Its key among what waypoints are told, without a rule.
    pub fn wire_key(&self) -> String {
        let kind = self.key.kind.name().to_ascii_lowercase();
        format!("{kind}/{}/{}", self.key.namespace, self.key.name)
    }

    /// Why what it asks for beside its spec cannot be done.
    pub fn unhedged(&self) -> Option<&str> {
        self.hedge.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// Every reference to a backend, of what it says and of what is in force.
    pub fn backends(&self) -> Vec<&BackendRef> {
        let mut backends = self.spec.backends();
        if let Some(good) = self.good.as_ref().filter(|it| !Arc::ptr_eq(it, &self.spec)) {
            backends.extend(good.backends());
        }
        backends
    }
}

impl Spec {
    /// Of an HTTPRoute.
    pub fn http(route: &HttpRoute) -> Self {
        Self::Http(route.spec.clone())
    }

    /// Of a GRPCRoute.
    pub fn grpc(route: &GrpcRoute) -> Self {
        Self::Grpc(route.spec.clone())
    }

    /// Of a TCPRoute.
    pub fn tcp(route: &TcpRoute) -> Self {
        Self::Tcp(route.spec.clone())
    }

    /// Of a TLSRoute.
    pub fn tls(route: &TlsRoute) -> Self {
        Self::Tls(route.spec.clone())
    }

    /// Of which kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Http(_) => Kind::HttpRoute,
            Self::Grpc(_) => Kind::GrpcRoute,
            Self::Tcp(_) => Kind::TcpRoute,
            Self::Tls(_) => Kind::TlsRoute,
        }
    }

    /// What it is attached to.
    pub fn parents(&self) -> &[ParentRef] {
        match self {
            Self::Http(spec) => &spec.parent_refs,
            Self::Grpc(spec) => &spec.parent_refs,
            Self::Tcp(spec) | Self::Tls(spec) => &spec.parent_refs,
        }
    }

    fn backends(&self) -> Vec<&BackendRef> {
        let mut found = Vec::new();
        match self {
            Self::Http(spec) => {
                for rule in spec.rules.iter().flatten() {
                    collect(&rule.backend_refs, &rule.filters, &mut found);
                }
            }
            Self::Grpc(spec) => {
                for rule in &spec.rules {
                    collect(&rule.backend_refs, &rule.filters, &mut found);
                }
            }
            Self::Tcp(spec) | Self::Tls(spec) => {
                for rule in &spec.rules {
                    collect(&rule.backend_refs, &[], &mut found);
                }
            }
        }
        found
    }
}

fn collect<'a>(backends: &'a [BackendRef], filters: &'a [Filter], into: &mut Vec<&'a BackendRef>) {
    into.extend(backends);
    let all = filters
        .iter()
        .chain(backends.iter().flat_map(|it| &it.filters));
    for filter in all {
        into.extend(filter.request_mirror.as_ref().map(|it| &it.backend_ref));
        into.extend(filter.external_auth.as_ref().map(|it| &it.backend_ref));
    }
}
