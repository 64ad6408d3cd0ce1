//! How a ztunnel takes a large mesh: time until ready, memory after it and what an update costs,
//! with a control plane that knows nothing but N workloads, and a node agent that knows no pod.
//!
//! 1. a network namespace of its own (the caller runs this in a [`lab::Place`])
//! 2. a delta discovery server on loopback that answers a wildcard request with everything
//! 3. a ZDS socket that says "that was all"
//! 4. start ztunnel, ask its readiness port until it says yes, let memory settle, read it
//! 5. change one endpoint after another; each change is acknowledged before the next

mod plane;

use std::{
    net::Ipv4Addr,
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use api::{
    discovery::Resource,
    workload::{Address, NetworkAddress, Port, PortList, Service, Workload, address},
};
use nix::sys::socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr};
use plane::ControlPlane;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Mesh {
    /// How many workloads.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) workloads: usize,
    /// Workloads behind one service.
    #[arg(long, default_value_t = 10)]
    pub(crate) endpoints: usize,
    /// Endpoints of the first service to change when all has settled, one after another.
    #[arg(long, default_value_t = 0)]
    pub(crate) updates: usize,
}

/// How long the ztunnel may take to become ready.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// How long a whole measurement may take: until ready, and all around it.
pub(crate) const LONGEST: Duration = READY_DEADLINE.saturating_add(Duration::from_secs(60));
/// How long an update may take until it is acknowledged.
const ACKNOWLEDGED: Duration = Duration::from_secs(10);
/// Memory is read after this pause: allocators give back late.
const SETTLE: Duration = Duration::from_secs(3);

/// What a ztunnel did with a large mesh.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Scale {
    /// Seconds from start to ready.
    pub(crate) ready: f64,
    /// Resident memory after settling, MiB.
    pub(crate) resident: f64,
    /// CPU seconds spent until then.
    pub(crate) cpu: f64,
    /// CPU seconds of one update; 0 without.
    pub(crate) update: f64,
    /// How much resident memory grew by all updates, MiB.
    pub(crate) grown: f64,
}

/// Measures the ztunnel at `binary`; must run in a namespace of its own.
pub(crate) async fn measure(binary: &Path, mesh: Mesh) -> Result<Scale> {
    let dir = std::env::temp_dir().join(format!("ambit-bench-scale-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure_in(&dir, binary, mesh).await;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn measure_in(dir: &Path, binary: &Path, mesh: Mesh) -> Result<Scale> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let xds = listener.local_addr()?;
    let root = dir.join("root.pem");
    let acceptor = crate::tls::acceptor(&root)?;
    let plane = ControlPlane::of(addresses(mesh));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(plane.clone())
            .serve_with_incoming(crate::tls::incoming(listener, acceptor)),
    );
    let agent = dir.join("zds.sock");
    node_without_pods(&agent)?;
    let token = dir.join("token");
    std::fs::write(&token, "bench")?;

    let started = Instant::now();
    let mut ztunnel = Running(
        Command::new(binary)
            .current_dir(dir)
            .env_clear()
            .env("XDS_ADDRESS", format!("https://{xds}"))
            .env("CA_ADDRESS", format!("https://{xds}"))
            .env("XDS_ROOT_CA", &root)
            .env("CA_ROOT_CA", &root)
            .env("AUTH_TOKEN", &token)
            .env("INPOD_UDS", &agent)
            .env("PROXY_MODE", "shared")
            .env("NODE_NAME", "bench-node")
            .env("POD_NAME", "ztunnel-bench")
            .env("POD_NAMESPACE", "istio-system")
            .env("INSTANCE_IP", "127.0.0.1")
            .env("ZTUNNEL_WORKER_THREADS", "2")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.join("ztunnel.log"))?)
            .stderr(std::fs::File::create(dir.join("ztunnel.err"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?,
    );
    while !ready().await {
        if let Some(status) = ztunnel.0.try_wait()? {
            bail!(
                "ztunnel ended with {status}: {}",
                std::fs::read_to_string(dir.join("ztunnel.err"))?
            );
        }
        if started.elapsed() > READY_DEADLINE {
            bail!(
                "not ready after {READY_DEADLINE:?}: {}",
                std::fs::read_to_string(dir.join("ztunnel.log"))?
            );
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ready = started.elapsed().as_secs_f64();
    tokio::time::sleep(SETTLE).await;
    let pid = ztunnel.0.id();
    let mut scale = Scale {
        ready,
        resident: crate::process::resident(pid)?,
        cpu: crate::process::cpu_seconds(pid)?,
        ..Scale::default()
    };
    if mesh.updates > 0 {
        let before = crate::process::cpu_seconds(pid)?;
        for at in 0..mesh.updates {
            // Every endpoint is unhealthy once before any is healthy again.
            let unhealthy = (at / mesh.endpoints).is_multiple_of(2);
            let update = plane.push(workload(mesh, at % mesh.endpoints, unhealthy));
            tokio::time::timeout(ACKNOWLEDGED, update)
                .await
                .context("an update was not acknowledged")??;
        }
        let spent = crate::process::cpu_seconds(pid)? - before;
        scale.update = spent / mesh.updates as f64;
        tokio::time::sleep(SETTLE).await;
        scale.grown = crate::process::resident(pid)? - scale.resident;
    }
    Ok(scale)
}

/// A child that does not outlive the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn ready() -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let answer = async {
        let mut tcp = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, 15021)).await?;
        tcp.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), answer).await, Ok(Ok(text)) if text.starts_with("HTTP/1.1 200"))
}

