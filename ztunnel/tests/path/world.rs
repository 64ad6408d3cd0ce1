//! Two nodes in this process, pods in namespaces, and a control plane that is a function call.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::{security, workload as wire};
use clap::Parser;
use hbone::control_plane::RevocationFile;
use hbone::{Certificates, CertificatesConfig, Limits, Pool};
use mesh::{Mesh, Update, Writer};
use ops::discovery::DiscoveryMetrics;
use ops::drain::Drain;
use ops::ready::Readiness;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use ztunnel::config::Config;
use ztunnel::dns::{Dns, Resolv};
use ztunnel::keeper::Keeper;
use ztunnel::metrics::DnsMetrics;
use ztunnel::netns::{From, Netns};
use ztunnel::node::Node;
use ztunnel::pod::Pod;
use ztunnel::workers::Workers;

use crate::ca::Ca;
use crate::control::Control;
use crate::fabric::Fabric;
use crate::log;

/// Everything; dropping it ends the nodes and removes the namespaces.
pub(crate) struct World {
    pub(crate) nodes: Vec<WorldNode>,
    pub(crate) ca: Ca,
    fabric: Fabric,
    workloads: Vec<wire::Workload>,
    /// Where the nodes are told from, if not by a function call.
    control: Option<Arc<Control>>,
    stop: CancellationToken,
}

/// One of the two nodes.
pub(crate) struct WorldNode {
    pub(crate) node: Arc<Node>,
    pub(crate) pool: Arc<Pool>,
    /// Until discovery takes it.
    writer: Option<Writer>,
    /// Where names are asked for.
    dns: Option<Arc<Dns>>,
    name: &'static str,
    drain: Drain,
}

/// Addresses of the pods that most tests are about.
pub(crate) const CLIENT: [&str; 2] = ["10.77.0.1", "fd77::1"];
/// See [`CLIENT`].
pub(crate) const SERVER: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// What carries the tunnels between the nodes: our own engine, and `h2` in `path_h2`, which is the same tests once more.
fn engine() -> &'static str {
    if env!("CARGO_CRATE_NAME").ends_with("h2") {
        "h2"
    } else {
        "own"
    }
}

/// Where a pod runs.
#[derive(Clone, Copy)]
pub(crate) enum At {
    Node(usize),
    /// On the fabric, but not in the mesh.
    Nowhere,
}

impl World {
    pub(crate) fn new(flags: &[&str]) -> Self {
        Self::with(flags, &Limits::default())
    }

    /// With other limits at the tunnel ports.
    pub(crate) fn with(flags: &[&str], limits: &Limits) -> Self {
        log::keep();
        let (ca, stop) = (Ca::new(), CancellationToken::new());
        let nodes = ["node-1", "node-2"]
            .map(|name| WorldNode::new(name, flags, limits, &ca, &stop))
            .into();
        Self {
            nodes,
            ca,
            fabric: Fabric::new(),
            workloads: Vec::new(),
            control: None,
            stop,
        }
    }

    /// Whom the pods of nodes that ask are told to ask for names that are not the mesh's.
    pub(crate) const RESOLVER: &str = "127.0.0.53:5300";

    /// The nodes ask a control plane for whom they need, and answer names.
    pub(crate) async fn asking(flags: &[&str]) -> (Self, Arc<Control>) {
        let control = Control::start().await;
        let address = format!("http://{}", control.address);
        let usual = [
            "--xds-on-demand",
            "true",
            "--auth-token",
            "",
            "--xds-address",
            &address,
        ];
        let mut world = Self::new(&[&usual, flags].concat());
        for node in &mut world.nodes {
            node.discovers(&world.stop);
            node.answers_names();
        }
        world.control = Some(control.clone());
        (world, control)
    }

    /// Tells both nodes.
    pub(crate) fn tell(&mut self, fill: impl Fn(&mut Update)) {
        if let Some(control) = &self.control {
            let mut update = Update::default();
            fill(&mut update);
            return control.take(update);
        }
        for node in 0..self.nodes.len() {
            self.tell_node(node, &fill);
        }
    }

    /// A pod of namespace `default` whose service account has its name, told to both nodes and serving.
    pub(crate) async fn pod(&mut self, name: &str, at: At, ips: &[&str]) -> WorldPod {
        self.pod_with(name, at, ips, |_| {}).await
    }

