//! Pure: which addresses a name of the mesh has, for a caller in some namespace.
//!
//! A name is tried as it stands and then without each search domain, because resolvers append
//! those before they try the bare name. Each of these is, in this order: a host, a Kubernetes
//! short form (`web`, `web.alpha`, `web.alpha.svc`), or below a wildcard host.

use std::net::IpAddr;

use mesh::{Network, Service, Snapshot, VipAddress};

/// What names are looked up in, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) network: &'a Network,
    /// Kubernetes' DNS suffix, `cluster.local`.
    pub(crate) cluster_domain: &'a str,
    /// Search domains of the node's resolver configuration, in lower case.
    pub(crate) search: &'a [String],
    /// Namespace of the caller.
    pub(crate) namespace: &'a str,
}

/// A name of the mesh.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The name without its search domain, if that is what was found: answered as an alias.
    pub(crate) alias: Option<String>,
    /// All its addresses, both families.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Names<'_> {
    /// Looks `name` up (lower case, no trailing dot). `None`: not a name of the mesh; the
    /// upstream resolvers know better.
    pub(crate) fn find(&self, name: &str) -> Option<Found> {
        if let Some(addresses) = self.addresses_of(name) {
            return Some(Found {
                alias: None,
                addresses,
            });
        }
        self.search_domains().find_map(|domain| {
            let bare = name.strip_suffix(&*domain)?.strip_suffix('.')?;
            let addresses = self.addresses_of(bare)?;
            Some(Found {
                alias: Some(bare.to_owned()),
                addresses,
            })
        })
    }

    /// The caller's search domains: ours are those of another pod, so the one with the namespace
    /// in it is the caller's instead.
    fn search_domains(&self) -> impl Iterator<Item = String> + '_ {
        let services = format!("svc.{}", self.cluster_domain);
        let own = format!("{}.{services}", self.namespace);
        let others = self
            .search
            .iter()
            .filter(|domain| !domain.ends_with(self.cluster_domain))
            .cloned();
        [own, services, self.cluster_domain.to_owned()]
            .into_iter()
            .chain(others)
    }

    fn addresses_of(&self, name: &str) -> Option<Vec<IpAddr>> {
        let service = |host: &str| self.snapshot.service_for_host(host, self.namespace);
        let short = || match name.split('.').collect::<Vec<_>>()[..] {
            [one] => service(&format!(
                "{one}.{}.svc.{}",
                self.namespace, self.cluster_domain
            )),
            [one, two] => service(&format!("{one}.{two}.svc.{}", self.cluster_domain)),
            [_, _, "svc"] => service(&format!("{name}.{}", self.cluster_domain)),
            _ => None,
        };
        let wildcard = || {
            let dots = name.match_indices('.').map(|(at, _)| &name[at..]);
            dots.into_iter()
                .find_map(|parent| service(&format!("*{parent}")))
        };
        let found = service(name).or_else(short).or_else(wildcard)?;
        self.addresses(found)
    }

    fn addresses(&self, service: &Service) -> Option<Vec<IpAddr>> {
        if service.vips.is_empty() && self.is_kubernetes(service) {
            return Some(self.headless(service));
        }
        let vips = service
            .vips
            .iter()
            .filter(|vip| vip.network == *self.network);
        let single: Vec<_> = vips
            .filter_map(|vip| match vip.address {
                VipAddress::Ip(ip) => Some(ip),
                VipAddress::Cidr(_) => None,
            })
            .collect();
        (!single.is_empty()).then_some(single)
    }

    /// A name of its own in cluster DNS, even while it has no address at all.
    fn is_kubernetes(&self, service: &Service) -> bool {
        let Service {
            name,
            namespace,
            hostname,
            ..
        } = service;
        let rest = hostname
            .strip_prefix(&**name)
            .and_then(|rest| rest.strip_prefix('.'));
        let rest = rest
            .and_then(|rest| rest.strip_prefix(&**namespace))
            .and_then(|rest| rest.strip_prefix(".svc."));
        rest == Some(self.cluster_domain)
    }

    /// Its pods' addresses, of the families that the service is for: whoever listens on one only is found by that one only.
    fn headless(&self, service: &Service) -> Vec<IpAddr> {
        let here = self
            .snapshot
            .endpoints(service)
            .filter(|workload| workload.network == *self.network);
        here.flat_map(|workload| workload.addresses.iter().copied())
            .filter(|ip| service.ip_families.accept(*ip))
            .collect()
    }
}
