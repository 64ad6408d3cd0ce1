//! One stream, from its first request to its end.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use api::discovery::{DeltaDiscoveryRequest, ErrorDetail};
use mesh::session::{Changed, Reply, Session};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::codec::Streaming;

use super::connected::{Answered, Place};
use super::refused::Stand;
use super::{Discovery, FIRST_REQUEST, body, is_internal, node};
use crate::authenticate::Caller;
use crate::catalog::{Catalog, Type, Watch};
use crate::machine::Connection;
use crate::machine::presence::Health;
use crate::metrics::Of;

/// A stream whose caller is known.
pub(super) struct Stream {
    pub(super) discovery: Arc<Discovery>,
    pub(super) caller: Caller,
    pub(super) connection: Connection,
    pub(super) peer: Option<SocketAddr>,
    pub(super) leaving: CancellationToken,
    pub(super) requests: Streaming<DeltaDiscoveryRequest>,
    pub(super) replies: mpsc::Sender<Reply>,
}

/// A stream that has said who it is.
struct Talk {
    discovery: Arc<Discovery>,
    leaving: CancellationToken,
    replies: mpsc::Sender<Reply>,
    place: Place,
    session: Session,
    /// Everything the client was told is of this one.
    told: Arc<Catalog>,
    rounds: Rounds,
    /// Of a gateway's proxy: what it refused.
    stand: Option<Stand>,
    /// Of a machine: how it does.
    health: Option<Health>,
}

/// What wakes a stream.
enum Rounds {
    /// Every publication.
    Every(watch::Receiver<u64>),
    /// Those that are of concern to a gateway.
    OfGateway(Watch),
}

/// The stream ends; with a status if that is not the client's own wish.
type Ends = ControlFlow<Option<Status>>;

impl Stream {
    /// Runs to the end; the status is in `left` before the body's sender is gone.
    pub(super) async fn run(self, left: &OnceLock<Status>) {
        let metrics = self.discovery.metrics.clone();
        let identity = self.caller.identity.clone();
        let keep_open = self.replies.clone();
        if let Some(status) = self.talk().await {
            if is_internal(&status) {
                metrics.internal_errors.increment();
            }
            tracing::info!(%identity, code = ?status.code(), error = status.message(), "stream ended");
            let _ = left.set(status);
        }
        drop(keep_open);
    }

    /// Who the first request says it is, and whose proxy, if that agrees with the token.
    fn client(
        &self,
        first: &DeltaDiscoveryRequest,
    ) -> Result<(node::Proxy, Option<String>), Status> {
        if let (Some(machine), Some(machines)) =
            (&self.caller.machine, &self.discovery.authenticator.machines)
        {
            node::machine(first.node.as_ref(), machine).map_err(|lie| {
                machines.lied(&lie, machine, &self.connection);
                Status::permission_denied(lie.advice())
            })?;
        }
        let proxy = node::check(first.node.as_ref(), &self.caller.identity)?;
        let roster = self.discovery.authenticator.roster.load();
        let gateway = node::gateway(&proxy, &self.caller, &roster)?;
        Ok((proxy, gateway))
    }

    /// A machine that is taken out of the book is told no more; it comes again, and is refused.
    fn watch_the_book(&mut self) -> Option<AbortOnDropHandle<()>> {
        let machines = self.discovery.authenticator.machines.clone()?;
        let reference = self.caller.machine.as_ref()?.reference();
        let (connection, shown) = (self.connection.clone(), self.connection.shown.clone()?);
        self.leaving = self.leaving.child_token();
        let leaving = self.leaving.clone();
        let watching = async move {
            machines.until_gone(&reference, &shown, &connection).await;
            leaving.cancel();
        };
        Some(AbortOnDropHandle::new(tokio::spawn(watching)))
    }