    pub(crate) async fn pod_with(
        &mut self,
        name: &str,
        at: At,
        ips: &[&str],
        more: impl Fn(&mut wire::Workload),
    ) -> WorldPod {
        let pod = self.start_pod(name, at, ips, more);
        if let Some(running) = &pod.pod {
            self.tell_pod(name);
            tokio::time::timeout(PATIENCE, running.wait_known())
                .await
                .unwrap();
        }
        pod
    }

    /// A pod that runs already while the control plane has not told of it.
    pub(crate) fn untold_pod(&mut self, name: &str, node: usize, ips: &[&str]) -> WorldPod {
        self.start_pod(name, At::Node(node), ips, |_| {})
    }

    /// Somebody who is no pod, behind an interface of the pod `host`.
    pub(crate) fn behind(&mut self, name: &str, host: &str) -> WorldPod {
        let ip = self.fabric.behind(name, host);
        WorldPod {
            app: self.fabric.netns(name, 0),
            ips: vec![ip],
            pod: None,
        }
    }

    /// Tells both nodes what is kept of a pod.
    pub(crate) fn tell_pod(&mut self, name: &str) {
        self.change(name, |_| {});
    }

    fn start_pod(
        &mut self,
        name: &str,
        at: At,
        ips: &[&str],
        more: impl Fn(&mut wire::Workload),
    ) -> WorldPod {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        self.fabric.pod(name, &ips, matches!(at, At::Node(_)));
        let app = self.fabric.netns(name, 0);
        let At::Node(index) = at else {
            return WorldPod {
                app,
                ips,
                pod: None,
            };
        };
        let mut workload = wire::Workload {
            uid: format!("Kubernetes//Pod/default/{name}"),
            name: name.into(),
            namespace: "default".into(),
            service_account: name.into(),
            workload_name: name.into(),
            canonical_name: name.into(),
            addresses: ips.iter().map(bytes_of).collect(),
            tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
            node: self.nodes[index].name.into(),
            ..Default::default()
        };
        more(&mut workload);
        self.workloads.push(workload);
        let (node, netns) = (&self.nodes[index], self.fabric.netns(name, 0x539));
        let pod = Pod::new(
            format!("uid-{name}").into(),
            name,
            "default",
            name,
            netns,
            node.drain.child(),
        );
        pod.start(&node.node, node.dns.as_ref(), &Keeper::default())
            .unwrap();
        WorldPod {
            app,
            ips,
            pod: Some(pod),
        }
    }

    /// What both nodes were told of a pod.
    pub(crate) fn workload(&self, name: &str) -> wire::Workload {
        self.workloads
            .iter()
            .find(|workload| workload.name == name)
            .unwrap()
            .clone()
    }

    /// Tells one node.
    pub(crate) fn tell_node(&mut self, node: usize, fill: impl Fn(&mut Update)) {
        let mut update = Update::default();
        fill(&mut update);
        let writer = self.nodes[node].writer.as_mut().unwrap();
        assert_eq!(writer.apply(update), []);
    }

    /// Changes the workload of a pod and tells both nodes.
    pub(crate) fn change(&mut self, name: &str, change: impl Fn(&mut wire::Workload)) {
        let workload = self
            .workloads
            .iter_mut()
            .find(|workload| workload.name == name)
            .unwrap();
        change(workload);
        let workload = workload.clone();
        self.tell(|update| update.set_workload(workload.clone()));
    }

    /// A DENY of everything to one port of namespace `default`, told to both nodes.
    pub(crate) fn deny_port(&mut self, name: &str, port: u32) {
        self.tell(|update| update.set_policy(deny_port(name, port)));
    }

    pub(crate) fn forget_policy(&mut self, name: &str) {
        self.tell(|update| {
            update
                .authorizations
                .removed
                .push(format!("default/{name}").into())
        });
    }

    /// A kernel setting of a pod.
    pub(crate) fn sysctl(&self, pod: &str, key: &str, value: &str) {
        self.fabric.place(pod).sysctl(key, value).unwrap();
    }

    /// Nothing that is sent to a pod arrives from now on, and nobody is told.
    pub(crate) fn drops_everything(&self, pod: &str) {
        let rules = "table inet mute {\nchain in {\ntype filter hook prerouting priority -400; policy drop;\n}\n}\n";
        self.fabric.place(pod).nft(rules).unwrap();
    }

