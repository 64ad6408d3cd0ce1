//! What must hold for any policy and any request.

use proptest::prelude::*;

use super::judged::{asking, compiled};
use super::table::{Case, Group, Policy, groups};
use waypoint::authorize::{Policies, Truth, Verdict};

/// All policies and requests of the table, so that they can be mixed.
fn mixed() -> (Vec<Policy>, Vec<Case>) {
    let mut policies = Vec::new();
    let mut cases = Vec::new();
    for group in groups() {
        policies.extend(group.policies);
        cases.extend(
            group
                .cases
                .into_iter()
                .filter(|case| !case.tcp && case.verdict != "400"),
        );
    }
    (policies, cases)
}

fn with_action(policy: &Policy, action: &str) -> Policies {
    compiled(&Group {
        title: String::new(),
        policies: vec![Policy {
            name: policy.name.clone(),
            action: action.to_owned(),
            dry_run: false,
            provider: "authz".to_owned(),
            rules: policy.rules.clone(),
        }],
        cases: Vec::new(),
    })
}

#[test]
fn no_policy_lets_a_request_pass_both_as_a_deny_and_only_as_an_allow() {
    let (policies, cases) = mixed();
    for policy in &policies {
        let (allow, deny) = (with_action(policy, "ALLOW"), with_action(policy, "DENY"));
        for case in &cases {
            let passes = |policies: &Policies| {
                let passes = asking(case, |asked| {
                    matches!(policies.judge(asked), Verdict::Allow { .. })
                });
                passes.unwrap()
            };
            // What an ALLOW lets in, the same rules as a DENY keep out. Not the other way round: what is undecidable
            // is kept out by both.
            assert!(
                !(passes(&allow) && passes(&deny)),
                "{} on line {}",
                policy.name,
                case.line
            );
        }
    }
}

#[test]
fn more_denies_never_let_more_pass() {
    let (policies, cases) = mixed();
    for (number, case) in cases.iter().enumerate() {
        let policy = &policies[number * 7 % policies.len()];
        let alone = with_action(policy, "ALLOW");
        let further = &policies[number * 13 % policies.len()];
        let both = compiled(&Group {
            title: String::new(),
            policies: vec![named(policy, "a", "ALLOW"), named(further, "b", "DENY")],
            cases: Vec::new(),
        });
        let passes = |policies: &Policies| {
            let passes = asking(case, |asked| {
                matches!(policies.judge(asked), Verdict::Allow { .. })
            });
            passes.unwrap()
        };
        assert!(!passes(&both) || passes(&alone), "line {}", case.line);
    }
}

fn named(policy: &Policy, name: &str, action: &str) -> Policy {
    Policy {
        name: name.to_owned(),
        action: action.to_owned(),
        dry_run: false,
        provider: String::new(),
        rules: policy.rules.clone(),
    }
}

fn truth() -> impl Strategy<Value = Truth> {
    prop_oneof![Just(Truth::No), Just(Truth::Undecidable), Just(Truth::Yes)]
}

proptest! {
    #[test]
    fn truths_follow_the_laws_of_logic(a in truth(), b in truth(), c in truth()) {
        prop_assert_eq!(a.contrary().contrary(), a);
        // De Morgan, both ways.
        prop_assert_eq!(a.min(b).contrary(), a.contrary().max(b.contrary()));
        prop_assert_eq!(a.max(b).contrary(), a.contrary().min(b.contrary()));
        prop_assert_eq!(Truth::all([a, b, c]), a.min(b).min(c));
        prop_assert_eq!(Truth::any([a, b, c]), a.max(b).max(c));
        prop_assert_eq!(a.agreed(b), b.agreed(a));
        prop_assert_eq!(a.agreed(a), a);
    }

    /// An escape that decodes to the same path, or parameters that some cut off, never turn a denial into a pass.
    #[test]
    fn no_spelling_of_a_path_passes_a_deny(
        spelling in proptest::collection::vec(0_u8..6, 6),
        extra in prop_oneof![Just(""), Just(";x"), Just("?x"), Just("%3Bx"), Just("/."), Just("/x/.."), Just("//")],
    ) {
        let policies = with_action(&deny_admin(), "DENY");
        let mut path = String::new();
        for (letter, how) in "/admin".chars().zip(spelling) {
            match (letter, how) {
                ('/', 0) => path.push_str("//"),
                ('/', 1) => path.push_str("/./"),
                ('/', 2) => path.push_str("/x/../"),
                ('/', 3) => path.push_str("/%2e%2E/"),
                ('/', 4) => path.push_str("/.%2f"),
                (letter, 1) if letter != '/' => path.push_str(&format!("%{:02x}", letter as u32)),
                (letter, 2) if letter != '/' => path.push_str(&format!("%{:02X}", letter as u32)),
                (letter, _) => path.push(letter),
            }
        }
        path.push_str(extra);
        let mut groups = groups();
        let mut case = groups.remove(0).cases.remove(0);
        case.path = path;
        let passes = asking(&case, |asked| matches!(policies.judge(asked), Verdict::Allow { .. }));
        prop_assert!(passes != Ok(true), "{} passed", case.path);
    }
}

fn deny_admin() -> Policy {
    Policy {
        name: "a".to_owned(),
        action: "DENY".to_owned(),
        dry_run: false,
        provider: String::new(),
        rules: vec![serde_json::json!({"to": [{"operation": {"paths": ["/admin", "/admin/*"]}}]})],
    }
}
