//! What a route is told of each of its parents: whether it is taken, whether all it refers to can be
//! had, and which waypoint carries it.

use std::collections::BTreeSet;

use api::k8s::labels::USE_WAYPOINT;
use api::k8s::objects::{Kind, ObjectKey};
use api::k8s::routes::ParentRef;
use serde_json::{Map, Value};

use super::waypoint::shown;
use super::{Condition, Desired, Parent};
use crate::translate::route::{Route, Translated};

/// What stands at one parent.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    reference: ParentRef,
    accepted: Finding,
    waypoint: Option<Finding>,
}

/// Good, with words; or a reason why not, with words.
type Finding = Result<String, (&'static str, String)>;

impl Judged {
    /// Waypoints carry it.
    pub fn attached(reference: &ParentRef, gateways: &BTreeSet<ObjectKey>) -> Self {
        let names: Vec<String> = gateways.iter().map(shown).collect();
        let waypoint = Ok(format!("All waypoints resolved: {}", names.join(" and ")));
        Self::accepted(reference, waypoint)
    }

    /// The parent names no waypoint.
    pub fn names_no_waypoint(reference: &ParentRef, parent: &ObjectKey) -> Self {
        let text = format!(
            "{USE_WAYPOINT} label missing from parent and parent namespace; in ambient mode, route will not be respected: label {parent}, or its namespace"
        );
        Self::accepted(reference, Err(("MissingUseWaypointLabel", text)))
    }

    /// The waypoint that the parent names is missing, does not let it in, or is not for it.
    pub fn not_fronted(reference: &ParentRef, parent: &ObjectKey, gateway: &ObjectKey) -> Self {
        let text = format!(
            "waypoint {} that {parent} names does not carry it: see condition istio.io/WaypointBound there",
            shown(gateway)
        );
        Self::accepted(reference, Err((NO_PARENT, text)))
    }

    /// There is no such parent.
    pub fn missing(reference: &ParentRef, parent: &ObjectKey) -> Self {
        let kind = match parent.kind {
            Kind::Service => "service".to_owned(),
            other => other.to_string(),
        };
        let text = format!("parent {kind}: \"{}\" not found", parent.name);
        Self {
            waypoint: Some(Err((NO_PARENT, "parent not found".to_owned()))),
            ..Self::refused(reference, NO_PARENT, text)
        }
    }

    /// The parent has no such port.
    pub fn no_port(reference: &ParentRef, parent: &ObjectKey, port: &str) -> Self {
        Self::refused(reference, NO_PARENT, format!("{parent} has no port {port}"))
    }

    /// A waypoint is no parent.
    pub fn takes_no_routes(reference: &ParentRef, gateway: &ObjectKey) -> Self {
        let text = format!(
            "waypoint {} takes no routes itself: attach this one to the Service it is for",
            shown(gateway)
        );
        Self {
            reference: reference.clone(),
            accepted: Err(("NotAllowedByListeners", text)),
            waypoint: None,
        }
    }

    fn accepted(reference: &ParentRef, waypoint: Finding) -> Self {
        Self {
            reference: reference.clone(),
            accepted: Ok("Route was valid".to_owned()),
            waypoint: Some(waypoint),
        }
    }

    fn refused(reference: &ParentRef, reason: &'static str, text: String) -> Self {
        Self {
            reference: reference.clone(),
            accepted: Err((reason, text.clone())),
            waypoint: Some(Err((reason, text))),
        }
    }
}

const NO_PARENT: &str = "NoMatchingParent";

/// The status of a route. `made`: what is in force of it, if anything is.
pub fn route(route: &Route, made: Option<&Translated>, parents: &[Judged]) -> Desired {
    let references = references(made);
    let parents = parents.iter().map(|judged| {
        let accepted = match &judged.accepted {
            Ok(_) => own(route, made).map_or_else(|| judged.accepted.clone(), Err),
            Err(_) => judged.accepted.clone(),
        };
        let mut conditions = vec![
            condition("Accepted", "Accepted", &accepted),
            condition("ResolvedRefs", "ResolvedRefs", &references),
        ];
        let waypoint = judged.waypoint.as_ref();
        conditions
            .extend(waypoint.map(|it| condition("ResolvedWaypoints", "ResolvedWaypoints", it)));
        if judged.accepted.is_ok() {
            conditions.extend(hedged(route));
        }
        Parent {
            reference: serde_json::to_value(&judged.reference).unwrap_or(Value::Null),
            controller: CONTROLLER,
            conditions,
        }
    });
    Desired {
        generation: route.generation,
        parents: parents.collect(),
        conditions: Vec::new(),
        fields: Map::new(),
    }
}

/// As Istio has it, also for parents that are no Gateways.
const CONTROLLER: &str = "istio.io/gateway-controller";

/// What is wrong with a route wherever it is attached.
fn own(route: &Route, made: Option<&Translated>) -> Option<(&'static str, String)> {
    if !route.faults.is_empty() {
        let instead = if route.good.is_some() {
            "the last version without this fault stays in force"
        } else {
            "nothing of it is in force"
        };
        let text = format!("{}; {instead}", route.faults.join("; "));
        return Some(("UnsupportedValue", text));
    }
    let unsupported = &made?.unsupported;
    let (reason, _) = unsupported.first()?;
    let texts: Vec<&str> = unsupported.iter().map(|(_, text)| text.as_str()).collect();
    Some((
        reason,
        format!("{}; such requests are answered with 500", texts.join("; ")),
    ))
}

/// What became of the annotations about requests made twice; the rest of the route is in force either way.
fn hedged(route: &Route) -> Option<Condition> {
    let found = match route.hedge.as_ref()? {
        Ok(hedge) => {
            let what = match hedge.calls {
                true => "call, once all that it sends has come and is no more than can be kept,",
                false => "request without a body, of a method that may be repeated,",
            };
            Ok(format!(
                "a {what} is made once more for every {} ms without an answer, at most {} times, as far as there is room for retries",
                hedge.after, hedge.at_most
            ))
        }
        Err(why) => Err((
            "Invalid",
            format!("{why}; no request is made twice, and the rest of the route is in force"),
        )),
    };
    Some(condition(HEDGED, "Accepted", &found))
}

/// Condition of a route: whether its annotations about hedging are followed.
const HEDGED: &str = "ambit.io/Hedged";

fn references(made: Option<&Translated>) -> Finding {
    let unresolved = made.map(|it| &it.unresolved);
    let worst = [
        "RefNotPermitted",
        "InvalidKind",
        "BackendNotFound",
        "InvalidDestination",
    ];
    let has = |reason: &str| unresolved.is_some_and(|all| all.iter().any(|it| it.reason == reason));
    match worst.into_iter().find(|reason| has(reason)) {
        None => Ok("All references resolved".to_owned()),
        Some(reason) => {
            let texts = unresolved.into_iter().flatten().map(|it| it.text.as_str());
            let texts: Vec<&str> = texts.collect();
            Err((
                reason,
                format!(
                    "{}; its share of requests is answered with 500",
                    texts.join("; ")
                ),
            ))
        }
    }
}

fn condition(r#type: &'static str, good: &str, finding: &Finding) -> Condition {
    let (reason, message) = match finding {
        Ok(text) => (good, text),
        Err((reason, text)) => (*reason, text),
    };
    Condition {
        r#type,
        status: finding.is_ok(),
        reason: reason.to_owned(),
        message: message.clone(),
    }
}
