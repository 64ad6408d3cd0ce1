//! One pod, as the owner knows it.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use super::eligible::Excluded;
use super::jobs::{Done, JobError, Subject};
use super::netns::Netns;
use super::plan::{Due, Facts, Stage, Verb};
use super::pod::{Phase, Pod, Uid};

/// The way back to a runtime.
pub(crate) type Reply = oneshot::Sender<Result<(), String>>;

/// One pod.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) present: bool,
    pub(crate) verdict: Result<(), Excluded>,
    pub(crate) netns: Option<Arc<Netns>>,
    /// From the runtime; empty if it has not been heard.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) stage: Stage,
    pub(crate) due: Due,
    /// Whether ztunnel was told, or will find the pod in its snapshot.
    pub(crate) announced: bool,
    pub(crate) waiting: Vec<Reply>,
    pub(crate) job: Option<Job>,
    pub(crate) failures: u32,
    pub(crate) retry: Option<Key>,
}

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) verb: Verb,
    pub(crate) cancel: CancellationToken,
    /// Who gets to hear how it ended.
    pub(crate) waiting: Vec<Reply>,
}

impl Entry {
    pub(crate) fn new(pod: Pod) -> Self {
        Self {
            pod: Arc::new(pod),
            present: true,
            verdict: Err(Excluded::NotSelected),
            netns: None,
            ips: Vec::new(),
            stage: Stage::Out,
            due: Due::No,
            announced: false,
            waiting: Vec::new(),
            job: None,
            failures: 0,
            retry: None,
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts {
            present: self.present,
            wanted: self.verdict.is_ok(),
            stage: self.stage,
            due: self.due,
            reachable: self.netns.is_some() || self.pod.phase == Phase::Running,
            waits: self.retry.is_some(),
        }
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject {
            pod: self.pod.clone(),
            netns: self.netns.clone(),
            ips: self.ips.clone(),
            stage: self.stage,
            announced: self.announced && self.due != Due::Announce,
            touched: false,
        }
    }

    pub(crate) fn decide(&mut self, verdict: Result<(), Excluded>) {
        if self.verdict != verdict {
            tracing::debug!(pod = %self.pod, ?verdict, "whether it belongs into the mesh");
        }
        self.verdict = verdict;
        let wrong = if verdict.is_ok() {
            Verb::Release
        } else {
            Verb::Enrol
        };
        if self.job.as_ref().is_some_and(|job| job.verb == wrong) {
            self.interrupt();
        }
    }

    /// The next attempt need not wait for its time.
    pub(crate) fn hurry(&mut self, retries: &mut DelayQueue<Uid>) {
        if let Some(key) = self.retry.take() {
            retries.try_remove(&key);
            if self.stage == Stage::In {
                self.due = self.due.max(Due::Refresh);
            }
        }
    }

    pub(crate) fn interrupt(&self) {
        self.job.iter().for_each(|job| job.cancel.cancel());
    }

    pub(crate) fn interrupt_unless(&self, verb: Verb) {
        if self.job.as_ref().is_some_and(|job| job.verb != verb) {
            self.interrupt();
        }
    }

    /// The runtime made the pod a new sandbox: nothing that was done counts in there.
    pub(crate) fn moved_to(&mut self, netns: Netns) {
        if self
            .netns
            .as_ref()
            .is_none_or(|known| known.id() != netns.id())
        {
            self.stage = if self.stage == Stage::Out {
                Stage::Out
            } else {
                Stage::Pending
            };
            self.announced = false;
        }
        self.netns = Some(Arc::new(netns));
    }

    pub(crate) fn answer(&mut self, answer: Result<(), String>) {
        for reply in self.waiting.drain(..) {
            let _ = reply.send(answer.clone());
        }
    }

    /// A job's end; returns who waits for it. If the runtime has named another namespace meanwhile,
    /// that one counts.
    pub(crate) fn take_in(&mut self, done: &Done, job: Job) -> Vec<Reply> {
        let same = match (&self.netns, &done.netns) {
            (Some(known), Some(used)) => known.id() == used.id(),
            _ => true,
        };
        if same {
            (self.stage, self.announced) = (done.stage, done.announced);
            if done.netns.is_some() || job.verb == Verb::Forget {
                self.netns.clone_from(&done.netns);
            }
        }
        if matches!(done.outcome, Err(JobError::NetnsGone)) {
            self.netns = None; // the runtime will name the next one
        }
        self.failures = if done.outcome.is_ok() {
            0
        } else {
            self.failures.saturating_add(1)
        };
        job.waiting
    }
}
