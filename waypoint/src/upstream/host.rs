//! The connections to one endpoint.
//!
//! HTTP/1.1: a connection carries one request at a time; free ones wait here, the last used on top. HTTP/2: a connection
//! carries many, as many as its endpoint allows; it has a task of its own. Where something is said of a service's connections
//! ([`Gates::binds`]) they are its own, and where there may only be so many of them requests wait for them (`lobby`).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ops::threads::here;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::body::{Answer, Outgoing};
use super::link::{self, Link};
use super::lobby::{Admitted, Lobby, Making, Ticket};
use super::stream::Stream;
use super::{Failed, Inside, Unanswered, Way};
use crate::limit::{Connections, Gates};
use crate::upstream::Upstreams;

/// One endpoint, or a place outside the mesh.
pub(crate) struct Host {
    #[allow(clippy::vec_box)] // large, and moved from hand to hand with each request
    free: Mutex<Vec<Box<Link>>>,
    shared: Mutex<Vec<Shared>>,
    /// One HTTP/2 connection is made at a time: most who wait for it find room on it.
    making: Semaphore,
    /// How often it came to nothing, and why it last did: whoever has waited for that does not wait for the same again.
    failed: Mutex<(u64, Option<Arc<Failed>>)>,
    bound: Option<Box<Bound>>,
}

/// Of a service of whose connections something is said.
struct Bound {
    gates: ArcSwap<Gates>,
    /// For connections that carry one request at a time.
    alone: Arc<Lobby>,
    /// For those that carry many.
    together: Arc<Lobby>,
}

/// An HTTP/2 connection.
#[derive(Clone)]
struct Shared {
    sender: SendRequest<Outgoing>,
    streams: Arc<AtomicUsize>,
    /// How many there may be: further ones would wait for these, which may last for hours.
    most: Arc<AtomicUsize>,
    /// Since when nobody has used it, as far as is known.
    since: Instant,
    born: Instant,
    /// How many requests it has been given.
    carried: u32,
    /// Where connections are counted.
    ticket: Weak<Ticket>,
}

/// A request's place on an HTTP/2 connection.
pub(crate) struct Place {
    streams: Arc<AtomicUsize>,
    /// Where somebody may wait for it.
    lobby: Option<Arc<Lobby>>,
    /// One that takes no more requests counts as long as it carries some.
    _ticket: Option<Arc<Ticket>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Relaxed);
        self.lobby.iter().for_each(|lobby| lobby.freed());
    }
}

impl Host {
    /// Without connections. `gates`: what is said of them, if anything is.
    pub(super) fn new(gates: Option<&Arc<Gates>>) -> Self {
        let bound = |gates: &Arc<Gates>| Bound {
            gates: ArcSwap::new(gates.clone()),
            alone: Arc::default(),
            together: Arc::default(),
        };
        Self {
            free: Mutex::default(),
            shared: Mutex::default(),
            making: Semaphore::new(1),
            failed: Mutex::default(),
            bound: gates.map(bound).map(Box::new),
        }
    }

    /// What is said of its connections now.
    pub(super) fn told(&self, gates: Option<&Arc<Gates>>) {
        if let (Some(bound), Some(gates)) = (&self.bound, gates)
            && !Arc::ptr_eq(&bound.gates.load(), gates)
        {
            bound.gates.store(gates.clone());
        }
    }

    fn each(&self) -> Option<Connections> {
        self.bound.as_ref().map(|bound| bound.gates.load().each)
    }

    /// Where there may only be so many connections.
    fn counted(&self) -> Option<(&Bound, Arc<Gates>)> {
        let bound = self.bound.as_deref()?;
        let gates = bound.gates.load_full();
        gates.counts().then_some((bound, gates))
    }

