//! The client's side of a connection, in whichever engine carries it.
//!
//! 1. a socket becomes a connection to an expected peer  ([`begin`])
//! 2. it is driven                                        ([`Driving`])
//! 3. requests are made on it                             ([`Asking`])

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, uri};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Pinging,
    half::{Receiving, Sending},
    reset, words,
};
use crate::{
    ahead::ReadAhead,
    certs::Certificate,
    client::{Connect, OpenError},
    datagrams,
    gauge::{Gauge, Gauged},
    limits::{CLIENT_HEADER_LIST, CONNECTION_WINDOW, Engine, FRAME, SEND_BUFFER, STREAM_WINDOW},
    own, room,
    tls::{Expected, Session, Stream},
};

/// A connection that has just begun.
pub(crate) struct Begun<T> {
    pub(crate) asking: Asking,
    pub(crate) driving: Driving<T>,
    pub(crate) session: Session,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) ping: Option<Pinging>,
}

/// Shakes hands on `socket` with a server that is expected there.
pub(crate) async fn begin<T>(
    socket: T,
    certificate: &Certificate,
    expected: Expected<'_>,
    engine: Engine,
) -> Result<Begun<T>, OpenError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match engine {
        Engine::H2 => begin_h2(socket, certificate, expected).await,
        Engine::Own => begin_own(socket, certificate, expected).await,
    }
}

async fn begin_own<T>(
    mut socket: T,
    certificate: &Certificate,
    expected: Expected<'_>,
) -> Result<Begun<T>, OpenError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let credentials = &certificate.credentials;
    let established = credentials.connect_own(&mut socket, expected).await?;
    let gauge = Gauge::new();
    let session = established.session.clone();
    let shared = own::Shared::client(socket, established, gauge.clone());
    Ok(Begun {
        asking: Asking::Own(own::Opener(shared.clone())),
        ping: Some(Pinging::Own(shared.clone())),
        driving: Driving::Own(own::Driver(shared)),
        session,
        gauge,
    })
}

async fn begin_h2<T>(
    socket: T,
    certificate: &Certificate,
    expected: Expected<'_>,
) -> Result<Begun<T>, OpenError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let socket = ReadAhead::new(socket);
    let (stream, session) = certificate.credentials.connect(socket, expected).await?;
    let gauge = Gauge::new();
    let (send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(CLIENT_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(Gauged::client(stream, gauge.clone()))
        .await
        .map_err(|e| OpenError::Http2(words(&e)))?;
    Ok(Begun {
        asking: Asking::H2(send),
        ping: connection.ping_pong().map(Pinging::H2),
        driving: Driving::H2(Box::new(connection)),
        session,
        gauge,
    })
}

/// Moves the bytes of a connection.
pub(crate) enum Driving<T> {
    /// Of the `h2` crate.
    H2(Box<h2::client::Connection<Gauged<Stream<ReadAhead<T>>>, Bytes>>),
    /// Of our own engine.
    Own(own::Driver),
}

impl<T> Driving<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Ready when the connection is over; an error says why it ended otherwise than in order.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        match self {
            Self::H2(connection) => Pin::new(connection).poll(cx).map_err(|error| words(&error)),
            Self::Own(own::Driver(shared)) => loop {
                match ready!(shared.poll_drive(cx)) {
                    // A server asks nothing.
                    Ok(_) => {}
                    Err(own::End::Closed | own::End::HandedOver) => return Poll::Ready(Ok(())),
                    Err(end) => return Poll::Ready(Err(end.words().to_owned())),
                }
            },
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
}

/// Makes requests on a connection; the last of these and of its streams ends it.
pub(crate) enum Asking {
    /// Of the `h2` crate.
    H2(h2::client::SendRequest<Bytes>),
    /// Of our own engine.
    Own(own::Opener),
}

/// An answer, whatever its status.
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) receiving: Receiving,
    pub(crate) sending: Sending,
    /// Bytes that have been sent with the request.
    pub(crate) sent: usize,
}

