//! What a CONNECT says: where to, and what it carries along.
//!
//! Pure. Text of a peer enters; an [`Authority`] that can be acted upon leaves, or nothing. One
//! spelling per destination: no user info, no missing port, no IPv4 with leading zeros, no zone.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The destination of a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `10.0.0.1:80` or `[2001:db8::1]:80`.
    Ip(SocketAddr),
    /// `server.default.svc.cluster.local:80`: name in lower case, port.
    Host(String, u16),
}

impl Authority {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Host(_, port) => *port,
        }
    }
}

/// A text that is not an [`Authority`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not ip:port or host:port")]
pub struct AuthorityError(pub String);

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| AuthorityError(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

fn parse(text: &str) -> Option<Authority> {
    let (host, port) = text.rsplit_once(':')?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.starts_with('0') {
        return None;
    }
    let port: u16 = port.parse().ok()?;
    if let Some(inner) = host.strip_prefix('[') {
        let v6: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(Authority::Ip(SocketAddr::new(v6.into(), port)));
    }
    if let Ok(v4) = host.parse::<std::net::Ipv4Addr>() {
        return Some(Authority::Ip(SocketAddr::new(IpAddr::V4(v4), port)));
    }
    is_name(host).then(|| Authority::Host(host.to_ascii_lowercase(), port))
}

fn is_name(host: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // Four numbers that are no IPv4 address (010.0.0.1, 1.2.3.400) are a mistake, not a name.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    host.len() <= 253 && !numeric && host.split('.').all(label)
}

/// The headers of a CONNECT that mean something to a mesh; all others are ignored. Values that are
/// not visible ASCII count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHeaders {
    /// `baggage`: who the sender says it is, for telemetry only. Several are joined with commas.
    pub baggage: Option<Box<str>>,
    /// `forwarded`: see [`RequestHeaders::forwarded_for`].
    pub forwarded: Option<Box<str>>,
    /// `traceparent` (W3C).
    pub traceparent: Option<Box<str>>,
    /// `x-forwarded-network`: network of the source, in the inner request of double HBONE.
    pub x_forwarded_network: Option<Box<str>>,
    /// `x-istio-source`: `waypoint`, `gateway` or `sidecar`.
    pub x_istio_source: Option<Box<str>>,
}

impl RequestHeaders {
    /// The address in `for="ip:port"`, or `for="ip"` with port 0.
    pub fn forwarded_for(&self) -> Option<SocketAddr> {
        let value = forwarded_parameter(self.forwarded.as_deref()?, "for")?;
        if let Ok(address) = value.parse::<SocketAddr>() {
            return Some(address);
        }
        let bare = value
            .strip_prefix('[')
            .and_then(|v| v.strip_suffix(']'))
            .unwrap_or(value);
        bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0))
    }

    /// The host in `host=…`: the service host the sender meant.
    pub fn forwarded_host(&self) -> Option<&str> {
        forwarded_parameter(self.forwarded.as_deref()?, "host")
    }
}

/// The value of one parameter of the first element of a `Forwarded` header, without its quotes.
fn forwarded_parameter<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let first = header.split(',').next()?;
    first.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value
            .strip_prefix('"')
            .and_then(|v| v.strip_suffix('"'))
            .unwrap_or(value);
        key.trim().eq_ignore_ascii_case(name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn destinations_are_read_as_written() {
        for (text, expected) in [
            (
                "10.0.0.1:80",
                Some(Authority::Ip("10.0.0.1:80".parse().unwrap())),
            ),
            (
                "[2001:db8::1]:65535",
                Some(Authority::Ip("[2001:db8::1]:65535".parse().unwrap())),
            ),
            (
                "Server.default.svc.cluster.local:9000",
                Some(Authority::Host(
                    "server.default.svc.cluster.local".into(),
                    9000,
                )),
            ),
            ("a_b:1", Some(Authority::Host("a_b".into(), 1))),
            ("10.0.0.1", None),
            ("10.0.0.1:", None),
            ("10.0.0.1:0", None),
            ("10.0.0.1:080", None),
            ("10.0.0.1:65536", None),
            ("10.0.0.1:+80", None),
            ("010.0.0.1:80", None),
            ("1.2.3.400:80", None),
            ("2001:db8::1:80", None),
            ("[fe80::1%1]:80", None),
            ("[10.0.0.1]:80", None),
            ("user@host:80", None),
            ("host..x:80", None),
            (":80", None),
            ("", None),
            ("a/b:80", None),
            ("not an authority", None),
        ] {
            assert_eq!(text.parse::<Authority>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn forwarded_names_the_client_and_the_host() {
        let with = |text: &str| RequestHeaders {
            forwarded: Some(text.into()),
            ..Default::default()
        };
        assert_eq!(
            with("for=\"10.99.0.2:1234\"").forwarded_for(),
            Some("10.99.0.2:1234".parse().unwrap())
        );
        assert_eq!(
            with("for=\"[2001:db8::1]:7\";host=a.b").forwarded_for(),
            Some("[2001:db8::1]:7".parse().unwrap())
        );
        assert_eq!(
            with("for=\"[2001:db8::1]:7\";host=a.b").forwarded_host(),
            Some("a.b")
        );
        assert_eq!(
            with("For=10.0.0.1").forwarded_for(),
            Some("10.0.0.1:0".parse().unwrap())
        );
        assert_eq!(with("for=unknown").forwarded_for(), None);
        assert_eq!(RequestHeaders::default().forwarded_for(), None);
    }

    proptest! {
        #[test]
        fn an_authority_prints_as_something_that_parses_to_it(text in "[a-zA-Z0-9.:_@ \\[\\]-]{0,40}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>().unwrap(), authority);
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Authority>();
            let _ = RequestHeaders { forwarded: Some(text.into()), ..Default::default() }.forwarded_for();
        }
    }
}
