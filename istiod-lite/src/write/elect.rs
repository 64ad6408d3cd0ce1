//! Leads by a Lease: a writer runs here only while we hold it.
//!
//! 1. the Lease is followed; what to do is decided purely                ([`super::lease`])
//! 2. it is written with the version we know: of two replicas one wins
//! 3. who holds it runs the writer; who loses it drops the writer first, then goes on waiting
//! 4. at the end it is handed back, so that the next one need not wait for its life to end

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use api::k8s::server::Refusal;
use futures_util::StreamExt as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::lease::{GIVE_UP, LIFE, Seen, Step, evaluate};
use super::{follow, said};
use crate::cluster::{Connection, Health};

/// A Lease to lead by.
pub(super) struct Ballot {
    pub(super) leases: Api<Lease>,
    pub(super) name: &'static str,
    /// Unique to this process: a pod that was restarted is another.
    pub(super) me: String,
}

/// Whether we lead, as far as we know.
struct Standing {
    seen: Option<Seen>,
    object: Option<Lease>,
    renewed: Option<Instant>,
    /// A request failed; not earlier than this again.
    not_before: Instant,
    said: String,
}

/// Runs `write` whenever we lead, until `stop`; then hands the Lease back. `leading` is told.
pub(super) async fn lead<W, F>(
    ballot: Ballot,
    connection: Connection,
    health: Health,
    stop: CancellationToken,
    leading: impl Fn(bool),
    write: W,
) where
    W: Fn() -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let watched = Api::namespaced(
        connection.watching,
        ballot.leases.namespace().unwrap_or_default(),
    );
    let changes = follow::object(watched, ballot.name, &health, LEASES);
    let mut changes = pin!(changes);
    let mut standing = Standing::new();
    let mut writer: Option<JoinHandle<()>> = None;
    // Nothing is decided before the Lease was seen, or seen not to be there.
    tokio::select! {
        () = stop.cancelled() => return,
        Some(lease) = changes.next() => standing.see(lease),
    }
    while !stop.is_cancelled() {
        let now = Instant::now();
        let step = evaluate(standing.seen.as_ref(), standing.renewed, &ballot.me, now);
        let pause = match step {
            Step::Wait(pause) => pause,
            Step::Yield => {
                end(writer.take()).await;
                leading(false);
                standing.renewed = None;
                tracing::warn!(lease = ballot.name, "no longer leading");
                continue;
            }
            Step::Acquire | Step::Renew if now < standing.not_before => standing.not_before - now,
            Step::Acquire | Step::Renew => {
                let led = standing.renewed.is_some();
                standing.write(&ballot, &health, &stop).await;
                if !led && standing.renewed.is_some() {
                    tracing::info!(lease = ballot.name, "leading");
                    leading(true);
                    writer = Some(tokio::spawn(write()));
                }
                continue;
            }
        };
        // While it leads, the end of its time must not be slept through.
        let left = standing
            .renewed
            .map(|renewed| (renewed + GIVE_UP).saturating_duration_since(now));
        tokio::select! {
            () = stop.cancelled() => {}
            Some(lease) = changes.next() => standing.see(lease),
            () = sleep(left.map_or(pause, |left| pause.min(left))) => {}
            () = ended(writer.as_mut()) => {
                tracing::error!(lease = ballot.name, "the writer ended by itself; another replica may try");
                writer = None;
                leading(false);
                standing.release(&ballot).await;
                standing.not_before = Instant::now() + LIFE;
            }
        }
    }
    end(writer).await;
    leading(false);
    if standing.renewed.is_some() {
        standing.release(&ballot).await;
    }
}

async fn ended(writer: Option<&mut JoinHandle<()>>) {
    match writer {
        Some(writer) => drop(writer.await),
        None => std::future::pending().await,
    }
}

/// After this nothing of the writer runs any more.
async fn end(writer: Option<JoinHandle<()>>) {
    if let Some(writer) = writer {
        writer.abort();
        let _ = writer.await;
    }
}

impl Standing {
    fn new() -> Self {
        Self {
            seen: None,
            object: None,
            renewed: None,
            not_before: Instant::now(),
            said: String::new(),
        }
    }

