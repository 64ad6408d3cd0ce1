//! The process: its runtimes, the parts wired together, and its end.
//!
//! Traffic has threads to itself; discovery, certificates' channel and the doors share one thread beside them, so that a
//! large push delays no request. At the end: not ready, no new tunnels, GOAWAY on all connections, and when the last has
//! ended, or at the deadline, the process ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hbone::control_plane::{RevocationFile, TrustFigures, channel, follow_roots, token_source};
use hbone::{CaClient, Certificates, CertificatesConfig, Identity, Pool, PoolConfig};
use mesh::Mesh;
use ops::discovery::DiscoveryMetrics;
use ops::drain::Drain;
use ops::log::LogHandle;
use ops::metrics::Registry;
use ops::ready::Readiness;
use ops::signals::Signals;
use ops::threads::{self, Kind, Threads};
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admin::{Doors, Places};
use crate::authenticate::{KeySets, Through};
use crate::compiled::{Compiler, Config as Compiled};
use crate::config::Config;
use crate::proxy::{self, Proxy};
use crate::report::{self, Collectors, Openings, Reporter, Reports};
use crate::state::{Keeper, State};
use crate::upstream::{Gateways, Upstreams};
use crate::{arrive, discovery};

/// Runs the process to its end.
///
/// # Errors
/// When it cannot begin.
pub fn run() -> anyhow::Result<()> {
    let config = Arc::new(Config::from_process());
    let log = ops::log::init(&config.log, config.log_format)?;
    ops::process::allow_all_fds();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let traffic = Threads::start(config.worker_threads.unwrap_or(cores), TRAFFIC)?;
    let control = Builder::new_current_thread().enable_all().build()?;
    let result = control.block_on(live(config, log.clone(), traffic.runtimes().to_vec()));
    if let Err(error) = &result {
        tracing::error!(error = %format!("{error:#}"), "stopped");
    }
    traffic.end();
    log.flush(Duration::from_secs(1));
    result
}

async fn live(config: Arc<Config>, log: LogHandle, runtimes: Vec<Handle>) -> anyhow::Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), gateway = %config.gateway_name, namespace = %config.pod_namespace, xds = %config.xds_address, "starting");
    let mut signals = Signals::listen()?;
    let readiness = Readiness::new();
    let (quit, end) = (CancellationToken::new(), CancellationToken::new());
    let (proxy, writing) = wire(&config, &runtimes, &log)?;
    // What is for nobody's connection.
    let traffic = runtimes.first().context("a thread that carries traffic")?;
    // Else each connection would ask for a certificate of its own, and find none while nobody signs.
    let _held = {
        let _traffic = traffic.enter();
        proxy.certificates.hold(&proxy.identity)
    };

    let serving = readiness.gate("serving");
    let registry = registry(&proxy, &writing.known.metrics, &log);
    let doors = Doors {
        shown: proxy.clone(),
        log,
        registry,
        readiness: readiness.clone(),
        quit: quit.clone(),
    };
    let places = Places {
        admin: config.admin_port,
        metrics: config.stats_address,
        readiness: config.readiness_address,
    };
    doors
        .open(places, end.clone())
        .await
        .context("admin, metrics and readiness ports")?;
    let sending = report::send::run(proxy.clone(), writing.openings, end.clone());
    let sending = traffic.spawn(sending);
    follow(&config, &proxy, writing.known, &readiness, &end);
    if let Some(revoked) = writing.revoked {
        tokio::spawn(revoked.follow(end.clone()));
    }

    // Without a certificate every client would be turned away.
    let certificate = readiness.gate("certificate");
    let certified = proxy.clone();
    traffic.spawn(async move {
        while certified
            .certificates
            .of(&certified.identity)
            .await
            .is_err()
        {
            tokio::time::sleep(AGAIN).await;
        }
        certificate.open();
    });
    let listener = ops::admin::bind(config.hbone_address);
    let listener = listener.await.context("the HBONE port")?.into_std()?;
    let (listening, tending, ending) = (proxy.clone(), proxy.clone(), end.clone());
    // The process stays at least until the door is closed.
    let open = proxy.drain.hold();
    traffic.spawn(async move {
        let _open = open;
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => arrive::listen(listening, listener).await,
            Err(error) => tracing::error!(%error, "the HBONE port"),
        }
    });
    traffic.spawn(async move { tending.upstreams.tend(ending).await });
    tokio::spawn(measure(proxy.clone(), end.clone()));
    tokio::spawn(sweep(proxy.clone(), end.clone()));
    serving.open();

    tokio::select! {
        () = signals.next() => {}
        () = quit.cancelled() => {}
    }
    serving.close();
    let deadline = config.drain_deadline();
    tracing::info!(requests = proxy.load.requests(), ?deadline, "stopping");
    let drained = tokio::select! {
        drained = proxy.drain.drain(deadline) => Some(drained),
        () = signals.next() => None,
    };
    tracing::info!(?drained, "stopped");
    end.cancel();
    // What has been reported and not been sent.
    let _ = sending.await;
    Ok(())
}

/// What others than the traffic drive.
struct Writing {
    known: Known,
    /// Collectors that reports are to be handed to.
    openings: Openings,
    /// Who is believed no more.
    revoked: Option<RevocationFile>,
}

/// What discovery writes to.
struct Known {
    keeper: Keeper<Compiler>,
    demands: mpsc::Receiver<mesh::Demand>,
    metrics: DiscoveryMetrics,
}

