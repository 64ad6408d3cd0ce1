//! A node without a control plane, and a node agent that does as the test says.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::workload as wire;
use api::zds;
use api::zds::workload_request::Payload;
use clap::Parser;
use hbone::{
    Certificates, CertificatesConfig, Identity, Limits, Pool, PoolConfig, SignError, Signer,
};
use mesh::{Mesh, Update, Writer};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    listen, recv, sendmsg, setsockopt, socket, sockopt,
};
use ops::drain::Drain;
use ops::ready::Readiness;
use prost::Message;
use tempfile::TempDir;
use ztunnel::agent::{Agent, Roster};
use ztunnel::config::Config;
use ztunnel::dns::Dns;
use ztunnel::metrics::PodMetrics;
use ztunnel::node::Node;
use ztunnel::workers::Workers;

/// A running client of the node agent, and the agent's side of it.
pub(crate) struct Fixture {
    pub(crate) node: Arc<Node>,
    pub(crate) writer: Writer,
    pub(crate) roster: Roster,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: PodMetrics,
    pub(crate) drain: Drain,
    pub(crate) agent: FakeAgent,
    _directory: TempDir,
}

struct NoSigner;

impl Signer for NoSigner {
    async fn sign(&self, _: &Identity, _: String) -> Result<Vec<String>, SignError> {
        Err(SignError::Unavailable("this is a test".into()))
    }
}

impl Fixture {
    /// Connections of pods that leave are cut at once.
    pub(crate) fn new(dns: impl FnOnce(&Arc<Mesh>, &Config) -> Option<Arc<Dns>>) -> Self {
        Self::draining("0s", dns)
    }

    /// Connections of pods that leave have `deadline` to end.
    pub(crate) fn draining(
        deadline: &str,
        dns: impl FnOnce(&Arc<Mesh>, &Config) -> Option<Arc<Dns>>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ztunnel.sock");
        let agent = FakeAgent::listen(path.clone());
        let config = [
            "ztunnel",
            "--node-name",
            "node-1",
            "--termination-deadline",
            deadline,
            "--inpod-uds",
            path.to_str().unwrap(),
        ];
        let config = Arc::new(Config::try_parse_from(config).unwrap());
        let (mesh, writer) = Mesh::new();
        let certificates = Certificates::new(NoSigner, CertificatesConfig::default());
        let pool = Pool::new(certificates.clone(), PoolConfig::default());
        let dns = dns(&mesh, &config);
        let node = Node::new(
            mesh,
            certificates,
            Workers::here(pool),
            Limits::default(),
            config,
        );
        let (readiness, metrics, drain) = (Readiness::new(), PodMetrics::default(), Drain::new());
        let client = Agent::new(
            node.clone(),
            dns,
            metrics.clone(),
            readiness.gate("zds"),
            drain.clone(),
        );
        let roster = client.roster();
        tokio::spawn(client.run());
        Self {
            node,
            writer,
            roster,
            readiness,
            metrics,
            drain,
            agent,
            _directory: directory,
        }
    }
}

impl Fixture {
    /// The control plane tells of a pod of this node; its workload's uid is its name.
    pub(crate) fn tell_of(&mut self, name: &str) {
        let mut update = Update::default();
        update.set_workload(wire::Workload {
            uid: name.into(),
            name: name.into(),
            namespace: "app".into(),
            service_account: "default".into(),
            node: "node-1".into(),
            ..Default::default()
        });
        assert_eq!(self.writer.apply(update), []);
    }
}

/// The agent's end: blocking calls, made off the runtime.
pub(crate) struct FakeAgent {
    listener: OwnedFd,
}

pub(crate) struct Conversation {
    socket: OwnedFd,
}

impl FakeAgent {
    pub(crate) fn listen(path: PathBuf) -> Self {
        let listener = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        setsockopt(&listener, sockopt::ReceiveTimeout, &patience()).unwrap();
        Self { listener }
    }

    /// Takes the next connection and its Hello.
    pub(crate) async fn accept(&self) -> Conversation {
        let listener = self.listener.try_clone().unwrap();
        let conversation = tokio::task::spawn_blocking(move || {
            let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC);
            let accepted = accepted.expect("no proxy calls its agent");
            #[allow(unsafe_code)] // a fresh descriptor that nobody else knows
            let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience()).unwrap();
            Conversation { socket }
        });
        let conversation = conversation.await.unwrap();
        assert_eq!(
            conversation.receive().await,
            hex("0801"),
            "ZdsHello{{V1}}, byte for byte"
        );
        conversation
    }
}

impl Conversation {
    /// One request and its answer; an empty text is success.
    pub(crate) async fn ask(&self, payload: Payload, netns: Option<OwnedFd>) -> String {
        let request = zds::WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec();
        let answer = self.exchange(request, netns.into_iter().collect()).await;
        let answer = zds::WorkloadResponse::decode(&*answer).unwrap();
        match answer.payload.unwrap() {
            zds::workload_response::Payload::Ack(ack) => ack.error,
        }
    }

    pub(crate) async fn exchange(&self, request: Vec<u8>, fds: Vec<OwnedFd>) -> Vec<u8> {
        let socket = self.socket.try_clone().unwrap();
        tokio::task::spawn_blocking(move || {
            let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            let control = [ControlMessage::ScmRights(&numbers)];
            let control = if numbers.is_empty() {
                &[][..]
            } else {
                &control[..]
            };
            let slices = [std::io::IoSlice::new(&request)];
            sendmsg::<()>(
                socket.as_raw_fd(),
                &slices,
                control,
                MsgFlags::empty(),
                None,
            )
            .unwrap();
        })
        .await
        .unwrap();
        self.receive().await
    }

    /// The next packet; empty when the other side has closed.
    pub(crate) async fn receive(&self) -> Vec<u8> {
        let socket = self.socket.try_clone().unwrap();
        let received = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; 1024];
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
            buffer.truncate(length);
            buffer
        });
        received.await.unwrap()
    }

    pub(crate) async fn add(&self, uid: &str, name: &str, netns: OwnedFd) -> String {
        let info = zds::WorkloadInfo {
            name: name.into(),
            namespace: "app".into(),
            service_account: "default".into(),
        };
        self.ask(
            Payload::Add(zds::AddWorkload {
                uid: uid.into(),
                workload_info: Some(info),
            }),
            Some(netns),
        )
        .await
    }

    pub(crate) async fn del(&self, uid: &str) -> String {
        self.ask(Payload::Del(zds::DelWorkload { uid: uid.into() }), None)
            .await
    }

    pub(crate) async fn keep(&self, uid: &str) -> String {
        self.ask(Payload::Keep(zds::KeepWorkload { uid: uid.into() }), None)
            .await
    }

    pub(crate) async fn snapshot_sent(&self) -> String {
        self.ask(Payload::SnapshotSent(zds::SnapshotSent {}), None)
            .await
    }
}

/// How long a blocking call waits: one that waited for ever would keep the runtime of its test from its end.
fn patience() -> nix::sys::time::TimeVal {
    nix::sys::time::TimeVal::new(60, 0)
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// Waits for something that is about to happen, and fails if it does not.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
