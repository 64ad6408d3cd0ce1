//! Mutual TLS between two identities. The only file that names rustls.
//!
//! A certificate chain and its key enter once ([`Credentials::check`]); what leaves
//! is a handshake on a socket ([`Credentials::accept`], [`Credentials::connect`]) whose other end has
//! proven an [`Identity`]. Configurations are built once per certificate (server) and once per
//! certificate and set of expected identities (client), never per connection.
//!
//! TLS 1.3 only, AES-GCM only, X25519MLKEM768 before X25519 and P-256, ALPN `h2`, no SNI. Sessions are
//! not resumed: a resumed session would skip the check of the peer's certificate, and with it its
//! expiry.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    OtherError, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject,
    },
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::identity::Identity;

/// Plaintext and ciphertext that rustls may hold for a connection in each direction while the socket
/// does not take it, in bytes: as much as one large write of the engine.
const BUFFER: usize = 256 << 10;
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

/// Why a chain that a signer returned cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not PEM, not X.509, or too few elements.
    #[error("the chain cannot be read: {0}")]
    Unreadable(String),
    /// The leaf names somebody else.
    #[error("the certificate is for {returned}, not for {requested}")]
    WrongIdentity {
        /// Who was asked for.
        requested: Identity,
        /// Who the leaf names.
        returned: String,
    },
    /// The leaf's key is not the one in our request.
    #[error("the certificate is for another key")]
    WrongKey,
    /// The chain does not verify against the roots it came with.
    #[error("the chain does not verify: {0}")]
    Unverified(String),
}

/// What the leaf and the rest of a chain say, for decisions about renewal and for dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateText {
    /// The certificate in PEM.
    pub pem: String,
    /// Serial number, decimal.
    pub serial_number: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// A chain that passed its checks.
pub(crate) struct Checked {
    pub(crate) credentials: Credentials,
    pub(crate) chain: Vec<CertificateText>,
    pub(crate) roots: Vec<CertificateText>,
}

impl Credentials {
    /// Checks a signer's answer: PEM elements leaf, intermediates, and last the bundle of roots.
    pub(crate) fn check(
        requested: &Identity,
        key_pkcs8: &[u8],
        elements: &[String],
        trust_domains: Arc<[Arc<str>]>,
        now: SystemTime,
    ) -> Result<Checked, ChainError> {
        let Some((root_bundle, rest)) = elements.split_last().filter(|(_, rest)| !rest.is_empty())
        else {
            return Err(ChainError::Unreadable(format!(
                "{} elements, a leaf and roots are needed",
                elements.len()
            )));
        };
        let mut chain = Vec::new();
        for element in rest {
            chain.extend(certificates(element)?);
        }
        let root_certificates = certificates(root_bundle)?;
        let (Some(leaf), false) = (chain.first(), root_certificates.is_empty()) else {
            return Err(ChainError::Unreadable(
                "no certificate in the chain or in its roots".into(),
            ));
        };
        match identity_of(leaf) {
            Ok(identity) if identity == *requested => {}
            Ok(other) => {
                return Err(ChainError::WrongIdentity {
                    requested: requested.clone(),
                    returned: other.to_string(),
                });
            }
            Err(why) => {
                return Err(ChainError::WrongIdentity {
                    requested: requested.clone(),
                    returned: why.to_string(),
                });
            }
        }
        let texts = describe(&chain)?;
        let root_texts = describe(&root_certificates)?;
        let mut roots = RootCertStore::empty();
        for root in root_certificates {
            roots
                .add(root)
                .map_err(|e| ChainError::Unreadable(format!("root: {e}")))?;
        }
        let certified = Arc::new(certified_key(chain, key_pkcs8)?);
        let roots = Arc::new(roots);
        let verifier = client_verifier(&roots, trust_domains)?;
        // Peers will verify it for both uses, so it is verified for both here.
        let at = UnixTime::since_unix_epoch(
            now.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        );
        verify_own(&certified, &roots, &verifier, at)?;
        let server = server_config(&certified, verifier)
            .map_err(|e| ChainError::Unverified(e.to_string()))?;
        let credentials = Self {
            certified,
            roots,
            server,
            clients: Mutex::default(),
        };
        Ok(Checked {
            credentials,
            chain: texts,
            roots: root_texts,
        })
    }

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
    let verifier = ExpectedServer {
        roots: roots.clone(),
        expected,
        algorithms: crypto_provider().signature_verification_algorithms,
    };
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

/// Verifies a client: chain to the roots (rustls' own verifier), then SPIFFE identity, then trust domain.
#[derive(Debug)]
struct AcceptedClient {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domains: Arc<[Arc<str>]>,
}

fn client_verifier(
    roots: &Arc<RootCertStore>,
    trust_domains: Arc<[Arc<str>]>,
) -> Result<Arc<dyn ClientCertVerifier>, ChainError> {
    let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), crypto_provider())
        .build()
        .map_err(|e| ChainError::Unverified(e.to_string()))?;
    Ok(Arc::new(AcceptedClient {
        chain,
        trust_domains,
    }))
}

