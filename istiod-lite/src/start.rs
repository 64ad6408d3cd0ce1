//! Puts the parts together, in the order in which they may be used.
//!
//! 1. the monitoring port, which says what the rest waits for
//! 2. where objects come from: a directory, with our own files beside it, or a cluster
//! 3. the signer, and the configuration, all of it, before anybody can ask
//! 4. the other ports
//! 5. the tasks that keep certificates current, and those that write into the cluster

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use api::machine::presence_server::PresenceServer;
use ops::drain::Drain;
use ops::metrics::Registry;
use ops::ready::{Gate, Readiness};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::authenticate::{Authenticator, Judge};
use crate::ca::{self, Authority, CertificateService, Lifetimes, MaterialError, Source};
use crate::cluster::{
    self, Cluster, ConnectError, Connection, Health, Kinds, Pods, Reviewer, mesh_config,
};
use crate::config::{Input, Run};
use crate::deploy::{Chart, Mesh, Pattern};
use crate::feed::{self, Feed, Fill, Origin, Views};
use crate::inject::{Images, Injector};
use crate::machine::events::Events;
use crate::machine::objects::Objects;
use crate::machine::presence::PresenceService;
use crate::machine::register::{self, Place, Registrar};
use crate::machine::replicas::Replicas;
use crate::machine::{Machines, store::Store};
use crate::metrics::Metrics;
use crate::push::{Connected, Debounce, Discovery};
use crate::serve::{self, Age, Debug, ServerCertificate, ServerError};
use crate::token::{KeyError, Tokens};
use crate::webhook::{self, WebhookError};
use crate::world::{Automatic, Settings};
use crate::write;

/// A control plane that serves.
pub struct Running {
    /// Port of gRPC over TLS.
    pub grpc: SocketAddr,
    /// Port of gRPC in the clear, if asked for.
    pub plaintext: Option<SocketAddr>,
    /// Port of metrics and debug.
    pub monitoring: SocketAddr,
    /// Port of admission, with Kubernetes.
    pub webhook: Option<SocketAddr>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is served.
    pub views: Views,
    /// The signer.
    pub authority: Arc<Authority>,
    /// The proxies that are connected.
    pub connected: Arc<Connected>,
}

