//! Our own certificate: signed by our own authority, for the names under which proxies dial us.
//!
//! Made at the start, renewed at half its life and whenever the authority's signer changes. The
//! new one is for new connections; those that are there live on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::ca::{Authority, SignError};
use crate::machine::shown::Clients;

/// The certificate in use.
pub struct ServerCertificate {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    current: ArcSwap<CertifiedKey>,
}

/// No certificate for ourselves.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The authority refused.
    #[error("our own certificate: {0}")]
    Sign(#[from] SignError),
    /// No key.
    #[error("our own key: {0}")]
    Key(#[from] rcgen::Error),
    /// TLS does not take what was made.
    #[error("our own certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The chain is no PEM.
    #[error("our own certificate: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
}

impl ServerCertificate {
    /// A first certificate. `names` may hold addresses too.
    pub fn new(authority: Arc<Authority>, names: &[String]) -> Result<Arc<Self>, ServerError> {
        let (mut dns, mut addresses) = (Vec::new(), Vec::new());
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(address) => addresses.push(address),
                Err(_) => dns.push(name.clone()),
            }
        }
        let provider = hbone::tls::crypto_provider();
        let first = certify(&authority, &provider, &dns, &addresses)?;
        Ok(Arc::new(Self {
            authority,
            provider,
            names: dns,
            addresses,
            current: ArcSwap::from_pointee(first),
        }))
    }

    /// What a TLS port needs; always answers with the current certificate.
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, ServerError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The same where clients may show certificates of the mesh.
    pub fn config_for_proxies(self: &Arc<Self>) -> Result<Arc<ServerConfig>, ServerError> {
        let clients = Clients::new(self.authority.clone(), self.provider.clone());
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Who goes on with a session shows nothing anew.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Renews until `stop`.
    pub async fn keep_current(self: Arc<Self>, half_life: Duration, stop: CancellationToken) {
        let mut signer = self.authority.changed();
        let mut pause = half_life;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                changed = signer.changed() => if changed.is_err() { return },
            }
            match self.renew() {
                Ok(()) => pause = half_life,
                Err(error) => {
                    pause = RETRY.min(half_life);
                    tracing::error!(%error, "the old server certificate stays");
                }
            }
        }
    }

    fn renew(&self) -> Result<(), ServerError> {
        let fresh = certify(
            &self.authority,
            &self.provider,
            &self.names,
            &self.addresses,
        )?;
        self.current.store(Arc::new(fresh));
        Ok(())
    }
}

/// How soon a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(60);

fn certify(
    authority: &Authority,
    provider: &CryptoProvider,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<CertifiedKey, ServerError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut chain = authority.sign_server(&key, names, addresses)?;
    // Clients hold the roots already, or they would not believe us.
    chain.pop();
    let chain: Result<Vec<_>, _> = chain
        .iter()
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()))
        .collect();
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(rustls_general)?;
    let signer = provider.key_provider.load_private_key(key)?;
    Ok(CertifiedKey::new(chain?, signer))
}

fn rustls_general(what: &'static str) -> rustls::Error {
    rustls::Error::General(what.into())
}

struct Resolver(Arc<ServerCertificate>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current.load_full())
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}
