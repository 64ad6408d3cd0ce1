//! Pure: what may be asked for keys.
//!
//! `jwksUri` is written by whoever may write a policy; it must not make the proxy read what only the proxy can reach:
//! itself, its node, the metadata service of a cloud. Private networks are allowed, because issuers run in clusters.
//! A name is checked by the addresses it leads to, and those are what is connected to; redirects are not followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

/// What is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// With TLS.
    pub secure: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Whether a URI may be asked at all; its host's addresses must pass [`is_allowed`] as well, as one that it names
/// itself must here.
///
/// # Errors
/// What is wrong with it.
pub fn may_be_asked(uri: &Uri) -> Result<Place, String> {
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("neither http:// nor https://".to_owned()),
    };
    let authority = uri.authority().ok_or("no host")?;
    if authority.as_str().contains('@') {
        return Err("it has a user's name".to_owned());
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if host.is_empty() {
        return Err("no host".to_owned());
    }
    if host == "localhost" || host.ends_with(".localhost") {
        return Err("the host is the proxy itself".to_owned());
    }
    // `0x7f.1`, `2130706433` and such are addresses to resolvers, though not to us.
    let last = host.rsplit('.').next().unwrap_or_default();
    let numeric = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
    match host.parse::<IpAddr>() {
        Ok(address) if !is_allowed(address) => return Err(format!("{address} may not be asked")),
        Err(_) if numeric => return Err("the host is neither a name nor an address".to_owned()),
        _ => {}
    }
    let usual = if secure { 443 } else { 80 };
    Ok(Place {
        secure,
        host,
        port: authority.port_u16().unwrap_or(usual),
    })
}

/// Whether an address may be connected to.
pub fn is_allowed(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_allowed_v4(address),
        IpAddr::V6(address) => is_allowed_v6(address),
    }
}

fn is_allowed_v4(address: Ipv4Addr) -> bool {
    const METADATA: [Ipv4Addr; 2] = [
        Ipv4Addr::new(100, 100, 100, 200), // Alibaba Cloud
        Ipv4Addr::new(168, 63, 129, 16),   // Azure
    ];
    let octets = address.octets();
    let this_host_or_net = octets[0] == 0;
    let protocol_assignments = octets[..3] == [192, 0, 0]; // Oracle Cloud's metadata among them
    let reserved = octets[0] >= 240; // and broadcast
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || this_host_or_net
        || protocol_assignments
        || reserved
        || METADATA.contains(&address))
}

fn is_allowed_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let four = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_allowed_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // ::, ::1, and IPv4 in its oldest disguise
        [0, 0, 0, 0, 0, 0, high, low] => high != 0 && four(high, low),
        // translated to IPv4: NAT64, 6to4
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => four(high, low),
        [0x64, 0xff9b, ..] => false,
        [0x2002, high, low, ..] => four(high, low),
        // Teredo
        [0x2001, 0, ..] => false,
        // metadata of AWS and Google Cloud
        [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, ..] => false,
        // link-local and site-local; multicast
        [first, ..] => first & 0xff80 != 0xfe80 && first & 0xff00 != 0xff00,
    }
}