/// A node agent that has no pods: greets, says that was all, then keeps the line open.
fn node_without_pods(path: &Path) -> Result<()> {
    let listener = socket::socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&listener, Backlog::new(4)?)?;
    let snapshot_sent = api::zds::WorkloadRequest {
        payload: Some(api::zds::workload_request::Payload::SnapshotSent(
            api::zds::SnapshotSent {},
        )),
    }
    .encode_to_vec();
    std::thread::spawn(move || {
        while let Ok(connection) = socket::accept(listener.as_raw_fd()) {
            let mut packet = [0u8; 1024];
            let hello = socket::recv(connection, &mut packet, MsgFlags::empty());
            let sent = socket::send(connection, &snapshot_sent, MsgFlags::empty());
            if hello.is_err() || sent.is_err() {
                continue;
            }
            // The acknowledgement, then nothing until the other side goes away.
            while socket::recv(connection, &mut packet, MsgFlags::empty()).is_ok_and(|n| n > 0) {}
        }
    });
    Ok(())
}

fn addresses(mesh: Mesh) -> Vec<Resource> {
    let services = (0..mesh.workloads.div_ceil(mesh.endpoints)).map(service);
    let workloads = (0..mesh.workloads).map(|n| workload(mesh, n, false));
    services.chain(workloads).collect()
}

fn service(n: usize) -> Resource {
    let hostname = hostname(n);
    resource(
        format!("scale/{hostname}"),
        address::Type::Service(Service {
            name: format!("service-{n}"),
            namespace: "scale".into(),
            hostname,
            addresses: vec![NetworkAddress {
                network: String::new(),
                address: ip(11, n + 1),
                length: None,
            }],
            ports: vec![PORT],
            canonical: true,
            ..Service::default()
        }),
    )
}

fn workload(mesh: Mesh, n: usize, unhealthy: bool) -> Resource {
    let uid = format!("Kubernetes//Pod/scale/pod-{n}");
    let of = n / mesh.endpoints;
    resource(
        uid.clone(),
        address::Type::Workload(Workload {
            uid,
            name: format!("pod-{n}"),
            namespace: "scale".into(),
            addresses: vec![ip(10, n + 1)],
            tunnel_protocol: 1,
            service_account: format!("account-{of}"),
            node: format!("node-{}", n % 1000),
            canonical_name: format!("app-{of}"),
            canonical_revision: "latest".into(),
            workload_type: 2,
            workload_name: format!("app-{of}"),
            cluster_id: "Kubernetes".into(),
            services: [(
                format!("scale/{}", hostname(of)),
                PortList { ports: vec![PORT] },
            )]
            .into(),
            status: i32::from(unhealthy),
            ..Workload::default()
        }),
    )
}

fn hostname(service: usize) -> String {
    format!("service-{service}.scale.svc.cluster.local")
}

fn ip(base: u8, n: usize) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&[base, (n >> 16) as u8, (n >> 8) as u8, n as u8])
}

fn resource(name: String, kind: address::Type) -> Resource {
    Resource {
        version: "1".into(),
        resource: Some(prost_types::Any {
            type_url: api::ADDRESS_TYPE.into(),
            value: Address { r#type: Some(kind) }.encode_to_vec(),
        }),
        name,
        aliases: Vec::new(),
    }
}

const PORT: Port = Port {
    service_port: 80,
    target_port: 8080,
    app_protocol: 0,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_its_own_address_and_a_service() {
        let all = addresses(Mesh {
            workloads: 1000,
            endpoints: 10,
            updates: 0,
        });
        assert_eq!(all.len(), 1100);
        let names: std::collections::HashSet<_> = all.iter().map(|r| r.name.clone()).collect();
        assert_eq!(names.len(), all.len());
    }
}
