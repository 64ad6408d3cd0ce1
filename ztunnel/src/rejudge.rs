//! Policies changed: every open inbound connection is judged again, and those now denied are cut at once.
//!
//! Only pods with open connections are looked at; where a pod's policies are the very ones of the last pass, only
//! connections that came since are judged. A policy that a workload names and that is not here yet leaves open connections
//! alone for as long as new ones are held (`admit::HOLD`), then cuts them too: each pod's by a time of its own.
//!
//! Open connections out of the mesh are cut as well where their workload may not call who is unknown any more.
//!
//! A connection that was taken over from another process is one of these like any other, from the moment it is here; before it
//! goes on it is judged once ([`admit::admit`] if it came in, [`taken`] if it goes out).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh::{DeniedBy, EgressMode, Policy, Snapshot, Workload};
use tokio::time::{Instant, timeout_at};

use crate::admit::{self, Denied, Judged};
use crate::connections::{Live, OfPod};
use crate::node::Node;
use crate::pod::Pod;
use crate::route;

/// Byte counters of open connections are brought into the metrics this often; a scrape does it too.
const SETTLE: Duration = Duration::from_secs(15);

/// Runs until cancelled.
pub(crate) async fn run(node: &Node) {
    let mut changed = node.mesh.policies_changed();
    let mut waits = Waits::default();
    loop {
        let settle_at = Instant::now() + SETTLE;
        let wake_at = waits.first_end().map_or(settle_at, |at| at.min(settle_at));
        match timeout_at(wake_at, changed.changed()).await {
            Ok(Err(_)) => return, // the writer is gone, and with it all change
            Ok(Ok(())) => {}
            Err(_) if waits.first_end().is_some_and(|at| at <= Instant::now()) => {}
            Err(_) => {
                node.connections.settle();
                // One that was decided by an earlier setting, and had not entered when that changed.
                shut(node);
                continue;
            }
        }
        shut(node);
        judge_all(node, &mut waits);
    }
}

/// Until when a policy is waited for, by the pod that has connections which cannot be judged without it. One that waits for what
/// never comes must not cut short what others wait for a moment only.
#[derive(Debug, Default)]
struct Waits(HashMap<Arc<str>, Instant>);

impl Waits {
    fn first_end(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    fn is_over(&self, pod: &str, now: Instant) -> bool {
        self.0.get(pod).is_some_and(|until| *until <= now)
    }

    /// These wait now, and nobody else.
    fn are(&mut self, pods: impl IntoIterator<Item = Arc<str>>, now: Instant) {
        let until = |pod: &Arc<str>| {
            let before = self.0.get(pod).filter(|until| **until > now);
            before.copied().unwrap_or(now + admit::HOLD)
        };
        let waits = pods.into_iter().map(|pod| (pod.clone(), until(&pod)));
        self.0 = waits.collect();
    }
}

/// Judges what needs judging, and notes who has connections that could not be judged yet.
fn judge_all(node: &Node, waits: &mut Waits) {
    let (snapshot, now) = (node.mesh.load(), Instant::now());
    let mut undecided = Vec::new();
    for (uid, pod) in node.connections.pods() {
        if judge_pod(&snapshot, &pod, waits.is_over(&uid, now)) > 0 {
            undecided.push(uid);
        }
    }
    waits.are(undecided, now);
}

/// Returns how many connections could not be judged yet.
fn judge_pod(snapshot: &Snapshot, pod: &OfPod, deny_unknown: bool) -> usize {
    // A workload that is gone has no policies to speak of; its pod is about to go, and takes its connections along.
    let Some(workload) = snapshot.workload(pod.workload_uid()) else {
        return 0;
    };
    let policies = snapshot.policies_of(workload);
    let now: Vec<Arc<Policy>> = policies.known().cloned().collect();
    let any_unknown = policies.unknown().next().is_some();
    let others = pod.judged_by_others(now, any_unknown);
    let mut undecided = 0;
    for live in pod.inbound() {
        // A connection that came since the last pass may have been judged by policies that were here for a moment
        // in between and that no pass saw.
        let fresh = live.fresh.swap(false, Relaxed);
        if !others && !fresh {
            continue;
        }
        match admit::judge_by(snapshot, workload, &live) {
            Judged::Allowed => {}
            Judged::Denied(why) => cut(&live, why),
            Judged::Undecided(missing) if deny_unknown => {
                cut(&live, Denied::By(DeniedBy::UnknownPolicy(missing)))
            }
            Judged::Undecided(_) => undecided += 1,
        }
    }
    undecided
}

/// Cuts what goes to who is unknown and may not any more.
fn shut(node: &Node) {
    let snapshot = node.mesh.load();
    for (_, pod) in node.connections.pods() {
        let Some(workload) = snapshot.workload(pod.workload_uid()) else {
            continue;
        };
        if workload.egress.mode != EgressMode::Refuse {
            continue;
        }
        for live in pod.all() {
            if let Some(why) = shut_by(node, &snapshot, workload, &live) {
                cut(&live, why);
            }
        }
    }
}

/// Cuts one that was opened by another process if it may not be by what is known here.
pub(crate) fn taken(node: &Node, pod: &Pod, live: &Live) {
    let snapshot = node.mesh.load();
    let uid = pod.workload_uid();
    let workload = snapshot.workload(&uid);
    let why = workload.and_then(|workload| shut_by(node, &snapshot, workload, live));
    if let Some(why) = why {
        cut(live, why);
    }
}

fn shut_by(node: &Node, snapshot: &Snapshot, workload: &Workload, live: &Live) -> Option<Denied> {
    let to = Some(live.original).filter(|_| live.goes_out())?;
    let by = route::shut_by(snapshot, workload, to, &node.resolv.servers)?;
    let (destination, by) = (to, by.clone());
    Some(Denied::Egress { destination, by })
}

fn cut(live: &Live, why: Denied) {
    tracing::debug!(src.addr = %live.source, dst.addr = %live.actual, %why, "open connection now denied");
    live.cut(why);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_shorter_because_another_has_waited_before() {
        let (start, soon) = (Instant::now(), Duration::from_millis(1));
        let [never, late]: [Arc<str>; 2] = ["never".into(), "late".into()];
        let mut waits = Waits::default();
        assert_eq!(waits.first_end(), None);
        waits.are([never.clone()], start);
        // Its policy never comes, that of the other within a moment.
        let end = start + admit::HOLD;
        waits.are([never.clone(), late.clone()], end - soon);
        assert_eq!(waits.first_end(), Some(end), "it does not begin anew");
        assert!(waits.is_over(&never, end) && !waits.is_over(&late, end));
        waits.are([late.clone()], end);
        assert!(!waits.is_over(&never, end));
        assert_eq!(waits.first_end(), Some(end - soon + admit::HOLD));
        waits.are([], end + soon);
        assert_eq!(waits.first_end(), None);
        // The next time is another one.
        waits.are([never.clone()], end + soon);
        assert_eq!(waits.first_end(), Some(end + soon + admit::HOLD));
    }
}
