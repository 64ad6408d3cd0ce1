//! What all connections of this process share.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use hbone::{Certificates, Identity, Limits};
use mesh::{GatewayAddress, GatewayTarget, Mesh, Network, Snapshot};
use ops::drain::Drain;

use crate::compiled::Config as Compiled;
use crate::config::Config;
use crate::discovery::Clients;
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
    own_host: String,
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
    pub clients: Clients,
    /// What we are to do.
    pub state: Arc<State<Compiled>>,
    /// Connections to endpoints.
    pub upstreams: Upstreams,
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
        Self {
            own_host: config.own_host(),
            network: Network::new(config.network.as_str()),
            load: Load::new(config.max_requests, config.max_memory),
            limits: Limits::default(),
            parts,
        }
    }

    /// Whether a waypoint that somebody names is this one.
    pub fn is_me(&self, waypoint: &GatewayAddress, snapshot: &Snapshot) -> bool {
        let namespace = &*self.config.pod_namespace;
        match &waypoint.target {
            GatewayTarget::Host(host) => {
                *host.namespace == *namespace && *host.host == *self.own_host
            }
            GatewayTarget::Address(network, ip) => snapshot
                .service_at(network, *ip, namespace)
                .is_some_and(|service| {
                    *service.namespace == *namespace && *service.hostname == *self.own_host
                }),
        }
    }
}

/// How many requests there are, and how many there may be.
pub struct Load {
    requests: AtomicUsize,
    most_requests: usize,
    most_memory: u64,
    memory: AtomicU64,
}

/// One request more, until it is dropped.
pub struct Carried(Arc<Proxy>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.load.requests.fetch_sub(1, Relaxed);
    }
}

/// Why a request is not taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overloaded {
    /// There are as many as there may be.
    #[error("overloaded: too many requests at a time")]
    Requests,
    /// Memory is short.
    #[error("overloaded: memory is short")]
    Memory,
}

impl Load {
    fn new(most_requests: usize, most_memory: Option<u64>) -> Self {
        Self {
            requests: AtomicUsize::new(0),
            most_requests,
            most_memory: most_memory.or_else(nine_tenths).unwrap_or(u64::MAX),
            memory: AtomicU64::new(0),
        }
    }

    /// Requests at this moment.
    pub fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    /// How much memory is in use, as somebody has just measured.
    pub fn measured(&self, memory: u64) {
        self.memory.store(memory, Relaxed);
    }

    /// Room for one request.
    ///
    /// # Errors
    /// When there is none.
    pub fn enter(proxy: &Arc<Proxy>) -> Result<Carried, Overloaded> {
        proxy.load.take()?;
        Ok(Carried(proxy.clone()))
    }

    fn take(&self) -> Result<(), Overloaded> {
        if self.memory.load(Relaxed) > self.most_memory {
            return Err(Overloaded::Memory);
        }
        if self.requests.fetch_add(1, Relaxed) < self.most_requests {
            return Ok(());
        }
        self.requests.fetch_sub(1, Relaxed);
        Err(Overloaded::Requests)
    }
}

/// Of what the container may use; none if it may use all there is.
fn nine_tenths() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    let limit: u64 = limit.trim().parse().ok()?;
    Some(limit / 10 * 9)
}

/// Resident memory of this process in bytes.
pub fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused_and_counted_no_further() {
        let load = Load::new(2, Some(1000));
        assert_eq!(load.take(), Ok(()));
        assert_eq!(load.take(), Ok(()));
        assert_eq!(load.take(), Err(Overloaded::Requests));
        assert_eq!(load.requests(), 2);
        load.requests.fetch_sub(1, Relaxed);
        load.measured(1001);
        assert_eq!(load.take(), Err(Overloaded::Memory));
        load.measured(1000);
        assert_eq!(load.take(), Ok(()));
    }
}
