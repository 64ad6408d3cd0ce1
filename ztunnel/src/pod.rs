//! One pod's proxy: the listeners inside its namespace, their life and their end.
//!
//! 1. the node agent hands over a pod                       (`agent`)
//! 2. listeners open in its namespace                       ([`Pod::start`])
//! 3. its workload is awaited from the control plane        (`Pod::learn`)
//! 4. each connection becomes a task of the path            (`accept_loop` → `outbound`, `inbound`)
//! 5. the pod leaves: listeners close, connections drain    ([`Pod::stop`])
//! 6. the last of them is gone: names are no longer answered, the certificate is let go
//!
//! Listeners open before the workload is known, because the agent's answer waits for them and the
//! control plane learns of a new pod only after it: early connections wait in the path.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use hbone::{Hold, Identity};
use mesh::{Snapshot, Workload};
use ops::drain::{Drain, Drained};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;

use crate::bounds::{Full, Part};
use crate::carry::refuse;
use crate::config::ports;
use crate::dns::Dns;
use crate::keeper::{Keeper, Kept, Sockets};
use crate::netns::{Netns, is_no_ipv6, original_destination, unmapped};
use crate::node::Node;
use crate::report::Report;
use crate::traffic::{Ends, Reporter};
use crate::workers::Home;
use crate::{inbound, outbound, turns, udp};

/// A pod of this node that is enrolled in the mesh.
#[derive(Debug)]
pub struct Pod {
    /// Kubernetes' pod UID, by which the node agent names it.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// The service account it runs as; empty if the agent did not say.
    pub service_account: Arc<str>,
    /// Where its sockets live.
    pub netns: Arc<Netns>,
    /// Its connections, and their end.
    pub drain: Drain,
    /// What it has of what is bounded.
    pub(crate) part: Arc<Part>,
    known: OnceLock<Known>,
    learned: Notify,
    /// Where its listeners are; set when they are opened.
    home: OnceLock<Home>,
    /// Its listeners, in the keeper's hands too; set when all are open.
    kept: OnceLock<Kept>,
}

/// What is certain about a pod once the control plane has told of it.
#[derive(Debug)]
pub struct Known {
    /// Name of its workload in discovery.
    pub workload_uid: Arc<str>,
    /// The workload as it was first told.
    pub workload: Arc<Workload>,
    /// And as it was told last.
    latest: ArcSwap<Workload>,
    /// Who its connections are.
    pub identity: Identity,
    /// Keeps its certificate renewed until the last of the pod's connections has let go of the pod.
    _certificate: Hold,
}

/// Why a pod's proxy could not start. The node agent shows the text to the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be opened.
    #[error("port {port} in the pod's network namespace: {error}")]
    Listen {
        /// The port.
        port: u16,
        /// What the kernel said.
        error: io::Error,
    },
}

impl Pod {
    /// A pod that does nothing yet.
    pub fn new(
        uid: Arc<str>,
        name: &str,
        namespace: &str,
        service_account: &str,
        netns: Netns,
        drain: Drain,
    ) -> Arc<Self> {
        Arc::new(Self {
            uid,
            name: name.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
            netns: Arc::new(netns),
            drain,
            part: Arc::default(),
            known: OnceLock::new(),
            learned: Notify::new(),
            home: OnceLock::new(),
            kept: OnceLock::new(),
        })
    }

    /// Whether any connection has come to us rather than to another ztunnel that listens here.
    pub(crate) fn has_taken(&self) -> bool {
        self.kept.get().is_some_and(Kept::has_taken)
    }

    /// Connections have come to us, if not by the listeners.
    pub(crate) fn has_work(&self) {
        if let Some(kept) = self.kept.get() {
            kept.taken();
        }
    }

    /// The worker that its listeners are at, if it has any.
    pub(crate) fn home(&self) -> Option<Home> {
        self.home.get().copied()
    }

    /// What is known of the pod, if anything yet.
    pub fn known(&self) -> Option<&Known> {
        self.known.get()
    }

