//! What a link of a node carries, packet by packet.
//!
//! 1. tcpdump on the node writes every packet that fits a filter into a file, at once
//! 2. the test waits until something is in it that it sent last: all that was sent before is in it too
//! 3. the file is read back and taken apart ([`packets`]); [`stream`] puts one direction of a TCP connection together again
//! 4. [`tls`] says whether such a stream is TLS from its first byte to its last

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};

use crate::{node::Node, wait::eventually};

/// A capture that is running.
pub struct Capture<'a> {
    node: &'a Node,
    file: String,
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its source; port 0 where it is not TCP.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// The segment, if it is TCP.
    pub tcp: Option<Segment>,
}

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Whether it opens the connection.
    pub syn: bool,
    /// What it carries.
    pub bytes: Vec<u8>,
}

impl Packet {
    /// Whether it goes from one of these addresses to one of those, or back.
    pub fn between(&self, these: &[String], those: &[String]) -> bool {
        let is = |address: SocketAddr, list: &[String]| list.contains(&address.ip().to_string());
        (is(self.from, these) && is(self.to, those)) || (is(self.from, those) && is(self.to, these))
    }

    /// Whether these bytes stand in it.
    pub fn carries(&self, marker: &str) -> bool {
        self.tcp.as_ref().is_some_and(|segment| {
            (segment.bytes.windows(marker.len())).any(|window| window == marker.as_bytes())
        })
    }
}

impl<'a> Capture<'a> {
    /// Begins to listen on a link of a node; returns as soon as it does.
    pub async fn start(node: &'a Node, link: &str, name: &str, filter: &str) -> Result<Self> {
        let file = format!("/tmp/{name}.pcap");
        let line = format!(
            "tcpdump --immediate-mode -Z root -U -s 0 -i {link} -w {file} '{filter}' >/dev/null 2>{file}.log & echo $! >{file}.pid; \
             until grep -q 'listening on' {file}.log; do kill -0 $(cat {file}.pid) || {{ cat {file}.log >&2; exit 1; }}; sleep 0.1; done"
        );
        node.sh(&line)
            .await?
            .success()
            .context("tcpdump does not start")?;
        Ok(Self { node, file })
    }

    /// Waits until a packet like this one is in it, then ends.
    pub async fn end_with(self, what: &str, last: impl Fn(&Packet) -> bool) -> Result<Vec<Packet>> {
        let found = eventually(
            &format!("{what} is seen on a link of {}", self.node.name),
            || async {
                let packets = self.read().await?;
                ensure!(packets.iter().any(&last), "{} other packets", packets.len());
                Ok(packets)
            },
        )
        .await;
        let file = &self.file;
        self.node
            .sh(&format!("kill $(cat {file}.pid); rm -f {file} {file}.*"))
            .await?
            .success()?;
        found
    }

    async fn read(&self) -> Result<Vec<Packet>> {
        let text = self
            .node
            .sh(&format!("od -An -v -tx1 {}", self.file))
            .await?
            .success()?;
        let bytes: Vec<u8> = text
            .split_ascii_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .context("what od said")?;
        packets(&bytes)
    }
}

/// Takes a file of tcpdump's apart: Ethernet, little endian. A packet that is still being written is left out.
pub fn packets(file: &[u8]) -> Result<Vec<Packet>> {
    let mut rest = file;
    let header = take(&mut rest, 24).context("no file header")?;
    ensure!(
        header[..4] == [0xd4, 0xc3, 0xb2, 0xa1] && header[20] == 1,
        "not a capture of an Ethernet link"
    );
    let mut packets = Vec::new();
    while let Some(header) = take(&mut rest, 16) {
        let length = u32::from_le_bytes(
            header[8..12]
                .try_into()
                .context("four bytes are not four")?,
        );
        let Some(frame) = take(&mut rest, length as usize) else {
            break;
        };
        packets.extend(packet(frame));
    }
    Ok(packets)
}

/// A frame, if it carries IP and is whole.
fn packet(mut frame: &[u8]) -> Option<Packet> {
    let ethernet = take(&mut frame, 14)?;
    let (from, to, protocol, payload) = match ethernet[12..] {
        [0x08, 0x00] => v4(frame)?,
        [0x86, 0xdd] => v6(frame)?,
        _ => return None,
    };
    if protocol != 6 {
        return Some(Packet {
            from: (from, 0).into(),
            to: (to, 0).into(),
            tcp: None,
        });
    }
    let header = payload.get(..20)?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let segment = Segment {
        sequence: u32::from_be_bytes(header[4..8].try_into().ok()?),
        syn: header[13] & 2 != 0,
        bytes: payload.get(usize::from(header[12] >> 4) * 4..)?.to_vec(),
    };
    Some(Packet {
        from: (from, port(0)).into(),
        to: (to, port(2)).into(),
        tcp: Some(segment),
    })
}

type Datagram<'a> = (IpAddr, IpAddr, u8, &'a [u8]);

fn v4(packet: &[u8]) -> Option<Datagram<'_>> {
    let address = |at: usize| {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
        ))
    };
    let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let header = usize::from(packet.first()? & 15) * 4;
    Some((
        address(12)?.into(),
        address(16)?.into(),
        *packet.get(9)?,
        packet.get(header..length)?,
    ))
}

