//! The server's side of a connection, in whichever engine carries it.
//!
//! 1. a socket becomes a connection of a proven peer   ([`Serving::begin`])
//! 2. requests come out of it, one at a time            ([`Serving::poll_asked`])
//! 3. each is answered by its own way back              ([`Answering`])

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{
    Pinging,
    half::{Receiving, Sending},
    words,
};
use crate::{
    ahead::ReadAhead,
    certs::Certificate,
    farewell::farewell,
    frames::Method,
    gauge::{Gauge, Gauged},
    incoming::{self, Malformed, ResponseHeaders},
    limits::{
        CONNECTION_WINDOW, Engine, FRAME, Limits, Refusal, SEND_BUFFER, SERVER_HEADER_LIST,
        STREAM_WINDOW, STREAMS,
    },
    own,
    request::{Authority, RequestHeaders},
    room,
    server::AcceptError,
    tls::{Session, Stream, TlsError},
    tunnel::TunnelError,
};

/// A connection of a client.
pub(crate) enum Serving<T> {
    /// Of the `h2` crate.
    H2(Box<h2::server::Connection<Gauged<Stream<ReadAhead<T>>>, Bytes>>),
    /// Of our own engine.
    Own(own::Driver),
}

/// A connection that has just begun.
pub(crate) struct Begun<T> {
    pub(crate) serving: Serving<T>,
    pub(crate) session: Session,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) ping: Option<Pinging>,
}

/// A request as it came.
pub(crate) struct Asked {
    pub(crate) target: Result<Authority, Malformed>,
    /// It asks for a way for datagrams.
    pub(crate) datagrams: bool,
    pub(crate) headers: RequestHeaders,
    pub(crate) answering: Answering,
    pub(crate) body: Receiving,
}

/// Why a connection ended otherwise than in order.
#[derive(Debug, Clone)]
pub(crate) enum Broken {
    /// The bytes stopped.
    Lost(String),
    /// The peer did too much of something.
    Excess(String),
    /// The peer violated HTTP/2.
    Violated(String),
    /// The peer said that we did.
    Accused(String),
    /// Somebody else goes on with it.
    HandedOver,
}

impl<T> Serving<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Shakes hands on `socket`, up to the end of the client's preface.
    pub(crate) async fn begin(
        socket: T,
        certificate: &Certificate,
        limits: &Limits,
    ) -> Result<Begun<T>, AcceptError>
    where
        T: Send + 'static,
    {
        match limits.engine {
            Engine::H2 => Self::begin_h2(socket, certificate, limits).await,
            Engine::Own => Self::begin_own(socket, certificate, limits).await,
        }
    }

    async fn begin_own(
        mut socket: T,
        certificate: &Certificate,
        limits: &Limits,
    ) -> Result<Begun<T>, AcceptError>
    where
        T: Send + 'static,
    {
        let by = Instant::now() + limits.handshake;
        let established = match certificate.credentials.accept_own(&mut socket).await {
            Ok(established) => established,
            Err(error) => return Err(refused(error, socket, by)),
        };
        let gauge = Gauge::new();
        let session = established.session.clone();
        let shared = match limits.datagrams {
            true => own::Shared::server_of_datagrams(socket, established, gauge.clone()),
            false => own::Shared::server(socket, established, gauge.clone()),
        };
        let driver = own::Driver(shared.clone());
        poll_fn(|cx| shared.poll_greeted(cx))
            .await
            .map_err(|end| AcceptError::Preface(end.words().to_owned()))?;
        Ok(Begun {
            serving: Self::Own(driver),
            session,
            gauge,
            ping: Some(Pinging::Own(shared)),
        })
    }

    async fn begin_h2(
        socket: T,
        certificate: &Certificate,
        limits: &Limits,
    ) -> Result<Begun<T>, AcceptError>
    where
        T: Send + 'static,
    {
        let by = Instant::now() + limits.handshake;
        let socket = ReadAhead::new(socket);
        let accepted = certificate.credentials.accept(socket).await;
        let (stream, session) = accepted.map_err(|(error, socket)| refused(error, socket, by))?;
        let gauge = Gauge::new();
        let mut builder = h2::server::Builder::new();
        if limits.datagrams {
            builder.enable_connect_protocol();
        }
        let mut connection = builder
            .max_concurrent_streams(STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_header_list_size(SERVER_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            // A client may give up on as many streams at once as it may have waiting; rapid reset goes on.
            .max_pending_accept_reset_streams(STREAMS as usize)
            .handshake(Gauged::server(stream, gauge.clone()))
            .await
            .map_err(|e| AcceptError::Preface(words(&e)))?;
        Ok(Begun {
            ping: connection.ping_pong().map(Pinging::H2),
            serving: Self::H2(Box::new(connection)),
            session,
            gauge,
        })
    }

    /// The next request; drives the connection.
    pub(crate) fn poll_asked(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Asked, Broken>>> {
        match self {
            Self::H2(connection) => connection.poll_accept(cx).map(|accepted| {
                accepted
                    .map(|accepted| accepted.map_or_else(|e| Err((&e).into()), |a| Ok(asked(a))))
            }),
            Self::Own(own::Driver(shared)) => shared.poll_drive(cx).map(|driven| match driven {
                Ok(arrival) => Some(Ok(asked_own(shared, arrival))),
                Err(end) => broken(end).map(Err),
            }),
        }
    }

    /// No more streams; ends when the open ones have ended.
    pub(crate) fn drain(&mut self) {
        match self {
            Self::H2(connection) => connection.graceful_shutdown(),
            Self::Own(own::Driver(shared)) => shared.with_or_later(|state| {
                state.drain();
                None
            }),
        }
    }

    /// Ends all streams and says why, with an error code of HTTP/2.
    pub(crate) fn cut_off(&mut self, code: u32) {
        match self {
            Self::H2(connection) => connection.abrupt_shutdown(code.into()),
            Self::Own(own::Driver(shared)) => shared.with_or_later(move |state| {
                state.cut_off(code);
                None
            }),
        }
    }

    /// The connection window that is needed while `streams` are open.
    pub(crate) fn wanted(&self, streams: usize) -> u64 {
        match self {
            Self::H2(_) => room::for_streams(streams),
            Self::Own(own::Driver(shared)) => shared.with(|state| state.wanted()).unwrap_or(0),
        }
    }

    /// Widens the connection's receive window.
    pub(crate) fn widen(&mut self, window: u32) {
        match self {
            Self::H2(connection) => connection.set_target_window_size(window),
            Self::Own(own::Driver(shared)) => shared.with_or_later(move |state| {
                state.widen(window);
                None
            }),
        }
    }

    /// Ready when the connection is not frozen.
    pub(crate) fn poll_here(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(_) => Poll::Ready(()),
            Self::Own(own::Driver(shared)) => shared.poll_here(cx),
        }
    }

    /// What can be frozen.
    pub(crate) fn own(&self) -> Option<&Arc<own::Shared>> {
        match self {
            Self::H2(_) => None,
            Self::Own(own::Driver(shared)) => Some(shared),
        }
    }
}

/// A handshake failed on `socket`: unless the peer has gone before, it has been told why, and hears it.
fn refused<T>(error: TlsError, socket: T, by: Instant) -> AcceptError
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if !matches!(error, TlsError::Io(_)) {
        farewell(socket, by);
    }
    error.into()
}