    /// Waits until the control plane has told of this pod. Cancel safe; no time limit of its own.
    pub async fn wait_known(&self) -> &Known {
        loop {
            let learned = self.learned.notified();
            if let Some(known) = self.known.get() {
                return known;
            }
            learned.await;
        }
    }

    /// Its workload as of `snapshot`; the last known one while the control plane has already
    /// forgotten a pod that still runs. `None` before it was ever told of.
    pub fn workload(&self, snapshot: &Snapshot) -> Option<Arc<Workload>> {
        let known = self.known.get()?;
        let Some(told) = snapshot.workload(&known.workload_uid) else {
            return Some(known.latest.load_full());
        };
        if !Arc::ptr_eq(&known.latest.load(), told) {
            known.latest.store(told.clone());
        }
        Some(told.clone())
    }

    /// Name of its workload in discovery; empty while unknown.
    pub fn workload_uid(&self) -> Arc<str> {
        self.known
            .get()
            .map_or_else(|| "".into(), |known| known.workload_uid.clone())
    }

    /// Opens the listeners, or takes them over from `keeper`, and begins to serve. On an error nothing stays open.
    pub fn start(
        self: &Arc<Self>,
        node: &Arc<Node>,
        dns: Option<&Arc<Dns>>,
        keeper: &Keeper,
    ) -> Result<(), StartError> {
        let home = *self.home.get_or_init(|| node.workers.home());
        // Listeners and what serves them.
        let _home = node.workers.at(home).enter();
        let mut sockets = keeper.sockets(&self.uid, &self.netns);
        let mut listen = |port| {
            sockets
                .listen(port)
                .map_err(|error| StartError::Listen { port, error })
        };
        let listeners = [
            (Door::Outbound, listen(ports::OUTBOUND)?),
            (Door::Plain, listen(ports::INBOUND_PLAIN)?),
            (Door::Tunnel, listen(ports::INBOUND)?),
        ];
        let resolvers = match dns {
            Some(dns) => Some((dns, listen_dns(&mut sockets, node.config.dns_port)?)),
            None => None,
        };
        let kept = self.kept.get_or_init(|| sockets.keep());
        // Everything is open. Nothing is spawned before this, or it would live on after a failure.
        if let Some((dns, sockets)) = resolvers {
            for (udp, tcp) in sockets {
                let (udp, tcp) = (
                    turns::take(udp, self.clone()),
                    turns::take(tcp, self.clone()),
                );
                dns.clone().serve(self.clone(), udp, tcp);
            }
        }
        for (door, listener) in listeners {
            let listener = turns::take(listener, self.clone());
            self.drain.spawn(accept_loop(
                node.clone(),
                self.clone(),
                door,
                home,
                listener,
            ));
        }
        if kept.is_held() {
            self.drain.spawn(self.clone().let_go());
        }
        self.drain
            .spawn(Box::pin(udp::serve(node.clone(), self.clone())));
        self.drain.spawn(self.clone().learn(node.clone()));
        Ok(())
    }

    /// Takes no more connections and gives open ones `deadline` to end; then cuts them.
    pub async fn stop(self: &Arc<Self>, node: &Node, deadline: Duration) -> Drained {
        self.drain.accepting().cancel();
        node.pod_stopped(self);
        self.drain.drain(deadline).await
    }

    /// The pod leaves, or this process does, and its listeners close with it.
    async fn let_go(self: Arc<Self>) {
        self.drain.accepting().cancelled().await;
        if let Some(kept) = self.kept.get() {
            kept.release();
        }
    }

