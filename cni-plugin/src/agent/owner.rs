//! The one owner of what the agent knows: select → [`Action`] → apply.
//!
//! After everything that was told, [`Owner::step`] asks [`plan::next`] what to do with the pods
//! concerned and starts a job. A pod has at most one job; what comes in meanwhile is noted
//! and looked at when the job is done.

mod learn;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s::dir::{Change, Directory};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;

use super::door::Asked;
use super::eligible::Eligibility;
use super::entry::{Entry, Job};
use super::jobs::{Done, JobError, Tools};
use super::metrics::{Event, Metrics};
use super::netns::Netns;
use super::plan::{self, Due, Stage, Verb};
use super::pod::{Pod, PodName, Uid, Words};
use super::store::{Record, Store};
use super::zds::{Ask, Known};

/// Everything the agent knows.
#[derive(Debug)]
pub(crate) struct Owner {
    tools: Arc<Tools>,
    store: Store,
    metrics: Metrics,
    eligibility: Eligibility,
    namespaces: HashMap<Arc<str>, Words>,
    pods: HashMap<Uid, Entry>,
    names: HashMap<PodName, Uid>,
    directory: Option<Directory>,
    /// Questions about pods whose object has not been seen yet.
    early: Vec<(Asked, Instant)>,
    jobs: JoinSet<Done>,
    running: HashMap<Id, Uid>,
    retries: DelayQueue<Uid>,
}

enum Action {
    Changed(Vec<Change>),
    Asked(Asked),
    Ztunnel(Ask),
    Done(Id, Result<Done, JoinError>),
    Retry(Uid),
    TooEarly,
}

impl Owner {
    pub(crate) fn new(tools: Arc<Tools>, store: Store, metrics: Metrics) -> Self {
        let eligibility = Eligibility {
            selectors: tools.config.selectors(),
            excluded: tools.config.exclude_namespaces.iter().cloned().collect(),
        };
        Self {
            tools,
            store,
            metrics,
            eligibility,
            namespaces: HashMap::new(),
            pods: HashMap::new(),
            names: HashMap::new(),
            directory: None,
            early: Vec::new(),
            jobs: JoinSet::new(),
            running: HashMap::new(),
            retries: DelayQueue::new(),
        }
    }

