//! Where requests and connections go.

use api::k8s::istio::virtual_service::{Destination, HttpDestination, RouteDestination};
use api::waypoint as wire;
use wire::backend::To;

use super::{Place, actions};
use crate::translate::layer7::host;

/// One destination without a weight gets everything; beside others it gets nothing.
fn weight(written: Option<u32>, of: usize) -> u32 {
    match (written, of) {
        (None | Some(0), 1) => 1,
        (written, _) => written.unwrap_or_default(),
    }
}

pub(super) fn http(
    all: &[HttpDestination],
    place: &Place<'_>,
    faults: &mut Vec<String>,
) -> Vec<wire::Backend> {
    let backend = |it: &HttpDestination| wire::Backend {
        filters: actions::headers(it.headers.as_ref()),
        ..one(&it.destination, weight(it.weight, all.len()), place, faults)
    };
    all.iter().map(backend).collect()
}

pub(super) fn tcp(
    all: &[RouteDestination],
    place: &Place<'_>,
    faults: &mut Vec<String>,
) -> Vec<wire::Backend> {
    let backend =
        |it: &RouteDestination| one(&it.destination, weight(it.weight, all.len()), place, faults);
    all.iter().map(backend).collect()
}

/// A service that is not known makes its share fail. Without a port: the only one there is, else the one that
/// the request came to.
pub(super) fn one(
    it: &Destination,
    weight: u32,
    place: &Place<'_>,
    faults: &mut Vec<String>,
) -> wire::Backend {
    let hostname = host::complete(&it.host, place.namespace, place.domain);
    let asked = it.port.as_ref().map(|port| port.number);
    let to = match (place.find)(&hostname) {
        None => Err(format!("no service has the host {hostname}")),
        Some(found) => match (asked, found.ports.as_slice()) {
            (Some(port), ports) if !ports.contains(&port) => {
                Err(format!("{hostname} has no port {port}"))
            }
            (Some(port), _) => Ok((found.namespace, port)),
            (None, [only]) => Ok((found.namespace, *only)),
            (None, _) => Ok((found.namespace, 0)),
        },
    };
    let to = match to {
        Ok((namespace, port)) => To::Service(wire::ServiceRef {
            namespace,
            hostname,
            port,
        }),
        Err(why) => {
            faults.push(why.clone());
            To::Invalid(why)
        }
    };
    wire::Backend {
        to: Some(to),
        subset: it.subset.clone().unwrap_or_default(),
        weight,
        filters: Vec::new(),
    }
}
