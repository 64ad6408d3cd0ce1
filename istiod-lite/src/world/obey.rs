//! Policies: which ones a workload must name, what proxies are told of each, and what its author.

use api::k8s::objects::{Kind, ObjectKey};
use api::security::Authorization;
use api::waypoint::resource::Kind as Told;

use super::objects::applies_as_allow;
use super::{Output, World};
use crate::status;
use crate::status::policy::Found;
use crate::translate::gateway::Controller;
use crate::translate::peer_authentication::{self, Demand};
use crate::translate::policy::{Policy, Target};
use crate::translate::resource::Resource;
use crate::translate::waypoint::Bound;
use crate::translate::{Labels, waypoint};

impl World {
    /// The policies that a workload must name: sorted, the one for all who are strict last. `only`: the one that closes
    /// what goes around its waypoints.
    pub(super) fn policies_of(
        &self,
        workload: &ObjectKey,
        labels: &Labels,
        only: Option<&Authorization>,
    ) -> Vec<String> {
        let root = self.settings.root_namespace.as_str();
        let own = self
            .objects
            .policy_selectors
            .selecting(&workload.namespace, labels);
        let mesh = if *workload.namespace == *root {
            Default::default()
        } else {
            self.objects.policy_selectors.selecting(root, labels)
        };
        let selecting = own
            .into_iter()
            .chain(mesh)
            .filter_map(|key| self.objects.policies.get(key)?.resource_name());
        let mut names: Vec<String> = selecting.collect();

        let peers = self
            .objects
            .peer_selectors
            .selecting(&workload.namespace, labels);
        let peers = peers
            .into_iter()
            .filter_map(|key| Some((self.objects.peers.get(key)?, key)));
        let inherited = self.objects.is_strict(&workload.namespace, root);
        let oldest = peers
            .min_by_key(|(peer, key)| (peer.created, *key))
            .map(|(peer, _)| (peer, peer.demand(inherited)));
        let everywhere = match oldest {
            Some((peer, Demand::ByPort(_))) => {
                names.push(peer.resource_name());
                false
            }
            Some((_, demand)) => demand == Demand::Everywhere,
            None => inherited,
        };
        if self.settings.auto_allow_waypoint && self.is_allowed(workload, labels) {
            let senders = self.senders(workload, labels);
            names.extend(senders.iter().map(waypoint::allowing));
        }
        names.extend(only.map(|it| format!("{}/{}", it.namespace, it.name)));
        names.sort_unstable();
        if everywhere {
            names.push(peer_authentication::strict_name(root));
        }
        names
    }

    /// Whether an ALLOW policy applies to a workload, so that who is not allowed is denied.
    fn is_allowed(&self, workload: &ObjectKey, labels: &Labels) -> bool {
        let root: &str = &self.settings.root_namespace;
        let objects = &self.objects;
        let general = |namespace: &str| objects.general_allows.contains_key(namespace);
        let selected = |namespace: &str| {
            let policies = objects.policy_selectors.selecting(namespace, labels);
            let mut policies = policies
                .into_iter()
                .filter_map(|key| objects.policies.get(key));
            policies.any(|it| it.authorization.as_ref().is_some_and(applies_as_allow))
        };
        [&*workload.namespace, root]
            .into_iter()
            .any(|namespace| general(namespace) || selected(namespace))
    }

