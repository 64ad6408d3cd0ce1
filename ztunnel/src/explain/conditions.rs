//! Each policy that applies to a destination, and each of its conditions: what is wanted, what is, whether it holds.
//!
//! A condition is asked of the very code that judges connections: a policy that has nothing but this one condition.

use std::fmt::Display;

use mesh::policy::{Group, Match, Rule, ServiceAccountMatch, StringMatch};
use mesh::{Action, Applicable, Connection, Policy, PolicyScope};
use serde::Serialize;

use crate::hint::{Origin, PEER_AUTHENTICATION};

/// What a policy says of a connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Said {
    /// `namespace/name`, as the control plane calls it.
    pub(crate) policy: String,
    /// The object to change.
    pub(crate) object: String,
    pub(crate) action: &'static str,
    pub(crate) scope: &'static str,
    pub(crate) dry_run: bool,
    /// Something in it is of a later version; then it denies rather than allows.
    pub(crate) unreadable: bool,
    pub(crate) matches: bool,
    pub(crate) decides: bool,
    /// One of them must match, in each all rules, in each rule one of its matches, in each match all conditions.
    pub(crate) groups: Vec<Vec<Vec<Vec<Condition>>>>,
}

/// One condition.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Condition {
    /// As in an AuthorizationPolicy.
    pub(crate) field: &'static str,
    pub(crate) wanted: Vec<String>,
    pub(crate) is: String,
    pub(crate) holds: bool,
}

/// What all of them say: those that deny first, those that allow, then those that only note.
pub(crate) fn said(policies: &Applicable<'_>, connection: &Connection<'_>) -> Vec<Said> {
    let mut all: Vec<Said> = policies
        .known()
        .map(|policy| Said::of(policy, connection))
        .collect();
    all.sort_by_key(|said| (said.dry_run, said.action != DENY));
    all
}

pub(crate) const DENY: &str = "DENY";
pub(crate) const ALLOW: &str = "ALLOW";

impl Said {
    fn of(policy: &Policy, connection: &Connection<'_>) -> Self {
        let of_match = |found: &Match| conditions(policy.action, found, connection);
        let of_rule = |rule: &Rule| rule.matches.iter().map(of_match).collect();
        let of_group = |group: &Group| group.rules.iter().map(of_rule).collect();
        Self {
            policy: policy.key.to_string(),
            object: object(policy),
            action: match policy.action {
                Action::Deny => DENY,
                Action::Allow => ALLOW,
            },
            scope: match policy.scope {
                PolicyScope::Global => "mesh",
                PolicyScope::Namespace => "namespace",
                PolicyScope::WorkloadSelector => "workload",
            },
            dry_run: policy.dry_run,
            unreadable: policy.unreadable,
            matches: policy.matches(connection),
            decides: false,
            groups: policy.groups.iter().map(of_group).collect(),
        }
    }

    /// Why it matches, in words; empty if it does not.
    pub(crate) fn why(&self) -> String {
        if !self.matches {
            return String::new();
        }
        let holds = |found: &&Vec<Condition>| all_hold(found);
        let group = self.groups.iter().find(|group| group_holds(group));
        let of_rules = group.into_iter().flatten();
        let matched = of_rules
            .filter_map(|rule| rule.iter().find(holds))
            .flatten();
        match joined(matched) {
            text if text.is_empty() => "it is for everybody".to_owned(),
            text => text,
        }
    }

    /// What would have to be otherwise for it to match, by the shortest way.
    pub(crate) fn lacks(&self) -> String {
        if self.unreadable && self.action == ALLOW {
            return "something in it is of a later version than this ztunnel, so it allows nobody"
                .to_owned();
        }
        let failing = |found: &Vec<Condition>| -> Vec<Condition> {
            found.iter().filter(|it| !it.holds).cloned().collect()
        };
        let of_rule = |rule: &Vec<Vec<Condition>>| match rule.iter().any(|it| all_hold(it)) {
            true => Vec::new(),
            false => {
                let ways = rule.iter().map(failing);
                ways.min_by_key(Vec::len).unwrap_or_default()
            }
        };
        let of_group = |group: &Vec<Vec<Vec<Condition>>>| -> Vec<Condition> {
            group.iter().flat_map(of_rule).collect()
        };
        let ways = self.groups.iter().map(of_group);
        match ways.min_by_key(Vec::len) {
            None => "it has no rules, so it is for nobody".to_owned(),
            Some(way) => joined(way.iter()),
        }
    }
}

