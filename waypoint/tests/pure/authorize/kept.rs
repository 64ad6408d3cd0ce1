//! Policies that cannot be read, are for some ports, or are for the log.

use api::waypoint as wire;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use wire::authorization::Action;
use wire::target::To;

use super::judged::{asking, client};
use super::table::{Case, groups};
use waypoint::authorize::{Connection, Context, Denied, Policies, Truth, Verdict};
use waypoint::process::Metadata;

fn any_case() -> Case {
    let mut groups = groups();
    groups.remove(0).cases.remove(0)
}

fn verdict(policies: &Policies) -> String {
    let verdict = |policies: &Policies| {
        asking(&any_case(), |asked| match policies.judge(asked) {
            Verdict::Allow { .. } => "allow".to_owned(),
            Verdict::Deny(denied) => denied.to_string(),
            Verdict::Ask(_) => "ask".to_owned(),
        })
    };
    verdict(policies).unwrap()
}

fn origin(name: &str) -> wire::Origin {
    wire::Origin {
        namespace: "app".to_owned(),
        name: name.to_owned(),
        ..Default::default()
    }
}

fn compile(policies: &[(&str, wire::Authorization)], service: Option<(&str, &str)>) -> Policies {
    let origins: Vec<_> = policies.iter().map(|(name, _)| origin(name)).collect();
    let all: Vec<_> = origins
        .iter()
        .zip(policies.iter().map(|(_, policy)| policy))
        .collect();
    Policies::compile(
        &all,
        &Context {
            trust_domain: "cluster.local",
            aliases: &[],
            service,
        },
    )
}

fn matches_all(action: Action) -> wire::Authorization {
    wire::Authorization {
        action: action.into(),
        rules: vec![wire::AuthorizationRule::default()],
        ..Default::default()
    }
}

#[test]
fn a_policy_that_cannot_be_read_denies_before_anything_else() {
    for action in [Action::Allow, Action::Deny, Action::Audit, Action::Custom] {
        let broken = wire::Authorization {
            invalid: "no such port".to_owned(),
            ..matches_all(action)
        };
        let policies = compile(
            &[("broken", broken), ("open", matches_all(Action::Allow))],
            None,
        );
        assert_eq!(
            verdict(&policies),
            "policy app/broken cannot be read: no such port"
        );
        let complaints: Vec<_> = policies.complaints().collect();
        assert_eq!(complaints, [("app/broken", "no such port")]);
    }
}

#[test]
fn an_action_that_is_not_known_denies() {
    let later = wire::Authorization {
        action: 17,
        ..Default::default()
    };
    let policies = compile(&[("later", later)], None);
    assert_eq!(
        verdict(&policies),
        "policy app/later cannot be read: action 17 is not known"
    );
}

#[test]
fn a_policy_for_the_log_denies_nothing_even_if_it_cannot_be_read() {
    let broken = wire::Authorization {
        invalid: "x".to_owned(),
        dry_run: true,
        ..matches_all(Action::Deny)
    };
    let policies = compile(&[("broken", broken)], None);
    assert_eq!(verdict(&policies), "allow");
    let nothing = Metadata::default();
    let notes = asking(&any_case(), |asked| policies.notes(asked, &nothing).len());
    assert_eq!(notes.unwrap(), 1);
}

#[test]
fn policies_for_the_log_say_what_they_would_have_said() {
    let dry = |action| wire::Authorization {
        dry_run: true,
        ..matches_all(action)
    };
    let never = wire::Authorization {
        action: Action::Audit.into(),
        ..Default::default()
    };
    let policies = compile(
        &[
            ("audit", matches_all(Action::Audit)),
            ("dry-allow", dry(Action::Allow)),
            ("dry-deny", dry(Action::Deny)),
            ("never", never),
            ("real", matches_all(Action::Allow)),
        ],
        None,
    );
    assert!(policies.has_notes());
    let notes = asking(&any_case(), |asked| {
        let notes = policies.notes(asked, &Metadata::default()).into_iter();
        notes
            .map(|note| (note.policy.to_owned(), note.dry_run, note.rule))
            .collect::<Vec<_>>()
    });
    let expected = [("audit", false), ("dry-allow", true), ("dry-deny", true)];
    let expected = expected.map(|(name, dry)| (format!("app/{name}"), dry, Some(0)));
    assert_eq!(notes.unwrap(), expected);
}

