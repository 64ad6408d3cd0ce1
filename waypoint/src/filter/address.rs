//! Where a request goes, said anew: to the client (redirect) or to the app (rewrite).

use api::waypoint as wire;
use api::waypoint::path_change::Change;
use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderValue, LOCATION};
use http::uri::{Authority, PathAndQuery};
use http::{StatusCode, Uri, Version, request};
use regex::bytes::Regex;

use super::About;
use super::answer::{Answer, Reason};
use super::headers::authority;
use crate::asked::{Form, normalise};
use crate::route::search;

/// What a path becomes.
#[derive(Debug, Clone)]
pub enum PathChange {
    /// This.
    Full(Box<str>),
    /// This in the place of what the match was about.
    Prefix(Box<str>),
    /// Wherever the expression matches, the substitution.
    Regex(Regex, Box<[u8]>),
}

/// Answered with another address.
#[derive(Debug, Clone)]
pub struct Redirect {
    scheme: Option<Box<str>>,
    host: Option<Box<str>>,
    path: Option<PathChange>,
    port: Option<u16>,
    status: StatusCode,
    strip_query: bool,
}

/// Another host or path towards the app.
#[derive(Debug, Clone)]
pub struct Rewrite {
    host: Option<Authority>,
    path: Option<PathChange>,
}

impl PathChange {
    fn compile(wire: Option<&wire::PathChange>) -> Result<Option<Self>, String> {
        let Some(change) = wire.and_then(|wire| wire.change.as_ref()) else {
            return Ok(None);
        };
        Ok(Some(match change {
            Change::Full(path) => Self::Full(path.as_str().into()),
            Change::Prefix(prefix) => Self::Prefix(prefix.as_str().into()),
            Change::Regex(regex) => {
                let pattern = search(&regex.pattern)?;
                let template = substitution(&regex.substitution, pattern.captures_len())?;
                Self::Regex(pattern, template)
            }
        }))
    }

    /// The new path in its normal form; begins with a slash whatever the rule says.
    fn apply(&self, path: &str, about: &About<'_>) -> Option<String> {
        let new = match self {
            Self::Full(full) => full.to_string(),
            Self::Prefix(prefix) => about.matched.replace(path, prefix),
            Self::Regex(pattern, template) => {
                let new = pattern.replace_all(path.as_bytes(), &**template);
                String::from_utf8(new.into_owned()).ok()?
            }
        };
        let new = match new.starts_with('/') {
            true => new,
            false => format!("/{new}"),
        };
        // What stood in its normal form stays so: `/a` to `/` makes `/x` of `/a/x`, not `//x`.
        let (path, query) = new.split_once('?').unwrap_or((&new, ""));
        let path = normalise(path, Form::default()).ok()?;
        Some(match query {
            "" => path.into_owned(),
            query => format!("{path}?{query}"),
        })
    }
}

/// `\1` as the regex crate writes it; every other `$` and `\\` stands for itself.
fn substitution(text: &str, groups: usize) -> Result<Box<[u8]>, String> {
    let mut template = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '$' => template.extend_from_slice(b"$$"),
            '\\' => match rest.next() {
                Some('\\') => template.push(b'\\'),
                Some(digit @ '0'..='9') => {
                    if digit as usize - '0' as usize >= groups {
                        return Err(format!("substitution {text:?}: there is no group {digit}"));
                    }
                    template.extend_from_slice(format!("${{{digit}}}").as_bytes());
                }
                _ => return Err(format!("substitution {text:?}: a digit or \\ follows a \\")),
            },
            other => template.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Ok(template.into())
}

