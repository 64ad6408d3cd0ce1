//! ZDS, the socket on which ztunnels learn of the node's pods (docs/wire.md, "ZDS").
//!
//! ztunnels connect; pods and their network namespaces leave. On each connection:
//!
//! 1. ztunnel says Hello
//! 2. one Add, with the namespace, for every pod there is; Keep where the namespace is lost
//! 3. SnapshotSent: it drops what was not named
//! 4. Add and Del, as pods come and go
//!
//! Strictly one message, one acknowledgement. There is no request number, so an
//! acknowledgement that comes late would be taken for the next one: a connection that misses a
//! deadline is closed, and the snapshot of the next one puts everything right.
//!
//! While ztunnel is upgraded two are connected. Add goes to the one accepted last, Del to all. Should the last one leave first,
//! the other is told of all pods once more.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::zds::workload_request::Payload;
use api::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello, workload_response,
};
use prometheus_client::metrics::gauge::Gauge;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::netns::Netns;
use super::pod::{Pod, Uid};
use super::seqpacket::{Connection, Listener};

/// What a connection needs of the agent's owner.
#[derive(Debug)]
pub(crate) enum Ask {
    /// The pods of this moment.
    Snapshot(oneshot::Sender<Vec<Known>>),
    /// A ztunnel has taken a snapshot; these of its pods are up there.
    Taken(Vec<Uid>),
    /// The newest ztunnel is gone and an earlier one is not: of the pods since then only the one that left was told.
    Left,
}

/// A pod in a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) pod: Arc<Pod>,
    /// Unknown for a pod that was enrolled by an earlier life of the agent and cannot be found.
    pub(crate) netns: Option<Arc<Netns>>,
}

/// Why a ztunnel did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZdsError {
    #[error("no ztunnel connection")]
    NoZtunnel,
    #[error("ztunnel refused the pod: {0}")]
    Refused(String),
    #[error("ztunnel did not answer in time and was disconnected")]
    Late,
    #[error("ztunnel's connection ended: {0}")]
    Ended(io::Error),
    #[error("ztunnel broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the pod's names do not fit into one message")]
    TooLong,
}

/// The ztunnels connected now, in the order of their arrival.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ztunnels {
    list: Arc<Mutex<Vec<Handle>>>,
    next: Arc<AtomicU64>,
    connected: Gauge,
}

impl Ztunnels {
    /// `connected` is kept at their number.
    pub(crate) fn new(connected: Gauge) -> Self {
        Self {
            connected,
            ..Self::default()
        }
    }

    /// Has the newest ztunnel take up a pod, and waits until its listeners are there.
    pub(crate) async fn add(&self, pod: &Pod, netns: &Arc<Netns>) -> Result<(), ZdsError> {
        loop {
            let newest = self.handles().last().cloned();
            let newest = newest.ok_or(ZdsError::NoZtunnel)?;
            match newest.ask(add(pod), Some(netns.clone())).await {
                // It left without having looked at this one. Whoever is the newest now is asked.
                None => {}
                Some(outcome) => return outcome,
            }
        }
    }

    /// Has every ztunnel let go of a pod. One that cannot be told will find out from its next
    /// snapshot, so there is nothing to report.
    pub(crate) async fn del(&self, uid: &Uid) {
        for ztunnel in self.handles() {
            let payload = Payload::Del(DelWorkload {
                uid: uid.to_string(),
            });
            if let Some(Err(error)) = ztunnel.ask(payload, None).await {
                tracing::warn!(uid = %uid, ztunnel = ztunnel.id, %error, "ztunnel did not let go of a pod");
            }
        }
    }

    /// Whether none is connected.
    pub(crate) fn is_empty(&self) -> bool {
        self.handles().is_empty()
    }

