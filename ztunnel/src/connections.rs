//! Open connections, by pod.
//!
//! A connection enters when both its ends are known and leaves when its `Entry` is dropped, whatever ended it. While
//! it is here it can be listed (`/config_dump`), counted (drain), have its bytes settled into the metrics, and be
//! cut when a policy turns against it (`rejudge`).
//!
//! What its reports will say beside ([`Story`]), and what carries it, are kept here too: if another process goes on with it
//! (`handover`), that is what it is told.
//!
//! One small map per pod behind its own mutex, for an insertion or a removal. The map of pods is only read meanwhile,
//! save for a pod's first connection and its last. No task and no timer per connection.

mod live;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use mesh::Policy;
use serde::Serialize;
use tokio::sync::Notify;

pub(crate) use self::live::{Bytes, Carrier, Counting, Live, Story};
use crate::traffic::Reporter;

/// All open connections of this node.
#[derive(Debug, Default)]
pub struct Connections {
    pods: RwLock<ByPod>,
    open: AtomicUsize,
    none_left: Notify,
}

/// The connections of one pod.
#[derive(Debug)]
pub(crate) struct OfPod {
    uid: Arc<str>,
    workload_uid: Arc<str>,
    live: Mutex<HashMap<usize, Arc<Live>>>,
    /// The policies that the open connections were last judged by.
    judged_by: Mutex<Option<Vec<Arc<Policy>>>>,
}

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// In a tunnel.
    Hbone,
    /// As they are: plaintext, or joined in process.
    Tcp,
    /// As datagrams, in a tunnel or as they are.
    Udp,
}

/// One connection as `/config_dump` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The client.
    pub src: SocketAddr,
    /// What the client asked for.
    pub original_dst: SocketAddr,
    /// Where it is carried to.
    pub actual_dst: SocketAddr,
    /// How.
    pub protocol: Protocol,
}

/// The open connections of a pod, for `/config_dump`.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Listed {
    /// Connections that came to the pod.
    pub inbound: Vec<Shown>,
    /// Connections that the pod opened.
    pub outbound: Vec<Shown>,
}

/// How many connections of somebody are open.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Open {
    /// That came to it.
    pub(crate) inbound: usize,
    /// That it opened.
    pub(crate) outbound: usize,
    /// Those of both that are flows of UDP.
    pub(crate) flows: usize,
}

