//! What tells one kind of request from another.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};

use api::waypoint as wire;
use api::waypoint::limit_key::By;
use http::header::HeaderName;

use crate::asked::Asked;

/// A part of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    by: PartBy,
    /// Its name for a rate limit service.
    pub(super) descriptor: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PartBy {
    Fixed(Box<str>),
    Identity,
    Namespace,
    Address,
    Header(HeaderName),
    Claim(Box<str>),
    Path,
    Method,
}

impl Part {
    pub(super) fn compile(found: &wire::LimitKey) -> Result<Self, String> {
        let by = By::try_from(found.by).map_err(|_| format!("key {} is not known", found.by))?;
        let (by, usual) = match by {
            By::Fixed => (PartBy::Fixed(found.name.as_str().into()), "generic_key"),
            By::Identity => (PartBy::Identity, "source_principal"),
            By::Namespace => (PartBy::Namespace, "source_namespace"),
            By::Address => (PartBy::Address, "remote_address"),
            By::Header => {
                let name = found.name.parse();
                let name = name.map_err(|_| format!("{:?} is not a header's name", found.name))?;
                (PartBy::Header(name), &*found.name)
            }
            By::Claim if found.name.is_empty() => return Err("a claim without a name".to_owned()),
            By::Claim => (PartBy::Claim(found.name.as_str().into()), &*found.name),
            By::Path => (PartBy::Path, "path"),
            By::Method => (PartBy::Method, "method"),
        };
        let descriptor = match &*found.descriptor {
            "" => usual,
            named => named,
        };
        Ok(Self {
            by,
            descriptor: descriptor.into(),
        })
    }

    /// What the request says; None if it says nothing.
    pub(super) fn value<'a>(&'a self, asked: &'a Asked<'_>) -> Option<Cow<'a, str>> {
        let client = asked.client;
        match &self.by {
            PartBy::Fixed(text) => Some(Cow::Borrowed(text)),
            PartBy::Identity => client.identity.as_ref().map(|it| it.to_string().into()),
            PartBy::Namespace => client.namespace().map(Cow::Borrowed),
            PartBy::Address => Some(client.address.ip().to_canonical().to_string().into()),
            PartBy::Header(name) => {
                let value = asked.headers.get(name)?.as_bytes();
                Some(String::from_utf8_lossy(value))
            }
            PartBy::Claim(name) => claim(&asked.claims?.all, name),
            PartBy::Path => Some(Cow::Borrowed(asked.path)),
            PartBy::Method => Some(Cow::Borrowed(asked.method.as_str())),
        }
    }
}

/// A claim by its name, or by the way to it: `a.b` is `b` of `a`.
fn claim<'a>(
    claims: &'a serde_json::Map<String, serde_json::Value>,
    name: &str,
) -> Option<Cow<'a, str>> {
    let found = match claims.get(name) {
        Some(found) => found,
        None => {
            let (first, rest) = name.split_once('.')?;
            return claim(claims.get(first)?.as_object()?, rest);
        }
    };
    match found {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(Cow::Borrowed(text)),
        other => Some(other.to_string().into()),
    }
}

/// The whole key of a request, to be hashed without putting it together.
pub(super) struct Whole<'a, 'r>(pub(super) &'a [Part], pub(super) &'a Asked<'r>);

impl Hash for Whole<'_, '_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for part in self.0 {
            // What says nothing is a kind of its own, and not the same as an empty text.
            match (&part.by, &self.1.client.identity) {
                (PartBy::Identity, identity) => identity.hash(state),
                (PartBy::Address, _) => self.1.client.address.ip().to_canonical().hash(state),
                _ => part.value(self.1).hash(state),
            }
        }
    }
}
