//! The tunnel port of a pod, who knocks there, and what is looked at while somebody misbehaves.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use lab::{AccessLog, AccessRecord, Builder, Lab, Pod};
use tokio::runtime::Runtime;

use crate::{
    authority::Ca,
    raw::{self, Raw},
    support::{self, Server, round_trip, talk},
};

pub(crate) const HBONE: u16 = 15008;
pub(crate) const ECHO: u16 = 8080;
/// An app that sends for ever.
pub(crate) const FOUNTAIN: u16 = 8081;
/// An app that never reads.
pub(crate) const DEAF: u16 = 8082;
/// How much larger the proxy may be than before in the worst moment of an attack, in bytes.
pub(crate) const MOST: u64 = 64 << 20;

const MALLORY: &str = "mallory";

/// Two meshed pods on two nodes, each with its apps, and a peer outside of the mesh that has a certificate of it.
pub(crate) struct Scene<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) ca: &'a Ca,
    pub(crate) runtime: Runtime,
    pub(crate) pods: [Pod; 2],
    pub(crate) mallory: Pod,
    /// For each node's pod three.
    apps: Vec<Server>,
}

/// Runs a test in a lab whose two nodes run one engine each.
pub(crate) fn in_scene(test: impl FnOnce(&Scene<'_>) -> Result<()>) {
    let ca = Ca::new().unwrap();
    let builder = Builder::signer(Lab::builder(), ca.dir());
    support::in_lab(support::with_engines(builder, ["h2", "own"]), |lab| {
        test(&Scene::start(lab, &ca)?)
    });
}

impl<'a> Scene<'a> {
    fn start(lab: &'a Lab, ca: &'a Ca) -> Result<Self> {
        lab.namespace("shop").ambient()?;
        lab.namespace("out").plain()?;
        let pod = |node: usize| {
            let account = format!("web-{node}");
            let pod = lab.pod(&format!("shop/{account}")).node(node);
            pod.service_account(&account).start()
        };
        let pods = [pod(0)?, pod(1)?];
        let mut apps = Vec::new();
        for pod in &pods {
            apps.push(Server::echo(pod, ECHO)?);
            apps.push(Server::start(pod, FOUNTAIN, |mut app| {
                while std::io::Write::write_all(&mut app, &[7; 64 << 10]).is_ok() {}
            })?);
            apps.push(Server::start(pod, DEAF, |_| std::thread::park())?);
        }
        Ok(Self {
            lab,
            ca,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            pods,
            mallory: lab.pod("out/mallory").node(1).start()?,
            apps,
        })
    }

    /// A certificate for that account of `shop`.
    pub(crate) fn badge(&self, account: &str) -> raw::Badge {
        let soon = SystemTime::now() + Duration::from_secs(3600);
        raw::badge(self.ca, &[&identity(account)], soon)
    }

    /// The way to a node's pod, and a connection that must live through all that follows.
    pub(crate) fn door(&self, node: usize) -> Result<Door<'_>> {
        let engine = self.lab.node(node).config_dump()?["config"]["engine"].to_string();
        let (from, to) = (&self.pods[1 - node], &self.pods[node]);
        Ok(Door {
            scene: self,
            node,
            engine: engine.trim_matches('"').to_owned(),
            kept: talk(from, to.at(ECHO), "before all that")?,
        })
    }
}

pub(crate) fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

pub(crate) struct Door<'a> {
    pub(crate) scene: &'a Scene<'a>,
    pub(crate) node: usize,
    pub(crate) engine: String,
    kept: TcpStream,
}

/// A proven peer, before or after it misbehaves.
pub(crate) struct Peer {
    pub(crate) raw: Raw,
    source: SocketAddr,
    log: AccessLog,
}

impl Door<'_> {
    pub(crate) fn to(&self, port: u16) -> SocketAddr {
        self.scene.pods[self.node].at(port)
    }

    /// Connections that reached the echo so far.
    pub(crate) fn arrived(&self) -> usize {
        self.scene.apps[3 * self.node].peers().len()
    }

    pub(crate) fn own(&self) -> bool {
        self.engine == "own"
    }

    /// Through TLS, and no further.
    pub(crate) async fn peer(&self) -> Result<Peer> {
        let scene = self.scene;
        let log = scene.lab.access_log(self.node)?.from_now();
        let socket = scene.mallory.connect(self.to(HBONE))?;
        socket.set_nonblocking(true)?;
        let source = socket.local_addr()?;
        let socket = tokio::net::TcpStream::from_std(socket)?;
        let config = raw::tls_client(Some(scene.badge(MALLORY)), &["h2"]);
        let raw = Raw::connect(socket, config).await?;
        Ok(Peer { raw, source, log })
    }

    /// [`Door::peer`], and the preface. What the far end says of itself is not read yet.
    pub(crate) async fn greeted(&self) -> Result<Peer> {
        let mut peer = self.peer().await?;
        peer.raw.hello().await?;
        Ok(peer)
    }

    /// Runs an attack: what is said of it must name the peer, the proxy must not grow, and nobody else may notice.
    pub(crate) fn under(
        &mut self,
        what: &str,
        attack: impl AsyncFnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let told = || format!("engine {}: {what}", self.engine);
        let before = self.begin_measuring().with_context(told)?;
        self.scene
            .runtime
            .block_on(async { tokio::time::timeout(support::SOON * 2, attack(self)).await })
            .context("it hangs")
            .flatten()
            .with_context(told)?;
        let peak = self.memory("VmHWM")?;
        ensure!(
            peak <= before + MOST,
            "{}: it grew from {before} to {peak} bytes",
            told()
        );
        self.others_are_served()
            .with_context(|| format!("engine {}: others, during {what}", self.engine))
    }

    /// The connection from before, and one that comes now.
    pub(crate) fn others_are_served(&mut self) -> Result<()> {
        round_trip(&mut self.kept, "still here").context("the one from before")?;
        let other = &self.scene.pods[1 - self.node];
        talk(other, self.to(ECHO), "a new one").map(drop)
    }

    /// Resets the peak; what the proxy needs now.
    fn begin_measuring(&self) -> Result<u64> {
        fs::write(format!("/proc/{}/clear_refs", self.pid()?), "5")?;
        self.memory("VmRSS")
    }

    fn pid(&self) -> Result<i32> {
        Ok(self.scene.lab.node(self.node).ztunnel()?.process()?.pid())
    }

    fn memory(&self, which: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find(|line| line.starts_with(which));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kib.context("no such figure")?.parse::<u64>()? << 10)
    }

    /// How often the node's proxy has refused something under that name.
    pub(crate) fn refusals(&self, reason: &str) -> Result<f64> {
        let metrics = self.scene.lab.metrics(self.node)?;
        Ok(metrics.sum("ambit_tunnel_refusals_total", &[("reason", reason)]))
    }
}

