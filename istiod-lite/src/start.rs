//! Puts the parts together, in the order in which they may be used.
//!
//! 1. our own files: token key, signer
//! 2. the configuration, all of it, before anybody can ask
//! 3. ports
//! 4. the tasks that keep certificates and configuration current

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use ops::drain::Drain;
use ops::metrics::Registry;
use ops::ready::Readiness;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::authenticate::Authenticator;
use crate::ca::{Authority, CertificateService, Lifetimes, MaterialError, Source};
use crate::config::Run;
use crate::feed::{Feed, Views};
use crate::metrics::Metrics;
use crate::push::{Connected, Debounce, Discovery};
use crate::serve::{self, Age, Debug, ServerCertificate, ServerError};
use crate::token::{KeyError, Tokens};
use crate::world::Settings;

/// A control plane that serves.
pub struct Running {
    /// Port of gRPC over TLS.
    pub grpc: SocketAddr,
    /// Port of gRPC in the clear, if asked for.
    pub plaintext: Option<SocketAddr>,
    /// Port of metrics and debug.
    pub monitoring: SocketAddr,
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
    Directory(std::path::PathBuf, io::Error),
    /// The key of the tokens.
    #[error(transparent)]
    Tokens(#[from] KeyError),
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

/// Starts everything; ends with `drain`.
pub async fn start(run: &Run, drain: &Drain) -> Result<Running, StartError> {
    let state = run.places.state();
    let mut registry = Registry::new("pilot", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::new();
    let (configured, serving) = (readiness.gate("configuration"), readiness.gate("grpc"));

    let tokens = Tokens::open(&state)?;
    let authority = Arc::new(open_authority(run)?);
    metrics.expiries(authority.expiries());

    // Its thread ends with `drain`, and with the runtime that holds the guard.
    let stop = drain.accepting().child_token();
    let feeding = stop.clone().drop_guard();
    let views = start_feed(run, metrics.clone(), stop).await?;
    configured.open();

    let connected = Arc::new(Connected::default());
    let authenticator = Arc::new(Authenticator {
        tokens,
        roster: views.roster.clone(),
        trust_domain: run.trust_domain.as_str().into(),
        cluster: run.cluster_id.clone(),
        trusted_nodes: run.trusted_nodes(),
    });
    let routes = routes(&authority, &authenticator, &views, &connected, &metrics);
    let certificate = ServerCertificate::new(authority.clone(), &run.names())?;

    let age = Age {
        most: run.max_connection_age,
        ..Age::default()
    };
    let (tls, grpc) = listen(run.listen_grpc).await?;
    drain.spawn(serve::grpc_tls(
        tls,
        certificate.config()?,
        routes.clone(),
        age,
        drain.clone(),
    ));
    let mut plaintext = None;
    if let Some(address) = run.listen_plaintext {
        let (listener, address) = listen(address).await?;
        drain.spawn(serve::grpc_plain(listener, routes, age, drain.clone()));
        plaintext = Some(address);
    }
    serving.open();

    let (listener, monitoring) = listen(run.listen_monitoring).await?;
    let debug = run.debug.then(|| Debug {
        connected: connected.clone(),
        catalog: views.catalog.clone(),
        faults: views.faults.clone(),
    });
    let doors = serve::monitoring(Arc::new(registry), readiness, debug);
    let now = drain.now().clone();
    let stop = drain.accepting().clone();
    // Metrics are read to the last: what happens while draining is worth seeing.
    tokio::spawn(ops::admin::serve(listener, doors, now));
    let ending = stop.clone();
    tokio::spawn(async move {
        ending.cancelled().await;
        serving.close();
        drop(feeding);
    });
    tokio::spawn(certificate.keep_current(run.default_cert_ttl / 2, stop.clone()));
    tokio::spawn(
        authority
            .clone()
            .keep_current(run.ca_poll, metrics.clone(), stop),
    );
    Ok(Running {
        grpc,
        plaintext,
        monitoring,
        metrics,
        views,
        authority,
        connected,
    })
}

fn open_authority(run: &Run) -> Result<Authority, MaterialError> {
    let source = match &run.ca_dir {
        Some(directory) => Source::PluggedIn(directory.clone()),
        None => Source::Own(run.places.state()),
    };
    let lifetimes = Lifetimes {
        default: run.default_cert_ttl,
        longest: run.max_cert_ttl,
    };
    Authority::open(source, run.trust_domain.as_str().into(), lifetimes)
}

async fn start_feed(
    run: &Run,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<Views, StartError> {
    let settings = Settings {
        cluster_id: run.cluster_id.clone(),
        trust_domain: run.trust_domain.clone(),
        cluster_domain: run.cluster_domain.clone(),
        root_namespace: run.namespace.clone(),
        dry_run: run.dry_run_policies,
        ..Settings::default()
    };
    let debounce = Debounce::new(run.debounce_after, run.debounce_max);
    let (directory, state) = (run.places.config_dir.clone(), run.places.state());
    let started = Feed::start(directory.clone(), state, settings, debounce, metrics, stop).await;
    started.map_err(|error| StartError::Directory(directory, error))
}

fn routes(
    authority: &Arc<Authority>,
    authenticator: &Arc<Authenticator>,
    views: &Views,
    connected: &Arc<Connected>,
    metrics: &Arc<Metrics>,
) -> Routes {
    let certificates =
        CertificateService::new(authority.clone(), authenticator.clone(), metrics.clone());
    let certificates =
        IstioCertificateServiceServer::new(certificates).max_decoding_message_size(LARGEST_CSR);
    let discovery = Arc::new(Discovery {
        authenticator: authenticator.clone(),
        catalog: views.catalog.clone(),
        connected: connected.clone(),
        metrics: metrics.clone(),
    });
    let mut routes = Routes::new(certificates);
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

/// An RSA-8192 request is 4 KiB; nothing honest is longer than this.
const LARGEST_CSR: usize = 64 * 1024;
