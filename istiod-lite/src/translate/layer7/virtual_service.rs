//! VirtualService: one route for each of its entries, in the order they are written.
//!
//! 1. entries and matches that are not for the mesh are left out
//! 2. what must match                                        (`matches`)
//! 3. what is done, in the order of a sidecar's filters      (`actions`)
//! 4. where to                                               (`destinations`)
//!
//! What is not known of a destination's service makes its share of the requests fail; an entry that cannot be
//! understood fails all its requests, rather than letting them go where the next entry sends them.

mod actions;
mod clients;
mod destinations;
mod matches;
mod retries;

use api::k8s::istio::virtual_service::{
    HttpMatch, HttpRoute, TcpRoute, TlsRoute, VirtualServiceSpec,
};
use api::waypoint as wire;

use super::duration;
use crate::translate::Labels;

pub use clients::{Having, asked};

/// What is known of the service that has a host, if one has.
pub type Find<'a> = dyn Fn(&str) -> Option<Found> + 'a;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its namespace.
    pub namespace: String,
    /// Its ports.
    pub ports: Vec<u32>,
}

/// Where a VirtualService stands.
pub struct Place<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Of Kubernetes' services.
    pub domain: &'a str,
    /// The services it is for.
    pub parents: &'a [wire::ServiceRef],
    /// Services by host, complete.
    pub find: &'a Find<'a>,
    /// Clients by labels.
    pub having: &'a Having<'a>,
}

/// A route, and which entry it is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Made<T> {
    /// Number of the entry, and of a part of it.
    pub rule: String,
    /// The same, to put them in order.
    pub index: u32,
    /// Without its parents.
    pub route: T,
}

/// What a VirtualService becomes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Of requests.
    pub http: Vec<Made<wire::Route>>,
    /// Of connections: TLS first.
    pub tcp: Vec<Made<wire::TcpRoute>>,
    /// What of it has no effect, or another one than it seems.
    pub remarks: Vec<String>,
}

/// Whether it is for the mesh at all, and not for gateways at its edge alone.
pub fn is_for_the_mesh(spec: &VirtualServiceSpec) -> bool {
    names_mesh(&spec.gateways)
}

fn names_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|it| it == "mesh")
}

/// The hosts of everywhere it sends to.
pub fn destinations(spec: &VirtualServiceSpec) -> impl Iterator<Item = &String> {
    let http = spec.http.iter().flat_map(|entry| {
        let routes = entry.route.iter().map(|it| &it.destination);
        let mirrors = entry.mirrors.iter().map(|it| &it.destination);
        routes.chain(mirrors).chain(&entry.mirror)
    });
    let tls = spec.tls.iter().flat_map(|it| &it.route);
    let tcp = spec.tcp.iter().flat_map(|it| &it.route);
    let streams = tls.chain(tcp).map(|it| &it.destination);
    http.chain(streams).map(|it| &it.host)
}

/// All routes.
pub fn routes(spec: &VirtualServiceSpec, place: &Place<'_>) -> Routes {
    let mut routes = Routes::default();
    for (index, entry) in spec.http.iter().enumerate() {
        let matches: Vec<&HttpMatch> = entry.matches.iter().collect();
        let ours: Vec<&HttpMatch> = matches
            .into_iter()
            .filter(|it| names_mesh(&it.gateways))
            .collect();
        if ours.is_empty() && !entry.matches.is_empty() {
            continue;
        }
        let mut faults = Vec::new();
        for (part, group) in actions::parts(entry, &ours).into_iter().enumerate() {
            // Each part says the same of it.
            faults.clear();
            let rule = match part {
                0 => index.to_string(),
                part => format!("{index}.{part}"),
            };
            routes.http.push(Made {
                rule,
                index: u32::try_from(index).unwrap_or(u32::MAX),
                route: http(entry, &group, place, &mut faults),
            });
        }
        let said = faults.into_iter().map(|it| format!("http[{index}]: {it}"));
        routes.remarks.extend(said);
    }
    for (index, entry) in spec.tls.iter().enumerate() {
        tls(index, entry, place, &mut routes);
    }
    for (index, entry) in spec.tcp.iter().enumerate() {
        tcp(index, entry, place, &mut routes);
    }
    routes
}

