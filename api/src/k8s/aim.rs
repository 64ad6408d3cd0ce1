//! Whom a policy that is refused is certainly about: what must be closed until it is mended.
//!
//! Enters: an AuthorizationPolicy, RequestAuthentication, PeerAuthentication, RateLimitPolicy or QuotaPolicy that [`super::json`] or [`super::yaml`] refused, as a value. Leaves: its [`Aim`].
//!
//! 1. is it a rehearsal? Then nobody would be refused because of it, were it good
//! 2. is it attached to something (`targetRefs`, and no selector)? Then it is about that, and waypoints enforce it;
//!    else, is it of an action that node proxies do not know? Then they would refuse nobody either
//! 3. can its selector be read, all else left out? Then it is about the workloads it names
//! 4. else about all of its namespace
//!
//! Of a PeerAuthentication the first two are not asked: it knows neither. Limits are about what they are attached to, if
//! they are not to let pass what cannot be counted.

use std::collections::BTreeMap;

use serde::Deserialize as _;
use serde_json::{Value, json};

use super::istio::TargetRef;
use super::json::read;
use super::labels::DRY_RUN;
use super::objects::{Kind, Object};

/// Whom a refused policy is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Aim {
    /// The workloads with these labels, of its namespace; in the root namespace, of all.
    Selected(BTreeMap<String, String>),
    /// Every workload of its namespace; in the root namespace, of all.
    All,
    /// What it is attached to; waypoints enforce it there.
    Attached(Vec<TargetRef>),
    /// Something that it is attached to and that cannot be read: in its namespace, or in the root namespace anywhere.
    Somewhere,
    /// Nobody: were it good, nothing would be refused because of it.
    Nobody,
}

/// Whom the policy `value` is about; none for other kinds.
pub fn aim(kind: Kind, value: &Value) -> Option<Aim> {
    let spec = &value["spec"];
    let selector = &spec["selector"];
    match kind {
        Kind::AuthorizationPolicy if is_rehearsal(value) => Some(Aim::Nobody),
        Kind::AuthorizationPolicy if is_attached(spec) => Some(attached(spec)),
        Kind::RequestAuthentication if is_attached(spec) => Some(attached(spec)),
        Kind::RateLimitPolicy | Kind::QuotaPolicy if lets_pass(spec) => Some(Aim::Nobody),
        Kind::RateLimitPolicy | Kind::QuotaPolicy if is_attached(spec) => Some(attached(spec)),
        Kind::ExternalProcessor if spec["onFailure"] == "Allow" => Some(Aim::Nobody),
        Kind::ExternalProcessor if is_attached(spec) => Some(attached(spec)),
        Kind::AuthorizationPolicy if spec["action"] == "CUSTOM" => Some(Aim::Nobody),
        Kind::AuthorizationPolicy | Kind::PeerAuthentication if selector.is_null() => {
            Some(Aim::All)
        }
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
            Some(selected(selector).map_or(Aim::All, Aim::Selected))
        }
        _ => None,
    }
}

/// Whether nothing would be refused because of it, were it good.
fn is_rehearsal(policy: &Value) -> bool {
    let dry_run = policy["metadata"]["annotations"][DRY_RUN].as_str();
    dry_run.is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || policy["spec"]["action"] == "AUDIT"
}

fn is_attached(spec: &Value) -> bool {
    let attached = is_said(&spec["targetRefs"]) || is_said(&spec["targetRef"]);
    attached && spec["selector"].is_null()
}

/// Whether requests that cannot be counted shall pass.
fn lets_pass(spec: &Value) -> bool {
    spec["global"]["onFailure"] == "Allow"
}

fn attached(spec: &Value) -> Aim {
    let several = match &spec["targetRefs"] {
        Value::Null => &[][..],
        Value::Array(several) => several,
        _ => return Aim::Somewhere,
    };
    let one = Some(&spec["targetRef"]).filter(|it| !it.is_null());
    let read = several.iter().chain(one).map(|it| {
        let target = TargetRef::deserialize(it).ok();
        target.filter(|it| !it.kind.is_empty() && !it.name.is_empty())
    });
    let read: Option<Vec<TargetRef>> = read.collect();
    read.map_or(Aim::Somewhere, Aim::Attached)
}

fn is_said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

