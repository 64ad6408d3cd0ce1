//! The endpoints of one service at one moment, for whoever keeps something made of them.
//!
//! What is kept is worth keeping as long as the members are the same; to tell costs one comparison of pointers,
//! because a snapshot shares with the next one all that did not change.

use std::sync::Arc;

use crate::claims::Claims;
use crate::service::{HealthPolicy, Service};
use crate::snapshot::{Slot, Snapshot, host_key};
use crate::workload::Workload;

/// The endpoints of one service at one moment.
#[derive(Debug, Clone)]
pub struct Members(Arc<Slot>);

impl Members {
    /// Whether nothing about the service and its endpoints changed in between.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The service, if it is known.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.0.service.as_ref()
    }

    /// Every endpoint that counts for the service's health policy, whatever its capacity.
    pub fn counting(&self) -> impl Iterator<Item = &Arc<Workload>> {
        let policy = self.0.service.as_ref();
        let all = policy
            .is_some_and(|service| service.load_balancing.health_policy == HealthPolicy::AllowAll);
        let endpoints = self.0.endpoints.iter();
        endpoints
            .filter(move |(kind, _)| all || kind.healthy)
            .map(|(_, workload)| workload)
    }

    /// Whether there is any endpoint, healthy or not.
    pub fn is_empty(&self) -> bool {
        self.0.endpoints.is_empty()
    }
}

impl Snapshot {
    /// The endpoints of the service of that namespace and host; `None` if nothing is known of it.
    pub fn members(&self, namespace: &str, host: &str) -> Option<Members> {
        let slots = self
            .hosts
            .get(&host_key(host))
            .map_or(&[][..], Claims::as_slice);
        let found = slots
            .iter()
            .find(|slot| *slot.namespace == *namespace && *slot.host == *host)?;
        Some(Members(found.clone()))
    }
}
