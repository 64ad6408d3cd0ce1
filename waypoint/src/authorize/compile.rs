//! From what the control plane says to what a request is judged by.
//!
//! Nothing is left out: what cannot be read stays as a condition that cannot be decided, and a policy that cannot be
//! read at all stays as one that denies.

use std::net::IpAddr;
use std::sync::Arc;

use api::waypoint as wire;
use ipnet::IpNet;
use wire::target::To;

use super::condition::{Condition, Test, Wanted};
use super::header::Field;
use super::path::PathPattern;
use super::pattern::{Glob, Pattern};
use super::principal::{Account, RequestPrincipal, principals};
use super::{Action, Clause, Policies, Policy, Rule};
use crate::process::AUTHORIZERS;

/// What policies mean something different in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// Of this mesh.
    pub trust_domain: &'a str,
    /// Its other names.
    pub aliases: &'a [String],
    /// Namespace and name of the service that is judged for: policies for some of its ports then count for those
    /// only.
    pub service: Option<(&'a str, &'a str)>,
}

impl Policies {
    /// Compiles the policies of a service. Never fails: see [`Policies::complaints`].
    pub fn compile(
        policies: &[(&wire::Origin, &wire::Authorization)],
        context: &Context<'_>,
    ) -> Self {
        let mut all: Vec<Policy> = policies
            .iter()
            .map(|(origin, policy)| compile(origin, policy, context))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Self { all: all.into() }
    }
}

fn compile(origin: &wire::Origin, policy: &wire::Authorization, context: &Context<'_>) -> Policy {
    let known = match wire::authorization::Action::try_from(policy.action) {
        Ok(wire::authorization::Action::Allow) => Some(Action::Allow),
        Ok(wire::authorization::Action::Deny) => Some(Action::Deny),
        Ok(wire::authorization::Action::Audit) => Some(Action::Audit),
        Ok(wire::authorization::Action::Custom) => Some(Action::Custom),
        Err(_) => None,
    };
    let invalid = if !policy.invalid.is_empty() {
        Some(policy.invalid.as_str().into())
    } else if known.is_none() {
        Some(format!("action {} is not known", policy.action).into())
    } else {
        None
    };
    Policy {
        name: Arc::from(format!("{}/{}", origin.namespace, origin.name)),
        action: known.unwrap_or(Action::Deny),
        dry_run: policy.dry_run,
        invalid,
        provider: policy.provider.as_str().into(),
        ports: ports_of(&policy.targets, context),
        rules: policy
            .rules
            .iter()
            .map(|rule| compile_rule(rule, &origin.namespace, context))
            .collect(),
    }
}

/// The ports of the service that the targets name; empty if one of them is for all.
fn ports_of(targets: &[wire::Target], context: &Context<'_>) -> Box<[u16]> {
    let mut ports = Vec::new();
    for target in targets {
        let Some(To::Service(to)) = &target.to else {
            return Box::default();
        };
        let meant = context.service.is_some_and(|(namespace, hostname)| {
            to.namespace == namespace && to.hostname == hostname
        });
        match u16::try_from(to.port) {
            Ok(port) if meant && port != 0 => ports.push(port),
            _ if meant || context.service.is_none() => return Box::default(),
            _ => {}
        }
    }
    ports.into()
}

fn compile_rule(rule: &wire::AuthorizationRule, namespace: &str, context: &Context<'_>) -> Rule {
    Rule {
        from: rule
            .from
            .iter()
            .map(|source| from(source, namespace, context))
            .collect(),
        to: rule.to.iter().map(to).collect(),
        when: rule
            .when
            .iter()
            .map(|condition| when(condition, namespace, context))
            .collect(),
    }
}

fn from(source: &wire::Source, namespace: &str, context: &Context<'_>) -> Clause {
    let principal = |values: &[String]| {
        let patterns = values.iter().flat_map(|value| principals(value, context));
        Test::Principals(patterns.collect())
    };
    let mut list = List::default();
    list.add(
        "source.principals",
        &source.principals,
        &source.not_principals,
        principal,
    );
    list.add(
        "source.serviceAccounts",
        &source.service_accounts,
        &source.not_service_accounts,
        |values| accounts(values, namespace),
    );
    list.add(
        "source.namespaces",
        &source.namespaces,
        &source.not_namespaces,
        namespaces,
    );
    list.add(
        "source.ipBlocks",
        &source.ip_blocks,
        &source.not_ip_blocks,
        |values| Test::SourceAddresses(networks(values)),
    );
    list.add(
        "source.remoteIpBlocks",
        &source.remote_ip_blocks,
        &source.not_remote_ip_blocks,
        |values| Test::RemoteAddresses(networks(values)),
    );
    list.add(
        "source.requestPrincipals",
        &source.request_principals,
        &source.not_request_principals,
        request_principals,
    );
    list.done("source")
}

fn to(operation: &wire::Operation) -> Clause {
    let mut list = List::default();
    list.add(
        "operation.ports",
        &operation.ports,
        &operation.not_ports,
        ports,
    );
    list.add(
        "operation.methods",
        &operation.methods,
        &operation.not_methods,
        |values| Test::Methods(patterns(values)),
    );
    list.add(
        "operation.hosts",
        &operation.hosts,
        &operation.not_hosts,
        |values| Test::Hosts(patterns(values)),
    );
    list.add(
        "operation.paths",
        &operation.paths,
        &operation.not_paths,
        |values| Test::Paths(values.iter().map(|value| PathPattern::new(value)).collect()),
    );
    list.done("operation")
}

