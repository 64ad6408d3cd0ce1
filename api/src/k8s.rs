//! The Kubernetes side: the objects the control plane and the node agent read.
//!
//! | module | holds |
//! |---|---|
//! | [`objects`] | every kind we read as one enum, its key, and how a YAML document becomes one |
//! | [`istio`] | our own serde structs for Istio's custom resources |
//! | [`limits`], [`processors`] | the same for our own policies |
//! | [`routes`], [`backends`] | the same for routes and policies of Gateway API |
//! | [`crd`] | the definitions of Istio's kinds and ours, for an API server |
//! | [`check`] | what an API server with Istio's definitions would refuse |
//! | [`idle`] | Istio's kinds that have no effect here, and what does instead |
//! | [`aim`] | whom a policy that is refused is certainly about |
//! | [`yaml`] | text → documents → objects, with the line of every fault |
//! | [`json`] | the same for what an API server answers |
//! | [`labels`] | names of labels and annotations |
//! | [`server`] | the ways to an API server, and what its refusals mean |
//! | [`dir`] | a directory of YAML that stands in for an API server |

pub mod aim;
pub mod backends;
pub mod check;
pub mod crd;
pub mod dir;
pub mod idle;
pub mod istio;
pub mod json;
pub mod labels;
pub mod limits;
pub mod objects;
pub mod processors;
pub mod routes;
pub mod server;
pub mod yaml;

mod files;
mod merge;
mod status;
mod watch;
