//! Who is asked for when a connection needs to know, where not the whole mesh is followed (`XDS_ON_DEMAND`).
//!
//! 1. a connection needs to know who is at an address, or behind a name              ([`OnDemand::towards`], [`OnDemand::arriving`])
//! 2. what was not asked before is asked, and the connection waits, but not for ever  ([`OnDemand::ask`])
//! 3. the answer comes among the responses: who it is, or that there is nobody       ([`OnDemand::apply`], `book`)
//! 4. whoever was asked for is followed from then on, as everybody is without this
//! 5. what nobody has needed for a while is given up, and taken out of the mesh       ([`OnDemand::tend`])
//!
//! Who is not told of in time is not gone around: the connection is refused. That there is nobody is an answer, and then the
//! rules for who is unknown apply (`route`). Questions about names ask as well, wait for a moment, and then go on without (`names`). While there is no control plane what is known stays, and nothing is given up.
//!
//! Policies are followed whole, and this node's own workloads come unasked.

mod book;
mod names;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hbone::Authority;
use mesh::names::{ANY_NAMESPACE, address_name, host_name};
use mesh::{
    Demand, GatewayAddress, GatewayTarget, NamespacedHost, Network, Rejected, Service, Snapshot,
    Step, Update, VipAddress, Workload, Writer,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::connections::Live;
use crate::hint::Hint;
use crate::node::Node;
use crate::report::Failure;
use crate::traffic::{Flag, Reporter};
use book::{Book, For, Heard, Seen, Told};

/// What is followed because somebody needed it.
#[derive(Debug)]
pub struct OnDemand {
    terms: Terms,
    book: Mutex<Book>,
    demands: mpsc::Sender<Demand>,
    /// Until discovery takes it.
    demanded: Mutex<Option<mpsc::Receiver<Demand>>>,
    scribe: Mutex<Scribe>,
    /// Whether there is a stream to the control plane.
    connected: AtomicBool,
    /// How often it has told something, and how often it had when it last left a question about a name unanswered.
    words: AtomicU64,
    mute_since: AtomicU64,
    /// Much was given up at once.
    crowded: Notify,
    /// A new stream was to be asked for more than there was room for.
    unsaid: Notify,
    asked: Family<Asked, Counter>,
}

/// How long, and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// A connection waits for an answer.
    pub(crate) wait: Duration,
    /// What nobody needs is followed.
    pub(crate) unused: Duration,
    /// Names that are followed.
    pub(crate) most: usize,
}

/// Who writes the mesh, and what was told that is not seen yet.
#[derive(Debug, Default)]
struct Scribe {
    writer: Option<Writer>,
    heard: Heard,
    in_parts: bool,
}

/// Who is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whom<'a> {
    /// Whoever is at an address.
    At(&'a Network, IpAddr),
    /// A service, or those of a host in [any namespace](ANY_NAMESPACE).
    Named(&'a NamespacedHost),
    /// The gateway of a network that is no service, but a place with a name: its host and port.
    Door(&'a Network, &'a str, u16),
}

/// Why somebody is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTold {
    #[error("the control plane has not said within {1:?} who {0} is; is it running?")]
    Silent(Arc<str>, Duration),
    #[error("who {0} is cannot be asked of the control plane now: too much is asked already")]
    TooMuch(Arc<str>),
    #[error(
        "what the control plane says of {0} cannot be understood; the log of discovery says why"
    )]
    Unreadable(Arc<str>),
}