    /// Runs until `stop`, then lets the jobs under way come to an end.
    pub(crate) async fn run(
        mut self,
        mut ztunnels: mpsc::Receiver<Ask>,
        mut plugins: mpsc::Receiver<Asked>,
        stop: CancellationToken,
    ) {
        let Some(mut directory) = self.directory.take() else {
            return;
        };
        self.step_all();
        loop {
            let too_early = self.early.iter().map(|(_, until)| *until).min();
            let action = tokio::select! {
                () = stop.cancelled() => break,
                changes = directory.next() => Action::Changed(changes),
                Some(asked) = plugins.recv() => Action::Asked(asked),
                Some(ask) = ztunnels.recv() => Action::Ztunnel(ask),
                Some(done) = self.jobs.join_next_with_id() => match done {
                    Ok((id, done)) => Action::Done(id, Ok(done)),
                    Err(error) => Action::Done(error.id(), Err(error)),
                },
                Some(expired) = std::future::poll_fn(|context| self.retries.poll_expired(context)),
                    if !self.retries.is_empty() => Action::Retry(expired.into_inner()),
                () = until(too_early) => Action::TooEarly,
            };
            self.apply(action);
        }
        for entry in self.pods.values() {
            entry.job.iter().for_each(|job| job.cancel.cancel());
        }
        let finish = async { while self.jobs.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FINISH, finish).await;
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Changed(changes) => {
                for change in changes {
                    self.learn(change);
                }
                self.step_all();
                for (asked, until) in std::mem::take(&mut self.early) {
                    self.asked(asked, until);
                }
            }
            Action::Asked(asked) => self.asked(asked, Instant::now() + EARLY),
            Action::Ztunnel(Ask::Snapshot(reply)) => drop(reply.send(self.snapshot())),
            Action::Ztunnel(Ask::Taken(uids)) => self.taken(&uids),
            Action::Done(id, done) => self.done(id, done),
            Action::Retry(uid) => {
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.hurry(&mut self.retries);
                    self.step(&uid);
                }
            }
            Action::TooEarly => {
                let now = Instant::now();
                let (over, still): (Vec<_>, Vec<_>) = std::mem::take(&mut self.early)
                    .into_iter()
                    .partition(|(_, until)| *until <= now);
                self.early = still;
                for (Asked { event, reply }, _) in over {
                    let _ = reply.send(Err(format!(
                        "failed to get pod {}/{}: no such pod of node {} is known",
                        event.pod_namespace, event.pod_name, self.tools.config.node_name
                    )));
                }
            }
        }
    }

    // ---- what the runtime asks

    fn asked(&mut self, asked: Asked, until: Instant) {
        let name = PodName::new(&asked.event.pod_namespace, &asked.event.pod_name);
        let Some(uid) = self.names.get(&name).cloned() else {
            self.early.push((asked, until));
            return;
        };
        let Some(entry) = self.pods.get_mut(&uid) else {
            return;
        };
        let Asked { event, reply } = asked;
        entry.ips = event.ips.iter().map(|ip| ip.address.ip).collect();
        if !event.netns.is_empty() {
            match Netns::open(&self.tools.config.on_host(&event.netns)) {
                Ok(netns) => entry.moved_to(netns),
                Err(error) if entry.verdict.is_ok() => {
                    tracing::warn!(pod = %entry.pod, %error, "the runtime named a network namespace that cannot be used");
                    let _ = reply.send(Err(error.to_string()));
                    return;
                }
                Err(_) => {}
            }
        }
        match entry.verdict {
            Ok(()) => {
                entry.due = Due::Announce;
                entry.waiting.push(reply);
                entry.interrupt_unless(Verb::Enrol);
                self.step(&uid);
            }
            Err(why) => {
                tracing::debug!(pod = %entry.pod, %why, "a pod starts outside of the mesh");
                self.save(&uid);
                let _ = reply.send(Ok(()));
            }
        }
    }

    // ---- what ztunnel asks

    fn snapshot(&self) -> Vec<Known> {
        let inside = |entry: &&Entry| {
            let wanted = entry.present && entry.verdict.is_ok();
            (wanted && (entry.netns.is_some() || entry.stage == Stage::In))
                || (entry.present && entry.announced)
        };
        let mut known: Vec<Known> = self
            .pods
            .values()
            .filter(inside)
            .map(|entry| Known {
                pod: entry.pod.clone(),
                netns: entry.netns.clone(),
            })
            .collect();
        known.sort_by(|a, b| a.pod.uid.cmp(&b.pod.uid));
        known
    }

    /// A ztunnel is there: what failed for want of one is tried again at once.
    fn taken(&mut self, uids: &[Uid]) {
        for uid in uids {
            if let Some(entry) = self.pods.get_mut(uid).filter(|entry| entry.verdict.is_ok()) {
                entry.announced = true;
            }
        }
        for entry in self.pods.values_mut() {
            entry.hurry(&mut self.retries);
        }
        self.step_all();
    }

    // ---- jobs

    /// A node has a few hundred pods at most; looking at each costs less than keeping lists.
    fn step_all(&mut self) {
        for uid in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.step(&uid);
        }
    }

    fn step(&mut self, uid: &Uid) {
        let Some(entry) = self.pods.get_mut(uid).filter(|entry| entry.job.is_none()) else {
            return;
        };
        if entry.verdict.is_err() {
            entry.due = Due::No;
            entry.answer(Ok(()));
        }
        let Some(verb) = plan::next(entry.facts()) else {
            return;
        };
        if let Some(key) = entry.retry.take() {
            self.retries.try_remove(&key);
        }
        let cancel = CancellationToken::new();
        let subject = entry.subject();
        let succeeded = self.names.contains_key(&entry.pod.pod_name());
        let (tools, token) = (self.tools.clone(), cancel.clone());
        let job = self.jobs.spawn(async move {
            match verb {
                Verb::Enrol => tools.enrol(subject).await,
                Verb::Release => tools.release(subject, token).await,
                Verb::Forget => tools.forget(subject, succeeded).await,
            }
        });
        self.running.insert(job.id(), uid.clone());
        entry.due = Due::No;
        entry.job = Some(Job {
            verb,
            cancel,
            waiting: std::mem::take(&mut entry.waiting),
        });
    }

    fn done(&mut self, id: Id, done: Result<Done, JoinError>) {
        let Some(uid) = self.running.remove(&id) else {
            return;
        };
        let Some(entry) = self.pods.get_mut(&uid) else {
            return;
        };
        let Some(job) = entry.job.take() else { return };
        let done = done.unwrap_or_else(|_| Done {
            stage: Stage::Pending,
            announced: entry.announced,
            netns: entry.netns.clone(),
            outcome: Err(JobError::Died),
        });
        report(&self.metrics, &entry.pod, job.verb, &done.outcome);
        let waiting = entry.take_in(&done, job);
        let delay = match &done.outcome {
            Ok(()) | Err(JobError::Interrupted) => None,
            Err(_) => Some(backoff(entry.failures)),
        };
        if let Some(delay) = delay {
            entry.retry = Some(self.retries.insert(uid.clone(), delay));
        }
        let enrolled = self
            .pods
            .values()
            .filter(|entry| entry.stage == Stage::In)
            .count();
        self.metrics
            .enrolled
            .set(i64::try_from(enrolled).unwrap_or(i64::MAX));
        // First remembered, then said: who hears that it is done may rely on it.
        self.save(&uid);
        let answer = match &done.outcome {
            Ok(()) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        for reply in waiting {
            let _ = reply.send(answer.clone());
        }
        self.step(&uid);
    }

    /// What is remembered of a pod follows what is known of it. The files are a few hundred
    /// bytes on the node's own disk; writing them here keeps them in order.
    fn save(&mut self, uid: &Uid) {
        let Some(entry) = self.pods.get(uid) else {
            return;
        };
        let saved = if !entry.present && entry.stage == Stage::Out && entry.job.is_none() {
            self.pods.remove(uid);
            self.store.forget(uid)
        } else if let Some(netns) = &entry.netns {
            let (path, id) = (netns.path(), netns.id());
            let enrolled = entry.stage != Stage::Out;
            let Pod {
                namespace, name, ..
            } = &*entry.pod;
            self.store.save(&Record::new(
                uid,
                namespace,
                name,
                (path, id),
                entry.ips.clone(),
                enrolled,
            ))
        } else {
            Ok(())
        };
        if let Err(error) = saved {
            tracing::warn!(%uid, %error, "a pod could not be remembered; a restart may not find it");
        }
    }
}

