//! What the tests of this crate share: a small certificate authority, a pair of proxies on loopback,
//! and a peer that speaks HTTP/2 frame by frame.
// Each test file uses its own part, and a test may stop at the first surprise.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

pub mod raw;
pub mod recorded;
pub mod revoked;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use hbone::{
    Certificate, Certificates, CertificatesConfig, Connect, Connection, Destination, Engine,
    Identity, Incoming, Limits, Pool, PoolConfig, Refusal, Request, ResponseHeaders, SignError,
    Signer, Tunnel,
    limits::{FIRST_STREAM_WINDOW, STREAM_WINDOW},
    tls::crypto_provider,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account).unwrap()
}

/// A certificate authority. Two of the same name have different keys.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub fn root(&self) -> String {
        self.issuer.pem()
    }

    /// An authority below this one, with name constraints (DER) if there are any.
    pub fn constrained(&self, constraints: Vec<u8>) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "below");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        if !constraints.is_empty() {
            let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], constraints);
            extension.set_criticality(true);
            params.custom_extensions = vec![extension];
        }
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap(),
        }
    }

    /// An authority below this one, until `not_after`.
    pub fn below(&self, not_after: SystemTime) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "below");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_after = not_after.into();
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap(),
        }
    }

    /// A leaf for a key, valid from two minutes ago until `not_after`.
    pub fn leaf(
        &self,
        uris: &[&str],
        key: &impl rcgen::PublicKeyData,
        not_after: SystemTime,
    ) -> String {
        self.params(uris, not_after)
            .signed_by(key, &self.issuer)
            .unwrap()
            .pem()
    }

    /// Signs a request as a mesh's authority does: the key is the request's, the name is `identity`.
    pub fn sign(&self, identity: &str, csr_pem: &str, not_after: SystemTime) -> Vec<String> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        csr.params = self.params(&[identity], not_after);
        vec![csr.signed_by(&self.issuer).unwrap().pem(), self.root()]
    }

    fn params(&self, uris: &[&str], not_after: SystemTime) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = (not_after.min(SystemTime::now()) - Duration::from_secs(120)).into();
        params.not_after = not_after.into();
        params
    }

    /// Its list of those that it takes back, in PEM.
    pub fn revoking(&self, revoked: &[CertificateDer<'_>]) -> String {
        revoked::list(&self.issuer, revoked, 2120)
    }

    /// A usable certificate.
    pub fn certificate(&self, identity: &Identity) -> Arc<Certificate> {
        let key = KeyPair::generate().unwrap();
        let leaf = self.leaf(&[&identity.to_string()], &key, SystemTime::now() + HOUR);
        Arc::new(
            Certificate::new(identity, &key.serialize_der(), &[leaf, self.root()], &[]).unwrap(),
        )
    }
}

/// Signs whatever it is asked, and counts.
#[derive(Clone)]
pub struct Signing {
    pub ca: Arc<Ca>,
    pub calls: Arc<AtomicUsize>,
    pub lifetime: Duration,
    /// Answers for the next calls; when empty, it signs.
    pub failures: Arc<Mutex<Vec<SignError>>>,
}

impl Signing {
    pub fn new(ca: &Arc<Ca>) -> Self {
        Self {
            ca: ca.clone(),
            calls: Arc::default(),
            lifetime: HOUR,
            failures: Arc::default(),
        }
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Signer for Signing {
    async fn sign(&self, identity: &Identity, csr_pem: String) -> Result<Vec<String>, SignError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some(failure) = self.failures.lock().unwrap().pop() {
            return Err(failure);
        }
        Ok(self.ca.sign(
            &identity.to_string(),
            &csr_pem,
            SystemTime::now() + self.lifetime,
        ))
    }
}

/// The engine that tests run with: the default, and `h2` in `h2` and `memory_h2`, which are the same tests once more.
pub fn engine() -> Engine {
    if env!("CARGO_CRATE_NAME").ends_with("h2") {
        Engine::H2
    } else {
        Engine::default()
    }
}

/// Tests below `turns` run on threads that write by turns; they are the same tests once more.
fn by_turns() {
    if module_path!().contains("::turns::") {
        hbone::write_by_turns();
    }
}

/// SETTINGS as a recording has them: what our own engine announces on purpose beyond that is checked
/// and taken away (`testdata/DEVIATIONS.md`).
pub fn as_recorded(mut settings: serde_json::Value) -> serde_json::Value {
    if engine() == Engine::Own {
        let ours = settings.as_object_mut().unwrap();
        assert_eq!(ours.remove("HEADER_TABLE_SIZE"), Some(0.into()));
        let first = ours.insert("INITIAL_WINDOW_SIZE".into(), STREAM_WINDOW.into());
        assert_eq!(first, Some(FIRST_STREAM_WINDOW.into()));
    }
    settings
}

/// Bytes that a peer with that engine takes of a stream that nobody reads.
pub fn first_window(engine: Engine) -> usize {
    match engine {
        Engine::H2 => STREAM_WINDOW as usize,
        Engine::Own => FIRST_STREAM_WINDOW as usize,
    }
}

/// Refusals in the order in which they were counted.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<Vec<Refusal>>>);

impl Refusals {
    pub fn limits(&self) -> Limits {
        let log = self.0.clone();
        Limits {
            engine: engine(),
            on_refusal: Some(Arc::new(move |why| log.lock().unwrap().push(why))),
            ..Limits::default()
        }
    }

