//! Routes of Gateway API.

use api::k8s::objects::{GrpcRoute, HttpRoute, TcpRoute, TlsRoute};
use api::k8s::objects::{Kind, ObjectKey, ObjectMeta};
use api::k8s::routes::{GrpcRouteSpec, HttpRouteSpec, ParentRef, StreamRouteSpec};

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
    pub spec: Spec,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// HTTPRoute.
    Http(HttpRouteSpec),
    /// GRPCRoute.
    Grpc(GrpcRouteSpec),
    /// TCPRoute and TLSRoute.
    Stream(StreamRouteSpec),
}

impl Route {
    /// Keeps what matters of an HTTPRoute.
    pub fn http(route: &HttpRoute) -> Self {
        Self::of(
            Kind::HttpRoute,
            &route.metadata,
            Spec::Http(route.spec.clone()),
        )
    }

    /// Keeps what matters of a GRPCRoute.
    pub fn grpc(route: &GrpcRoute) -> Self {
        Self::of(
            Kind::GrpcRoute,
            &route.metadata,
            Spec::Grpc(route.spec.clone()),
        )
    }

    /// Keeps what matters of a TCPRoute.
    pub fn tcp(route: &TcpRoute) -> Self {
        Self::of(
            Kind::TcpRoute,
            &route.metadata,
            Spec::Stream(route.spec.clone()),
        )
    }

    /// Keeps what matters of a TLSRoute.
    pub fn tls(route: &TlsRoute) -> Self {
        Self::of(
            Kind::TlsRoute,
            &route.metadata,
            Spec::Stream(route.spec.clone()),
        )
    }

    fn of(kind: Kind, metadata: &ObjectMeta, spec: Spec) -> Self {
        let created = metadata.creation_timestamp.as_ref();
        Self {
            key: ObjectKey::new(
                kind,
                metadata.namespace.as_deref().unwrap_or("default"),
                metadata.name.as_deref().unwrap_or_default(),
            ),
            created: created.map_or(0, |time| time.0.as_second()),
            generation: metadata.generation,
            spec,
        }
    }

    /// What it is attached to.
    pub fn parents(&self) -> &[ParentRef] {
        match &self.spec {
            Spec::Http(spec) => &spec.parent_refs,
            Spec::Grpc(spec) => &spec.parent_refs,
            Spec::Stream(spec) => &spec.parent_refs,
        }
    }
}
