//! Conditions of a match beside host and path: all of them must hold.

use std::borrow::Cow;

use api::waypoint::{Match, NamedMatch, Workloads};
use http::header::HeaderName;
use http::{HeaderMap, Method};

use super::text::Text;
use crate::asked::{self, Asked};
use crate::client::Client;

/// What a match asks beside host and path.
#[derive(Debug, Clone, Default)]
pub(super) struct Predicate {
    pub(super) method: Option<How>,
    pub(super) headers: Box<[(HeaderName, Text)]>,
    pub(super) query: Box<[(Box<str>, Text)]>,
    scheme: Option<Text>,
    authority: Option<Text>,
    port: Option<u16>,
    namespaces: Box<[Box<str>]>,
    labels: Box<[(Label, Box<str>)]>,
    clients: Option<Clients>,
}

/// Workloads that a client must be one of, by uid, in order. One whose workload is not known is none of them.
#[derive(Debug, Clone)]
pub(super) struct Clients(Box<[Box<str>]>);

impl Clients {
    pub(super) fn compile(wire: &Option<Workloads>) -> Option<Self> {
        let mut uids = boxed(&wire.as_ref()?.uids);
        uids.sort_unstable();
        Some(Self(uids))
    }

    pub(super) fn have(&self, client: &Client) -> bool {
        let known = client.workload.as_ref();
        known.is_some_and(|it| self.0.binary_search_by(|one| (**one).cmp(&it.uid)).is_ok())
    }
}

/// Methods are mostly one word, and words compare fast.
#[derive(Debug, Clone)]
pub(super) enum How {
    Is(Method),
    Text(Text),
}

/// Labels of a client that a proxy learns of: from the mesh, else from its baggage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    App,
    Version,
}

impl Predicate {
    pub(super) fn compile(wire: &Match) -> Result<Self, String> {
        let text = |wire: &Option<_>| wire.as_ref().map(Text::compile).transpose();
        let method = match text(&wire.method)? {
            None => None,
            Some(text) => match text.only().map(Method::from_bytes) {
                Some(Ok(method)) => Some(How::Is(method)),
                Some(Err(_)) => return Err("a method that no request can have".into()),
                None => Some(How::Text(text)),
            },
        };
        Ok(Self {
            method,
            headers: wire.headers.iter().map(header).collect::<Result<_, _>>()?,
            query: wire.query.iter().map(named).collect::<Result<_, _>>()?,
            scheme: text(&wire.scheme)?,
            authority: text(&wire.authority)?,
            port: match wire.port {
                0 => None,
                port => Some(u16::try_from(port).map_err(|_| format!("port {port}"))?),
            },
            namespaces: boxed(&wire.source_namespaces),
            labels: wire
                .source_labels
                .iter()
                .map(|(name, value)| Ok((Label::named(name)?, value.as_str().into())))
                .collect::<Result<_, String>>()?,
            clients: Clients::compile(&wire.source_workloads),
        })
    }

    /// What can be understood of it: a first version that is not, closes what it is for, and rather more.
    pub(super) fn understood(wire: &Match) -> Self {
        let mut rest = wire.clone();
        for part in [&mut rest.method, &mut rest.scheme, &mut rest.authority] {
            part.take_if(|text| Text::compile(text).is_err());
        }
        rest.method.take_if(|_| {
            let method = Match {
                method: wire.method.clone(),
                ..Match::default()
            };
            Self::compile(&method).is_err()
        });
        rest.headers.retain(|one| header(one).is_ok());
        rest.query.retain(|one| named(one).is_ok());
        rest.source_labels
            .retain(|name, _| Label::named(name).is_ok());
        if u16::try_from(rest.port).is_err() {
            rest.port = 0;
        }
        Self::compile(&rest).unwrap_or_default()
    }

    /// The header that must have one exact value, if there is such a condition: what an index can use.
    pub(super) fn one_header(&self) -> Option<(&HeaderName, &[u8])> {
        self.headers
            .iter()
            .find_map(|(name, text)| Some((name, text.only()?)))
    }