    pub fn seen(&self) -> Vec<Refusal> {
        self.0.lock().unwrap().clone()
    }
}

/// A listener on loopback.
pub async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Two connected sockets.
pub async fn socket_pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listen().await;
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A server that hands every request to `serve`, each in a task of its own.
pub struct Server {
    pub address: SocketAddr,
    /// Connections accepted so far.
    pub accepted: Arc<AtomicUsize>,
    /// Connections whose handshake is done and that have not ended.
    pub open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// With [`engine`], unless the limits name another than the default.
pub async fn serve<F>(certificate: Arc<Certificate>, mut limits: Limits, serve: F) -> Server
where
    F: Fn(Request) -> Served + Clone + Send + Sync + 'static,
{
    if limits.engine == Engine::default() {
        limits.engine = engine();
    }
    by_turns();
    let (listener, address) = listen().await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let open = Arc::new(AtomicUsize::new(0));
    let (count, count_open) = (accepted.clone(), open.clone());
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let (certificate, limits, serve) = (certificate.clone(), limits.clone(), serve.clone());
            let open = count_open.clone();
            connections.spawn(async move {
                let Ok(mut connection) = hbone::accept(socket, certificate, &limits).await else {
                    return;
                };
                open.fetch_add(1, Ordering::SeqCst);
                drive(&mut connection, serve).await;
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Server {
        address,
        accepted,
        open,
        task,
    }
}

/// The next request of a connection, which must make sense.
pub async fn request(connection: &mut Connection) -> Request {
    match connection.next().await {
        Some(Ok(Incoming::Request(request))) => request,
        other => panic!("{other:?}"),
    }
}

/// Runs a connection to its end.
pub async fn drive<F>(connection: &mut Connection, serve: F)
where
    F: Fn(Request) -> Served,
{
    while let Some(incoming) = connection.next().await {
        match incoming {
            Ok(Incoming::Request(request)) => drop(tokio::spawn(serve(request))),
            Ok(Incoming::Refused(_)) => {}
            Err(_) => return,
        }
    }
}

/// The work of one request.
pub type Served = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends back what arrives, and the end after it.
pub fn echo(request: Request) -> Served {
    Box::pin(async move {
        let Ok(tunnel) = request.accept(ResponseHeaders::default()) else {
            return;
        };
        echo_tunnel(tunnel).await;
    })
}

pub async fn echo_tunnel(mut tunnel: Tunnel) {
    while let Some(Ok(chunk)) = tunnel.recv().await {
        if tunnel.send(chunk).await.is_err() {
            return;
        }
    }
    let _ = tunnel.shutdown();
}

/// A pool with an identity of its own, and how to reach `address` with it.
pub struct Client {
    pub pool: Arc<Pool>,
    pub destination: Destination,
}

pub fn client(ca: &Arc<Ca>, address: SocketAddr, config: PoolConfig) -> Client {
    client_of(Signing::new(ca), address, config)
}

/// With [`engine`], unless the configuration names another than the default.
pub fn client_of(signing: Signing, address: SocketAddr, mut config: PoolConfig) -> Client {
    if config.engine == Engine::default() {
        config.engine = engine();
    }
    by_turns();
    let certificates = Certificates::new(signing, CertificatesConfig::default());
    let destination = Destination {
        address,
        source_ip: "127.0.0.1".parse().unwrap(),
        source: identity("client"),
        expected: vec![identity("server")],
    };
    Client {
        pool: Pool::new(certificates, config),
        destination,
    }
}

impl Client {
    pub async fn open(&self) -> Result<Tunnel, hbone::OpenError> {
        self.pool
            .open(&self.destination, TcpStream::connect, to("10.0.0.1:80"))
            .await
    }
}

pub fn to(authority: &str) -> Connect {
    Connect::to(authority.parse::<hbone::Authority>().unwrap())
}

/// Waits until something becomes true that no event tells; fails after a minute.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "never happened: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Everything a tunnel has to say until it ends.
pub async fn read_to_end(tunnel: &mut Tunnel) -> Result<Vec<u8>, hbone::TunnelError> {
    let mut all = Vec::new();
    while let Some(chunk) = heard(tunnel).await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

/// Exactly `n` bytes.
pub async fn read_exactly(tunnel: &mut Tunnel, n: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < n {
        all.extend_from_slice(&heard(tunnel).await.expect("ended early").unwrap());
    }
    assert_eq!(all.len(), n);
    all
}

/// What comes next; fails when nothing does for a minute.
async fn heard(tunnel: &mut Tunnel) -> Option<Result<bytes::Bytes, hbone::TunnelError>> {
    let next = tokio::time::timeout(Duration::from_secs(60), tunnel.recv()).await;
    next.expect("a tunnel says nothing and does not end")
}