    fn handles(&self) -> Vec<Handle> {
        self.list
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A connection joins before it has said a word: from here on no change escapes it.
    fn join(&self) -> Option<Member> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() >= MOST {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (requests, inbox) = mpsc::channel(QUEUE);
        list.push(Handle { id, requests });
        self.connected
            .set(i64::try_from(list.len()).unwrap_or(i64::MAX));
        Some(Member {
            id,
            inbox,
            ztunnels: self.clone(),
        })
    }

    /// Whether it was the newest, and an earlier one is left. Leaving twice is leaving once.
    fn leave(&self, id: u64) -> bool {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = list.last().is_some_and(|handle| handle.id == id);
        list.retain(|handle| handle.id != id);
        self.connected
            .set(i64::try_from(list.len()).unwrap_or(i64::MAX));
        newest && !list.is_empty()
    }
}

#[derive(Clone, Debug)]
struct Handle {
    id: u64,
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    payload: Payload,
    netns: Option<Arc<Netns>>,
    done: oneshot::Sender<Result<(), ZdsError>>,
}

impl Handle {
    /// `None`: the connection ended before this request's turn.
    async fn ask(
        &self,
        payload: Payload,
        netns: Option<Arc<Netns>>,
    ) -> Option<Result<(), ZdsError>> {
        let (done, answer) = oneshot::channel();
        self.requests
            .send(Request {
                payload,
                netns,
                done,
            })
            .await
            .ok()?;
        answer.await.ok()
    }
}

/// A connection's place in the list, which it gives up when it ends in whatever way: first the
/// place, then (fields are dropped later) the requests still waiting, so that none comes back.
struct Member {
    id: u64,
    inbox: mpsc::Receiver<Request>,
    ztunnels: Ztunnels,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.ztunnels.leave(self.id);
    }
}

/// Accepts ztunnels until told to stop.
pub(crate) async fn serve(
    listener: Listener,
    ztunnels: Ztunnels,
    owner: mpsc::Sender<Ask>,
    stop: CancellationToken,
) {
    // A ztunnel that crashes in a loop must not keep the agent busy.
    let mut window = (Instant::now(), 0);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => match ztunnels.join() {
                Some(member) => {
                    tokio::spawn(run(connection, member, owner.clone(), stop.clone()));
                }
                None => tracing::warn!(most = MOST, "too many ztunnels, one is turned away"),
            },
            Err(error) => tracing::warn!(%error, "a ztunnel could not be accepted"),
        }
        window.1 += 1;
        if window.1 >= PER_SECOND {
            sleep_until(window.0 + Duration::from_secs(1)).await;
            window = (Instant::now(), 0);
        }
    }
}

async fn run(
    connection: Connection,
    mut member: Member,
    owner: mpsc::Sender<Ask>,
    stop: CancellationToken,
) {
    let id = member.id;
    tracing::info!(ztunnel = id, "ztunnel connected");
    let ended = tokio::select! {
        () = stop.cancelled() => return,
        ended = converse(&connection, &mut member.inbox, &owner) => ended,
    };
    match ended {
        Ok(()) => tracing::info!(ztunnel = id, "ztunnel disconnected"),
        Err(error) => tracing::warn!(ztunnel = id, %error, "ztunnel is disconnected"),
    }
    // A new version that fails, or is taken back, leaves the earlier one to serve.
    let left = member.ztunnels.leave(id);
    drop(member);
    if left {
        let _ = owner.send(Ask::Left).await;
    }
}

/// The life of one connection. `Ok` when ztunnel leaves.
async fn converse(
    connection: &Connection,
    inbox: &mut mpsc::Receiver<Request>,
    owner: &mpsc::Sender<Ask>,
) -> Result<(), ZdsError> {
    hello(connection).await?;

    let (reply, snapshot) = oneshot::channel();
    let gone = |_| ZdsError::Ended(io::ErrorKind::Interrupted.into());
    owner
        .send(Ask::Snapshot(reply))
        .await
        .map_err(|_| gone(()))?;
    let mut taken = Vec::new();
    for known in snapshot.await.map_err(|_| gone(()))? {
        let payload = match known.netns {
            Some(_) => add(&known.pod),
            None => Payload::Keep(KeepWorkload {
                uid: known.pod.uid.to_string(),
            }),
        };
        match exchange(connection, payload, known.netns.as_ref()).await {
            Ok(()) if known.netns.is_some() => taken.push(known.pod.uid.clone()),
            Ok(()) => {}
            // It keeps trying by itself; the other pods must not wait for this one.
            Err(error @ (ZdsError::Refused(_) | ZdsError::TooLong)) => {
                tracing::warn!(pod = %known.pod, %error, "ztunnel has trouble with a pod");
            }
            Err(error) => return Err(error),
        }
    }
    exchange(connection, Payload::SnapshotSent(SnapshotSent {}), None).await?;
    owner.send(Ask::Taken(taken)).await.map_err(|_| gone(()))?;

    let mut unasked = [0; PACKET];
    loop {
        tokio::select! {
            biased;
            heard = connection.recv(&mut unasked) => return match heard.map_err(ZdsError::Ended)? {
                None => Ok(()),
                Some(_) => Err(ZdsError::Protocol("it spoke unasked")),
            },
            Some(request) = inbox.recv() => {
                let outcome = exchange(connection, request.payload, request.netns.as_ref()).await;
                let end = !matches!(outcome, Ok(()) | Err(ZdsError::Refused(_) | ZdsError::TooLong));
                let _ = request.done.send(outcome);
                if end {
                    return Err(ZdsError::Protocol("a message was not acknowledged"));
                }
            }
        }
    }
}

