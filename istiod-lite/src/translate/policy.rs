//! AuthorizationPolicies, as far as they can be decided without reading HTTP.
//!
//! A rule becomes a group; of a group's rules (the wire calls them so) all must match: one for `to`,
//! one for `from`, one for each `when`. Of a rule's matches one must match.
//!
//! HTTP attributes cannot be seen at layer 4. An ALLOW rule with one is left out: it allows less
//! than was asked for. In a DENY rule they are left out, so that it denies more. A clause of
//! nothing but HTTP attributes says nothing here, and the rule's other clauses deny without it; a
//! rule of nothing else can deny nothing (`Match::default()` never matches).

use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::aim::Aim;
use api::k8s::istio::{self, Action, AuthorizationPolicy, Condition, Operation, Source, TargetRef};
use api::k8s::labels;
use api::k8s::objects::{Kind, ObjectKey};
use api::security::{
    self, Address, Authorization, Group, Match, Rules, Scope, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};
use ipnet::IpNet;

use super::pod::octets;
use super::trust::TrustDomains;
use super::{Labels, value};

/// What matters of an AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The workloads that must name it; none if it applies without being named.
    pub selector: Option<Labels>,
    /// The resource; none for a policy that ztunnels do not enforce.
    pub authorization: Option<Authorization>,
    /// What of it ztunnels do not enforce, and why.
    pub remarks: Vec<String>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// What ztunnels make of it.
    pub layer4: Layer4,
    /// What it is attached to.
    pub targets: Vec<Target>,
}

/// What ztunnels make of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer4 {
    /// They enforce all of it.
    Whole,
    /// They enforce what does not need HTTP.
    Partly,
    /// They enforce nothing of it.
    Not,
    /// It is not for them.
    Elsewhere,
    /// It cannot be read; in its place they deny everything to those it is about.
    Closed,
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As written: kind, and namespace/name.
    pub shown: String,
    /// The object; none if it is none that a policy can be attached to.
    pub object: Option<ObjectKey>,
}

/// How policies are read, the same in the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: String,
    /// Whether dry-run policies are sent.
    pub dry_run_is_sent: bool,
    /// Ours, under all its names.
    pub trust_domains: TrustDomains,
}

impl Policy {
    /// Translates a policy.
    pub fn read(policy: &AuthorizationPolicy, reading: &Reading) -> Self {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or("default");
        let spec = &policy.spec;
        let targets: Vec<Target> = spec
            .target_ref
            .iter()
            .chain(&spec.target_refs)
            .map(|target| Target::read(target, namespace, &reading.root_namespace))
            .collect();
        let selector = policy
            .spec
            .selector
            .as_ref()
            .map(|selector| selector.match_labels.clone());
        let mut remarks = Vec::new();
        let authorization = authorization(policy, reading, &mut remarks);
        let layer4 = match (&authorization, remarks.is_empty()) {
            _ if !targets.is_empty() => Layer4::Elsewhere,
            (None, _) => Layer4::Not,
            (Some(_), false) => Layer4::Partly,
            (Some(_), true) => Layer4::Whole,
        };
        Self {
            namespace: namespace.into(),
            selector,
            authorization,
            remarks,
            generation: policy.metadata.generation,
            layer4,
            targets,
        }
    }

    /// What stands in the place of a policy that cannot be read: nobody speaks to those it is about.
    /// None if it would keep nobody from speaking, were it good.
    pub fn closed(key: &ObjectKey, aim: &Aim, reading: &Reading) -> Option<Self> {
        let selector = match aim {
            Aim::Selected(labels) => Some(labels.clone()),
            Aim::All => None,
            Aim::Nobody => return None,
        };
        let about = about(selector.as_ref(), &key.namespace, reading);
        Some(Self {
            namespace: key.namespace.clone(),
            authorization: Some(Authorization {
                name: key.name.to_string(),
                namespace: key.namespace.to_string(),
                scope: scope(selector.is_some(), &key.namespace, reading).into(),
                action: security::Action::Deny.into(),
                groups: vec![Group::default()],
                ..Authorization::default()
            }),
            selector,
            remarks: vec![format!(
                "until it is mended it denies all traffic to {about}"
            )],
            generation: None,
            layer4: Layer4::Closed,
            targets: Vec::new(),
        })
    }

