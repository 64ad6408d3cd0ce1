//! The workloads of a mesh that has none yet: kept as they come, and put in their places all at once.
//!
//! The first answer brings every workload there is. Placed one by one, each of them makes its way through three trees in
//! memory that is no longer in the cache. Here each index is built from all of them in the order in which it holds them:
//!
//! 1. they gather, while nobody sees them                         ([`Gathered::add`])
//! 2. of several with one uid the last is meant                   ([`Crowd::of_all`])
//! 3. by uid, by pod, by address, by service                      ([`Snapshot::settle`])

use std::net::IpAddr;
use std::sync::Arc;

use super::apply::{Effect, better_holder};
use crate::crowd::Crowd;
use crate::names::Network;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// Workloads that nobody sees yet.
#[derive(Debug, Default)]
pub(crate) struct Gathered(Vec<Arc<Workload>>);

impl Gathered {
    /// One more, or another version of one.
    pub(super) fn add(&mut self, workload: Workload, effect: &mut Effect) {
        effect.changed = true;
        self.0.push(Arc::new(workload));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Snapshot {
    /// Puts all that was gathered in its places. There was no workload before.
    pub(crate) fn settle(&mut self, gathered: Gathered) {
        if gathered.is_empty() {
            return;
        }
        let (workloads, mut each) = Crowd::of_all(gathered.0);
        self.workloads = workloads;
        self.pods = Crowd::of_each(&each);
        self.settle_addresses(&each);
        for workload in &each {
            self.claim_name(workload);
        }
        // What replicas share says whose endpoints they are. Neighbours are neighbours still, where they came so.
        each.sort_by_key(|workload| workload.template_at());
        for replicas in each.chunk_by(|a, b| a.template_at() == b.template_at()) {
            for member in &replicas[0].services {
                self.with_endpoints(member, |endpoints| {
                    endpoints.insert_all(replicas, &member.ports)
                });
            }
        }
    }

    fn settle_addresses(&mut self, each: &[Arc<Workload>]) {
        let mut claims: Vec<(&Network, IpAddr, &Arc<Workload>)> = Vec::with_capacity(each.len());
        for workload in each {
            let claim = |ip: &IpAddr| (&workload.network, *ip, workload);
            claims.extend(workload.addresses.iter().map(claim));
        }
        claims.sort_unstable_by_key(|(network, ip, _)| (network.as_arc().as_ptr().addr(), *ip));
        // The same name may be held twice; then its addresses come in two groups.
        for of_network in claims.chunk_by(|a, b| a.0.same_text(b.0)) {
            let plane = self.planes.entry(of_network[0].0.clone()).or_default();
            for (_, ip, workload) in of_network {
                plane
                    .holders(workload.host_network)
                    .claim(*ip, (*workload).clone(), better_holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api::workload as wire;
    use proptest::prelude::*;

    use super::*;
    use crate::{Mesh, Update};

    /// Few names, so that uids, pods, addresses and services are claimed twice now and then.
    fn message((uid, ip, of, unhealthy, twin): (u8, u8, u8, bool, bool)) -> wire::Workload {
        let on_node = of % 5 == 4;
        let ports = wire::PortList {
            ports: vec![wire::Port {
                service_port: 80,
                target_port: 8080,
                app_protocol: 0,
            }],
        };
        let addresses = [vec![10, 0, 0, ip], vec![10, 0, 1, ip]];
        wire::Workload {
            uid: format!("c//Pod/ns/pod-{uid}"),
            name: format!("pod-{}", uid / 2),
            namespace: "ns".into(),
            network: format!("net-{}", of % 2),
            addresses: addresses
                .into_iter()
                .take(1 + usize::from(twin))
                .map(Into::into)
                .collect(),
            workload_name: format!("app-{of}"),
            services: [(format!("ns/service-{}", of % 3), ports)].into(),
            status: i32::from(unhealthy),
            network_mode: i32::from(on_node),
            ..wire::Workload::default()
        }
    }

    fn update(messages: impl IntoIterator<Item = wire::Workload>) -> Update {
        let mut update = Update::default();
        messages
            .into_iter()
            .for_each(|message| update.set_workload(message));
        update
    }

    /// All that can be asked of a mesh, sorted.
    fn answers(snapshot: &Snapshot) -> Vec<String> {
        let uids = |found: &mut dyn Iterator<Item = &Arc<Workload>>| {
            let mut uids: Vec<_> = found.map(|found| format!("{found:?}")).collect();
            uids.sort();
            uids.join(" ")
        };
        let mut answers = vec![uids(&mut snapshot.workloads())];
        for n in 0..=u8::MAX {
            answers.push(format!(
                "{:?}",
                snapshot.workload(&format!("c//Pod/ns/pod-{n}"))
            ));
            let pod = snapshot
                .pods
                .of_pod("ns", &format!("pod-{n}"), |found| found.healthy);
            answers.push(format!("{:?}", pod.is_some()));
            for (network, third) in [("net-0", 0), ("net-0", 1), ("net-1", 0), ("net-1", 1)] {
                let (network, ip) = (Network::new(network), IpAddr::from([10, 0, third, n]));
                answers.push(format!(
                    "{:?} {}",
                    snapshot.workload_at(&network, ip),
                    snapshot.is_node(&network, ip)
                ));
            }
        }
        for service in ["service-0", "service-1", "service-2"] {
            let slot = snapshot.slot("ns", service);
            let kinds = slot.map(|slot| slot.endpoints.root().kinds.len());
            let mut of = slot.into_iter().flat_map(|slot| slot.endpoints.iter());
            answers.push(format!(
                "{kinds:?} {}",
                uids(&mut of.by_ref().map(|(_, found)| found))
            ));
        }
        answers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However they come: the same mesh, and nothing is left of it when all go.
        #[test]
        fn all_at_once_are_where_one_after_the_other_would_be(
            drawn in prop::collection::vec(any::<(u8, u8, u8, bool, bool)>(), 0..300),
        ) {
            let (once, mut all_at_once) = Mesh::new();
            let (one_by_one, mut writer) = Mesh::new();
            prop_assert!(all_at_once.apply(update(drawn.iter().copied().map(message))).is_empty());
            // Where there is one, those that come are placed one by one.
            writer.apply(update([wire::Workload { uid: "first".into(), ..wire::Workload::default() }]));
            for drawn in &drawn {
                writer.apply(update([message(*drawn)]));
            }
            let removed = |names: Vec<Arc<str>>| {
                let mut update = Update::default();
                update.addresses.removed = names;
                update
            };
            writer.apply(removed(vec!["first".into()]));
            prop_assert_eq!(answers(&once.load()), answers(&one_by_one.load()));
            let uids = once.load().workloads().map(|workload| workload.uid.clone()).collect();
            all_at_once.apply(removed(uids));
            prop_assert!(once.load().is_empty());
        }
    }
}