fn asked(
    accepted: (
        http::Request<h2::RecvStream>,
        h2::server::SendResponse<Bytes>,
    ),
) -> Asked {
    let (request, respond) = accepted;
    let (parts, body) = request.into_parts();
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    Asked {
        target: match protocol {
            Some(protocol) => incoming::datagrams_to(protocol.as_str(), parts.uri.path()),
            None => incoming::destination(&parts),
        },
        datagrams: protocol.is_some(),
        headers: incoming::read_headers(&parts.headers),
        answering: Answering::H2(respond),
        body: Receiving::H2(body),
    }
}

fn asked_own(shared: &Arc<own::Shared>, arrival: own::Arrival) -> Asked {
    let (receiving, sending) = own::halves(shared, arrival.stream);
    let head = arrival.head;
    Asked {
        datagrams: matches!(head.method, Method::Extended { .. }),
        target: match head.method {
            Method::Connect => incoming::authority(&head.authority),
            Method::Extended { protocol, path } => incoming::datagrams_to(&protocol, &path),
            Method::Other(method) => Err(Malformed::Method(method.into())),
        },
        headers: head.headers,
        answering: Answering::Own(Some(sending)),
        body: Receiving::Own(receiving),
    }
}

/// `None` for an end in order.
fn broken(end: own::End) -> Option<Broken> {
    match end {
        own::End::Closed => None,
        own::End::Lost(words) => Some(Broken::Lost(words)),
        own::End::Violated(Refusal::Excess, words) => Some(Broken::Excess(words)),
        own::End::Violated(_, words) => Some(Broken::Violated(words)),
        own::End::Accused(words) => Some(Broken::Accused(words)),
        own::End::HandedOver => Some(Broken::HandedOver),
    }
}

impl From<&h2::Error> for Broken {
    fn from(error: &h2::Error) -> Self {
        let words = words(error);
        if error.is_io() {
            Self::Lost(words)
        } else if !error.is_library() {
            Self::Accused(words)
        } else if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) {
            Self::Excess(words)
        } else {
            Self::Violated(words)
        }
    }
}

/// The way back for one request. Dropped without an answer, the stream is reset.
pub(crate) enum Answering {
    /// Of the `h2` crate.
    H2(h2::server::SendResponse<Bytes>),
    /// Of our own engine; until it is used.
    Own(Option<own::Sending>),
}

impl Answering {
    /// Answers, and with `end` ends our direction.
    pub(crate) fn answer(
        &mut self,
        status: StatusCode,
        headers: ResponseHeaders,
        end: bool,
    ) -> Result<Sending, TunnelError> {
        match self {
            Self::H2(respond) => {
                let mut response = Response::new(());
                *response.status_mut() = status;
                if let Some(baggage) = headers.baggage.and_then(|b| HeaderValue::try_from(b).ok()) {
                    response.headers_mut().insert("baggage", baggage);
                }
                Ok(Sending::H2(respond.send_response(response, end)?))
            }
            Self::Own(half) => {
                let mut half = half.take().ok_or(TunnelError::Ended)?;
                half.respond(status.as_u16(), &headers, end)?;
                Ok(Sending::Own(half))
            }
        }
    }

    /// Ready when the peer has given up.
    pub(crate) fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(respond) => respond.poll_reset(cx).map(|_| ()),
            Self::Own(half) => match half {
                Some(half) => half.poll_closed(cx).map(|_| ()),
                None => Poll::Ready(()),
            },
        }
    }
}
