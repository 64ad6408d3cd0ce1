//! Frames in, what is learnt from them out.

use proptest::prelude::*;
use rustls::AlertDescription;

use super::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn heads(pieces: &[&[u8]]) -> Vec<Head> {
    let mut found = Vec::new();
    let mut heads = Heads::new(0);
    for piece in pieces {
        heads.feed(piece, |h| found.push(h));
    }
    found
}

#[test]
fn a_window_update_is_read_with_its_increment() {
    let bytes = [
        frame(WINDOW_UPDATE, 0, 0, &16_711_681u32.to_be_bytes()),
        frame(PING, 0, 0, &[0; 8]),
    ]
    .concat();
    let found = heads(&[&bytes]);
    assert_eq!(
        found[0],
        Head {
            length: 4,
            kind: WINDOW_UPDATE,
            flags: 0,
            stream: 0,
            number: 16_711_681
        }
    );
    assert_eq!(found[1].kind, PING);
}

#[test]
fn unread_data_shows_as_a_stall_until_credit_returns() {
    let gauge = Gauge::new();
    gauge.granted(16_711_681);
    assert!(!gauge.stalled());
    gauge.sent(8 << 20);
    assert!(!gauge.stalled());
    gauge.sent(1 << 20);
    assert!(gauge.stalled());
    gauge.granted(2 << 20);
    assert!(!gauge.stalled());
}

#[tokio::test]
async fn streams_that_we_refuse_are_handed_over_once() {
    let gauge = Gauge::new();
    let mut sent = Gauged::server(tokio::io::sink(), gauge.clone());
    let reset = |code: u32| frame(RST_STREAM, 0, 1, &code.to_be_bytes());
    // NO_ERROR and CANCEL are no refusals.
    for code in [PROTOCOL_ERROR, 0, REFUSED_STREAM, 8, PROTOCOL_ERROR] {
        tokio::io::AsyncWriteExt::write_all(&mut sent, &reset(code))
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    gauge.refused_streams(|kind| seen.push(kind));
    gauge.refused_streams(|kind| seen.push(kind));
    let malformed = Refusal::MalformedStream;
    assert_eq!(seen, [malformed, malformed, Refusal::SurplusStream]);
}

/// An end that takes nothing any more; the last that it has said is still to be read.
struct Gone(&'static [u8], AlertDescription);

impl AsyncRead for Gone {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = std::mem::take(&mut self.0);
        buf.put_slice(said);
        if said.is_empty() {
            let alert = rustls::Error::AlertReceived(self.1);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, alert)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gone {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_client_that_can_write_no_more_still_hears_why_it_is_refused() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let revoked = AlertDescription::CertificateRevoked;
    let gauge = Gauge::new();
    let mut client = Gauged::client(Gone(b"", revoked), gauge.clone());
    for _ in 0..2 {
        client.write_all(b"a request").await.unwrap();
        client.flush().await.unwrap();
    }
    assert_eq!(gauge.refusal(), None);
    client.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(gauge.refusal(), Some(Alert::CERTIFICATE_REVOKED));

    // Behind the server's first frame it is of another kind.
    let gauge = Gauge::new();
    let mut client = Gauged::client(Gone(&[0; 9], revoked), gauge.clone());
    assert_eq!(client.read(&mut [0; 64]).await.unwrap(), 9);
    client.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(gauge.refusal(), None);

    let gauge = Gauge::new();
    let mut server = Gauged::server(Gone(b"", revoked), gauge.clone());
    server.write_all(b"an answer").await.unwrap_err();
    server.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(gauge.refusal(), None);
}

#[test]
fn a_flood_is_named_once_and_stays() {
    let gauge = Gauge::new();
    let mut inbound = Inbound::new();
    let ping = Head {
        length: 8,
        kind: PING,
        flags: 0,
        stream: 0,
        number: 0,
    };
    for _ in 0..1000 {
        inbound.saw(ping, &gauge);
    }
    assert_eq!(gauge.flood(), None);
    // Far more than time may have given back, however slow this machine is.
    for _ in 0..50_000 {
        inbound.saw(ping, &gauge);
    }
    assert_eq!(gauge.flood(), Some(Refusal::PingFlood));
    gauge.saw_flood(Refusal::ResetFlood);
    assert_eq!(gauge.flood(), Some(Refusal::PingFlood));
}

proptest! {
    #[test]
    fn heads_do_not_depend_on_how_the_bytes_are_cut(
        frames in prop::collection::vec((0u8..12, any::<u8>(), 0u32..1000, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
        cuts in prop::collection::vec(1usize..9, 0..200),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(k, f, s, p)| frame(*k, *f, *s, p)).collect();
        let whole = heads(&[&bytes]);
        prop_assert_eq!(whole.len(), frames.len());
        for (head, (kind, flags, stream, payload)) in whole.iter().zip(&frames) {
            prop_assert_eq!((head.kind, head.flags, head.stream, head.length as usize), (*kind, *flags, *stream, payload.len()));
        }
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(heads(&pieces), whole);
    }
}
