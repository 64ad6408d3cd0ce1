//! How much is carried at a time, and what is refused when that is too much.
//!
//! | what | bound | whoever is one too many |
//! |---|---|---|
//! | tunnel connections | `AMBIT_MAX_CONNECTIONS`, half of them for one client | waits in the kernel until one ends; is closed |
//! | tunnels (connections of clients' apps) | `AMBIT_MAX_TUNNELS`, half of them for one client | CONNECT is answered 503 |
//! | requests that wait for their answer | `AMBIT_MAX_REQUESTS`, half of them for one client | 503, flag OM |
//! | memory | `AMBIT_MAX_MEMORY`, else nine tenths of the container's | both of these |
//!
//! What is being carried goes on: who is in has the room he needs, who is not is told at once. One client can keep others
//! out of half of the room only.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use ops::memory;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::config::Config;

/// How much there is, how much there may be, and how often it was too much. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct Load(Arc<Numbers>);

#[derive(Debug)]
struct Numbers {
    requests: AtomicUsize,
    tunnels: AtomicUsize,
    connections: AtomicUsize,
    memory: AtomicU64,
    most: Most,
    refused: [AtomicU64; Overloaded::ALL.len()],
    clients: Mutex<HashMap<IpAddr, Arc<Part>>>,
    /// What peers were refused at the tunnel port, by name.
    refusals: Mutex<HashMap<&'static str, u64>>,
}

/// How much there may be.
#[derive(Debug, Clone, Copy)]
struct Most {
    requests: usize,
    tunnels: usize,
    connections: usize,
    memory: u64,
}

/// What one client has of it.
#[derive(Debug, Default)]
struct Part {
    requests: AtomicUsize,
    /// These two change only while the clients are locked.
    tunnels: AtomicUsize,
    connections: AtomicUsize,
}

/// A client's place among the others, until its tunnel ends.
#[derive(Debug)]
pub struct Share {
    load: Load,
    /// None for ourselves.
    client: Option<IpAddr>,
    part: Arc<Part>,
}

/// One request more, until it is dropped.
#[derive(Debug)]
pub struct Carried {
    load: Load,
    part: Arc<Part>,
}

/// One tunnel connection more, until it is dropped.
#[derive(Debug)]
pub struct Connected {
    load: Load,
    client: IpAddr,
    part: Arc<Part>,
}

/// Why a request or a tunnel is not taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overloaded {
    /// There are as many requests as there may be.
    #[error("overloaded: too many requests at a time")]
    Requests,
    /// This client has as many as one may have.
    #[error("overloaded: too many requests of one client at a time")]
    RequestsOfOne,
    /// There are as many tunnels as there may be.
    #[error("overloaded: too many connections at a time")]
    Tunnels,
    /// This client has as many as one may have.
    #[error("overloaded: too many connections of one client at a time")]
    TunnelsOfOne,
    /// Memory is short.
    #[error("overloaded: memory is short")]
    Memory,
    /// This client has as many as one may have.
    #[error("overloaded: too many tunnel connections of one client at a time")]
    ConnectionsOfOne,
}

impl Overloaded {
    const ALL: [Self; 6] = [
        Self::Requests,
        Self::RequestsOfOne,
        Self::Tunnels,
        Self::TunnelsOfOne,
        Self::Memory,
        Self::ConnectionsOfOne,
    ];

    /// As a label.
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::RequestsOfOne => "requests_of_one_client",
            Self::Tunnels => "tunnels",
            Self::TunnelsOfOne => "tunnels_of_one_client",
            Self::Memory => "memory",
            Self::ConnectionsOfOne => "connections_of_one_client",
        }
    }
}

impl Load {
    /// Nothing yet, within what the operator allows.
    pub fn new(config: &Config) -> Self {
        let most = || memory::limit().map(memory::enough);
        let memory = config.max_memory.or_else(most);
        let memory = memory.unwrap_or(u64::MAX);
        Self::within(Most {
            requests: config.max_requests,
            tunnels: config.max_tunnels,
            connections: config.max_connections,
            memory,
        })
    }

    fn within(most: Most) -> Self {
        Self(Arc::new(Numbers {
            requests: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            memory: AtomicU64::new(0),
            most,
            refused: Default::default(),
            clients: Mutex::default(),
            refusals: Mutex::default(),
        }))
    }

