//! What the recorded table (`tests/behaviour/policy_table.rs`) does not hold: names of policies, policies that
//! are late, unreadable or for the log only.

use api::security as wire;
use prost::Message;
use wire::string_match::MatchType;

use super::*;
use crate::change::{Payload, Update};
use crate::mesh::Mesh;

fn text(of: MatchType) -> wire::StringMatch {
    wire::StringMatch {
        match_type: Some(of),
    }
}

fn policy(name: &str, action: wire::Action, found: wire::Match) -> wire::Authorization {
    wire::Authorization {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        scope: wire::Scope::Namespace.into(),
        action: action.into(),
        groups: vec![wire::Group {
            rules: vec![wire::Rules {
                matches: vec![found],
            }],
        }],
        ..Default::default()
    }
}

fn port(port: u32) -> wire::Match {
    wire::Match {
        destination_ports: vec![port],
        ..Default::default()
    }
}

fn connection(source: Option<SourceIdentity<'_>>) -> Connection<'_> {
    Connection {
        source,
        source_ip: [10, 0, 0, 1].into(),
        destination_ip: [10, 0, 0, 2].into(),
        destination_port: 80,
    }
}

/// The verdict on a connection to port 80 of a workload in `ns` that names `references`.
fn verdict(update: Update, references: &[&str]) -> Verdict {
    let (mesh, mut writer) = Mesh::new();
    assert_eq!(writer.apply(update), []);
    let mut update = Update::default();
    update.set_workload(api::workload::Workload {
        uid: "uid".to_owned(),
        namespace: "ns".to_owned(),
        authorization_policies: references.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    });
    assert_eq!(writer.apply(update), []);
    let snapshot = mesh.load();
    judge(
        &snapshot.policies_of(snapshot.workload("uid").unwrap()),
        &connection(None),
    )
}

fn set(policies: impl IntoIterator<Item = wire::Authorization>) -> Update {
    let mut update = Update::default();
    policies
        .into_iter()
        .for_each(|policy| update.set_policy(policy));
    update
}

const ALLOW: wire::Action = wire::Action::Allow;
const DENY: wire::Action = wire::Action::Deny;

#[test]
fn a_verdict_names_the_policy_that_made_it() {
    let allowed = verdict(set([policy("allow", ALLOW, port(80))]), &[]);
    assert_eq!(
        allowed,
        Verdict::Allowed {
            by: Some("ns/allow".into())
        }
    );
    let denied = verdict(
        set([
            policy("allow", ALLOW, port(80)),
            policy("deny", DENY, port(80)),
        ]),
        &[],
    );
    assert_eq!(
        denied,
        Verdict::Denied {
            by: DeniedBy::Explicit("ns/deny".into())
        }
    );
    assert_eq!(verdict(set([]), &[]), Verdict::Allowed { by: None });
}

#[test]
fn a_policy_that_has_not_arrived_leaves_the_verdict_open_unless_a_deny_matched() {
    let undecided = Verdict::Undecided {
        missing: "ns/late".into(),
    };
    assert_eq!(verdict(set([]), &["ns/late"]), undecided);
    assert_eq!(
        verdict(set([policy("allow", ALLOW, port(80))]), &["ns/late"]),
        undecided,
        "it may be a DENY"
    );
    assert_eq!(
        verdict(set([policy("allow", ALLOW, port(81))]), &["ns/late"]),
        undecided,
        "it may be an ALLOW"
    );
    let denied = verdict(set([policy("deny", DENY, port(80))]), &["ns/late"]);
    assert_eq!(
        denied,
        Verdict::Denied {
            by: DeniedBy::Explicit("ns/deny".into())
        }
    );
}

#[test]
fn what_cannot_be_read_allows_nothing_and_denies_more() {
    // Field 15 of a match: a condition of tomorrow, in a match with nothing else in it.
    let tomorrow = |name: &str, action: wire::Action| {
        let head = wire::Authorization {
            groups: vec![],
            ..policy(name, action, port(80))
        };
        let found = [&[15 << 3 | 2, 1][..], b"x"].concat();
        let nested = [2, 1, 5].iter().fold(found, |content, number| {
            [&[*number << 3 | 2, content.len() as u8], &*content].concat()
        });
        let mut update = Update::default();
        let bytes = [head.encode_to_vec(), nested].concat();
        update
            .authorizations
            .set
            .push((format!("ns/{name}").into(), Payload::Bytes(bytes.into())));
        update
    };
    assert_eq!(
        verdict(tomorrow("allow", ALLOW), &[]),
        Verdict::Denied {
            by: DeniedBy::NoAllowMatched
        }
    );
    assert_eq!(
        verdict(tomorrow("deny", DENY), &[]),
        Verdict::Denied {
            by: DeniedBy::Explicit("ns/deny".into())
        }
    );
    let extended = wire::Match {
        extensions: vec![Default::default()],
        ..port(80)
    };
    let allowed = verdict(set([policy("allow", ALLOW, extended.clone())]), &[]);
    assert_eq!(
        allowed,
        Verdict::Denied {
            by: DeniedBy::NoAllowMatched
        }
    );
    let elsewhere = wire::Match {
        destination_ports: vec![81],
        ..extended
    };
    assert_eq!(
        verdict(set([policy("deny", DENY, elsewhere)]), &[]),
        Verdict::Allowed { by: None }
    );
    // What a policy says beside its groups may be a condition of all of them.
    let beside = |action, found| wire::Authorization {
        extensions: vec![Default::default()],
        ..policy("beside", action, found)
    };
    assert_eq!(
        verdict(set([beside(ALLOW, port(80))]), &[]),
        Verdict::Denied {
            by: DeniedBy::NoAllowMatched
        }
    );
    let denied = Verdict::Denied {
        by: DeniedBy::Explicit("ns/beside".into()),
    };
    for (number, expected) in [(80, denied), (81, Verdict::Allowed { by: None })] {
        let found = verdict(set([beside(DENY, port(number))]), &[]);
        assert_eq!(found, expected, "{number}");
    }
}

#[test]
fn a_text_of_a_kind_that_is_not_known_allows_nothing_and_denies_as_if_it_were_the_callers() {
    let wrapped = |number: u8, content: Vec<u8>| {
        [&[number << 3 | 2, content.len() as u8][..], &content[..]].concat()
    };
    // Field 5 of a text: another way to compare it. Beside it a port.
    let tomorrow = |name: &str, action: wire::Action, field: u8, port: u8| {
        let head = wire::Authorization {
            groups: vec![],
            ..policy(name, action, wire::Match::default())
        };
        let text = wrapped(5, b"x".to_vec());
        let found = [wrapped(field, text), wrapped(9, vec![port])].concat();
        let group = wrapped(5, wrapped(1, wrapped(2, found)));
        let bytes = [head.encode_to_vec(), group].concat();
        let mut update = Update::default();
        update
            .authorizations
            .set
            .push((format!("ns/{name}").into(), Payload::Bytes(bytes.into())));
        update
    };
    // Namespaces and principals, and those that it is not for.
    for field in 1..=4 {
        assert_eq!(
            verdict(tomorrow("allow", ALLOW, field, 80), &[]),
            Verdict::Denied {
                by: DeniedBy::NoAllowMatched
            },
            "{field}"
        );
        assert_eq!(
            verdict(tomorrow("deny", DENY, field, 80), &[]),
            Verdict::Denied {
                by: DeniedBy::Explicit("ns/deny".into())
            },
            "{field}"
        );
        assert_eq!(
            verdict(tomorrow("deny", DENY, field, 81), &[]),
            Verdict::Allowed { by: None },
            "{field}: what can be read counts"
        );
    }
}

#[test]
fn a_dry_run_tells_what_it_would_have_done() {
    let dry = |name, action, port_number| wire::Authorization {
        dry_run: true,
        ..policy(name, action, port(port_number))
    };
    let (mesh, mut writer) = Mesh::new();
    let mut update = set([
        dry("a", DENY, 80),
        dry("b", ALLOW, 81),
        policy("c", DENY, port(82)),
    ]);
    update.set_workload(api::workload::Workload {
        uid: "uid".to_owned(),
        namespace: "ns".to_owned(),
        ..Default::default()
    });
    assert_eq!(writer.apply(update), []);
    let snapshot = mesh.load();
    let policies = snapshot.policies_of(snapshot.workload("uid").unwrap());
    let connection = connection(None);
    let told: Vec<_> = dry_runs(&policies, &connection).collect();
    let run = |policy: &str, action, matched| DryRun {
        policy: policy.into(),
        action,
        matched,
    };
    assert_eq!(
        told,
        [
            run("ns/a", Action::Deny, true),
            run("ns/b", Action::Allow, false)
        ]
    );
    assert_eq!(judge(&policies, &connection), Verdict::Allowed { by: None });
}

proptest::proptest! {
    /// The principal is never put together; comparing its pieces is comparing the whole.
    #[test]
    fn pieces_compare_like_the_text_they_make(
        parts in proptest::array::uniform3("[ab]{0,3}"),
        wanted in "[ab/ns]{0,14}",
        cut in 0..20usize,
    ) {
        let [trust_domain, namespace, service_account] = &parts;
        let source = SourceIdentity { trust_domain, namespace, service_account };
        let whole = format!("{trust_domain}/ns/{namespace}/sa/{service_account}");
        let cut = cut.min(whole.len());
        for wanted in [&*wanted, &whole, &whole[..cut], &whole[cut..], ""] {
            let pieces = source.principal();
            proptest::prop_assert_eq!(StringMatch::Exact(wanted.into()).matches(&pieces), whole == wanted);
            proptest::prop_assert_eq!(StringMatch::Prefix(wanted.into()).matches(&pieces), whole.starts_with(wanted));
            proptest::prop_assert_eq!(StringMatch::Suffix(wanted.into()).matches(&pieces), whole.ends_with(wanted));
        }
    }
}

#[test]
fn texts_match_whole_and_by_case() {
    let found = wire::Match {
        namespaces: vec![text(MatchType::Exact("NS".to_owned()))],
        ..Default::default()
    };
    let (mesh, mut writer) = Mesh::new();
    let mut update = set([policy("allow", ALLOW, found)]);
    update.set_workload(api::workload::Workload {
        uid: "uid".to_owned(),
        namespace: "ns".to_owned(),
        ..Default::default()
    });
    assert_eq!(writer.apply(update), []);
    let snapshot = mesh.load();
    let policies = snapshot.policies_of(snapshot.workload("uid").unwrap());
    for (namespace, passes) in [("NS", true), ("ns", false), ("NSX", false), ("", false)] {
        let source = SourceIdentity {
            trust_domain: "td",
            namespace,
            service_account: "sa",
        };
        let verdict = judge(&policies, &connection(Some(source)));
        assert_eq!(
            matches!(verdict, Verdict::Allowed { .. }),
            passes,
            "{namespace}"
        );
    }
}
