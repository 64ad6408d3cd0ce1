//! Nobody listens there: the app that sent is told so by the message that would have come from there (ICMP, type 3 code 3; of
//! IPv6 type 1 code 4). A socket that is connected then says "connection refused"; others hear nothing, as ever.
//!
//! The other end says it in a capsule ([`hbone::datagrams::closed`]), or the kernel does of a socket that leads there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::netns::Netns;

/// Tells an app, and not too often.
pub(super) struct Teller<'a> {
    netns: &'a Netns,
    /// Leads to it, with the address of whom it talks to.
    app: &'a UdpSocket,
    told: Option<Instant>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(netns: &'a Netns, app: &'a UdpSocket) -> Self {
        let told = None;
        Self { netns, app, told }
    }

    /// It is told; if that cannot be done, it hears as little as of anything that is lost.
    pub(super) fn tell(&mut self) {
        if self.told.is_some_and(|told| told.elapsed() < EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        if let Err(error) = self.send() {
            tracing::debug!(%error, "an app could not be told that nobody listens");
        }
    }

    fn send(&self) -> io::Result<()> {
        let (app, other) = (self.app.peer_addr()?, self.app.local_addr()?);
        let message = match (app, other) {
            (SocketAddr::V4(app), SocketAddr::V4(other)) => {
                let ports = (app.port(), other.port());
                v4((*app.ip(), *other.ip()), ports)
            }
            (SocketAddr::V6(app), SocketAddr::V6(other)) => {
                let ports = (app.port(), other.port());
                v6((*app.ip(), *other.ip()), ports)
            }
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = self.netns.icmp(app.ip())?;
        let to = SocketAddr::new(app.ip(), 0);
        socket.send_to(&message, &to.into()).map(drop)
    }
}

/// Of the datagram that was sent from the first to the second: its two headers are what says whose socket is meant.
fn v4((from, to): (Ipv4Addr, Ipv4Addr), ports: (u16, u16)) -> Vec<u8> {
    let mut header = [0; 20];
    (header[0], header[3], header[8], header[9]) = (0x45, 28, 64, UDP);
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &header, &datagram(ports)].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// The same; its checksum is the kernel's affair.
fn v6((from, to): (Ipv6Addr, Ipv6Addr), ports: (u16, u16)) -> Vec<u8> {
    let mut header = [0; 40];
    (header[0], header[5], header[6], header[7]) = (0x60, 8, UDP, 64);
    header[8..24].copy_from_slice(&from.octets());
    header[24..40].copy_from_slice(&to.octets());
    [&[1, 4, 0, 0, 0, 0, 0, 0][..], &header, &datagram(ports)].concat()
}

fn datagram((from, to): (u16, u16)) -> [u8; 8] {
    let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
    [a, b, c, d, 0, 8, 0, 0]
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2);
    let sum: u32 = words
        .map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_be_bytes()
}

const UDP: u8 = 17;
/// As often as a kernel says it to one host, and more often than an app needs.
const EVERY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_both_addresses_and_ports_and_adds_up() {
        let message = v4(([10, 0, 0, 1].into(), [10, 1, 2, 3].into()), (4000, 53));
        assert_eq!((message.len(), &message[..2]), (36, &[3, 3][..]));
        // What is summed with its own sum is nothing.
        assert_eq!(
            (checksum(&message), checksum(&message[8..28])),
            ([0; 2], [0; 2])
        );
        assert_eq!(
            message[8 + 12..],
            [
                &[10, 0, 0, 1, 10, 1, 2, 3][..],
                &[0x0f, 0xa0, 0, 53, 0, 8, 0, 0]
            ]
            .concat()
        );
        let (from, to) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let message = v6((from, to), (4000, 53));
        assert_eq!((message.len(), &message[..2]), (56, &[1, 4][..]));
        assert_eq!(message[16..32], from.octets());
        assert_eq!(message[32..48], to.octets());
    }
}
