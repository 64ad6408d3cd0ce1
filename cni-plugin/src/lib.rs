//! How a pod joins the mesh.
//!
//! ```text
//! container runtime ──exec──> ambit-cni ──POST /cmdadd──> ambit-cni-agent ──ZDS + netns fd──> ztunnel
//!                             (plugin)                    (agent)         ──nft──> the pod's netns
//!                                                                         ──annotation──> control plane
//! ```
//!
//! The plugin is called for every pod and only asks; the agent decides and acts. It also enrols and
//! releases pods that are already running, when labels change.
//!
//! # Layout
//!
//! | module | holds |
//! |---|---|
//! | [`plugin`] | the CNI verbs: what a runtime sends in, what it gets back |
//! | [`cmdadd`] | the message between plugin and agent |
//! | [`agent`] | the node agent: select → Action → apply |
//! | [`rules`] | pure: pod → nft script |
//! | [`install`] | binary, conflist and kubeconfig onto the host, repaired when someone overwrites them |
//! | [`site`] | what agent and installer must both know of their node |

pub mod agent;
pub mod cmdadd;
pub mod install;
pub mod plugin;
pub mod rules;
pub mod site;
