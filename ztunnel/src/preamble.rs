//! Pure: what a waypoint in a captured pod is told before the first byte of a tunnel: PROXY protocol version 2.
//!
//! The header says where the connection came from and where it was going; one extension carries who the client is
//! proven to be, another the name of the service that was called. The waypoint has no certificate of the client to
//! look at: this header is its only word for it, so it is written by us alone and never copied from a peer.

use std::net::{IpAddr, SocketAddr};

/// The fixed first 12 bytes, chosen by the protocol's authors so that no other protocol begins so.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_PROXY: u8 = 0x21;
/// Extension: identity of the client.
const IDENTITY: u8 = 0xd0;
/// Extension: host name of the service.
const SERVICE: u8 = 0xd1;

/// The header for one connection. Source and destination of different families are written as IPv6.
pub(crate) fn preamble(
    from: SocketAddr,
    to: SocketAddr,
    identity: &str,
    service: Option<&str>,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + identity.len());
    let family = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            0x11
        }
        (from, to) => {
            for ip in [from, to] {
                body.extend(match ip {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                });
            }
            0x21
        }
    };
    body.extend(from.port().to_be_bytes());
    body.extend(to.port().to_be_bytes());
    extension(&mut body, IDENTITY, identity);
    if let Some(service) = service {
        extension(&mut body, SERVICE, service);
    }
    // Two addresses, an identity (at most 2,048 bytes) and a host name (253) fit 16 bits many times over.
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(16 + body.len());
    header.extend(SIGNATURE);
    header.extend([VERSION_PROXY, family]);
    header.extend(length.to_be_bytes());
    header.extend(body);
    header
}

fn extension(body: &mut Vec<u8>, kind: u8, text: &str) {
    let Ok(length) = u16::try_from(text.len()) else {
        return;
    };
    body.push(kind);
    body.extend(length.to_be_bytes());
    body.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_as_the_protocol_says_in_both_families() {
        let v4 = preamble(
            "10.0.0.1:1000".parse().unwrap(),
            "10.1.0.1:80".parse().unwrap(),
            "spiffe://x",
            Some("a.b"),
        );
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        expected.extend([
            0, 31, 10, 0, 0, 1, 10, 1, 0, 1, 0x03, 0xe8, 0, 80, 0xd0, 0, 10,
        ]);
        expected.extend(b"spiffe://x");
        expected.extend([0xd1, 0, 3]);
        expected.extend(b"a.b");
        assert_eq!(v4, expected);

        let v6 = preamble(
            "[fd00::1]:1".parse().unwrap(),
            "10.1.0.1:80".parse().unwrap(),
            "",
            None,
        );
        assert_eq!(v6[13], 0x21);
        assert_eq!(v6.len(), 16 + 36 + 3);
        assert_eq!(v6[42..48], [0xff, 0xff, 10, 1, 0, 1]);
    }
}