    /// Waits until no connection is open at either node.
    pub(crate) async fn quiet(&self) {
        for node in &self.nodes {
            let quiet = tokio::time::timeout(PATIENCE, node.node.connections.none_left()).await;
            assert!(
                quiet.is_ok(),
                "{} connections still open",
                node.node.connections.open()
            );
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        for node in &self.nodes {
            node.drain.accepting().cancel();
            node.drain.now().cancel();
        }
    }
}

impl WorldNode {
    fn new(
        name: &'static str,
        flags: &[&str],
        limits: &Limits,
        ca: &Ca,
        stop: &CancellationToken,
    ) -> Self {
        let usual = ["ztunnel", "--node-name", name, "--engine", engine()];
        let config = Config::try_parse_from([&usual, flags].concat()).unwrap();
        let (mesh, writer) = Mesh::new();
        let revoked = config.crl_path.clone().map(RevocationFile::open);
        let patient = CertificatesConfig {
            wait: Duration::from_secs(8),
            revocations: revoked
                .as_ref()
                .map(RevocationFile::revocations)
                .unwrap_or_default(),
            ..config.certificates()
        };
        if let Some(revoked) = revoked {
            tokio::spawn(revoked.follow(stop.clone()));
        }
        let certificates = Certificates::new(ca.clone(), patient);
        let pool = Pool::new(certificates.clone(), config.pool());
        let limits = Limits {
            engine: config.engine,
            ..limits.clone()
        };
        let settings = Arc::new(config);
        let node = Node::new(
            mesh,
            certificates,
            Workers::here(pool.clone()),
            limits,
            settings,
        );
        tokio::spawn(node.clone().tend(stop.clone()));
        Self {
            node,
            pool,
            writer: Some(writer),
            dns: None,
            name,
            drain: Drain::new(),
        }
    }

    fn answers_names(&mut self) {
        let resolv = Resolv {
            servers: vec![World::RESOLVER.parse().unwrap()],
            search: Vec::new(),
        };
        let (node, metrics) = (&self.node, DnsMetrics::default());
        let on_demand = node.on_demand.clone();
        let dns = Dns::new(node.mesh.clone(), &node.config, resolv, metrics, on_demand);
        self.dns = Some(dns);
    }

    /// Discovery as in the program, until `stop`.
    fn discovers(&mut self, stop: &CancellationToken) {
        let (node, stop) = (self.node.clone(), stop.clone());
        let writer = self.writer.take().unwrap();
        let gate = Readiness::new().gate("xds");
        let (known, _) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let metrics = DiscoveryMetrics::default();
            ztunnel::xds::run(&node, writer, gate, known, metrics, stop)
                .await
                .unwrap();
        });
    }

    /// The text of the TCP metrics.
    pub(crate) fn metrics(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.node.traffic.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    /// The value of the only series of this metric that has all of these.
    pub(crate) fn metric(&self, name: &str, parts: &[&str]) -> u64 {
        self.series(name, parts)
            .unwrap_or_else(|| panic!("no {name} with {parts:?} in\n{}", self.metrics()))
    }

    /// Waits until [`WorldNode::metric`] is this: a client may see the end of its connection before that is counted.
    pub(crate) async fn counts(&self, name: &str, parts: &[&str], value: u64) {
        let begun = std::time::Instant::now();
        while self.series(name, parts) != Some(value) {
            let metrics = self.metrics();
            assert!(
                begun.elapsed() < PATIENCE,
                "no {name} of {value} with {parts:?} in\n{metrics}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn series(&self, name: &str, parts: &[&str]) -> Option<u64> {
        let metrics = self.metrics();
        let mut found = metrics
            .lines()
            .filter(|line| line.starts_with(name) && parts.iter().all(|part| line.contains(part)));
        let line = found.next()?;
        assert_eq!(found.next(), None);
        Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
    }
}

/// A pod, as its app sees it.
pub(crate) struct WorldPod {
    app: Netns,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) pod: Option<Arc<Pod>>,
}

impl WorldPod {
    pub(crate) async fn connect(&self, to: SocketAddr) -> TcpStream {
        self.try_connect(to).await.unwrap()
    }

    /// Connects and is reset, at once or as soon as it listens for an answer.
    pub(crate) async fn is_reset(&self, to: SocketAddr) {
        match self.try_connect(to).await {
            Ok(mut tcp) => assert!(
                cut(&mut tcp).await,
                "{to}: an end instead of a reset looks like an empty answer"
            ),
            Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::ConnectionReset, "{to}"),
        }
    }

    pub(crate) async fn try_connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        tokio::time::timeout(PATIENCE, self.app.connect(From::Any, to))
            .await
            .unwrap()
    }

    pub(crate) fn udp(&self, at: SocketAddr) -> UdpSocket {
        self.app.udp(at).unwrap()
    }

    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        self.app.listen(port).unwrap()
    }

    /// An app that first says who it sees as its client, then echoes.
    pub(crate) fn serve(&self, port: u16) -> JoinHandle<()> {
        serve_on(Arc::new(self.listen(port)))
    }

    /// One of its addresses as discovery writes it.
    pub(crate) fn address(&self, index: usize) -> bytes::Bytes {
        bytes_of(&self.ips[index])
    }

    pub(crate) fn at(&self, index: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.ips[index], port)
    }
}