impl Peer {
    /// The line about this peer that says `what`.
    pub(crate) fn line(&self, what: &[&str]) -> Result<AccessRecord> {
        let source = self.source.to_string();
        let record = self.log.find(&format!("{what:?} of {source}"), |record| {
            record.field("src.addr") == source
                && what.iter().any(|what| record.error().contains(what))
        })?;
        ensure!(
            record.field("src.identity") == identity(MALLORY),
            "whose? {record:?}"
        );
        Ok(record)
    }

    /// A tunnel to the echo on the same connection works.
    pub(crate) async fn tunnel_works(&mut self, stream: u32, to: SocketAddr) -> Result<()> {
        let authority = to.to_string();
        let headers = raw::connect_headers(&authority);
        self.raw.request(stream, &headers).await?;
        let mine = |kind| move |f: &raw::Frame| f.kind == kind && f.stream == stream;
        let answer = self.frame("an answer", mine(raw::HEADERS)).await?;
        ensure!(answer.status() == 200, "status {}", answer.status());
        let said = raw::frame(raw::DATA, 0, stream, b"as if nothing had been");
        self.raw.send(&said).await?;
        let echo = self.frame("an echo", mine(raw::DATA)).await?;
        ensure!(echo.payload == b"as if nothing had been");
        Ok(())
    }

    /// The code with which the connection is ended.
    pub(crate) async fn goaway(&mut self) -> Result<u32> {
        let bad = |f: &raw::Frame| f.kind == raw::GOAWAY && f.code() != 0;
        Ok(self.frame("GOAWAY", bad).await?.code())
    }

    /// The next frame that fits; an error when the connection ends before or nothing comes for long.
    pub(crate) async fn frame(
        &mut self,
        what: &str,
        wanted: impl Fn(&raw::Frame) -> bool,
    ) -> Result<raw::Frame> {
        let mut seen = Vec::new();
        let found = async {
            loop {
                match self.raw.next().await? {
                    Some(frame) if wanted(&frame) => return Ok(frame),
                    Some(frame) => seen.push(Seen::of(&frame)),
                    None => anyhow::bail!("the connection ended"),
                }
            }
        };
        let found = tokio::time::timeout(support::SOON, found).await;
        found
            .context("nothing more came")
            .flatten()
            .with_context(|| format!("waiting for {what}; seen before: {seen:?}"))
    }

    /// Sends the `n`th bytes over and over until the far end hangs up or `most` were sent, and reads what it is told meanwhile.
    /// Says how many were sent, whether it was hung up on, and the last GOAWAY's code.
    pub(crate) async fn flood(&mut self, most: u32, bytes: impl Fn(u32) -> Vec<u8>) -> Flooded {
        let mut flooded = Flooded::default();
        while flooded.sent < most {
            let batch: Vec<u8> = (flooded.sent..flooded.sent + 16).flat_map(&bytes).collect();
            flooded.sent += 16;
            let refused = self.raw.send(&batch).await.is_err();
            let hung_up = self.heard(Duration::ZERO, &mut flooded).await;
            if refused || hung_up {
                flooded.cut = true;
                break;
            }
        }
        if flooded.cut {
            self.heard(Duration::from_secs(10), &mut flooded).await;
        }
        flooded
    }

    /// Reads what is there, or comes within that time; true at the end of the connection.
    async fn heard(&mut self, within: Duration, flooded: &mut Flooded) -> bool {
        loop {
            match tokio::time::timeout(within, self.raw.next()).await {
                Err(_) => return false,
                Ok(Ok(Some(frame))) if frame.kind == raw::GOAWAY => {
                    flooded.code = Some(frame.code());
                }
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None) | Err(_)) => return true,
            }
        }
    }
}

/// A frame, for an error: kind, stream, and how its payload begins.
#[derive(Debug)]
#[allow(dead_code)] // it is printed
struct Seen(u8, u32, Vec<u8>);

impl Seen {
    fn of(frame: &raw::Frame) -> Self {
        let begin = frame.payload.iter().take(16).copied();
        Self(frame.kind, frame.stream, begin.collect())
    }
}

/// What came of a flood.
#[derive(Debug, Default)]
pub(crate) struct Flooded {
    pub(crate) sent: u32,
    pub(crate) cut: bool,
    pub(crate) code: Option<u32>,
}