    async fn talk(mut self) -> Option<Status> {
        let _watching = self.watch_the_book();
        let first = tokio::select! {
            first = tokio::time::timeout(FIRST_REQUEST, self.requests.message()) => first,
            () = self.leaving.cancelled() => return None,
            () = self.replies.closed() => return None,
        };
        let first = match first {
            Err(_) => return Some(Status::deadline_exceeded("no request came")),
            Ok(Err(status)) => return Some(status),
            Ok(Ok(None)) => return None,
            Ok(Ok(Some(first))) => first,
        };
        let (proxy, gateway) = match self.client(&first) {
            Err(status) => return Some(status),
            Ok(client) => client,
        };
        tracing::info!(proxy = proxy.id, identity = %self.caller.identity, "proxy connected");
        let connected = &self.discovery.connected;
        let gauge = self.discovery.metrics.connected_as(&proxy.version);
        gauge.inc();
        let catalog = &self.discovery.catalog;
        // Listen first, then look: what is published in between is heard of.
        let rounds = match &gateway {
            None => Rounds::Every(catalog.rounds()),
            Some(gateway) => Rounds::OfGateway(catalog.watch(&Arc::from(&**gateway))),
        };
        let refusals = &self.discovery.refusals;
        let mut talk = Talk {
            rounds,
            stand: gateway.is_some().then(|| Stand::new(refusals)),
            place: connected.enter(proxy, &self.caller.identity, self.peer),
            session: gateway
                .as_deref()
                .map_or_else(Session::new, Session::of_gateway),
            health: self
                .caller
                .machine
                .map(|machine| Health::of(machine, self.discovery.registrar.clone())),
            told: catalog.load(),
            discovery: self.discovery,
            leaving: self.leaving,
            replies: self.replies,
        };
        let ended = talk.run(first, self.requests).await;
        gauge.dec();
        match ended {
            ControlFlow::Break(status) => status,
            ControlFlow::Continue(()) => None,
        }
    }
}

