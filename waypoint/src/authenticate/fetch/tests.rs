use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsAcceptor;

use super::*;

const PLAIN: &str = "http://issuer.example:8080/keys?x=1";

/// Asks over a stream at whose other end `answer` is said to whatever is asked; also, what was.
async fn answered(answer: Vec<u8>) -> (Fetched, String) {
    let (ours, mut theirs) = duplex(1 << 16);
    let server = tokio::spawn(async move {
        let heard = head(&mut theirs).await;
        let _ = theirs.write_all(&answer).await;
        heard
    });
    let uri = PLAIN.parse().unwrap();
    let fetched = ask(ours, &uri).await;
    (fetched, server.await.unwrap())
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(heard).unwrap()
}

#[tokio::test]
async fn a_document_is_asked_for_and_brought() {
    let (fetched, heard) =
        answered(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()).await;
    assert_eq!(fetched, Ok(Bytes::from_static(b"{}")));
    assert!(heard.starts_with("GET /keys?x=1 HTTP/1.1\r\n"), "{heard}");
    assert!(heard.contains("host: issuer.example:8080\r\n"), "{heard}");
    let (fetched, _) = answered(b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec()).await;
    assert_eq!(fetched, Ok(Bytes::from_static(b"until the end")));
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_nothing_but_200_is_a_document() {
    for status in [
        "301 Moved",
        "302 Found",
        "307 x",
        "204 x",
        "206 x",
        "404 x",
        "500 x",
    ] {
        let answer = format!(
            "HTTP/1.1 {status}\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n"
        );
        let (fetched, _) = answered(answer.into_bytes()).await;
        let why = fetched.unwrap_err();
        assert!(why.starts_with("it answered "), "{why}");
    }
}

#[tokio::test]
async fn what_is_too_long_or_broken_is_not_a_document() {
    let long = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b' '; LONGEST + 1]].concat();
    assert!(answered(long).await.0.is_err());
    assert!(
        answered(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_vec())
            .await
            .0
            .is_err()
    );
    assert!(answered(b"SSH-2.0\r\n".to_vec()).await.0.is_err());
    assert!(answered(Vec::new()).await.0.is_err());
}

#[tokio::test]
async fn names_that_lead_to_the_proxy_itself_are_not_connected_to() {
    for host in [
        "127.0.0.1",
        "::1",
        "localhost",
        "0.0.0.0",
        "169.254.169.254",
    ] {
        let why = connect(host, 1).await.unwrap_err();
        assert_eq!(why, format!("{host} has no address that may be asked"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_forbidden_uri_is_refused_by_the_fetcher_as_well() {
    let http = Http::new(None);
    let within = Duration::from_secs(1);
    let fetched = http
        .fetch("http://127.0.0.1:15000/".parse().unwrap(), within)
        .await;
    assert_eq!(fetched, Err("127.0.0.1 may not be asked".to_owned()));
}

/// A server that proves a name, and the file of the root that vouches for it.
fn issuer(name: &str) -> (TlsAcceptor, tempfile::NamedTempFile) {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), root.self_signed(&root_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        );
    (TlsAcceptor::from(Arc::new(config.unwrap())), file)
}

async fn serve(acceptor: TlsAcceptor, stream: DuplexStream) {
    if let Ok(mut stream) = acceptor.accept(stream).await {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        stream.write_all(answer).await.unwrap();
        let _ = stream.shutdown().await;
    }
}

#[tokio::test]
async fn over_tls_the_issuer_proves_its_name() {
    let (acceptor, roots) = issuer("issuer.example");
    let (_, other_roots) = issuer("issuer.example");
    let asked = async |uri: &str, roots: &std::path::Path| {
        let (ours, theirs) = duplex(1 << 16);
        tokio::spawn(serve(acceptor.clone(), theirs));
        let uri: Uri = uri.parse().unwrap();
        let place = guard::may_be_asked(&uri).unwrap();
        Http::new(Some(roots.into())).over(ours, place, &uri).await
    };
    let uri = "https://issuer.example/keys";
    assert_eq!(
        asked(uri, roots.path()).await,
        Ok(Bytes::from_static(b"{}"))
    );
    let other_name = asked("https://other.example/keys", roots.path())
        .await
        .unwrap_err();
    assert!(other_name.contains("not valid for name"), "{other_name}");
    let other_root = asked(uri, other_roots.path()).await.unwrap_err();
    assert!(other_root.starts_with("TLS: "), "{other_root}");
    assert!(asked(uri, std::path::Path::new("/nowhere")).await.is_err());
    let empty = tempfile::NamedTempFile::new().unwrap();
    let none = asked(uri, empty.path()).await.unwrap_err();
    assert!(none.ends_with("no certificate in it"), "{none}");
}
