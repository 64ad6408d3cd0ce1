//! One condition of a rule: something about a request that is one of `values`, and none of `not_values`.

use std::net::IpAddr;

use ipnet::IpNet;
use prost_types::Value as Told;
use prost_types::value::Kind;
use serde_json::Value;

use super::facts::{Facts, Http};
use super::header::Field;
use super::path::PathPattern;
use super::pattern::{Case, Glob, Pattern};
use super::principal::{Account, RequestPrincipal, is_one};
use super::truth::Truth;
use crate::asked::Claim;

/// What is asked about one thing.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    /// As the user wrote it, for `explain`.
    pub(super) text: Box<str>,
    /// One of them; None asks nothing.
    pub(super) values: Option<Test>,
    /// None of them.
    pub(super) not_values: Option<Test>,
}

/// One of several values. What is not there is none of them.
#[derive(Debug, Clone)]
pub(super) enum Test {
    Principals(Box<[Pattern]>),
    RequestPrincipals(Box<[RequestPrincipal]>),
    Namespaces(Box<[Glob]>),
    /// None: not an account's name.
    Accounts(Box<[Option<Account>]>),
    /// None: not a network.
    SourceAddresses(Box<[Option<IpNet>]>),
    RemoteAddresses(Box<[Option<IpNet>]>),
    DestinationAddresses(Box<[Option<IpNet>]>),
    /// None: not a port.
    Ports(Box<[Option<u16>]>),
    ServerNames(Box<[Pattern]>),
    Hosts(Box<[Pattern]>),
    Methods(Box<[Pattern]>),
    Paths(Box<[PathPattern]>),
    Header(Field, Box<[Pattern]>),
    /// Of a token: the way to it through nested objects.
    Claim(Box<[Box<str>]>, Box<[Pattern]>),
    /// What an authorizer has said under that key.
    Said(Box<str>, Box<[Wanted]>),
    /// Of something that is not known here.
    Unknown,
}

/// A value that an authorizer may have said.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    text: Pattern,
    /// `[text]`: as one of a list.
    listed: bool,
}

impl Condition {
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Truth {
        let values = self
            .values
            .as_ref()
            .map_or(Truth::Yes, |test| test.holds(facts));
        if values == Truth::No {
            return Truth::No;
        }
        let not = self
            .not_values
            .as_ref()
            .map_or(Truth::No, |test| test.holds(facts));
        values.min(not.contrary())
    }
}

impl Test {
    fn holds(&self, facts: &Facts<'_>) -> Truth {
        let source = || facts.client.address.ip();
        match self {
            Self::Principals(patterns) => is_one(facts.identity(), patterns),
            Self::Namespaces(globs) => facts.identity().map_or(Truth::No, |identity| {
                globs
                    .iter()
                    .any(|glob| glob.matches(identity.namespace()))
                    .into()
            }),
            Self::Accounts(accounts) => facts.identity().map_or(Truth::No, |identity| {
                any_known(accounts, |account| account.is(identity))
            }),
            Self::SourceAddresses(nets) => within(nets, source()),
            Self::DestinationAddresses(nets) => within(nets, facts.destination.ip()),
            Self::RemoteAddresses(nets) => remote_within(nets, facts),
            Self::Ports(ports) => any_known(ports, |port| *port == facts.port),
            Self::ServerNames(patterns) => match facts.sni {
                Some(name) => {
                    let name = name.strip_suffix('.').unwrap_or(name);
                    any_of(patterns, &[name.as_bytes()], Case::Ignored)
                }
                None if facts.unread => Truth::Undecidable,
                None => Truth::No,
            },
            of_requests => match &facts.http {
                None => Truth::Undecidable,
                Some(http) => of_requests.holds_for_request(http),
            },
        }
    }

    fn holds_for_request(&self, http: &Http<'_>) -> Truth {
        let asked = http.asked;
        match self {
            Self::RequestPrincipals(principals) => Truth::any(
                principals
                    .iter()
                    .map(|principal| principal.is(asked.claims)),
            ),
            Self::Hosts(patterns) => {
                Truth::any(patterns.iter().map(|pattern| is_host(pattern, http)))
            }
            Self::Methods(patterns) => {
                let method = asked.method.as_str().as_bytes();
                let exactly = any_of(patterns, &[method], Case::Counts);
                exactly.agreed(any_of(patterns, &[method], Case::Ignored))
            }
            Self::Paths(patterns) => {
                Truth::any(patterns.iter().map(|pattern| pattern.matches(&http.path)))
            }
            Self::Header(field, patterns) => field.matches(patterns, http),
            Self::Claim(way, patterns) => {
                let all = asked.claims.map(|claims| &claims.all);
                let (first, further) = match &**way {
                    [first, further @ ..] => (first, further),
                    [] => return Truth::Undecidable,
                };
                let mut found = all.and_then(|all| all.get(&**first));
                for name in further {
                    found = found.and_then(|value| value.as_object()?.get(&**name));
                }
                found.map_or(Truth::No, |value| is_claim(patterns, value))
            }
            Self::Said(key, wanted) => {
                let judged = http.said.and_then(|said| {
                    said.of_authorizers(key, |value| {
                        Truth::any(wanted.iter().map(|it| it.is(value)))
                    })
                });
                judged.unwrap_or(Truth::No)
            }
            _ => Truth::Undecidable,
        }
    }
}

