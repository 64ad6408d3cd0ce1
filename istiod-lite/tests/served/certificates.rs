//! Certificates over real TLS: for whom, from whom, and while files change underneath.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hbone::{CaClient, Identity, SignError, Signer as _};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tonic::transport::Channel;
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::support::{Server, channel, pod};

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "alpha", account).unwrap()
}

fn csr() -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap()
}

/// As a node's proxy asks.
fn ca(server: &Server, channel: Channel, namespace: &str, account: &str, pod: &str) -> CaClient {
    let token = server.token(namespace, account, Some(pod));
    let source = Arc::new(move || Ok(token.clone()));
    CaClient::new(channel, "Kubernetes", source, Duration::from_secs(3600)).unwrap()
}

/// Issuer of a PEM certificate, as text.
fn issuer(pem: &str) -> String {
    let pem = Pem::iter_from_buffer(pem.as_bytes())
        .next()
        .unwrap()
        .unwrap();
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    certificate.issuer().to_string()
}

#[tokio::test]
async fn a_node_gets_the_identities_of_its_own_pods_from_the_moment_they_are_written() {
    let server = Server::start().await;
    let node = ca(
        &server,
        server.channel().await,
        "istio-system",
        "ztunnel",
        "ztunnel-node1",
    );
    let chain = node.sign(&identity("client"), csr()).await.unwrap();
    assert_eq!(
        chain.last().unwrap(),
        &std::fs::read_to_string(server.state().join("root-cert.pem")).unwrap()
    );

    for (account, why) in [("far", "runs on another node"), ("nobody", "runs nowhere")] {
        let refused = node.sign(&identity(account), csr()).await.unwrap_err();
        assert!(
            matches!(refused, SignError::Refused(_)),
            "{why}: {refused:?}"
        );
    }
    server.write(
        "new.yaml",
        &pod("alpha", "new", "nobody", "node-1", "10.10.0.30"),
    );
    server
        .until("/debug/catalogz", |text| text.contains("alpha/new"))
        .await;
    node.sign(&identity("nobody"), csr()).await.unwrap();
    server.remove("new.yaml");
    server
        .until("/debug/catalogz", |text| !text.contains("alpha/new"))
        .await;
    assert!(node.sign(&identity("nobody"), csr()).await.is_err());

    let (_, metrics) = server.get("/metrics").await;
    for line in [
        "citadel_server_success_cert_issuance_count 2",
        "citadel_server_authentication_failure_count 3",
        "citadel_server_csr_count 5",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is missing in\n{metrics}"
        );
    }
}

#[tokio::test]
async fn a_workload_cannot_speak_for_another_nor_a_node_for_another_domain() {
    let server = Server::start().await;
    let workload = ca(&server, server.channel().await, "alpha", "client", "client");
    assert!(workload.sign(&identity("far"), csr()).await.is_err());
    let node = ca(
        &server,
        server.channel().await,
        "istio-system",
        "ztunnel",
        "ztunnel-node1",
    );
    let foreign = Identity::new("other.domain", "alpha", "client").unwrap();
    assert!(node.sign(&foreign, csr()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_gets_a_hundred_certificates_over_one_connection() {
    let server = Server::start().await;
    let node = ca(
        &server,
        server.channel().await,
        "istio-system",
        "ztunnel",
        "ztunnel-node1",
    );
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let node = node.clone();
        tasks.spawn(async move { node.sign(&identity("client"), csr()).await.unwrap() });
    }
    let chains = tasks.join_all().await;
    let leaves: std::collections::HashSet<_> = chains
        .into_iter()
        .map(|mut chain| chain.swap_remove(0))
        .collect();
    assert_eq!(leaves.len(), 100);
}

fn authority(organisation: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, organisation);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    (params, key)
}

/// A signer of that name under `root`, as files.
fn signer(root: &CertifiedIssuer<'static, KeyPair>, name: &str) -> [(&'static str, String); 4] {
    let (params, key) = authority(name);
    let certificate = params.signed_by(&key, root).unwrap();
    [
        ("ca-key.pem", key.serialize_pem()),
        ("ca-cert.pem", certificate.pem()),
        ("cert-chain.pem", certificate.pem()),
        ("root-cert.pem", root.pem()),
    ]
}

