//! What the parts of the mesh say to each other.
//!
//! Messages are generated from `proto/`, whose package names and field numbers are the wire
//! contract shared with Istio (`docs/wire.md`). With feature `k8s`, also the Kubernetes objects
//! that the control plane and the node agent read.
//!
//! | module | contract |
//! |---|---|
//! | [`discovery`] | delta xDS between a proxy and the control plane |
//! | [`workload`] | resources: workloads and services |
//! | [`egress`] | in a workload: what becomes of its connections to who is unknown |
//! | [`security`] | resources: layer 4 policies |
//! | [`ca`] | certificate signing |
//! | [`zds`] | node agent to ztunnel |
//! | [`machine`] | machines that are no pods: that they are there, and how they do |
//! | [`waypoint`] | resources: what a waypoint does at layer 7 |
//! | [`ext_authz`] | what an external authorizer is asked |
//! | [`rate_limit`] | what a rate limit service is asked |
//! | [`ext_proc`] | what an external processor is shown |
//! | [`otlp`] | spans and log records, to collectors |

/// Delta xDS: requests, responses, and the aggregated service.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// `istio.workload`: workloads and services.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// `ambit.workload.v1`: what becomes of a workload's connections to who is unknown.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod egress {
    tonic::include_proto!("ambit.workload.v1");
}

/// `ambit.machine.v1`: machines that are no pods.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod machine {
    tonic::include_proto!("ambit.machine.v1");
}

/// `istio.security`: layer 4 policies.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod security {
    tonic::include_proto!("istio.security");
}

/// `istio.v1.auth`: certificate signing.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// `istio.workload.zds`: node agent to ztunnel.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod zds {
    tonic::include_proto!("istio.workload.zds");
}

/// `ambit.waypoint.v1`: routes, policies and limits of a layer 7 proxy.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
pub mod waypoint {
    tonic::include_proto!("ambit.waypoint.v1");

    impl std::fmt::Debug for Secret {
        /// Nothing of it.
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Secret")
        }
    }
}

/// `envoy.service.auth.v3`: what an external authorizer is asked, and what it answers.
pub mod ext_authz {
    pub use super::peers::envoy::config::core::v3::*;
    pub use super::peers::envoy::service::auth::v3::*;
    pub use super::peers::envoy::r#type::v3::*;
    pub use super::peers::google::rpc::*;
}

/// `envoy.service.ratelimit.v3`: what a rate limit service is asked, and what it answers.
pub mod rate_limit {
    pub use super::peers::envoy::config::core::v3::*;
    pub use super::peers::envoy::extensions::common::ratelimit::v3::*;
    pub use super::peers::envoy::service::ratelimit::v3::*;
    pub use super::peers::envoy::r#type::v3::*;
}

/// `envoy.service.ext_proc.v3`: what an external processor is shown, and what it makes of it.
pub mod ext_proc {
    pub use super::peers::envoy::config::core::v3::*;
    pub use super::peers::envoy::extensions::filters::http::ext_proc::v3::*;
    pub use super::peers::envoy::service::ext_proc::v3::*;
    pub use super::peers::envoy::r#type::v3::*;
}

/// Envoy's protocols, as their packages refer to each other: by their place in this tree.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated
mod peers {
    pub mod envoy {
        pub mod config {
            pub mod core {
                pub mod v3 {
                    tonic::include_proto!("envoy.config.core.v3");
                }
            }
        }
        pub mod extensions {
            pub mod common {
                pub mod ratelimit {
                    pub mod v3 {
                        tonic::include_proto!("envoy.extensions.common.ratelimit.v3");
                    }
                }
            }
            pub mod filters {
                pub mod http {
                    pub mod ext_proc {
                        pub mod v3 {
                            tonic::include_proto!("envoy.extensions.filters.http.ext_proc.v3");
                        }
                    }
                }
            }
        }
        pub mod service {
            pub mod auth {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.auth.v3");
                }
            }
            pub mod ext_proc {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.ext_proc.v3");
                }
            }
            pub mod ratelimit {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.ratelimit.v3");
                }
            }
        }
        pub mod r#type {
            pub mod v3 {
                tonic::include_proto!("envoy.r#type.v3");
            }
        }
    }

    pub mod google {
        pub mod rpc {
            tonic::include_proto!("google.rpc");
        }
    }
}

/// `opentelemetry.proto`: spans and log records, and how collectors take them.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    unused_qualifications
)] // generated; packages refer to each other by their place in this tree
pub mod otlp {
    pub use proto::collector::logs::v1::*;
    pub use proto::collector::trace::v1::*;
    pub use proto::common::v1::*;
    pub use proto::logs::v1::*;
    pub use proto::resource::v1::*;
    pub use proto::trace::v1::*;

    pub mod proto {
        pub mod common {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.common.v1");
            }
        }
        pub mod resource {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.resource.v1");
            }
        }
        pub mod trace {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.trace.v1");
            }
        }
        pub mod logs {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.logs.v1");
            }
        }
        pub mod collector {
            pub mod trace {
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
                }
            }
            pub mod logs {
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.logs.v1");
                }
            }
        }
    }
}

mod processor;

/// Kubernetes objects, and the directory that stands in for an API server.
#[cfg(feature = "k8s")]
pub mod k8s;

/// Type URL of [`workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of [`security::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL by which a machine says how it does, in a request: well, or by its `error_detail` why not. Istio's.
pub const HEALTH_TYPE: &str = "type.googleapis.com/istio.v1.HealthInformation";
/// Name of the extension of a workload that holds an [`egress::Egress`].
pub const EGRESS_EXTENSION: &str = "ambit.io/egress";
/// Name of the extension of a workload whose proxy carries UDP; what it holds is empty.
pub const UDP_EXTENSION: &str = "ambit.io/udp";
/// Name of the extension of a service that is GLOBAL: other networks may call it. What it holds is empty.
pub const GLOBAL_EXTENSION: &str = "ambit.io/global";
/// Type URL of nothing.
pub const EMPTY_TYPE: &str = "type.googleapis.com/google.protobuf.Empty";
/// Type URL of [`egress::Egress`].
pub const EGRESS_TYPE: &str = "type.googleapis.com/ambit.workload.v1.Egress";

/// Type URL of [`waypoint::Resource`].
pub const WAYPOINT_TYPE: &str = "type.googleapis.com/ambit.waypoint.v1.Resource";
/// Type URL of [`waypoint::Refused`].
pub const REFUSED_TYPE: &str = "type.googleapis.com/ambit.waypoint.v1.Refused";

/// Every message above as a serialised `FileDescriptorSet`, for tools and tests that read JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
