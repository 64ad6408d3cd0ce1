//! Pure: which addresses a name of the mesh has, for a caller in some namespace.
//!
//! A name is tried as it stands and then without each search domain, because resolvers append
//! those before they try the bare name. Each of these is, in this order: a host of the caller's namespace or of a
//! Kubernetes Service, a Kubernetes short form (`web`, `web.alpha`, `web.alpha.svc`), a pod of a headless service
//! (`db-0.db`, as those of a StatefulSet are called), a host of a ServiceEntry elsewhere, or below a wildcard host. So
//! whoever may write entries of one namespace does not say for others where the names of their Services lead; nor by a host
//! that is one of these with a search domain behind it.

use std::net::IpAddr;
use std::sync::Arc;

use mesh::names::ANY_NAMESPACE;
use mesh::{NamespacedHost, Network, Service, Snapshot, VipAddress, Workload};

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
        let below = name.strip_suffix(self.cluster_domain);
        if below.is_some_and(|below| below.ends_with('.'))
            && let Some(found) = self.look(name, |it| self.nearby(it))
        {
            return Some(found);
        }
        self.look(name, |it| self.addresses_of(it))
    }

    /// The name as it stands, and then without each search domain.
    fn look(&self, name: &str, of: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Option<Found> {
        if let Some(addresses) = of(name) {
            return Some(Found {
                alias: None,
                addresses,
            });
        }
        self.search_domains().find_map(|domain| {
            let bare = name.strip_suffix(&*domain)?.strip_suffix('.')?;
            let addresses = of(bare)?;
            Some(Found {
                alias: Some(bare.to_owned()),
                addresses,
            })
        })
    }

    /// Whom the control plane must have told of before it is known what `name` means, where not everybody is followed: first
    /// the service that has it as it stands in cluster DNS, then, if there is none, everybody else. A host of a ServiceEntry
    /// below the cluster's own domain is among them if it has the form of a service's.
    pub(crate) fn wanted(&self, name: &str) -> [Vec<NamespacedHost>; 2] {
        let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_usual) {
            return Default::default();
        }
        let first = Vec::from_iter(self.of_cluster(name));
        // Of what is searched, what is found first: the rest of them the resolver asks for by itself.
        let searched = self
            .search_domains()
            .find_map(|domain| name.strip_suffix(&*domain)?.strip_suffix('.'));
        let mut others = Vec::new();
        for bare in [name].into_iter().chain(searched) {
            for host in self.wanted_for(bare) {
                if others.len() < MOST_WANTED && !first.contains(&host) && !others.contains(&host) {
                    others.push(host);
                }
            }
        }
        [first, others]
    }

    fn wanted_for(&self, bare: &str) -> Vec<NamespacedHost> {
        let below = bare.strip_suffix(self.cluster_domain);
        if below.is_some_and(|below| below.is_empty() || below.ends_with('.')) {
            return self.of_cluster(bare).into_iter().collect();
        }
        let anywhere = |host: &str| NamespacedHost::new(ANY_NAMESPACE, host);
        let parent = bare.split_once('.').map(|(_, parent)| parent);
        let parents = bare.match_indices('.').map(|(at, _)| &bare[at..]);
        [anywhere(bare)]
            .into_iter()
            .chain(self.short(bare))
            .chain(parent.and_then(|service| self.short(service)))
            .chain(parents.map(|parent| anywhere(&format!("*{parent}"))))
            .take(MOST_WANTED)
            .collect()
    }

    /// The service that has this name in cluster DNS, itself or as that of a pod below it.
    fn of_cluster(&self, name: &str) -> Option<NamespacedHost> {
        let name = name
            .strip_suffix(self.cluster_domain)?
            .strip_suffix(".svc.")?;
        let mut labels = name.rsplit('.');
        let (namespace, service) = (labels.next()?, labels.next()?);
        (labels.count() <= 1).then(|| self.kubernetes(service, namespace))
    }

    fn kubernetes(&self, service: &str, namespace: &str) -> NamespacedHost {
        let host = format!("{service}.{namespace}.svc.{}", self.cluster_domain);
        NamespacedHost::new(namespace, host)
    }

    /// The service of Kubernetes that `name` is the short form of.
    fn short(&self, name: &str) -> Option<NamespacedHost> {
        let mut labels = name.splitn(4, '.');
        let service = labels.next()?;
        match (labels.next(), labels.next(), labels.next()) {
            (None, ..) => Some(self.kubernetes(service, self.namespace)),
            (Some(namespace), None | Some("svc"), None) => {
                Some(self.kubernetes(service, namespace))
            }
            _ => None,
        }
    }

    /// The caller's search domains: ours are those of another pod, so the one with the namespace
    /// in it is the caller's instead.
    fn search_domains(&self) -> impl Iterator<Item = String> + '_ {
        let services = format!("svc.{}", self.cluster_domain);
        let own = format!("{}.{services}", self.namespace);
        let of_cluster = |domain: &str| {
            let above = domain.strip_suffix(self.cluster_domain);
            above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        };
        let others = self.search.iter();
        let others = others.filter(move |domain| !of_cluster(domain)).cloned();
        [own, services, self.cluster_domain.to_owned()]
            .into_iter()
            .chain(others)
    }

    /// Of what no entry of another namespace is.
    fn nearby(&self, name: &str) -> Option<Vec<IpAddr>> {
        match self.service(name) {
            Some(service) => self.addresses(service),
            None => self.pod(name),
        }
    }

    fn addresses_of(&self, name: &str) -> Option<Vec<IpAddr>> {
        if let Some(service) = self.service(name) {
            return self.addresses(service);
        }
        if let Some(addresses) = self.pod(name) {
            return Some(addresses);
        }
        if let Some(entry) = self.host(name) {
            return self.addresses(entry);
        }
        let mut parents = name.match_indices('.').map(|(at, _)| &name[at..]);
        let below = parents.find_map(|parent| self.host(&format!("*{parent}")))?;
        self.addresses(below)
    }

    fn host(&self, host: &str) -> Option<&Service> {
        let found = self.snapshot.service_for_host(host, self.namespace);
        found.map(|service| &**service)
    }

    /// The service of that host, if it is the caller's own or Kubernetes', or of that short form of one.
    fn service(&self, name: &str) -> Option<&Service> {
        let near = |it: &&Service| *it.namespace == *self.namespace || self.is_kubernetes(it);
        self.host(name)
            .filter(near)
            .or_else(|| self.host(&self.short(name)?.host))
    }

    /// The addresses of a pod by its name below a headless service that it serves. A pod that calls itself otherwise
    /// (`spec.hostname`) is left to cluster DNS, which knows.
    fn pod(&self, name: &str) -> Option<Vec<IpAddr>> {
        let (pod, rest) = name.split_once('.')?;
        let service = self.service(rest)?;
        if !self.is_headless(service) {
            return None;
        }
        let mut here = self.endpoints(service);
        let workload = here.find(|workload| workload.name() == pod)?;
        let own = workload.addresses.iter().copied();
        Some(own.filter(|ip| service.ip_families.accept(*ip)).collect())
    }

    fn addresses(&self, service: &Service) -> Option<Vec<IpAddr>> {
        if self.is_headless(service) {
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

    fn is_headless(&self, service: &Service) -> bool {
        service.vips.is_empty() && self.is_kubernetes(service)
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
        let here = self.endpoints(service);
        here.flat_map(|workload| workload.addresses.iter().copied())
            .filter(|ip| service.ip_families.accept(*ip))
            .collect()
    }

    /// Those of its endpoints that can be reached by an address.
    fn endpoints(&self, service: &Service) -> impl Iterator<Item = &Arc<Workload>> {
        let all = self.snapshot.endpoints(service);
        all.filter(move |workload| workload.network == *self.network)
    }
}

/// For one question: names have fewer labels than that, and who asks for one that has more does not look for anybody.
pub(crate) const MOST_WANTED: usize = 12;