impl ClientCertVerifier for AcceptedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let peer = identity_of(leaf).map_err(refuse)?;
        if !self
            .trust_domains
            .iter()
            .any(|td| **td == *peer.trust_domain())
        {
            return Err(refuse(TlsError::TrustDomain(peer)));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Verifies a server: chain to the roots, then that it is one of those expected.
#[derive(Debug)]
struct ExpectedServer {
    roots: Arc<RootCertStore>,
    expected: Arc<[Identity]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let presented = identity_of(leaf).map_err(refuse)?;
        if !self.expected.contains(&presented) {
            return Err(refuse(TlsError::IdentityMismatch {
                presented,
                expected: self.expected.to_vec(),
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Our refusal, carried through rustls; the peer sees the alert `certificate_unknown`.
fn refuse(why: TlsError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// The one identity a certificate names. X.509-SVID: exactly one URI name, and it is the SPIFFE ID.
fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| TlsError::NotSpiffe(e.to_string()))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|e| TlsError::NotSpiffe(e.to_string()))?;
    let mut uris = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|e| TlsError::NotSpiffe(format!("{e}"))),
        (None, _) => Err(TlsError::NotSpiffe("it names no URI".into())),
        (Some(_), Some(_)) => Err(TlsError::NotSpiffe("it names several URIs".into())),
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|c| c.map_err(|e| ChainError::Unreadable(e.to_string())))
        .collect()
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key_pkcs8: &[u8],
) -> Result<CertifiedKey, ChainError> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.to_vec()));
    let signing = crypto_provider()
        .key_provider
        .load_private_key(key)
        .map_err(|e| ChainError::Unreadable(e.to_string()))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| ChainError::WrongKey)?;
    Ok(certified)
}

fn verify_own(
    certified: &CertifiedKey,
    roots: &RootCertStore,
    as_client: &Arc<dyn ClientCertVerifier>,
    now: UnixTime,
) -> Result<(), ChainError> {
    let unverified = |e: rustls::Error| ChainError::Unverified(e.to_string());
    let (leaf, intermediates) = certified
        .cert
        .split_first()
        .ok_or_else(|| ChainError::Unreadable("an empty chain".into()))?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(unverified)?;
    let algorithms = crypto_provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms.all)
        .map_err(unverified)?;
    as_client
        .verify_client_cert(leaf, intermediates, now)
        .map_err(unverified)?;
    Ok(())
}

fn describe(chain: &[CertificateDer<'_>]) -> Result<Vec<CertificateText>, ChainError> {
    chain.iter().map(describe_one).collect()
}

fn describe_one(certificate: &CertificateDer<'_>) -> Result<CertificateText, ChainError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| ChainError::Unreadable(e.to_string()))?;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    Ok(CertificateText {
        pem: pem(certificate),
        serial_number: parsed.tbs_certificate.serial.to_str_radix(10),
        not_before: time(parsed.validity().not_before.timestamp()),
        not_after: time(parsed.validity().not_after.timestamp()),
    })
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 56);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    // Base64 is ASCII, so every byte offset is a character boundary.
    for start in (0..text.len()).step_by(64) {
        out.push_str(&text[start..text.len().min(start + 64)]);
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}