impl NotTold {
    fn result(&self) -> &'static str {
        match self {
            Self::Silent(..) => "silent",
            Self::TooMuch(_) => "too_much",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

impl Failure for NotTold {
    fn flag(&self) -> Flag {
        Flag::Connect
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::NotAnswered)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    result: &'static str,
}

impl Whom<'_> {
    /// By which the control plane is asked.
    fn name(&self) -> String {
        match self {
            Self::At(network, ip) => address_name(network, *ip),
            Self::Named(host) => host.to_string(),
            // The uid under which discovery has it.
            Self::Door(network, host, port) => format!("NetworkGateway/{network}/{host}/{port}"),
        }
    }

    fn is_known(&self, snapshot: &Snapshot) -> bool {
        match self {
            Self::At(network, ip) => snapshot.is_anybody_at(network, ip.to_canonical()),
            Self::Named(host) if *host.namespace == *ANY_NAMESPACE => {
                snapshot.services_named(&host.host).next().is_some()
            }
            Self::Named(host) => snapshot.service(&host.namespace, &host.host).is_some(),
            Self::Door(..) => snapshot.workload(&self.name()).is_some(),
        }
    }
}

impl<'a> From<&'a GatewayAddress> for Whom<'a> {
    fn from(gateway: &'a GatewayAddress) -> Self {
        match &gateway.target {
            GatewayTarget::Host(host) => Self::Named(host),
            GatewayTarget::Address(network, ip) => Self::At(network, *ip),
        }
    }
}

impl OnDemand {
    /// As the operator wants it, if at all.
    pub(crate) fn of(config: &Config) -> Option<Arc<Self>> {
        let terms = Terms {
            wait: config.on_demand_wait,
            unused: config.on_demand_unused,
            most: config.on_demand_most,
        };
        config.xds_on_demand.then(|| Self::new(terms))
    }

    pub(crate) fn new(mut terms: Terms) -> Arc<Self> {
        terms.unused = terms.unused.max(terms.wait);
        let (demands, demanded) = mpsc::channel(UNSENT);
        Arc::new(Self {
            terms,
            book: Mutex::new(Book::new(terms.most.max(1))),
            demands,
            demanded: Mutex::new(Some(demanded)),
            scribe: Mutex::default(),
            connected: AtomicBool::new(false),
            words: AtomicU64::new(0),
            mute_since: AtomicU64::new(u64::MAX),
            crowded: Notify::new(),
            unsaid: Notify::new(),
            asked: Family::default(),
        })
    }

    // ---- connections

    /// Asks for everything on which it depends where a connection of `source` to `destination` goes, but for the gateways of
    /// other networks: those are known when it is decided.
    pub(crate) async fn towards(
        &self,
        node: &Node,
        source: &Workload,
        destination: SocketAddr,
    ) -> Result<(), NotTold> {
        let (network, ip) = (&source.network, destination.ip());
        self.whom(node, Whom::At(network, ip)).await?;
        for front in fronts(&node.mesh.load_full(), source, ip) {
            self.whom(node, Whom::from(&*front)).await?;
        }
        Ok(())
    }

    /// Asks for what says whether a tunnel for `authority` leads into the pod of `workload`, where the workload alone does not.
    pub(crate) async fn leads_here(
        &self,
        node: &Node,
        workload: &Workload,
        local: IpAddr,
        authority: &Authority,
    ) -> Result<(), NotTold> {
        match authority {
            Authority::Ip(asked)
                if asked.ip() == local || workload.application_tunnel.is_some() =>
            {
                Ok(())
            }
            Authority::Ip(asked) => self.towards(node, workload, *asked).await,
            Authority::Host(host, _) => {
                let mut services = workload.services.iter().map(|member| &member.service);
                match services.find(|service| service.host.eq_ignore_ascii_case(host)) {
                    Some(service) => self.whom(node, Whom::Named(service)).await.map(|_| ()),
                    None => Ok(()),
                }
            }
        }
    }

    /// Asks for what is said of a connection that arrives: who its client is, and which services it may have come for. Waits a
    /// moment only: what comes later is said of the next. Clients may be any number and from anywhere, and nobody is refused
    /// for what is said of them: they push out nobody whom a pod calls.
    pub(crate) async fn arriving(&self, node: &Node, workload: &Workload, peer: IpAddr) {
        let services = workload.services.iter().take(MEMBERSHIPS);
        let services = services.map(|member| Whom::Named(&member.service));
        let all = services.chain([Whom::At(&workload.network, peer)]);
        let asking = all.map(|whom| self.whom_for(node, whom, For::Question));
        let asking = futures_util::future::join_all(asking);
        let _ = tokio::time::timeout(MOMENT, asking).await;
    }