#[test]
fn policies_for_the_log_say_theirs_of_connections_as_well() {
    let of = |action: Action, namespace: &str| wire::Authorization {
        action: action.into(),
        rules: vec![wire::AuthorizationRule {
            from: vec![wire::Source {
                namespaces: vec![namespace.to_owned()],
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let dry = wire::Authorization {
        dry_run: true,
        ..of(Action::Deny, "elsewhere")
    };
    let policies = compile(
        &[
            ("audit", of(Action::Audit, "app")),
            ("dry-deny", dry),
            ("others", of(Action::Audit, "elsewhere")),
        ],
        None,
    );
    let client = client(&any_case());
    let connection = Connection {
        client: &client,
        destination: ([10, 96, 0, 1], 5432).into(),
        port: 5432,
        sni: None,
        unread: false,
    };
    let notes = policies.notes_of_connection(&connection).into_iter();
    let notes: Vec<_> = notes
        .map(|note| (note.policy, note.dry_run, note.rule))
        .collect();
    let expected = [("app/audit", false, Some(0)), ("app/dry-deny", true, None)];
    assert_eq!(notes, expected);
}

#[test]
fn a_policy_for_one_port_counts_for_that_port() {
    let target = |hostname: &str, port| wire::Target {
        to: Some(To::Service(wire::ServiceRef {
            namespace: "app".to_owned(),
            hostname: hostname.to_owned(),
            port,
        })),
    };
    let deny = |targets: Vec<wire::Target>| wire::Authorization {
        targets,
        ..matches_all(Action::Deny)
    };
    let service = Some(("app", "shop"));
    let of = |targets| verdict(&compile(&[("a", deny(targets))], service));
    assert_eq!(of(vec![target("shop", 80)]), "denied by app/a rule 0");
    assert_eq!(of(vec![target("shop", 81)]), "allow");
    assert_eq!(
        of(vec![target("shop", 81), target("shop", 0)]),
        "denied by app/a rule 0"
    );
    assert_eq!(of(vec![target("shop", 81), target("other", 0)]), "allow");
    let gateway = wire::Target {
        to: Some(To::Gateway("app/waypoint".to_owned())),
    };
    assert_eq!(
        of(vec![target("shop", 81), gateway]),
        "denied by app/a rule 0"
    );
    let unknown_target = wire::Target { to: None };
    assert_eq!(of(vec![unknown_target]), "denied by app/a rule 0");
}

#[test]
fn providers_are_asked_once_each_and_then_the_others_decide() {
    let ask = |provider: &str| wire::Authorization {
        provider: provider.to_owned(),
        ..matches_all(Action::Custom)
    };
    let policies = compile(
        &[
            ("a", ask("one")),
            ("b", ask("two")),
            ("c", ask("one")),
            ("d", matches_all(Action::Deny)),
        ],
        None,
    );
    let asked = asking(&any_case(), |asked| {
        assert_eq!(policies.judge(asked), Verdict::Ask(vec!["one", "two"]));
        let after = policies.judge_after_asking(asked, &Metadata::default());
        assert!(matches!(after, Verdict::Deny(Denied::Rule(by)) if by.policy == "app/d"));
    });
    asked.unwrap();
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn text(it: &str) -> Kind {
    Kind::StringValue(it.to_owned())
}

#[test]
fn what_authorizers_say_of_a_request_is_judged_once_they_were_asked() {
    let list = |all: &[&str]| {
        let values = all.iter().map(|it| value(text(it))).collect();
        Kind::ListValue(ListValue { values })
    };
    let key = "experimental.envoy.filters.http.ext_authz[verdict]";
    let judged = |action: Action, key: &str, values: &[&str], said: Option<Kind>| {
        let rule = wire::AuthorizationRule {
            when: vec![wire::Condition {
                key: key.to_owned(),
                values: values.iter().map(|it| (*it).to_owned()).collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let policy = wire::Authorization {
            rules: vec![rule],
            ..matches_all(action)
        };
        let policies = compile(&[("a", policy)], None);
        let metadata = Metadata::default().shared();
        let fields = said.map(|it| ("verdict".to_owned(), value(it)));
        let fields = fields.into_iter().collect();
        metadata.authorized(Struct { fields }).unwrap();
        let verdict = asking(&any_case(), |asked| {
            match policies.judge_after_asking(asked, &metadata) {
                Verdict::Allow { .. } => "allow",
                Verdict::Deny(Denied::Undecidable(_)) => "unclear",
                Verdict::Deny(_) => "deny",
                Verdict::Ask(_) => "ask",
            }
        });
        verdict.unwrap()
    };
    let of = |action, values: &[&str], said| judged(action, key, values, said);
    for (values, said, denies, allows) in [
        (&["dirty"][..], Some(text("dirty")), "deny", "allow"),
        (&["dirty"], Some(text("clean")), "allow", "deny"),
        (&["dirty"], Some(text("Dirty")), "allow", "deny"),
        (&["a", "di*"], Some(text("dirty")), "deny", "allow"),
        (&["*"], Some(text("x")), "deny", "allow"),
        // Nothing was said.
        (&["dirty"], None, "allow", "deny"),
        (&["*"], None, "allow", "deny"),
        (&["*"], Some(Kind::NullValue(0)), "allow", "deny"),
        // As one of a list, if that is what was meant.
        (&["[bot]"], Some(list(&["old", "bot"])), "deny", "allow"),
        (&["[b*]"], Some(list(&["old", "bot"])), "deny", "allow"),
        (&["[bot]"], Some(list(&["old"])), "allow", "deny"),
        (&["bot"], Some(list(&["old", "bot"])), "unclear", "deny"),
        (&["[bot]"], Some(text("bot")), "unclear", "deny"),
        (&["[bot]"], Some(text("old")), "allow", "deny"),
        // What reads the same may be the same.
        (&["5"], Some(Kind::NumberValue(5.0)), "unclear", "deny"),
        (&["5"], Some(Kind::NumberValue(6.0)), "allow", "deny"),
        (&["true"], Some(Kind::BoolValue(true)), "unclear", "deny"),
        (
            &["x"],
            Some(Kind::StructValue(Struct::default())),
            "unclear",
            "deny",
        ),
    ] {
        let found = (
            of(Action::Deny, values, said.clone()),
            of(Action::Allow, values, said.clone()),
        );
        assert_eq!(found, (denies, allows), "{values:?} {said:?}");
    }
    // Elsewhere nobody has said anything that a policy could judge by.
    for key in [
        "experimental.envoy.filters.http.ext_authz",
        "experimental.envoy.filters.http.ext_authz[]",
        "experimental.envoy.filters.http.ext_authz2[verdict]",
        "experimental.envoy.filters.http.ext_proc[verdict]",
    ] {
        let found = judged(Action::Deny, key, &["dirty"], Some(text("clean")));
        assert_eq!(found, "unclear", "{key}");
    }
}

#[test]
fn explain_tells_each_condition() {
    let policy = wire::Authorization {
        rules: vec![wire::AuthorizationRule {
            from: vec![wire::Source {
                namespaces: vec!["web".to_owned()],
                ..Default::default()
            }],
            to: vec![wire::Operation {
                methods: vec!["GET".to_owned()],
                ..Default::default()
            }],
            when: vec![wire::Condition {
                key: "made.up".to_owned(),
                values: vec!["x".to_owned()],
                not_values: Vec::new(),
            }],
        }],
        ..Default::default()
    };
    let policies = compile(&[("a", policy)], None);
    let explained = asking(&any_case(), |asked| policies.explain(asked)).unwrap();
    assert_eq!(explained.verdict, "deny");
    let conditions: Vec<_> = explained.policies[0].rules[0]
        .conditions
        .iter()
        .map(|found| (&*found.at, &*found.condition, found.holds))
        .collect();
    let expected = [
        ("from[0]", "source.namespaces in [\"web\"]", Truth::No),
        ("to[0]", "operation.methods in [\"GET\"]", Truth::Yes),
        ("when", "made.up in [\"x\"]", Truth::Undecidable),
    ];
    assert_eq!(conditions, expected);
}
