//! The handshake under our records: in any pieces, and not a byte too far.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use hbone::tls::{crypto_provider, handshake};
use proptest::prelude::*;
use rustls::{
    ClientConfig, ServerConfig,
    crypto::{CryptoProvider, SupportedKxGroup},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    WAYS,
    common::{Ca, HOUR, raw},
    stock::{Heard, OURS, STOCK, bytes, hear, say, shake_hands},
};

#[tokio::test]
async fn a_handshake_goes_through_byte_by_byte() {
    for (side, suite) in WAYS {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut ours, mut stock) = shake_hands(&mut Drip(near), far, side, suite).await;
        let wire = say(&mut ours.sealer, b"through");
        assert_eq!(stock.hear(&wire).unwrap(), b"through", "{side:?} {suite:?}");
        assert_eq!(ours.unread, b"");
    }
}

#[tokio::test]
async fn a_handshake_says_who_the_peer_is_and_how_it_was_proven() {
    for (side, suite) in WAYS {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let (ours, _) = shake_hands(&mut near, far, side, suite).await;
        assert_eq!(ours.session.peer.to_string(), STOCK);
        assert_eq!(ours.session.group, "X25519MLKEM768");
        let cipher = format!("{suite:?}").to_lowercase();
        let told = ours.session.cipher.replace('_', "").to_lowercase();
        assert!(told.contains(&cipher), "{told} {cipher}");
    }
}

#[tokio::test]
async fn what_stands_behind_a_handshake_is_left_to_the_record_layer() {
    // From a part of a record's head to several records.
    for length in [1, 200, 16_000, 40_000] {
        let ca = Ca::new();
        let badge = |name| raw::badge(&ca, &[name], SystemTime::now() + HOUR);
        let server = raw::tls_server(&ca, badge(OURS));
        let mut server = Arc::unwrap_or_clone(server);
        server.send_tls13_tickets = 0;
        let client = raw::tls_client(Some(badge(STOCK)), &["h2"]);
        let (mut near, far) = tokio::io::duplex(1 << 17);
        let data = bytes(length);
        let eager = async {
            let connecting = TlsConnector::from(client).connect("x".try_into().unwrap(), far);
            let mut stream = connecting.await.unwrap();
            stream.write_all(&data).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        };
        // The client does not stop between its last handshake message and its data, so that the
        // server's next read returns both.
        let (ours, _stream) = tokio::join!(handshake::accept(&mut near, &server), eager);
        let mut ours = ours.unwrap();
        assert!(!ours.unread.is_empty(), "some came with the handshake");
        let mut heard = Heard::default();
        while !heard.closed {
            hear(&mut ours.opener, &mut ours.unread, &mut heard).unwrap();
            if !heard.closed {
                near.read_buf(&mut ours.unread).await.unwrap();
            }
        }
        assert_eq!(heard.data, data);
    }
}

#[tokio::test]
async fn tickets_of_a_server_of_ours_are_counted_as_records() {
    // A server that hands out tickets has used record numbers before we take over.
    let ca = Ca::new();
    let badge = |name| raw::badge(&ca, &[name], SystemTime::now() + HOUR);
    let server = raw::tls_server(&ca, badge(OURS));
    let client = raw::tls_client(Some(badge(STOCK)), &["h2"]);
    let (mut near, far) = tokio::io::duplex(1 << 17);
    let connecting = TlsConnector::from(client).connect("x".try_into().unwrap(), far);
    let (ours, stock) = tokio::join!(handshake::accept(&mut near, &server), connecting);
    let (mut ours, mut stock) = (ours.unwrap(), stock.unwrap());
    near.write_all(&say(&mut ours.sealer, b"after two tickets"))
        .await
        .unwrap();
    let mut heard = [0; 17];
    stock.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"after two tickets");
    assert_eq!(stock.get_ref().1.tls13_tickets_received(), 2);
}

