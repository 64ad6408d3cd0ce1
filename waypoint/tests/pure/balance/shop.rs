//! A service, its endpoints, and a balancer before them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{waypoint as wire, workload};
use mesh::workload::Locality;
use mesh::{Members, Mesh, Network, Snapshot, Update, Writer};
use waypoint::balance::{Choice, Group, Hints, NoEndpoint, Policy};

/// `web.shop`, port 80 to 8080.
pub(crate) struct Shop {
    pub(crate) mesh: Arc<Mesh>,
    writer: Writer,
    draws: u64,
    pub(crate) own: Locality,
    network: Network,
    pub(crate) now: Instant,
}

pub(crate) fn pod(name: &str) -> workload::Workload {
    let last = name
        .bytes()
        .fold(7, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte));
    workload::Workload {
        uid: name.to_owned(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![vec![10, 0, 0, last].into()],
        services: [("shop/web.shop".to_owned(), workload::PortList::default())].into(),
        ..Default::default()
    }
}

pub(crate) fn weighing(name: &str, capacity: u32) -> workload::Workload {
    workload::Workload {
        capacity: Some(capacity),
        ..pod(name)
    }
}

/// `at`: region/zone/subzone.
pub(crate) fn at(name: &str, at: &str) -> workload::Workload {
    workload::Workload {
        locality: Some(locality(at)),
        ..pod(name)
    }
}

fn locality(at: &str) -> workload::Locality {
    let mut parts = at.split('/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    workload::Locality {
        region: part(),
        zone: part(),
        subzone: part(),
    }
}

pub(crate) fn service() -> workload::Service {
    workload::Service {
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "web.shop".to_owned(),
        ports: vec![workload::Port {
            service_port: 80,
            target_port: 8080,
            ..Default::default()
        }],
        ..Default::default()
    }
}

impl Shop {
    pub(crate) fn new(pods: impl IntoIterator<Item = workload::Workload>) -> Self {
        let (mesh, writer) = Mesh::new();
        let mut shop = Self {
            mesh,
            writer,
            draws: 0,
            own: Locality::default(),
            network: Network::default(),
            now: Instant::now(),
        };
        shop.service(service());
        shop.come(pods);
        shop
    }

    pub(crate) fn standing_at(mut self, at: &str) -> Self {
        let found = locality(at);
        self.own = Locality {
            region: found.region.into(),
            zone: found.zone.into(),
            subzone: found.subzone.into(),
        };
        self
    }

    pub(crate) fn service(&mut self, service: workload::Service) {
        let mut update = Update::default();
        update.set_service(service);
        assert!(self.writer.apply(update).is_empty());
    }

    pub(crate) fn come(&mut self, pods: impl IntoIterator<Item = workload::Workload>) {
        let mut update = Update::default();
        pods.into_iter().for_each(|pod| update.set_workload(pod));
        assert!(self.writer.apply(update).is_empty());
    }

    pub(crate) fn go(&mut self, name: &str) {
        let mut update = Update::default();
        update.addresses.removed.push(name.into());
        assert!(self.writer.apply(update).is_empty());
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.mesh.load_full()
    }

    pub(crate) fn members(&self) -> Members {
        self.mesh.load().members("shop", "web.shop").unwrap()
    }

    pub(crate) fn client(&self) -> mesh::Client<'_> {
        mesh::Client {
            network: &self.network,
            locality: &self.own,
            node: "",
            cluster: "",
            namespace: "shop",
            ipv6: false,
        }
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.draws
    }

    pub(crate) fn ask(
        &mut self,
        group: &Arc<Group>,
        hints: &Hints<'_>,
    ) -> Result<Choice, NoEndpoint> {
        let draw = self.draw();
        group.choose(&self.members(), &self.client(), hints, draw, self.now)
    }

    /// The uid of one choice, which is over at once.
    pub(crate) fn one(&mut self, group: &Arc<Group>) -> String {
        let choice = self.ask(group, &Hints::default()).unwrap();
        choice.endpoint.workload.uid.to_string()
    }

    /// How often each was chosen.
    pub(crate) fn counts(&mut self, group: &Arc<Group>, times: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            *counts.entry(self.one(group)).or_default() += 1;
        }
        counts
    }
}

pub(crate) fn group(policy: &wire::BackendPolicy) -> Arc<Group> {
    Arc::new(Group::new(80, None, Policy::compile(policy).unwrap()))
}

pub(crate) fn by(simple: wire::load_balancer::Simple) -> wire::BackendPolicy {
    balanced(wire::LoadBalancer {
        simple: simple.into(),
        ..Default::default()
    })
}

pub(crate) fn balanced(balancer: wire::LoadBalancer) -> wire::BackendPolicy {
    wire::BackendPolicy {
        load_balancer: Some(balancer),
        ..Default::default()
    }
}