    /// Waits for the pod's workload and gets its certificate under way before the first connection
    /// needs it.
    async fn learn(self: Arc<Self>, node: Arc<Node>) {
        let accepting = self.drain.accepting().clone();
        let workload = tokio::select! {
            () = accepting.cancelled() => return,
            workload = self.workload_told(&node) => workload,
        };
        let (trust_domain, namespace, service_account) = workload.identity_parts();
        let identity = match Identity::new(trust_domain, namespace, service_account) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::error!(pod = %self.name, namespace = %self.namespace, %error, "the pod's workload has no usable identity; its connections are refused");
                return;
            }
        };
        let certificate = node.certificates.hold(&identity);
        let _ = self.known.set(Known {
            workload_uid: workload.uid.clone(),
            latest: ArcSwap::new(workload.clone()),
            workload,
            identity,
            _certificate: certificate,
        });
        // Who waits for it may at once look for it among the node's.
        node.pod_started(&self);
        self.learned.notify_waiters();
        // `stop` cancels first and removes after: whichever of the two comes last removes it.
        if accepting.is_cancelled() {
            node.pod_stopped(&self);
        }
        accepting.run_until_cancelled(self.follow(&node)).await;
    }

    /// Takes note of what is said of the pod: were it forgotten, what restricts it (egress, say) would count as it was said
    /// last, also if nobody has called since.
    async fn follow(&self, node: &Node) {
        let mut changed = node.mesh.policies_changed();
        loop {
            self.workload(&node.mesh.load());
            if changed.changed().await.is_err() {
                return; // the writer is gone, and with it all change
            }
        }
    }

    async fn workload_told(&self, node: &Node) -> Arc<Workload> {
        let told = node.mesh.wait_for_pod(
            &self.namespace,
            &self.name,
            &self.service_account,
            &node.config.node_name,
        );
        let Some(on_demand) = &node.on_demand else {
            return told.await;
        };
        // It comes unasked to whoever has said on which node he is; and if not, it comes now.
        let (cluster, namespace, name) = (&node.config.cluster_id, &self.namespace, &self.name);
        let uid = format!("{cluster}//Pod/{namespace}/{name}");
        tokio::select! {
            workload = told => workload,
            never = on_demand.keep_asking(&uid) => match never {},
        }
    }
}

fn listen_dns(
    sockets: &mut Sockets<'_>,
    port: u16,
) -> Result<Vec<(UdpSocket, TcpListener)>, StartError> {
    let mut opened = Vec::new();
    for ip in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        let address = SocketAddr::new(ip, port);
        let pair = sockets
            .udp(address)
            .and_then(|udp| Ok((udp, sockets.listen_on(address)?)));
        match pair {
            Ok(pair) => opened.push(pair),
            Err(error) if ip.is_ipv6() && is_no_ipv6(&error) => {}
            Err(error) => return Err(StartError::Listen { port, error }),
        }
    }
    Ok(opened)
}

/// Which listener a connection came in by.
#[derive(Debug, Clone, Copy)]
enum Door {
    Outbound,
    Plain,
    Tunnel,
}

/// Takes connections until the pod leaves, then those whose handshake was under way, and at last those that still stand
/// in the backlog: closing the listener resets both. Tokio's `accept` goes back to the poller only when the
/// backlog is empty, so a burst is taken in one go.
async fn accept_loop(
    node: Arc<Node>,
    pod: Arc<Pod>,
    door: Door,
    home: Home,
    listener: Arc<TcpListener>,
) {
    let left = async {
        pod.drain.accepting().cancelled().await;
        tokio::select! {
            () = pod.drain.now().cancelled() => {}
            () = tokio::time::sleep(HANDSHAKE) => {}
        }
    };
    tokio::pin!(left);
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut left => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                trouble.over();
                take(&node, &pod, door, home, tcp, peer);
            }
            Err(error) => trouble.wait(&pod, door, &error).await,
        }
    }
    while let Ok((tcp, peer)) = SockRef::from(&*listener).accept() {
        if let Some(peer) = peer.as_socket()
            && tcp.set_nonblocking(true).is_ok()
            && let Ok(tcp) = TcpStream::from_std(tcp.into())
        {
            take(&node, &pod, door, home, tcp, peer);
        }
    }
}

