//! The host that is asked for.
//!
//! 1. one authority, wherever it was written ([`authority`])
//! 2. its name, in one spelling, and its port ([`host`])

use std::borrow::Cow;

use http::{HeaderMap, Uri, header};

use super::Unclear;

/// Longest host, in bytes: that of a DNS name, and room for its root's dot.
const LONGEST: usize = 254;

/// An authority, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host<'a> {
    /// In lower case, without the root's dot at the end; an IPv6 address keeps its brackets.
    pub name: Cow<'a, str>,
    /// If it was given.
    pub port: Option<u16>,
}

/// What a request is for: `:authority`, the authority of an absolute target, or `Host`.
///
/// # Errors
/// When there is none, more than one `Host`, or when they differ: who comes behind may believe the other one.
pub fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Unclear> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let named = match hosts.next() {
        Some(value) => Some(value.to_str().map_err(|_| Unclear::Host)?),
        None => None,
    };
    if hosts.next().is_some() {
        return Err(Unclear::TwoHosts);
    }
    let asked = uri.authority().map(http::uri::Authority::as_str);
    match (asked, named) {
        (Some(asked), Some(named)) if !asked.eq_ignore_ascii_case(named) => Err(Unclear::TwoHosts),
        (Some(one), _) | (None, Some(one)) if !one.is_empty() => Ok(one),
        _ => Err(Unclear::NoHost),
    }
}

/// Takes an authority apart.
///
/// # Errors
/// When it is not a DNS name, an IPv4 address or an IPv6 address in brackets, with an optional port: user names,
/// escapes and anything else that could be read in two ways are refused.
pub fn host(authority: &str) -> Result<Host<'_>, Unclear> {
    let (name, port) = split(authority)?;
    let port = match port {
        None => None,
        Some(digits) => Some(number(digits)?),
    };
    let name = if let Some(address) = name.strip_prefix('[') {
        let address = address.strip_suffix(']').ok_or(Unclear::Host)?;
        address
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| Unclear::Host)?;
        name
    } else {
        let name = name.strip_suffix('.').unwrap_or(name);
        check_name(name)?;
        name
    };
    let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    };
    Ok(Host { name, port })
}

/// Name and the digits of the port.
fn split(authority: &str) -> Result<(&str, Option<&str>), Unclear> {
    let end_of_name = if authority.starts_with('[') {
        authority.find(']').ok_or(Unclear::Host)? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (name, rest) = authority.split_at(end_of_name);
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Ok((name, None)),
        Some(digits) => Ok((name, Some(digits))),
        None => Err(Unclear::Host),
    }
}

fn number(digits: &str) -> Result<u16, Unclear> {
    if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Unclear::Host);
    }
    digits.parse().map_err(|_| Unclear::Host)
}

fn check_name(name: &str) -> Result<(), Unclear> {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let labels = !name.starts_with('.') && !name.ends_with('.') && !name.contains("..");
    if name.is_empty() || name.len() > LONGEST || !labels || !name.bytes().all(allowed) {
        return Err(Unclear::Host);
    }
    Ok(())
}
