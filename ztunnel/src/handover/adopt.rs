//! Connections arrive from the elder: looked at before they are taken, carried on after.
//!
//! 1. what came is read, strictly                              (`life`)
//! 2. it is compared with what this process knows: is the pod ours, and the same one? is the peer who the account says?
//!    May we carry it this way?                                ([`Arrival::check`])
//! 3. the right is taken, or not: until then nothing has been touched, and dropping all of it leaves no trace
//! 4. it goes on here, on one worker                            ([`Adoption::go_on`]); policies judge it anew, first of all.
//!    A tunnel that was opened for a pod joins the worker's own: it takes what the pod opens next

use std::io;
use std::sync::Arc;

use hbone::handover::{Dialled, Freezer, Kind, Resumed, Taken, ThawError, Thawed};
use hbone::{Counters, Ended, TcpPair};
use ops::threads::Place;

use super::bytes::Malformed;
use super::told::{Account, PodName, Told, Way};
use crate::admit::{self, Denied};
use crate::agent::Roster;
use crate::carry::{Broken, ended};
use crate::connections::{Bytes, Carrier, Live};
use crate::hint::Hint;
use crate::inbound;
use crate::node::Node;
use crate::pod::Pod;
use crate::rejudge;
use crate::report::{Failure, Report};
use crate::traffic::{Flag, Reporter};

