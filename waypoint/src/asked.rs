//! What is asked, in the one form that routing, policies, limits and reports judge.
//!
//! A request enters, an [`Asked`] leaves: the host in lower case without its port, the path normalised
//! (`normalise`). Upstream gets the same path, so nobody downstream of a decision sees another one.

use std::net::SocketAddr;

use http::{HeaderMap, Method};

use crate::authenticate::Claims;
use crate::client::Client;

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
    /// Of a token that was found good.
    pub claims: Option<&'a Claims>,
}
