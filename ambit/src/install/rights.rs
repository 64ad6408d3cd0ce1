//! The rights in the built-in manifest, held against what the programs ask for and against what no part of a mesh may have.

use std::collections::BTreeSet;

use serde_json::Value;

use super::bundle::{self, Object};

/// Every rule with the title of its role.
fn rules() -> Vec<(String, Value)> {
    let objects = bundle::read(bundle::BUILT_IN).unwrap();
    let roles = objects
        .iter()
        .filter(|object| matches!(object.kind(), "Role" | "ClusterRole"));
    let of = |role: &Object| {
        let rules = role.0["rules"].as_array().unwrap().clone();
        let title = role.title();
        rules.into_iter().map(move |rule| (title.clone(), rule))
    };
    roles.flat_map(of).collect()
}

fn words<'a>(rule: &'a Value, field: &str) -> BTreeSet<&'a str> {
    let all = rule[field].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

#[test]
fn no_right_is_to_everything_or_leads_to_more_rights() {
    let rules = rules();
    assert!(rules.len() > 15, "{rules:?}");
    for (role, rule) in &rules {
        for field in ["apiGroups", "resources", "verbs"] {
            assert!(!words(rule, field).contains("*"), "{role}: {rule}");
        }
        for verb in ["escalate", "bind", "impersonate"] {
            assert!(!words(rule, "verbs").contains(verb), "{role}: {rule}");
        }
        for way in [
            "pods/exec",
            "pods/ephemeralcontainers",
            "serviceaccounts/token",
            "roles",
            "clusterroles",
        ] {
            assert!(!words(rule, "resources").contains(way), "{role}: {rule}");
        }
    }
}

#[test]
fn secrets_and_leases_are_read_and_changed_by_name_only() {
    for (role, rule) in rules() {
        let resources = words(&rule, "resources");
        let held = [
            "secrets",
            "leases",
            "configmaps",
            "validatingwebhookconfigurations",
            "mutatingwebhookconfigurations",
            "daemonsets",
        ];
        if !held.iter().any(|kind| resources.contains(kind)) {
            continue;
        }
        // Whoever makes an object has not named it yet when rights are looked at. A ConfigMap that somebody names in a
        // Gateway is read, one at a time; which there are, nobody learns.
        let verbs = words(&rule, "verbs");
        let makes = verbs == BTreeSet::from(["create"]);
        let got = verbs == BTreeSet::from(["get"]);
        let named = resources == BTreeSet::from(["configmaps"]) && got;
        // A right that nobody has before somebody binds it, in the namespaces whose Secrets it is for.
        let unbound = resources == BTreeSet::from(["secrets"]) && got && binders(&role) == 0;
        assert!(unbound || binders(&role) > 0, "nobody has {role}");
        assert!(
            makes || named || unbound || !words(&rule, "resourceNames").is_empty(),
            "{role}: {rule}"
        );
    }
}

/// How many give that role to somebody.
fn binders(role: &str) -> usize {
    let objects = bundle::read(bundle::BUILT_IN).unwrap();
    let bind = |object: &&Object| {
        let given = &object.0["roleRef"];
        let named = given["kind"].as_str().zip(given["name"].as_str());
        named.is_some_and(|(kind, name)| format!("{kind}/{name}") == role)
    };
    objects.iter().filter(bind).count()
}

/// The program's own text is asked, for the names are nowhere else.
#[test]
fn the_control_plane_may_use_each_lease_it_leads_by_and_no_other() {
    let read = |file: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../istiod-lite/src/");
        std::fs::read_to_string(format!("{folder}{file}")).unwrap()
    };
    // By all of them one replica leads, but by the last: by that, replicas say that they are alive.
    let (leading, living) = (read("write.rs"), read("machine/replicas.rs"));
    let named = leading.split("by(\"").skip(1);
    let named = named.chain(living.split("const NAME: &str = \"").skip(1));
    let asked: BTreeSet<&str> = named.filter_map(|rest| rest.split('"').next()).collect();
    assert!(asked.len() >= 7, "{asked:?}");
    let rules = rules();
    let leases = rules
        .iter()
        .filter(|(_, rule)| words(rule, "resources").contains("leases"));
    let allowed: BTreeSet<&str> = leases
        .flat_map(|(_, rule)| words(rule, "resourceNames"))
        .collect();
    assert_eq!(asked, allowed);
}

#[test]
fn what_helm_does_before_a_removal_is_not_installed() {
    assert!(!bundle::BUILT_IN.contains("helm.sh/hook"));
}
