//! Who and where is meant by what a person types: `shop/web`, `web.shop`, `10.0.0.1:80`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh::{NamespacedHost, Network, Service, Snapshot, VipAddress, Workload};

use super::View;

/// Who calls.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) workload: Option<Arc<Workload>>,
    address: Option<IpAddr>,
}

impl Caller {
    /// # Errors
    /// When the text names somebody, and nobody of that name is known.
    pub(super) fn of(view: &View<'_>, text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse() {
            return Ok(Self {
                workload: view.snapshot.workload_at(view.network, ip).cloned(),
                address: Some(ip),
            });
        }
        let workload = named(view.snapshot, text)
            .ok_or_else(|| format!("src: no workload {text} is known here"))?;
        Ok(Self {
            address: workload.addresses.first().copied(),
            workload: Some(workload.clone()),
        })
    }

    pub(super) fn network<'a>(&'a self, view: &View<'a>) -> &'a Network {
        let own = self.workload.as_ref().map(|workload| &workload.network);
        own.unwrap_or(view.network)
    }

    pub(super) fn namespace(&self) -> &str {
        self.workload
            .as_ref()
            .map_or("", |workload| &*workload.namespace)
    }

    /// Its address, of the family of `to` if it has one of it.
    pub(super) fn address(&self, to: SocketAddr) -> IpAddr {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
        let own = self
            .workload
            .iter()
            .flat_map(|workload| workload.addresses.iter());
        let unspecified = || match to.is_ipv4() {
            true => IpAddr::from([0; 4]),
            false => IpAddr::from([0; 16]),
        };
        let found = self.address.iter().chain(own).find(of_family).copied();
        found.unwrap_or_else(unspecified)
    }
}

/// Where a call goes.
#[derive(Debug)]
pub(super) struct Meant {
    pub(super) destination: SocketAddr,
    /// How the text was understood.
    pub(super) meaning: String,
}

impl Meant {
    /// # Errors
    /// When it is nobody known, or the port is not said and cannot be told.
    pub(super) fn of(
        view: &View<'_>,
        caller: &Caller,
        text: &str,
        port: Option<u16>,
    ) -> Result<Self, String> {
        let (name, said) = split(text);
        let port = port.or(said);
        if let Ok(ip) = name.parse::<IpAddr>() {
            return address(view, caller, ip, port);
        }
        if let Some(workload) = named(view.snapshot, name) {
            return pod(view, workload, port, format!("pod {}", workload.uid));
        }
        let service = service(view, caller, name)
            .ok_or_else(|| format!("dst: neither a workload nor a service {name} is known here"))?;
        let meaning = format!("service {}", service.key());
        let vip = service.vips.iter().find_map(|vip| match vip.address {
            VipAddress::Ip(ip) if vip.network == *caller.network(view) => Some(ip),
            _ => None,
        });
        match vip {
            Some(ip) => Ok(Self {
                destination: SocketAddr::new(ip, port_of(service, port)?),
                meaning,
            }),
            // Without an address of its own its name leads to one of its endpoints.
            None => {
                let endpoint = view.snapshot.endpoints(service).next();
                let endpoint = endpoint.ok_or_else(|| {
                    format!(
                        "dst: {meaning} has no address of its own and no endpoint; say an address"
                    )
                })?;
                pod(
                    view,
                    endpoint,
                    port,
                    format!("{meaning}, whose name leads to its endpoints"),
                )
            }
        }
    }
}

fn address(
    view: &View<'_>,
    caller: &Caller,
    ip: IpAddr,
    port: Option<u16>,
) -> Result<Meant, String> {
    let network = caller.network(view);
    if let Some(service) = view.snapshot.service_at(network, ip, caller.namespace()) {
        return Ok(Meant {
            destination: SocketAddr::new(ip, port_of(service, port)?),
            meaning: format!("service {}", service.key()),
        });
    }
    if let Some(workload) = view.snapshot.workload_at(network, ip) {
        let port = port_on(view, workload, port)?;
        return Ok(Meant {
            destination: SocketAddr::new(ip, port),
            meaning: format!("pod {}", workload.uid),
        });
    }
    Ok(Meant {
        destination: SocketAddr::new(ip, port.ok_or(SAY_PORT)?),
        meaning: "nobody that the mesh knows".to_owned(),
    })
}

fn pod(
    view: &View<'_>,
    workload: &Arc<Workload>,
    port: Option<u16>,
    meaning: String,
) -> Result<Meant, String> {
    let ip = workload.addresses.first().copied();
    let ip = ip.ok_or_else(|| format!("dst: {} has no address", workload.uid))?;
    Ok(Meant {
        destination: SocketAddr::new(ip, port_on(view, workload, port)?),
        meaning,
    })
}

const SAY_PORT: &str = "dst: say the port: DST:PORT";