impl Wanted {
    pub(super) fn new(text: &str) -> Self {
        let inner = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        Self {
            text: Pattern::new(inner.unwrap_or(text)),
            listed: inner.is_some(),
        }
    }

    /// A text where a list was meant, or the other way round, might be it; so might a number or a truth value that reads
    /// the same. What an object is worth against a text nobody knows.
    fn is(&self, value: &Told) -> Truth {
        let text = |it: &str| self.text.matches(&[it.as_bytes()], Case::Counts);
        let unsure = |it: Truth| it.min(Truth::Undecidable);
        match &value.kind {
            None | Some(Kind::NullValue(_)) => Truth::No,
            Some(Kind::StringValue(it)) if self.listed => unsure(text(it)),
            Some(Kind::StringValue(it)) => text(it),
            Some(Kind::BoolValue(it)) => unsure(text(&it.to_string())),
            Some(Kind::NumberValue(it)) => unsure(text(&it.to_string())),
            Some(Kind::StructValue(_)) => Truth::Undecidable,
            Some(Kind::ListValue(all)) => {
                let any = Truth::any(all.values.iter().map(|it| match &it.kind {
                    Some(Kind::StringValue(it)) => text(it),
                    Some(Kind::ListValue(_)) => Truth::Undecidable,
                    _ => self.is(it),
                }));
                if self.listed { any } else { unsure(any) }
            }
        }
    }
}

fn any_of(patterns: &[Pattern], pieces: &[&[u8]], case: Case) -> Truth {
    Truth::any(patterns.iter().map(|pattern| pattern.matches(pieces, case)))
}

/// One that could not be read might be it.
fn any_known<T>(list: &[Option<T>], is: impl Fn(&T) -> bool) -> Truth {
    let truth = |entry: &Option<T>| {
        entry
            .as_ref()
            .map_or(Truth::Undecidable, |known| is(known).into())
    };
    Truth::any(list.iter().map(truth))
}

fn within(nets: &[Option<IpNet>], address: IpAddr) -> Truth {
    let address = address.to_canonical();
    any_known(nets, |net| net.contains(&address))
}

fn remote_within(nets: &[Option<IpNet>], facts: &Facts<'_>) -> Truth {
    let known = within(nets, facts.remote.address);
    match facts.remote.claim {
        Claim::Nothing => known,
        Claim::Address(claimed) => known.agreed(within(nets, claimed)),
        Claim::Unreadable => Truth::Undecidable,
    }
}

/// The host as it is named, with its port or without. A port that is not named may be the one that is meant.
fn is_host(pattern: &Pattern, http: &Http<'_>) -> Truth {
    let asked = http.asked;
    let matches = |port: Option<u16>| {
        let name = asked.host.as_bytes();
        let Some(port) = port else {
            return pattern.matches(&[name], Case::Ignored);
        };
        let mut digits = [0; 5];
        pattern.matches(&[name, b":", decimal(port, &mut digits)], Case::Ignored)
    };
    let plain = matches(None);
    if plain == Truth::Yes {
        return plain;
    }
    match http.named_port() {
        Some(Some(port)) => plain.max(matches(Some(port))),
        Some(None) => {
            let usual = if asked.scheme == "https" { 443 } else { 80 };
            let meant = matches(Some(usual)).max(matches(Some(asked.port)));
            plain.max(meant.min(Truth::Undecidable))
        }
        None => Truth::Undecidable,
    }
}

fn decimal(number: u16, digits: &mut [u8; 5]) -> &[u8] {
    let mut left = number;
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        if left == 0 {
            return &digits[at..];
        }
    }
}

/// Text, or one of a list of texts. Numbers and truth values are written as JSON has them, and what they are worth
/// against a text nobody knows; so with objects.
fn is_claim(patterns: &[Pattern], value: &Value) -> Truth {
    let text = |text: &str| any_of(patterns, &[text.as_bytes()], Case::Counts);
    match value {
        Value::Null => Truth::No,
        Value::String(value) => text(value),
        Value::Bool(_) | Value::Number(_) => text(&value.to_string()).min(Truth::Undecidable),
        Value::Object(_) => Truth::Undecidable,
        Value::Array(values) => Truth::any(values.iter().map(|value| match value {
            Value::Array(_) => Truth::Undecidable,
            value => is_claim(patterns, value),
        })),
    }
}
