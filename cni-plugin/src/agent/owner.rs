//! The one owner of what the agent knows: select → [`Action`] → apply.
//!
//! After everything that was told, [`Owner::step`] asks [`plan::next`] what to do with the pods
//! concerned and starts a job. A pod has at most one job; what comes in meanwhile is noted
//! and looked at when the job is done.

mod asked;
mod learn;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;

use asked::Early;

use super::door::Asked;
use super::eligible::Eligibility;
use super::entry::{Entry, Job};
use super::jobs::{Done, JobError, Tools};
use super::metrics::{Event, Metrics};
use super::plan::{self, Due, Stage, Verb};
use super::pod::{Pod, PodName, Uid, Words};
use super::source::{Asker, News, Source};
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
    source: Option<Source>,
    asker: Asker,
    /// Questions about pods whose object has not been seen yet.
    early: Vec<Early>,
    /// Pods that were enrolled when the agent started, and have not been gone through since.
    unsettled: HashSet<Uid>,
    jobs: JoinSet<Done>,
    running: HashMap<Id, Uid>,
    retries: DelayQueue<Uid>,
}

enum Action {
    News(Vec<News>),
    Asked(Asked),
    Ztunnel(Ask),
    Done(Id, Result<Done, JoinError>),
    Retry(Uid),
    TooEarly,
}

impl Owner {
    pub(crate) fn new(tools: Arc<Tools>, store: Store, metrics: Metrics) -> Self {
        let eligibility = Eligibility {
            selectors: tools.config.site.selectors(),
            excluded: tools.config.site.excluded().cloned().collect(),
            over: false,
        };
        Self {
            tools,
            store,
            metrics,
            eligibility,
            namespaces: HashMap::new(),
            pods: HashMap::new(),
            names: HashMap::new(),
            source: None,
            asker: Asker::default(),
            early: Vec::new(),
            unsettled: HashSet::new(),
            jobs: JoinSet::new(),
            running: HashMap::new(),
            retries: DelayQueue::new(),
        }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(
        &mut self,
        ztunnels: &mut mpsc::Receiver<Ask>,
        plugins: &mut mpsc::Receiver<Asked>,
        stop: &CancellationToken,
    ) {
        let Some(mut source) = self.source.take() else {
            return;
        };
        self.step_all();
        loop {
            let too_early = self.early.iter().map(|early| early.until).min();
            let action = tokio::select! {
                () = stop.cancelled() => break,
                news = source.next() => Action::News(news),
                Some(asked) = plugins.recv() => Action::Asked(asked),
                Some(ask) = ztunnels.recv() => Action::Ztunnel(ask),
                Some(action) = work(&mut self.jobs, &mut self.retries) => action,
                () = until(too_early) => Action::TooEarly,
            };
            self.apply(action);
        }
        self.source = Some(source);
    }

    /// Everything stays as it is; jobs under way come to an end.
    pub(crate) async fn stay(mut self) {
        for entry in self.pods.values() {
            entry.job.iter().for_each(|job| job.cancel.cancel());
        }
        let finish = async { while self.jobs.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FINISH, finish).await;
    }

    /// Lets go of every pod, in parallel, as if no label asked for it any more. Returns the names of
    /// those that were not released within `limit`.
    pub(crate) async fn leave(
        mut self,
        ztunnels: &mut mpsc::Receiver<Ask>,
        limit: Duration,
    ) -> Vec<PodName> {
        self.eligibility.over = true;
        let namespaces: Vec<Arc<str>> = self.names.keys().map(|n| n.namespace.clone()).collect();
        for namespace in namespaces {
            self.judge_again(&namespace);
        }
        for early in std::mem::take(&mut self.early) {
            let _ = early.asked.reply.send(Ok(()));
        }
        for entry in self.pods.values_mut() {
            entry.hurry(&mut self.retries);
            // One that was leaving before gives its connections more time than there is: it begins anew.
            entry.interrupt_unless(Verb::Enrol);
        }
        self.step_all();
        let until = Instant::now() + limit;
        while self.pods.values().any(Entry::is_inside) {
            let action = tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                Some(ask) = ztunnels.recv() => Action::Ztunnel(ask),
                Some(action) = work(&mut self.jobs, &mut self.retries) => action,
            };
            self.apply(action);
        }
        let inside = self.pods.values().filter(|entry| entry.is_inside());
        inside.map(|entry| entry.pod.pod_name()).collect()
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::News(news) => {
                for news in news {
                    self.learn(news);
                }
                self.step_all();
                self.ask_again();
            }
            Action::Asked(asked) => self.asked(asked),
            Action::Ztunnel(Ask::Snapshot(reply)) => drop(reply.send(self.snapshot())),
            Action::Ztunnel(Ask::Taken(uids)) => self.taken(&uids),
            Action::Ztunnel(Ask::Left) => {
                self.pods.values_mut().for_each(Entry::announce_again);
                self.step_all();
            }
            Action::Done(id, done) => self.done(id, done),
            Action::Retry(uid) => {
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.hurry(&mut self.retries);
                    self.step(&uid);
                }
            }
            Action::TooEarly => self.too_early(),
        }
    }

    // ---- what ztunnel asks

    fn snapshot(&self) -> Vec<Known> {
        let inside = |entry: &&Entry| {
            let wanted = entry.present && entry.verdict.is_ok();
            (wanted && (entry.netns.is_some() || entry.stage == Stage::In))
                || entry.is_still_announced()
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
        entry.let_go_of_the_ended();
        let Some(verb) = plan::next(entry.facts()) else {
            return;
        };
        if let Some(key) = entry.retry.take() {
            self.retries.try_remove(&key);
        }
        let cancel = CancellationToken::new();
        let subject = entry.subject();
        entry.let_go = subject.let_go.clone();
        let succeeded = self.names.contains_key(&entry.pod.pod_name());
        let (tools, token) = (self.tools.clone(), cancel.clone());
        let leaving = self.eligibility.over;
        let job = self.jobs.spawn(async move {
            match verb {
                Verb::Enrol => tools.enrol(subject).await,
                Verb::Release => tools.release(subject, token, leaving).await,
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
            marked: None,
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
        self.settle(&uid, &done.outcome);
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

    /// Once every pod that was enrolled before has been gone through, the node's set is complete.
    fn settle(&mut self, uid: &Uid, outcome: &Result<(), JobError>) {
        if outcome.is_ok() && self.unsettled.remove(uid) && self.unsettled.is_empty() {
            self.tools.host.complete();
        }
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
        Err(error @ (JobError::NoNetns | JobError::NetnsGone | JobError::NotItsAddress))
            if verb == Verb::Enrol =>
        {
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

/// A job that ended, or one that is due again. `None`: there is neither.
async fn work(jobs: &mut JoinSet<Done>, retries: &mut DelayQueue<Uid>) -> Option<Action> {
    let idle = jobs.is_empty() && retries.is_empty();
    tokio::select! {
        Some(done) = jobs.join_next_with_id() => Some(match done {
            Ok((id, done)) => Action::Done(id, Ok(done)),
            Err(error) => Action::Done(error.id(), Err(error)),
        }),
        Some(expired) = std::future::poll_fn(|context| retries.poll_expired(context)),
            if !idle => Some(Action::Retry(expired.into_inner())),
        else => None,
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

const FINISH: Duration = Duration::from_secs(8);