    /// Asks for whoever has that name again and again, until this is dropped.
    pub(crate) async fn keep_asking(&self, name: &str) -> Infallible {
        loop {
            let _ = self.ask(name).await;
            tokio::time::sleep(ABSENT).await;
        }
    }

    /// Whoever is meant is known when this returns, or known not to exist. Whether it had to be asked.
    pub(crate) async fn whom(&self, node: &Node, whom: Whom<'_>) -> Result<bool, NotTold> {
        self.whom_for(node, whom, For::Connection).await
    }

    async fn whom_for(
        &self,
        node: &Node,
        whom: Whom<'_>,
        needed_for: For,
    ) -> Result<bool, NotTold> {
        let (name, wait) = (whom.name(), self.terms.wait);
        let (told, asked) = self.ask_for(&name, needed_for, wait).await?;
        if told != Told::There || whom.is_known(&node.mesh.load()) {
            return Ok(asked);
        }
        // It has gone since. The control plane would say who comes in its place, but not every one does.
        lock(&self.book).doubt(&name, Instant::now());
        let again = self.ask_for(&name, needed_for, wait).await;
        again.map(|_| true)
    }

    /// What is told of that name, and whether it had to be asked.
    async fn ask(&self, name: &str) -> Result<(Told, bool), NotTold> {
        self.ask_for(name, For::Connection, self.terms.wait).await
    }

    async fn ask_for(
        &self,
        name: &str,
        needed_for: For,
        wait: Duration,
    ) -> Result<(Told, bool), NotTold> {
        let mut answer = match self.look(name, needed_for)? {
            Ok(told) => return readable(name, told).map(|told| (told, false)),
            Err(answer) => answer,
        };
        let told = answer.wait_for(|told| *told != Told::Waiting);
        let told = match tokio::time::timeout(wait, told).await {
            Ok(Ok(told)) => readable(name, *told),
            // No answer in time, or given up for others before there was one.
            Ok(Err(_)) | Err(_) => Err(NotTold::Silent(name.into(), wait)),
        };
        let result = match &told {
            Ok(Told::There) => "there",
            Ok(_) => "absent",
            Err(why) => why.result(),
        };
        self.count(result);
        Ok((told?, true))
    }

    /// The answer, or how to wait for it.
    fn look(
        &self,
        name: &str,
        needed_for: For,
    ) -> Result<Result<Told, watch::Receiver<Told>>, NotTold> {
        let mut book = lock(&self.book);
        let too_much = || {
            self.count("too_much");
            NotTold::TooMuch(name.into())
        };
        match book.see(name, needed_for, Instant::now()) {
            Seen::Known(told) => Ok(Ok(told)),
            Seen::Wait(answer) => Ok(Err(answer)),
            Seen::Full => Err(too_much()),
            Seen::Ask {
                name,
                again,
                answer,
            } => {
                let demand = if again { Demand::Again } else { Demand::Want };
                // While the book is locked: what is asked and what is given up keep their order.
                if self.demands.try_send(demand(name.clone())).is_err() {
                    book.unasked(&name, again);
                    return Err(too_much());
                }
                if book.given_up() >= CROWDED {
                    self.crowded.notify_one();
                }
                Ok(Err(answer))
            }
        }
    }

    fn count(&self, result: &'static str) {
        self.asked.get_or_create(&Asked { result }).inc();
    }

    // ---- discovery

    /// What discovery asks for, for whoever runs it; once.
    pub(crate) fn demands(&self) -> Option<mpsc::Receiver<Demand>> {
        lock(&self.demanded).take()
    }

    /// Writes the mesh from now on.
    pub(crate) fn writes(&self, writer: Writer) {
        lock(&self.scribe).writer = Some(writer);
    }

    /// Whether there is a stream to the control plane.
    ///
    /// What the last one took along and left unanswered stands in the first request of a new one, and is no question there:
    /// of whoever is held already in the same version (as an endpoint, say) nothing is told, and those who wait would do so
    /// for ever. So it is asked once more.
    pub(crate) fn connected(&self, connected: bool) {
        self.connected.store(connected, Relaxed);
        if !connected {
            return;
        }
        // While the book is locked, for the reason that `look` gives.
        let book = lock(&self.book);
        for name in book.waiting() {
            if self.demands.try_send(Demand::Want(name.clone())).is_err() {
                // What was asked while there was no stream has taken the room.
                self.unsaid.notify_one();
                break;
            }
        }
    }