/// The port of a service that has only one need not be said.
fn port_of(service: &Service, port: Option<u16>) -> Result<u16, String> {
    match (port, &*service.ports) {
        (Some(port), _) => Ok(port),
        (None, [only]) => Ok(only.service_port),
        (None, _) => Err(SAY_PORT.to_owned()),
    }
}

/// Nor that of a pod behind such a service.
fn port_on(view: &View<'_>, workload: &Workload, port: Option<u16>) -> Result<u16, String> {
    if let Some(port) = port {
        return Ok(port);
    }
    let [member] = &*workload.services else {
        return Err(SAY_PORT.to_owned());
    };
    let named = &member.service;
    let offered = view.snapshot.service(&named.namespace, &named.host);
    let ports = match &*member.ports {
        [] => offered.map_or(&[][..], |service| &service.ports),
        own => own,
    };
    match ports {
        [only] if only.target_port != 0 => Ok(only.target_port),
        _ => Err(SAY_PORT.to_owned()),
    }
}

/// A uid, or `namespace/name` of a pod or of who owns it.
fn named<'a>(snapshot: &'a Snapshot, text: &str) -> Option<&'a Arc<Workload>> {
    if let Some(found) = snapshot.workload(text) {
        return Some(found);
    }
    let (namespace, name) = text.split_once('/')?;
    let alike = snapshot
        .workloads()
        .filter(|it| *it.namespace == *namespace);
    // The very pod before a pod of that owner, a healthy one before others.
    let fits = alike.filter(|it| it.name() == name || *it.workload_name == *name);
    fits.min_by_key(|it| (it.name() != name, !it.healthy, it.uid.clone()))
}

/// By host, by Kubernetes' short forms as the caller would say them, or `namespace/name`.
fn service<'a>(view: &View<'a>, caller: &Caller, name: &str) -> Option<&'a Arc<Service>> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let (namespace, domain) = (caller.namespace(), view.cluster_domain);
    if let Some((namespace, host)) = name.split_once('/') {
        let of_kubernetes = format!("{host}.{namespace}.svc.{domain}");
        let known = |host: &str| view.snapshot.service(namespace, host);
        return known(host).or_else(|| known(&of_kubernetes));
    }
    let known = |host: &str| view.snapshot.service_for_host(host, namespace);
    let forms = [
        format!("{name}.{namespace}.svc.{domain}"),
        format!("{name}.svc.{domain}"),
        format!("{name}.{domain}"),
    ];
    // As names are answered: an entry of another namespace has none that is a Service's short form.
    let itself = known(name);
    let own = itself.filter(|it| *it.namespace == *namespace);
    own.or_else(|| forms.iter().find_map(|host| known(host)))
        .or(itself)
}

/// The services of Kubernetes that may be called so from a namespace; a host of another kind cannot be told to be of any.
pub(super) fn hosts(name: &str, namespace: &str, domain: &str) -> Vec<NamespacedHost> {
    let name = name.to_ascii_lowercase();
    let of = |namespace: &str, service: &str| {
        let host = format!("{service}.{namespace}.svc.{domain}");
        NamespacedHost::new(namespace, host)
    };
    if name.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    if let Some((namespace, service)) = name.split_once('/') {
        return vec![of(namespace, service)];
    }
    let mut parts = name.split('.');
    let service = parts.next().unwrap_or_default();
    vec![of(parts.next().unwrap_or(namespace), service)]
}

/// `name:port`, `1.2.3.4:80`, `[fd00::1]:80`; an IPv6 address alone has no port.
pub(super) fn split(text: &str) -> (&str, Option<u16>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        return (text, None);
    };
    match port.parse() {
        Ok(port) => (
            name.trim_start_matches('[').trim_end_matches(']'),
            Some(port),
        ),
        Err(_) => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::{hosts, split};

    #[test]
    fn the_service_that_may_be_meant_by_a_short_name_is_asked_for() {
        for (name, expected) in [
            ("web", Some("shop/web.shop.svc.cluster.local")),
            ("web.depot", Some("depot/web.depot.svc.cluster.local")),
            (
                "web.depot.svc.cluster.local",
                Some("depot/web.depot.svc.cluster.local"),
            ),
            ("depot/web", Some("depot/web.depot.svc.cluster.local")),
            ("10.0.0.1", None),
        ] {
            let found = hosts(name, "shop", "cluster.local");
            let found = found.first().map(ToString::to_string);
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_port_is_what_stands_behind_a_name_and_not_the_end_of_an_address() {
        for (text, expected) in [
            ("web.shop:80", ("web.shop", Some(80))),
            ("shop/web", ("shop/web", None)),
            ("10.0.0.1:80", ("10.0.0.1", Some(80))),
            ("fd00::1", ("fd00::1", None)),
            ("[fd00::1]:80", ("fd00::1", Some(80))),
            ("web.shop:http", ("web.shop:http", None)),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }
}
