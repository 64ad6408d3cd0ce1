//! One gRPC connection, from accept to its end.
//!
//! 1. accept; until its caller is known it is a stranger (`stranger`)
//! 2. TLS, within a deadline
//! 3. HTTP/2: pings when it is quiet, closed when they are not answered
//! 4. at its age, or when the process ends: its streams are told ([`Leaving`]) and end in order,
//!    GOAWAY, and after a grace the connection is closed

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ops::drain::Drain;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::stranger::{Stranger, Strangers};
use crate::cluster::Health;
use crate::machine::shown::Shown;

/// How old a connection gets.
#[derive(Debug, Clone)]
pub struct Age {
    /// Until it is asked to leave, give or take a tenth; half an hour by default.
    pub most: Duration,
    /// How long what runs on it may take to end.
    pub grace: Duration,
    /// Whether the API server can say who comes back; without one it is always well.
    pub health: Health,
}

impl Default for Age {
    fn default() -> Self {
        Self {
            most: Duration::from_secs(30 * 60),
            grace: Duration::from_secs(10),
            health: Health::default(),
        }
    }
}

impl Age {
    /// Returns when a connection that begins now should leave. Not while the API server is away:
    /// nobody could come back then, and of what is served nothing is new.
    async fn reached(&self) {
        tokio::time::sleep(spread(self.most)).await;
        while self.health.is_unreachable() {
            // Those that waited together do not leave together.
            tokio::time::sleep(spread(self.most / 6)).await;
        }
    }
}

/// In a request's extensions: cancelled when the connection below it wants to end.
#[derive(Debug, Clone)]
pub struct Leaving(pub CancellationToken);

/// In a request's extensions: who is at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// For the log only: a connection's end is nobody's decision.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Serves gRPC over TLS until the drain.
pub async fn grpc_tls(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    routes: Routes,
    age: Age,
    drain: Drain,
) {
    accept(listener, Some(TlsAcceptor::from(tls)), routes, age, drain).await;
}

/// Serves gRPC in the clear until the drain. Tokens travel readable: for loopback only.
pub async fn grpc_plain(listener: TcpListener, routes: Routes, age: Age, drain: Drain) {
    accept(listener, None, routes, age, drain).await;
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    routes: Routes,
    age: Age,
    drain: Drain,
) {
    let mut strangers = Strangers::default();
    let stop = drain.accepting().clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let stranger = strangers.admit(peer.ip().to_canonical());
                let (tls, routes, ours) = (tls.clone(), routes.clone(), drain.clone());
                let age = age.clone();
                drain.spawn(async move {
                    let _ = tcp.set_nodelay(true);
                    let ended = tokio::select! {
                        ended = serve_one(tcp, peer, &stranger, tls, routes, age, &ours) => ended,
                        () = stranger.must_go() => Err(Box::from("nobody we know")),
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%peer, error = %error, "connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, or the peer gave up in the queue: neither ends the port.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_one(
    tcp: TcpStream,
    peer: SocketAddr,
    stranger: &Arc<Stranger>,
    tls: Option<TlsAcceptor>,
    routes: Routes,
    age: Age,
    drain: &Drain,
) -> Result<(), Failed> {
    let Some(tls) = tls else {
        return carry(tcp, peer, None, stranger, routes, age, drain).await;
    };
    let stream = tokio::select! {
        stream = tls.accept(tcp) => stream?,
        () = tokio::time::sleep(HANDSHAKE) => return Err(Box::from("TLS handshake took too long")),
        () = drain.accepting().cancelled() => return Ok(()),
    };
    // TLS has found that it leads to our roots.
    let shown = stream.get_ref().1.peer_certificates();
    let shown = shown.and_then(|chain| Shown::of(chain.first()?));
    carry(stream, peer, shown, stranger, routes, age, drain).await
}

async fn carry(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    shown: Option<Shown>,
    stranger: &Arc<Stranger>,
    routes: Routes,
    age: Age,
    drain: &Drain,
) -> Result<(), Failed> {
    let shown = shown.map(Arc::new);
    let leaving = CancellationToken::new();
    let extension = Leaving(leaving.clone());
    let stranger = stranger.clone();
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(extension.clone());
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(stranger.clone());
        if let Some(shown) = &shown {
            request.extensions_mut().insert(shown.clone());
        }
        let routes = routes.clone();
        async move {
            Ok::<_, Infallible>(
                routes
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            )
        }
    });
    let connection = http2().serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = age.reached() => {}
        () = drain.accepting().cancelled() => {}
    }
    leaving.cancel();
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => Ok(ended?),
        () = tokio::time::sleep(age.grace) => Err(Box::from("not done within its grace")),
        () = drain.now().cancelled() => Err(Box::from("cut at the end of the process")),
    }
}

fn http2() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        // What a client may send before anybody reads it; requests are small.
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(SEND_BUFFER);
    http2
}

/// A tenth earlier or later: connections made in one burst do not come back in one.
fn spread(age: Duration) -> Duration {
    let mut random = [0_u8; 2];
    // Without randomness there is still an age.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let share = f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX);
    age.mul_f64(0.9 + 0.2 * share)
}

const HANDSHAKE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one connection: one for configuration, one for each certificate under way.
const STREAMS: u32 = 1024;
/// A token and a few names.
const HEADERS: u32 = 32 * 1024;
/// Bytes of a stream's responses that wait in HTTP/2 before the stream is held back.
const SEND_BUFFER: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_to_leave_while_nobody_could_come_back() {
        let age = Age::default();
        age.health.lose("connection refused");
        let waited = tokio::time::timeout(20 * age.most, age.reached()).await;
        assert!(waited.is_err());
        age.health.answered("");
        tokio::time::timeout(2 * age.most, age.reached())
            .await
            .unwrap();
    }
}
