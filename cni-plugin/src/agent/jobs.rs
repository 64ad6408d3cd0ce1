//! What is done to a pod, step by step. Each job runs beside those of other pods and has an end.
//!
//! **Enrol**: listeners, then rules, then the annotation. Nothing is redirected before there is someone
//! to take it, and no peer tunnels before there is someone to unwrap it. (Istio writes the rules first.)
//! A job that fails leaves the pod as it was.
//!
//! **Release** goes the other way: annotation, a pause for the news to spread, redirects; then
//! ztunnel lets go, connections that go through it get their time and are ended, and the last rules are removed.
//! A living pod that cannot be found keeps its rules, so it keeps everything else too.
//!
//! **Forget**: the pod is gone, only its traces elsewhere are removed.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use api::k8s::labels;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::connections;
use super::host::Host;
use super::mark::{MarkError, Marker};
use super::netns::{Netns, NetnsError, NotPods};
use super::nft::{Nft, NftError};
use super::plan::Stage;
use super::pod::{Phase, Pod, Unreadable};
use super::processes::Finder;
use super::routes;
use super::zds::{ZdsError, Ztunnels};
use crate::rules::{self, Capture, Exempt};

/// What the jobs act with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) config: Config,
    pub(crate) ztunnels: Ztunnels,
    pub(crate) nft: Nft,
    pub(crate) host: Host,
    pub(crate) marker: Marker,
    pub(crate) not_pods: NotPods,
    pub(crate) finder: Finder,
}

/// What a pod's annotation is: `None` if that is not certain, `Some(None)` if it has none.
pub(crate) type Marked = Option<Option<String>>;

/// The pod a job is about, as it was when the job began.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) pod: Arc<Pod>,
    pub(crate) netns: Option<Arc<Netns>>,
    /// Its addresses, if the runtime has told us.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) stage: Stage,
    /// Whether ztunnel has it already and need not be told.
    pub(crate) announced: bool,
    /// A runtime waits: the pod's containers have not been started yet.
    pub(crate) asked: bool,
    /// Its rules are to stay as they are.
    pub(crate) rules_stand: bool,
    /// Its UDP is captured.
    pub(crate) udp: bool,
    /// Its annotation.
    pub(crate) marked: Marked,
    /// Whether this job has begun to change the pod.
    pub(crate) touched: bool,
    /// Set before ztunnels are told to let go of it: one that comes after them, while connections have their time still, is
    /// not to take it up, for nobody would tell it again.
    pub(crate) let_go: Arc<AtomicBool>,
}

/// How far a job got.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) stage: Stage,
    pub(crate) announced: bool,
    pub(crate) netns: Option<Arc<Netns>>,
    /// Its annotation now.
    pub(crate) marked: Marked,
    pub(crate) outcome: Result<(), JobError>,
}

