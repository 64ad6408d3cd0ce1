//! Where a policy is attached: by waypoint, and there by service, gateway or route.

use std::collections::{BTreeMap, BTreeSet};

use api::k8s::objects::{Kind, ObjectKey};
use api::waypoint as wire;

use super::shown;
use crate::translate::policy::Target;
use crate::world::World;
use crate::world::routes::parent_key;

/// Where something is attached, by the Gateway that is told so.
pub(in crate::world) type Attached = BTreeMap<ObjectKey, Vec<wire::Target>>;

impl World {
    /// What stands at the targets, by the Gateways of ours that enforce it there.
    pub(in crate::world) fn attached(&self, targets: &[Target]) -> Attached {
        let mut attached = Attached::new();
        for object in targets.iter().filter_map(|it| it.object.as_ref()) {
            if object.kind == Kind::Namespace {
                for (gateway, to) in self.anywhere_in(&object.name) {
                    attached.entry(gateway).or_default().extend(to);
                }
                continue;
            }
            let gateway_target = |it: &ObjectKey| wire::target::To::Gateway(shown(it));
            for gateway in self.concerned(object) {
                let to: Vec<wire::target::To> = match object.kind {
                    Kind::Gateway | Kind::GatewayClass => vec![gateway_target(&gateway)],
                    Kind::HttpRoute | Kind::GrpcRoute => {
                        let kind = object.kind.name().to_ascii_lowercase();
                        vec![wire::target::To::Route(format!("{kind}/{}", shown(object)))]
                    }
                    _ => {
                        let services = self.service_refs(object).into_iter();
                        services.map(wire::target::To::Service).collect()
                    }
                };
                let told = to.into_iter().map(|to| wire::Target { to: Some(to) });
                attached.entry(gateway).or_default().extend(told);
            }
        }
        attached
    }

    /// The Gateways of ours that are concerned by what is attached to an object; for a route, those in front of what
    /// it is attached to itself.
    pub(in crate::world) fn concerned(&self, object: &ObjectKey) -> BTreeSet<ObjectKey> {
        match object.kind {
            Kind::HttpRoute | Kind::GrpcRoute => self.gateways_of_route(object),
            _ => self.in_front(object),
        }
    }

    /// The Gateways in front of what a route is attached to.
    pub(in crate::world) fn gateways_of_route(&self, object: &ObjectKey) -> BTreeSet<ObjectKey> {
        let Some(route) = self.objects.routes.get(object) else {
            return BTreeSet::new();
        };
        let parents = route.spec.parents().iter();
        let parents = parents.filter_map(|it| parent_key(it, &object.namespace));
        parents.flat_map(|it| self.in_front(&it)).collect()
    }

    /// All that something may be attached to that is in a namespace (anywhere, if it is empty): what passes through the
    /// Gateways there, and what is for the services there and passes through others.
    fn anywhere_in(&self, namespace: &str) -> Attached {
        let mut attached = self.everything_in(namespace);
        for service in self.objects.served.get(namespace).into_iter().flatten() {
            for gateway in self.in_front(service) {
                if *gateway.namespace != *namespace {
                    let services = self.service_refs(service).into_iter();
                    let to = services.map(|it| wire::Target {
                        to: Some(wire::target::To::Service(it)),
                    });
                    attached.entry(gateway).or_default().extend(to);
                }
            }
        }
        attached
    }

    /// The Gateways of ours in a namespace (all, if it is empty), each as a target of itself.
    pub(super) fn everything_in(&self, namespace: &str) -> Attached {
        let itself = |gateway: &ObjectKey| {
            let to = Some(wire::target::To::Gateway(shown(gateway)));
            (gateway.clone(), vec![wire::Target { to }])
        };
        self.programmed_in(namespace).map(itself).collect()
    }
}
