//! One rule of a RequestAuthentication, compiled.

use std::sync::Arc;
use std::time::Duration;

use api::waypoint as wire;
use http::{HeaderName, header};

use super::keys::Keys;
use super::sets::{KeySet, KeySets, Where};
use super::token::Fault;
use crate::route::ServiceName;

/// When none is given.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time a request waits for keys, whatever a policy says.
const LONGEST_FETCH: Duration = Duration::from_secs(30);

/// One rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) issuer: Box<str>,
    /// Empty = any.
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) source: Source,
    pub(super) places: Box<[Place]>,
    /// The app gets the token, too.
    pub(super) forward: bool,
    /// The payload, as the token has it, goes here.
    pub(super) payload_header: Option<HeaderName>,
    pub(super) claim_headers: Box<[ClaimHeader]>,
    pub(super) fetch_timeout: Duration,
    /// Claims that are lists, divided by spaces.
    pub(super) lists: Box<[Box<str>]>,
}

/// Where keys come from.
#[derive(Debug)]
pub(super) enum Source {
    Inline(Arc<Keys>),
    Fetched(Arc<KeySet>),
    /// Why the rule cannot be read.
    Unreadable(Box<str>),
}

impl Rule {
    /// Whether the issuer is the rule's. A rule that cannot be read has none: it refuses all.
    pub(super) fn is_by_issuer(&self, issuer: &str) -> Result<(), Fault> {
        let is = self.issuer.is_empty() || *self.issuer == *issuer;
        if is { Ok(()) } else { Err(Fault::Issuer) }
    }

    /// Whether one of the audiences is the rule's.
    pub(super) fn is_for_us(&self, audiences: &[String]) -> Result<(), Fault> {
        let ours = |audience: &String| self.audiences.iter().any(|ours| **ours == **audience);
        let is = self.audiences.is_empty() || audiences.iter().any(ours);
        if is { Ok(()) } else { Err(Fault::Audience) }
    }
}

impl Source {
    /// The keys, if nobody must be asked for them.
    pub(super) fn keys_at_hand(&self) -> Option<Arc<Keys>> {
        match self {
            Self::Inline(keys) => Some(keys.clone()),
            Self::Fetched(set) => set.keys_at_hand(),
            Self::Unreadable(_) => None,
        }
    }
}

/// Where a token may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind a prefix: `Bearer `
    Header(HeaderName, Box<str>),
    /// Of the query.
    Parameter(Box<str>),
    Cookie(Box<str>),
}

#[derive(Debug)]
pub(super) struct ClaimHeader {
    pub(super) header: HeaderName,
    /// The way through nested objects.
    pub(super) claim: Box<[Box<str>]>,
}

/// The rules of a policy. One that cannot be read at all is a rule that refuses tokens in the usual places.
pub(super) fn compile(policy: &wire::Authentication, sets: &KeySets) -> Vec<Rule> {
    if policy.invalid.is_empty() {
        return policy
            .rules
            .iter()
            .map(|rule| compile_rule(rule, sets))
            .collect();
    }
    let mut rules = vec![unreadable(&policy.invalid, usual_places())];
    for rule in &policy.rules {
        rules.push(unreadable(
            &policy.invalid,
            places(rule).unwrap_or_default(),
        ));
    }
    rules
}

/// All headers that rules write.
pub(super) fn written_headers(rules: &[Arc<Rule>]) -> Box<[HeaderName]> {
    let mut names: Vec<HeaderName> = Vec::new();
    for rule in rules {
        names.extend(rule.payload_header.clone());
        names.extend(rule.claim_headers.iter().map(|claim| claim.header.clone()));
    }
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names.into()
}

fn compile_rule(rule: &wire::JwtRule, sets: &KeySets) -> Rule {
    let places = match places(rule) {
        Ok(places) => places,
        Err(why) => return unreadable(&why, usual_places()),
    };
    match read(rule, sets) {
        Ok(read) => Rule { places, ..read },
        Err(why) => unreadable(&why, places),
    }
}