fn http(
    entry: &HttpRoute,
    group: &[&HttpMatch],
    place: &Place<'_>,
    faults: &mut Vec<String>,
) -> wire::Route {
    let timeout = duration::optional(entry.timeout.as_deref());
    let timeout = timeout.unwrap_or_else(|why| {
        faults.push(format!("timeout: {why}"));
        0
    });
    let mut filters = actions::filters(entry, group, place, faults);
    if group.iter().any(|it| it.stat_prefix.is_some()) {
        faults.push("match.statPrefix has no effect: metrics have no such label".to_owned());
    }
    if entry.delegate.is_some() {
        let why = "delegate has no effect: write its entries here";
        faults.push(why.to_owned());
        filters.insert(0, actions::fails(why));
    }
    let matches = group.iter().map(|it| {
        let namespace = it.source_namespace.as_deref();
        let clients = clients::with(&it.source_labels, namespace, place);
        let clients = clients.unwrap_or_else(|why| {
            filters.insert(0, actions::fails(&why));
            faults.push(why);
            None
        });
        matches::of(it, clients)
    });
    wire::Route {
        parents: parents(place.parents, 0),
        hostnames: Vec::new(),
        matches: matches.collect(),
        filters,
        backends: destinations::http(&entry.route, place, faults),
        timeouts: Some(wire::Timeouts {
            request: timeout,
            no_request_limit: entry.timeout.is_some() && timeout == 0,
            ..wire::Timeouts::default()
        }),
        retry: retries::of(entry.retries.as_ref(), faults),
        precedence: wire::route::Precedence::Listed.into(),
        ..wire::Route::default()
    }
}

fn parents(services: &[wire::ServiceRef], port: u32) -> Vec<wire::Target> {
    let service = |it: &wire::ServiceRef| wire::ServiceRef { port, ..it.clone() };
    let target = |it| wire::Target {
        to: Some(wire::target::To::Service(service(it))),
    };
    services.iter().map(target).collect()
}

/// The clients that a match of connections is for; what of it a waypoint does not judge, or cannot. Then the match is
/// left out, for with less to match it would take what is not its own.
fn seen(
    subnets: &[String],
    source: Option<&str>,
    labels: &Labels,
    namespace: Option<&str>,
    place: &Place<'_>,
) -> Result<Option<wire::Workloads>, String> {
    let unread = |field: &str| format!("{field} is not read at a waypoint");
    if !subnets.is_empty() {
        return Err(unread("destinationSubnets"));
    }
    if source.is_some() {
        return Err(unread("sourceSubnet"));
    }
    clients::with(labels, namespace, place)
}

fn tls(index: usize, entry: &TlsRoute, place: &Place<'_>, routes: &mut Routes) {
    let mut faults = Vec::new();
    let ours = entry.matches.iter().filter(|it| names_mesh(&it.gateways));
    for (part, it) in ours.enumerate() {
        let namespace = it.source_namespace.as_deref();
        let (subnets, labels) = (&it.destination_subnets, &it.source_labels);
        let clients = match seen(subnets, None, labels, namespace, place) {
            Ok(clients) => clients,
            Err(why) => {
                faults.push(format!("match[{part}].{why}: that match is left out"));
                continue;
            }
        };
        routes.tcp.push(Made {
            rule: format!("tls{index}.{part}"),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            route: wire::TcpRoute {
                parents: parents(place.parents, it.port.unwrap_or_default()),
                sni: it.sni_hosts.clone(),
                backends: destinations::tcp(&entry.route, place, &mut faults),
                source_namespaces: it.source_namespace.clone().into_iter().collect(),
                source_workloads: clients,
            },
        });
    }
    let said = faults.into_iter().map(|it| format!("tls[{index}]: {it}"));
    routes.remarks.extend(said);
}

fn tcp(index: usize, entry: &TcpRoute, place: &Place<'_>, routes: &mut Routes) {
    let mut faults = Vec::new();
    let everything = [Default::default()];
    let matches = match entry.matches.as_slice() {
        [] => &everything,
        matches => matches,
    };
    for (part, it) in matches.iter().enumerate() {
        if !names_mesh(&it.gateways) {
            continue;
        }
        let namespace = it.source_namespace.as_deref();
        let (subnets, labels) = (&it.destination_subnets, &it.source_labels);
        let source = it.source_subnet.as_deref();
        let clients = match seen(subnets, source, labels, namespace, place) {
            Ok(clients) => clients,
            Err(why) => {
                faults.push(format!("match[{part}].{why}: that match is left out"));
                continue;
            }
        };
        routes.tcp.push(Made {
            rule: format!("tcp{index}.{part}"),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            route: wire::TcpRoute {
                parents: parents(place.parents, it.port.unwrap_or_default()),
                sni: Vec::new(),
                backends: destinations::tcp(&entry.route, place, &mut faults),
                source_namespaces: it.source_namespace.clone().into_iter().collect(),
                source_workloads: clients,
            },
        });
    }
    let said = faults.into_iter().map(|it| format!("tcp[{index}]: {it}"));
    routes.remarks.extend(said);
}

#[cfg(test)]
mod tests;
