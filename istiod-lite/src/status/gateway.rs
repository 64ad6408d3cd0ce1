//! Whether a Gateway can be reached, and what is wrong with its listeners.
//!
//! Only of classes that are ours: who programs another one says so itself.

use serde_json::{Map, Value, json};

use super::{Condition, Desired};
use crate::translate::gateway::{Class, Controller, Gateway, Place};
use crate::translate::listener::{HBONE, Listener};
use api::k8s::labels::GATEWAY_NAME;

/// Of a Gateway; `places`: where it is. None if it is not ours.
pub fn gateway(gateway: &Gateway, controller: Controller, places: &[Place]) -> Option<Desired> {
    let accepted = condition("Accepted", true, "Accepted", "Resource accepted");
    let mut fields = Map::new();
    if !places.is_empty() {
        fields.insert("addresses".to_owned(), places.iter().map(place).collect());
    }
    let conditions = match controller {
        Controller::Other => return None,
        Controller::Unmanaged => vec![
            accepted,
            condition(
                "Programmed",
                true,
                "Programmed",
                "This Gateway stands for another network's: there is nothing to program here",
            ),
        ],
        Controller::Mesh | Controller::EastWest => {
            let listeners = gateway.listeners.iter();
            let listeners = listeners
                .map(|it| listener(it, !places.is_empty()))
                .collect();
            fields.insert("listeners".to_owned(), listeners);
            vec![
                accepted,
                programmed(gateway, controller, places),
                condition(
                    "ResolvedRefs",
                    true,
                    "ResolvedRefs",
                    "All references resolved",
                ),
            ]
        }
    };
    Some(Desired {
        generation: gateway.generation,
        conditions,
        fields,
        ..Desired::default()
    })
}

/// What of Gateway API waypoints can do, by the names of its conformance suite, in order: what that was run with.
pub const FEATURES: [&str; 17] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// Of a GatewayClass. None if it is not ours.
pub fn class(name: &str, class: &Class) -> Option<Desired> {
    if Controller::of(name, Some(class)) == Controller::Other {
        return None;
    }
    Some(Desired {
        generation: class.generation,
        conditions: vec![condition(
            "Accepted",
            true,
            "Accepted",
            "Handled by Ambit's control plane",
        )],
        ..Desired::default()
    })
}

fn programmed(gateway: &Gateway, controller: Controller, places: &[Place]) -> Condition {
    let what = match controller {
        Controller::EastWest => "east-west gateway",
        _ => "waypoint",
    };
    let host = places.iter().find_map(|place| match place {
        Place::Host(host) => Some(host.as_str()),
        Place::Ip(_) => None,
    });
    let (namespace, name, service) = (&gateway.namespace, &gateway.name, &gateway.service);
    match (host, places.is_empty()) {
        (_, true) => condition(
            "Programmed",
            false,
            "AddressNotAssigned",
            &format!(
                "nobody answers for {what} {namespace}/{name} yet: it counts as ready once there are a Service {namespace}/{service} and a pod with label {GATEWAY_NAME}={name} and an address"
            ),
        ),
        (Some(host), false) => condition(
            "Programmed",
            true,
            "Programmed",
            &format!(
                "Resource programmed, assigned to service(s) {host}:{}",
                HBONE.0
            ),
        ),
        (None, false) => condition(
            "Programmed",
            true,
            "Programmed",
            "Resource programmed, assigned to the addresses of its status",
        ),
    }
}

fn condition(r#type: &'static str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        r#type,
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn place(place: &Place) -> Value {
    match place {
        Place::Ip(ip) => json!({"type": "IPAddress", "value": ip.to_string()}),
        Place::Host(host) => json!({"type": "Hostname", "value": host}),
    }
}

/// A waypoint listens on one port with one protocol, and so does an east-west gateway; whatever else is asked for is not
/// heard.
fn listener(listener: &Listener, ready: bool) -> Value {
    let good = listener.port == i32::from(HBONE.0) && listener.protocol == HBONE.1;
    let accepted = if good {
        ("Accepted", true, "Accepted", "No errors found")
    } else {
        (
            "Accepted",
            false,
            "UnsupportedProtocol",
            "Expected a single listener on port 15008 with protocol \"HBONE\"",
        )
    };
    let programmed = match (good, ready) {
        (true, true) => ("Programmed", true, "Programmed", "No errors found"),
        (true, false) => (
            "Programmed",
            false,
            "Pending",
            "Nobody listens yet: see the Gateway's own condition",
        ),
        (false, _) => (
            "Programmed",
            false,
            "Invalid",
            "A listener that is not accepted is not programmed",
        ),
    };
    let conditions = [
        accepted,
        ("Conflicted", false, "NoConflicts", "No errors found"),
        programmed,
        ("ResolvedRefs", true, "ResolvedRefs", "No errors found"),
    ];
    let conditions: Vec<Value> = conditions
        .into_iter()
        .map(|(r#type, status, reason, message)| {
            let status = if status { "True" } else { "False" };
            json!({"type": r#type, "status": status, "reason": reason, "message": message})
        })
        .collect();
    json!({
        "name": listener.name,
        "attachedRoutes": 0,
        "supportedKinds": kinds(&listener.protocol),
        "conditions": conditions,
    })
}

/// The routes that a protocol can carry.
fn kinds(protocol: &str) -> Vec<Value> {
    let kinds: &[&str] = match protocol {
        "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
        "TLS" => &["TLSRoute"],
        "TCP" => &["TCPRoute"],
        _ => &[],
    };
    let kind = |kind: &&str| json!({"group": "gateway.networking.k8s.io", "kind": kind});
    kinds.iter().map(kind).collect()
}