    /// Its xDS name, if it is sent.
    pub fn resource_name(&self) -> Option<String> {
        self.authorization
            .as_ref()
            .map(|it| format!("{}/{}", it.namespace, it.name))
    }
}

impl Target {
    /// Classes are for the whole mesh, so only its own namespace may attach to them.
    fn read(target: &TargetRef, namespace: &str, root_namespace: &str) -> Self {
        let elsewhere = target.namespace.as_deref().filter(|it| *it != namespace);
        let kind = match (target.group.as_str(), target.kind.as_str()) {
            _ if elsewhere.is_some() => None,
            ("" | "core", "Service") => Some(Kind::Service),
            ("networking.istio.io", "ServiceEntry") => Some(Kind::ServiceEntry),
            ("gateway.networking.k8s.io", "Gateway") => Some(Kind::Gateway),
            ("gateway.networking.k8s.io", "GatewayClass") if namespace == root_namespace => {
                Some(Kind::GatewayClass)
            }
            _ => None,
        };
        let shown = match target.kind.as_str() {
            "GatewayClass" => format!("GatewayClass {}", target.name),
            kind => format!("{kind} {}/{}", elsewhere.unwrap_or(namespace), target.name),
        };
        Self {
            shown,
            object: kind.map(|kind| ObjectKey::new(kind, namespace, &target.name)),
        }
    }
}

fn authorization(
    policy: &AuthorizationPolicy,
    reading: &Reading,
    remarks: &mut Vec<String>,
) -> Option<Authorization> {
    let spec = &policy.spec;
    let none = Labels::new();
    let dry_run = value(
        policy.metadata.annotations.as_ref().unwrap_or(&none),
        labels::DRY_RUN,
    )
    .is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    // Policies of waypoints are no business of ztunnels.
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        return None;
    }
    let action = match spec.action {
        Action::Allow => security::Action::Allow,
        Action::Deny => security::Action::Deny,
        Action::Audit | Action::Custom => {
            let action = if spec.action == Action::Audit {
                "AUDIT"
            } else {
                "CUSTOM"
            };
            remarks.push(format!(
                "ztunnel does not support the {action} action: only ALLOW and DENY work at layer 4, attach the policy to a waypoint with targetRefs"
            ));
            return None;
        }
    };
    if dry_run && !reading.dry_run_is_sent {
        remarks.push("dry-run policies are switched off: take annotation istio.io/dry-run away to enforce it, or start the control plane with --dry-run-policies".into());
        return None;
    }
    let scope = scope(spec.selector.is_some(), &namespace, reading);
    Some(Authorization {
        name: policy.metadata.name.clone().unwrap_or_default(),
        groups: groups(&spec.rules, action, &namespace, reading, remarks),
        namespace,
        scope: scope.into(),
        action: action.into(),
        dry_run,
        ..Authorization::default()
    })
}

/// To whom a policy applies, in words.
fn about(selector: Option<&Labels>, namespace: &str, reading: &Reading) -> String {
    let of = match namespace {
        root if root == reading.root_namespace => "of the mesh".to_owned(),
        namespace => format!("of namespace {namespace}"),
    };
    let labels = selector.into_iter().flatten();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if labels.is_empty() {
        return format!("all workloads {of}");
    }
    format!("workloads {of} with {}", labels.join(","))
}

fn scope(selects: bool, namespace: &str, reading: &Reading) -> Scope {
    match selects {
        true => Scope::WorkloadSelector,
        false if namespace == reading.root_namespace => Scope::Global,
        false => Scope::Namespace,
    }
}

fn groups(
    rules: &[istio::Rule],
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

fn clauses(rule: &istio::Rule, namespace: &str, reading: &Reading) -> Vec<Clause> {
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
