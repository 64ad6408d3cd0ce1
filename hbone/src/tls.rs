//! Mutual TLS between two identities. The only module that names rustls.
//!
//! A certificate chain and its key enter once (`chain::check`); what leaves
//! is a handshake on a socket (`Credentials::accept`, `Credentials::connect`) whose other end has
//! proven an [`Identity`]. Configurations are built once per certificate (server) and once per
//! certificate and set of expected identities (client), never per connection.
//!
//! TLS 1.3 only, AES-GCM only, X25519MLKEM768 before X25519 and P-256, ALPN `h2`, no SNI.
//!
//! Sessions are resumed, with a new key exchange and never with early data, where a full handshake would
//! prove the same at this moment: `sessions` has the client's side, `tickets` the server's. rustls takes
//! for proven what was proven once; so each side looks at the peer's chain again before it resumes, and at
//! what rustls has resumed afterwards ([`Credentials::confirm_client`], [`Client::confirm`]).

pub mod handshake;

mod alert;
mod anchors;
mod chain;
mod evidence;
mod lifetime;
mod proof;
mod revocation;
mod sessions;
mod tickets;
mod verify;

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use rustls::{
    CertificateError, ClientConfig, CommonState, HandshakeKind, OtherError, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};

use self::{
    handshake::Established,
    proof::{Purpose, Roots},
    sessions::{Attempt, Keeper},
    tickets::Tickets,
    verify::{ExpectedServer, identity_of},
};
use crate::identity::Identity;

pub use self::alert::Alert;
pub use self::anchors::Anchors;
pub(crate) use self::chain::check;
pub use self::chain::{CertificateText, ChainError};
pub(crate) use self::evidence::{Evidence, Trust};
pub use self::revocation::{RevocationFigures, Revocations, Unreadable};

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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    #[error(
        "the peer's certificate is expired or not valid yet: {0}; compare the clocks of both ends"
    )]
    Expired(String),
    /// The peer's certificate does not lead to a root we trust.
    #[error("the peer's certificate is not signed by a trusted root: {0}")]
    UnknownCa(String),
    /// The peer's certificate was taken back, or that of an authority between it and the root.
    #[error("the peer's certificate was revoked")]
    Revoked,
    /// Whether the peer's certificate was revoked cannot be told.
    #[error("whether the peer's certificate was revoked cannot be told: {0}")]
    RevocationUnknown(String),
    /// The peer ended the handshake and said why.
    #[error("the peer refused our handshake: {0}")]
    Alert(Alert),
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
    /// A certificate was revoked: the peer's, or ours, as the peer says.
    pub fn is_revocation(&self) -> bool {
        matches!(
            self,
            Self::Revoked | Self::Alert(Alert::CERTIFICATE_REVOKED)
        )
    }

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
            E::InvalidCertificate(C::Revoked) => Self::Revoked,
            E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
                Self::UnknownCa(error.to_string())
            }
            E::NoCertificatesPresented => Self::NoCertificate,
            E::AlertReceived(alert) => Self::Alert(Alert((*alert).into())),
            _ => Self::Protocol(error.to_string()),
        }
    }
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
    /// It went on with an earlier session, in which the peer showed its certificate.
    pub resumed: bool,
    /// What the peer has shown; none if another process saw it, which did not hand it on.
    pub(crate) evidence: Option<Arc<Evidence>>,
}

/// Who must answer, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// The server is one of these.
    pub(crate) identities: &'a [Identity],
    /// What it is reached by, if sessions may be resumed with it.
    pub(crate) address: Option<SocketAddr>,
}

/// A TLS connection of either side.
pub(crate) type Stream<T> = tokio_rustls::TlsStream<T>;

/// A key, its chain and its roots, made ready for use on both sides.
pub(crate) struct Credentials {
    certified: Arc<CertifiedKey>,
    roots: Arc<Roots>,
    /// The end of our own chain, in seconds since 1970.
    ends: u64,
    server: Arc<ServerConfig>,
    /// None when sessions are not resumed.
    tickets: Option<Arc<Tickets>>,
    clients: Mutex<HashMap<Vec<Identity>, Arc<Client>>>,
    clock: Arc<dyn TimeProvider>,
}

