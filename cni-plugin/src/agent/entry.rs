//! One pod, as the owner knows it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::k8s::labels;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use super::eligible::Excluded;
use super::jobs::{Done, JobError, Marked, Subject};
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
    /// Its rules are from before the agent started and are not to be written again.
    pub(crate) rules_stand: bool,
    /// Its UDP is captured.
    udp: bool,
    marked: Marked,
    /// We wrote `marked` and the source has not told of it yet: what it tells meanwhile is older.
    unconfirmed: bool,
    /// Of its job ([`Subject::let_go`]).
    pub(crate) let_go: Arc<AtomicBool>,
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
            rules_stand: false,
            udp: false,
            marked: Some(pod.mark()),
            unconfirmed: false,
            let_go: Arc::default(),
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

    /// Whether something of ours may be in the living pod.
    pub(crate) fn is_inside(&self) -> bool {
        self.present && (self.stage != Stage::Out || self.job.is_some())
    }

    /// Whether its rules are there, or are being written, and say what was known until now.
    fn is_captured(&self) -> bool {
        let job = self.job.as_ref();
        self.stage == Stage::In || job.is_some_and(|job| job.verb == Verb::Enrol)
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts {
            present: self.present,
            wanted: self.verdict.is_ok(),
            stage: self.stage,
            due: self.due,
            // The kubelet knows its addresses: then its sandbox runs, though its containers may not yet.
            reachable: self.netns.is_some()
                || self.pod.phase == Phase::Running
                || (self.pod.phase == Phase::Starting && !self.pod.ips.is_empty()),
            waits: self.retry.is_some(),
        }
    }

    /// Whether a ztunnel that comes now is to have it for what is in the pod still.
    pub(crate) fn is_still_announced(&self) -> bool {
        let let_go = self.job.is_some() && self.let_go.load(Ordering::SeqCst);
        self.present && self.announced && !let_go
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject {
            pod: self.pod.clone(),
            netns: self.netns.clone(),
            ips: self.ips.clone(),
            stage: self.stage,
            announced: self.announced && self.due != Due::Announce,
            asked: !self.waiting.is_empty(),
            rules_stand: self.rules_stand,
            udp: self.udp,
            marked: self.marked.clone(),
            touched: false,
            let_go: Arc::default(),
        }
    }

    /// Its object as it is now. Someone else's hand at our annotation is noticed: it is set right.
    pub(crate) fn learn(&mut self, pod: Pod) {
        if self.is_captured() && self.pod.captures_differently_from(&pod) {
            self.due = self.due.max(Due::Refresh);
            self.rules_stand = false;
        }
        let mark = pod.mark();
        if !self.unconfirmed || self.marked.as_ref() == Some(&mark) {
            self.unconfirmed = false;
            let enabled = mark.as_deref() == Some(labels::REDIRECTION_ENABLED);
            if self.stage == Stage::In && !enabled && self.marked.as_ref() != Some(&mark) {
                self.due = self.due.max(Due::Refresh);
            }
            self.marked = Some(mark);
        }
        self.present = true;
        self.pod = Arc::new(pod);
    }

    /// Whether its UDP is to be captured.
    pub(crate) fn capture_udp(&mut self, udp: bool) {
        if self.udp != udp && self.is_captured() {
            self.due = self.due.max(Due::Refresh);
            self.rules_stand = false;
        }
        self.udp = udp;
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

    /// Whoever was told of it has left, and the ztunnel that takes its place may know nothing of it.
    pub(crate) fn announce_again(&mut self) {
        if self.verdict.is_ok() && (self.announced || self.is_captured()) {
            self.due = Due::Announce;
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
            self.rules_stand = false; // they are in the old one
        }
        self.netns = Some(Arc::new(netns));
    }

    /// No process of an ended pod will ever run again, and its object may stay for weeks: the namespace would be there for as long
    /// as we have it open. To be called while no job is about it.
    pub(crate) fn let_go_of_the_ended(&mut self) {
        if self.pod.phase == Phase::Ended && self.stage == Stage::Out {
            self.netns = None;
        }
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
        self.marked.clone_from(&done.marked);
        self.unconfirmed = (self.marked.as_ref()).is_some_and(|marked| *marked != self.pod.mark());
        self.rules_stand &= done.outcome.is_err();
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::pod::tests::pod;

    fn told(mark: Option<&str>) -> Pod {
        let annotations = mark.map(|mark| json!({ "ambient.istio.io/redirection": mark }));
        pod(json!({ "annotations": annotations }), json!({}))
    }

    /// As after a job that wrote `marked`.
    fn ended(entry: &mut Entry, stage: Stage, marked: Option<&str>) {
        let done = Done {
            stage,
            announced: true,
            netns: None,
            marked: Some(marked.map(str::to_owned)),
            outcome: Ok(()),
        };
        let job = Job {
            verb: Verb::Enrol,
            cancel: CancellationToken::new(),
            waiting: Vec::new(),
        };
        entry.take_in(&done, job);
        entry.due = Due::No;
    }

    #[test]
    fn news_from_before_our_annotation_does_not_count_against_it() {
        let mut entry = Entry::new(told(None));
        ended(&mut entry, Stage::In, Some("enabled"));
        entry.learn(told(None));
        assert_eq!(entry.due, Due::No, "it is older than what we wrote");
        entry.learn(told(Some("enabled")));
        assert_eq!(entry.due, Due::No);
        entry.learn(told(None));
        assert_eq!(entry.due, Due::Refresh, "someone took it away");
        assert_eq!(entry.subject().marked, Some(None), "so it is written again");
    }

    #[test]
    fn a_pod_that_leaves_is_not_taken_back_by_old_news() {
        let mut entry = Entry::new(told(Some("enabled")));
        ended(&mut entry, Stage::Out, None);
        entry.learn(told(Some("enabled")));
        assert_eq!(
            entry.subject().marked,
            Some(None),
            "what we wrote is what counts"
        );
    }

    #[test]
    fn what_is_said_of_its_capture_while_it_is_enrolled_is_written_after_that() {
        let enrolling = || {
            let mut entry = Entry::new(told(None));
            entry.decide(Ok(()));
            entry.job = Some(Job {
                verb: Verb::Enrol,
                cancel: CancellationToken::new(),
                waiting: Vec::new(),
            });
            entry
        };
        let next = |mut entry: Entry| {
            let done = Done {
                stage: Stage::In,
                announced: true,
                netns: None,
                marked: Some(None),
                outcome: Ok(()),
            };
            let job = entry.job.take().unwrap();
            entry.take_in(&done, job);
            crate::agent::plan::next(entry.facts())
        };
        let mut same = enrolling();
        same.learn(told(None));
        same.capture_udp(false);
        assert_eq!(next(same), None);

        let exempt = json!({ "traffic.sidecar.istio.io/excludeOutboundPorts": "5432" });
        let mut annotated = enrolling();
        annotated.learn(pod(json!({ "annotations": exempt }), json!({})));
        assert_eq!(next(annotated), Some(Verb::Enrol));
        let mut labelled = enrolling();
        labelled.capture_udp(true);
        assert_eq!(next(labelled), Some(Verb::Enrol));
    }

    #[test]
    fn a_pod_with_addresses_can_be_found_before_its_containers_run() {
        let reachable = |status| {
            Entry::new(pod(json!({}), json!({ "status": status })))
                .facts()
                .reachable
        };
        assert!(!reachable(json!({ "phase": "Pending" })));
        assert!(reachable(
            json!({ "phase": "Pending", "podIP": "10.0.0.1" })
        ));
        assert!(reachable(json!({ "phase": "Running" })));
        assert!(!reachable(
            json!({ "phase": "Failed", "podIP": "10.0.0.1" })
        ));
    }
}