    /// What stands at the targets of a policy.
    pub(super) fn found(&self, targets: &[Target]) -> Vec<Found> {
        let found = |target: &Target| {
            let shown = || target.shown.clone();
            let Some(object) = &target.object else {
                return Found::Invalid(shown());
            };
            let objects = &self.objects;
            let ready = |gateway: &ObjectKey| {
                let standing = objects.standings.get(gateway);
                standing.is_some_and(|it| !it.places.is_empty())
            };
            match object.kind {
                Kind::HttpRoute | Kind::GrpcRoute if !objects.routes.contains_key(object) => {
                    Found::Missing(shown())
                }
                Kind::HttpRoute | Kind::GrpcRoute => {
                    let first = self.gateways_of_route(object).pop_first();
                    first.map_or_else(|| Found::NotBound(shown()), Found::Bound)
                }
                Kind::Namespace => Found::Bound(object.clone()),
                Kind::GatewayClass => {
                    let class = objects.classes.get(object);
                    match Controller::of(&object.name, class) {
                        Controller::Mesh => Found::Bound(object.clone()),
                        Controller::Other if class.is_none() => Found::Missing(shown()),
                        _ => Found::NoWaypoint(shown()),
                    }
                }
                Kind::Gateway if !objects.gateways.contains_key(object) => Found::Missing(shown()),
                // Others have addresses too, and are told nothing.
                Kind::Gateway if !self.is_programmed(object) => Found::NoWaypoint(shown()),
                Kind::Gateway if ready(object) => Found::Bound(object.clone()),
                Kind::Gateway => Found::NotBound(shown()),
                _ if objects.choice(object).is_none() => Found::Missing(shown()),
                _ => match self.bound(object) {
                    Some(Bound {
                        gateway,
                        problem: None,
                        ..
                    }) if self.is_programmed(&gateway) => Found::Bound(gateway),
                    // Traffic passes it, and we tell it nothing.
                    Some(Bound {
                        gateway,
                        problem: None,
                        ..
                    }) => Found::NoWaypoint(format!("{gateway}, which {} is behind,", shown())),
                    _ => Found::NotBound(shown()),
                },
            }
        };
        targets.iter().map(found).collect()
    }

    pub(super) fn build_policy(&self, key: &ObjectKey) -> Option<Output> {
        let policy = self.objects.policies.get(key)?;
        let authorizations = policy
            .authorization
            .iter()
            .map(Resource::authorization)
            .collect();
        let asked = match policy.attached.as_ref().and_then(|it| it.kind.as_ref()) {
            Some(Told::Authorization(it)) => it.provider.strip_prefix("provider/"),
            _ => None,
        };
        let unasked = asked.and_then(|name| self.no_provider(name));
        let faults: Vec<String> = unasked.into_iter().collect();
        Some(Output {
            authorizations,
            resources: self.attached_policy(policy),
            remarks: policy.remarks.iter().chain(&faults).cloned().collect(),
            status: Some(status::policy::policy(
                policy,
                &self.found(&policy.targets),
                &faults,
            )),
            ..Output::default()
        })
    }

    /// What waypoints are told of a policy that is attached to something of theirs.
    fn attached_policy(&self, policy: &Policy) -> Vec<Resource> {
        let Some(resource) = &policy.attached else {
            return Vec::new();
        };
        let told = self.attached(&policy.targets).into_iter();
        let told = told.map(|(gateway, targets)| {
            let mut resource = resource.clone();
            if let Some(Told::Authorization(it)) = &mut resource.kind {
                it.targets = targets;
            }
            Resource::waypoint(&gateway, &resource)
        });
        told.collect()
    }

    pub(super) fn build_peer(&self, key: &ObjectKey) -> Option<Output> {
        let peer = self.objects.peers.get(key)?;
        peer.selector.as_ref()?;
        let inherited = self
            .objects
            .is_strict(&key.namespace, &self.settings.root_namespace);
        let Demand::ByPort(groups) = peer.demand(inherited) else {
            return None;
        };
        Some(Output {
            authorizations: vec![Resource::authorization(&peer.authorization(groups))],
            ..Output::default()
        })
    }

    /// There as soon as any PeerAuthentication is, needed or not: a workload may then come to need
    /// it at any time, and it must not arrive after the workload.
    pub(super) fn build_strict(&self) -> Output {
        let policy = peer_authentication::strict_authorization(&self.settings.root_namespace);
        let authorizations =
            (!self.objects.peers.is_empty()).then(|| Resource::authorization(&policy));
        Output {
            authorizations: authorizations.into_iter().collect(),
            ..Output::default()
        }
    }
}
