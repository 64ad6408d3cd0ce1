//! A control plane in this process, and clients of it over real TLS.

#![allow(unreachable_pub)] // a crate of tests has no other side

mod proxy;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use api::discovery::Node;
use clap::Parser as _;
use hyper_util::rt::TokioIo;
use istiod_lite::config::{Cli, Command, Run};
use istiod_lite::start::{Running, start};
use istiod_lite::token::{self, Named, Tokens};
use ops::drain::Drain;
use prost_types::value::Kind;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub use proxy::{Held, Proxy};

pub const ADDRESS: &str = api::ADDRESS_TYPE;
pub const AUTHORIZATION: &str = api::AUTHORIZATION_TYPE;

/// What a test waits for at most; none should come near it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Ends a process that is not done in time, so that whoever reads what it says, or waits for its end, comes to one.
pub struct Deadline {
    _alive: mpsc::Sender<()>,
}

impl Deadline {
    /// Until it is dropped.
    pub fn of(child: &std::process::Child) -> Self {
        use nix::sys::signal::{Signal, kill};
        let (alive, gone) = mpsc::channel();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        std::thread::spawn(move || {
            if gone.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("process {pid} is not done after {PATIENCE:?}: it is ended");
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        Self { _alive: alive }
    }
}

pub struct Server {
    pub running: Running,
    pub drain: Drain,
    config: tempfile::TempDir,
    state: tempfile::TempDir,
    tokens: Tokens,
}

impl Server {
    /// With a mesh of two nodes and their proxies.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(flags: &[&str]) -> Self {
        Self::prepared(flags, |_| {}).await
    }

    pub async fn prepared(flags: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(config.path().join("base.yaml"), BASE).unwrap();
        prepare(config.path());
        let mut arguments = vec![
            "istiod-lite".to_owned(),
            "run".into(),
            "--config-dir".into(),
            config.path().to_str().unwrap().into(),
            "--state-dir".into(),
            state.path().to_str().unwrap().into(),
            "--listen-grpc".into(),
            "127.0.0.1:0".into(),
            "--listen-monitoring".into(),
            "127.0.0.1:0".into(),
        ];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let drain = Drain::new();
        let running = start(&parse(&arguments), &drain).await.unwrap();
        let tokens = Tokens::open(state.path()).unwrap();
        Self {
            running,
            drain,
            config,
            state,
            tokens,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.config.path().join(name)
    }

    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// In one step, as every careful writer does.
    pub fn write(&self, name: &str, text: &str) {
        let temporary = self.path(&format!(".{name}"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.path(name)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    pub fn token(&self, namespace: &str, account: &str, pod: Option<&str>) -> String {
        self.issue(
            namespace,
            account,
            pod,
            token::AUDIENCE,
            Duration::from_secs(600),
        )
    }

    pub fn issue(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<&str>,
        audience: &str,
        lifetime: Duration,
    ) -> String {
        let request = token::Request {
            namespace: namespace.into(),
            service_account: account.into(),
            pod: pod.map(|name| Named {
                name: name.into(),
                uid: format!("uid-{name}"),
            }),
            node: None,
            lifetime,
            audience: audience.into(),
        };
        self.tokens.issue(&request).unwrap()
    }

    /// A fresh connection that trusts the root of the state directory.
    pub async fn channel(&self) -> Channel {
        let roots = std::fs::read(self.state.path().join("root-cert.pem")).unwrap();
        channel(self.running.grpc, &roots, "istiod.istio-system.svc")
            .await
            .unwrap()
    }

    /// A stream of node-1's proxy, with its own connection.
    pub async fn proxy(&self) -> Proxy {
        let bearer = format!(
            "Bearer {}",
            self.token("istio-system", "ztunnel", Some("ztunnel-node1"))
        );
        Proxy::open(self.channel().await, Some(&bearer))
            .await
            .unwrap()
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = tokio::time::timeout(PATIENCE, self.ask(path)).await;
        answer.unwrap_or_else(|_| panic!("{path} is not answered"))
    }

    async fn ask(&self, path: &str) -> (u16, String) {
        use http_body_util::{BodyExt as _, Empty};
        let tcp = TcpStream::connect(self.running.monitoring).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(path)
            .header("host", "localhost")
            .body(Empty::<bytes::Bytes>::new());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    pub async fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path).await.1).unwrap()
    }

    /// Until `holds` of the answer at `path`; polls, because nobody is told what others see there.
    pub async fn until(&self, path: &str, holds: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.get(path).await.1;
                if holds(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "{path} still says {last}");
        last
    }
}

pub fn parse(arguments: &[String]) -> Run {
    match Cli::try_parse_from(arguments).unwrap().command {
        Command::Run(run) => *run,
        other => panic!("{other:?}"),
    }
}

/// TLS 1.3 with ALPN h2, as a proxy does it; `name` is what the certificate must be for.
pub async fn channel(
    to: std::net::SocketAddr,
    roots: &[u8],
    name: &'static str,
) -> Result<Channel, tonic::transport::Error> {
    let mut trusted = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        trusted.add(root.unwrap()).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(hbone::tls::crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let dial = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(to).await?;
            let name = ServerName::try_from(name).unwrap();
            let stream = connector.connect(name, tcp).await?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // A small window: what a slow client does not read stays with the server.
    Endpoint::from_static("http://istiod")
        .initial_stream_window_size(64 * 1024)
        .connect_timeout(PATIENCE)
        .connect_with_connector(dial)
        .await
}

pub fn ztunnel_node() -> Node {
    node(
        "ztunnel~10.20.0.9~ztunnel-node1.istio-system~istio-system.svc.cluster.local",
        &[
            ("NAMESPACE", "istio-system"),
            ("NODE_NAME", "node-1"),
            ("CLUSTER_ID", "Kubernetes"),
        ],
    )
}

pub fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
    let field = |(key, text): &(&str, &str)| {
        let value = prost_types::Value {
            kind: Some(Kind::StringValue((*text).into())),
        };
        ((*key).to_owned(), value)
    };
    Node {
        id: id.into(),
        metadata: Some(prost_types::Struct {
            fields: metadata.iter().map(field).collect(),
        }),
        ..Default::default()
    }
}

/// A pod that runs and is enrolled.
pub fn pod(namespace: &str, name: &str, account: &str, node: &str, ip: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  uid: uid-{name}
  labels: {{ app: web }}
  annotations: {{ ambient.istio.io/redirection: enabled }}
spec:
  serviceAccountName: {account}
  nodeName: {node}
  containers: [{{ name: app, image: none }}]
status:
  phase: Running
  podIP: {ip}
  podIPs: [{{ ip: {ip} }}]
  conditions: [{{ type: Ready, status: \"True\" }}]
"
    )
}

pub fn uid(namespace: &str, pod: &str) -> String {
    format!("Kubernetes//Pod/{namespace}/{pod}")
}

pub const POLICY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: allow, namespace: alpha }
spec:
  selector: { matchLabels: { app: web } }
  action: ALLOW
  rules: [{ from: [{ source: { namespaces: [beta] } }] }]
";

const BASE: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: istio-system }
---
apiVersion: v1
kind: Namespace
metadata: { name: alpha }
---
apiVersion: v1
kind: Node
metadata: { name: node-1 }
---
apiVersion: v1
kind: Node
metadata: { name: node-2 }
---
apiVersion: v1
kind: Pod
metadata: { name: ztunnel-node1, namespace: istio-system, uid: uid-ztunnel-node1, labels: { app: ztunnel } }
spec: { serviceAccountName: ztunnel, nodeName: node-1, containers: [{ name: ztunnel, image: none }] }
status: { phase: Running, podIP: 10.20.0.9, podIPs: [{ ip: 10.20.0.9 }], conditions: [{ type: Ready, status: \"True\" }] }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: alpha, uid: uid-client, labels: { app: client } }
spec: { serviceAccountName: client, nodeName: node-1, containers: [{ name: app, image: none }] }
status: { phase: Running, podIP: 10.10.0.7, podIPs: [{ ip: 10.10.0.7 }], conditions: [{ type: Ready, status: \"True\" }] }
---
apiVersion: v1
kind: Pod
metadata: { name: far, namespace: alpha, uid: uid-far, labels: { app: far } }
spec: { serviceAccountName: far, nodeName: node-2, containers: [{ name: app, image: none }] }
status: { phase: Running, podIP: 10.10.1.7, podIPs: [{ ip: 10.10.1.7 }], conditions: [{ type: Ready, status: \"True\" }] }
";
