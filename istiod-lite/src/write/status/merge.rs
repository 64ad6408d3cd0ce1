//! Pure: what an object's status becomes when ours is laid over it.
//!
//! Lists are matched by what names their items: conditions by type, our entries of routes and
//! policies by controller and parent, listeners by name. What is not ours stays where and as it
//! is; what is ours and says the same stays too, with its time.

use api::k8s::objects::Kind;
use serde_json::{Map, Value, json};

use super::{Condition, Desired, Parent};

/// The fields of `.status` that change, with their new values; none if all is as it should be.
/// `now`: RFC 3339.
pub(super) fn changes(
    kind: Kind,
    status: &Value,
    desired: &Desired,
    now: &str,
) -> Option<Map<String, Value>> {
    if desired.is_empty() && leaves_to_successor(kind) {
        return None;
    }
    let mut changes = Map::new();
    let mut set = |field: &str, fresh: Value| {
        let before = status.get(field);
        let nothing = fresh.as_array().is_some_and(Vec::is_empty) && before.is_none();
        if !nothing && before != Some(&fresh) {
            changes.insert(field.to_owned(), fresh);
        }
    };
    let generation = generation(kind, desired.generation);
    let list = |field: &str| list(status, field);
    let own = desired.conditions.iter();
    let own = own.map(|it| written(it, generation.as_ref())).collect();
    let fresh = conditions(list("conditions"), own, |r#type| is_ours(kind, r#type), now);
    set("conditions", Value::Array(fresh));
    let (field, reference) = lists(kind);
    let wanted = &desired.parents;
    let fresh = parents(list(field), reference, wanted, generation.as_ref(), now);
    set(field, Value::Array(fresh));
    for (field, wanted) in &desired.fields {
        let before = status.get(field).unwrap_or(&Value::Null);
        set(
            field,
            whole(before, wanted.clone(), generation.as_ref(), now),
        );
    }
    (!changes.is_empty()).then_some(changes)
}

/// The conditions that only we write onto objects of that kind, now or in an earlier version.
fn is_ours(kind: Kind, r#type: &str) -> bool {
    let types: &[&str] = match kind {
        Kind::AuthorizationPolicy => &["ZtunnelAccepted", "WaypointAccepted"],
        Kind::RequestAuthentication
        | Kind::Telemetry
        | Kind::RateLimitPolicy
        | Kind::QuotaPolicy
        | Kind::ExternalProcessor => &["WaypointAccepted"],
        Kind::DestinationRule | Kind::VirtualService => &["ambit.io/Accepted"],
        Kind::PeerAuthentication => &["ambit.io/Accepted"],
        Kind::Service => &["istio.io/WaypointBound", "ambit.io/WaypointOnly"],
        Kind::ServiceEntry | Kind::WorkloadEntry => &[
            "istio.io/WaypointBound",
            "ambit.io/WaypointOnly",
            "istio.io/WaypointMissing",
            "istio.io/VisibilityApplied",
            "ambit.io/Accepted",
        ],
        Kind::Gateway => &["Accepted", "Programmed", "ResolvedRefs"],
        Kind::GatewayClass => &["Accepted"],
        _ => &[],
    };
    r#type == crate::status::PROXY_ACCEPTED || types.contains(&r#type)
}

/// A Gateway that is no longer of our class is another controller's, and so are the conditions
/// on it, which have the same names.
fn leaves_to_successor(kind: Kind) -> bool {
    matches!(kind, Kind::Gateway | Kind::GatewayClass)
}

/// As Istio writes it: a text on its own kinds (they are protobuf, and its 64 bit numbers are texts
/// in JSON), a number on those of Gateway API.
fn generation(kind: Kind, generation: Option<i64>) -> Option<Value> {
    let generation = generation?;
    Some(match kind {
        Kind::Gateway
        | Kind::GatewayClass
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TcpRoute
        | Kind::TlsRoute
        | Kind::BackendTlsPolicy
        | Kind::BackendTrafficPolicy
        | Kind::RateLimitPolicy
        | Kind::QuotaPolicy
        | Kind::ExternalProcessor => generation.into(),
        _ => generation.to_string().into(),
    })
}

fn list<'a>(status: &'a Value, field: &str) -> &'a [Value] {
    let list = status.get(field).and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

