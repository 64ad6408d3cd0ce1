//! What is measured: a way for bytes to go from a client pod to a server pod, and the processes
//! whose CPU time that way costs.
//!
//! Each lab holds one mesh (or none). A subject is a client, an address to connect to, and the proxies in between; labs stay
//! up through the whole run, idle, while the subjects take turns.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use lab::{Lab, Pod, Process};

use crate::{
    load::{Measured, Work},
    process,
};

const SERVER_PORT: u16 = 9000;
const FORWARD_PORT: u16 = 7000;
/// What a client may take beyond the time of its work.
const GRACE: Duration = Duration::from_secs(60);

/// One way from client to server.
pub(crate) struct Subject {
    /// As it stands in the table.
    pub(crate) name: &'static str,
    client: Pod,
    to: SocketAddr,
    /// Processes between client and server, whose CPU is counted.
    proxies: Vec<Process>,
    tunnels: Tunnels,
}

/// What its tunnels are like, which decides what it is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tunnels {
    /// It has none.
    None,
    /// As they are by default.
    Usual,
    /// Made to show certificates each time: measured by new tunnels alone.
    Full,
}

/// A lab with a mesh, and the subjects in it.
struct Mesh<'a> {
    name: &'static str,
    /// The subject whose two pods are on one node, if it is measured.
    near: Option<&'static str>,
    /// The subject whose server is no part of the mesh, if it is measured.
    plain: Option<&'static str>,
    ztunnel: Ztunnel<'a>,
}

/// What runs on both of its nodes.
enum Ztunnel<'a> {
    Ours { engine: &'static str, full: bool },
    Peer(&'a Path),
}

/// Labs, and the processes inside them, that must outlive their subjects.
pub(crate) struct Stage {
    subjects: Vec<Subject>,
    labs: Vec<Lab>,
}

impl Stage {
    /// Sets up every subject: raw sockets and the floor, ours with either engine, and the peer where there is one;
    /// with `tunnels` also ours as it is without sessions that are resumed.
    pub(crate) fn set(peer: Option<&Path>, tunnels: bool) -> Result<Self> {
        let mut stage = Self {
            subjects: Vec::new(),
            labs: Vec::new(),
        };
        stage.without_mesh()?;
        stage.with_mesh(&Mesh {
            name: "ours",
            near: Some("ours, same node"),
            plain: Some("ours, passthrough"),
            ztunnel: Ztunnel::Ours {
                engine: "own",
                full: false,
            },
        })?;
        // Neither within a node nor out of the mesh does anything go through an engine.
        stage.with_mesh(&Mesh {
            name: "ours (h2)",
            near: None,
            plain: None,
            ztunnel: Ztunnel::Ours {
                engine: "h2",
                full: false,
            },
        })?;
        let full = [("ours, full", "own"), ("ours (h2), full", "h2")];
        for (name, engine) in full.into_iter().filter(|_| tunnels) {
            stage.with_mesh(&Mesh {
                name,
                near: None,
                plain: None,
                ztunnel: Ztunnel::Ours { engine, full: true },
            })?;
        }
        if let Some(peer) = peer {
            stage.with_mesh(&Mesh {
                name: "peer",
                near: Some("peer, same node"),
                plain: Some("peer, passthrough"),
                ztunnel: Ztunnel::Peer(peer),
            })?;
        }
        Ok(stage)
    }

    /// In the order of the table.
    pub(crate) fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// Removes everything.
    pub(crate) fn strike(self) -> Result<()> {
        drop(self.subjects);
        self.labs.into_iter().try_for_each(Lab::stop)
    }

    fn without_mesh(&mut self) -> Result<()> {
        let lab = Lab::builder().nodes(2).mesh(false).start()?;
        let client = lab.pod("bench/client").node(0).start()?;
        let server = serve(&lab, "bench/server", 1)?;
        let near = serve(&lab, "bench/near", 0)?;
        let (second, second_at) = forward(&lab, "bench/floor-b", 1, server)?;
        let (first, first_at) = forward(&lab, "bench/floor-a", 0, second_at)?;
        let subject = |name, to, proxies| Subject {
            name,
            client: client.clone(),
            to,
            proxies,
            tunnels: Tunnels::None,
        };
        self.subjects.push(subject("raw", server, Vec::new()));
        self.subjects
            .push(subject("raw, same node", near, Vec::new()));
        self.subjects
            .push(subject("floor", first_at, vec![first, second]));
        self.labs.push(lab);
        Ok(())
    }

    fn with_mesh(&mut self, mesh: &Mesh<'_>) -> Result<()> {
        let mut builder = Lab::builder()
            .nodes(2)
            .ztunnel_env("ZTUNNEL_WORKER_THREADS", "2");
        builder = match mesh.ztunnel {
            Ztunnel::Ours { engine, full } => builder
                .ztunnel_env("AMBIT_ENGINE", engine)
                .ztunnel_env("AMBIT_RESUME_SESSIONS", if full { "false" } else { "true" }),
            Ztunnel::Peer(binary) => (0..2).fold(builder, |builder, node| {
                builder.ztunnel_binary(node, binary)
            }),
        };
        let lab = builder
            .start()
            .with_context(|| format!("the lab of {}", mesh.name))?;
        lab.namespace("bench").ambient()?;
        let client = lab.pod("bench/client").node(0).start()?;
        let far = serve(&lab, "bench/server", 1)?;
        let proxies = [0, 1].map(|node| {
            lab.node(node)
                .ztunnel()
                .and_then(|ztunnel| ztunnel.process())
        });
        let [first, second] = proxies;
        let (first, second) = (first?, second?);
        self.subjects.push(Subject {
            name: mesh.name,
            client: client.clone(),
            to: far,
            proxies: vec![first.clone(), second],
            tunnels: match mesh.ztunnel {
                Ztunnel::Ours { full: true, .. } => Tunnels::Full,
                _ => Tunnels::Usual,
            },
        });
        let near = mesh.near.map(|name| (name, "bench/near", 0));
        let plain = mesh.plain.map(|name| (name, "plain/server", 1));
        for (name, server, node) in near.into_iter().chain(plain) {
            self.subjects.push(Subject {
                name,
                client: client.clone(),
                to: serve(&lab, server, node)?,
                proxies: vec![first.clone()],
                tunnels: Tunnels::None,
            });
        }
        self.labs.push(lab);
        Ok(())
    }
}

/// A pod with the load generator's server in it.
fn serve(lab: &Lab, reference: &str, node: usize) -> Result<SocketAddr> {
    let pod = lab.pod(reference).node(node).start()?;
    let own = own_binary()?;
    let process = pod.spawn(
        "serve",
        [own.as_str(), "serve", &format!("0.0.0.0:{SERVER_PORT}")],
    )?;
    pod.until_listening(&process, SERVER_PORT)?;
    Ok(pod.at(SERVER_PORT))
}

/// A pod with a bare forwarder in it.
fn forward(
    lab: &Lab,
    reference: &str,
    node: usize,
    to: SocketAddr,
) -> Result<(Process, SocketAddr)> {
    let pod = lab.pod(reference).node(node).start()?;
    let own = own_binary()?;
    let listen = format!("0.0.0.0:{FORWARD_PORT}");
    let process = pod.spawn(
        "forward",
        [own.as_str(), "forward", &listen, &to.to_string()],
    )?;
    pod.until_listening(&process, FORWARD_PORT)?;
    Ok((process, pod.at(FORWARD_PORT)))
}

fn own_binary() -> Result<String> {
    let path = std::env::current_exe()?;
    path.into_os_string()
        .into_string()
        .ok()
        .context("the path of this program is not UTF-8")
}

/// What one measurement gave.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// What the client saw.
    pub(crate) measured: Measured,
    /// CPU seconds of all proxies together.
    pub(crate) cpu: f64,
}

