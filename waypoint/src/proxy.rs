//! What all connections of this process share.

use std::ops::Deref;
use std::sync::Arc;

use hbone::{Certificates, Identity, Limits};
use mesh::{Mesh, Network};
use ops::drain::Drain;
use ops::threads::Places;

use crate::compiled::Config as Compiled;
use crate::config::Config;
use crate::discovery::Clients;
use crate::load::Load;
use crate::report::Reports;
use crate::state::State;
use crate::upstream::Upstreams;

/// The proxy.
pub struct Proxy {
    /// What it is made of.
    parts: Parts,
    /// Our network.
    pub network: Network,
    /// What a peer may do on a tunnel connection.
    pub limits: Limits,
    /// How much is carried at a time.
    pub load: Load,
}

/// What a proxy is made of.
pub struct Parts {
    /// What the operator said.
    pub config: Arc<Config>,
    /// Who we are.
    pub identity: Identity,
    /// Ours, and how peers prove theirs.
    pub certificates: Arc<Certificates>,
    /// Workloads and services, as far as we are told of them.
    pub mesh: Arc<Mesh>,
    /// Asks for clients that we have not been told of.
    pub clients: Arc<Clients>,
    /// What we are to do.
    pub state: Arc<State<Compiled>>,
    /// Connections to endpoints.
    pub upstreams: Upstreams,
    /// Threads that carry all this.
    pub workers: Places,
    /// What is told of it all.
    pub reports: Reports,
    /// How it all ends.
    pub drain: Drain,
}

/// A proxy is its parts.
impl Deref for Proxy {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Proxy {
    /// One that carries nothing yet.
    pub fn new(parts: Parts) -> Self {
        let config = &parts.config;
        let load = Load::new(config);
        let refused = load.clone();
        Self {
            network: Network::new(config.network.as_str()),
            load,
            limits: Limits {
                on_refusal: Some(Arc::new(move |why| refused.refusal(why.name()))),
                ..Limits::default()
            },
            parts,
        }
    }
}
