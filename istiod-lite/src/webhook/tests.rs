//! Over the network, as an API server comes: TLS, HTTP/2 or 1.1, several at once, and a flood.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ops::metrics::Registry;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::ca::{Authority, Lifetimes, Source};
use crate::inject::tests::injector;

const NAME: &str = "istiod.istio-system.svc";
const BAD: &str = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
    "uid": "u", "operation": "CREATE", "name": "p", "namespace": "alpha",
    "kind": {"group": "security.istio.io", "version": "v1", "kind": "PeerAuthentication"},
    "object": {"metadata": {"name": "p", "namespace": "alpha"}, "spec": {"mtls": {"mode": "NEVER"}}}}}"#;

struct Served {
    address: SocketAddr,
    roots: String,
    drain: Drain,
    _state: tempfile::TempDir,
}

async fn serve() -> Served {
    let state = tempfile::tempdir().unwrap();
    let source = Source::Own(state.path().to_owned());
    let authority = Authority::open(source, "cluster.local".into(), Lifetimes::default()).unwrap();
    let authority = Arc::new(authority);
    let certificate = ServerCertificate::new(authority.clone(), &[NAME.to_owned()]).unwrap();
    let judge = Judge {
        root_namespace: "istio-system".into(),
        dry_run: false,
        exists: Arc::new(|_| None),
        metrics: Metrics::register(&mut Registry::new("pilot", "test")),
    };
    let drain = Drain::new();
    let loopback = "127.0.0.1:0".parse().unwrap();
    Served {
        address: start(loopback, &certificate, judge, Some(injector()), &drain)
            .await
            .unwrap(),
        roots: authority.roots(),
        drain,
        _state: state,
    }
}

impl Served {
    async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.roots.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let mut config = rustls::ClientConfig::builder_with_provider(hbone::tls::crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, tcp).await.unwrap()
    }

    async fn http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect(b"h2").await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

fn review() -> Request<Full<Bytes>> {
    Request::post(format!("https://{NAME}/validate?timeout=5s"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(BAD.as_bytes())))
        .unwrap()
}

async fn refused(response: http::Response<hyper::body::Incoming>) -> bool {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
    answer["response"]["allowed"] == false
}

#[tokio::test]
async fn an_api_server_is_answered_over_either_http() {
    let served = serve().await;
    let mut sender = served.http2().await;
    let (one, other) = tokio::join!(
        sender.clone().send_request(review()),
        sender.send_request(review())
    );
    assert!(refused(one.unwrap()).await && refused(other.unwrap()).await);

    let io = TokioIo::new(served.connect(b"http/1.1").await);
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let response = sender.send_request(review()).await.unwrap();
        assert!(refused(response).await, "the connection is kept");
    }
}

#[tokio::test]
async fn a_flood_of_silent_connections_keeps_nobody_out() {
    let served = serve().await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    let mut sender = served.http2().await;
    assert!(refused(sender.send_request(review()).await.unwrap()).await);
    for _ in 0..100 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    let again = sender.send_request(review()).await.unwrap();
    assert!(refused(again).await, "who asks stays");
}

#[tokio::test]
async fn the_end_waits_for_nobody_who_asks_nothing() {
    let served = serve().await;
    let mut sender = served.http2().await;
    assert!(refused(sender.send_request(review()).await.unwrap()).await);
    let _silent = TcpStream::connect(served.address).await.unwrap();
    let drained = served.drain.drain(Duration::from_secs(30)).await;
    assert_eq!(drained, ops::drain::Drained::Quiet);
    assert!(TcpStream::connect(served.address).await.is_err());
}

/// A review of a pod, as an API server asks after it took in what kubectl sent.
fn of_a_pod(body: impl Into<Bytes>, kind: &str) -> Request<Full<Bytes>> {
    Request::post(format!("https://{NAME}/inject?timeout=10s"))
        .header("content-type", kind)
        .body(Full::new(body.into()))
        .unwrap()
}

const POD: &str = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
    "uid": "u", "operation": "CREATE", "namespace": "alpha", "kind": {"group": "", "version": "v1", "kind": "Pod"},
    "object": {"metadata": {"generateName": "web-", "namespace": "alpha"},
        "spec": {"containers": [{"name": "web", "image": "i"}]}}}}"#;

async fn told(
    sender: &mut http2::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> (StatusCode, String) {
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn a_pod_is_given_a_proxy_and_whatever_else_is_sent_there_gets_a_clear_answer() {
    let served = serve().await;
    let mut sender = served.http2().await;
    let json = "application/json";
    let (status, answer) = told(&mut sender, of_a_pod(POD, json)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let response = &answer["response"];
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = response["patch"].as_str().unwrap();
    let engine = base64::engine::general_purpose::STANDARD;
    let patch = base64::Engine::decode(&engine, patch).unwrap();
    let patch: serde_json::Value = serde_json::from_slice(&patch).unwrap();
    let operations = patch.as_array().unwrap();
    let found = operations
        .iter()
        .find(|it| it["path"] == "/spec/initContainers");
    assert_eq!(found.unwrap()["value"][1]["name"], "istio-proxy", "{patch}");

    let long = vec![b' '; 6 << 20];
    let shapeless = POD.replace(r#"{"containers": [{"name": "web", "image": "i"}]}"#, "7");
    let deep = "[".repeat(100_000);
    let cases: [(Request<Full<Bytes>>, StatusCode, &str); 7] = [
        (
            of_a_pod("", json),
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            of_a_pod("no JSON", json),
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            of_a_pod(deep, json),
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            of_a_pod(vec![0xff; 64], json),
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            of_a_pod(POD, "text/plain"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "application/json",
        ),
        (
            of_a_pod(long, json),
            StatusCode::PAYLOAD_TOO_LARGE,
            "a review of more than",
        ),
        (
            of_a_pod(shapeless, json),
            StatusCode::OK,
            "no pod that could be given a proxy",
        ),
    ];
    for (request, expected, text) in cases {
        let (status, answer) = told(&mut sender, request).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer.contains(text), "{answer}");
    }
    // What is no new pod is nobody's business here.
    for (old, new) in [("CREATE", "UPDATE"), (r#""Pod""#, r#""Service""#)] {
        let (status, answer) = told(&mut sender, of_a_pod(POD.replace(old, new), json)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert!(
            answer.contains(r#""allowed":true"#) && !answer.contains("patch"),
            "{answer}"
        );
    }
    assert!(
        refused(sender.send_request(review()).await.unwrap()).await,
        "it serves on"
    );
}