impl Subject {
    /// Whether it is measured by this.
    pub(crate) fn takes_part_in(&self, work: Work) -> bool {
        match work {
            Work::Tunnel => self.tunnels != Tunnels::None,
            _ => self.tunnels != Tunnels::Full,
        }
    }

    /// Runs `work` once and counts what it cost the proxies.
    pub(crate) fn measure(&self, work: Work, connections: usize, time: Duration) -> Result<Sample> {
        let before = self.cpu()?;
        let own = own_binary()?;
        let words = self.words(&own, work, connections, time);
        let printed = self
            .client
            .command(words.iter().map(String::as_str))?
            .within(time + GRACE)
            .run()?
            .success()?;
        let measured = serde_json::from_str(printed.trim())
            .with_context(|| format!("the load generator said {printed:?}"))?;
        Ok(Sample {
            measured,
            cpu: self.cpu()? - before,
        })
    }

    /// MiB that each proxy grew by while `connections` idle connections were open.
    #[allow(clippy::disallowed_methods)] // no runtime here; memory is read when the burst of opening has settled
    pub(crate) fn hold(&self, connections: usize) -> Result<Vec<f64>> {
        let resident = || {
            self.proxies
                .iter()
                .map(|proxy| process::resident(id(proxy)))
                .collect::<Result<Vec<_>>>()
        };
        let before = resident()?;
        let own = own_binary()?;
        let words = self.words(&own, Work::Hold, connections, Duration::from_secs(120));
        let holding = self
            .client
            .spawn("hold", words.iter().map(String::as_str))?;
        lab::wait::until_true("the connections to be open", GRACE, || {
            holding.log().contains("units")
        })?;
        std::thread::sleep(Duration::from_secs(2));
        let during = resident()?;
        holding.kill();
        let opened: Measured =
            serde_json::from_str(holding.log().lines().next().context("no line")?)?;
        anyhow::ensure!(
            opened.failed == 0,
            "{} of {connections} connections failed",
            opened.failed
        );
        Ok(during
            .iter()
            .zip(before)
            .map(|(during, before)| during - before)
            .collect())
    }

    fn words(&self, own: &str, work: Work, connections: usize, time: Duration) -> Vec<String> {
        let work = clap::ValueEnum::to_possible_value(&work)
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        vec![
            own.to_owned(),
            "load".to_owned(),
            work,
            self.to.to_string(),
            format!("--connections={connections}"),
            format!("--time={}", time.as_millis()),
        ]
    }

    fn cpu(&self) -> Result<f64> {
        self.proxies
            .iter()
            .map(|proxy| process::cpu_seconds(id(proxy)))
            .sum()
    }
}

fn id(process: &Process) -> u32 {
    process.pid().unsigned_abs()
}
