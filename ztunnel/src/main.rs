//! The process: its runtimes, the parts wired together, and its end; or, as `ztunnel keep …`, the keeper that starts it.
//!
//! Traffic has threads to itself (`workers`); discovery, certificates' channel and the doors
//! share one thread beside it, so that a large push never delays a packet.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hbone::control_plane::{RevocationFile, TrustFigures, follow_roots};
use hbone::{Certificates, CertificatesConfig, Pool};
use mesh::Mesh;
use ops::drain::Drain;
use ops::log::LogHandle;
use ops::metrics::Registry;
use ops::ready::Readiness;
use ops::signals::Signals;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use ztunnel::admin::Doors;
use ztunnel::agent::Agent;
use ztunnel::config::{Config, Mode, engine_name};
use ztunnel::dedicated;
use ztunnel::dns::Dns;
use ztunnel::handover::Part;
use ztunnel::keeper::{self, Keeper};
use ztunnel::metrics::{DnsMetrics, Metrics, register_pools, sweep};
use ztunnel::node::Node;
use ztunnel::workers::Workers;
use ztunnel::xds;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == keeper::VERB) {
        std::process::exit(keeper::keep(arguments.collect())?);
    }
    let keeper = Keeper::of_this_process().context("the keeper's listeners")?;
    let mut config = Config::from_process();
    let log = ops::log::init(&config.log, config.log_format)?;
    dedicated::prepare(&mut config)?;
    let config = Arc::new(config);
    ops::process::allow_all_fds();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let data = Workers::start(config.workers(cores))?;
    let control = Builder::new_current_thread().enable_all().build()?;

    let result = control.block_on(run(config, log.clone(), data.runtimes(), keeper));
    if let Err(error) = &result {
        tracing::error!(error = %format!("{error:#}"), "stopped");
    }
    data.end();
    log.flush(Duration::from_secs(1));
    result
}

async fn run(
    config: Arc<Config>,
    log: LogHandle,
    data: &[Handle],
    keeper: Keeper,
) -> anyhow::Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %config.node_name, xds = %config.xds_address, engine = engine_name(config.engine), "starting");
    keeper.announce();
    let readiness = Readiness::new();
    let (drain, quit, end) = (
        Drain::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let (mesh, writer) = Mesh::new();

    let (signer, joined) = dedicated::signer(&config, &end)?;
    let (node, mut agent, registry, metrics) = {
        // What spawns while it is made belongs to the traffic.
        let _data = data[0].enter();
        let revoked = config.crl_path.clone().map(RevocationFile::open);
        let keeping = CertificatesConfig {
            revocations: revoked
                .as_ref()
                .map(RevocationFile::revocations)
                .unwrap_or_default(),
            ..config.certificates()
        };
        if let Some(revoked) = revoked {
            tokio::spawn(revoked.follow(end.clone()));
        }
        let certificates = Certificates::new(signer, keeping);
        let workers = Workers::on(data, || Pool::new(certificates.clone(), config.pool()));
        let (limits, settings) = (config.limits(), config.clone());
        let node = Node::new(mesh.clone(), certificates, workers, limits, settings);
        let metrics = Metrics {
            dns: DnsMetrics::new(config.metrics(), config.metrics_without.clone()),
            ..Metrics::default()
        };
        let registry = registry(&metrics, &node, &log, &keeper);
        let dns = config.dns_proxy.then(|| {
            let (resolv, dns) = (node.resolv.clone(), metrics.dns.clone());
            Dns::new(mesh, &config, resolv, dns, node.on_demand.clone())
        });
        let agent = Agent::new(
            node.clone(),
            dns,
            metrics.pods.clone(),
            readiness.gate("zds"),
            drain.clone(),
        );
        let agent = agent.kept_by(keeper);
        (node, agent, registry, metrics)
    };
    if config.mode == Mode::Dedicated {
        agent.serve_own().context("the workload's own proxy")?;
    }
    let (succession, roster) = (readiness.gate("handover"), agent.roster());
    let (for_xds, gate, stop) = (node.clone(), readiness.gate("xds"), end.clone());
    let (known, told) = oneshot::channel();
    let (sweeping, swept) = (sweep(node.clone(), metrics.dns.clone()), end.clone());
    tokio::spawn(async move { swept.run_until_cancelled(sweeping).await });
    tokio::spawn(async move {
        dedicated::until_joined(joined).await;
        if let Err(error) = xds::run(&for_xds, writer, gate, known, metrics.xds, stop).await {
            tracing::error!(%error, "xds: the address is of no use");
        }
    });
    let doors = Doors {
        node: node.clone(),
        roster: agent.roster(),
        log,
        registry,
        readiness,
        quit: quit.clone(),
    };
    doors
        .open(end.clone())
        .await
        .context("admin, metrics and readiness ports")?;
    let certificates = node.certificates.clone();
    tokio::spawn(follow_roots(
        config.ca_root_ca().clone(),
        certificates,
        end.clone(),
    ));
    data[0].spawn(node.clone().tend(end.clone()));
    let accepting = drain.accepting().clone();
    let (begin, begun) = oneshot::channel();
    data[0].spawn(async move {
        // A pod that we take before we know the mesh would wait with every connection; until then it is better off
        // as it is, or with our predecessor.
        tokio::select! {
            Ok(()) = told => {
                let _ = begin.send(());
                agent.run().await;
            }
            () = accepting.cancelled() => {}
        }
    });
    let part = async {
        begun.await.ok()?;
        let part = Part::begin(&node, roster, data[0].clone(), succession);
        part.inspect_err(
            |error| tracing::error!(%error, "hand-over: connections will drain instead"),
        )
        .ok()
    };
    let mut signals = Signals::listen()?;
    tokio::pin!(part);
    let mut begun = None;
    loop {
        tokio::select! {
            () = signals.next() => break,
            () = quit.cancelled() => break,
            part = &mut part, if begun.is_none() => begun = Some(part),
        }
    }
    // Said first: what waits for the other must know that it may go.
    let part = begun.flatten();
    part.iter().for_each(Part::leave);
    let deadline = config.drain_deadline();
    tracing::info!(
        open = node.connections.open(),
        ?deadline,
        "stopping: no new connections, open ones may end"
    );
    let drained = tokio::select! {
        drained = drain.drain(deadline) => Some(drained),
        () = signals.next() => None,
    };
    tracing::info!(?drained, "stopped");
    part.into_iter().for_each(Part::end);
    end.cancel();
    Ok(())
}

fn registry(metrics: &Metrics, node: &Node, log: &LogHandle, keeper: &Keeper) -> Arc<Registry> {
    let mut registry = Registry::new("ztunnel", env!("CARGO_PKG_VERSION"));
    ops::process::register(&mut registry, node.workers.metrics(), Some(log.clone()));
    metrics.register(&mut registry);
    register_pools(&mut registry, &node.workers);
    node.udp.register(registry.families());
    let bounds = Box::new(node.bounds.clone());
    registry.families().register_collector(bounds);
    let trust = TrustFigures::of(&node.certificates);
    registry.families().register_collector(Box::new(trust));
    registry
        .large()
        .register_collector(Box::new(node.traffic.clone()));
    node.traffic.register_few(registry.families());
    let dns = metrics.dns.clone();
    let bounded = node
        .traffic
        .bounded()
        .and("istio_dns", move || dns.figures());
    registry.families().register_collector(Box::new(bounded));
    if let Some(on_demand) = &node.on_demand {
        on_demand.register(registry.families());
    }
    keeper.register(registry.families());
    node.handover.register(registry.families());
    Arc::new(registry)
}
