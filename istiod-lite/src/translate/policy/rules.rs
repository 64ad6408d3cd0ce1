//! The rules of an AuthorizationPolicy, as far as they can be decided without reading HTTP.
//!
//! A rule becomes a group; of a group's rules (the wire calls them so) all must match: one for `to`,
//! one for `from`, one for each `when`. Of a rule's matches one must match.
//!
//! HTTP attributes cannot be seen at layer 4. An ALLOW rule with one is left out: it allows less
//! than was asked for. In a DENY rule they are left out, so that it denies more. A clause of
//! nothing but HTTP attributes says nothing here, and the rule's other clauses deny without it; a
//! rule of nothing else can deny nothing (`Match::default()` never matches).

use std::net::IpAddr;

use api::k8s::istio::{Condition, Operation, Rule, Source};
use api::security::{
    self, Address, Group, Match, Rules, ServiceAccountMatch, StringMatch, string_match::MatchType,
};
use ipnet::IpNet;

use super::super::pod::octets;
use super::Reading;

/// The rules of a policy as the wire has them, and remarks on those that layer 4 cannot keep.
pub(super) fn groups(
    rules: &[Rule],
    action: security::Action,
    namespace: &str,
    reading: &Reading,
    remarks: &mut Vec<String>,
) -> Vec<Group> {
    let mut groups = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let clauses = clauses(rule, namespace, reading);
        let mut unseen: Vec<&str> = clauses
            .iter()
            .flat_map(|clause| &clause.unseen)
            .map(String::as_str)
            .collect();
        unseen.sort_unstable();
        unseen.dedup();
        if !unseen.is_empty() {
            let consequence = match action {
                security::Action::Allow => "so the rule allows nothing",
                security::Action::Deny if clauses.iter().all(Clause::says_nothing) => {
                    "and there is nothing else in the rule, so it denies nothing"
                }
                security::Action::Deny => "so the rule denies without them",
            };
            remarks.push(format!(
                "rule {index} uses {}, which only a waypoint can see, {consequence}",
                unseen.join(", ")
            ));
        }
        if action == security::Action::Allow && !unseen.is_empty() {
            continue;
        }
        let heard = clauses.iter().any(|clause| !clause.says_nothing());
        let kept = clauses
            .into_iter()
            .filter(|clause| !heard || !clause.says_nothing());
        groups.push(Group {
            rules: kept
                .map(|clause| Rules {
                    matches: clause.matches,
                })
                .collect(),
        });
    }
    groups
}

/// One clause of a rule: alternatives, and the attributes in them that layer 4 does not see.
#[derive(Default)]
struct Clause {
    matches: Vec<Match>,
    unseen: Vec<String>,
}

impl Clause {
    /// Nothing but HTTP.
    fn says_nothing(&self) -> bool {
        self.matches.iter().all(|it| *it == Match::default())
    }
}

fn clauses(rule: &Rule, namespace: &str, reading: &Reading) -> Vec<Clause> {
    let mut clauses = Vec::new();
    let mut to = Clause::default();
    for it in &rule.to {
        to.matches.push(operation(&it.operation, &mut to.unseen));
    }
    let mut from = Clause::default();
    for it in &rule.from {
        from.matches
            .push(source(&it.source, namespace, reading, &mut from.unseen));
    }
    clauses.extend(
        [to, from]
            .into_iter()
            .filter(|clause| !clause.matches.is_empty()),
    );
    for it in &rule.when {
        let mut when = Clause::default();
        when.matches.push(condition(it, reading, &mut when.unseen));
        clauses.push(when);
    }
    clauses
}

fn operation(operation: &Operation, unseen: &mut Vec<String>) -> Match {
    see_not(
        unseen,
        [
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ],
    );
    Match {
        destination_ports: numbers(&operation.ports),
        not_destination_ports: numbers(&operation.not_ports),
        ..Match::default()
    }
}

fn source(source: &Source, namespace: &str, reading: &Reading, unseen: &mut Vec<String>) -> Match {
    see_not(
        unseen,
        [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ],
    );
    Match {
        namespaces: strings(&source.namespaces),
        not_namespaces: strings(&source.not_namespaces),
        principals: strings(&reading.trust_domains.principals(&source.principals)),
        not_principals: strings(&reading.trust_domains.principals(&source.not_principals)),
        source_ips: blocks(&source.ip_blocks),
        not_source_ips: blocks(&source.not_ip_blocks),
        service_accounts: accounts(&source.service_accounts, namespace),
        not_service_accounts: accounts(&source.not_service_accounts, namespace),
        ..Match::default()
    }
}

fn condition(condition: &Condition, reading: &Reading, unseen: &mut Vec<String>) -> Match {
    let (values, nots) = (&condition.values, &condition.not_values);
    match condition.key.as_str() {
        "source.ip" => Match {
            source_ips: blocks(values),
            not_source_ips: blocks(nots),
            ..Match::default()
        },
        "source.namespace" => Match {
            namespaces: strings(values),
            not_namespaces: strings(nots),
            ..Match::default()
        },
        "source.principal" => Match {
            principals: strings(&reading.trust_domains.principals(values)),
            not_principals: strings(&reading.trust_domains.principals(nots)),
            ..Match::default()
        },
        "destination.ip" => Match {
            destination_ips: blocks(values),
            not_destination_ips: blocks(nots),
            ..Match::default()
        },
        "destination.port" => Match {
            destination_ports: numbers(values),
            not_destination_ports: numbers(nots),
            ..Match::default()
        },
        // Also `source.serviceAccount`: the wire could carry it, but Istio takes it for HTTP, and a
        // policy must mean the same under both.
        key => {
            unseen.push(key.to_owned());
            Match::default()
        }
    }
}

fn see_not<const N: usize>(unseen: &mut Vec<String>, fields: [(&str, &Vec<String>); N]) {
    unseen.extend(
        fields
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, _)| name.to_owned()),
    );
}

fn strings(texts: &[String]) -> Vec<StringMatch> {
    let one = |text: &String| match text.as_str() {
        "*" => MatchType::Presence(()),
        text => match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(end), _) => MatchType::Suffix(end.into()),
            (None, Some(start)) => MatchType::Prefix(start.into()),
            (None, None) => MatchType::Exact(text.into()),
        },
    };
    texts
        .iter()
        .map(|text| StringMatch {
            match_type: Some(one(text)),
        })
        .collect()
}

fn blocks(texts: &[String]) -> Vec<Address> {
    let one = |text: &String| {
        let net = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .ok()?
            .trunc();
        Some(Address {
            address: octets(net.addr()),
            length: net.prefix_len().into(),
        })
    };
    // What does not parse was refused when the policy was read.
    texts.iter().filter_map(one).collect()
}

fn numbers(texts: &[String]) -> Vec<u32> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn accounts(texts: &[String], namespace: &str) -> Vec<ServiceAccountMatch> {
    let one = |text: &String| {
        let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
        ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: account.into(),
        }
    };
    texts.iter().map(one).collect()
}
