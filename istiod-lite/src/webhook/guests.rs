//! Who stands at the door: accept, TLS, HTTP, end.
//!
//! Anybody in the cluster can dial. An API server keeps one or two connections and dials again when
//! they are closed, so when there are too many, the one that asked longest ago goes: a flood shortens
//! nobody's turn but its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use ops::drain::Drain;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::door::Desk;

/// Receives until the drain.
pub(super) async fn receive(
    listener: TcpListener,
    tls: TlsAcceptor,
    desk: Arc<Desk>,
    drain: Drain,
) {
    let guests = Arc::new(Guests::default());
    let stop = drain.accepting().clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer gave up in the queue: neither ends the port.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let guest = guests.admit();
        let (tls, desk, guests, ours) = (tls.clone(), desk.clone(), guests.clone(), drain.clone());
        drain.spawn(async move {
            let ended = tokio::select! {
                ended = serve(tcp, tls, desk, &guests, &guest, peer, &ours) => ended,
                () = guest.away.cancelled() => Err(Box::from("made room for others")),
            };
            guests.gone(&guest);
            if let Err(error) = ended {
                tracing::debug!(%peer, error = %error, "webhook connection ended");
            }
        });
    }
}

async fn serve(
    tcp: TcpStream,
    tls: TlsAcceptor,
    desk: Arc<Desk>,
    guests: &Arc<Guests>,
    guest: &Guest,
    peer: SocketAddr,
    drain: &Drain,
) -> Result<(), Failed> {
    let _ = tcp.set_nodelay(true);
    let stream = tokio::select! {
        stream = tls.accept(tcp) => stream?,
        () = tokio::time::sleep(HANDSHAKE) => return Err(Box::from("TLS handshake took too long")),
        () = drain.accepting().cancelled() => return Ok(()),
    };
    let (guests, guest) = (guests.clone(), guest.clone());
    let service = service_fn(move |request: http::Request<Incoming>| {
        guests.asked(&guest);
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request, peer).await) }
    });
    let http = http();
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = drain.accepting().cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = connection => ended,
        () = drain.now().cancelled() => Ok(()),
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(HEADERS);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .keep_alive_timeout(HANDSHAKE)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 * 1024)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024);
    http
}

/// For the log only: a connection's end is nobody's decision.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One connection; cancelled when it must go.
#[derive(Clone, Debug)]
struct Guest {
    number: u64,
    away: CancellationToken,
}

/// The connections that are there; who asked last stands last.
#[derive(Debug, Default)]
struct Guests(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    guests: VecDeque<Guest>,
    admitted: u64,
}

impl Guests {
    fn admit(&self) -> Guest {
        let mut waiting = self.waiting();
        if waiting.guests.len() >= MOST
            && let Some(longest) = waiting.guests.pop_front()
        {
            longest.away.cancel();
        }
        waiting.admitted += 1;
        let guest = Guest {
            number: waiting.admitted,
            away: CancellationToken::new(),
        };
        waiting.guests.push_back(guest.clone());
        guest
    }

    fn asked(&self, guest: &Guest) {
        let mut waiting = self.waiting();
        let place = waiting
            .guests
            .iter()
            .position(|it| it.number == guest.number);
        if let Some(guest) = place.and_then(|place| waiting.guests.remove(place)) {
            waiting.guests.push_back(guest);
        }
    }

    fn gone(&self, guest: &Guest) {
        self.waiting().guests.retain(|it| it.number != guest.number);
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections at once; each costs a task and some 20 KiB while it shakes hands.
const MOST: usize = 128;
const HANDSHAKE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests at once on one connection.
const STREAMS: u32 = 32;
const HEADERS: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_longest_ago_makes_room() {
        let guests = Guests::default();
        let admitted: Vec<_> = (0..MOST).map(|_| guests.admit()).collect();
        guests.asked(&admitted[0]);
        guests.gone(&admitted[2]);
        let _fills_the_gap = guests.admit();
        assert!(admitted.iter().all(|it| !it.away.is_cancelled()));
        let _one_too_many = guests.admit();
        let gone: Vec<_> = (0..MOST)
            .filter(|it| admitted[*it].away.is_cancelled())
            .collect();
        assert_eq!(gone, [1]);
        assert_eq!(guests.waiting().guests.len(), MOST);
    }
}