impl Credentials {
    /// For a chain that was checked; clients are judged by `verifier`.
    fn new(
        certified: Arc<CertifiedKey>,
        roots: Arc<Roots>,
        verifier: Arc<dyn ClientCertVerifier>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, rustls::Error> {
        let ends = proof::ends(certified.cert.iter()).unwrap_or(0);
        Ok(Self {
            server: server_config(&certified, verifier.clone(), clock.clone())?,
            tickets: Some(Tickets::new(verifier, ends, clock.clone())?),
            clients: Mutex::default(),
            certified,
            roots,
            ends,
            clock,
        })
    }

    /// From here on every handshake is a full one.
    pub(crate) fn forget_sessions(&mut self) {
        self.tickets = None;
    }

    /// The server's side of a handshake. The peer has proven the identity in the answer. Where it fails the peer has been
    /// told, and `io` comes back.
    pub(crate) async fn accept<T>(&self, io: T) -> Result<(Stream<T>, Session), (TlsError, T)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::new(self.of_connection());
        let accepting = tokio_rustls::TlsAcceptor::from(config).accept(io);
        let accepted = accepting.into_fallible().await;
        let mut stream = accepted.map_err(|(error, io)| (TlsError::from_io(&error), io))?;
        stream.get_mut().1.set_buffer_limit(Some(BUFFER));
        match self.confirm_client(stream.get_ref().1) {
            Ok(session) => Ok((stream.into(), session)),
            Err(error) => Err((error, stream.into_inner().0)),
        }
    }

    /// The client's side: the server has proven to be one of those expected.
    pub(crate) async fn connect<T>(
        &self,
        io: T,
        expected: Expected<'_>,
    ) -> Result<(Stream<T>, Session), TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let client = self.client(expected.identities)?;
        let (config, attempt) = self.to_connect(&client, expected.address);
        let handshake = async {
            // Never sent and never looked at: the expected identities are in the verifier.
            let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
            let connecting = tokio_rustls::TlsConnector::from(config).connect(nobody, io);
            let mut stream = connecting.await.map_err(|e| TlsError::from_io(&e))?;
            stream.get_mut().1.set_buffer_limit(Some(BUFFER));
            let session = client.confirm(stream.get_ref().1, attempt.as_deref(), self)?;
            Ok((stream.into(), session))
        };
        handshake
            .await
            .inspect_err(|_| attempt.iter().for_each(|it| it.failed()))
    }

    /// [`Credentials::accept`] for our own record layer.
    pub(crate) async fn accept_own<T>(&self, io: &mut T) -> Result<Established, TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let confirm = |common: &CommonState| self.confirm_client(common);
        handshake::accept_as(io, self.of_connection(), confirm).await
    }

    /// [`Credentials::connect`] for our own record layer.
    pub(crate) async fn connect_own<T>(
        &self,
        io: &mut T,
        expected: Expected<'_>,
    ) -> Result<Established, TlsError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let client = self.client(expected.identities)?;
        let (config, attempt) = self.to_connect(&client, expected.address);
        let confirm = |common: &CommonState| client.confirm(common, attempt.as_deref(), self);
        let config = Arc::unwrap_or_clone(config);
        let handshake = handshake::connect_as(io, config, attempt.is_some(), confirm);
        handshake
            .await
            .inspect_err(|_| attempt.iter().for_each(|it| it.failed()))
    }

    /// The server's configuration for one connection.
    fn of_connection(&self) -> ServerConfig {
        let mut config = ServerConfig::clone(&self.server);
        if let Some(tickets) = &self.tickets {
            config.ticketer = tickets.of_connection();
        }
        config
    }

    /// The client's configuration for one connection, which knows whose sessions it may use.
    fn to_connect(
        &self,
        client: &Client,
        address: Option<SocketAddr>,
    ) -> (Arc<ClientConfig>, Option<Arc<Attempt>>) {
        let Some(address) = address.filter(|_| self.tickets.is_some()) else {
            return (client.config.clone(), None);
        };
        let attempt = Arc::new(client.keeper.attempt(address, self.clock.clone()));
        let mut config = ClientConfig::clone(&client.config);
        config.resumption = Resumption::store(attempt.clone());
        (Arc::new(config), Some(attempt))
    }

    /// Who the client is. rustls resumes without a look at the client's certificate; this is the look.
    fn confirm_client(&self, common: &CommonState) -> Result<Session, TlsError> {
        let mut session = session(common)?;
        if session.resumed {
            let tickets = self.tickets.as_ref().ok_or(TlsError::NoCertificate)?;
            let judged = tickets.judge(chain(common));
            judged.map_err(|e| TlsError::from_rustls(&e))?;
        }
        session.evidence = self.evidence(Purpose::Client, common);
        Ok(session)
    }

    /// What the peer has shown, for when other certificates are revoked.
    fn evidence(&self, purpose: Purpose, common: &CommonState) -> Option<Arc<Evidence>> {
        let at = self.clock.current_time()?;
        let evidence = Evidence::new(purpose, &self.roots, chain(common), at);
        Some(Arc::new(evidence))
    }

    fn client(&self, expected: &[Identity]) -> Result<Arc<Client>, TlsError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(expected) {
            return Ok(client.clone());
        }
        let verifier = Arc::new(ExpectedServer::new(self.roots.clone(), expected.into()));
        let config = client_config(&self.certified, verifier.clone(), self.clock.clone())
            .map_err(|e| TlsError::from_rustls(&e))?;
        let client = Arc::new(Client {
            config,
            verifier,
            keeper: Keeper::new(),
        });
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        clients.insert(expected.to_vec(), client.clone());
        Ok(client)
    }
}

