//! The way to the control plane: discovery and certificate requests over gRPC.
//!
//! Addresses, a root file and a token file enter. What leaves: a channel for the certificate
//! authority ([`channel`]), and a mesh that is kept up to date ([`run`]).
//!
//! Roots are read for each new connection and tokens for each call, so that both may be rotated
//! under our feet. `http://` addresses are spoken to in the clear: for tests on loopback.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::discovery::Node;
use api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use hbone::ca::TokenSource;
use hyper_util::rt::TokioIo;
use mesh::stream::{ClientConfig, ClientEvent, run_client};
use ops::ready::Gate;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig as TlsConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::config::Config;
use crate::metrics::{Reason, TypeUrl, XdsMetrics};

/// Keeps `writer`'s mesh up to date until `cancel`. `gate` opens with the first answer of each
/// type and stays open: a proxy that knows the mesh goes on without the control plane.
pub async fn run(
    config: &Config,
    mut writer: mesh::Writer,
    gate: Gate,
    metrics: XdsMetrics,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let channel = channel(
        &config.xds_address,
        &config.xds_root_ca,
        config.alt_xds_hostname.as_deref(),
    )?;
    let caller = Caller::new(config);
    let connect = || {
        let client =
            AggregatedDiscoveryServiceClient::with_interceptor(channel.clone(), caller.clone());
        std::future::ready(Ok::<_, std::convert::Infallible>(client))
    };
    let mut answered = Answered {
        addresses: false,
        authorizations: false,
    };
    let events = |event: ClientEvent<'_>| {
        note(&event, &metrics);
        if let ClientEvent::Applied { type_url, .. } = event
            && answered.all_with(type_url)
        {
            gate.open();
        }
    };
    run_client(
        connect,
        ClientConfig::new(node(config)),
        None,
        |update| writer.apply(update),
        events,
        cancel,
    )
    .await;
    Ok(())
}

/// A channel that connects when it is used, and again when it has to.
pub fn channel(
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
    Ok(
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let (roots, server_name) = (roots.clone(), server_name.clone());
            async move {
                connect(&uri, &roots, server_name.as_deref())
                    .await
                    .map(TokioIo::new)
            }
        })),
    )
}

/// The bearer token, read from its file at each call. Empty without a file name.
pub fn token_source(path: &Path) -> TokenSource {
    let path = path.to_owned();
    Arc::new(move || {
        if path.as_os_str().is_empty() {
            Ok(String::new())
        } else {
            read_token(&path)
        }
    })
}

fn read_token(path: &Path) -> io::Result<String> {
    let token = std::fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(token.trim().to_owned())
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(
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
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    if uri.scheme_str() == Some("http") {
        return Ok(Box::pin(tcp));
    }
    let name = server_name.unwrap_or(host);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| invalid("not a name a certificate can carry"))?;
    let tls = TlsConnector::from(Arc::new(tls_config(roots)?))
        .connect(name, tcp)
        .await?;
    Ok(Box::pin(tls))
}

fn tls_config(roots: &PathBuf) -> io::Result<TlsConfig> {
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
    let mut config = TlsConfig::builder_with_provider(hbone::tls::crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Puts our credentials on every call.
#[derive(Clone)]
struct Caller {
    token: TokenSource,
    headers: Arc<Vec<(AsciiMetadataKey, AsciiMetadataValue)>>,
}

impl Caller {
    fn new(config: &Config) -> Self {
        let cluster = ("clusterid".to_owned(), config.cluster_id.clone());
        let headers = config.xds_headers.iter().cloned().chain([cluster]);
        let parsed = headers.filter_map(|(name, value)| {
            Some((
                AsciiMetadataKey::from_bytes(name.as_bytes()).ok()?,
                value.parse().ok()?,
            ))
        });
        Self {
            token: token_source(&config.auth_token),
            headers: Arc::new(parsed.collect()),
        }
    }
}

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token =
            (self.token)().map_err(|error| Status::unauthenticated(format!("token: {error}")))?;
        if !token.is_empty() {
            let bearer = format!("Bearer {token}").parse::<AsciiMetadataValue>();
            let mut bearer = bearer
                .map_err(|_| Status::unauthenticated("token: characters that no token has"))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        for (name, value) in self.headers.iter() {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }
}

/// Who we say we are.
fn node(config: &Config) -> Node {
    let Config {
        pod_name,
        pod_namespace: namespace,
        instance_ip,
        cluster_domain,
        ..
    } = config;
    let own_ip = config.own_ip();
    let mut metadata = config.metadata.clone();
    let known = [
        ("NAME", pod_name),
        ("NAMESPACE", namespace),
        ("INSTANCE_IPS", instance_ip),
        ("NODE_NAME", &config.node_name),
        ("CLUSTER_ID", &config.cluster_id),
        ("NETWORK", &config.network),
        ("SERVICE_ACCOUNT", &config.service_account),
    ];
    metadata.extend(
        known
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value.clone())),
    );
    metadata
        .entry("ISTIO_VERSION".to_owned())
        .or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
    let text = |value| Value {
        kind: Some(Kind::StringValue(value)),
    };
    let fields: BTreeMap<_, _> = metadata
        .into_iter()
        .map(|(key, value)| (key, text(value)))
        .collect();
    Node {
        id: format!("ztunnel~{own_ip}~{pod_name}.{namespace}~{namespace}.svc.{cluster_domain}"),
        metadata: Some(Struct { fields }),
        ..Node::default()
    }
}