/// [`WorldPod::serve`] by a listener that its maker keeps too.
pub(crate) fn serve_on(listener: Arc<TcpListener>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (mut tcp, peer) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let hello = format!("{}\n", peer.ip().to_canonical());
                if tcp.write_all(hello.as_bytes()).await.is_ok() {
                    let (mut read, mut write) = tcp.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                }
            });
        }
    })
}

/// Reads the greeting of [`WorldPod::serve`]: the client's address as the app sees it.
pub(crate) async fn greeting(tcp: &mut TcpStream) -> std::io::Result<String> {
    let read = async {
        let mut text = String::new();
        loop {
            match tcp.read_u8().await? {
                b'\n' => return Ok(text),
                byte => text.push(byte.into()),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap()
}

/// Sends, reads the same back, ends, and sees the end.
pub(crate) async fn echo(mut tcp: TcpStream, bytes: &[u8]) {
    let talk = async {
        let (mut read, mut write) = tcp.split();
        let send = async {
            write.write_all(bytes).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let receive = async { read.read_to_end(&mut back).await.unwrap() };
        tokio::join!(send, receive);
        assert!(
            back == bytes,
            "{} bytes came back of {}",
            back.len(),
            bytes.len()
        );
    };
    tokio::time::timeout(PATIENCE, talk).await.unwrap();
}

/// Waits for the end of a connection on which nothing more must come; says whether it was a reset.
pub(crate) async fn cut(tcp: &mut TcpStream) -> bool {
    match tokio::time::timeout(PATIENCE, tcp.read_u8()).await.unwrap() {
        Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => true,
        Err(why) if why.kind() == std::io::ErrorKind::UnexpectedEof => false,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn deny_port(name: &str, port: u32) -> security::Authorization {
    let found = security::Match {
        destination_ports: vec![port],
        ..Default::default()
    };
    security::Authorization {
        name: name.into(),
        namespace: "default".into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        groups: vec![security::Group {
            rules: vec![security::Rules {
                matches: vec![found],
            }],
        }],
        ..Default::default()
    }
}

/// What PeerAuthentication STRICT becomes: no connection without an identity.
pub(crate) fn strict() -> security::Authorization {
    let presence = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Presence(())),
    };
    let found = security::Match {
        not_principals: vec![presence],
        ..Default::default()
    };
    security::Authorization {
        name: "istio_converted_static_strict".into(),
        namespace: "istio-system".into(),
        scope: security::Scope::WorkloadSelector.into(),
        action: security::Action::Deny.into(),
        groups: vec![security::Group {
            rules: vec![security::Rules {
                matches: vec![found],
            }],
        }],
        ..Default::default()
    }
}

pub(crate) fn service(host: &str, vips: &[&str], ports: &[(u32, u32)]) -> wire::Service {
    let vips = vips.iter().map(|vip| wire::NetworkAddress {
        address: bytes_of(&vip.parse().unwrap()),
        ..Default::default()
    });
    let ports = ports.iter().map(|&(service_port, target_port)| wire::Port {
        service_port,
        target_port,
        app_protocol: 0,
    });
    wire::Service {
        name: host.split('.').next().unwrap().into(),
        namespace: "default".into(),
        hostname: host.into(),
        addresses: vips.collect(),
        ports: ports.collect(),
        canonical: true,
        ..Default::default()
    }
}

fn bytes_of(ip: &IpAddr) -> bytes::Bytes {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}

/// Longer than anything here takes on a busy machine; reached only when a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
