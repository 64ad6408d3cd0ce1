//! The connections to one endpoint.
//!
//! HTTP/1.1: a connection carries one request at a time; free ones wait here, the last used on top. HTTP/2: a connection
//! carries many; it has a task of its own.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::body::{Answer, Outgoing};
use super::link::{self, Link};
use super::stream::Stream;
use super::{Failed, Inside, Unanswered, Way};
use crate::upstream::Upstreams;

/// One endpoint, or a place outside the mesh.
pub(crate) struct Host {
    #[allow(clippy::vec_box)] // large, and moved from hand to hand with each request
    free: Mutex<Vec<Box<Link>>>,
    shared: Mutex<Vec<Shared>>,
    /// One HTTP/2 connection is made at a time: most who wait for it find room on it.
    making: Semaphore,
}

/// An HTTP/2 connection.
#[derive(Clone)]
struct Shared {
    sender: SendRequest<Outgoing>,
    streams: Arc<AtomicUsize>,
}

/// A request's place on an HTTP/2 connection.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Default for Host {
    fn default() -> Self {
        Self {
            free: Mutex::default(),
            shared: Mutex::default(),
            making: Semaphore::new(1),
        }
    }
}

impl Host {
    /// Sends a request over HTTP/1.1.
    pub(super) async fn send_alone(
        self: &Arc<Self>,
        upstreams: &Upstreams,
        way: &Way,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Answer>, Unanswered> {
        loop {
            let mut link = match self.free() {
                Some(link) => link,
                None => match self.begin(upstreams, way).await {
                    Ok(link) => link,
                    Err(why) => return Err(Unanswered::unsent(why, request)),
                },
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

    async fn begin(&self, upstreams: &Upstreams, way: &Way) -> Result<Box<Link>, Failed> {
        Link::begin(upstreams.open(way, Inside::Http1).await?).await
    }

    /// Sends a request that asks for another protocol, over a connection that is used for nothing else.
    pub(super) async fn send_upgrade(
        &self,
        upstreams: &Upstreams,
        way: &Way,
        request: Request<Outgoing>,
    ) -> Result<Response<hyper::body::Incoming>, Failed> {
        let stream = TokioIo::new(upstreams.open(way, Inside::Http1).await?);
        let begun = link::builder().handshake(stream).await;
        let (mut sender, connection) = begun.map_err(Failed::Http)?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(Failed::Http)
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
                    None => return Err(Failed::Http(error.into_error()).into()),
                },
            }
        }
    }

    async fn place(&self, upstreams: &Upstreams, way: &Way) -> Result<(Shared, Place), Failed> {
        if let Some(found) = self.room() {
            return Ok(found);
        }
        // Closed never: it lives as long as we do.
        let _turn = self.making.acquire().await;
        if let Some(found) = self.room() {
            return Ok(found);
        }
        let shared = begin(upstreams.open(way, Inside::Http2).await?).await?;
        shared.streams.store(1, Relaxed);
        let place = Place(shared.streams.clone());
        locked(&self.shared).push(shared.clone());
        Ok((shared, place))
    }

    fn room(&self) -> Option<(Shared, Place)> {
        let mut all = locked(&self.shared);
        all.retain(|shared| !shared.sender.is_closed());
        let room = |shared: &&Shared| shared.streams.load(Relaxed) < MOST_STREAMS;
        let found = all.iter().find(room)?;
        found.streams.fetch_add(1, Relaxed);
        Some((found.clone(), Place(found.streams.clone())))
    }

    fn free(&self) -> Option<Box<Link>> {
        loop {
            let mut link = locked(&self.free).pop()?;
            if link.usable() {
                return Some(link);
            }
        }
    }

    /// A connection whose answer has been read to its end.
    pub(super) fn take_back(&self, mut link: Box<Link>) {
        if link.usable() {
            link.since = Instant::now();
            let mut free = locked(&self.free);
            if free.len() < MOST_FREE {
                free.push(link);
            }
        }
    }

    /// Lets go of connections that have ended or were free for long; whether none is left.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut free = locked(&self.free);
        free.retain_mut(|link| now.duration_since(link.since) < FREE_FOR && link.usable());
        free.shrink_to_fit();
        let mut shared = locked(&self.shared);
        shared.retain(|shared| !shared.sender.is_closed());
        free.is_empty() && shared.is_empty()
    }
}

async fn begin(stream: Stream) -> Result<Shared, Failed> {
    let begun = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(LARGEST_HEAD)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = begun.map_err(Failed::Http)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream: an HTTP/2 connection ended");
        }
    });
    Ok(Shared {
        sender,
        streams: Arc::default(),
    })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests on one HTTP/2 connection; then another is made.
const MOST_STREAMS: usize = 100;
/// HTTP/2 connections that turn out to be closed before one request gives up.
const TRIES: usize = 3;
/// Free connections that are kept for one endpoint.
const MOST_FREE: usize = 256;
/// How long a free connection is kept: less than apps usually do, so that it is we who close.
const FREE_FOR: Duration = Duration::from_secs(55);
/// Enough for 2 Gb/s at a millisecond, for each of them.
const STREAM_WINDOW: u32 = 256 << 10;
/// All of them may stand still because their clients do not read, and one more goes on: they are not one client's.
const CONNECTION_WINDOW: u32 = MOST_STREAMS as u32 * STREAM_WINDOW;
const LARGEST_HEAD: u32 = 64 << 10;
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_ANSWER: Duration = Duration::from_secs(20);