    /// Requests at this moment.
    pub fn requests(&self) -> usize {
        self.0.requests.load(Relaxed)
    }

    /// How much memory is in use, as somebody has just measured.
    pub fn measured(&self, memory: u64) {
        self.0.memory.store(memory, Relaxed);
    }

    /// How often it was too much, so far.
    pub fn refused(&self) -> u64 {
        self.0.refused.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// A tunnel connection of a client at that address was accepted.
    ///
    /// # Errors
    /// When one client may have no more: others are to find room, too.
    pub fn connected(&self, client: IpAddr) -> Result<Connected, Overloaded> {
        let all = &*self.0;
        let mut clients = all.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let part = clients.entry(client).or_default();
        if part.connections.load(Relaxed) >= half(all.most.connections) {
            return Err(self.no(Overloaded::ConnectionsOfOne));
        }
        part.connections.fetch_add(1, Relaxed);
        all.connections.fetch_add(1, Relaxed);
        Ok(Connected {
            load: self.clone(),
            client,
            part: part.clone(),
        })
    }

    /// A peer was refused something at the tunnel port, or within a tunnel: why, as a label.
    pub fn refusal(&self, why: &'static str) {
        let mut refusals = self
            .0
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(why).or_default() += 1;
    }

    /// Room for a tunnel of a client at that address.
    ///
    /// # Errors
    /// When there is none.
    pub fn tunnel(&self, client: IpAddr) -> Result<Share, Overloaded> {
        let all = &*self.0;
        if all.memory.load(Relaxed) > all.most.memory {
            return Err(self.no(Overloaded::Memory));
        }
        let mut clients = all.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if all.tunnels.load(Relaxed) >= all.most.tunnels {
            return Err(self.no(Overloaded::Tunnels));
        }
        let part = clients.entry(client).or_default();
        if part.tunnels.load(Relaxed) >= half(all.most.tunnels) {
            return Err(self.no(Overloaded::TunnelsOfOne));
        }
        all.tunnels.fetch_add(1, Relaxed);
        part.tunnels.fetch_add(1, Relaxed);
        Ok(Share {
            load: self.clone(),
            client: Some(client),
            part: part.clone(),
        })
    }

    /// For what we ask ourselves: in nobody's place.
    pub fn ours(&self) -> Share {
        Share {
            load: self.clone(),
            client: None,
            part: Arc::default(),
        }
    }

    fn no(&self, why: Overloaded) -> Overloaded {
        self.0.refused[why as usize].fetch_add(1, Relaxed);
        why
    }
}

impl Share {
    /// Room for one request.
    ///
    /// # Errors
    /// When there is none.
    pub fn enter(&self) -> Result<Carried, Overloaded> {
        let all = &*self.load.0;
        if all.memory.load(Relaxed) > all.most.memory {
            return Err(self.load.no(Overloaded::Memory));
        }
        // From here on it is counted, and given back when it is refused.
        let carried = Carried {
            load: self.load.clone(),
            part: self.part.clone(),
        };
        let among_all = all.requests.fetch_add(1, Relaxed);
        let own = self.part.requests.fetch_add(1, Relaxed);
        if among_all >= all.most.requests {
            return Err(self.load.no(Overloaded::Requests));
        }
        if own >= half(all.most.requests) {
            return Err(self.load.no(Overloaded::RequestsOfOne));
        }
        Ok(carried)
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.load.0.requests.fetch_sub(1, Relaxed);
        self.part.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(client) = self.client else {
            return;
        };
        let all = &*self.load.0;
        let mut clients = all.clients.lock().unwrap_or_else(PoisonError::into_inner);
        all.tunnels.fetch_sub(1, Relaxed);
        self.part.tunnels.fetch_sub(1, Relaxed);
        if self.part.is_unused() {
            clients.remove(&client);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let all = &*self.load.0;
        let mut clients = all.clients.lock().unwrap_or_else(PoisonError::into_inner);
        all.connections.fetch_sub(1, Relaxed);
        self.part.connections.fetch_sub(1, Relaxed);
        if self.part.is_unused() {
            clients.remove(&self.client);
        }
    }
}

impl Part {
    /// Whether nothing is left of the client.
    fn is_unused(&self) -> bool {
        self.tunnels.load(Relaxed) == 0 && self.connections.load(Relaxed) == 0
    }
}

/// What one client may have of it.
fn half(most: usize) -> usize {
    most.div_ceil(2)
}

impl Collector for Load {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = &*self.0;
        for (name, help, number) in [
            (
                "ambit_requests_carried",
                "Requests that wait for their answer",
                &all.requests,
            ),
            (
                "ambit_tunnels_carried",
                "Tunnels that are open",
                &all.tunnels,
            ),
            (
                "ambit_connections_carried",
                "Tunnel connections that are open",
                &all.connections,
            ),
        ] {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            let number = i64::try_from(number.load(Relaxed)).unwrap_or(i64::MAX);
            prometheus_client::metrics::gauge::ConstGauge::new(number).encode(gauge)?;
        }
        let mut family = encoder.encode_descriptor(
            "ambit_overload_refused",
            "Requests and tunnels that there was no room for",
            None,
            MetricType::Counter,
        )?;
        for (why, count) in Overloaded::ALL.iter().zip(&all.refused) {
            family
                .encode_family(&[("what", why.name())])?
                .encode_counter::<NoLabelSet, u64, u64>(&count.load(Relaxed), None)?;
        }
        let mut family = encoder.encode_descriptor(
            "ambit_tunnel_refusals",
            "What peers were refused at the tunnel port, by reason",
            None,
            MetricType::Counter,
        )?;
        let refusals = all.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in &*refusals {
            family
                .encode_family(&[("reason", *reason)])?
                .encode_counter::<NoLabelSet, u64, u64>(count, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn within(requests: usize, tunnels: usize, connections: usize, memory: u64) -> Load {
        Load::within(Most {
            requests,
            tunnels,
            connections,
            memory,
        })
    }

    #[test]
    fn one_client_has_half_of_the_connections_whatever_goes_through_them() {
        let load = within(100, 100, 4, u64::MAX);
        let [first, second] = [ONE, ONE].map(|client| load.connected(client).unwrap());
        let refused = load.connected(ONE).unwrap_err();
        assert_eq!(refused, Overloaded::ConnectionsOfOne);
        let others = [OTHER, OTHER].map(|client| load.connected(client).unwrap());
        // A tunnel may outlive the count of its connection, and the other way round.
        let tunnel = load.tunnel(ONE).unwrap();
        drop((first, second));
        assert_eq!(load.0.connections.load(Relaxed), 2);
        let again = load.connected(ONE).unwrap();
        drop(tunnel);
        let more = load.connected(ONE).unwrap();
        assert!(load.connected(ONE).is_err());
        drop((again, more, others));
        assert!(load.0.clients.lock().unwrap().is_empty());
        assert_eq!(load.refused(), 2);
    }

    #[test]
    fn what_is_too_much_is_refused_and_counted_no_further() {
        let load = within(3, 100, 100, 1000);
        let (one, other) = (load.tunnel(ONE).unwrap(), load.tunnel(OTHER).unwrap());
        let kept = [one.enter().unwrap(), one.enter().unwrap()];
        assert_eq!(one.enter().unwrap_err(), Overloaded::RequestsOfOne);
        let last = other.enter().unwrap();
        assert_eq!(other.enter().unwrap_err(), Overloaded::Requests);
        assert_eq!(load.requests(), 3);
        drop((kept, last));
        assert_eq!(load.requests(), 0);
        load.measured(1001);
        assert_eq!(one.enter().unwrap_err(), Overloaded::Memory);
        assert_eq!(load.tunnel(ONE).unwrap_err(), Overloaded::Memory);
        load.measured(1000);
        assert!(one.enter().is_ok());
        assert_eq!(load.refused(), 4);
    }

    #[test]
    fn one_client_leaves_room_for_others_and_is_forgotten_with_its_last_tunnel() {
        let load = within(100, 4, 100, u64::MAX);
        let mut kept = vec![load.tunnel(ONE).unwrap(), load.tunnel(ONE).unwrap()];
        assert_eq!(load.tunnel(ONE).unwrap_err(), Overloaded::TunnelsOfOne);
        kept.push(load.tunnel(OTHER).unwrap());
        kept.push(load.tunnel(OTHER).unwrap());
        let third = IpAddr::from([10, 0, 0, 3]);
        assert_eq!(load.tunnel(third).unwrap_err(), Overloaded::Tunnels);
        drop(kept);
        assert!(load.0.clients.lock().unwrap().is_empty());
        assert!(load.tunnel(third).is_ok());
    }
}
