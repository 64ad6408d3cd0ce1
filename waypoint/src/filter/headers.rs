//! Headers that are set, added and removed.

use api::waypoint as wire;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request;
use http::uri::Authority;

use super::address::set_host;
use crate::asked::is_double;

/// What is changed: removed first, then set, then added, so that what is added stays. Of a request, what a client has sent
/// under a name that apps may take for one that is removed or set goes as well: it would be believed in its place.
#[derive(Debug, Clone, Default)]
pub struct HeaderChange {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    host: Option<Authority>,
}

impl HeaderChange {
    /// What is wrong with it, or the change.
    pub fn compile(wire: &wire::HeaderChange) -> Result<Self, String> {
        let mut set = Vec::with_capacity(wire.set.len());
        let mut host = None;
        for header in &wire.set {
            match header.name.as_str() {
                name if name.eq_ignore_ascii_case("host") || name == ":authority" => {
                    host = Some(authority(&header.value)?);
                }
                _ => set.push(pair(header)?),
            }
        }
        Ok(Self {
            remove: wire
                .remove
                .iter()
                .map(|it| name(it))
                .collect::<Result<_, _>>()?,
            set: set.into(),
            add: wire.add.iter().map(pair).collect::<Result<_, _>>()?,
            host,
        })
    }

    pub(super) fn request(&self, parts: &mut request::Parts) {
        let doubles = parts.headers.keys().filter(|name| self.is_double(name));
        let doubles: Vec<HeaderName> = doubles.cloned().collect();
        for name in doubles {
            parts.headers.remove(name);
        }
        self.response(&mut parts.headers);
        if let Some(host) = &self.host {
            set_host(parts, host);
        }
    }

    /// Whether a header is another one than those that are removed or set, and the same to some apps.
    fn is_double(&self, name: &HeaderName) -> bool {
        let ours = || {
            self.remove
                .iter()
                .chain(self.set.iter().map(|(name, _)| name))
        };
        ours().any(|ours| is_double(name, ours)) && ours().all(|ours| ours != name)
    }

    pub(super) fn response(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

pub(super) fn authority(text: &str) -> Result<Authority, String> {
    text.parse().map_err(|_| format!("{text:?} is not a host"))
}

/// Connection-specific headers are the proxy's own: a rule that touched them would break what it is carried by.
fn name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("{text:?} is not a name of a header"))?;
    let own = [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if own.contains(&name.as_str()) || name == HOST {
        return Err(format!("header {name} is not a rule's to change"));
    }
    Ok(name)
}

pub(super) fn pair(header: &wire::Header) -> Result<(HeaderName, HeaderValue), String> {
    let value = HeaderValue::from_str(&header.value)
        .or_else(|_| HeaderValue::from_bytes(header.value.as_bytes()))
        .map_err(|_| format!("{:?} cannot be the value of a header", header.value))?;
    Ok((name(&header.name)?, value))
}
