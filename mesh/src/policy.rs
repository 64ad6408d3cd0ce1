//! A layer 4 policy: who may connect to what.
//!
//! groups are ORed · the rules of a group are ANDed · the matches of a rule are ORed · the fields
//! of a match are ANDed · the values of a field are ORed · `not_…` fields are negated.

use std::sync::Arc;

use api::security as wire;
use ipnet::IpNet;

use crate::names::Interner;
use crate::parse::{self, ParseError};

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `namespace/name`: the resource name, and how workloads refer to it.
    pub key: Arc<str>,
    /// Namespace of the object it was made from.
    pub namespace: Arc<str>,
    /// Name of the object it was made from.
    pub name: Arc<str>,
    /// Whom it applies to.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// When it matches.
    pub groups: Box<[Group]>,
    /// Evaluated for the log only.
    pub dry_run: bool,
    /// Carries something this version cannot read: an ALLOW then allows nothing, and a DENY
    /// denies as if every condition that is not known held.
    pub unreadable: bool,
}

/// Whom a policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyScope {
    /// Every workload.
    Global,
    /// The workloads of its namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection is allowed, unless denied.
    Allow,
    /// The connection is denied.
    Deny,
}

/// Rules that must all match. Without rules it always matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// The rules.
    pub rules: Box<[Rule]>,
}

/// Matches of which one is enough. Without matches it always matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The matches.
    pub matches: Box<[Match]>,
}

/// Fields that must all match. Without any field it never matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Namespace of the source.
    pub namespaces: Box<[StringMatch]>,
    /// Not the namespace of the source.
    pub not_namespaces: Box<[StringMatch]>,
    /// Identity of the source, without `spiffe://`.
    pub principals: Box<[StringMatch]>,
    /// Not the identity of the source.
    pub not_principals: Box<[StringMatch]>,
    /// Address of the source.
    pub source_ips: Box<[IpNet]>,
    /// Not the address of the source.
    pub not_source_ips: Box<[IpNet]>,
    /// Address of the destination.
    pub destination_ips: Box<[IpNet]>,
    /// Not the address of the destination.
    pub not_destination_ips: Box<[IpNet]>,
    /// Port of the destination.
    pub destination_ports: Box<[u16]>,
    /// Not the port of the destination.
    pub not_destination_ports: Box<[u16]>,
    /// Service account of the source.
    pub service_accounts: Box<[ServiceAccountMatch]>,
    /// Not the service account of the source.
    pub not_service_accounts: Box<[ServiceAccountMatch]>,
    /// Carries a condition this version cannot read: an ALLOW never matches through it, and a DENY
    /// matches as if the condition held.
    pub unreadable: bool,
}

/// A condition on a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// The same text.
    Exact(Arc<str>),
    /// Begins with it.
    Prefix(Arc<str>),
    /// Ends with it.
    Suffix(Arc<str>),
    /// There is a text at all.
    Presence,
}

/// A service account and its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

impl Policy {
    /// Parses a message. `key` is the resource name and must be the message's `namespace/name`.
    pub fn parse(
        key: Arc<str>,
        message: wire::Authorization,
        names: &mut Interner,
    ) -> Result<Self, ParseError> {
        parse::required("name", &message.name)?;
        if key.split_once('/') != Some((&message.namespace, &message.name)) {
            return Err(ParseError::NameMismatch(format!(
                "{}/{}",
                message.namespace, message.name
            )));
        }
        let groups = message
            .groups
            .into_iter()
            .map(|group| Group::parse(group, names));
        Ok(Self {
            groups: groups.collect::<Result<_, _>>()?,
            scope: match parse::value("scope", message.scope)? {
                wire::Scope::Global => PolicyScope::Global,
                wire::Scope::Namespace => PolicyScope::Namespace,
                wire::Scope::WorkloadSelector => PolicyScope::WorkloadSelector,
            },
            action: match parse::value("action", message.action)? {
                wire::Action::Allow => Action::Allow,
                wire::Action::Deny => Action::Deny,
            },
            dry_run: message.dry_run,
            unreadable: !message.extensions.is_empty(),
            namespace: names.text(&message.namespace),
            name: names.text(&message.name),
            key,
        })
    }
}

impl Policy {
    /// The same policy, known to carry more than was read.
    pub(crate) fn not_fully_read(mut self) -> Self {
        self.unreadable = true;
        let rules = self
            .groups
            .iter_mut()
            .flat_map(|group| group.rules.iter_mut());
        rules
            .flat_map(|rule| rule.matches.iter_mut())
            .for_each(|found| found.unreadable = true);
        self
    }
}

