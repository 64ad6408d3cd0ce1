//! Extension providers of the mesh: each waypoint is told of all that can be told.

use std::collections::BTreeSet;

use api::k8s::objects::ObjectKey;
use api::waypoint as wire;
use wire::resource::Kind as Told;

use crate::translate::layer7::provider::{self, Provider};
use crate::translate::layer7::{report, telemetry};
use crate::translate::resource::Resource;
use crate::world::depend::mark;
use crate::world::{Builder, World};

impl World {
    /// What there is to say of a provider that no proxy can be told of.
    pub(in crate::world) fn no_provider(&self, name: &str) -> Option<String> {
        let known = self.settings.providers.iter().find(|it| it.name == name);
        match known {
            None => Some(format!(
                "the mesh configuration has no extension provider {name}: who is to be asked is not known, so all is refused"
            )),
            Some(provider) => {
                let why = provider.told(&|host| self.namespace_of(host)).err()?;
                Some(format!("extension provider {name}: {why}"))
            }
        }
    }

    /// The same of one that reports are handed to.
    pub(super) fn no_report(&self, name: &str) -> Option<String> {
        let known = self.settings.providers.iter().find(|it| it.name == name);
        match known {
            None if name == OWN => None,
            None => Some(format!(
                "the mesh configuration has no extension provider {name}: nothing is handed to it"
            )),
            Some(_) => self.no_provider(name),
        }
    }

    /// The extension providers of the mesh, as a waypoint is told of them.
    pub(in crate::world) fn providers(&self, gateway: &ObjectKey) -> Vec<Resource> {
        let told = self.settings.providers.iter().filter_map(|it| {
            let told = it.told(&|host| self.namespace_of(host)).ok()??;
            Some((it, told))
        });
        let resource = |(it, told): (&Provider, wire::Provider)| wire::Resource {
            key: provider::key(&it.name),
            origin: Some(wire::Origin {
                kind: "MeshConfig".to_owned(),
                namespace: self.settings.root_namespace.clone(),
                name: it.name.clone(),
                ..wire::Origin::default()
            }),
            kind: Some(Told::Provider(told)),
        };
        let providers = told.map(|it| Resource::waypoint(gateway, &resource(it)));
        let own = self.reports(gateway);
        let own = own.map(|it| Resource::waypoint(gateway, &it));
        providers.chain(own).collect()
    }

    /// What the mesh's settings say of reports: the proxies' own log, and who gets them where nothing else is said.
    fn reports(&self, gateway: &ObjectKey) -> impl Iterator<Item = wire::Resource> {
        let reports = &self.settings.reports;
        let origin = wire::Origin {
            kind: "MeshConfig".to_owned(),
            namespace: self.settings.root_namespace.clone(),
            ..wire::Origin::default()
        };
        let named = self.settings.providers.iter().any(|it| it.name == OWN);
        let file = report::own(&reports.format, reports.json).ok().flatten();
        let file = file.filter(|_| !named).map(|file| wire::Resource {
            key: provider::key(OWN),
            origin: Some(origin.clone()),
            kind: Some(Told::Provider(wire::Provider {
                kind: Some(wire::provider::Kind::LogFile(file)),
            })),
        });
        let defaults = telemetry::defaults(reports).map(|told| wire::Resource {
            key: "telemetry/defaults".to_owned(),
            origin: Some(origin),
            kind: Some(Told::Telemetry(wire::Telemetry {
                targets: vec![wire::Target {
                    to: Some(wire::target::To::Gateway(super::shown(gateway))),
                }],
                ..told
            })),
        });
        file.into_iter().chain(defaults)
    }

    /// Marks who must know that whoever has a host comes, changes or goes, if it is that of a provider.
    pub(in crate::world) fn touch_provider(&self, host: &str, dirty: &mut BTreeSet<Builder>) {
        let mut hosts = self.settings.providers.iter().filter_map(Provider::host);
        if !hosts.any(|it| it == host) {
            return;
        }
        let gateways = self.objects.gateways.keys().cloned();
        dirty.extend(gateways.map(Builder::Waypoint));
        let policies = self.objects.policies.iter();
        let attached = policies.filter(|(_, it)| it.attached.is_some());
        mark(dirty, attached.map(|(key, _)| key.clone()));
        mark(dirty, self.objects.layer7.naming_providers().cloned());
    }

    /// The namespace of the service that has a host, as everybody sees it.
    fn namespace_of(&self, host: &str) -> Option<String> {
        let holder = self
            .objects
            .hosts
            .holder(host, &self.settings.root_namespace);
        holder.map(|it| it.namespace.to_string())
    }
}

/// The provider that everybody has: the proxies' own log.
const OWN: &str = "envoy";
