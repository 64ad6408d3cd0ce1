//! Workloads that are reached only through their waypoints: which, and who that lets in.
//!
//! | label on | closes |
//! |---|---|
//! | Service, ServiceEntry | its ports at every workload that serves it |
//! | Pod, WorkloadEntry | all its ports |
//! | Namespace | what the former means at every service in it, and what the latter means at every workload in it that names a waypoint for workloads |
//!
//! What a workload or a service says goes before what its namespace says. A pod of a Gateway is never closed.
//! Each workload has a policy of its own, made with it.

use std::collections::BTreeSet;

use api::k8s::objects::{Kind, ObjectKey};
use api::security::Authorization;
use api::workload::PortList;

use super::objects::{Objects, enter};
use super::waypoints::traffic_of;
use super::{Output, World};
use crate::status::{Condition, waypoint as status};
use crate::translate::Labels;
use crate::translate::only::{Only, Principals, Through, policy_name};
use crate::translate::ports::ServicePort;
use crate::translate::resource::Resource;
use crate::translate::waypoint::{Traffic, principal};

static UNSAID: Only = Only::Unsaid;

impl Objects {
    /// What an object says itself.
    pub(super) fn own_only(&self, key: &ObjectKey) -> &Only {
        let own = match key.kind {
            Kind::Pod => self.pods.get(key).map(|it| &it.only),
            Kind::WorkloadEntry => self.workload_entries.get(key).map(|it| &it.only),
            Kind::Service => self.services.get(key).map(|it| &it.only),
            Kind::ServiceEntry => self.service_entries.get(key).map(|it| &it.only),
            _ => None,
        };
        own.unwrap_or(&UNSAID)
    }

    fn only_in(&self, namespace: &str) -> &Only {
        let key = ObjectKey::new(Kind::Namespace, "", namespace);
        self.namespaces.get(&key).map_or(&UNSAID, |it| &it.only)
    }

    /// What counts for an object.
    fn only(&self, key: &ObjectKey) -> &Only {
        let own = self.own_only(key);
        let inherits = traffic_of(key.kind) == Traffic::Service || self.may_have_waypoint(key);
        match inherits {
            true => own.or(self.only_in(&key.namespace)),
            false => own,
        }
    }

    /// Whether a workload names a waypoint that takes its traffic. Of one that is missing nobody can say that it would not.
    fn may_have_waypoint(&self, workload: &ObjectKey) -> bool {
        let wanted = self.wanted(workload);
        let mut named = wanted.iter().flat_map(|it| it.gateways());
        named.any(|gateway| {
            let standing = self.standings.get(gateway);
            standing.is_none_or(|it| it.takes(Traffic::Workload).unwrap_or(true))
        })
    }

    /// Whether anybody in a namespace demands it: only then does it matter there which waypoints stand.
    pub(super) fn is_demanded_in(&self, namespace: &str) -> bool {
        self.demanding.contains_key(namespace)
    }

    pub(super) fn link_demand(&mut self, key: &ObjectKey) {
        let counts = self.own_only(key).or(self.only_in(&key.namespace));
        if counts.demands() {
            enter(&mut self.demanding, &key.namespace, key);
        }
    }
}

impl World {
    /// The policy of a workload that is reached only through its waypoints; none if nobody demands that.
    pub(super) fn only_through(
        &self,
        workload: &ObjectKey,
        labels: &Labels,
        on: impl Fn(&[ServicePort]) -> PortList,
    ) -> Option<Authorization> {
        let objects = &self.objects;
        let is_gateways = objects
            .pods
            .get(workload)
            .is_some_and(|it| it.gateway.is_some());
        if is_gateways || !objects.is_demanded_in(&workload.namespace) {
            return None;
        }
        let inherited = match objects.own_only(workload) {
            Only::No => &UNSAID,
            _ => objects.only_in(&workload.namespace),
        };
        let own = self.principals(&self.letting(workload));
        let mut through = Through::default();
        let mut demanded = BTreeSet::new();
        let selectors = &objects.service_selectors;
        for key in selectors.selecting(&workload.namespace, labels) {
            let service = objects.services.get(key).map(|it| &it.ports);
            let entry = objects.service_entries.get(key).map(|it| &it.ports);
            let demands = objects.own_only(key).or(inherited).demands();
            let may = self.principals(&self.letting(key));
            for port in on(service.or(entry).map(Vec::as_slice).unwrap_or_default()).ports {
                let target = port.target_port;
                if !(1..=u32::from(u16::MAX)).contains(&target) {
                    continue; // nobody can connect to it
                }
                let known = through.ports.entry(target).or_insert_with(|| own.clone());
                known.extend(may.iter().cloned());
                if demands {
                    demanded.insert(target);
                }
            }
        }
        if objects.only(workload).demands() {
            through.others = Some(own);
        } else {
            through.ports.retain(|port, _| demanded.contains(port));
        }
        let name = policy_name(workload.kind.name(), &workload.name);
        through.policy(&workload.namespace, name)
    }

    /// The waypoints through which traffic to an object comes, those that it has just left included.
    fn letting(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let wanted = self.objects.wanted(key);
        let named = wanted.iter().flat_map(|it| it.gateways());
        let mut gateways: BTreeSet<ObjectKey> = named.chain(self.left.by(key)).cloned().collect();
        gateways.retain(|gateway| {
            let takes = |takes: Option<bool>| takes.unwrap_or(true) || self.left.has(key, gateway);
            let standing = self.objects.standings.get(gateway);
            standing.is_some_and(|it| {
                !it.places.is_empty()
                    && self.admits(it, gateway, key)
                    && takes(it.takes(traffic_of(key.kind)))
            })
        });
        gateways
    }

    /// Who they are, in every trust domain that is ours.
    fn principals(&self, gateways: &BTreeSet<ObjectKey>) -> Principals {
        let named = gateways.iter().filter_map(|gateway| {
            let standing = self.objects.standings.get(gateway)?;
            let domain = &self.settings.trust_domain;
            Some(principal(gateway, domain, &standing.account))
        });
        let named: Vec<String> = named.collect();
        let everywhere = self.cluster.trust_domains.principals(&named);
        everywhere.into_iter().collect()
    }

    /// What is to be said of an object that demands it.
    pub(super) fn only_condition(&self, key: &ObjectKey) -> Option<Condition> {
        let only = self.objects.only(key);
        only.demands()
            .then(|| status::only(only, traffic_of(key.kind), &self.letting(key)))
    }

    /// Adds the policy of a workload to what is made of it, and what is wrong with its label.
    pub(super) fn add_only(
        &self,
        key: &ObjectKey,
        policy: Option<&Authorization>,
        output: &mut Output,
    ) {
        output
            .authorizations
            .extend(policy.map(Resource::authorization));
        output.remarks.extend(self.objects.own_only(key).fault());
    }
}