#[tokio::test]
async fn a_handshake_may_begin_twice() {
    use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP384R1};
    let ca = Ca::new();
    let badge = |name| raw::badge(&ca, &[name], SystemTime::now() + HOUR);
    let provider = |groups: &[&'static dyn SupportedKxGroup]| {
        Arc::new(CryptoProvider {
            kx_groups: groups.to_vec(),
            ..Arc::unwrap_or_clone(crypto_provider())
        })
    };
    // The server takes P-256 only, for which a client sends no share at first.
    let server = raw::tls_server_of(&ca, badge(STOCK), provider(&[SECP256R1]));
    let client = raw::tls_client(Some(badge(OURS)), &["h2"]);
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (ours, stock) = tokio::join!(
        handshake::connect(&mut near, &client),
        TlsAcceptor::from(server).accept(far)
    );
    assert_eq!(ours.unwrap().session.group, "secp256r1");
    let twice = Some(rustls::HandshakeKind::FullWithHelloRetryRequest);
    assert_eq!(stock.unwrap().get_ref().1.handshake_kind(), twice);

    let server = raw::tls_server_of(&ca, badge(OURS), provider(&[SECP256R1]));
    let client = raw::tls_client_of(
        Some(badge(STOCK)),
        &["h2"],
        provider(&[SECP384R1, SECP256R1]),
    );
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let connecting = TlsConnector::from(client).connect("x".try_into().unwrap(), far);
    let (ours, stock) = tokio::join!(handshake::accept(&mut near, &server), connecting);
    assert_eq!(ours.unwrap().session.group, "secp256r1");
    assert_eq!(stock.unwrap().get_ref().1.handshake_kind(), twice);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_handshake_that_is_altered_on_its_way_ends(
        serving in any::<bool>(),
        at in prop_oneof![0..20_usize, 0..3_000_usize],
        bit in 0..8_u8,
        piece in 1..2_000_usize,
    ) {
        // Time stands still while anything moves, and jumps when both sides wait for each other.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (ours, altered) = runtime.block_on(bent(serving, at, 1 << bit, piece));
        if !altered {
            prop_assert_eq!(ours, Some(Ok(())));
        }
    }
}

/// Our handshake with a peer of whose bytes one is altered. None when both wait for more.
async fn bent(
    serving: bool,
    at: usize,
    mask: u8,
    piece: usize,
) -> (Option<Result<(), String>>, bool) {
    thread_local! {
        // Keys cost more than handshakes.
        static CONFIGS: (Arc<ServerConfig>, Arc<ClientConfig>) = {
            let ca = Ca::new();
            let badge = |name| raw::badge(&ca, &[name], SystemTime::now() + HOUR);
            let client = raw::tls_client(Some(badge(OURS)), &["h2"]);
            (raw::tls_server(&ca, badge(STOCK)), client)
        };
    }
    let (server, client) = CONFIGS.with(Clone::clone);
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut near = Bent {
        io: near,
        piece,
        at,
        mask,
        altered: false,
    };
    let both = async {
        if serving {
            let connecting = TlsConnector::from(client).connect("x".try_into().unwrap(), far);
            tokio::join!(handshake::accept(&mut near, &server), connecting).0
        } else {
            let accepting = TlsAcceptor::from(server).accept(far);
            tokio::join!(handshake::connect(&mut near, &client), accepting).0
        }
    };
    let ended = tokio::time::timeout(HOUR, both).await.ok();
    let ended = ended.map(|ended| ended.map(|_| ()).map_err(|error| error.to_string()));
    (ended, near.altered)
}

/// A pipe that gives a piece at a time, and of one byte another than it got.
struct Bent {
    io: DuplexStream,
    piece: usize,
    /// Bytes until the one that is altered.
    at: usize,
    mask: u8,
    altered: bool,
}

impl AsyncRead for Bent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = vec![0; self.piece.min(buf.remaining())];
        let mut small = ReadBuf::new(&mut piece);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut small);
        let got = small.filled().len();
        if !self.altered && self.at < got {
            piece[self.at] ^= self.mask;
            self.altered = true;
        }
        self.at = self.at.saturating_sub(got);
        buf.put_slice(&piece[..got]);
        polled
    }
}

impl AsyncWrite for Bent {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A pipe that takes and gives a byte at a time.
struct Drip(DuplexStream);

impl AsyncRead for Drip {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut one = [0];
        let mut small = ReadBuf::new(&mut one);
        let polled = Pin::new(&mut self.0).poll_read(cx, &mut small);
        buf.put_slice(small.filled());
        polled
    }
}

impl AsyncWrite for Drip {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