fn when(condition: &wire::Condition, namespace: &str, context: &Context<'_>) -> Condition {
    let test = |values: &[String]| by_key(&condition.key, values, namespace, context);
    let mut list = List::default();
    list.add(
        &condition.key,
        &condition.values,
        &condition.not_values,
        test,
    );
    list.0
        .pop()
        .unwrap_or_else(|| unknown(&format!("when {} has no values", condition.key)))
}

fn by_key(key: &str, values: &[String], namespace: &str, context: &Context<'_>) -> Test {
    let claim = |way: &[&str]| {
        Test::Claim(
            way.iter().map(|&name| name.into()).collect(),
            patterns(values),
        )
    };
    match key {
        "source.ip" => Test::SourceAddresses(networks(values)),
        "remote.ip" => Test::RemoteAddresses(networks(values)),
        "source.namespace" => namespaces(values),
        "source.serviceAccount" => accounts(values, namespace),
        "source.principal" => {
            let patterns = values.iter().flat_map(|value| principals(value, context));
            Test::Principals(patterns.collect())
        }
        "request.auth.principal" => request_principals(values),
        "request.auth.audiences" => claim(&["aud"]),
        "request.auth.presenter" => claim(&["azp"]),
        "destination.ip" => Test::DestinationAddresses(networks(values)),
        "destination.port" => ports(values),
        "connection.sni" => Test::ServerNames(patterns(values)),
        key => {
            if let Some(names) = key.strip_prefix("request.auth.claims") {
                return bracketed(names).map_or(Test::Unknown, |way| claim(&way));
            }
            if let Some(key) = said(key) {
                return Test::Said(
                    key.into(),
                    values.iter().map(|it| Wanted::new(it)).collect(),
                );
            }
            header(key).map_or(Test::Unknown, |field| Test::Header(field, patterns(values)))
        }
    }
}

/// `request.headers[name]`, or `request.experimental.inline.headers[name]`: one of the elements of a list.
fn header(key: &str) -> Option<Field> {
    let (names, field): (&str, fn(&str) -> Option<Field>) =
        match key.strip_prefix("request.experimental.inline.headers") {
            Some(names) => (names, Field::element),
            None => (key.strip_prefix("request.headers")?, Field::new),
        };
    match bracketed(names)?.as_slice() {
        [name] => field(name),
        _ => None,
    }
}

/// The key of `experimental.` with the namespace of authorizers and a key in brackets. In other namespaces nobody has said
/// anything when policies judge.
fn said(key: &str) -> Option<&str> {
    let key = key
        .strip_prefix("experimental.")?
        .strip_prefix(AUTHORIZERS)?;
    let key = key.strip_prefix('[')?.strip_suffix(']')?;
    (!key.is_empty()).then_some(key)
}

/// `[a][b]` is `a`, `b`. A name may have brackets of its own only if they do not look like the end of it.
fn bracketed(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<&str> = inner.split("][").collect();
    let odd = |name: &&str| name.is_empty() || name.contains(['[', ']']);
    (!names.iter().any(odd)).then_some(names)
}

fn patterns(values: &[String]) -> Box<[Pattern]> {
    values.iter().map(|value| Pattern::new(value)).collect()
}

fn namespaces(values: &[String]) -> Test {
    Test::Namespaces(values.iter().map(|value| Glob::new(value)).collect())
}

fn accounts(values: &[String], namespace: &str) -> Test {
    let accounts = values.iter().map(|value| Account::new(value, namespace));
    Test::Accounts(accounts.collect())
}

fn request_principals(values: &[String]) -> Test {
    Test::RequestPrincipals(
        values
            .iter()
            .map(|value| RequestPrincipal::new(value))
            .collect(),
    )
}

fn ports(values: &[String]) -> Test {
    let port = |value: &String| {
        let plain = value.bytes().all(|byte| byte.is_ascii_digit());
        value.parse().ok().filter(|_| plain)
    };
    Test::Ports(values.iter().map(port).collect())
}

/// An address, or a network.
fn networks(values: &[String]) -> Box<[Option<IpNet>]> {
    let network = |value: &String| {
        let whole = || value.parse::<IpAddr>().ok().map(IpNet::from);
        value.parse().ok().or_else(whole).map(canonical)
    };
    values.iter().map(network).collect()
}

/// `::ffff:a.b.c.d/n` is `a.b.c.d/(n-96)`.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(six) = net else {
        return net;
    };
    let four = six
        .addr()
        .to_ipv4_mapped()
        .filter(|_| six.prefix_len() >= 96);
    let short = four.and_then(|address| IpNet::new(address.into(), six.prefix_len() - 96).ok());
    short.unwrap_or(net)
}

/// A condition that nobody can decide.
fn unknown(text: &str) -> Condition {
    Condition {
        text: text.into(),
        values: Some(Test::Unknown),
        not_values: None,
    }
}

/// The conditions of one clause.
#[derive(Default)]
struct List(Vec<Condition>);

impl List {
    fn add(
        &mut self,
        name: &str,
        values: &[String],
        not_values: &[String],
        test: impl Fn(&[String]) -> Test,
    ) {
        if values.is_empty() && not_values.is_empty() {
            return;
        }
        let text = match (values, not_values) {
            ([], not) => format!("{name} not in {not:?}"),
            (values, []) => format!("{name} in {values:?}"),
            (values, not) => format!("{name} in {values:?}, not in {not:?}"),
        };
        self.0.push(Condition {
            text: text.into(),
            values: (!values.is_empty()).then(|| test(values)),
            not_values: (!not_values.is_empty()).then(|| test(not_values)),
        });
    }

    /// A clause that says nothing is one of which something is not known here.
    fn done(mut self, name: &str) -> Clause {
        if self.0.is_empty() {
            self.0
                .push(unknown(&format!("{name} says nothing that is known here")));
        }
        self.0.into()
    }
}