fn read(rule: &wire::JwtRule, sets: &KeySets) -> Result<Rule, String> {
    if rule.issuer.is_empty() {
        return Err("no issuer".to_owned());
    }
    let payload_header = match &*rule.output_payload_header {
        "" => None,
        name => Some(writable(name)?),
    };
    let claim_header = |claim: &wire::ClaimHeader| {
        Ok::<_, String>(ClaimHeader {
            header: writable(&claim.header)?,
            claim: claim.claim.split('.').map(Into::into).collect(),
        })
    };
    let fetch_timeout = match rule.fetch_timeout {
        0 => FETCH_TIMEOUT,
        some => Duration::from_millis(some).min(LONGEST_FETCH),
    };
    Ok(Rule {
        issuer: rule.issuer.as_str().into(),
        audiences: rule
            .audiences
            .iter()
            .map(|audience| audience.as_str().into())
            .collect(),
        source: source(rule, sets)?,
        places: Box::default(),
        forward: rule.forward,
        payload_header,
        claim_headers: rule
            .claims_to_headers
            .iter()
            .map(claim_header)
            .collect::<Result<_, _>>()?,
        fetch_timeout,
        lists: lists(rule),
    })
}

fn source(rule: &wire::JwtRule, sets: &KeySets) -> Result<Source, String> {
    if !rule.jwks.is_empty() {
        let keys = sets.inline(&rule.jwks);
        return keys
            .map(Source::Inline)
            .map_err(|error| format!("jwks: {error}"));
    }
    let uri: Box<str> = rule.jwks_uri.as_str().into();
    let place = match &rule.service {
        _ if uri.is_empty() => Where::Discovered(rule.issuer.as_str().into()),
        Some(service) => Where::Of(ServiceName::compile(service)?, uri),
        None => Where::At(uri),
    };
    sets.of(place).map(Source::Fetched)
}

fn unreadable(why: &str, places: Box<[Place]>) -> Rule {
    Rule {
        issuer: Box::default(),
        audiences: Box::default(),
        source: Source::Unreadable(why.into()),
        places,
        forward: false,
        payload_header: None,
        claim_headers: Box::default(),
        fetch_timeout: FETCH_TIMEOUT,
        lists: Box::default(),
    }
}

/// Where nothing else is said.
fn usual_places() -> Box<[Place]> {
    Box::new([
        Place::Header(header::AUTHORIZATION, "Bearer ".into()),
        Place::Parameter("access_token".into()),
    ])
}

fn places(rule: &wire::JwtRule) -> Result<Box<[Place]>, String> {
    let mut places = Vec::new();
    for location in &rule.from_headers {
        let name = HeaderName::from_bytes(location.name.as_bytes())
            .map_err(|_| format!("{:?} is not a header's name", location.name))?;
        places.push(Place::Header(name, location.prefix.as_str().into()));
    }
    places.extend(
        rule.from_params
            .iter()
            .map(|name| Place::Parameter(name.as_str().into())),
    );
    places.extend(
        rule.from_cookies
            .iter()
            .map(|name| Place::Cookie(name.as_str().into())),
    );
    if places.is_empty() {
        return Ok(usual_places());
    }
    Ok(places.into())
}

/// Claims that are lists, divided by spaces.
fn lists(rule: &wire::JwtRule) -> Box<[Box<str>]> {
    let usual: &[&str] = if rule.spaces_in_scope {
        &["scope", "permission"]
    } else {
        &[]
    };
    let named = rule.space_delimited_claims.iter().map(String::as_str);
    usual.iter().copied().chain(named).map(Into::into).collect()
}

/// A header that a policy may have written: not one by which requests are framed or routed.
fn writable(name: &str) -> Result<HeaderName, String> {
    const NEVER: [HeaderName; 9] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
        header::CONTENT_TYPE,
    ];
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if NEVER.contains(&name) => Err(format!("{name} may not be written")),
        Ok(name) => Ok(name),
        Err(_) => Err(format!("{name:?} is not a header's name")),
    }
}
