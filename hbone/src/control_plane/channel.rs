//! A channel to the control plane: TCP, TLS unless the address says `http://`, HTTP/2.
//!
//! An address, a root file and perhaps another name to expect enter. Roots are read for each new
//! connection, so that they may be rotated.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::Membership;

/// A channel that connects when it is used, and again when it has to.
pub fn channel(
    url: &str,
    roots: &Path,
    server_name: Option<&str>,
) -> Result<Channel, tonic::transport::Error> {
    Dialler::default().channel(url, roots, server_name)
}

/// As whom connections are opened, and how they are told from those of others.
#[derive(Debug, Clone, Default)]
pub struct Dialler {
    /// Its certificate is shown.
    pub membership: Option<Arc<Membership>>,
    /// Mark of the sockets, by which packet rules leave them alone.
    pub mark: Option<u32>,
}

impl Dialler {
    /// As [`channel`].
    pub fn channel(
        &self,
        url: &str,
        roots: &Path,
        server_name: Option<&str>,
    ) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            // A control plane that vanished without a word is noticed within 40 s, also when nothing changes.
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true);
        let (roots, server_name) = (
            Arc::new(roots.to_owned()),
            server_name.map(Arc::<str>::from),
        );
        let dialler = self.clone();
        Ok(
            endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                let (roots, server_name) = (roots.clone(), server_name.clone());
                let dialler = dialler.clone();
                async move {
                    connect(&dialler, &uri, &roots, server_name.as_deref())
                        .await
                        .map(TokioIo::new)
                }
            })),
        )
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(
    dialler: &Dialler,
    uri: &Uri,
    roots: &PathBuf,
    server_name: Option<&str>,
) -> io::Result<Pin<Box<dyn Stream>>> {
    let invalid =
        |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{uri}: {what}"));
    let host = uri
        .host()
        .ok_or_else(|| invalid("no host"))?
        .trim_matches(['[', ']']);
    let port = uri.port_u16().ok_or_else(|| invalid("no port"))?;
    let addresses = tokio::net::lookup_host((host, port)).await?;
    let tcp = first_that_answers(addresses, dialler.mark).await?;
    tcp.set_nodelay(true)?;
    if uri.scheme_str() == Some("http") {
        return Ok(Box::pin(tcp));
    }
    let name = server_name.unwrap_or(host);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| invalid("not a name a certificate can carry"))?;
    let tls = tls_config(roots, dialler.membership.as_ref())?;
    let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
    Ok(Box::pin(tls))
}

/// A name may have addresses that lead nowhere (a family that is broken here, a replica that is gone): each has a
/// share of the time, so that the last one is tried too.
async fn first_that_answers(
    addresses: impl Iterator<Item = SocketAddr>,
    mark: Option<u32>,
) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(ANSWER, dial(address, mark)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
        last = io::Error::new(last.kind(), format!("{address}: {last}"));
    }
    Err(last)
}

async fn dial(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let Some(mark) = mark else {
        return TcpStream::connect(address).await;
    };
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    SockRef::from(&socket).set_mark(mark)?;
    socket.connect(address).await
}

fn tls_config(roots: &PathBuf, membership: Option<&Arc<Membership>>) -> io::Result<ClientConfig> {
    let failed = |what: &dyn std::fmt::Display| {
        io::Error::other(format!("root certificates {}: {what}", roots.display()))
    };
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(roots).map_err(|error| failed(&error))? {
        let certificate = certificate.map_err(|error| failed(&error))?;
        store.add(certificate).map_err(|error| failed(&error))?;
    }
    if store.is_empty() {
        return Err(failed(&"no certificate in it"));
    }
    let config = ClientConfig::builder_with_provider(crate::tls::crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(store);
    let mut config = match membership {
        None => config.with_no_client_auth(),
        Some(membership) => config.with_client_cert_resolver(membership.resolver()),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A control plane two networks away answers in less, also at the third of its addresses.
const CONNECT: Duration = Duration::from_secs(10);
/// One address.
const ANSWER: Duration = Duration::from_secs(3);
/// Istiod forbids pings more often than every 15 s.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_roots_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root-cert.pem");
        for content in [
            None,
            Some(""),
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = tls_config(&path, None).unwrap_err().to_string();
            assert!(error.contains("root-cert.pem"), "{error}");
        }
    }

    #[test]
    fn an_address_that_does_not_answer_keeps_nobody_from_the_next() {
        let place = lab::Place::new("channel").unwrap();
        place
            .nft("table inet t { chain out { type filter hook output priority 0; ip daddr 127.0.0.2 drop; }; }")
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let reached = place.within(|| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let good = listener.local_addr().unwrap();
            let silent = SocketAddr::new("127.0.0.2".parse().unwrap(), good.port());
            let connected = runtime.block_on(first_that_answers([silent, good].into_iter(), None));
            (good, connected.unwrap().peer_addr().unwrap())
        });
        let (good, reached) = reached.unwrap();
        assert_eq!(reached, good);
    }

    /// A server certificate for `istiod.test`, its key, and the root that signed it.
    fn server() -> (Arc<rustls::ServerConfig>, String) {
        let root_key = rcgen::KeyPair::generate().unwrap();
        let mut root = rcgen::CertificateParams::default();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root_certificate = root.self_signed(&root_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(["istiod.test".to_owned()]).unwrap();
        let leaf = leaf
            .signed_by(&key, &rcgen::Issuer::new(root, root_key))
            .unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = rustls::ServerConfig::builder_with_provider(crate::tls::crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key);
        (Arc::new(config.unwrap()), root_certificate.pem())
    }

    #[tokio::test]
    async fn roots_are_read_for_each_connection_and_names_are_checked() {
        let (tls, root) = server();
        let (_, other_root) = server();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("https://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let tls = tls.clone();
                tokio::spawn(async move {
                    tokio_rustls::TlsAcceptor::from(tls)
                        .accept(tcp)
                        .await
                        .map(drop)
                });
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root-cert.pem");
        let error = async |name| {
            connect(&Dialler::default(), &uri, &path, Some(name))
                .await
                .err()
                .map(|error| error.to_string())
        };

        std::fs::write(&path, &other_root).unwrap();
        assert!(
            error("istiod.test")
                .await
                .unwrap()
                .contains("invalid peer certificate")
        );
        // Rotation: both roots for a while, then the new one alone.
        std::fs::write(&path, [other_root, root.clone()].concat()).unwrap();
        assert_eq!(error("istiod.test").await, None);
        std::fs::write(&path, root).unwrap();
        assert_eq!(error("istiod.test").await, None);
        assert!(
            error("istiod.other")
                .await
                .unwrap()
                .contains("not valid for name")
        );
    }
}
