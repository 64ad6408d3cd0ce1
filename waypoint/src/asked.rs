//! What is asked, in the one form that routing, policies, limits and reports judge.
//!
//! A request enters, an [`Asked`] leaves: the host in lower case without its port ([`host()`]), the path normalised
//! ([`normalise`]), the address behind trusted proxies ([`remote()`]). Upstream gets the same path
//! ([`put_path`]), so nobody downstream of a decision sees another one.

mod host;
mod path;
mod remote;

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, Method};

use crate::authenticate::Claims;
use crate::client::Client;

pub use host::{Host, authority, host};
pub use path::{Form, normalise, put_path, put_query, target};
pub(crate) use path::{liberal, liberal_pattern, normal_pattern};
pub use remote::{Claim, Remote, remote};

/// A request, as it is judged.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// As sent; methods are case-sensitive (RFC 9110 9.1).
    pub method: &'a Method,
    /// `http` or `https`: whether the client's connection to the app was TLS that ends here.
    pub scheme: &'static str,
    /// Host in lower case, without port.
    pub host: &'a str,
    /// `:authority` or `Host` as sent, for policies that name a port.
    pub authority: &'a str,
    /// Normalised, without query; `*` for `OPTIONS *`.
    pub path: &'a str,
    /// Without `?`.
    pub query: Option<&'a str>,
    /// All of them.
    pub headers: &'a HeaderMap,
    /// The service's port it was addressed to, or the listener's.
    pub port: u16,
    /// Where it was addressed to, as the client meant it.
    pub destination: SocketAddr,
    /// Server name of TLS that ends here.
    pub sni: Option<&'a str>,
    /// Who asks.
    pub client: &'a Client,
    /// Where the request comes from, behind proxies.
    pub remote: Remote,
    /// Of a token that was found good.
    pub claims: Option<&'a Claims>,
}

/// A request that could be read in more than one way: it is answered with 400, before anything is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Neither `/…` nor, for OPTIONS, `*`.
    #[error("the path does not begin with /")]
    NotAPath,
    /// `%` that is not followed by two hexadecimal digits.
    #[error("the path has an incomplete escape")]
    Escape,
    /// A NUL or another control character, plain or as NUL's escape.
    #[error("the path has a control character")]
    Control,
    /// What would be a dot segment for those who decode more, or cut off parameters (`/..;x/`).
    #[error("the path has a hidden dot segment")]
    HiddenDots,
    /// No host at all.
    #[error("the request names no host")]
    NoHost,
    /// More than one.
    #[error("the request names two hosts")]
    TwoHosts,
    /// Not a name or address with an optional port.
    #[error("the host is malformed")]
    Host,
}

/// Whether two headers are one to apps that know headers as variables (CGI, WSGI), where a dash is an underscore.
pub(crate) fn is_double(one: &HeaderName, other: &HeaderName) -> bool {
    let (one, other) = (one.as_str().as_bytes(), other.as_str().as_bytes());
    let dashed = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
    one.len() == other.len() && one != other && one.iter().map(dashed).eq(other.iter().map(dashed))
}

/// Removes the doubles of some headers, of which only we may write the one that counts.
pub(crate) fn remove_doubles(headers: &mut HeaderMap, of: &[HeaderName]) {
    let double = |name: &&HeaderName| of.iter().any(|of| is_double(name, of));
    let doubles: Vec<HeaderName> = headers.keys().filter(double).cloned().collect();
    for name in doubles {
        headers.remove(name);
    }
}
