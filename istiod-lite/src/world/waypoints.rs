//! Gateways as those see them who name them, and where their traffic goes because of it.
//!
//! How a Gateway stands depends on five objects of four kinds. It is worked out anew when one of
//! them moved ([`World::stand`]), once a batch; who names it is only told when what *they* see is
//! different, so a waypoint's pod that restarts costs nobody anything.

use std::collections::{BTreeMap, BTreeSet};

use api::k8s::labels;
use api::k8s::objects::{Kind, ObjectKey};
use api::workload::GatewayAddress;

use super::depend::mark;
use super::objects::Objects;
use super::{Builder, World};
use crate::translate::Labels;
use crate::translate::gateway::{Class, Controller, Gateway, Place, Serves, Traits};
use crate::translate::waypoint::{Bound, Judge, Standing, Traffic, bind};

impl Objects {
    /// The Gateways whose standing depends on an object as it is now.
    pub(super) fn gateways_behind(&self, key: &ObjectKey, into: &mut BTreeSet<ObjectKey>) {
        let gateway = |name: &str| ObjectKey::new(Kind::Gateway, &key.namespace, name);
        match key.kind {
            Kind::Gateway => {
                into.insert(key.clone());
            }
            Kind::Pod => {
                let name = self.pods.get(key).and_then(|it| it.gateway.as_deref());
                into.extend(name.map(gateway));
            }
            Kind::Service => {
                let name = self.services.get(key).and_then(|it| it.gateway.as_deref());
                into.extend(name.map(gateway));
                into.insert(gateway(&key.name));
            }
            _ => {}
        }
    }

    fn traits(&self, gateway: &Gateway) -> (Traits, Traits) {
        let class = ObjectKey::new(Kind::GatewayClass, "", &gateway.class);
        let class = self.classes.get(&class).map(|it: &Class| it.traits.clone());
        (gateway.traits.clone(), class.unwrap_or_default())
    }

    fn standing(&self, key: &ObjectKey) -> Option<Standing> {
        let gateway = self.gateways.get(key)?;
        let (own, class) = self.traits(gateway);
        let serves = match self.controller(gateway) {
            Controller::EastWest => Serves::OtherNetworks,
            _ => own.serves.or(class.serves).unwrap_or_default(),
        };
        Some(Standing {
            serves,
            from: gateway
                .tunnels()
                .map(|it| it.from.clone())
                .unwrap_or_default(),
            places: self.places(gateway),
            account: gateway.account.clone(),
            programmed: self.controller(gateway) == Controller::Mesh,
        })
    }

    /// Where a Gateway is. One of ours is at its Service, from the moment when its first pod has
    /// an address; what was once reported stays, since its clients would go around it otherwise. One that somebody else runs
    /// is where it says, unless there is a Service of its name.
    fn places(&self, gateway: &Gateway) -> Vec<Place> {
        match self.controller(gateway) {
            Controller::Other => gateway.reported.clone(),
            Controller::Unmanaged => gateway.asked.clone(),
            Controller::Mesh | Controller::EastWest => {
                let key = ObjectKey::new(Kind::Service, &gateway.namespace, &gateway.service);
                let service = self.services.get(&key).filter(|it| !it.is_alias);
                let begun = !gateway.reported.is_empty() || self.has_pod(gateway);
                match service.filter(|_| begun) {
                    Some(service) => {
                        let vips = service.vips.iter().copied().map(Place::Ip);
                        vips.chain([Place::Host(service.hostname.clone())])
                            .collect()
                    }
                    None if !gateway.asked.is_empty() => gateway.asked.clone(),
                    None => gateway.reported.clone(),
                }
            }
        }
    }

    fn has_pod(&self, gateway: &Gateway) -> bool {
        let pods = self.pods_of(&ObjectKey::new(
            Kind::Gateway,
            &gateway.namespace,
            &gateway.name,
        ));
        pods.iter()
            .any(|key| self.pods.get(key).is_some_and(|pod| pod.has_address()))
    }

    /// The pods of a Gateway.
    pub(super) fn pods_of(&self, gateway: &ObjectKey) -> BTreeSet<ObjectKey> {
        let label = (labels::GATEWAY_NAME.to_owned(), gateway.name.to_string());
        let mut pods = BTreeSet::new();
        self.workloads
            .selected(&gateway.namespace, &Labels::from([label]), &mut pods);
        pods.retain(|key| key.kind == Kind::Pod);
        pods
    }

    /// How connections are handed to the pods of a Gateway.
    pub(super) fn binding(&self, gateway: &ObjectKey) -> Option<api::workload::ApplicationTunnel> {
        let (own, class) = self.traits(self.gateways.get(gateway)?);
        own.binding.or(class.binding).flatten()
    }

    /// Those that offer a way into a network, by name; of the root namespace first. Whoever may make Gateways in another one does not come
    /// between the mesh and that network where its owner has said what the way is.
    fn ways(&self, network: &str, root: &str) -> Vec<&ObjectKey> {
        let all = self.doors.get(network).into_iter().flatten();
        let mut all: Vec<&ObjectKey> = all.collect();
        all.sort_by_key(|key| *key.namespace != *root);
        all
    }

    /// The way into a network.
    pub(super) fn door(&self, network: &str, root: &str) -> Option<GatewayAddress> {
        let mut gateways = self.ways(network, root).into_iter();
        gateways.find_map(|key| {
            let (address, _) = self.gateways.get(key)?.doors(network).next()?;
            Some(address)
        })
    }
}