/// Makes a connection a task of its own on a worker, which ends at the latest when the pod's work is cut.
fn take(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    door: Door,
    home: Home,
    tcp: TcpStream,
    peer: SocketAddr,
) {
    if let Some(kept) = pod.kept.get() {
        kept.taken();
    }
    let share = match node.bounds.connection(&pod.part, Some(tcp.as_raw_fd())) {
        Ok(share) => share,
        Err(full) => return turn_away(node, pod, door, tcp, unmapped(peer), full),
    };
    let place = node.workers.place(home);
    let tcp = match place.adopt(tcp) {
        Ok(tcp) => tcp,
        Err(error) => {
            return tracing::warn!(pod = %pod.name, %peer, %error, "the connection was lost on its way to another thread");
        }
    };
    let Some(serving) = serving(node, pod, door, tcp, unmapped(peer)) else {
        return;
    };
    let cut = pod.drain.now().clone();
    let (runtime, load) = place.held();
    // Boxed: a future that is handed on by value has room for it twice, as long as it lives, and who spawns it hands it on
    // again.
    let task = Box::pin(async move {
        let _held = (load, share);
        cut.run_until_cancelled(serving).await
    });
    pod.drain.spawn_on(&runtime, task);
}

/// Where a connection was going that came in by this door.
fn destination(door: Door, tcp: &TcpStream) -> io::Result<SocketAddr> {
    match door {
        Door::Tunnel => tcp.local_addr().map(unmapped),
        Door::Outbound | Door::Plain => original_destination(tcp),
    }
}

/// There is no room for it: it is reset before anything was spent on it, and told of.
fn turn_away(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    door: Door,
    tcp: TcpStream,
    peer: SocketAddr,
    why: Full,
) {
    let Ok(to) = destination(door, &tcp) else {
        return; // gone already
    };
    let known = pod.known();
    let (workload, identity) = (
        known.map(|known| known.workload.clone()),
        known.map(|known| known.identity.clone()),
    );
    let (reporter, between) = match door {
        Door::Outbound => {
            let (source, source_identity) = (workload, identity);
            let between = Ends {
                source,
                source_identity,
                ..Ends::default()
            };
            (Reporter::Source, between)
        }
        Door::Plain | Door::Tunnel => (Reporter::Destination, inbound::known_of(pod)),
    };
    let mut report = Report::new(node, pod, reporter, peer, to);
    report.between(between);
    report.failed(&why);
    let _: Result<(), Full> = refuse(tcp, why);
}

type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What serves a connection that came in by this door. Each in a box of its own: they differ much in size.
fn serving(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    door: Door,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Option<Serving> {
    let to = match destination(door, &tcp) {
        Ok(to) => to,
        Err(error) => {
            tracing::debug!(pod = %pod.name, %peer, %error, "the connection was gone before it could be looked at");
            return None;
        }
    };
    let (node, pod) = (node.clone(), pod.clone());
    Some(match door {
        Door::Outbound => Box::pin(outbound::serve(&node, &pod, tcp, peer, to)),
        Door::Plain => Box::pin(inbound::serve_plain(&node, &pod, tcp, peer, to)),
        Door::Tunnel => Box::pin(inbound::serve_tunnel(node, pod, tcp, peer, to)),
    })
}

/// A listener that cannot accept: out of file descriptors or memory. It neither spins nor gives
/// up; connections wait in the backlog meanwhile.
#[derive(Debug, Default)]
struct Trouble {
    failures: u32,
}

impl Trouble {
    async fn wait(&mut self, pod: &Pod, door: Door, error: &io::Error) {
        // A peer that reset its connection in the backlog is no trouble of ours.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
        ) {
            return;
        }
        if self.failures == 0 {
            tracing::warn!(pod = %pod.name, namespace = %pod.namespace, listener = ?door, %error, "cannot accept connections; they wait until it gets better");
        }
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn over(&mut self) {
        self.failures = 0;
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        tracing::debug!(pod = %self.name, namespace = %self.namespace, netns = ?self.netns.id(), "pod gone, nothing of it is left");
    }
}

/// How long a listener outlives its pod's end: new connections go to the successor at once, and the handshakes that
/// were on their way to us take a round trip, or a little more when a packet is late.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(1);
/// Long enough that a full table costs no CPU, short enough that nobody notices it is over.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