    /// Asks once more for whoever is waited for, as the stream makes room.
    async fn ask_again(&self) {
        let waiting: Vec<Arc<str>> = lock(&self.book).waiting().cloned().collect();
        for name in waiting {
            let Ok(permit) = self.demands.reserve().await else {
                return;
            };
            // While the book is locked, for the reason that `look` gives.
            let book = lock(&self.book);
            if book.waits_for(&name) {
                permit.send(Demand::Want(name));
            }
        }
    }

    /// Applies what the control plane tells, and lets those know who wait for it.
    pub(crate) fn apply(&self, update: Update) -> Vec<Rejected> {
        self.words.fetch_add(1, Relaxed);
        let mut scribe = lock(&self.scribe);
        let Scribe {
            writer: Some(writer),
            heard,
            in_parts,
        } = &mut *scribe
        else {
            return Vec::new();
        };
        let step = update.step;
        if step == Step::Withdrawn {
            (*heard, *in_parts) = Default::default();
            return writer.apply(update);
        }
        heard.note(&update);
        let rejected = writer.apply(update);
        heard.refused(&rejected);
        *in_parts = step == Step::Part;
        if step == Step::Complete {
            lock(&self.book).hear(std::mem::take(heard), ABSENT, Instant::now());
        }
        rejected
    }

    /// Gives up what nobody needs, until dropped.
    pub(crate) async fn tend(self: Arc<Self>, node: Arc<Node>) {
        let period = (self.terms.unused / 4).clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
        loop {
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = self.crowded.notified() => {}
                () = self.unsaid.notified() => {
                    self.ask_again().await;
                    continue;
                }
            }
            // While there is no stream nobody could say anew what is given up.
            if self.connected.load(Relaxed)
                && let Ok(permit) = self.demands.reserve().await
            {
                self.give_up(&node, permit);
            }
        }
    }

    fn give_up(&self, node: &Node, permit: mpsc::Permit<'_, Demand>) {
        let mut scribe = lock(&self.scribe);
        let Scribe {
            writer: Some(writer),
            in_parts: false,
            ..
        } = &mut *scribe
        else {
            return;
        };
        let (snapshot, now) = (node.mesh.load_full(), Instant::now());
        let own = node.pods.workloads();
        let in_use = in_use(node, &snapshot);
        let mut book = lock(&self.book);
        for name in in_use
            .iter()
            .map(|name| &**name)
            .chain(own.iter().map(|uid| &**uid))
        {
            book.need(name, now);
        }
        if let Some(since) = now.checked_sub(self.terms.unused) {
            book.expire(since);
        }
        let mut forgotten = book.take_given_up();
        // An answer that is on its way may be about who would be taken out here.
        let unneeded = match book.is_waiting() {
            true => Vec::new(),
            false => unneeded(&snapshot, &book, &node.config.node_name, &own),
        };
        if forgotten.is_empty() && unneeded.is_empty() {
            return;
        }
        let mut update = Update::default();
        update.addresses.removed.clone_from(&unneeded);
        writer.apply(update);
        forgotten.extend(unneeded);
        tracing::debug!(
            names = forgotten.len(),
            followed = book.len(),
            "xds: given up, nobody needs them"
        );
        // While the book is locked, for the reason that `look` gives.
        permit.send(Demand::Forget(forgotten.into_iter().collect()));
    }

    /// Enters its figures into `registry`.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register(
            "ambit_on_demand_requests",
            "What the control plane was asked for because a connection needed it, by what came of it",
            self.asked.clone(),
        );
        registry.register_collector(Box::new(Followed(self.clone())));
    }
}

/// How many names are followed, counted when somebody looks.
#[derive(Debug)]
struct Followed(Arc<OnDemand>);

