//! A connection with our records at one end and rustls, as everybody uses it, at the other.

use std::{
    io::{Read, Write},
    sync::Arc,
    time::SystemTime,
};

use hbone::{
    records::{ContentType, MOST, Opened, Opener, RecordError, Sealer, Side, Suite},
    tls::{
        crypto_provider,
        handshake::{self, Established},
    },
};
use rustls::crypto::{CryptoProvider, aws_lc_rs::cipher_suite};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::common::{Ca, HOUR, raw};

pub const OURS: &str = "spiffe://cluster.local/ns/default/sa/ours";
pub const STOCK: &str = "spiffe://cluster.local/ns/default/sa/stock";

/// Both ends after the handshake.
pub struct Pair {
    pub sealer: Sealer,
    pub opener: Opener,
    pub stock: Stock,
    unread: Vec<u8>,
}

impl Pair {
    /// Shakes hands; `side` is ours.
    pub async fn new(side: Side, suite: Suite) -> Self {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let (ours, stock) = shake_hands(&mut near, far, side, suite).await;
        // What the stock side has sent behind its handshake.
        let mut unread = ours.unread;
        near.read_to_end(&mut unread).await.unwrap();
        Self {
            sealer: ours.sealer,
            opener: ours.opener,
            stock,
            unread,
        }
    }

    /// What our side makes of bytes from the other.
    pub fn hear(&mut self, wire: &[u8]) -> Result<Heard, RecordError> {
        self.unread.extend_from_slice(wire);
        let mut heard = Heard::default();
        hear(&mut self.opener, &mut self.unread, &mut heard)?;
        Ok(heard)
    }
}

/// Shakes hands over a pipe. The stock side's end of it is closed afterwards.
pub async fn shake_hands(
    near: &mut (impl AsyncRead + AsyncWrite + Unpin),
    far: DuplexStream,
    side: Side,
    suite: Suite,
) -> (Established, Stock) {
    let ca = Ca::new();
    let badge = |name| raw::badge(&ca, &[name], SystemTime::now() + HOUR);
    match side {
        Side::Client => {
            let server = raw::tls_server_of(&ca, badge(STOCK), provider(suite));
            let client = raw::tls_client(Some(badge(OURS)), &["h2"]);
            let (ours, stock) = tokio::join!(
                handshake::connect(near, &client),
                TlsAcceptor::from(server).accept(far)
            );
            (ours.unwrap(), Stock::new(stock.unwrap().into_inner().1))
        }
        Side::Server => {
            let server = raw::tls_server_of(&ca, badge(OURS), provider(suite));
            let mut server = Arc::unwrap_or_clone(server);
            server.send_tls13_tickets = 0;
            let client = raw::tls_client(Some(badge(STOCK)), &["h2"]);
            let connecting = TlsConnector::from(client).connect("x".try_into().unwrap(), far);
            let (ours, stock) = tokio::join!(handshake::accept(near, &server), connecting);
            (ours.unwrap(), Stock::new(stock.unwrap().into_inner().1))
        }
    }
}

fn provider(suite: Suite) -> Arc<CryptoProvider> {
    let only = match suite {
        Suite::Aes128Gcm => cipher_suite::TLS13_AES_128_GCM_SHA256,
        Suite::Aes256Gcm => cipher_suite::TLS13_AES_256_GCM_SHA384,
    };
    Arc::new(CryptoProvider {
        cipher_suites: vec![only],
        ..Arc::unwrap_or_clone(crypto_provider())
    })
}

/// rustls with its buffers, and no socket.
pub struct Stock(pub rustls::Connection);

impl Stock {
    fn new(connection: impl Into<rustls::Connection>) -> Self {
        let mut connection = connection.into();
        connection.set_buffer_limit(None);
        Self(connection)
    }

    /// Seals.
    pub fn say(&mut self, data: &[u8]) -> Vec<u8> {
        self.0.writer().write_all(data).unwrap();
        self.wire()
    }

    /// Whatever it wants to send.
    pub fn wire(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// Opens.
    pub fn hear(&mut self, mut wire: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut all = Vec::new();
        while !wire.is_empty() {
            self.0.read_tls(&mut wire).unwrap();
            self.0.process_new_packets()?;
            // Ends with "would block".
            let _ = self.0.reader().read_to_end(&mut all);
        }
        Ok(all)
    }

    /// The other side has closed in order.
    pub fn closed(&mut self) -> bool {
        matches!(self.0.reader().read(&mut [0]), Ok(0))
    }
}

/// What came out of an opener.
#[derive(Debug, Default)]
pub struct Heard {
    pub data: Vec<u8>,
    /// For each key update whether an answer is wanted.
    pub updates: Vec<bool>,
    pub tickets: Vec<Vec<u8>>,
    pub closed: bool,
}

/// Opens whatever can be opened.
pub fn hear(
    opener: &mut Opener,
    unread: &mut Vec<u8>,
    heard: &mut Heard,
) -> Result<(), RecordError> {
    loop {
        let used = match opener.next(unread)? {
            Opened::Incomplete { wanted } => {
                assert!(wanted > unread.len(), "it was all there");
                return Ok(());
            }
            Opened::Data { used, plain } => {
                assert!(!plain.is_empty());
                heard.data.extend_from_slice(&unread[plain]);
                used
            }
            Opened::Update { used, answer } => {
                heard.updates.push(answer);
                used
            }
            Opened::Ticket { used, tickets } => {
                heard.tickets.extend(tickets);
                used
            }
            Opened::Nothing { used } => used,
            Opened::Closed => {
                heard.closed = true;
                return Ok(());
            }
        };
        unread.drain(..used);
    }
}

/// Seals data in records as long as can be.
pub fn say(sealer: &mut Sealer, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in data.chunks(MOST) {
        let start = sealer.begin(&mut out);
        out.extend_from_slice(piece);
        sealer.finish(&mut out, start, ContentType::Data).unwrap();
    }
    out
}

/// Bytes that repeat late.
pub fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}