/// Why a job did not get to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error("no process of the pod is found, so its network namespace is not known")]
    NoNetns,
    #[error("the pod's network namespace is gone")]
    NetnsGone,
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Ztunnel(#[from] ZdsError),
    #[error("routes in the pod: {0}")]
    Routes(#[source] io::Error),
    #[error(transparent)]
    Rules(#[from] NftError),
    #[error("the namespace of the pod's oldest process has none of the pod's addresses")]
    NotItsAddress,
    #[error("the pod's annotation: {0}")]
    Annotation(#[from] MarkError),
    #[error("it took longer than {limit} s", limit = ENROL_DEADLINE.as_secs())]
    Slow,
    #[error("it ended without a result")]
    Died,
    #[error("something else came up")]
    Interrupted,
}

impl Tools {
    /// Brings a pod into the mesh.
    pub(crate) async fn enrol(&self, mut subject: Subject) -> Done {
        let before = subject.stage;
        let steps = timeout(ENROL_DEADLINE, self.enrol_steps(&mut subject)).await;
        let outcome = steps.unwrap_or(Err(JobError::Slow));
        let stage = match &outcome {
            Ok(()) => Stage::In,
            // What was in place stays in place: a refresh that fails takes nothing away.
            Err(_) if before == Stage::In => Stage::In,
            Err(JobError::NoNetns | JobError::NetnsGone | JobError::NotItsAddress) => before,
            // It is captured, only the news is missing. Taking a running pod out again until the news can
            // be written would interrupt it; a pod that has not started has nothing to lose.
            Err(JobError::Annotation(_)) if !subject.asked => Stage::Pending,
            Err(_) => {
                self.undo(&mut subject).await;
                Stage::Pending
            }
        };
        subject.done(stage, outcome)
    }

    async fn enrol_steps(&self, subject: &mut Subject) -> Result<(), JobError> {
        let netns = self.locate(subject).await?;
        let ips = self.addresses(subject, &netns).await?;
        let capture = self.capture(&subject.pod, &ips, subject.udp)?;
        if !subject.announced {
            // Before the answer: a ztunnel that refuses a pod keeps trying, until it is told not to.
            subject.announced = true;
            self.ztunnels.add(&subject.pod, &netns).await?;
        } else if subject.stage != Stage::In && self.ztunnels.is_empty() {
            return Err(ZdsError::NoZtunnel.into());
        }
        subject.touched = true;
        if !subject.rules_stand {
            let (v4, v6) = (capture.v4, capture.v6);
            netns
                .enter(move || routes::install(v4, v6))
                .await?
                .map_err(JobError::Routes)?;
            self.nft.load(Some(&netns), capture.install()).await?;
        }
        self.host.add(&subject.pod.uid, &ips).await;
        self.annotate(subject, Some(labels::REDIRECTION_ENABLED))
            .await
    }

    /// Takes back what a failed enrolment may have begun, and says that it is being worked on.
    async fn undo(&self, subject: &mut Subject) {
        if let Some(netns) = subject.netns.as_ref().filter(|_| subject.touched) {
            if let Err(error) = self.clear(netns).await {
                tracing::warn!(pod = %subject.pod, %error, "the pod could not be cleared after a failed enrolment");
            }
            self.host.remove(&subject.pod.uid).await;
        }
        if std::mem::take(&mut subject.announced) {
            self.ztunnels.del(&subject.pod.uid).await;
        }
        let pending = self.annotate(subject, Some(labels::REDIRECTION_PENDING));
        if let Err(error) = pending.await {
            tracing::warn!(pod = %subject.pod, %error, "the pod could not be annotated as pending");
        }
    }

    /// Brings a living pod out of the mesh. `cancel` interrupts where it only waits. `leaving`: the whole mesh
    /// leaves the node.
    pub(crate) async fn release(
        &self,
        mut subject: Subject,
        cancel: CancellationToken,
        leaving: bool,
    ) -> Done {
        let released = self.release_steps(&mut subject, &cancel, leaving).await;
        let outcome = match released {
            // With the last process went what there was to restore.
            Err(JobError::Netns(_)) if subject.pod.phase == Phase::Ended => Ok(()),
            other => other,
        };
        let stage = match &outcome {
            Ok(()) => Stage::Out,
            // It was not found, and nothing was done.
            Err(JobError::NoNetns | JobError::NetnsGone | JobError::NotItsAddress) => subject.stage,
            Err(_) => Stage::Pending,
        };
        subject.done(stage, outcome)
    }

    async fn release_steps(
        &self,
        subject: &mut Subject,
        cancel: &CancellationToken,
        leaving: bool,
    ) -> Result<(), JobError> {
        let pod = subject.pod.clone();
        let netns = match self.locate(subject).await {
            Ok(netns) => Some(netns),
            Err(_) if pod.phase == Phase::Ended => None,
            // Listeners must not go while the redirects to them stay.
            Err(error) => return Err(error),
        };
        match self.annotate(subject, None).await {
            // The right to write it may have gone with the control plane, which was its only reader.
            Err(error) if leaving => {
                tracing::warn!(%pod, %error, "the pod leaves the mesh with its annotation");
            }
            other => other?,
        }
        self.host.remove(&pod.uid).await;
        if subject.stage == Stage::In {
            wait(self.config.release_pause, cancel).await?;
        }
        if let Some(netns) = &netns {
            self.nft.load(Some(netns), rules::release()).await?;
        }
        subject.let_go.store(true, Ordering::SeqCst);
        self.ztunnels.del(&pod.uid).await;
        subject.announced = false;
        let Some(netns) = netns else { return Ok(()) };
        let drain = self.config.release_drain;
        let most = if leaving {
            self.config.uninstall_deadline / 2
        } else {
            drain
        };
        self.drain(subject, &netns, drain.min(most), cancel).await?;
        self.clear(&netns).await
    }

    /// Waits until no connection needs the marks any more; ends those that have not when their time is up.
    async fn drain(
        &self,
        subject: &Subject,
        netns: &Arc<Netns>,
        time: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), JobError> {
        let own = netns.addresses().await?;
        let end = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < end {
            let own = own.clone();
            if netns.enter(move || connections::count(&own)).await? == 0 {
                return Ok(());
            }
            wait(DRAIN_STEP, cancel).await?;
        }
        let ended = netns.enter(move || connections::end(&own)).await?;
        match ended {
            Ok(0) => {}
            Ok(connections) => {
                tracing::warn!(pod = %subject.pod, connections, "they outlived the time to leave the mesh and were reset");
            }
            Err(error) => hangs(&subject.pod, &error),
        }
        Ok(())
    }

    /// Removes the traces of a pod that no longer exists. Its namespace goes with it; should it
    /// not, its rules stay: what was in the mesh does not go on outside of it.
    ///
    /// `succeeded`: another pod has its name by now, and whatever status is found there.
    pub(crate) async fn forget(&self, subject: Subject, succeeded: bool) -> Done {
        let pod = &subject.pod;
        if !succeeded && let Err(error) = self.marker.forget(pod).await {
            tracing::warn!(%pod, %error, "the status of a deleted pod could not be removed");
        }
        self.host.remove(&pod.uid).await;
        self.ztunnels.del(&pod.uid).await;
        Done {
            stage: Stage::Out,
            announced: false,
            netns: None,
            marked: Some(None),
            outcome: Ok(()),
        }
    }

    /// Where the pod's namespace is: as it was told, or found by the pod's processes.
    async fn locate(&self, subject: &mut Subject) -> Result<Arc<Netns>, JobError> {
        if let Some(netns) = subject
            .netns
            .as_ref()
            .filter(|netns| netns.is_still_there())
        {
            return Ok(netns.clone());
        }
        let lost = if subject.netns.is_some() {
            JobError::NetnsGone
        } else {
            JobError::NoNetns
        };
        let pod = &subject.pod;
        let netns = self.finder.find(&pod.uid).await;
        let netns = netns.map(Arc::new).ok_or(lost)?;
        if !self.is_home_of(pod, &netns).await {
            return Err(JobError::NotItsAddress);
        }
        subject.netns = Some(netns.clone());
        Ok(netns)
    }

    /// Whether a namespace that was found has an address of the pod, if one is known: a pod in the
    /// namespace of another would speak in the other's name.
    pub(crate) async fn is_home_of(&self, pod: &Pod, netns: &Arc<Netns>) -> bool {
        if pod.ips.is_empty() {
            return true;
        }
        let own = netns.addresses().await.unwrap_or_default();
        pod.ips.iter().any(|ip| own.contains(ip))
    }

    /// The pod's addresses: from the runtime, from its status, or from its interfaces.
    async fn addresses(
        &self,
        subject: &Subject,
        netns: &Arc<Netns>,
    ) -> Result<Vec<IpAddr>, JobError> {
        for known in [&subject.ips, &subject.pod.ips] {
            if !known.is_empty() {
                return Ok(known.clone());
            }
        }
        Ok(netns.addresses().await?)
    }

    fn capture(&self, pod: &Pod, ips: &[IpAddr], udp: bool) -> Result<Capture, Unreadable> {
        let unknown = ips.is_empty();
        let exempt = match self.config.capture_exclusions {
            true => pod.exempt()?,
            false => Exempt::default(),
        };
        Ok(Capture {
            v4: unknown || ips.iter().any(IpAddr::is_ipv4),
            v6: self.config.ipv6 && (unknown || ips.iter().any(IpAddr::is_ipv6)),
            dns: pod.captures_dns(self.config.dns_capture),
            udp,
            inbound: !pod.bypasses_inbound(),
            interfaces: pod.virtual_interfaces()?,
            exempt,
            probes: self.config.probes(),
        })
    }

    async fn clear(&self, netns: &Arc<Netns>) -> Result<(), JobError> {
        self.nft.load(Some(netns), rules::remove()).await?;
        netns.enter(routes::remove).await?.map_err(JobError::Routes)
    }

    async fn annotate(&self, subject: &mut Subject, value: Option<&str>) -> Result<(), JobError> {
        if subject
            .marked
            .as_ref()
            .is_some_and(|marked| marked.as_deref() == value)
        {
            return Ok(());
        }
        // A write without an answer may have been done.
        subject.marked = None;
        self.marker.set(&subject.pod, value).await?;
        subject.marked = Some(value.map(str::to_owned));
        Ok(())
    }
}

impl Subject {
    fn done(self, stage: Stage, outcome: Result<(), JobError>) -> Done {
        Done {
            stage,
            announced: self.announced,
            netns: self.netns,
            marked: self.marked,
            outcome,
        }
    }
}

/// Connections could not be ended. A kernel that cannot is told of once.
fn hangs(pod: &Pod, error: &io::Error) {
    static MISSING: Once = Once::new();
    let say = || {
        tracing::warn!(%pod, %error, "connections that outlived the time to leave the mesh could not be reset: they hang until an end gives up");
    };
    if connections::is_missing(error) {
        MISSING.call_once(|| {
            say();
            tracing::warn!("the kernel lacks CONFIG_INET_DIAG_DESTROY or its modules tcp_diag and inet_diag; this is not told again");
        });
    } else {
        say();
    }
}

async fn wait(time: Duration, cancel: &CancellationToken) -> Result<(), JobError> {
    tokio::select! {
        () = cancel.cancelled() => Err(JobError::Interrupted),
        () = sleep(time) => Ok(()),
    }
}

/// Above ztunnel's 5 s to answer and nft's 5 s.
const ENROL_DEADLINE: Duration = Duration::from_secs(12);
const DRAIN_STEP: Duration = Duration::from_millis(200);