    pub(super) fn holds(&self, asked: &Asked<'_>) -> bool {
        let method = match &self.method {
            None => true,
            Some(How::Is(method)) => asked.method == method,
            Some(How::Text(text)) => text.matches(Some(asked.method.as_str().as_bytes())),
        };
        method
            && self.port.is_none_or(|port| port == asked.port)
            && is(&self.scheme, asked.scheme)
            && self.is_for_host(asked)
            && self.headers.iter().all(|(name, text)| {
                let value = value(asked.headers, name);
                text.matches(value.as_deref())
            })
            && self.query.iter().all(|(name, text)| {
                let value = asked.query.and_then(|query| parameter(query, name));
                text.matches(value.as_deref())
            })
            && self.source(asked)
    }

    /// By its name alone, or with the port that it was asked for with: clients write one where it is not the usual one, and
    /// whoever matches hosts has to know of both. In its one spelling either way.
    fn is_for_host(&self, asked: &Asked<'_>) -> bool {
        let Some(text) = &self.authority else {
            return true;
        };
        let with_port = || {
            let port = asked::host(asked.authority).ok()?.port?;
            Some(format!("{}:{port}", asked.host))
        };
        text.matches(Some(asked.host.as_bytes()))
            || with_port().is_some_and(|it| text.matches(Some(it.as_bytes())))
    }

    fn source(&self, asked: &Asked<'_>) -> bool {
        let namespace = || {
            let namespace = asked.client.namespace();
            namespace.is_some_and(|is| self.namespaces.iter().any(|one| **one == *is))
        };
        (self.namespaces.is_empty() || namespace())
            && self.clients.as_ref().is_none_or(|it| it.have(asked.client))
            && self
                .labels
                .iter()
                .all(|(label, value)| label.of(asked) == Some(&**value))
    }
}

fn is(text: &Option<Text>, value: &str) -> bool {
    let matches = |text: &Text| text.matches(Some(value.as_bytes()));
    text.as_ref().is_none_or(matches)
}

fn boxed(texts: &[String]) -> Box<[Box<str>]> {
    texts.iter().map(|text| text.as_str().into()).collect()
}

fn header(wire: &NamedMatch) -> Result<(HeaderName, Text), String> {
    let name = HeaderName::from_bytes(wire.name.as_bytes())
        .map_err(|_| format!("{:?} is not a name of a header", wire.name))?;
    Ok((name, condition(wire)?))
}

fn named(wire: &NamedMatch) -> Result<(Box<str>, Text), String> {
    Ok((wire.name.as_str().into(), condition(wire)?))
}

/// A name without a condition asks that there is a value.
fn condition(wire: &NamedMatch) -> Result<Text, String> {
    match &wire.value {
        Some(value) => Text::compile(value),
        None => Err(format!("{:?} is compared with nothing", wire.name)),
    }
}

impl Label {
    fn named(name: &str) -> Result<Self, String> {
        match name {
            "app" | "app.kubernetes.io/name" | "service.istio.io/canonical-name" => Ok(Self::App),
            "version" | "app.kubernetes.io/version" | "service.istio.io/canonical-revision" => {
                Ok(Self::Version)
            }
            other => Err(format!(
                "label {other:?} of a client is not known to a waypoint; app and version are"
            )),
        }
    }

    fn of<'a>(self, asked: &Asked<'a>) -> Option<&'a str> {
        let client = asked.client;
        let (known, said) = match self {
            Self::App => (
                client.workload.as_ref().map(|known| &*known.canonical_name),
                client.said.service.as_ref().or(client.said.app.as_ref()),
            ),
            Self::Version => (
                client
                    .workload
                    .as_ref()
                    .map(|known| &*known.canonical_revision),
                client
                    .said
                    .revision
                    .as_ref()
                    .or(client.said.version.as_ref()),
            ),
        };
        known.or_else(|| said.map(|said| &**said))
    }
}

/// The value of a header; several are one, with commas (RFC 9110 5.2).
pub(super) fn value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else {
        return Some(Cow::Borrowed(first));
    };
    let mut joined = [first, b",", second.as_bytes()].concat();
    for value in values {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(joined))
}

/// The first value of a parameter, decoded. A parameter without `=` has an empty one.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let same = key == name || (escaped(key) && decoded(key)[..] == *name.as_bytes());
        same.then(|| decoded(value))
    })
}

fn escaped(text: &str) -> bool {
    text.bytes().any(|byte| matches!(byte, b'%' | b'+'))
}

/// `%xx` is a byte and `+` a space; what is no escape stands for itself.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !escaped(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |at: usize| (*after.get(at)? as char).to_digit(16);
        rest = after;
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            (other, ..) => bytes.push(*other),
        }
    }
    Cow::Owned(bytes)
}
