//! A machine says that it is there, and how its application does, on a stream of its own (`ambit.machine.v1.Presence`).
//!
//! ```text
//!  joined ─▶ stream ─ report ─▶ control plane: WorkloadEntry, well or not
//!    ▲         │  ◀─ probe ──── of its WorkloadGroup           ([`super::probe`] asks)
//!    └─ 1 … 30 s ┘
//! ```
//! While it cannot be said that the application is well, it is said that it is not: before the first answers of a probe, too. Where
//! nobody asks, it is well.

use std::sync::Arc;
use std::time::Duration;

use api::machine::presence_client::PresenceClient;
use api::machine::{Report, Told};
use hbone::control_plane::Credentials;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;

use super::probe::{self, Rules};
use super::{Joined, until_joined};
use crate::config::Config;

/// Keeps the stream until `stop`.
pub async fn run(config: Arc<Config>, joined: Joined, stop: CancellationToken) {
    let (asked, asks) = watch::channel(None::<Told>);
    let fresh = || Arc::new(watch::Sender::new(probe::unknown()));
    let found = config.health.clone().unwrap_or_else(fresh);
    let finds = found.subscribe();
    let rules = Rules::of(&config);
    tokio::spawn(probe::run(rules, asks, found, stop.clone()));
    let work = async {
        until_joined(Some(joined)).await;
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = talk(&config, &asked, finds.clone(), &mut pause).await;
            if let Err(status) = ended {
                tracing::warn!(code = ?status.code(), error = status.message(), "this machine cannot say that it is there");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    stop.run_until_cancelled(work).await;
}

async fn talk(
    config: &Config,
    asked: &watch::Sender<Option<Told>>,
    mut finds: watch::Receiver<Option<String>>,
    pause: &mut Duration,
) -> Result<(), Status> {
    let unusable = |error: tonic::transport::Error| Status::internal(error.to_string());
    let channel = config
        .dialler()
        .channel(
            &config.xds_address,
            &config.xds_root_ca,
            config.alt_xds_hostname.as_deref(),
        )
        .map_err(unusable)?;
    let caller = Credentials::new(config.tokens(), &config.cluster_id, &config.xds_headers);
    let mut client = PresenceClient::new(InterceptedService::new(channel, caller));
    let (reports, mut queue) = mpsc::channel(1);
    let saying = async {
        loop {
            let mut unhealthy = finds.borrow_and_update().clone().unwrap_or_default();
            unhealthy.truncate(unhealthy.floor_char_boundary(LONGEST));
            if reports.send(Report { unhealthy }).await.is_err() || finds.changed().await.is_err() {
                return;
            }
        }
    };
    let reports = futures_util::stream::poll_fn(move |context| queue.poll_recv(context));
    let hearing = async {
        let mut told = client.keep(reports).await?.into_inner();
        while let Some(told) = told.message().await? {
            *pause = FIRST_PAUSE;
            asked.send_if_modified(|asked| {
                let differs = asked.as_ref() != Some(&told);
                *asked = Some(told);
                differs
            });
        }
        Ok(())
    };
    tokio::select! {
        ended = hearing => ended,
        () = saying => Ok(()),
    }
}

/// Of a reason, in bytes.
const LONGEST: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
