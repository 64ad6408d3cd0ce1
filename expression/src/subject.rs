//! What can be asked about: a request or connection that has ended.

use std::borrow::Cow;

use crate::Value;

/// A request or connection.
pub trait Subject {
    /// What is known of it; [`Value::Null`] if nothing.
    fn attribute(&self, attribute: Attribute) -> Value<'_>;

    /// One of several that have names.
    fn field(&self, of: Fields, name: &str) -> Option<Cow<'_, str>>;
}

/// What has names of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fields {
    /// `request.headers`, in lower case.
    RequestHeaders,
    /// `response.headers`
    ResponseHeaders,
    /// `response.trailers`
    ResponseTrailers,
}

impl Fields {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "request.headers" => Self::RequestHeaders,
            "response.headers" => Self::ResponseHeaders,
            "response.trailers" => Self::ResponseTrailers,
            _ => return None,
        })
    }
}

macro_rules! attributes {
    ($($(#[doc = $doc:literal])? $variant:ident $name:literal,)*) => {
        /// What can be known.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Attribute {
            $(#[doc = concat!("`", $name, "`", $(" ", $doc)?)] $variant,)*
        }

        impl Attribute {
            pub(crate) fn named(name: &str) -> Option<Self> {
                Some(match name {
                    $($name => Self::$variant,)*
                    _ => return None,
                })
            }
        }
    };
}

attributes! {
    /// with its query
    Path "request.path",
    UrlPath "request.url_path",
    Query "request.query",
    Host "request.host",
    Scheme "request.scheme",
    Method "request.method",
    Referer "request.referer",
    UserAgent "request.useragent",
    RequestId "request.id",
    Protocol "request.protocol",
    /// when it began
    Time "request.time",
    Duration "request.duration",
    /// of its body
    RequestSize "request.size",
    RequestTotalSize "request.total_size",
    Code "response.code",
    /// why, for a person
    CodeDetails "response.code_details",
    /// as Envoy's numbers have them
    Flags "response.flags",
    GrpcStatus "response.grpc_status",
    ResponseSize "response.size",
    ResponseTotalSize "response.total_size",
    /// to the answer's first byte
    BackendLatency "response.backend_latency",
    SourceAddress "source.address",
    SourcePort "source.port",
    DestinationAddress "destination.address",
    DestinationPort "destination.port",
    Mtls "connection.mtls",
    ServerName "connection.requested_server_name",
    TlsVersion "connection.tls_version",
    OwnIdentity "connection.uri_san_local_certificate",
    PeerIdentity "connection.uri_san_peer_certificate",
    Termination "connection.termination_details",
    UpstreamAddress "upstream.address",
    UpstreamPort "upstream.port",
    UpstreamIdentity "upstream.uri_san_peer_certificate",
    UpstreamTries "upstream.request_attempt_count",
    UpstreamFailure "upstream.transport_failure_reason",
    Cluster "xds.cluster_name",
    Route "xds.route_name",
    SourceWorkload "filter_state.downstream_peer.workload",
    SourceNamespace "filter_state.downstream_peer.namespace",
    SourceCluster "filter_state.downstream_peer.cluster",
    SourceService "filter_state.downstream_peer.service",
    SourceRevision "filter_state.downstream_peer.revision",
    SourceApp "filter_state.downstream_peer.app",
    SourceVersion "filter_state.downstream_peer.version",
    SourceIdentity "filter_state.downstream_peer.identity",
    DestinationWorkload "filter_state.upstream_peer.workload",
    DestinationNamespace "filter_state.upstream_peer.namespace",
    DestinationCluster "filter_state.upstream_peer.cluster",
    DestinationService "filter_state.upstream_peer.service",
    DestinationRevision "filter_state.upstream_peer.revision",
    DestinationApp "filter_state.upstream_peer.app",
    DestinationVersion "filter_state.upstream_peer.version",
    DestinationIdentity "filter_state.upstream_peer.identity",
    /// that refused it, or would have
    Policy "ambit.policy",
    /// host of the service that it is for
    Service "ambit.service",
    /// what processors have said of it, by namespace
    Metadata "metadata.filter_metadata",
    TraceId "ambit.trace_id",
    SpanId "ambit.span_id",
    FlagLetters "ambit.flags",
}