fn report(metrics: &Metrics, pod: &Pod, verb: Verb, outcome: &Result<(), JobError>) {
    let (r#type, done) = match verb {
        Verb::Enrol => ("enrol", "the pod is in the mesh"),
        Verb::Release => ("release", "the pod is out of the mesh"),
        Verb::Forget => ("forget", "the pod is gone"),
    };
    let result = match outcome {
        Ok(()) => {
            tracing::info!(%pod, uid = %pod.uid, "{done}");
            "success"
        }
        Err(JobError::Interrupted) => "interrupted",
        Err(error @ (JobError::NoNetns | JobError::NetnsGone)) if verb == Verb::Enrol => {
            tracing::debug!(%pod, %error, "not yet");
            "failure"
        }
        Err(error) => {
            tracing::warn!(%pod, uid = %pod.uid, %error, "{type} failed, it will be tried again");
            "failure"
        }
    };
    metrics
        .reconciles
        .get_or_create(&Event { r#type, result })
        .inc();
}

/// 100 ms, 200 ms … 30 s: news (a ztunnel, a request, a change) cut it short anyway.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(9);
    Duration::from_millis(100 << doublings).min(Duration::from_secs(30))
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// How long a runtime may be ahead of the pod's object: well below its patience of 5 s.
const EARLY: Duration = Duration::from_secs(1);
const FINISH: Duration = Duration::from_secs(8);