impl World {
    /// Works out how the Gateways stand of which something moved, and tells who sees them
    /// differently now.
    pub(super) fn stand(&mut self, moved: BTreeSet<ObjectKey>, dirty: &mut BTreeSet<Builder>) {
        for gateway in moved {
            let now = self.objects.standing(&gateway);
            let before = match &now {
                Some(standing) => {
                    let standings = &mut self.objects.standings;
                    standings.insert(gateway.clone(), standing.clone())
                }
                None => self.objects.standings.remove(&gateway),
            };
            if before != now {
                mark(dirty, [gateway.clone()]);
                dirty.insert(Builder::Waypoint(gateway.clone()));
                self.touch_naming(&gateway, before.as_ref(), now.as_ref(), dirty);
            }
        }
    }

    fn touch_naming(
        &self,
        gateway: &ObjectKey,
        before: Option<&Standing>,
        now: Option<&Standing>,
        dirty: &mut BTreeSet<Builder>,
    ) {
        let address = |standing: Option<&Standing>| standing.map(|it| it.address(gateway, ""));
        let takes = |standing: Option<&Standing>, traffic| standing.map(|it| it.takes(traffic));
        let moved = address(before) != address(now);
        let differs = |traffic| moved || takes(before, traffic) != takes(now, traffic);
        // Where it is does not matter to pods it is not for; others have a status that says it.
        let not_for_pods = |standing| takes(standing, Traffic::Workload) == Some(Some(false));
        let never_for_pods = not_for_pods(before) && not_for_pods(now);
        let doors = before.map(|it| &it.from) != now.map(|it| &it.from);
        let differs_at_all = differs(Traffic::Service) || differs(Traffic::Workload);
        let is_ours = |standing: Option<&Standing>| standing.is_some_and(|it| it.programmed);
        let told = is_ours(before) != is_ours(now);
        let sends = differs_at_all || before.map(|it| &it.account) != now.map(|it| &it.account);
        for key in self.objects.named.get(gateway).into_iter().flatten() {
            let traffic = traffic_of(key.kind);
            let foreign = doors && key.namespace != gateway.namespace;
            let unseen = key.kind == Kind::Pod && never_for_pods;
            // Whom it lets in it sends to, and is allowed there.
            let allowing = self.settings.auto_allow_waypoint && (differs_at_all || foreign);
            if (differs(traffic) || foreign) && !unseen || allowing || told {
                mark(dirty, [key.clone()]);
            }
            let closed = self.objects.is_demanded_in(&key.namespace) && (sends || foreign);
            if closed {
                mark(dirty, [key.clone()]);
            }
            if (allowing || closed) && traffic == Traffic::Service {
                self.touch_served(key, dirty);
            }
        }
    }

    /// Where traffic goes to an object that names a waypoint; none if it names none.
    pub(super) fn bound(&self, key: &ObjectKey) -> Option<Bound> {
        let wanted = self.objects.wanted(key)?;
        let namespace = self.objects.namespace(&key.namespace);
        let judge = Judge {
            standing: &|gateway| self.objects.standings.get(gateway),
            namespace: (&key.namespace, &namespace.labels),
            network: &self.cluster.network,
            traffic: traffic_of(key.kind),
            unready: namespace.unready.unwrap_or(self.settings.waypoint_unready),
        };
        Some(bind(&wanted, &judge))
    }

    /// The waypoints that send to a workload, by what it names itself and by what the services do
    /// that it serves, or did until just now. Whether they take its own traffic is not asked: it is what they send on.
    pub(super) fn senders(&self, workload: &ObjectKey, labels: &Labels) -> BTreeSet<ObjectKey> {
        let services = self
            .objects
            .service_selectors
            .selecting(&workload.namespace, labels);
        let mut gateways = BTreeSet::new();
        for key in services.into_iter().chain([workload]) {
            let wanted = self.objects.wanted(key);
            let named = wanted.iter().flat_map(|it| it.gateways());
            gateways.extend(named.chain(self.left.by(key)).cloned());
        }
        gateways.retain(|gateway| {
            let standing = self.objects.standings.get(gateway);
            standing.is_some_and(|it| {
                // The gateway of a network has no policy of that kind, and one that nobody sends would deny everybody.
                it.serves != Serves::OtherNetworks
                    && !it.places.is_empty()
                    && self.admits(it, gateway, workload)
            })
        });
        gateways
    }

    pub(super) fn admits(
        &self,
        standing: &Standing,
        gateway: &ObjectKey,
        workload: &ObjectKey,
    ) -> bool {
        gateway.namespace == workload.namespace
            || standing
                .from
                .admits(&self.objects.namespace(&workload.namespace).labels)
    }

    /// The ways into other networks that a Gateway is the first to offer.
    pub(super) fn doors(&self, key: &ObjectKey) -> Vec<api::workload::Workload> {
        let Some(gateway) = self.objects.gateways.get(key) else {
            return Vec::new();
        };
        let Some(network) = self.objects.door_of(gateway) else {
            return Vec::new();
        };
        let mut offered = BTreeMap::new();
        for other in self.objects.ways(network, &self.settings.root_namespace) {
            let gateway = self.objects.gateways.get(other);
            for (_, workload) in gateway.into_iter().flat_map(|it| it.doors(network)) {
                offered
                    .entry(workload.uid.clone())
                    .or_insert((other, workload));
            }
        }
        let own = offered.into_values().filter(|(first, _)| *first == key);
        own.map(|(_, workload)| workload).collect()
    }
}

pub(super) fn traffic_of(kind: Kind) -> Traffic {
    match kind {
        Kind::Pod | Kind::WorkloadEntry => Traffic::Workload,
        _ => Traffic::Service,
    }
}