impl Connections {
    /// How many are open now, both ends of a joined connection counted.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Waits until none is open. Cancel safe.
    pub async fn none_left(&self) {
        loop {
            let notified = self.none_left.notified();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// The connections of the pod with this uid.
    pub fn of_pod(&self, pod_uid: &str) -> Listed {
        let Some(pod) = self.read().get(pod_uid).cloned() else {
            return Listed::default();
        };
        let mut listed = Listed::default();
        for live in lock(&pod.live).values() {
            let shown = Shown {
                src: live.source,
                original_dst: live.original,
                actual_dst: live.actual,
                protocol: live.protocol,
            };
            match live.reporter {
                Reporter::Source => listed.outbound.push(shown),
                Reporter::Destination => listed.inbound.push(shown),
            }
        }
        listed
    }

    /// Brings the byte metrics of open connections up to date: on a slow beat, and whenever metrics are read.
    pub fn settle(&self) {
        self.each(|_, live| live.settle());
    }

    /// Enters a connection of the pod with this uid.
    pub(crate) fn enter(
        self: &Arc<Self>,
        pod_uid: &Arc<str>,
        workload_uid: Arc<str>,
        live: Live,
    ) -> Entry {
        let live = Arc::new(live);
        // Inserted while the map of pods is locked: `left` cannot take an empty pod away in between.
        let known = self.read().get(pod_uid).map(|pod| pod.insert(&live));
        let pod = known.unwrap_or_else(|| {
            self.write()
                .entry(pod_uid.clone())
                .or_insert_with(|| Arc::new(OfPod::new(pod_uid.clone(), workload_uid)))
                .insert(&live)
        });
        self.open.fetch_add(1, Relaxed);
        Entry {
            live,
            pod,
            connections: self.clone(),
        }
    }

    /// Pods that have open connections.
    pub(crate) fn pods(&self) -> Vec<(Arc<str>, Arc<OfPod>)> {
        self.read()
            .iter()
            .map(|(uid, pod)| (uid.clone(), pod.clone()))
            .collect()
    }

    /// The connections of the pod with this uid, if it has any.
    pub(crate) fn pod(&self, uid: &str) -> Option<Arc<OfPod>> {
        self.read().get(uid).cloned()
    }

    fn each(&self, mut see: impl FnMut(&Arc<str>, &Live)) {
        for (uid, pod) in self.pods() {
            for live in lock(&pod.live).values() {
                see(&uid, live);
            }
        }
    }

    /// A connection of `of` is no longer in its map.
    fn left(&self, of: &OfPod) {
        if lock(&of.live).is_empty() {
            let mut pods = self.write();
            // Nobody enters while this is locked: what is empty now goes, and a pod that is gone leaves nothing.
            if pods
                .get(&of.uid)
                .is_some_and(|pod| lock(&pod.live).is_empty())
            {
                pods.remove(&of.uid);
            }
        }
        if self.open.fetch_sub(1, Relaxed) == 1 {
            self.none_left.notify_waiters();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, ByPod> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, ByPod> {
        self.pods.write().unwrap_or_else(PoisonError::into_inner)
    }
}

type ByPod = HashMap<Arc<str>, Arc<OfPod>>;

impl OfPod {
    fn new(uid: Arc<str>, workload_uid: Arc<str>) -> Self {
        Self {
            uid,
            workload_uid,
            live: Mutex::default(),
            judged_by: Mutex::default(),
        }
    }

    fn insert(self: &Arc<Self>, live: &Arc<Live>) -> Arc<Self> {
        lock(&self.live).insert(key(live), live.clone());
        self.clone()
    }

    /// The workload that the pod is.
    pub(crate) fn workload_uid(&self) -> &str {
        &self.workload_uid
    }

    /// Whether the open connections must be judged again: these policies are not the very ones of the last time, or
    /// one is named and unknown. Remembers them.
    pub(crate) fn judged_by_others(&self, policies: Vec<Arc<Policy>>, any_unknown: bool) -> bool {
        let mut judged_by = lock(&self.judged_by);
        let same = judged_by.as_ref().is_some_and(|last| {
            last.len() == policies.len()
                && last
                    .iter()
                    .zip(&policies)
                    .all(|(old, new)| Arc::ptr_eq(old, new))
        });
        // With an unknown policy the verdict is not final: remembering would let the last call be skipped.
        *judged_by = (!any_unknown).then_some(policies);
        !same || any_unknown
    }

    /// All its connections.
    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        lock(&self.live).values().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn counts(&self) -> Open {
        let live = lock(&self.live);
        let inbound = live.values().filter(|live| live.is_inbound()).count();
        let is_flow = |live: &&Arc<Live>| live.protocol == Protocol::Udp;
        Open {
            inbound,
            outbound: live.len() - inbound,
            flows: live.values().filter(is_flow).count(),
        }
    }

    /// The connections that came to this pod.
    pub(crate) fn inbound(&self) -> Vec<Arc<Live>> {
        let live = lock(&self.live);
        live.values()
            .filter(|live| live.reporter == Reporter::Destination)
            .cloned()
            .collect()
    }
}

/// A place among the open connections; dropping it leaves.
#[derive(Debug)]
pub(crate) struct Entry {
    live: Arc<Live>,
    pod: Arc<OfPod>,
    connections: Arc<Connections>,
}

impl Entry {
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.pod.live).remove(&key(&self.live));
        self.live.settle();
        self.connections.left(&self.pod);
    }
}

/// Its address names a connection while the map holds it.
fn key(live: &Arc<Live>) -> usize {
    Arc::as_ptr(live).addr()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::time::Instant;

    use hbone::Counters;
    use mesh::DeniedBy;

    use super::*;
    use crate::admit::Denied;
    use crate::traffic::{Ends, Traffic};

    fn live(traffic: &Traffic, reporter: Reporter, bytes: Bytes) -> Live {
        let series = traffic.series(reporter, &Ends::default(), None);
        let (a, b) = (
            "10.0.0.1:1000".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
        );
        let story = Story {
            started: Instant::now(),
            hop: b,
            ends: Arc::default(),
            outside: false,
            said: None,
            tunnelled: None,
            waypoint: None,
            note: OnceLock::new(),
        };
        Live::new(reporter, Protocol::Tcp, (a, b, b), story, series, bytes)
    }

    fn enter(connections: &Arc<Connections>, live: Live) -> Entry {
        connections.enter(&"pod".into(), "workload".into(), live)
    }

    #[test]
    fn each_byte_is_settled_once_however_often_and_at_the_end() {
        let (traffic, connections) = (Traffic::default(), Arc::new(Connections::default()));
        let entry = enter(
            &connections,
            live(&traffic, Reporter::Source, Bytes::default()),
        );
        entry.live().counters().sent.store(10, Relaxed);
        connections.settle();
        connections.settle();
        entry.live().counters().sent.store(15, Relaxed);
        entry.live().counters().received.store(7, Relaxed);
        drop(entry);
        let series = traffic.series(Reporter::Source, &Ends::default(), None);
        assert_eq!(series.bytes(), (15, 7));
    }

    #[test]
    fn what_moved_in_another_process_is_told_here_and_counted_there() {
        let (traffic, connections) = (Traffic::default(), Arc::new(Connections::default()));
        let bytes = Bytes::Own(Counters::of(10, 20));
        let entry = enter(&connections, live(&traffic, Reporter::Source, bytes));
        entry.live().settled_elsewhere();
        entry.live().counters().sent.fetch_add(1, Relaxed);
        connections.settle();
        assert_eq!(entry.live().moved(), (11, 20));
        assert_eq!(entry.live().series().bytes(), (1, 0));
    }

    #[tokio::test]
    async fn a_connection_that_stands_still_is_cut_when_it_goes_on() {
        let (traffic, connections) = (Traffic::default(), Arc::new(Connections::default()));
        let entry = enter(
            &connections,
            live(&traffic, Reporter::Destination, Bytes::default()),
        );
        let why = Denied::By(DeniedBy::NoAllowMatched);
        entry.live().hold();
        entry.live().cut(why.clone());
        let held = entry.live().clone();
        let denied = tokio::spawn(async move { held.denied().await });
        tokio::task::yield_now().await;
        assert!(!denied.is_finished());
        entry.live().release();
        assert_eq!(denied.await.unwrap(), why);
    }

    #[test]
    fn what_one_end_of_a_joined_connection_sent_the_other_received() {
        let (traffic, connections) = (Traffic::default(), Arc::new(Connections::default()));
        let source = enter(
            &connections,
            live(&traffic, Reporter::Source, Bytes::default()),
        );
        let mirror = Bytes::MirrorOf(source.live().clone());
        let destination = enter(&connections, live(&traffic, Reporter::Destination, mirror));
        destination.live().counters().sent.store(3, Relaxed);
        assert_eq!(
            (source.live().moved(), destination.live().moved()),
            ((3, 0), (0, 3))
        );
    }

    #[test]
    fn connections_are_listed_while_they_are_open_and_leave_nothing() {
        let (traffic, connections) = (Traffic::default(), Arc::new(Connections::default()));
        let entries: Vec<_> = [
            Reporter::Source,
            Reporter::Destination,
            Reporter::Destination,
        ]
        .map(|reporter| enter(&connections, live(&traffic, reporter, Bytes::default())))
        .into();
        let listed = connections.of_pod("pod");
        assert_eq!(
            (
                listed.outbound.len(),
                listed.inbound.len(),
                connections.open()
            ),
            (1, 2, 3)
        );
        drop(entries);
        assert_eq!(connections.open(), 0);
        assert!(connections.pods().is_empty());
    }

    #[test]
    fn pods_that_come_and_go_at_once_lose_no_connection() {
        let (traffic, connections) = (Traffic::default(), Arc::new(Connections::default()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let _entry = enter(
                            &connections,
                            live(&traffic, Reporter::Source, Bytes::default()),
                        );
                        // The very pod that it is in must be the one that is found.
                        assert!(!connections.of_pod("pod").outbound.is_empty());
                    }
                });
            }
        });
        assert_eq!(connections.open(), 0);
        assert!(connections.pods().is_empty());
    }

    #[tokio::test]
    async fn waiting_for_none_ends_with_the_last_and_a_cut_is_seen_whenever_it_came() {
        let (traffic, connections) = (Traffic::default(), Arc::new(Connections::default()));
        let entry = enter(
            &connections,
            live(&traffic, Reporter::Destination, Bytes::default()),
        );
        let before = Denied::By(DeniedBy::NoAllowMatched);
        entry.live().cut(before.clone());
        entry.live().cut(Denied::UnknownWorkload("later".into()));
        assert_eq!(entry.live().denied().await, before);

        let waiting = tokio::spawn({
            let connections = connections.clone();
            async move { connections.none_left().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(entry);
        waiting.await.unwrap();
    }

    #[test]
    fn policies_are_remembered_only_when_the_verdict_was_final() {
        let pod = OfPod::new("pod".into(), "workload".into());
        assert!(pod.judged_by_others(vec![], false));
        assert!(!pod.judged_by_others(vec![], false));
        assert!(pod.judged_by_others(vec![], true));
        assert!(pod.judged_by_others(vec![], false));
    }
}
