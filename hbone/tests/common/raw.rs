//! A peer that speaks TLS properly and HTTP/2 frame by frame, so that it can also speak it badly.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use rcgen::KeyPair;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject,
    },
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Ca, crypto_provider};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Certificate and key of a scripted peer.
pub struct Badge {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// A badge of `ca` with any names and any end of validity.
pub fn badge(ca: &Ca, uris: &[&str], not_after: std::time::SystemTime) -> Badge {
    let key = KeyPair::generate().unwrap();
    let leaf = ca.leaf(uris, &key, not_after);
    Badge {
        chain: CertificateDer::pem_slice_iter(leaf.as_bytes())
            .map(Result::unwrap)
            .collect(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

/// A TLS client that does not look at the server.
pub fn tls_client(badge: Option<Badge>, alpn: &[&str]) -> Arc<ClientConfig> {
    tls_client_of(badge, alpn, crypto_provider())
}

/// The same with its own choice of cryptography.
pub fn tls_client_of(
    badge: Option<Badge>,
    alpn: &[&str],
    provider: Arc<CryptoProvider>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match badge {
        Some(badge) => builder
            .with_client_auth_cert(badge.chain, badge.key)
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config.enable_sni = false;
    Arc::new(config)
}

/// A TLS server that wants a client certificate of `ca`.
pub fn tls_server(ca: &Ca, badge: Badge) -> Arc<ServerConfig> {
    tls_server_of(ca, badge, crypto_provider())
}

/// The same with its own choice of cryptography.
pub fn tls_server_of(ca: &Ca, badge: Badge, provider: Arc<CryptoProvider>) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.root().as_bytes()).unwrap())
        .unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(badge.chain, badge.key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = crypto_provider();
        rustls::crypto::verify_tls13_signature(
            message,
            leaf,
            signature,
            &provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        crypto_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// One frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// SETTINGS as names and values.
    pub fn settings(&self) -> BTreeMap<String, u64> {
        let name = |id| match id {
            1 => "HEADER_TABLE_SIZE".to_owned(),
            2 => "ENABLE_PUSH".to_owned(),
            3 => "MAX_CONCURRENT_STREAMS".to_owned(),
            4 => "INITIAL_WINDOW_SIZE".to_owned(),
            5 => "MAX_FRAME_SIZE".to_owned(),
            6 => "MAX_HEADER_LIST_SIZE".to_owned(),
            other => format!("SETTING_{other}"),
        };
        let entry = |e: &[u8]| {
            (
                name(u16::from_be_bytes([e[0], e[1]])),
                u64::from(u32::from_be_bytes(e[2..6].try_into().unwrap())),
            )
        };
        self.payload.chunks_exact(6).map(entry).collect()
    }

    /// `:status`, which every encoder puts first: from the static table, or as a literal of three digits.
    pub fn status(&self) -> u16 {
        match *self.payload.first().unwrap() {
            0x88 => 200,
            0x89 => 204,
            0x8a => 206,
            0x8b => 304,
            0x8c => 400,
            0x8d => 404,
            0x8e => 500,
            _ => digits(&self.payload[1..]).parse().unwrap(),
        }
    }
}

/// A string literal that is a number: plain, or in the Huffman code, of which only digits are known here.
fn digits(literal: &[u8]) -> String {
    let length = usize::from(literal[0] & 0x7f);
    let bytes = &literal[1..1 + length];
    if literal[0] & 0x80 == 0 {
        return String::from_utf8(bytes.to_vec()).unwrap();
    }
    let bits: String = bytes.iter().map(|b| format!("{b:08b}")).collect();
    let (mut text, mut rest) = (String::new(), bits.as_str());
    'next: while rest.len() >= 5 {
        for (n, code) in [
            "00000", "00001", "00010", "011001", "011010", "011011", "011100", "011101", "011110",
            "011111",
        ]
        .iter()
        .enumerate()
        {
            if let Some(after) = rest.strip_prefix(code) {
                text.push_str(&n.to_string());
                rest = after;
                continue 'next;
            }
        }
        break;
    }
    text
}

/// A header block of literals that are never indexed.
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "short strings only");
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn connect_headers(authority: &str) -> Vec<(&str, &str)> {
    vec![(":method", "CONNECT"), (":authority", authority)]
}

/// The scripted peer's end of a connection.
pub struct Raw {
    pub io: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Raw {
    /// TLS as a client; the error is what the far end said to our certificate, at the latest when read.
    pub async fn connect(socket: TcpStream, config: Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
        let io = TlsConnector::from(config).connect(name, socket).await?;
        Ok(Self {
            io: io.into(),
            buffer: Vec::new(),
        })
    }

    /// TLS as a server, and the client's preface.
    pub async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut io = TlsAcceptor::from(config).accept(socket).await?;
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await?;
        assert_eq!(preface, PREFACE);
        Ok(Self {
            io: io.into(),
            buffer: Vec::new(),
        })
    }

    /// A client's preface and empty SETTINGS.
    pub async fn hello(&mut self) -> io::Result<()> {
        self.send(PREFACE).await?;
        self.send(&frame(SETTINGS, 0, 0, &[])).await
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    pub async fn request(&mut self, stream: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        self.send(&frame(HEADERS, END_HEADERS, stream, &block(headers)))
            .await
    }

    /// The next frame; nothing at the end. SETTINGS and PING are acknowledged, so a PING that came while
    /// something else was waited for is followed by another.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if self.buffer.len() >= 9 {
                let length = u32::from_be_bytes([0, self.buffer[0], self.buffer[1], self.buffer[2]])
                    as usize;
                if self.buffer.len() >= 9 + length {
                    let rest = self.buffer.split_off(9 + length);
                    let bytes = std::mem::replace(&mut self.buffer, rest);
                    let frame_in = Frame {
                        kind: bytes[3],
                        flags: bytes[4],
                        stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()) & 0x7fff_ffff,
                        payload: bytes[9..].to_vec(),
                    };
                    if frame_in.kind == SETTINGS && frame_in.flags & ACK == 0 {
                        // The far end may have hung up already; what it said first still counts.
                        let _ = self.send(&frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    if frame_in.kind == PING && frame_in.flags & ACK == 0 {
                        let _ = self.send(&frame(PING, ACK, 0, &frame_in.payload)).await;
                    }
                    return Ok(Some(frame_in));
                }
            }
            let mut piece = vec![0; 65536];
            match self.io.read(&mut piece).await? {
                0 => return Ok(None),
                n => self.buffer.extend_from_slice(&piece[..n]),
            }
        }
    }

    /// Reads until a frame is the one looked for; fails when the connection ends before or nothing
    /// comes for ten seconds.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(60), self.next()).await;
            let frame = next
                .unwrap_or_else(|_| panic!("no {what} came"))
                .unwrap()
                .unwrap_or_else(|| panic!("ended before {what}"));
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// Reads to the end of the connection and returns the last GOAWAY's code.
    pub async fn goodbye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Ok(Ok(Some(frame))) =
            tokio::time::timeout(Duration::from_secs(60), self.next()).await
        {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }
}
