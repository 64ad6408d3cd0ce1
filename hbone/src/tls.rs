//! Mutual TLS between two identities. The only module that names rustls.
//!
//! A certificate chain and its key enter once (`chain::check`); what leaves
//! is a handshake on a socket (`Credentials::accept`, `Credentials::connect`) whose other end has
//! proven an [`Identity`]. Configurations are built once per certificate (server) and once per
//! certificate and set of expected identities (client), never per connection.
//!
//! TLS 1.3 only, AES-GCM only, X25519MLKEM768 before X25519 and P-256, ALPN `h2`, no SNI. Sessions are
//! not resumed: a resumed session would skip the check of the peer's certificate, and with it its
//! expiry.

pub mod handshake;

mod chain;
mod verify;

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, OtherError, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};

use self::{
    handshake::Established,
    verify::{ExpectedServer, identity_of},
};
use crate::identity::Identity;

pub(crate) use self::chain::check;
pub use self::chain::{CertificateText, ChainError};

/// Plaintext and ciphertext that rustls may hold for a connection in each direction while the socket
/// does not take it, in bytes: two of the engine's frames. What waits here can no longer take turns with other streams.
const BUFFER: usize = 128 << 10;
/// Client configurations kept per certificate. One per set of identities ever expected; beyond this
/// they are forgotten together, which costs a rebuild each.
const CLIENTS: usize = 4096;

/// The cryptography of every connection this crate makes, and of others that should match it.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ],
            kx_groups: vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// Why a handshake failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// The peer's certificate does not name one SPIFFE identity.
    #[error("the peer's certificate is not a SPIFFE identity: {0}")]
    NotSpiffe(String),
    /// The peer's trust domain is not ours and not an accepted alias.
    #[error("the peer's identity {0} is of a trust domain that is not accepted")]
    TrustDomain(Identity),
    /// The server is somebody else.
    #[error("the peer proved to be {presented}, expected {}", OneOf(expected))]
    IdentityMismatch {
        /// Who it is.
        presented: Identity,
        /// Who would have been right.
        expected: Vec<Identity>,
    },
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The peer's certificate is expired or not valid yet.
    #[error("the peer's certificate is expired or not valid yet: {0}")]
    Expired(String),
    /// The peer's certificate does not lead to a root we trust.
    #[error("the peer's certificate is not signed by a trusted root: {0}")]
    UnknownCa(String),
    /// The peer ended the handshake and said why.
    #[error("the peer refused our handshake: {0}")]
    Alert(String),
    /// The connection broke.
    #[error("the connection ended during the handshake: {0}")]
    Io(io::ErrorKind),
    /// Anything else the TLS library objects to.
    #[error("TLS failed: {0}")]
    Protocol(String),
}

struct OneOf<'a>(&'a [Identity]);

impl fmt::Display for OneOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, identity) in self.0.iter().enumerate() {
            write!(f, "{}{identity}", if i == 0 { "" } else { " or " })?;
        }
        if self.0.is_empty() {
            f.write_str("nobody")
        } else {
            Ok(())
        }
    }
}

impl TlsError {
    pub(crate) fn from_io(error: &io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(tls) => Self::from_rustls(tls),
            None => Self::Io(error.kind()),
        }
    }

    fn from_rustls(error: &rustls::Error) -> Self {
        use CertificateError as C;
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(C::Other(OtherError(inner))) => inner
                .downcast_ref::<TlsError>()
                .cloned()
                .unwrap_or_else(|| Self::Protocol(error.to_string())),
            E::InvalidCertificate(
                C::Expired
                | C::ExpiredContext { .. }
                | C::NotValidYet
                | C::NotValidYetContext { .. },
            ) => Self::Expired(error.to_string()),
            E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
                Self::UnknownCa(error.to_string())
            }
            E::NoCertificatesPresented => Self::NoCertificate,
            E::AlertReceived(alert) => Self::Alert(alert_name(*alert)),
            _ => Self::Protocol(error.to_string()),
        }
    }
}

fn alert_name(alert: AlertDescription) -> String {
    alert
        .as_str()
        .map_or_else(|| format!("{alert:?}"), |name| name.replace('_', " "))
}

/// What a handshake proved.
#[derive(Debug, Clone)]
pub struct Session {
    /// Who the peer is.
    pub peer: Identity,
    /// Key exchange group, for example `X25519MLKEM768`.
    pub group: &'static str,
    /// Cipher suite, for example `TLS13_AES_256_GCM_SHA384`.
    pub cipher: &'static str,
}

/// A TLS connection of either side.
pub(crate) type Stream<T> = tokio_rustls::TlsStream<T>;

/// A key, its chain and its roots, made ready for use on both sides.
pub(crate) struct Credentials {
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    clients: Mutex<HashMap<Vec<Identity>, Arc<ClientConfig>>>,
}

impl Credentials {
    /// The server's side of a handshake. The peer has proven the identity in the answer.
    pub(crate) async fn accept<T>(&self, io: T) -> Result<(Stream<T>, Session), TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let accepting = tokio_rustls::TlsAcceptor::from(self.server.clone()).accept(io);
        let mut stream = accepting.await.map_err(|e| TlsError::from_io(&e))?;
        stream.get_mut().1.set_buffer_limit(Some(BUFFER));
        let session = session(stream.get_ref().1)?;
        Ok((stream.into(), session))
    }

    /// The client's side: the server has proven to be one of `expected`.
    pub(crate) async fn connect<T>(
        &self,
        io: T,
        expected: &[Identity],
    ) -> Result<(Stream<T>, Session), TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.client(expected)?;
        // Never sent and never looked at: the expected identities are in the verifier.
        let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let connecting = tokio_rustls::TlsConnector::from(config).connect(nobody, io);
        let mut stream = connecting.await.map_err(|e| TlsError::from_io(&e))?;
        stream.get_mut().1.set_buffer_limit(Some(BUFFER));
        let session = session(stream.get_ref().1)?;
        Ok((stream.into(), session))
    }

    /// [`Credentials::accept`] for our own record layer.
    pub(crate) async fn accept_own<T>(&self, io: &mut T) -> Result<Established, TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        handshake::accept(io, &self.server).await
    }

    /// [`Credentials::connect`] for our own record layer.
    pub(crate) async fn connect_own<T>(
        &self,
        io: &mut T,
        expected: &[Identity],
    ) -> Result<Established, TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.client(expected)?;
        handshake::connect(io, &config).await
    }

    fn client(&self, expected: &[Identity]) -> Result<Arc<ClientConfig>, TlsError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(expected) {
            return Ok(config.clone());
        }
        let config = client_config(&self.certified, &self.roots, expected.into())
            .map_err(|e| TlsError::from_rustls(&e))?;
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        clients.insert(expected.to_vec(), config.clone());
        Ok(config)
    }
}

fn session(tls: &rustls::CommonState) -> Result<Session, TlsError> {
    let leaf = tls
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or(TlsError::NoCertificate)?;
    let group = tls
        .negotiated_key_exchange_group()
        .and_then(|g| g.name().as_str())
        .unwrap_or("unknown");
    let cipher = tls
        .negotiated_cipher_suite()
        .and_then(|s| s.suite().as_str())
        .unwrap_or("unknown");
    Ok(Session {
        peer: identity_of(leaf)?,
        group,
        cipher,
    })
}

fn server_config(
    certified: &Arc<CertifiedKey>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client_config(
    certified: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    expected: Arc<[Identity]>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = ExpectedServer::new(roots.clone(), expected);
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