fn put(directory: &Path, files: &[(&str, String)]) {
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

/// An RSA intermediate is exchanged under load: half of the files arrive, then the rest. Nobody is
/// ever refused, and proxies and the server's own port follow to the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_is_exchanged_file_by_file_without_a_refusal() {
    let (params, key) = authority("root");
    let root = CertifiedIssuer::self_signed(params, key).unwrap();
    let plugged = tempfile::tempdir().unwrap();
    put(plugged.path(), &signer(&root, "first"));
    let directory = plugged.path().to_str().unwrap().to_owned();
    let server = Server::with(&["--ca-dir", &directory, "--ca-poll", "10ms"]).await;
    let connect = || {
        channel(
            server.running.grpc,
            root.pem().as_bytes().to_vec().leak(),
            "istiod.istio-system.svc",
        )
    };
    let node = ca(
        &server,
        connect().await.unwrap(),
        "istio-system",
        "ztunnel",
        "ztunnel-node1",
    );
    let chain = node.sign(&identity("client"), csr()).await.unwrap();
    assert_eq!(
        (chain.len(), &*issuer(&chain[0]), &*issuer(&chain[1])),
        (3, "O=first", "O=root")
    );

    let second = signer(&root, "second");
    put(plugged.path(), &second[..1]);
    let mut changed = server.running.authority.changed();
    // The poll meets the half-exchanged files; reloading by hand shows what it sees.
    assert!(server.running.authority.reload().is_err());
    let chain = node.sign(&identity("client"), csr()).await.unwrap();
    assert_eq!(issuer(&chain[0]), "O=first");

    put(plugged.path(), &second[1..]);
    tokio::time::timeout(crate::support::PATIENCE, changed.changed())
        .await
        .expect("the new signer is not taken up")
        .unwrap();
    let chain = node.sign(&identity("client"), csr()).await.unwrap();
    assert_eq!(issuer(&chain[0]), "O=second");
    // The port is certified by the new signer soon after, and the same root still believes it.
    let fresh = tokio::time::timeout(crate::support::PATIENCE, async {
        while server_issuer(&server, root.pem().as_bytes()).await != "O=second" {
            tokio::task::yield_now().await;
        }
    });
    fresh
        .await
        .expect("the port is certified by the old signer yet");
}

async fn server_issuer(server: &Server, roots: &[u8]) -> String {
    use rustls::pki_types::pem::PemObject as _;
    let mut trusted = rustls::RootCertStore::empty();
    trusted
        .add(rustls::pki_types::CertificateDer::from_pem_slice(roots).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder_with_provider(hbone::tls::crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = tokio::net::TcpStream::connect(server.running.grpc)
        .await
        .unwrap();
    let name = "istiod.istio-system.svc".try_into().unwrap();
    let stream = connector.connect(name, tcp).await.unwrap();
    let leaf = &stream.get_ref().1.peer_certificates().unwrap()[0];
    X509Certificate::from_der(leaf)
        .unwrap()
        .1
        .issuer()
        .to_string()
}

/// The control plane goes away in the middle of it and comes back: same root, same tokens, and what
/// was signed before still verifies.
#[tokio::test]
async fn a_restart_keeps_root_and_tokens() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |port: u16| {
        let flag = |text: &str| text.to_owned();
        crate::support::parse(&[
            flag("istiod-lite"),
            flag("run"),
            flag("--config-dir"),
            flag(config.path().to_str().unwrap()),
            flag("--state-dir"),
            flag(state.path().to_str().unwrap()),
            flag("--listen-monitoring"),
            flag("127.0.0.1:0"),
            flag("--listen-grpc"),
            format!("127.0.0.1:{port}"),
        ])
    };
    std::fs::write(
        config.path().join("z.yaml"),
        pod(
            "istio-system",
            "ztunnel-node1",
            "ztunnel",
            "node-1",
            "10.0.0.1",
        ),
    )
    .unwrap();
    let drain = ops::drain::Drain::new();
    let first = istiod_lite::start::start(&run(0), &drain).await.unwrap();
    let roots = first.authority.roots();
    let token = istiod_lite::token::Tokens::open(state.path()).unwrap();
    let token = token
        .issue(&istiod_lite::token::Request {
            namespace: "istio-system".into(),
            service_account: "ztunnel".into(),
            pod: Some(istiod_lite::token::Named {
                name: "ztunnel-node1".into(),
                uid: "uid-ztunnel-node1".into(),
            }),
            lifetime: Duration::from_secs(600),
            audience: istiod_lite::token::AUDIENCE.into(),
            node: None,
        })
        .unwrap();
    let source: hbone::ca::TokenSource = Arc::new(move || Ok(token.clone()));
    let own = Identity::new("cluster.local", "istio-system", "ztunnel").unwrap();
    let client = async |to| {
        let channel = channel(to, roots.as_bytes(), "localhost").await.unwrap();
        CaClient::new(
            channel,
            "Kubernetes",
            source.clone(),
            Duration::from_secs(60),
        )
        .unwrap()
    };
    client(first.grpc).await.sign(&own, csr()).await.unwrap();
    drain.drain(crate::support::PATIENCE).await;
    assert!(
        channel(first.grpc, roots.as_bytes(), "localhost")
            .await
            .is_err()
    );

    let drain = ops::drain::Drain::new();
    let second = istiod_lite::start::start(&run(0), &drain).await.unwrap();
    assert_eq!(second.authority.roots(), roots);
    client(second.grpc).await.sign(&own, csr()).await.unwrap();
}
