//! The one owner of what the agent knows: select → [`Action`] → apply.
//!
//! After everything that was told, [`Owner::step`] asks [`plan::next`] what to do with the pods
//! concerned and starts a job. A pod has at most one job; what comes in meanwhile is noted
//! and looked at when the job is done.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::k8s::dir::{Change, Directory};
use api::k8s::objects::{Kind, Object, ObjectKey};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use super::door::Asked;
use super::eligible::{Eligibility, Excluded};
use super::jobs::{Done, JobError, Subject, Tools};
use super::metrics::{Event, Metrics};
use super::netns::Netns;
use super::plan::{self, Due, Facts, Stage, Verb};
use super::pod::{Phase, Pod, PodName, Uid, Words};
use super::processes;
use super::store::{Record, Store};
use super::zds::{Ask, Known};

/// The way back to a runtime.
type Reply = oneshot::Sender<Result<(), String>>;

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

/// One pod.
#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    present: bool,
    verdict: Result<(), Excluded>,
    netns: Option<Arc<Netns>>,
    /// From the runtime; empty if it has not been heard.
    ips: Vec<std::net::IpAddr>,
    stage: Stage,
    due: Due,
    /// Whether ztunnel was told, or will find the pod in its snapshot.
    announced: bool,
    waiting: Vec<Reply>,
    job: Option<Job>,
    failures: u32,
    retry: Option<Key>,
}

#[derive(Debug)]
struct Job {
    verb: Verb,
    cancel: CancellationToken,
    /// Who gets to hear how it ended.
    waiting: Vec<Reply>,
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