    fn see(&mut self, lease: Option<Lease>) {
        let now = Instant::now();
        self.seen = lease
            .as_ref()
            .map(|lease| Seen::new(lease, self.seen.as_ref(), now));
        self.object = lease;
    }

    /// Acquires or renews.
    async fn write(&mut self, ballot: &Ballot, health: &Health, stop: &CancellationToken) {
        let began = Instant::now();
        let limit = self.renewed.map_or(REQUEST, |renewed| {
            REQUEST.min((renewed + GIVE_UP).saturating_duration_since(began))
        });
        let fresh = held(self.object.as_ref(), ballot);
        let put = put(ballot, &fresh);
        let answer = tokio::select! {
            answer = timeout(limit, put) => answer,
            // It may have arrived: it is handed back as if it had.
            () = stop.cancelled() => {
                self.renewed.get_or_insert(began);
                return;
            }
        };
        match answer {
            Ok(Ok(lease)) => {
                self.see(Some(lease));
                self.renewed = Some(began);
                self.said.clear();
            }
            // Somebody else wrote it; we will hear what.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => self.failed(None),
            Ok(Err(error @ kube::Error::Api(_))) => self.failed(Some((ballot, said(&error)))),
            // All Leases and watches have this trouble at once: it is said once for them.
            Ok(Err(error)) => {
                health.failed_to("update", LEASES, Refusal::of(&error));
                self.failed(None);
            }
            Err(_) if health.is_unreachable() => self.failed(None),
            Err(_) => self.failed(Some((ballot, "no answer in time".to_owned()))),
        }
    }

    fn failed(&mut self, error: Option<(&Ballot, String)>) {
        self.not_before = Instant::now() + RETRY;
        let Some((ballot, error)) = error else { return };
        if error != self.said {
            tracing::warn!(lease = ballot.name, error, "the Lease cannot be written");
            self.said = error;
        }
    }

    /// Nobody holds it any more, if we did.
    async fn release(&mut self, ballot: &Ballot) {
        self.renewed = None;
        // Ours to release only if it is still ours; a version that was renewed meanwhile is refused.
        let latest = match timeout(REQUEST, ballot.leases.get_opt(ballot.name)).await {
            Ok(Ok(Some(lease))) => lease,
            Ok(Ok(None)) | Ok(Err(_)) | Err(_) => return,
        };
        let mut fresh = latest;
        let Some(spec) = &mut fresh.spec else { return };
        if spec.holder_identity.as_deref() != Some(&ballot.me) {
            return;
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        match timeout(REQUEST, put(ballot, &fresh)).await {
            Ok(Ok(lease)) => {
                self.see(Some(lease));
                tracing::info!(lease = ballot.name, "handed back");
            }
            Ok(Err(error)) => {
                tracing::warn!(lease = ballot.name, error = said(&error), "not handed back")
            }
            Err(_) => tracing::warn!(lease = ballot.name, "not handed back: no answer"),
        }
    }
}

/// The Lease with our name in it.
fn held(before: Option<&Lease>, ballot: &Ballot) -> Lease {
    let mut lease = before.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(ballot.name.to_owned()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    let now = MicroTime(Timestamp::now());
    let before = lease.spec.take().unwrap_or_default();
    let same = before.holder_identity.as_deref() == Some(&ballot.me);
    let transitions = before.lease_transitions.unwrap_or_default();
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(ballot.me.clone()),
        lease_duration_seconds: i32::try_from(LIFE.as_secs()).ok(),
        acquire_time: before.acquire_time.filter(|_| same).or(Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(if same {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..LeaseSpec::default()
    });
    lease
}

/// Created, or replaced if nobody wrote it since.
async fn put(ballot: &Ballot, lease: &Lease) -> Result<Lease, kube::Error> {
    let ours = PostParams::default();
    if lease.metadata.resource_version.is_some() {
        ballot.leases.replace(ballot.name, &ours, lease).await
    } else {
        ballot.leases.create(&ours, lease).await
    }
}

/// A request about a Lease that takes longer is as good as lost.
const LEASES: &str = "leases.coordination.k8s.io";
const REQUEST: Duration = Duration::from_secs(3);
/// After one that failed.
const RETRY: Duration = Duration::from_secs(1);
