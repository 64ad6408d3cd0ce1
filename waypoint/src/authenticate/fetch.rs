//! Key sets from where issuers publish them.
//!
//! 1. may it be asked?                                   (`guard`)
//! 2. its addresses, of which only allowed ones are used
//! 3. GET: no redirect, 200 only, a bounded answer, all within a time

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::guard::{self, Place, is_allowed};
use crate::route::ServiceName;

/// Longest answer, in bytes.
const LONGEST: usize = 1 << 20;
/// Most addresses that are tried.
const MOST_ADDRESSES: usize = 4;
/// Where Linux distributions keep the roots that everybody trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What bytes come over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// A document, or why it cannot be had.
pub type Fetched = Result<Bytes, String>;

/// Whoever brings documents.
pub trait Fetch: Send + Sync + 'static {
    /// Brings one, within a time.
    fn fetch(&self, uri: Uri, within: Duration) -> BoxFuture<'_, Fetched>;

    /// The same of a service of the mesh; as from anywhere, by who does not know the mesh.
    fn fetch_from(
        &self,
        _service: &ServiceName,
        uri: Uri,
        within: Duration,
    ) -> BoxFuture<'_, Fetched> {
        self.fetch(uri, within)
    }
}

/// Brings documents over HTTP, from where nothing but documents can be had.
#[derive(Debug, Clone)]
pub struct Http {
    roots: PathBuf,
}

impl Http {
    /// With the certificates of a file (PEM) as roots for https; None: those of the system.
    pub fn new(roots: Option<PathBuf>) -> Self {
        Self {
            roots: roots.unwrap_or_else(|| SYSTEM_ROOTS.into()),
        }
    }

    pub(super) async fn get(&self, uri: Uri) -> Fetched {
        let place = guard::may_be_asked(&uri)?;
        let stream = connect(&place.host, place.port).await?;
        self.over(stream, place, &uri).await
    }

    /// Over a connection that is there.
    pub(super) async fn over(&self, stream: impl Stream, place: Place, uri: &Uri) -> Fetched {
        if !place.secure {
            return ask(stream, uri).await;
        }
        let name = ServerName::try_from(place.host).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let stream = connector.connect(name, stream).await;
        ask(stream.map_err(|error| format!("TLS: {error}"))?, uri).await
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let file = |error: &dyn std::fmt::Display| format!("{}: {error}", self.roots.display());
        let mut roots = RootCertStore::empty();
        for certificate in
            CertificateDer::pem_file_iter(&self.roots).map_err(|error| file(&error))?
        {
            // One that cannot be read is one that nobody can prove to have.
            let _ = roots.add(certificate.map_err(|error| file(&error))?);
        }
        if roots.is_empty() {
            return Err(file(&"no certificate in it"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

impl Fetch for Http {
    fn fetch(&self, uri: Uri, within: Duration) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            let late = |_| Err(format!("no answer within {} ms", within.as_millis()));
            tokio::time::timeout(within, self.get(uri))
                .await
                .unwrap_or_else(late)
        })
    }
}

impl Default for Http {
    /// With the system's roots.
    fn default() -> Self {
        Self::new(None)
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| format!("{host}: {error}"))?;
    let addresses: Vec<SocketAddr> = found
        .filter(|address| is_allowed(address.ip()))
        .take(MOST_ADDRESSES)
        .collect();
    if addresses.is_empty() {
        return Err(format!("{host} has no address that may be asked"));
    }
    TcpStream::connect(&*addresses)
        .await
        .map_err(|error| format!("{host}:{port}: {error}"))
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, uri: &Uri) -> Fetched {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(
            header::HOST,
            uri.authority().map_or("", |authority| authority.as_str()),
        )
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "ambit-waypoint")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        if answer.status() != StatusCode::OK {
            return Err(format!("it answered {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        Ok(body.map_err(|error| error.to_string())?.to_bytes())
    };
    // Both at once, and neither outlives this: no task is left behind.
    tokio::pin!(answered, connection);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        // Whoever has answered may be gone before we say farewell; whether that was all, the answer knows.
        _ = &mut connection => answered.await,
    }
}

#[cfg(test)]
mod tests;