fn written(condition: &Condition, generation: Option<&Value>) -> Value {
    let mut value = json!({
        "type": condition.r#type,
        "status": if condition.status { "True" } else { "False" },
        "reason": condition.reason,
        "message": condition.message,
    });
    observed(&mut value, generation);
    value
}

fn observed(condition: &mut Value, generation: Option<&Value>) {
    if let (Some(generation), Some(condition)) = (generation, condition.as_object_mut()) {
        condition.insert("observedGeneration".to_owned(), generation.clone());
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// `wanted` have no time yet. Of those that are ours and not wanted, none stays.
fn conditions(
    before: &[Value],
    mut wanted: Vec<Value>,
    is_ours: impl Fn(&str) -> bool,
    now: &str,
) -> Vec<Value> {
    let mut fresh = Vec::with_capacity(before.len() + wanted.len());
    for old in before {
        let r#type = text(old, "type");
        match wanted.iter().position(|it| text(it, "type") == r#type) {
            Some(at) => fresh.push(timed(Some(old), wanted.remove(at), now)),
            None if is_ours(r#type) => {}
            None => fresh.push(old.clone()),
        }
    }
    fresh.extend(wanted.into_iter().map(|it| timed(None, it, now)));
    fresh
}

/// With the time at which its status last changed.
fn timed(old: Option<&Value>, mut condition: Value, now: &str) -> Value {
    let same = old.filter(|old| text(old, "status") == text(&condition, "status"));
    let time = same.and_then(|old| old.get(TIME));
    let time = time.cloned().unwrap_or_else(|| now.into());
    if let Some(condition) = condition.as_object_mut() {
        condition.insert(TIME.to_owned(), time);
    }
    condition
}

/// Where a kind says of each of those it is for what became of it there: the list, and in it whom it is for.
fn lists(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::BackendTlsPolicy | Kind::BackendTrafficPolicy => ("ancestors", "ancestorRef"),
        _ => ("parents", "parentRef"),
    }
}

/// Ours are those of a controller that we are, whoever wrote them.
fn parents(
    before: &[Value],
    reference: &str,
    wanted: &[Parent],
    generation: Option<&Value>,
    now: &str,
) -> Vec<Value> {
    let mut wanted: Vec<&Parent> = wanted.iter().collect();
    let entry = |old: Option<&Value>, parent: &Parent| {
        let own = parent.conditions.iter();
        let own = own.map(|it| written(it, generation)).collect();
        let old = old.map(|old| list(old, "conditions")).unwrap_or_default();
        json!({
            "controllerName": parent.controller,
            reference: parent.reference,
            "conditions": conditions(old, own, |_| true, now),
        })
    };
    let mut fresh = Vec::with_capacity(before.len() + wanted.len());
    for old in before {
        let controller = text(old, "controllerName");
        let same =
            |it: &&Parent| it.controller == controller && old.get(reference) == Some(&it.reference);
        match wanted.iter().position(same) {
            Some(at) => fresh.push(entry(Some(old), wanted.remove(at))),
            None if CONTROLLERS.contains(&controller) => {}
            None => fresh.push(old.clone()),
        }
    }
    fresh.extend(wanted.into_iter().map(|parent| entry(None, parent)));
    fresh
}

/// A field that is wholly ours, with times and generations in the conditions inside.
fn whole(before: &Value, mut wanted: Value, generation: Option<&Value>, now: &str) -> Value {
    let Some(items) = wanted.as_array_mut() else {
        return wanted;
    };
    for item in items {
        let name = item.get("name").cloned();
        let Some(own) = item.get_mut("conditions") else {
            continue;
        };
        let old = before.as_array().into_iter().flatten();
        let old = old
            .into_iter()
            .find(|old| name.is_some() && old.get("name") == name.as_ref());
        let mut wanted = own.as_array().cloned().unwrap_or_default();
        wanted.iter_mut().for_each(|it| observed(it, generation));
        let old = old.map(|old| list(old, "conditions")).unwrap_or_default();
        *own = conditions(old, wanted, |_| true, now).into();
    }
    wanted
}

const TIME: &str = "lastTransitionTime";
/// Those we act as; Istio's names, so that its classes are ours.
const CONTROLLERS: [&str; 3] = [
    "istio.io/gateway-controller",
    "istio.io/mesh-controller",
    "istio.io/unmanaged-gateway",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: &str = "2026-11-21T10:00:00Z";
    const THEN: &str = "2026-01-01T00:00:00Z";

    fn bound(status: bool, message: &str) -> Condition {
        Condition {
            r#type: "istio.io/WaypointBound",
            status,
            reason: if status {
                "WaypointAccepted"
            } else {
                "WaypointIsNotReady"
            }
            .into(),
            message: message.into(),
        }
    }

    fn desired(conditions: &[Condition]) -> Desired {
        Desired {
            conditions: conditions.to_vec(),
            ..Desired::default()
        }
    }

    /// Lays the changes over the status, as the API server does.
    fn after(kind: Kind, status: &Value, wanted: &Desired) -> Value {
        let mut status = status.clone();
        for (field, value) in changes(kind, &status, wanted, NOW).unwrap_or_default() {
            status[field.as_str()] = value;
        }
        status
    }

    #[test]
    fn a_condition_is_added_beside_those_of_others_which_stay_as_they_are() {
        let others = json!({"loadBalancer": {"ingress": []}, "conditions": [
            {"type": "example.com/Checked", "status": "True", "lastTransitionTime": THEN, "extra": 1},
        ]});
        let wanted = desired(&[bound(true, "m")]);
        assert_eq!(
            after(Kind::Service, &others, &wanted),
            json!({
                "loadBalancer": {"ingress": []},
                "conditions": [
                    {"type": "example.com/Checked", "status": "True", "lastTransitionTime": THEN, "extra": 1},
                    {"type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted", "message": "m", "lastTransitionTime": NOW},
                ],
            })
        );
    }

    #[test]
    fn the_time_moves_with_the_status_and_not_with_the_message() {
        let before = json!({"conditions": [
            {"type": "istio.io/WaypointBound", "status": "True", "reason": "r", "message": "old", "lastTransitionTime": THEN},
        ]});
        let time = |status| {
            let after = after(Kind::Service, &before, &desired(&[bound(status, "new")]));
            assert_eq!(after["conditions"][0]["message"], "new");
            after["conditions"][0]["lastTransitionTime"].clone()
        };
        assert_eq!((time(true), time(false)), (THEN.into(), NOW.into()));
    }

    #[test]
    fn what_we_no_longer_say_is_taken_out_and_nothing_else() {
        let before = json!({"conditions": [
            {"type": "istio.io/WaypointBound", "status": "True"},
            {"type": "Accepted", "status": "True"},
        ]});
        let left = json!({"conditions": [{"type": "Accepted", "status": "True"}]});
        assert_eq!(after(Kind::Service, &before, &Desired::default()), left);
        assert_eq!(
            changes(Kind::Service, &left, &Desired::default(), NOW),
            None
        );
        assert_eq!(
            changes(Kind::Service, &Value::Null, &Desired::default(), NOW),
            None
        );
    }

    #[test]
    fn a_gateway_that_is_another_controllers_now_is_left_alone() {
        let theirs =
            json!({"conditions": [{"type": "Accepted", "status": "True", "reason": "Theirs"}]});
        for kind in [Kind::Gateway, Kind::GatewayClass] {
            assert_eq!(changes(kind, &theirs, &Desired::default(), NOW), None);
        }
    }

    #[test]
    fn the_generation_is_a_text_on_istios_kinds_and_a_number_on_those_of_gateway_api() {
        let cases = [
            (Kind::AuthorizationPolicy, json!("7")),
            (Kind::ServiceEntry, json!("7")),
            (Kind::Gateway, json!(7)),
            (Kind::GatewayClass, json!(7)),
            (Kind::HttpRoute, json!(7)),
        ];
        for (kind, expected) in cases {
            let wanted = Desired {
                generation: Some(7),
                ..desired(&[bound(true, "")])
            };
            let after = after(kind, &Value::Null, &wanted);
            assert_eq!(
                after["conditions"][0]["observedGeneration"], expected,
                "{kind}"
            );
        }
    }

    #[test]
    fn listeners_keep_the_times_of_their_conditions_by_name() {
        let listener = |name: &str, time: Option<&str>| {
            let mut condition = json!({"type": "Accepted", "status": "True"});
            if let Some(time) = time {
                condition[TIME] = time.into();
                condition["observedGeneration"] = 3.into();
            }
            json!({"name": name, "attachedRoutes": 0, "conditions": [condition]})
        };
        let before = json!({"listeners": [listener("mesh", Some(THEN))]});
        let mut wanted = Desired {
            generation: Some(3),
            ..Desired::default()
        };
        wanted.fields.insert(
            "listeners".into(),
            json!([listener("other", None), listener("mesh", None)]),
        );
        let after = after(Kind::Gateway, &before, &wanted);
        assert_eq!(
            after["listeners"],
            json!([listener("other", Some(NOW)), listener("mesh", Some(THEN))])
        );
    }

    #[test]
    fn of_a_routes_parents_only_those_of_our_controllers_are_ours() {
        let parent = |name: &str| Parent {
            reference: json!({"name": name}),
            controller: "istio.io/gateway-controller",
            conditions: vec![bound(true, name)],
        };
        let before = json!({"parents": [
            {"controllerName": "example.com/other", "parentRef": {"name": "a"}, "conditions": []},
            {"controllerName": "istio.io/gateway-controller", "parentRef": {"name": "gone"}, "conditions": []},
        ]});
        let wanted = Desired {
            parents: vec![parent("a")],
            ..Desired::default()
        };
        let after = after(Kind::Service, &before, &wanted);
        let names: Vec<_> = after["parents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (text(it, "controllerName"), text(&it["parentRef"], "name")))
            .collect();
        assert_eq!(
            names,
            [
                ("example.com/other", "a"),
                ("istio.io/gateway-controller", "a")
            ]
        );
    }

    fn statuses() -> impl Strategy<Value = Value> {
        let condition = ("(Accepted|Programmed|example.com/X|istio.io/WaypointBound|ZtunnelAccepted)", any::<bool>(), "[ab]")
            .prop_map(|(r#type, status, reason)| {
                let status = if status { "True" } else { "False" };
                json!({"type": r#type, "status": status, "reason": reason, "lastTransitionTime": THEN})
            });
        proptest::collection::vec(condition, 0..5)
            .prop_map(|list| json!({"conditions": list, "other": 1}))
    }

    proptest! {
        /// Whatever stands there: written once, it is never written again, and others' are untouched.
        #[test]
        fn what_was_written_needs_no_second_write(
            status in statuses(),
            say in proptest::option::of((any::<bool>(), "[ab]")),
            generation in proptest::option::of(1_i64..3),
            kind in prop_oneof![Just(Kind::Service), Just(Kind::ServiceEntry), Just(Kind::AuthorizationPolicy)],
        ) {
            let own: Vec<_> = say.iter().map(|(status, message)| bound(*status, message)).collect();
            let wanted = Desired { generation, ..desired(&own) };
            let written = after(kind, &status, &wanted);
            prop_assert_eq!(changes(kind, &written, &wanted, "later"), None);
            let others = |status: &Value| -> Vec<Value> {
                let all = list(status, "conditions").iter();
                let is_other = |it: &&Value| !is_ours(kind, text(it, "type")) && text(it, "type") != "istio.io/WaypointBound";
                all.filter(is_other).cloned().collect()
            };
            prop_assert_eq!(others(&written), others(&status));
        }
    }
}