/// It cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration directory.
    #[error("configuration directory {0}: {1}")]
    Directory(PathBuf, io::Error),
    /// How to reach the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Told to end before it had begun.
    #[error("told to end while starting")]
    Ended,
    /// The port of admission.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// The key of the tokens.
    #[error(transparent)]
    Tokens(#[from] KeyError),
    /// The mesh's settings.
    #[error(transparent)]
    Mesh(#[from] mesh_config::FileError),
    /// The signer.
    #[error("certificate authority: {0}")]
    Authority(#[from] MaterialError),
    /// Our own certificate.
    #[error(transparent)]
    Certificate(#[from] ServerError),
    /// A port.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
}

/// What is the same wherever objects come from.
struct Parts {
    metrics: Arc<Metrics>,
    fill: Fill,
    /// Ends the thread of the feed.
    stop: CancellationToken,
}

/// What depends on it.
struct Base {
    authority: Arc<Authority>,
    judge: Judge,
    settings: Settings,
    cluster: Option<(Connection, watch::Receiver<Kinds>)>,
    machines: Option<Arc<Machines>>,
}

/// What is there before anything is known: the monitoring port, and what it speaks of.
struct Front {
    metrics: Arc<Metrics>,
    views: Views,
    connected: Arc<Connected>,
    health: Health,
    configured: Gate,
    serving: Gate,
    monitoring: SocketAddr,
}

/// Starts everything; ends with `drain`. With Kubernetes it waits for the API server, and says on
/// the monitoring port what it waits for.
///
/// # Errors
/// What is wrong with flags, files or ports. Not that an API server cannot be reached.
pub async fn start(run: &Run, drain: &Drain) -> Result<Running, StartError> {
    let (front, fill) = Front::open(run, drain).await?;
    // Its thread ends with `drain`, and with the runtime that holds the guard.
    let stop = drain.accepting().child_token();
    let feeding = stop.clone().drop_guard();
    let parts = Parts {
        metrics: front.metrics.clone(),
        fill,
        stop,
    };
    let base = match run.input() {
        Input::Directory { config, state } => standalone(run, parts, config, state, drain).await?,
        Input::Kubernetes { kubeconfig } => {
            in_cluster(run, parts, kubeconfig, &front.health, drain).await?
        }
    };
    let Base {
        authority,
        judge,
        settings,
        cluster,
        machines,
    } = base;
    front.metrics.expiries(authority.expiries());
    front.configured.open();
    if let (Some(machines), Some((connection, _))) = (&machines, &cluster) {
        let (client, groups) = (connection.client.clone(), front.views.groups.subscribe());
        let stop = drain.accepting().clone();
        machines.tell(Events::start(client, groups, front.metrics.clone(), stop));
    }

    let authenticator = Arc::new(Authenticator {
        tokens: judge,
        roster: front.views.roster.clone(),
        trust_domain: settings.trust_domain.as_str().into(),
        cluster: run.cluster_id.clone(),
        trusted_nodes: run.trusted_nodes(),
        machines,
    });
    let certificate = ServerCertificate::new(authority.clone(), &run.names())?;
    let registrar = registrar(run, &front, cluster.as_ref());
    drain.spawn(registrar.clone().tend(drain.accepting().clone()));
    let routes = routes(&authority, &authenticator, &front, registrar);
    let (grpc, plaintext) = serve_grpc(run, &front, routes, &certificate, drain).await?;
    front.serving.open();
    let mut webhook = None;
    if let Some(cluster) = cluster {
        webhook = Some(admit(run, &front, &settings, &certificate, drain).await?);
        write::start(ground(run, &front, &settings, cluster, &authority), drain);
    }
    let stop = drain.accepting().clone();
    if let Input::Directory { config, .. } = run.input() {
        let mirror = write::status::mirror(config, front.views.statuses.clone(), stop.clone());
        drain.spawn(mirror);
    }
    tokio::spawn(certificate.keep_current(run.default_cert_ttl / 2, stop.clone()));
    let serving = front.serving;
    tokio::spawn(async move {
        stop.cancelled().await;
        serving.close();
        drop(feeding);
    });
    Ok(Running {
        grpc,
        plaintext,
        monitoring: front.monitoring,
        webhook,
        metrics: front.metrics,
        views: front.views,
        authority,
        connected: front.connected,
    })
}

impl Front {
    /// Opens the monitoring port; what is to be filled goes to the feed.
    async fn open(run: &Run, drain: &Drain) -> Result<(Self, Fill), StartError> {
        let mut registry = Registry::new("pilot", env!("CARGO_PKG_VERSION"));
        let metrics = Metrics::register(&mut registry);
        let readiness = Readiness::new();
        let (configured, serving) = (readiness.gate("configuration"), readiness.gate("grpc"));
        let (fill, views) = feed::views();
        let connected = Arc::new(Connected::default());
        let health = Health::default();
        let (listener, monitoring) = listen(run.listen_monitoring).await?;
        let debug = run.debug.then(|| Debug {
            connected: connected.clone(),
            catalog: views.catalog.clone(),
            faults: views.faults.clone(),
        });
        let doors = serve::monitoring(Arc::new(registry), readiness, health.clone(), debug);
        // Metrics are read to the last: what happens while draining is worth seeing.
        tokio::spawn(ops::admin::serve(listener, doors, drain.now().clone()));
        let front = Self {
            metrics,
            views,
            connected,
            health,
            configured,
            serving,
            monitoring,
        };
        Ok((front, fill))
    }
}

/// Opens the ports of gRPC: over TLS, and in the clear if asked for.
async fn serve_grpc(
    run: &Run,
    front: &Front,
    routes: Routes,
    certificate: &Arc<ServerCertificate>,
    drain: &Drain,
) -> Result<(SocketAddr, Option<SocketAddr>), StartError> {
    let age = Age {
        most: run.max_connection_age,
        health: front.health.clone(),
        ..Age::default()
    };
    let (tls, grpc) = listen(run.listen_grpc).await?;
    drain.spawn(serve::grpc_tls(
        tls,
        certificate.config_for_proxies()?,
        routes.clone(),
        age.clone(),
        drain.clone(),
    ));
    let mut plaintext = None;
    if let Some(address) = run.listen_plaintext {
        let (listener, address) = listen(address).await?;
        drain.spawn(serve::grpc_plain(listener, routes, age, drain.clone()));
        plaintext = Some(address);
    }
    Ok((grpc, plaintext))
}

/// Opens the port of admission.
async fn admit(
    run: &Run,
    front: &Front,
    settings: &Settings,
    certificate: &Arc<ServerCertificate>,
    drain: &Drain,
) -> Result<SocketAddr, StartError> {
    let judge = webhook::Judge {
        root_namespace: settings.root_namespace.as_str().into(),
        dry_run: run.dry_run_policies,
        exists: exists(&front.views),
        metrics: front.metrics.clone(),
    };
    let injector = injector(run, settings);
    Ok(webhook::start(run.listen_webhook, certificate, judge, injector, drain).await?)
}

/// What the writers stand on.
fn ground(
    run: &Run,
    front: &Front,
    settings: &Settings,
    (connection, kinds): (Connection, watch::Receiver<Kinds>),
    authority: &Arc<Authority>,
) -> write::Ground {
    write::Ground {
        connection,
        health: front.health.clone(),
        kinds,
        namespace: run.namespace.clone(),
        flags: run.write.clone(),
        authority: authority.clone(),
        statuses: front.views.statuses.clone(),
        waypoints: waypoints(run, settings),
        notes: watch::Sender::default(),
        metrics: front.metrics.clone(),
    }
}

/// How waypoints are deployed, if we were told.
fn waypoints(run: &Run, settings: &Settings) -> Option<Arc<Pattern>> {
    let image = run.write.waypoint_image.clone();
    let image = image.filter(|image| !image.is_empty())?;
    let chart = run.write.waypoint.clone().unwrap_or_default();
    Some(Arc::new(Pattern {
        chart: Chart { image, ..chart },
        mesh: mesh(run, settings),
    }))
}

/// How pods are given proxies of their own, if we were told.
fn injector(run: &Run, settings: &Settings) -> Option<Injector> {
    let named = |image: &Option<String>| image.clone().filter(|image| !image.is_empty());
    Some(Injector {
        chart: run.sidecar_injector.clone().unwrap_or_default(),
        images: Images {
            proxy: named(&run.ztunnel_image)?,
            capture: named(&run.cni_image)?,
        },
        mesh: mesh(run, settings),
    })
}

fn mesh(run: &Run, settings: &Settings) -> Mesh {
    Mesh {
        namespace: run.namespace.clone(),
        trust_domain: settings.trust_domain.clone(),
        trust_domain_aliases: settings.trust_domain_aliases.clone(),
        cluster: run.cluster_id.clone(),
        domain: run.cluster_domain.clone(),
        revision: run.revision.clone(),
    }
}

/// Without a cluster: everything is a file.
async fn standalone(
    run: &Run,
    parts: Parts,
    config: PathBuf,
    state: PathBuf,
    drain: &Drain,
) -> Result<Base, StartError> {
    let mut settings = run.settings();
    mesh_config::lay_file_over(run.mesh_config.as_deref(), &mut settings)?;
    let tokens = Tokens::open(&state)?;
    let source = match &run.ca_dir {
        Some(directory) => Source::PluggedIn(directory.clone()),
        None => Source::Own(state.clone()),
    };
    let trust_domain: Arc<str> = settings.trust_domain.as_str().into();
    let machines = Machines::new(
        Store::directory(&state),
        Arc::clone(&trust_domain),
        run.machine_absence,
        parts.metrics.clone(),
    );
    let authority = Arc::new(Authority::open(source, trust_domain, lifetimes(run))?);
    let origin = Origin::Directory {
        config: config.clone(),
        state,
    };
    let metrics = parts.metrics.clone();
    let started = start_feed(run, parts, origin, settings.clone()).await;
    started.map_err(|error| StartError::Directory(config, error))?;
    let stop = drain.accepting().clone();
    tokio::spawn(authority.clone().keep_current(run.ca_poll, metrics, stop));
    Ok(Base {
        authority,
        judge: tokens.into(),
        settings,
        cluster: None,
        machines: Some(machines),
    })
}

/// With Kubernetes: everything is an object. The signer and the configuration are waited for
/// side by side.
async fn in_cluster(
    run: &Run,
    parts: Parts,
    kubeconfig: Option<PathBuf>,
    health: &Health,
    drain: &Drain,
) -> Result<Base, StartError> {
    let connection = cluster::connect(kubeconfig.as_deref()).await?;
    let mut versions = mesh_config::versions(&connection, &run.namespace, health);
    let config = mesh_config::first(&mut versions, health).await;
    let mut settings = run.settings();
    config.lay_over(&mut settings);
    // Replicas would not give the same ones.
    settings.automatic_addresses = Automatic::FromStatus;
    drain.spawn({
        let stop = drain.accepting().clone();
        async move {
            stop.run_until_cancelled(mesh_config::follow(versions, config))
                .await
        }
    });
    let place = ca::cluster::Place {
        namespace: run.namespace.clone(),
        secret: run.write.ca_secret.clone(),
    };
    let client = || connection.client.clone();
    let authority = ca::cluster::open(
        &connection,
        health,
        place,
        settings.trust_domain.as_str().into(),
        lifetimes(run),
        parts.metrics.clone(),
        drain,
    );
    let metrics = parts.metrics.clone();
    let source = Cluster::open(&connection, health.clone(), parts.metrics.clone());
    let kinds = source.kinds();
    let origin = Origin::Cluster(Box::new(source));
    let feed = start_feed(run, parts, origin, settings.clone());
    let (authority, fed) = tokio::join!(authority, feed);
    fed.map_err(|_| StartError::Ended)?;
    let machines = Machines::new(
        Store::cluster(client(), &run.namespace),
        settings.trust_domain.as_str().into(),
        run.machine_absence,
        metrics,
    );
    let reviewer = Reviewer::new(client(), run.token_audiences.clone(), health.clone());
    Ok(Base {
        authority: authority.ok_or(StartError::Ended)?,
        judge: Judge::Cluster(Box::new(reviewer), Box::new(Pods::new(client()))),
        settings,
        cluster: Some((connection, kinds)),
        machines: Some(machines),
    })
}

fn lifetimes(run: &Run) -> Lifetimes {
    Lifetimes {
        default: run.default_cert_ttl,
        longest: run.max_cert_ttl,
    }
}

async fn start_feed(run: &Run, parts: Parts, origin: Origin, settings: Settings) -> io::Result<()> {
    let debounce = Debounce::new(run.debounce_after, run.debounce_max);
    let Parts {
        metrics,
        fill,
        stop,
    } = parts;
    Feed::start(origin, settings, fill, debounce, metrics, stop).await
}

fn exists(views: &Views) -> webhook::Exists {
    let names = views.names.clone();
    Arc::new(move |key| {
        let known = feed::NAMED.contains(&key.kind);
        known.then(|| names.load().contains(key))
    })
}

/// Keeps the entries of machines: as files beside the others, or as objects of the cluster.
fn registrar(
    run: &Run,
    front: &Front,
    cluster: Option<&(Connection, watch::Receiver<Kinds>)>,
) -> Arc<Registrar> {
    let views = &front.views;
    let seen = register::Views {
        groups: views.groups.subscribe(),
        entries: views.entries.clone(),
        catalog: views.catalog.clone(),
        network: views.network.clone(),
    };
    let (grace, id) = (run.machine_grace, &run.cluster_id);
    let Some((connection, kinds)) = cluster else {
        // Without a cluster there is a directory.
        let config = run.config_dir.clone().unwrap_or_default();
        return Registrar::in_directory(&config, grace, id, seen);
    };
    let (client, metrics) = (connection.client.clone(), front.metrics.clone());
    let place = Place::Cluster(Objects::new(client, kinds.clone(), metrics));
    let (connection, health) = (connection.clone(), front.health.clone());
    let replicas = Replicas::several(connection, health, &run.namespace, &run.write.pod_name);
    Registrar::new(place, replicas, grace, id, seen)
}

fn routes(
    authority: &Arc<Authority>,
    authenticator: &Arc<Authenticator>,
    front: &Front,
    registrar: Arc<Registrar>,
) -> Routes {
    let certificates = CertificateService::new(
        authority.clone(),
        authenticator.clone(),
        front.metrics.clone(),
    );
    let certificates =
        IstioCertificateServiceServer::new(certificates).max_decoding_message_size(LARGEST_CSR);
    let discovery = Arc::new(Discovery {
        authenticator: authenticator.clone(),
        catalog: front.views.catalog.clone(),
        connected: front.connected.clone(),
        refusals: front.views.refusals.clone(),
        registrar: registrar.clone(),
        metrics: front.metrics.clone(),
    });
    let mut routes = Routes::new(certificates);
    let presence = PresenceService {
        authenticator: authenticator.clone(),
        registrar,
    };
    let presence = PresenceServer::new(presence).max_decoding_message_size(LARGEST_REPORT);
    routes = routes.add_service(presence);
    let router = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = router.merge(discovery.routes());
    routes.prepare()
}

async fn listen(address: SocketAddr) -> Result<(tokio::net::TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen(address, error);
    let listener = ops::admin::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// One reason, for people.
const LARGEST_REPORT: usize = 16 * 1024;
/// An RSA-8192 request is 4 KiB; nothing honest is longer than this.
const LARGEST_CSR: usize = 64 * 1024;