fn group_holds(group: &[Vec<Vec<Condition>>]) -> bool {
    let rule = |rule: &Vec<Vec<Condition>>| rule.is_empty() || rule.iter().any(|it| all_hold(it));
    group.iter().all(rule)
}

fn all_hold(found: &[Condition]) -> bool {
    found.iter().all(|condition| condition.holds)
}

fn joined<'a>(conditions: impl Iterator<Item = &'a Condition>) -> String {
    let each = conditions.map(
        |Condition {
             field, wanted, is, ..
         }| { format!("{field} [{}] (it is {is})", wanted.join(", ")) },
    );
    each.collect::<Vec<_>>().join(" and ")
}

fn conditions(action: Action, found: &Match, connection: &Connection<'_>) -> Vec<Condition> {
    let source = connection.source.as_ref();
    let of_source = |part: &dyn Fn(&mesh::SourceIdentity<'_>) -> String| {
        source.map_or_else(|| "plain text, without identity".to_owned(), part)
    };
    let namespace = of_source(&|source| source.namespace.to_owned());
    let account = of_source(&|source| format!("{}/{}", source.namespace, source.service_account));
    let principal = of_source(&|source| {
        let mesh::SourceIdentity {
            trust_domain,
            namespace,
            service_account,
        } = source;
        format!("{trust_domain}/ns/{namespace}/sa/{service_account}")
    });
    let (from, to) = (
        connection.source_ip.to_string(),
        connection.destination_ip.to_string(),
    );
    let port = connection.destination_port.to_string();
    let mut all = Vec::new();
    let mut add = |field, wanted: Vec<String>, is: &str, only: Match| {
        if !wanted.is_empty() {
            all.push(Condition {
                field,
                wanted,
                is: is.to_owned(),
                holds: alone(action, only).matches(connection),
            });
        }
    };
    macro_rules! add {
        ($field:literal, $member:ident, $text:expr, $is:expr) => {
            let only = Match {
                $member: found.$member.clone(),
                ..Match::default()
            };
            add($field, found.$member.iter().map($text).collect(), $is, only);
        };
    }
    add!("source.namespaces", namespaces, text, &namespace);
    add!("source.notNamespaces", not_namespaces, text, &namespace);
    add!("source.principals", principals, text, &principal);
    add!("source.notPrincipals", not_principals, text, &principal);
    add!(
        "source.serviceAccounts",
        service_accounts,
        account_text,
        &account
    );
    add!(
        "source.notServiceAccounts",
        not_service_accounts,
        account_text,
        &account
    );
    add!("source.ipBlocks", source_ips, shown, &from);
    add!("source.notIpBlocks", not_source_ips, shown, &from);
    add!("destination.ip", destination_ips, shown, &to);
    add!("destination.notIp", not_destination_ips, shown, &to);
    add!("operation.ports", destination_ports, shown, &port);
    add!("operation.notPorts", not_destination_ports, shown, &port);
    if found.unreadable {
        all.push(Condition {
            field: "a condition of a later version",
            wanted: Vec::new(),
            is: "not known to this ztunnel".to_owned(),
            holds: action == Action::Deny,
        });
    }
    if all.is_empty() {
        all.push(Condition {
            field: "no condition at all",
            wanted: Vec::new(),
            is: "for nobody".to_owned(),
            holds: false,
        });
    }
    all
}

/// A policy that consists of this alone.
fn alone(action: Action, only: Match) -> Policy {
    let rule = Rule {
        matches: [only].into(),
    };
    let group = Group {
        rules: [rule].into(),
    };
    Policy {
        key: "".into(),
        namespace: "".into(),
        name: "".into(),
        scope: PolicyScope::Global,
        action,
        groups: [group].into(),
        dry_run: false,
        unreadable: false,
    }
}

fn text(found: &StringMatch) -> String {
    match found {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".to_owned(),
    }
}

fn account_text(found: &ServiceAccountMatch) -> String {
    format!("{}/{}", found.namespace, found.service_account)
}

fn shown(found: &impl Display) -> String {
    found.to_string()
}

/// The object that a person would change.
fn object(policy: &Policy) -> String {
    let Policy {
        namespace, name, ..
    } = policy;
    match Origin::of(name) {
        Origin::AuthorizationPolicy => format!("AuthorizationPolicy {namespace}/{name}"),
        Origin::PeerAuthentication => match name.strip_prefix(PEER_AUTHENTICATION) {
            Some(name) => format!("PeerAuthentication {namespace}/{name}"),
            None => "PeerAuthentication with mode STRICT".to_owned(),
        },
        Origin::WaypointOnly => "label ambit.io/waypoint-only".to_owned(),
    }
}