/// Why a connection stays with the elder.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("its account cannot be read: {0}")]
    Account(#[from] Malformed),
    #[error("it cannot be gone on with: {0}")]
    Thaw(#[from] ThawError),
    #[error("its memory or descriptors: {0}")]
    Io(#[from] io::Error),
    #[error("its account and its state tell of different things")]
    Inconsistent,
    #[error("pod {0} is not served here (yet)")]
    Pod(String),
    #[error("the peer is not who its account says")]
    Peer,
    #[error("it was opened for somebody else than its pod")]
    Source,
    #[error("connections between pods of this node go through a tunnel here")]
    ForceTunnel,
}

/// What came, read.
pub(super) struct Arrival {
    account: Account,
    taken: Taken,
}

/// What can be gone on with.
pub(super) struct Adoption {
    arrival: Arrival,
    pod: Arc<Pod>,
    other: Option<Arc<Pod>>,
}

impl Arrival {
    pub(super) fn of(account: Account, taken: Taken) -> Self {
        Self { account, taken }
    }

    /// Compares it with what is known here.
    pub(super) fn check(self, node: &Node, roster: &Roster) -> Result<Adoption, Refusal> {
        let Account { pod, way, carried } = &self.account;
        let pod = found(roster, pod)?;
        let streams = self.taken.tunnels();
        let streams = streams.iter().map(|tunnel| tunnel.stream);
        let mut other = None;
        let (kind, reporter) = match way {
            Way::Arrived { .. } => (Kind::Accepted, Reporter::Destination),
            Way::Opened => (Kind::Dialled, Reporter::Source),
            Way::Plain => (Kind::Pair, carried[0].1.reporter),
            Way::Joined { other: name, there } => {
                if node.config.force_tunnel {
                    return Err(Refusal::ForceTunnel);
                }
                if there.reporter != Reporter::Destination {
                    return Err(Refusal::Inconsistent);
                }
                other = Some(found(roster, name)?);
                (Kind::Pair, Reporter::Source)
            }
        };
        let same = self.taken.kind() == kind
            && carried.iter().all(|(_, told)| told.reporter == reporter)
            && (kind == Kind::Pair || streams.eq(carried.iter().map(|(stream, _)| *stream)));
        if !same {
            return Err(Refusal::Inconsistent);
        }
        self.check_identities(&pod, other.as_deref())?;
        if kind == Kind::Dialled && !self.was_opened_for(&pod) {
            return Err(Refusal::Source);
        }
        Ok(Adoption {
            arrival: self,
            pod,
            other,
        })
    }

    /// Who the reports say that talks is who proved it, and who the pod is.
    fn check_identities(&self, pod: &Pod, other: Option<&Pod>) -> Result<(), Refusal> {
        let of = |pod: &Pod| pod.known().map(|known| known.identity.clone());
        let (pod, other) = (of(pod), other.and_then(of));
        let ours = pod.as_ref();
        if let Way::Joined { there, .. } = &self.account.way
            && (there.ends.source_identity != pod || there.ends.destination_identity != other)
        {
            return Err(Refusal::Peer);
        }
        let fits = |told: &Told| match (&self.account.way, told.reporter) {
            (Way::Arrived { .. }, _) => {
                told.ends.source_identity.as_ref() == self.taken.peer()
                    && told.ends.destination_identity.as_ref() == ours
            }
            (_, Reporter::Source) => told.ends.source_identity.as_ref() == ours,
            // Plain text proves nothing.
            (_, Reporter::Destination) => told.ends.source_identity.is_none(),
        };
        let carried = &self.account.carried;
        match carried.iter().all(|(_, told)| fits(told)) {
            true => Ok(()),
            false => Err(Refusal::Peer),
        }
    }

    /// A tunnel that is to take what `pod` opens next was opened as it, and from an address of its own. One that the
    /// control plane does not know is known by what the tunnel carries.
    fn was_opened_for(&self, pod: &Pod) -> bool {
        let (Some(opened), Some(known)) = (self.taken.destination(), pod.known()) else {
            return false;
        };
        let mut carried = self.account.carried.iter();
        let from = opened.source_ip;
        opened.source == known.identity
            && (known.workload.addresses.contains(&from)
                || carried.any(|(_, told)| told.source.ip() == from))
    }
}

fn found(roster: &Roster, name: &PodName) -> Result<Arc<Pod>, Refusal> {
    let pod = roster.up(&name.uid);
    let same = |pod: &Arc<Pod>| {
        PodName::of(pod) == *name && pod.known().is_some() && !pod.drain.accepting().is_cancelled()
    };
    pod.filter(same)
        .ok_or_else(|| Refusal::Pod(name.uid.clone()))
}

impl Adoption {
    /// Carries on. The right must have been taken.
    pub(super) fn go_on(self, node: &Arc<Node>) -> io::Result<()> {
        let Self {
            arrival: Arrival { account, taken },
            pod,
            other,
        } = self;
        pod.has_work();
        // As if it had been accepted here.
        let home = pod.home().unwrap_or_else(|| node.workers.home());
        let place = node.workers.place(home);
        let _there = place.runtime().enter();
        let thawed = taken.thaw(&node.limits)?;
        let to = Going {
            node,
            pod: &pod,
            place: &place,
        };
        let Account {
            way, mut carried, ..
        } = account;
        match (thawed, way) {
            (Thawed::Accepted(mut connection, resumed), Way::Arrived { peer, local }) => {
                // Its streams are judged by policies, the peer of those that come by the lists of now.
                connection.mind(node.certificates.revoked());
                to.streams(resumed, carried);
                let (node, task_pod) = (node.clone(), pod.clone());
                let share = node.bounds.adopted(&pod.part);
                let serving = async move {
                    let _share = share;
                    inbound::serve_connection(&node, &task_pod, connection, peer, local).await;
                };
                spawn(&pod, place, serving);
            }
            (Thawed::Dialled(dialled, resumed), Way::Opened) => {
                to.streams(resumed, carried);
                place.runtime().spawn(joins(node.clone(), pod, dialled));
            }
            (Thawed::Pair(pair), way @ (Way::Plain | Way::Joined { .. })) => {
                if let Some((_, told)) = carried.pop() {
                    let there = match way {
                        Way::Joined { there, .. } => other.map(|pod| (pod, *there)),
                        _ => None,
                    };
                    spawn(
                        &pod,
                        place,
                        pair_goes_on(node.clone(), pod.clone(), told, pair, there),
                    );
                }
            }
            // `check` has seen to it.
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }
}

/// Where a tunnel's streams go on.
struct Going<'a> {
    node: &'a Arc<Node>,
    pod: &'a Arc<Pod>,
    place: &'a Place,
}

impl Going<'_> {
    fn streams(&self, resumed: Vec<Resumed>, carried: Vec<(u32, Told)>) {
        let mut told = carried.into_iter();
        for resumed in resumed {
            // In the same order, and as many: `check` has compared them.
            if let Some((_, told)) = told.find(|(stream, _)| *stream == resumed.stream()) {
                let (node, pod) = (self.node.clone(), self.pod.clone());
                let work = stream_goes_on(node, pod, told, resumed);
                let cut = self.pod.drain.now().clone();
                let work = async move { cut.run_until_cancelled(work).await };
                self.pod.drain.spawn_on(self.place.runtime(), work);
            }
        }
    }
}

/// A tunnel is one of this worker's from now on, and belongs to no connection: those that it carries are cut with their
/// pod.
async fn joins(node: Arc<Node>, pod: Arc<Pod>, dialled: Dialled) {
    let driving = dialled.join(node.workers.pool());
    // The pod's tunnels are let go of when it stops: whichever of the two comes last does it.
    if pod.drain.accepting().is_cancelled() {
        node.pod_stopped(&pod);
    }
    drop((node, pod));
    driving.await;
}

/// One task, which ends at the latest when the pod's work is cut.
fn spawn(pod: &Pod, place: Place, work: impl Future<Output = ()> + Send + 'static) {
    let (cut, work) = (pod.drain.now().clone(), Box::pin(work));
    let (runtime, load) = place.held();
    // Boxed: a future that is handed on by value has room for it twice, as long as it lives.
    let held = Box::pin(async move {
        let _load = load;
        cut.run_until_cancelled(work).await
    });
    pod.drain.spawn_on(&runtime, held);
}

async fn stream_goes_on(node: Arc<Node>, pod: Arc<Pod>, told: Told, resumed: Resumed) {
    let _held = (node.workers.stay(), node.bounds.adopted(&pod.part));
    let carrier = Carrier::Tunnel(resumed.freezer(), resumed.stream());
    let bytes = bytes(resumed.moved());
    let (mut report, live) = Report::resumed(&node, &pod, &told, false, bytes);
    live.carried_by(carrier);
    let copying = Box::pin(resumed.both_ways(live.counting()));
    let done = carried(&node, &pod, &live, copying).await;
    tell(&mut report, &done);
}

async fn pair_goes_on(
    node: Arc<Node>,
    pod: Arc<Pod>,
    told: Told,
    pair: TcpPair,
    there: Option<(Arc<Pod>, Told)>,
) {
    let _share = node.bounds.adopted(&pod.part);
    let freezer = pair.freezer();
    let bytes = bytes(pair.moved());
    let (mut report, live) = Report::resumed(&node, &pod, &told, there.is_some(), bytes);
    let Some((other, there)) = there else {
        live.carried_by(Carrier::Pair(freezer));
        let copying = Box::pin(pair.both_ways(live.counting()));
        let done = carried(&node, &pod, &live, copying).await;
        return tell(&mut report, &done);
    };
    joined_goes_on(node, (&mut report, &live), freezer, pair, (other, there)).await;
}

/// Both reports, as `local` has them.
async fn joined_goes_on(
    node: Arc<Node>,
    (report, here): (&mut Report, &Arc<Live>),
    freezer: Freezer,
    pair: TcpPair,
    (other, told): (Arc<Pod>, Told),
) {
    let mirror = Bytes::MirrorOf(here.clone());
    let (mut there, live) = Report::resumed(&node, &other, &told, true, mirror);
    here.carried_by(Carrier::Joined(
        freezer,
        other.clone(),
        Arc::downgrade(&live),
    ));
    let _share = node.bounds.adopted(&other.part);
    let (_hold, cut) = (other.drain.hold(), other.drain.now());
    let copying = Box::pin(pair.both_ways(here.counting()));
    let done = tokio::select! {
        done = carried(&node, &other, &live, copying) => done,
        () = cut.cancelled() => return,
    };
    tell(&mut there, &done);
    tell(report, &done);
}

/// Copies to the end, or until a policy is against it: at once, if one is.
async fn carried(
    node: &Node,
    pod: &Pod,
    live: &Live,
    copying: impl Future<Output = Ended>,
) -> Result<(), Stopped> {
    if live.reporter == Reporter::Source {
        rejudge::taken(node, pod, live);
        return tokio::select! {
            biased;
            denied = live.denied() => Err(denied.into()),
            done = copying => ended(done),
        };
    }
    tokio::select! {
        biased;
        denied = denied(node, pod, live) => Err(denied.into()),
        done = copying => ended(done),
    }
}

async fn denied(node: &Node, pod: &Pod, live: &Live) -> Denied {
    let uid = pod.workload_uid();
    let judged = admit::admit(node, &uid, live);
    tokio::select! {
        denied = live.denied() => return denied,
        judged = judged => if let Err(denied) = judged {
            return denied;
        }
    }
    live.denied().await
}

/// Why it did not end as its ends meant it.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl Failure for Stopped {
    fn flag(&self) -> Flag {
        match self {
            Self::Denied(why) => why.flag(),
            Self::Broken(why) => why.flag(),
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Denied(why) => why.hint(),
            Self::Broken(why) => why.hint(),
        }
    }

    fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::Denied(why) => why.policy(),
            Self::Broken(_) => None,
        }
    }
}

fn tell(report: &mut Report, done: &Result<(), Stopped>) {
    match done {
        Ok(()) => report.completed(),
        Err(why) => report.failed(why),
    }
}

fn bytes((sent, received): (u64, u64)) -> Bytes {
    Bytes::Own(Counters::of(sent, received))
}