    /// Learns what there is: objects, what an earlier life remembered, what runs.
    pub(crate) async fn recover(&mut self, mut directory: Directory) -> io::Result<()> {
        let changes = directory.next().await;
        self.directory = Some(directory);
        let records: HashMap<Uid, Record> = self
            .store
            .load()?
            .into_iter()
            .map(|record| (Uid::new(&record.uid), record))
            .collect();
        for change in changes {
            self.learn(change);
        }
        for (uid, record) in records {
            self.remember(uid, record);
        }
        let lost = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.netns.is_none() && entry.verdict.is_ok());
        let lost: HashSet<Uid> = lost.map(|(uid, _)| uid.clone()).collect();
        let proc = self.tools.proc();
        let found = tokio::task::spawn_blocking(move || processes::find(&proc, &lost)).await;
        for (uid, netns) in found.unwrap_or_default() {
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.netns = Some(Arc::new(netns));
            }
        }
        for entry in self.pods.values_mut() {
            if entry.stage == Stage::In || (entry.pod.is_marked() && entry.verdict.is_ok()) {
                // Rules may have been lost, settings may have changed. ztunnel hears of the pod in
                // its snapshot, which it asks for as soon as it may connect.
                (entry.stage, entry.due, entry.announced) = (Stage::In, Due::Refresh, true);
            }
        }
        Ok(())
    }

    /// Puts a pod's record beside its object. Without an object the pod was deleted meanwhile.
    fn remember(&mut self, uid: Uid, record: Record) {
        let entry = self.pods.entry(uid.clone()).or_insert_with(|| {
            let mut entry = Entry::new(Pod::remembered(uid, &record.namespace, &record.name));
            entry.present = false;
            entry
        });
        entry.ips.clone_from(&record.ips);
        let netns = Netns::open(&record.netns).ok();
        entry.netns = netns
            .filter(|netns| netns.id() == record.netns_id())
            .map(Arc::new);
        entry.stage = if record.enrolled {
            Stage::In
        } else {
            Stage::Out
        };
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

    // ---- what the directory says

    fn learn(&mut self, change: Change) {
        match change {
            Change::Set(Object::Namespace(namespace)) => {
                let name: Arc<str> = namespace
                    .metadata
                    .name
                    .as_deref()
                    .unwrap_or_default()
                    .into();
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.namespaces.insert(name.clone(), labels);
                self.judge_again(&name);
            }
            Change::Gone(ObjectKey {
                kind: Kind::Namespace,
                name,
                ..
            }) => {
                self.namespaces.remove(&name);
                self.judge_again(&name);
            }
            Change::Set(Object::Pod(object)) => {
                match Pod::on_node(&object, &self.tools.config.node_name) {
                    Some(pod) => self.learn_pod(pod),
                    None => {
                        let metadata = &object.metadata;
                        let namespace = metadata.namespace.as_deref().unwrap_or_default();
                        self.gone(&PodName::new(
                            namespace,
                            metadata.name.as_deref().unwrap_or_default(),
                        ));
                    }
                }
            }
            Change::Gone(ObjectKey {
                kind: Kind::Pod,
                namespace,
                name,
            }) => {
                self.gone(&PodName { namespace, name });
            }
            Change::Invalid(fault) => {
                let (file, line) = (fault.file.display(), fault.line);
                tracing::warn!(%file, line, reason = fault.reason, "a document is refused");
            }
            Change::Set(_) | Change::Gone(_) => {}
        }
    }

    fn learn_pod(&mut self, pod: Pod) {
        let none = Words::new();
        let verdict = self
            .eligibility
            .of(&pod, self.namespaces.get(&pod.namespace).unwrap_or(&none));
        let previous = self.names.insert(pod.pod_name(), pod.uid.clone());
        if let Some(previous) = previous.filter(|previous| *previous != pod.uid) {
            self.leave(&previous);
        }
        let entry = self
            .pods
            .entry(pod.uid.clone())
            .or_insert_with(|| Entry::new(pod.clone()));
        if entry.stage == Stage::In && entry.pod.captures_differently_from(&pod) {
            entry.due = entry.due.max(Due::Refresh);
        }
        if entry.pod.phase != pod.phase {
            entry.hurry(&mut self.retries);
        }
        entry.present = true;
        entry.pod = Arc::new(pod);
        entry.decide(verdict);
    }

    fn gone(&mut self, name: &PodName) {
        if let Some(uid) = self.names.remove(name) {
            self.leave(&uid);
        }
    }

    fn leave(&mut self, uid: &Uid) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.present = false;
            entry.answer(Err("the pod was deleted".to_owned()));
            entry.interrupt();
        }
    }

    fn judge_again(&mut self, namespace: &str) {
        let none = Words::new();
        let labels = self.namespaces.get(namespace).unwrap_or(&none);
        for entry in self
            .pods
            .values_mut()
            .filter(|entry| &*entry.pod.namespace == namespace)
        {
            let verdict = self.eligibility.of(&entry.pod, labels);
            entry.decide(verdict);
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

impl Entry {
    fn new(pod: Pod) -> Self {
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

    fn facts(&self) -> Facts {
        Facts {
            present: self.present,
            wanted: self.verdict.is_ok(),
            stage: self.stage,
            due: self.due,
            reachable: self.netns.is_some() || self.pod.phase == Phase::Running,
            waits: self.retry.is_some(),
        }
    }

    fn subject(&self) -> Subject {
        Subject {
            pod: self.pod.clone(),
            netns: self.netns.clone(),
            ips: self.ips.clone(),
            stage: self.stage,
            announced: self.announced && self.due != Due::Announce,
            touched: false,
        }
    }

    fn decide(&mut self, verdict: Result<(), Excluded>) {
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
    fn hurry(&mut self, retries: &mut DelayQueue<Uid>) {
        if let Some(key) = self.retry.take() {
            retries.try_remove(&key);
            if self.stage == Stage::In {
                self.due = self.due.max(Due::Refresh);
            }
        }
    }

    fn interrupt(&self) {
        self.job.iter().for_each(|job| job.cancel.cancel());
    }

    fn interrupt_unless(&self, verb: Verb) {
        if self.job.as_ref().is_some_and(|job| job.verb != verb) {
            self.interrupt();
        }
    }

    /// The runtime made the pod a new sandbox: nothing that was done counts in there.
    fn moved_to(&mut self, netns: Netns) {
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

    fn answer(&mut self, answer: Result<(), String>) {
        for reply in self.waiting.drain(..) {
            let _ = reply.send(answer.clone());
        }
    }

    /// A job's end; returns who waits for it. If the runtime has named another namespace meanwhile,
    /// that one counts.
    fn take_in(&mut self, done: &Done, job: Job) -> Vec<Reply> {
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
        Err(error @ JobError::NoNetns) => {
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