/// Which types were answered since the start.
#[derive(Debug)]
struct Answered {
    addresses: bool,
    authorizations: bool,
}

impl Answered {
    fn all_with(&mut self, type_url: &str) -> bool {
        self.addresses |= type_url == ADDRESS_TYPE;
        self.authorizations |= type_url == AUTHORIZATION_TYPE;
        self.addresses && self.authorizations
    }
}

fn note(event: &ClientEvent<'_>, metrics: &XdsMetrics) {
    match event {
        ClientEvent::Connected => tracing::info!("xds: stream open"),
        ClientEvent::Applied {
            type_url,
            set,
            removed,
            rejected,
        } => {
            metrics
                .messages
                .get_or_create(&TypeUrl { url: type_url })
                .inc();
            tracing::debug!(
                type_url,
                set,
                removed,
                rejected = rejected.len(),
                "xds: applied"
            );
            for rejected in *rejected {
                tracing::warn!(type_url, resource = %rejected.name, reason = %rejected.reason, "xds: resource refused, the last good one stays");
            }
        }
        ClientEvent::Disconnected {
            reason: None,
            retry_in,
        } => {
            metrics
                .terminations
                .get_or_create(&Reason { reason: "Complete" })
                .inc();
            tracing::debug!(?retry_in, "xds: the control plane closed the stream");
        }
        ClientEvent::Disconnected {
            reason: Some(reason),
            retry_in,
        } => {
            metrics
                .terminations
                .get_or_create(&Reason { reason: "Error" })
                .inc();
            tracing::warn!(
                error = reason,
                ?retry_in,
                "xds: no stream to the control plane; going on with what is known"
            );
        }
    }
}

/// A control plane two networks away answers in less.
const CONNECT: Duration = Duration::from_secs(5);
/// Istiod forbids pings more often than every 15 s.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn config() -> Config {
        let arguments =
            "ztunnel --pod-name ztunnel-abc --instance-ip 10.20.0.9 --node-name na".split(' ');
        Config::try_parse_from(arguments).unwrap()
    }

    /// What Istio's ztunnel said of itself in the same place: same id, and no key of its missing.
    #[test]
    fn node_is_what_istios_ztunnel_says() {
        let golden = include_str!("../testdata/xds/15-real-ztunnel-requests.jsonl");
        let golden: serde_json::Value = golden
            .lines()
            .nth(2)
            .map(|line| serde_json::from_str(line).unwrap())
            .unwrap();
        let golden = &golden["msg"]["node"];
        let ours = node(&config());
        assert_eq!(ours.id, golden["id"]);
        let fields = ours.metadata.unwrap().fields;
        for (key, value) in golden["metadata"].as_object().unwrap() {
            let text = |value: &Value| match &value.kind {
                Some(Kind::StringValue(text)) => text.clone(),
                other => panic!("{other:?}"),
            };
            assert_eq!(&text(&fields[key]), value, "{key}");
        }
    }

    #[test]
    fn token_is_read_at_each_call() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let mut caller = Caller {
            token: token_source(&path),
            headers: Arc::default(),
        };
        let bearer = |caller: &mut Caller| {
            let request = caller
                .call(Request::new(()))
                .map_err(|status| status.message().to_owned())?;
            Ok::<_, String>(
                request
                    .metadata()
                    .get("authorization")
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            )
        };
        assert!(bearer(&mut caller).unwrap_err().contains("No such file"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(bearer(&mut caller).unwrap(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(bearer(&mut caller).unwrap(), "Bearer two");
    }

    #[test]
    fn ready_only_after_both_types() {
        let mut answered = Answered {
            addresses: false,
            authorizations: false,
        };
        assert!(!answered.all_with(AUTHORIZATION_TYPE));
        assert!(!answered.all_with(AUTHORIZATION_TYPE));
        assert!(answered.all_with(ADDRESS_TYPE));
    }

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
            let error = tls_config(&path).unwrap_err().to_string();
            assert!(error.contains("root-cert.pem"), "{error}");
        }
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
        let config = rustls::ServerConfig::builder_with_provider(hbone::tls::crypto_provider())
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
            connect(&uri, &path, Some(name))
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