impl Collector for Followed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let count = lock(&self.0.book).len();
        let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(
            "ambit_on_demand_followed",
            "Names that are followed because a connection needed them",
            None,
            gauge.metric_type(),
        )?)
    }
}

/// The waypoints of whoever is at an address.
fn fronts(snapshot: &Snapshot, source: &Workload, ip: IpAddr) -> Vec<Arc<GatewayAddress>> {
    if let Some(service) = snapshot.service_at(&source.network, ip, &source.namespace) {
        let weighted = service.weighted_waypoints.iter();
        let weighted = weighted.map(|(waypoint, _)| waypoint.clone());
        return service.waypoint.iter().cloned().chain(weighted).collect();
    }
    let workload = snapshot.workload_at(&source.network, ip);
    workload
        .and_then(|workload| workload.waypoint.clone())
        .into_iter()
        .collect()
}

/// By what name the control plane was asked for what open connections go to or came from.
fn in_use(node: &Node, snapshot: &Snapshot) -> HashSet<String> {
    let mut names = HashSet::new();
    for (_, pod) in node.connections.pods() {
        let Some(workload) = snapshot.workload(pod.workload_uid()) else {
            continue;
        };
        let all = pod.all();
        let other = |live: &Arc<Live>| match live.reporter {
            Reporter::Source => live.original.ip(),
            Reporter::Destination => live.source.ip(),
        };
        let addresses: HashSet<IpAddr> = all.iter().map(other).collect();
        for ip in addresses {
            names.insert(address_name(&workload.network, ip));
            let fronts = fronts(snapshot, workload, ip);
            names.extend(fronts.iter().map(|front| Whom::from(&**front).name()));
        }
    }
    names
}

/// What stands in the mesh and is neither followed nor this node's own.
fn unneeded(snapshot: &Snapshot, book: &Book, node: &str, own: &[Arc<str>]) -> Vec<Arc<str>> {
    let own: HashSet<&str> = own.iter().map(|uid| &**uid).collect();
    let mut unneeded = Vec::new();
    let mut kept = HashSet::new();
    for service in snapshot.services() {
        let key = service.key();
        let name: Arc<str> = key.to_string().into();
        let by_host = || book.follows(&host_name(&service.hostname));
        match book.follows(&name) || by_host() || is_followed(service, book) {
            true => _ = kept.insert(key),
            false => unneeded.push(name),
        }
    }
    for workload in snapshot.workloads() {
        let mut addresses = workload.addresses.iter();
        let is_needed = (!node.is_empty() && *workload.node == *node)
            || own.contains(&*workload.uid)
            || book.follows(&workload.uid)
            || addresses.any(|ip| book.follows(&address_name(&workload.network, *ip)))
            || workload
                .services
                .iter()
                .any(|member| kept.contains(&member.service));
        if !is_needed {
            unneeded.push(workload.uid.clone());
        }
    }
    unneeded
}

fn is_followed(service: &Service, book: &Book) -> bool {
    let mut vips = service.vips.iter();
    vips.any(|vip| match vip.address {
        VipAddress::Ip(ip) => book.follows(&address_name(&vip.network, ip)),
        VipAddress::Cidr(range) => {
            book.follows_within(vip.network.as_str(), &|ip| range.contains(&ip))
        }
    })
}

fn readable(name: &str, told: Told) -> Result<Told, NotTold> {
    match told {
        Told::Unreadable(_) => Err(NotTold::Unreadable(name.into())),
        told => Ok(told),
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long it is believed that there is nobody. A control plane of ours says when somebody comes; Istio's does not.
const ABSENT: Duration = Duration::from_secs(10);
/// A report is not worth more: the control plane is a round trip away.
const MOMENT: Duration = Duration::from_millis(100);
/// Services of one workload that are asked for when a connection comes to it. Nearly all are in one or two.
const MEMBERSHIPS: usize = 8;
/// Questions that the stream has not taken yet.
const UNSENT: usize = 1024;
/// Given up and not told: as many are told at once.
const CROWDED: usize = 256;
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);
const LONGEST_PERIOD: Duration = Duration::from_secs(15);