async fn hello(connection: &Connection) -> Result<(), ZdsError> {
    let mut packet = [0; PACKET];
    let length = hear(connection, &mut packet).await?;
    match ZdsHello::decode(&packet[..length]) {
        Ok(hello) if hello.version == i32::from(Version::V1) => Ok(()),
        Ok(_) => Err(ZdsError::Protocol("it speaks another version")),
        Err(_) => Err(ZdsError::Protocol("its hello is not understood")),
    }
}

/// One message, one acknowledgement.
async fn exchange(
    connection: &Connection,
    payload: Payload,
    netns: Option<&Arc<Netns>>,
) -> Result<(), ZdsError> {
    let message = WorkloadRequest {
        payload: Some(payload),
    }
    .encode_to_vec();
    if message.len() > PACKET {
        return Err(ZdsError::TooLong);
    }
    let passenger = netns.map(|netns| netns.as_fd());
    timeout(DEADLINE, connection.send(&message, passenger))
        .await
        .map_err(|_| ZdsError::Late)?
        .map_err(ZdsError::Ended)?;
    let mut packet = [0; PACKET];
    let length = hear(connection, &mut packet).await?;
    let response = WorkloadResponse::decode(&packet[..length])
        .map_err(|_| ZdsError::Protocol("its answer is not understood"))?;
    match response.payload {
        Some(workload_response::Payload::Ack(ack)) if ack.error.is_empty() => Ok(()),
        Some(workload_response::Payload::Ack(ack)) => Err(ZdsError::Refused(ack.error)),
        None => Err(ZdsError::Protocol("its answer is empty")),
    }
}

async fn hear(connection: &Connection, packet: &mut [u8]) -> Result<usize, ZdsError> {
    timeout(DEADLINE, connection.recv(packet))
        .await
        .map_err(|_| ZdsError::Late)?
        .map_err(ZdsError::Ended)?
        .ok_or_else(|| ZdsError::Ended(io::ErrorKind::UnexpectedEof.into()))
}

fn add(pod: &Pod) -> Payload {
    Payload::Add(AddWorkload {
        uid: pod.uid.to_string(),
        workload_info: Some(WorkloadInfo {
            name: pod.name.to_string(),
            namespace: pod.namespace.to_string(),
            service_account: pod.service_account.to_string(),
        }),
    })
}

/// Both sides read into 1024 bytes.
const PACKET: usize = 1024;
/// For each thing that ztunnel must say or hear.
const DEADLINE: Duration = Duration::from_secs(5);
const PER_SECOND: u32 = 5;
/// An upgrade has two; more than a few means that something forgets to hang up.
const MOST: usize = 8;
/// Requests of one connection that may wait; who finds it full waits too.
const QUEUE: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::pod;
    use super::*;

    #[test]
    fn the_longest_names_kubernetes_allows_fit_into_a_packet() {
        let long = pod(
            json!({ "name": "n".repeat(253), "namespace": "s".repeat(63), "uid": "u".repeat(36) }),
            json!({ "spec": { "nodeName": "n1", "containers": [], "serviceAccountName": "a".repeat(253) } }),
        );
        let message = WorkloadRequest {
            payload: Some(add(&long)),
        };
        assert!(message.encoded_len() <= PACKET);
    }

    #[test]
    fn a_member_that_leaves_takes_its_place_with_it() {
        let ztunnels = Ztunnels::default();
        let (first, second) = (ztunnels.join().unwrap(), ztunnels.join().unwrap());
        let ids = |ztunnels: &Ztunnels| ztunnels.handles().iter().map(|h| h.id).collect::<Vec<_>>();
        assert_eq!(ids(&ztunnels), [first.id, second.id]);
        assert_eq!(ztunnels.connected.get(), 2);
        drop(first);
        assert_eq!(ids(&ztunnels), [second.id]);
        drop(second);
        assert!(ztunnels.is_empty());
        assert_eq!(ztunnels.connected.get(), 0);
    }

    #[test]
    fn there_is_an_end_to_how_many_are_let_in() {
        let ztunnels = Ztunnels::default();
        let members: Vec<_> = (0..MOST).map(|_| ztunnels.join().unwrap()).collect();
        assert!(ztunnels.join().is_none());
        drop(members);
        assert!(ztunnels.join().is_some());
    }
}