impl Talk {
    async fn run(
        &mut self,
        first: DeltaDiscoveryRequest,
        mut requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Ends {
        self.on_request(first).await?;
        loop {
            tokio::select! {
                () = self.leaving.cancelled() => return Ends::Break(None),
                () = self.replies.closed() => return Ends::Break(None),
                request = requests.message() => match request {
                    Ok(Some(request)) => self.on_request(request).await?,
                    Ok(None) => return Ends::Break(None),
                    Err(status) => return Ends::Break(Some(status)),
                },
                () = self.rounds.moved(self.told.round) => self.on_change().await?,
            }
        }
    }

    async fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Ends {
        if request.type_url == api::HEALTH_TYPE {
            if let Some(health) = &self.health {
                let words =
                    |error: ErrorDetail| clipped(&error.message, LONGEST_REFUSAL).to_owned();
                health.say(request.error_detail.map(words));
            }
            return Ends::Continue(());
        }
        self.note_answer(&request);
        let begun = Instant::now();
        let is_new = self.rounds.ask(&request);
        let answer = self.session.on_request(&*self.told, request);
        if let Some(reply) = answer.reply {
            self.send(reply, begun).await?;
        }
        if let Some(rest) = self.session.rest(&*self.told) {
            self.send(rest, begun).await?;
        }
        if is_new && self.discovery.catalog.load().round != self.told.round {
            return self.on_change().await;
        }
        Ends::Continue(())
    }

    /// The sum of everything since the last time.
    async fn on_change(&mut self) -> Ends {
        let begun = Instant::now();
        let now = self.discovery.catalog.load();
        let names = Type::ALL.map(|r#type| now.changes_since(&self.told, r#type));
        let changed: Vec<_> = Type::ALL
            .into_iter()
            .zip(&names)
            .map(|(r#type, names)| Changed {
                type_url: r#type.url(),
                names,
            })
            .collect();
        let replies = self.session.on_push(&*now, &changed);
        self.told = now;
        let any = !replies.is_empty();
        for reply in replies {
            self.send(reply, begun).await?;
        }
        if any {
            let seconds = self.told.since.elapsed().as_secs_f64();
            self.discovery.metrics.convergence_seconds.observe(seconds);
        }
        Ends::Continue(())
    }

    /// Waits until the client took what was sent before.
    async fn send(&mut self, reply: Reply, begun: Instant) -> Ends {
        if let Some(stand) = &mut self.stand {
            stand.sent(&reply);
        }
        let metrics = &self.discovery.metrics;
        if let Some(of) = of(&reply.type_url) {
            metrics.pushes.get_or_create(&of).increment();
            let bytes = body::length(&reply) as f64;
            metrics.response_bytes.get_or_create(&of).observe(bytes);
            let seconds = begun.elapsed().as_secs_f64();
            metrics.push_seconds.get_or_create(&of).observe(seconds);
        }
        let place = tokio::select! {
            place = self.replies.reserve() => place,
            () = self.leaving.cancelled() => return Ends::Break(None),
        };
        let Ok(place) = place else {
            return Ends::Break(None);
        };
        self.place
            .sent(&reply.type_url, &reply.nonce, &reply.version);
        place.send(reply);
        Ends::Continue(())
    }

    fn note_answer(&mut self, request: &DeltaDiscoveryRequest) {
        let said = request.error_detail.as_ref();
        let refusal = said.map(|error| clipped(&error.message, LONGEST_REFUSAL));
        if request.response_nonce.is_empty() && refusal.is_none() {
            return;
        }
        if let Some(stand) = self.stand.as_mut()
            && request.type_url == api::WAYPOINT_TYPE
        {
            let gateway = self.session.gateway();
            let exists = |name: &str| {
                gateway.is_some_and(|gateway| mesh::key_of(name, gateway).is_some())
                    && self.told.of(Type::Waypoint).contains_key(name)
            };
            let error = request.error_detail.as_ref();
            stand.answered(&request.response_nonce, error, exists);
        }
        // Of what we never sent there is nothing to take or to refuse, and nothing to remember.
        let Some(of) = of(&request.type_url) else {
            return;
        };
        let type_url = &*request.type_url;
        let answered = self
            .place
            .answered(type_url, &request.response_nonce, refusal);
        if answered == Answered::Stale {
            self.discovery
                .metrics
                .expired_nonces
                .get_or_create(&of)
                .increment();
        }
        if let Some(refusal) = refusal {
            self.discovery
                .metrics
                .rejects
                .get_or_create(&of)
                .increment();
            tracing::warn!(
                r#type = type_url,
                nonce = clipped(&request.response_nonce, LONGEST_NONCE),
                error = refusal,
                "proxy refused resources"
            );
        }
    }
}

impl Rounds {
    /// Returns when the catalog may be another than the one of that round, for those who care.
    async fn moved(&mut self, told: u64) {
        match self {
            Self::OfGateway(watch) => watch.moved(told).await,
            Self::Every(rounds) => {
                if rounds.wait_for(|round| *round != told).await.is_err() {
                    // Nobody publishes any more; what is there stays true.
                    std::future::pending().await
                }
            }
        }
    }

    /// Takes note of the addresses that are asked for; whether any is new.
    fn ask(&mut self, request: &DeltaDiscoveryRequest) -> bool {
        let Self::OfGateway(watch) = self else {
            return false;
        };
        if request.type_url != api::ADDRESS_TYPE {
            return false;
        }
        let names = request.resource_names_subscribe.iter();
        let names = names.map(|name| &**name).filter(|name| *name != "*");
        let no_longer = request.resource_names_unsubscribe.iter();
        watch.ask(names, no_longer.map(|name| &**name))
    }
}

/// At most so many bytes of it.
fn clipped(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Of a client's words: they are logged, and kept as long as it is connected. Our own proxies say less.
const LONGEST_REFUSAL: usize = 16 << 10;
/// Of a nonce in the log; ours are numbers.
const LONGEST_NONCE: usize = 64;

fn of(type_url: &str) -> Option<Of> {
    use crate::metrics::Resource::{wads, waypoint, wds};
    Type::of(type_url).map(|r#type| Of {
        r#type: match r#type {
            Type::Address => wds,
            Type::Authorization => wads,
            Type::Waypoint => waypoint,
        },
    })
}