/// The client's side for one set of expected identities.
struct Client {
    config: Arc<ClientConfig>,
    verifier: Arc<ExpectedServer>,
    keeper: Keeper,
}

impl Client {
    /// Who the server is; [`Credentials::confirm_client`] for the other side. Tickets are kept from here on.
    fn confirm(
        &self,
        common: &CommonState,
        attempt: Option<&Attempt>,
        ours: &Credentials,
    ) -> Result<Session, TlsError> {
        let mut session = session(common)?;
        let chain = chain(common);
        if session.resumed {
            let now = ours
                .clock
                .current_time()
                .map(|now| (now, chain.split_first()));
            let Some((now, Some((leaf, intermediates)))) = now else {
                return Err(TlsError::NoCertificate);
            };
            let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
            let judged = self
                .verifier
                .verify_server_cert(leaf, intermediates, &nobody, &[], now);
            judged.map_err(|e| TlsError::from_rustls(&e))?;
        }
        if let (Some(attempt), Some(ends)) = (attempt, proof::ends(chain.iter())) {
            attempt.established(session.resumed, ends.min(ours.ends));
        }
        session.evidence = ours.evidence(Purpose::Server, common);
        Ok(session)
    }
}

fn chain(common: &CommonState) -> &[CertificateDer<'static>] {
    common.peer_certificates().unwrap_or_default()
}

fn session(common: &CommonState) -> Result<Session, TlsError> {
    let leaf = chain(common).first().ok_or(TlsError::NoCertificate)?;
    let group = common
        .negotiated_key_exchange_group()
        .and_then(|g| g.name().as_str())
        .unwrap_or("unknown");
    let cipher = common
        .negotiated_cipher_suite()
        .and_then(|s| s.suite().as_str())
        .unwrap_or("unknown");
    Ok(Session {
        peer: identity_of(leaf)?,
        group,
        cipher,
        resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
        evidence: None,
    })
}

/// Without tickets: each connection has its own ([`Credentials::of_connection`]).
fn server_config(
    certified: &Arc<CertifiedKey>,
    verifier: Arc<dyn ClientCertVerifier>,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_details(crypto_provider(), clock)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A connection that goes on with a session uses it up and gives one back.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Without sessions: each connection has its own ([`Credentials::to_connect`]).
fn client_config(
    certified: &Arc<CertifiedKey>,
    verifier: Arc<ExpectedServer>,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_details(crypto_provider(), clock)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
