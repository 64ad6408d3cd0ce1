//! Pure: the header that tells an endpoint who its client is (PROXY protocol, versions 1 and 2).

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// `client` has connected to `to`.
pub(super) fn header(version: u8, client: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (from, to) = same_family(client, to);
    match version {
        1 => first(from, to),
        _ => second(from, to),
    }
}

fn first(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let (ip, port) = (from.ip(), from.port());
    format!("PROXY {family} {ip} {} {port} {}\r\n", to.ip(), to.port()).into_bytes()
}

fn second(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(0x21); // version 2, PROXY
    let addresses = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.push(0x11); // TCP over IPv4
            [&from.octets()[..], &to.octets()].concat()
        }
        (from, to) => {
            header.push(0x21); // TCP over IPv6
            [&wide(from)[..], &wide(to)].concat()
        }
    };
    let length = addresses.len() + 4;
    header.extend_from_slice(&[0, length as u8]); // 12 or 36
    header.extend_from_slice(&addresses);
    header.extend_from_slice(&from.port().to_be_bytes());
    header.extend_from_slice(&to.port().to_be_bytes());
    header
}

/// A header has one family for both.
fn same_family(from: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    if from.is_ipv4() == to.is_ipv4() {
        return (from, to);
    }
    let wider = |address: SocketAddr| SocketAddr::new(wide(address.ip()).into(), address.port());
    (wider(from), wider(to))
}

fn wide(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_protocol_has_them() {
        let (from, to) = ("10.1.2.3:4000", "10.9.8.7:80");
        let [from, to] = [from, to].map(|text| text.parse().unwrap());
        assert_eq!(
            header(1, from, to),
            b"PROXY TCP4 10.1.2.3 10.9.8.7 4000 80\r\n"
        );
        let second = header(2, from, to);
        let addresses = [10, 1, 2, 3, 10, 9, 8, 7, 15, 160, 0, 80];
        assert_eq!(second[..12], SIGNATURE);
        assert_eq!(second[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(second[16..], addresses);
        let six: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        assert_eq!(header(2, six, six).len(), 16 + 36);
        assert_eq!(
            header(1, six, to),
            b"PROXY TCP6 2001:db8::1 ::ffff:10.9.8.7 1 80\r\n"
        );
    }
}