/// Why there is no answer.
pub(crate) enum Unanswered {
    /// The request cannot be formed; says what of it.
    Malformed(&'static str),
    /// The peer reset the stream before it looked at the request.
    Unseen(String),
    /// The peer reset the stream.
    Reset(String),
    /// The connection ended.
    Lost(String),
    /// The connection ended, and the peer may have acted upon what was sent with the request.
    Cut(String),
}

impl Asking {
    /// Streams that the peer allows at once.
    pub(crate) fn places(&self) -> usize {
        match self {
            Self::H2(send) => send.current_max_send_streams(),
            Self::Own(own::Opener(shared)) => shared.with(|state| state.places()).unwrap_or(0),
        }
    }

    /// Half of what the peer allows on this connection lies unread there; of the `h2` crate's
    /// connections the gauge knows.
    pub(crate) fn stalled(&self) -> bool {
        match self {
            Self::H2(_) => false,
            Self::Own(own::Opener(shared)) => shared.with(|state| state.stalled()).unwrap_or(true),
        }
    }

    /// What an app has said may be sent with the request for its tunnel.
    pub(crate) fn takes_first(&self) -> bool {
        match self {
            Self::H2(_) => false,
            Self::Own(own::Opener(shared)) => shared.with(|s| s.is_lively()).unwrap_or(false),
        }
    }

    /// Whether the peer carries datagrams too; none, if the connection has ended before it said.
    pub(crate) async fn takes_datagrams(&self) -> Option<bool> {
        match self {
            Self::H2(send) => {
                // Nobody says when the peer's SETTINGS have come; they are the first that it says. One that is slower than
                // this passes for one that carries none.
                for _ in 0..LOOKS {
                    if send.is_extended_connect_protocol_enabled() {
                        return Some(true);
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Some(false)
            }
            Self::Own(own::Opener(shared)) => own::takes_datagrams(shared).await,
        }
    }

    /// Makes a request, with a `path` for a way for datagrams, and waits for the answer; what the app has said `first` may go along. Dropped before, the
    /// stream is reset.
    pub(crate) async fn ask(
        &self,
        connect: &Connect,
        path: Option<&str>,
        first: &[u8],
    ) -> Result<Answered, Unanswered> {
        match self {
            Self::H2(send) => {
                let request = request(connect, path).map_err(Unanswered::Malformed)?;
                let mut send = send.clone().ready().await?;
                let (response, sending) = send.send_request(request, false)?;
                let response = response.await?;
                Ok(Answered {
                    status: response.status().as_u16(),
                    receiving: Receiving::H2(response.into_body()),
                    sending: Sending::H2(sending),
                    sent: 0,
                })
            }
            Self::Own(own::Opener(shared)) => {
                let (status, receiving, sending, sent) =
                    own::ask(shared, connect, path, first).await?;
                Ok(Answered {
                    status,
                    receiving: Receiving::Own(receiving),
                    sending: Sending::Own(sending),
                    sent,
                })
            }
        }
    }
}

impl From<h2::Error> for Unanswered {
    fn from(error: h2::Error) -> Self {
        if !error.is_reset() || error.is_library() {
            return Self::Lost(words(&error));
        }
        let code = error.reason().unwrap_or(h2::Reason::INTERNAL_ERROR);
        let words = reset(false, code.into());
        if code == h2::Reason::REFUSED_STREAM {
            Self::Unseen(words)
        } else {
            Self::Reset(words)
        }
    }
}

/// How often, and after how long, it is looked whether a peer carries datagrams: a second in all, which is a round trip.
const LOOKS: u32 = 100;
const LOOK: Duration = Duration::from_millis(10);

fn request(connect: &Connect, path: Option<&str>) -> Result<http::Request<()>, &'static str> {
    let authority =
        uri::Authority::try_from(connect.authority.to_string()).map_err(|_| "authority")?;
    let mut target = uri::Parts::default();
    target.authority = Some(authority);
    let mut request = http::Request::new(());
    if let Some(path) = path {
        target.scheme = Some(uri::Scheme::HTTPS);
        target.path_and_query = Some(path.try_into().map_err(|_| "path")?);
        let protocol = h2::ext::Protocol::from_static(datagrams::PROTOCOL);
        request.extensions_mut().insert(protocol);
        let capsules = HeaderValue::from_static("?1");
        request.headers_mut().insert("capsule-protocol", capsules);
    }
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = http::Uri::from_parts(target).map_err(|_| "authority")?;
    for (name, value) in connect.headers() {
        let value = HeaderValue::try_from(value).map_err(|_| name)?;
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}
