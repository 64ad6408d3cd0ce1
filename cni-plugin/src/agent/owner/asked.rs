//! What a runtime asks: may this pod start?
//!
//! A runtime can be ahead of what the agent has been told: of the pod, of its namespace, or that a pod was
//! replaced by another of its name. Then the source is asked, and the question waits for the answer;
//! not for long, for the runtime has little patience and will ask again.

use std::time::Duration;

use tokio::time::Instant;

use super::Owner;
use crate::agent::door::Asked;
use crate::agent::plan::{Due, Verb};
use crate::agent::pod::PodName;

/// A question that waits.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) asked: Asked,
    pub(super) until: Instant,
    /// The source has answered: what is known now is all there is to know.
    looked: bool,
}

impl Early {
    fn name(&self) -> PodName {
        PodName::new(&self.asked.event.pod_namespace, &self.asked.event.pod_name)
    }
}

impl Owner {
    pub(super) fn asked(&mut self, asked: Asked) {
        let patience = if self.asker.may_lag() { LAG } else { EARLY };
        let early = Early {
            asked,
            until: Instant::now() + patience,
            looked: false,
        };
        if self.is_known(&early) {
            return self.decide(early.asked);
        }
        self.asker.ask(&early.name());
        self.early.push(early);
    }

    /// Whether the question is about the pod that we know, and its namespace's labels are known too.
    fn is_known(&self, early: &Early) -> bool {
        let name = early.name();
        let entry = self.names.get(&name).and_then(|uid| self.pods.get(uid));
        let Some(pod) = entry.map(|entry| &entry.pod) else {
            return false;
        };
        let meant = match &early.asked.event.pod_uid {
            Some(uid) => pod.answers_to(uid),
            // A new sandbox for a pod that is being deleted is more likely its successor's.
            None => early.looked || !pod.deleting || !self.asker.may_lag(),
        };
        let judged = !self.asker.may_lag() || self.namespaces.contains_key(&name.namespace);
        meant && judged
    }

    /// There is news: some questions can be answered now.
    pub(super) fn ask_again(&mut self) {
        for early in std::mem::take(&mut self.early) {
            if self.is_known(&early) {
                self.decide(early.asked);
            } else {
                self.early.push(early);
            }
        }
    }

    /// The source was asked about a pod; what it found has been learnt already.
    pub(super) fn looked(&mut self, name: &PodName, outcome: &Result<(), String>) {
        for mut early in std::mem::take(&mut self.early) {
            early.looked |= early.name() == *name;
            if early.name() != *name {
                self.early.push(early);
            } else if let Err(why) = outcome {
                refuse(early.asked, why);
            } else if self.is_known(&early) {
                self.decide(early.asked);
            } else {
                refuse(early.asked, "another pod has its name by now");
            }
        }
    }

    pub(super) fn too_early(&mut self) {
        let now = Instant::now();
        let node = &self.tools.config.node_name;
        let over = self.early.extract_if(.., |early| early.until <= now);
        for early in over {
            refuse(early.asked, &format!("no such pod of node {node} is known"));
        }
    }

    fn decide(&mut self, asked: Asked) {
        let Asked { event, reply } = asked;
        let name = PodName::new(&event.pod_namespace, &event.pod_name);
        let Some(uid) = self.names.get(&name).cloned() else {
            return;
        };
        let Some(entry) = self.pods.get_mut(&uid) else {
            return;
        };
        entry.ips = event.ips.iter().map(|ip| ip.address.ip).collect();
        if !event.netns.is_empty() {
            let path = self.tools.config.site.on_host(&event.netns);
            match self.tools.not_pods.pod(&path) {
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
}

fn refuse(Asked { event, reply }: Asked, why: &str) {
    let _ = reply.send(Err(format!(
        "failed to get pod {}/{}: {why}",
        event.pod_namespace, event.pod_name
    )));
}

/// How long a runtime may be ahead of the pod's object …
const EARLY: Duration = Duration::from_secs(1);
/// … and where the API server must be asked besides: well below a runtime's patience of 5 s.
const LAG: Duration = Duration::from_millis(2500);