impl Redirect {
    /// What is wrong with it, or the redirect.
    pub fn compile(wire: &wire::Redirect) -> Result<Self, String> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_ascii_lowercase().into());
        if !wire.hostname.is_empty() {
            authority(&wire.hostname)?;
        }
        if !matches!(&*wire.scheme.to_ascii_lowercase(), "" | "http" | "https") {
            return Err(format!("redirect to scheme {:?}", wire.scheme));
        }
        Ok(Self {
            scheme: some(&wire.scheme),
            host: some(&wire.hostname),
            path: PathChange::compile(wire.path.as_ref())?,
            port: match wire.port {
                0 => None,
                port => Some(u16::try_from(port).map_err(|_| format!("redirect to port {port}"))?),
            },
            status: match wire.status {
                0 => StatusCode::FOUND,
                301 | 302 | 303 | 307 | 308 => u16::try_from(wire.status)
                    .ok()
                    .and_then(|status| StatusCode::from_u16(status).ok())
                    .unwrap_or(StatusCode::FOUND),
                other => return Err(format!("redirect with status {other}")),
            },
            strip_query: wire.strip_query,
        })
    }

    pub(super) fn answer(&self, parts: &request::Parts, about: &About<'_>) -> Answer {
        let location = self.location(&parts.uri, about);
        let Some(location) = location.and_then(|text| HeaderValue::try_from(text).ok()) else {
            return Answer::broken("a redirect to what is no address");
        };
        Answer {
            status: self.status,
            headers: HeaderMap::from_iter([(LOCATION, location)]),
            body: Bytes::new(),
            reason: Reason::Redirect,
        }
    }

    fn location(&self, uri: &Uri, about: &About<'_>) -> Option<String> {
        let scheme = self.scheme.as_deref().unwrap_or(about.scheme);
        let host = self.host.as_deref().unwrap_or(about.host);
        // The listener's port goes with the listener's scheme; another scheme has its own.
        let port = self.port.or(self.scheme.is_none().then_some(about.port));
        let port = port.filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443)));
        let path = match &self.path {
            Some(change) => change.apply(uri.path(), about)?,
            None => uri.path().into(),
        };
        let mut location = format!("{scheme}://{host}");
        if let Some(port) = port {
            location.push_str(&format!(":{port}"));
        }
        location.push_str(&path);
        if let Some(query) = uri.query().filter(|_| !self.strip_query) {
            location.push(if path.contains('?') { '&' } else { '?' });
            location.push_str(query);
        }
        Some(location)
    }
}

impl Rewrite {
    /// What is wrong with it, or the rewrite.
    pub fn compile(wire: &wire::Rewrite) -> Result<Self, String> {
        let host = wire.hostname.as_str();
        Ok(Self {
            host: (!host.is_empty()).then(|| authority(host)).transpose()?,
            path: PathChange::compile(wire.path.as_ref())?,
        })
    }

    /// An answer if it cannot be done.
    pub(super) fn apply(&self, parts: &mut request::Parts, about: &About<'_>) -> Option<Answer> {
        if let Some(change) = &self.path {
            let new = change.apply(parts.uri.path(), about);
            if !new.is_some_and(|new| set_path(parts, &new)) {
                return Some(Answer::broken("a rewrite to what is no path"));
            }
        }
        if let Some(host) = &self.host {
            set_host(parts, host);
        }
        None
    }
}

/// Gives a request another host, wherever it says it. What the client said stays in `x-forwarded-host` only if
/// somebody writes it there.
pub fn set_host(parts: &mut request::Parts, host: &Authority) {
    if parts.uri.authority().is_some() {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.authority = Some(host.clone());
        parts.uri = Uri::from_parts(uri).unwrap_or_default();
    }
    let said = parts.headers.contains_key(HOST);
    if (said || parts.uri.authority().is_none() || parts.version < Version::HTTP_2)
        && let Ok(value) = HeaderValue::from_str(host.as_str())
    {
        parts.headers.insert(HOST, value);
    }
}

/// Gives a request another path; its query stays. False, and nothing is changed, if it is no path.
pub fn set_path(parts: &mut request::Parts, path: &str) -> bool {
    let new = match parts.uri.query() {
        Some(query) if path.contains('?') => format!("{path}&{query}"),
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let Ok(new) = PathAndQuery::try_from(new) else {
        return false;
    };
    let mut uri = parts.uri.clone().into_parts();
    uri.path_and_query = Some(new);
    match Uri::from_parts(uri) {
        Ok(uri) => {
            parts.uri = uri;
            true
        }
        Err(_) => false,
    }
}