/// Takes texts of a kind that is not known here out of a message that was not understood, so that the rest of it can be parsed:
/// where one of them is wanted, that condition is taken to hold; where it is not wanted, it is nobody's. What this widens,
/// [`Policy::not_fully_read`] takes back.
pub(crate) fn without_unknown_texts(message: &mut wire::Authorization) {
    let rules = message
        .groups
        .iter_mut()
        .flat_map(|group| group.rules.iter_mut());
    for found in rules.flat_map(|rule| rule.matches.iter_mut()) {
        for wanted in [&mut found.namespaces, &mut found.principals] {
            if wanted.iter().any(|text| text.match_type.is_none()) {
                wanted.clear();
            }
        }
        for unwanted in [&mut found.not_namespaces, &mut found.not_principals] {
            unwanted.retain(|text| text.match_type.is_some());
        }
    }
}

impl TryFrom<wire::Authorization> for Policy {
    type Error = ParseError;

    fn try_from(message: wire::Authorization) -> Result<Self, ParseError> {
        let key = format!("{}/{}", message.namespace, message.name);
        Self::parse(key.into(), message, &mut Interner::default())
    }
}

impl Group {
    fn parse(found: wire::Group, names: &mut Interner) -> Result<Self, ParseError> {
        let rules = found.rules.into_iter().map(|rule| Rule::parse(rule, names));
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }
}

impl Rule {
    fn parse(found: wire::Rules, names: &mut Interner) -> Result<Self, ParseError> {
        let matches = found
            .matches
            .into_iter()
            .map(|found| Match::parse(found, names));
        Ok(Self {
            matches: matches.collect::<Result<_, _>>()?,
        })
    }
}

impl Match {
    fn parse(found: wire::Match, names: &mut Interner) -> Result<Self, ParseError> {
        Ok(Self {
            namespaces: texts("namespaces", found.namespaces, names)?,
            not_namespaces: texts("not_namespaces", found.not_namespaces, names)?,
            principals: texts("principals", found.principals, names)?,
            not_principals: texts("not_principals", found.not_principals, names)?,
            source_ips: nets("source_ips", &found.source_ips)?,
            not_source_ips: nets("not_source_ips", &found.not_source_ips)?,
            destination_ips: nets("destination_ips", &found.destination_ips)?,
            not_destination_ips: nets("not_destination_ips", &found.not_destination_ips)?,
            destination_ports: ports("destination_ports", found.destination_ports)?,
            not_destination_ports: ports("not_destination_ports", found.not_destination_ports)?,
            service_accounts: accounts(found.service_accounts, names),
            not_service_accounts: accounts(found.not_service_accounts, names),
            unreadable: !found.extensions.is_empty(),
        })
    }
}

fn texts(
    field: &'static str,
    found: Vec<wire::StringMatch>,
    names: &mut Interner,
) -> Result<Box<[StringMatch]>, ParseError> {
    use wire::string_match::MatchType;
    let one = |found: wire::StringMatch| {
        Ok(
            match found.match_type.ok_or(ParseError::EmptyMatch(field))? {
                MatchType::Exact(text) => StringMatch::Exact(names.text(&text)),
                MatchType::Prefix(text) => StringMatch::Prefix(names.text(&text)),
                MatchType::Suffix(text) => StringMatch::Suffix(names.text(&text)),
                MatchType::Presence(_) => StringMatch::Presence,
            },
        )
    };
    found.into_iter().map(one).collect()
}

fn nets(field: &'static str, found: &[wire::Address]) -> Result<Box<[IpNet]>, ParseError> {
    found
        .iter()
        .map(|address| parse::net(field, &address.address, address.length))
        .collect()
}

fn ports(field: &'static str, found: Vec<u32>) -> Result<Box<[u16]>, ParseError> {
    found
        .into_iter()
        .map(|value| parse::port(field, value))
        .collect()
}

fn accounts(
    found: Vec<wire::ServiceAccountMatch>,
    names: &mut Interner,
) -> Box<[ServiceAccountMatch]> {
    let one = |found: wire::ServiceAccountMatch| ServiceAccountMatch {
        namespace: names.text(&found.namespace),
        service_account: names.text(&found.service_account),
    };
    found.into_iter().map(one).collect()
}