    /// Sends a request over HTTP/1.1.
    pub(super) async fn send_alone(
        self: &Arc<Self>,
        upstreams: &Upstreams,
        way: &Way,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Answer>, Unanswered> {
        loop {
            let link = match self.counted() {
                // Boxed: few have limits, and it would be kept by each.
                Some(counted) => Box::pin(self.link(upstreams, way, counted)).await,
                None => match self.free() {
                    Some(link) => Ok(link),
                    None => self.begin(upstreams, way, None).await,
                },
            };
            let mut link = match link {
                Ok(link) => link,
                Err(why) => return Err(Unanswered::unsent(why, request)),
            };
            match link.send(request).await {
                Ok(answer) => {
                    let home = self.clone();
                    return Ok(answer.map(|body| Answer::alone(body, link, home)));
                }
                // It had been closed; nothing of the request has left.
                Err(Unanswered {
                    request: Some(unsent),
                    ..
                }) if link.is_used() => request = *unsent,
                Err(Unanswered {
                    why: Failed::Http(error),
                    request: None,
                }) if link.is_used() => return Err(Failed::Stale(error).into()),
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection for the first request over HTTP/2, if there is none.
    pub(super) async fn warm_shared(&self, upstreams: &Upstreams, way: &Way) -> Result<(), Failed> {
        self.place(upstreams, way).await.map(drop)
    }

    /// A connection where there may only be so many.
    async fn link(
        &self,
        upstreams: &Upstreams,
        way: &Way,
        (bound, gates): (&Bound, Arc<Gates>),
    ) -> Result<Box<Link>, Failed> {
        let turn = bound.alone.admit(&gates, || self.free());
        let mut making = match way.waiting(turn).await? {
            Admitted::Free(link) => return Ok(link),
            Admitted::Make(making) => making,
        };
        making.alone();
        match upstreams.open(way, Inside::Http1).await {
            Ok(stream) => Link::begin(stream, Some(making.done().0)).await,
            Err(why) => Err(making.failed(why)),
        }
    }

    async fn begin(
        &self,
        upstreams: &Upstreams,
        way: &Way,
        ticket: Option<Ticket>,
    ) -> Result<Box<Link>, Failed> {
        Link::begin(upstreams.open(way, Inside::Http1).await?, ticket).await
    }

    /// Sends a request that asks for another protocol, over a connection that is used for nothing else, and that counts, where
    /// connections do, as long as the ticket is there.
    pub(super) async fn send_upgrade(
        &self,
        upstreams: &Upstreams,
        way: &Way,
        request: Request<Outgoing>,
    ) -> Result<(Response<hyper::body::Incoming>, Option<Ticket>), Failed> {
        let (stream, ticket) = match self.counted() {
            Some(counted) => Box::pin(self.stream(upstreams, way, counted)).await?,
            None => (upstreams.open(way, Inside::Http1).await?, None),
        };
        let begun = link::builder().handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = begun.map_err(Failed::Http)?;
        tokio::spawn(connection.with_upgrades());
        let answer = sender.send_request(request).await;
        Ok((answer.map_err(Failed::Http)?, ticket))
    }

    /// A new connection where there may only be so many: in the place of a free one, if need be.
    async fn stream(
        &self,
        upstreams: &Upstreams,
        way: &Way,
        (bound, gates): (&Bound, Arc<Gates>),
    ) -> Result<(Stream, Option<Ticket>), Failed> {
        let turn = bound.alone.admit(&gates, || self.free());
        let mut making = match way.waiting(turn).await? {
            Admitted::Free(mut link) => {
                let ticket = link.ticket.take();
                drop(link);
                return Ok((upstreams.open(way, Inside::Http1).await?, ticket));
            }
            Admitted::Make(making) => making,
        };
        making.alone();
        match upstreams.open(way, Inside::Http1).await {
            Ok(stream) => Ok((stream, Some(making.done().0))),
            Err(why) => Err(making.failed(why)),
        }
    }

    /// Sends a request over HTTP/2.
    pub(super) async fn send_shared(
        &self,
        upstreams: &Upstreams,
        way: &Way,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Answer>, Unanswered> {
        let mut tries = 0;
        loop {
            let (mut shared, place) = match self.place(upstreams, way).await {
                Ok(place) => place,
                Err(why) => return Err(Unanswered::unsent(why, request)),
            };
            match shared.sender.try_send_request(request).await {
                Ok(answer) => return Ok(answer.map(|body| Answer::shared(body, place))),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if tries < TRIES => {
                        request = unsent;
                        tries += 1;
                    }
                    Some(unsent) => return Err(Unanswered::unsent(Failed::Closed, unsent)),
                    None => return Err(Failed::shared(error.into_error()).into()),
                },
            }
        }
    }

    async fn place(&self, upstreams: &Upstreams, way: &Way) -> Result<(Shared, Place), Failed> {
        if let Some((bound, gates)) = self.counted() {
            let turn = bound.together.admit(&gates, || self.room());
            return match Box::pin(way.waiting(turn)).await? {
                Admitted::Free(found) => Ok(found),
                Admitted::Make(making) => Box::pin(self.made(upstreams, way, making)).await,
            };
        }
        let making = async { begin(upstreams.open(way, Inside::Http2).await?, None).await };
        self.placed(making).await
    }

    /// On a new connection, where there may only be so many. Those behind wait for it.
    async fn made(
        &self,
        upstreams: &Upstreams,
        way: &Way,
        making: Making<'_>,
    ) -> Result<(Shared, Place), Failed> {
        let stream = match upstreams.open(way, Inside::Http2).await {
            Ok(stream) => stream,
            Err(why) => return Err(making.failed(why)),
        };
        let (ticket, _behind) = making.done();
        Ok(self.keep(begin(stream, Some(ticket)).await?))
    }

    /// On a connection that has room, or on the one that `making` makes when its turn has come.
    async fn placed(
        &self,
        making: impl Future<Output = Result<Shared, Failed>>,
    ) -> Result<(Shared, Place), Failed> {
        if let Some(found) = self.room() {
            return Ok(found);
        }
        let (before, _) = *locked(&self.failed);
        // Closed never: it lives as long as we do.
        let _turn = self.making.acquire().await;
        if let Some(found) = self.room() {
            return Ok(found);
        }
        if let Some(why) = self.failed_since(before) {
            return Err(Failed::ForAll(why));
        }
        let shared = making.await.map_err(|why| self.note(why))?;
        Ok(self.keep(shared))
    }

    /// The first place on a connection that others will find.
    fn keep(&self, mut shared: Shared) -> (Shared, Place) {
        shared.carried = 1;
        shared.streams.store(1, Relaxed);
        let place = self.on(&shared);
        locked(&self.shared).push(shared.clone());
        (shared, place)
    }

    fn on(&self, shared: &Shared) -> Place {
        Place {
            streams: shared.streams.clone(),
            lobby: self.bound.as_ref().map(|bound| bound.together.clone()),
            _ticket: shared.ticket.upgrade(),
        }
    }

    /// Why none could be made, if somebody has tried since there were so many who could not.
    fn failed_since(&self, before: u64) -> Option<Arc<Failed>> {
        let failed = locked(&self.failed);
        let (times, why) = &*failed;
        why.clone().filter(|_| *times != before)
    }

    fn note(&self, why: Failed) -> Failed {
        let why = Arc::new(why);
        let mut failed = locked(&self.failed);
        *failed = (failed.0.wrapping_add(1), Some(why.clone()));
        Failed::ForAll(why)
    }

    fn room(&self) -> Option<(Shared, Place)> {
        let each = self.each();
        let mut all = locked(&self.shared);
        all.retain(|shared| !shared.sender.is_closed() && !shared.is_worn(each.as_ref()));
        let said = each.and_then(|each| each.streams);
        let said = said.map_or(usize::MAX, |most| most as usize);
        let room = |it: &Shared| it.streams.load(Relaxed) < it.most.load(Relaxed).min(said);
        let at = all.iter().position(room)?;
        let found = &mut all[at];
        found.since = Instant::now();
        found.carried = found.carried.saturating_add(1);
        found.streams.fetch_add(1, Relaxed);
        Some((found.clone(), self.on(found)))
    }

    fn free(&self) -> Option<Box<Link>> {
        loop {
            let mut link = self.newest()?;
            if link.usable() && !self.is_worn(&link) {
                return Some(link);
            }
        }
    }

    /// Whether a connection is to be given no further request.
    fn is_worn(&self, link: &Link) -> bool {
        let Some(bound) = &self.bound else {
            return false;
        };
        let gates = bound.gates.load();
        link.is_worn(&gates.each) || link.ticket.is_some() && bound.alone.has_too_many(&gates)
    }

    /// Of connections that all threads share, one that this thread has made: whose wake-ups come to it.
    fn newest(&self) -> Option<Box<Link>> {
        let mut free = locked(&self.free);
        if self.bound.is_some() {
            let own = free.iter().rposition(|link| link.home == here());
            if let Some(at) = own {
                return Some(free.remove(at));
            }
        }
        free.pop()
    }

    /// A connection whose answer has been read to its end.
    pub(super) fn take_back(&self, mut link: Box<Link>) {
        if !link.usable() {
            return;
        }
        link.since = Instant::now();
        if self.is_worn(&link) {
            return;
        }
        let mut free = locked(&self.free);
        if free.len() < MOST_FREE {
            free.push(link);
        }
        drop(free);
        if let Some(bound) = &self.bound {
            bound.alone.freed();
        }
    }

    /// Lets go of connections that have ended or were free for long; whether none is left, also none that somebody has to
    /// himself: who came here later would not know of it.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let each = self.each();
        let idle = each.and_then(|each| each.idle).unwrap_or(FREE_FOR);
        let mut free = locked(&self.free);
        free.retain_mut(|link| {
            now.duration_since(link.since) < idle && link.usable() && !self.is_worn(link)
        });
        free.shrink_to_fit();
        let mut shared = locked(&self.shared);
        shared.retain_mut(|it| {
            if it.streams.load(Relaxed) > 0 {
                it.since = now;
            }
            let late = now.duration_since(it.since) >= idle;
            !late && !it.sender.is_closed() && !it.is_worn(each.as_ref())
        });
        shared.shrink_to_fit();
        let left = |bound: &Bound| bound.alone.is_left() && bound.together.is_left();
        free.is_empty() && shared.is_empty() && self.bound.as_deref().is_none_or(left)
    }
}

impl Shared {
    /// Whether it is to be given no further request.
    fn is_worn(&self, each: Option<&Connections>) -> bool {
        let rests = self.streams.load(Relaxed) == 0;
        each.is_some_and(|each| {
            each.is_over(self.born, self.carried) || rests && each.is_late(self.since)
        })
    }
}

/// `ticket`: given back when it takes no more requests, and has carried those that it was given.
async fn begin(stream: Stream, ticket: Option<Ticket>) -> Result<Shared, Failed> {
    let begun = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(LARGEST_HEAD)
        .max_concurrent_reset_streams(GIVEN_UP)
        .reset_stream_duration(REMEMBERED)
        .max_local_error_reset_streams(MOST_RESETS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = begun.map_err(Failed::Http)?;
    let most = Arc::new(AtomicUsize::new(MOST_STREAMS));
    let driving = drive(connection, most.clone());
    let counts = ticket.map(Arc::new);
    let ticket = counts.as_ref().map(Arc::downgrade).unwrap_or_default();
    // It ends when nobody can send over it any more, or the endpoint wants no more: what is on its way then goes on.
    tokio::spawn(async move {
        let _counts = counts;
        if let Err(error) = driving.await {
            tracing::debug!(%error, "upstream: an HTTP/2 connection ended");
        }
    });
    let now = Instant::now();
    Ok(Shared {
        sender,
        streams: Arc::default(),
        most,
        since: now,
        born: now,
        carried: 0,
        ticket,
    })
}

/// To its end. What the endpoint allows is looked at with each request, and now and then: nobody is told when it says so.
async fn drive(
    connection: http2::Connection<TokioIo<Stream>, Outgoing, TokioExecutor>,
    most: Arc<AtomicUsize>,
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    let mut pause = FIRST_LOOK;
    let mut look = pin!(tokio::time::sleep(pause));
    poll_fn(|cx| {
        while look.as_mut().poll(cx).is_ready() {
            pause = (pause * 2).min(LAST_LOOK);
            look.as_mut().reset(Instant::now() + pause);
        }
        let polled = connection.as_mut().poll(cx);
        let allowed = connection.current_max_send_streams();
        most.store(allowed.clamp(1, MOST_STREAMS), Relaxed);
        polled
    })
    .await
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests on one HTTP/2 connection, where its endpoint allows no fewer; then another is made.
const MOST_STREAMS: usize = 100;
/// From a connection's begin to the first look at what its endpoint allows; twice as long to the next, and so on.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(60);
/// HTTP/2 connections that turn out to be closed before one request gives up.
const TRIES: usize = 3;
/// Free connections that are kept for one endpoint.
const MOST_FREE: usize = 256;
/// How long a free connection is kept, or one that carries no request: less than apps usually do, so that it is we who close.
/// Of an endpoint that allows few requests on each a burst makes many.
const FREE_FOR: Duration = Duration::from_secs(55);
/// Enough for 2 Gb/s at a millisecond, for each of them.
const STREAM_WINDOW: u32 = 256 << 10;
/// All of them may stand still because their clients do not read, and one more goes on: they are not one client's.
const CONNECTION_WINDOW: u32 = MOST_STREAMS as u32 * STREAM_WINDOW;
const LARGEST_HEAD: u32 = 64 << 10;
/// Requests that were given up, and for how long they are known as such: what comes of one then is passed over. What comes of
/// one that is forgotten counts as a fault of the endpoint, and is no such thing: the answer was on its way.
const GIVEN_UP: usize = 8_192;
const REMEMBERED: Duration = Duration::from_secs(10);
/// Faults of the endpoint's. The engine counts them for as long as a connection lives, which may be months, and ends it with all
/// the requests on it.
const MOST_RESETS: usize = 16_384;
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_ANSWER: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