/// Everything that carries, not yet carrying.
fn wire(
    config: &Arc<Config>,
    runtimes: &[Handle],
    log: &LogHandle,
) -> anyhow::Result<(Arc<Proxy>, Writing)> {
    // What spawns while it is made belongs to the traffic.
    let _traffic = runtimes.first().map(Handle::enter);
    let identity = Identity::new(
        &config.trust_domain,
        &config.pod_namespace,
        &config.service_account,
    )?;
    let (mesh, writer) = Mesh::new();
    let authority = channel(config.ca_address(), config.ca_root_ca(), None)?;
    let signer = CaClient::new(
        authority,
        &config.cluster_id,
        token_source(&config.auth_token),
        config.secret_ttl,
    )?;
    let revoked = config.crl_path.clone().map(RevocationFile::open);
    let keeping = CertificatesConfig {
        revocations: revoked
            .as_ref()
            .map(RevocationFile::revocations)
            .unwrap_or_default(),
        ..config.certificates()
    };
    let certificates = Certificates::new(signer.for_itself(), keeping);
    let workers = threads::Places::on(runtimes);
    let pool = || Pool::new(certificates.clone(), PoolConfig::default());
    let tunnels = std::iter::repeat_with(pool).take(workers.count());
    let (clients, demands) = discovery::clients(mesh.clone(), config);
    let clients = Arc::new(clients);
    let gateways = Gateways::new(
        clients.clone(),
        certificates.clone(),
        (config.network.as_str(), config.pod_namespace.as_str()),
    );
    let own = config.own_addresses();
    let upstreams = Upstreams::new(tunnels, identity.clone(), own, gateways)
        .named(config.certificates().trust_domain_aliases);
    let state = State::new(Compiled::default());
    let reports = Reports::new(Reporter::Waypoint).into_log(log.clone());
    let reports = reports.bounded(config.metrics(), config.metrics_without.clone());
    let (collectors, openings) = Collectors::new();
    let fetch = Arc::new(Through::default());
    let compiler = Compiler::new(KeySets::new(fetch.clone()));
    let compiler = compiler.reporting(collectors.clone());
    let gateway = format!("{}/{}", config.pod_namespace, config.gateway_name);
    let keeper = Keeper::new(&gateway, state.clone(), writer, compiler);
    let proxy = Arc::new(Proxy::new(proxy::Parts {
        config: config.clone(),
        identity,
        certificates,
        mesh,
        clients,
        state,
        upstreams,
        workers,
        reports: reports.to(collectors),
        drain: Drain::new(),
    }));
    fetch.carried_by(&proxy);
    let known = Known {
        keeper,
        demands,
        metrics: DiscoveryMetrics::default(),
    };
    let writing = Writing {
        known,
        openings,
        revoked,
    };
    Ok((proxy, writing))
}

/// What the control plane says, and the roots that the kubelet brings.
fn follow(
    config: &Arc<Config>,
    proxy: &Arc<Proxy>,
    known: Known,
    readiness: &Readiness,
    end: &CancellationToken,
) {
    let (config, gate, until) = (config.clone(), readiness.gate("xds"), end.clone());
    let roots = config.ca_root_ca().clone();
    tokio::spawn(async move {
        let Known {
            keeper,
            demands,
            metrics,
        } = known;
        let run = discovery::run(&config, keeper, demands, gate, metrics, until);
        if let Err(error) = run.await {
            tracing::error!(%error, "xds: the address is of no use");
        }
    });
    let certificates = proxy.certificates.clone();
    tokio::spawn(follow_roots(roots, certificates, end.clone()));
}

/// Takes out series of metrics that name who is gone.
async fn sweep(proxy: Arc<Proxy>, end: CancellationToken) {
    let period = (proxy.config.metrics_expiry / 4).clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
    let mut times = tokio::time::interval(period);
    while end.run_until_cancelled(times.tick()).await.is_some() {
        let proxy = proxy.clone();
        // A look at many workloads takes milliseconds, which whoever else is on this thread should not wait for.
        let swept = move || proxy.reports.sweep(&proxy.mesh.load_full(), Instant::now());
        if let Err(error) = tokio::task::spawn_blocking(swept).await {
            tracing::error!(%error, "metrics: a sweep ended early");
        }
    }
}

/// How much memory is in use, every second, and whether anybody was refused for want of room.
async fn measure(proxy: Arc<Proxy>, end: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK);
    let mut before = 0;
    while end.run_until_cancelled(looks.tick()).await.is_some() {
        let used = tokio::task::spawn_blocking(ops::memory::used).await;
        let memory = used.ok().flatten().unwrap_or(0);
        proxy.load.measured(memory);
        let refused = proxy.load.refused();
        if refused > before {
            let (now, requests) = (refused - before, proxy.load.requests());
            tracing::warn!(refused = now, requests, memory, "overloaded");
        }
        before = refused;
    }
}

fn registry(proxy: &Proxy, discovery: &DiscoveryMetrics, log: &LogHandle) -> Arc<Registry> {
    let mut registry = Registry::new("waypoint", env!("CARGO_PKG_VERSION"));
    ops::process::register(&mut registry, proxy.workers.metrics(), Some(log.clone()));
    proxy.reports.register(registry.large());
    let load = Box::new(proxy.load.clone());
    registry.families().register_collector(load);
    let trust = Box::new(TrustFigures::of(&proxy.certificates));
    registry.families().register_collector(trust);
    discovery.register(&mut registry);
    Arc::new(registry)
}

/// Threads that carry traffic. A client's connection is placed where there is least to do. What arrives on it stays there;
/// what is more than the others have is given to the least busy of them: a client that has one connection has all of us.
const TRAFFIC: Kind = Kind {
    name: "traffic",
    events: 16,
    // What the streams of a tunnel write in one turn of a thread leaves together.
    begin: hbone::write_by_turns,
};
/// Before a certificate is asked for once more.
const AGAIN: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks for series that name who is gone.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);
const LONGEST_PERIOD: Duration = Duration::from_secs(60);
