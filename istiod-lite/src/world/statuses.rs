//! What is said of objects: kept, compared, and taken back.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use api::k8s::aim::Aim;
use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{Kind, Object, ObjectKey};

use super::layer7::is_credential;
use super::{Builder, World};
use crate::status::Desired;
use crate::status::invalid::{Instead, invalid};
use crate::translate::peer_authentication::PeerAuthentication;
use crate::translate::policy::{Layer4, Policy};

impl World {
    /// Notes which objects are refused, and which are no longer.
    pub(super) fn note_refused(&mut self, changes: &[Change], dirty: &mut BTreeSet<Builder>) {
        let mut anew = HashSet::new();
        for change in changes {
            match change {
                Change::Set(object) => {
                    let key = object.key();
                    if was_bound(object)
                        && !self.statuses.contains_key(&key)
                        && self.inherited.insert(key.clone())
                    {
                        dirty.insert(Builder::Object(key.clone()));
                    }
                    self.forgive(&key, dirty);
                }
                Change::Gone(key) => {
                    self.inherited.remove(key);
                    self.forgive(key, dirty);
                }
                Change::Invalid(fault) => {
                    let Some(key) = &fault.object else { continue };
                    let reasons = self.refused.entry(key.clone()).or_default();
                    if anew.insert(key.clone()) {
                        reasons.clear();
                    }
                    if !reasons.contains(&fault.reason) {
                        reasons.push(fault.reason.clone());
                    }
                    dirty.insert(Builder::Object(key.clone()));
                    if is_credential(key) {
                        self.touch_credential(key, dirty);
                    }
                }
            }
        }
    }

    fn forgive(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        if self.refused.remove(key).is_some() {
            dirty.insert(Builder::Object(key.clone()));
        }
    }

    /// Puts what denies (or is STRICT) into the place of a policy that cannot be read and has no earlier version:
    /// whoever wrote it wanted somebody protected.
    pub(super) fn close(&mut self, fault: &Fault, dirty: &mut BTreeSet<Builder>) {
        let (Some(key), Some(aim)) = (&fault.object, &fault.aim) else {
            return;
        };
        if matches!(self.objects.instead(key), Instead::Earlier) {
            return;
        }
        let waypoints = matches!(
            key.kind,
            Kind::RequestAuthentication
                | Kind::RateLimitPolicy
                | Kind::QuotaPolicy
                | Kind::ExternalProcessor
        );
        if waypoints {
            match aim {
                // What stood in its place goes as well.
                Aim::Nobody => self.put_layer7(key, None, dirty),
                aim => self.close_layer7(key, aim, &fault.reason, dirty),
            }
        } else if key.kind == Kind::PeerAuthentication {
            let closed = PeerAuthentication::closed(key, aim, &self.reading.root_namespace);
            self.put_peer(key, closed, dirty);
        } else {
            let closed = Policy::closed(key, aim, &fault.reason, &self.reading);
            self.put_policy(key, closed, dirty);
        }
    }

    /// Keeps what is to be said of an object. Says whether that is something else than before.
    pub(super) fn keep_status(&mut self, key: &ObjectKey, said: Option<Desired>) -> bool {
        if is_credential(key) {
            return false; // who named it is told
        }
        let known = self.objects.knows(key);
        let said = match self.refused.get(key) {
            Some(reasons) => invalid(key.kind, reasons, self.objects.instead(key))
                .map(|condition| Desired {
                    conditions: vec![condition],
                    ..Desired::default()
                })
                .or(said),
            None => said,
        };
        let said = self.say_refused_by_proxies(key, said);
        let before = self.statuses.get(key);
        let marked = before.is_some() || self.inherited.contains(key);
        // Nothing more to say: what was said before must be taken out, while the object is there.
        let said = match said {
            Some(said) if marked || !is_empty(&said) => Some(said),
            _ => (known && marked).then(Desired::default),
        };
        if before.map(|it| &**it) == said.as_ref() {
            return false;
        }
        match said {
            Some(said) => self.statuses.insert(key.clone(), Arc::new(said)),
            None => self.statuses.remove(key),
        };
        true
    }
}

fn is_empty(said: &Desired) -> bool {
    said.conditions.is_empty() && said.parents.is_empty() && said.fields.is_empty()
}

/// Whether somebody has said of a Service before whether it is bound to a waypoint, or reached
/// only through it: we, in an earlier life.
fn was_bound(object: &Object) -> bool {
    let Object::Service(service) = object else {
        return false;
    };
    let conditions = service
        .status
        .iter()
        .flat_map(|it| it.conditions.iter().flatten());
    conditions.into_iter().any(|it| {
        matches!(
            &*it.type_,
            "istio.io/WaypointBound" | "ambit.io/WaypointOnly"
        )
    })
}

impl super::objects::Objects {
    /// What is in force in the place of an object that is refused.
    fn instead(&self, key: &ObjectKey) -> Instead<'_> {
        let policy = self.policies.get(key);
        let policy = policy.filter(|policy| policy.layer4 == Layer4::Closed);
        let denies = policy.map(|closed| closed.remarks.first().map_or("", String::as_str));
        let strict = || self.peers.get(key)?.closed.as_deref();
        let refuses = || self.layer7.get(key)?.closed_words();
        match denies.or_else(strict).or_else(refuses) {
            Some(words) => Instead::Closed(words),
            None if self.knows(key) => Instead::Earlier,
            None => Instead::Nothing,
        }
    }

    /// Whether the object is there.
    fn knows(&self, key: &ObjectKey) -> bool {
        match key.kind {
            Kind::Service => self.services.contains_key(key),
            Kind::ServiceEntry => self.service_entries.contains_key(key),
            Kind::WorkloadEntry => self.workload_entries.contains_key(key),
            Kind::AuthorizationPolicy => self.policies.contains_key(key),
            Kind::PeerAuthentication => self.peers.contains_key(key),
            Kind::Gateway => self.gateways.contains_key(key),
            Kind::GatewayClass => self.classes.contains_key(key),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                self.routes.contains_key(key)
            }
            Kind::Secret | Kind::ConfigMap => self.credentials.contains_key(key),
            _ => self.layer7.get(key).is_some(),
        }
    }
}