/// The labels of a selector in which nothing is wrong.
fn selected(selector: &Value) -> Option<BTreeMap<String, String>> {
    let policy = json!({
        "metadata": { "name": "any", "namespace": "any" }, "spec": { "selector": selector },
    });
    match read(Kind::AuthorizationPolicy, &policy) {
        Ok(Object::AuthorizationPolicy(it)) => Some(it.spec.selector.clone()?.match_labels),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_policy_is_about_whom_it_certainly_names() {
        let web = || Aim::Selected([("app".to_owned(), "web".to_owned())].into());
        let selector = json!({"matchLabels": {"app": "web"}});
        let cases = [
            (json!({"selector": selector, "rules": 7}), web()),
            (json!({"selector": selector, "action": "PERHAPS"}), web()),
            (json!({"selector": selector, "targetRefs": [{}]}), web()),
            (json!({"selector": {}, "x": 1}), Aim::Selected([].into())),
            (
                json!({"selector": {"matchLabels": {"app": "w*"}}}),
                Aim::All,
            ),
            (json!({"selector": {"matchLabels": {"app": 1}}}), Aim::All),
            (json!({"selector": {"matchLabel": {"a": "b"}}}), Aim::All),
            (json!({"selectors": {"matchLabels": {"a": "b"}}}), Aim::All),
            (json!({"rules": [{"from": 1}]}), Aim::All),
            (json!({"targetRefs": [], "rules": 1}), Aim::All),
            (Value::Null, Aim::All),
            (
                json!({"targetRefs": [{"kind": "Service"}, {"kind": "Service", "name": "web"}]}),
                Aim::Somewhere,
            ),
            (json!({"targetRefs": "web"}), Aim::Somewhere),
            (
                json!({"targetRefs": [{"kind": "Service", "name": "web"}], "rules": 1}),
                Aim::Attached(vec![TargetRef {
                    kind: "Service".to_owned(),
                    name: "web".to_owned(),
                    ..TargetRef::default()
                }]),
            ),
            (
                json!({"targetRef": {"kind": 1}, "action": "CUSTOM"}),
                Aim::Somewhere,
            ),
            (
                json!({"targetRef": {"kind": "Service", "name": "web"}, "action": "AUDIT"}),
                Aim::Nobody,
            ),
            (json!({"action": "AUDIT", "rules": 1}), Aim::Nobody),
            (json!({"action": "CUSTOM"}), Aim::Nobody),
        ];
        for (spec, expected) in cases {
            let value = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
            assert_eq!(
                aim(Kind::AuthorizationPolicy, &value),
                Some(expected),
                "{spec}"
            );
        }
    }

    #[test]
    fn a_rehearsal_that_is_refused_refuses_nobody() {
        let value = json!({"metadata": {"name": "p", "annotations": {"istio.io/dry-run": "true"}},
            "spec": {"rules": 1}});
        assert_eq!(aim(Kind::AuthorizationPolicy, &value), Some(Aim::Nobody));
        assert_eq!(aim(Kind::PeerAuthentication, &value), Some(Aim::All));
        assert_eq!(aim(Kind::ServiceEntry, &value), None);
        assert_eq!(aim(Kind::RequestAuthentication, &value), None);
        let value = json!({"spec": {"targetRef": {"kind": "Service", "name": "web"}}});
        assert!(
            matches!(aim(Kind::RequestAuthentication, &value), Some(Aim::Attached(to)) if to.len() == 1)
        );
    }

    #[test]
    fn a_refused_limit_is_about_what_it_is_attached_to_unless_it_lets_pass() {
        let aimed = |spec: Value| aim(Kind::RateLimitPolicy, &json!({ "spec": spec }));
        let web = json!([{"kind": "Service", "name": "web"}]);
        assert!(matches!(
            aimed(json!({"targetRefs": web, "limits": 1})),
            Some(Aim::Attached(_))
        ));
        assert_eq!(aimed(json!({"targetRefs": [7]})), Some(Aim::Somewhere));
        let open = json!({"targetRefs": web, "limits": 1, "global": {"onFailure": "Allow"}});
        assert_eq!(aimed(open), Some(Aim::Nobody));
        assert_eq!(
            aimed(json!({"limits": 1})),
            None,
            "it is attached to nothing"
        );
    }
}