fn v6(packet: &[u8]) -> Option<Datagram<'_>> {
    let address = |at: usize| {
        Some(Ipv6Addr::from(
            <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?,
        ))
    };
    let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    Some((
        address(8)?.into(),
        address(24)?.into(),
        *packet.get(6)?,
        packet.get(40..40 + length)?,
    ))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// What one end said on one connection, in its order, from the first byte on as far as nothing is missing.
/// Nothing, if the connection is older than the capture.
pub fn stream(packets: &[Packet], from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut segments: Vec<&Segment> = packets
        .iter()
        .filter(|packet| packet.from == from && packet.to == to)
        .filter_map(|packet| packet.tcp.as_ref())
        .collect();
    let Some(first) = segments
        .iter()
        .find(|segment| segment.syn)
        .map(|segment| segment.sequence.wrapping_add(1))
    else {
        return Vec::new();
    };
    segments.retain(|segment| !segment.syn);
    segments.sort_by_key(|segment| segment.sequence.wrapping_sub(first));
    let mut said = Vec::new();
    for segment in segments {
        let at = segment.sequence.wrapping_sub(first) as usize;
        // Said before is passed over; after a gap nothing is known.
        let Some(bytes) = said
            .len()
            .checked_sub(at)
            .and_then(|old| segment.bytes.get(old..))
        else {
            continue;
        };
        said.extend_from_slice(bytes);
    }
    said
}

/// How many records of TLS a stream consists of. The last may be incomplete; an error says where something else stands.
pub fn tls(mut stream: &[u8]) -> Result<usize> {
    let (whole, mut records) = (stream.len(), 0);
    while !stream.is_empty() {
        let at = whole - stream.len();
        let Some(header) = take(&mut stream, 5) else {
            break;
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let handshake_first = records > 0 || header[0] == 22;
        ensure!(
            handshake_first && (20..=23).contains(&header[0]) && header[1] == 3 && length <= 16_640,
            "no TLS at byte {at}: {header:02x?}"
        );
        stream = stream.get(length..).unwrap_or_default();
        records += 1;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "10.0.0.1:4000";
    const OTHER: &str = "10.0.0.2:15008";

    fn segment(sequence: u32, syn: bool, bytes: &[u8]) -> Packet {
        Packet {
            from: ONE.parse().unwrap(),
            to: OTHER.parse().unwrap(),
            tcp: Some(Segment {
                sequence,
                syn,
                bytes: bytes.into(),
            }),
        }
    }

    fn said(packets: &[Packet]) -> Vec<u8> {
        stream(packets, ONE.parse().unwrap(), OTHER.parse().unwrap())
    }

    /// A frame from 10.0.0.1:4000 to 10.0.0.2:15008 with a byte of padding behind it.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x0f, 0xa0, 0x3a, 0xa0, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x10]);
        frame.extend([0; 6]);
        frame.extend(payload);
        frame.push(0);
        frame
    }

    fn file(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1];
        file.extend([0; 16]);
        file.extend([1, 0, 0, 0]);
        for frame in frames {
            file.extend([0; 8]);
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend(length.iter().chain(&length));
            file.extend(frame);
        }
        file
    }

    #[test]
    fn a_capture_is_taken_apart_and_a_packet_half_written_is_left_out() {
        let whole = file(&[frame(b"a secret"), frame(b"")]);
        let found = packets(&whole).unwrap();
        assert_eq!(
            found,
            [segment(7, false, b"a secret"), segment(7, false, b"")]
        );
        assert!(found[0].carries("secret") && !found[1].carries("secret"));
        assert!(found[0].between(&["10.0.0.2".into()], &["10.0.0.1".into()]));
        assert_eq!(packets(&whole[..whole.len() - 1]).unwrap().len(), 1);
        assert!(packets(b"something else entirely").is_err());
    }

    #[test]
    fn a_stream_is_whole_whatever_came_twice_or_early() {
        let start = u32::MAX - 1; // numbers wrap around
        let packets = [
            segment(start, true, b""),
            segment(2, false, b"def"),
            segment(u32::MAX, false, b"abc"),
            segment(u32::MAX, false, b"abc"),
            segment(9, false, b"lost before this"),
        ];
        assert_eq!(said(&packets), b"abcdef");
        assert_eq!(said(&packets[1..]), b"", "its beginning is not known");
    }

    #[test]
    fn tls_is_told_from_everything_else() {
        let hello = [22, 3, 1, 0, 2, 9, 9];
        let data = [23, 3, 3, 0, 1, 9];
        assert_eq!(tls(&[&hello[..], &data].concat()).unwrap(), 2);
        assert_eq!(tls(&[&hello[..], &data[..5]].concat()).unwrap(), 2);
        assert!(tls(&data).is_err(), "it begins with a handshake");
        assert!(tls(&[&hello[..], b"GET / HTTP/1.1"].concat()).is_err());
        assert!(tls(b"GET / HTTP/1.1").is_err());
    }
}
