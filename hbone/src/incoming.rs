//! One request as it arrives, and the ways to answer it.
//!
//! 1. the engine hands over head, body and the way back             ([`read`])
//! 2. no CONNECT, or no authority to act upon: answered 400 at once ([`Incoming::Refused`])
//! 3. anything else waits for the caller's answer                   ([`Request`]): a tunnel, or a status

use std::{fmt, future::poll_fn, sync::Arc};

use http::{HeaderMap, Method, StatusCode};

use crate::{
    datagrams,
    engine::{
        Lease,
        half::{Receiving, Sending},
        server::{Answering, Asked},
    },
    gauge::Gauge,
    limits::Refusal,
    request::{Authority, RequestHeaders},
    tunnel::{Tunnel, TunnelError},
};

/// What comes in on a connection.
#[derive(Debug)]
pub enum Incoming {
    /// A CONNECT that waits for an answer.
    Request(Request),
    /// A request that makes no sense. It has been answered with 400 and counted; there is nothing left
    /// to do but to tell.
    Refused(Malformed),
}

/// Why a request makes no sense. Holds at most the first 80 characters of what the peer wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Another method than CONNECT.
    #[error("expected method CONNECT, got {0}")]
    Method(String),
    /// The authority is missing, or is not `ip:port` or `host:port`.
    #[error("no valid authority pseudo header: {0}")]
    Authority(String),
}

impl Malformed {
    /// What it counts as.
    pub fn kind(&self) -> Refusal {
        match self {
            Self::Method(_) => Refusal::NotConnect,
            Self::Authority(_) => Refusal::Authority,
        }
    }
}

/// Reads a request; answers it if it makes no sense.
pub(crate) fn read(asked: Asked, gauge: Arc<Gauge>, lease: Lease) -> Incoming {
    let mut answer = Answer {
        answering: asked.answering,
        gauge,
    };
    match asked.target {
        Ok(authority) => Incoming::Request(Request {
            authority,
            datagrams: asked.datagrams,
            headers: asked.headers,
            answer,
            body: asked.body,
            lease,
        }),
        Err(why) => {
            answer.refuse(StatusCode::BAD_REQUEST);
            Incoming::Refused(why)
        }
    }
}

pub(crate) fn destination(parts: &http::request::Parts) -> Result<Authority, Malformed> {
    if parts.method != Method::CONNECT {
        return Err(Malformed::Method(excerpt(parts.method.as_str())));
    }
    let said = parts.uri.authority().map_or("", |said| said.as_str());
    authority(said)
}

/// Where datagrams are to go, by what an extended CONNECT says.
pub(crate) fn datagrams_to(protocol: &str, path: &str) -> Result<Authority, Malformed> {
    if protocol != datagrams::PROTOCOL {
        return Err(Malformed::Method(excerpt(&format!(
            "CONNECT for {protocol}"
        ))));
    }
    let to = datagrams::target(path);
    let to = to.ok_or_else(|| Malformed::Authority(excerpt(path)))?;
    Ok(Authority::Ip(to))
}

pub(crate) fn authority(said: &str) -> Result<Authority, Malformed> {
    said.parse()
        .map_err(|_| Malformed::Authority(excerpt(said)))
}

/// Enough of a peer's text to recognise it by.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

pub(crate) fn read_headers(map: &HeaderMap) -> RequestHeaders {
    let text = |name: &str| map.get(name).and_then(|v| v.to_str().ok()).map(Box::from);
    RequestHeaders {
        baggage: joined(map, "baggage"),
        forwarded: text("forwarded"),
        traceparent: text("traceparent"),
        x_forwarded_network: text("x-forwarded-network"),
        x_istio_source: text("x-istio-source"),
    }
}

/// All values of a header as one list. Nearly always there is one.
fn joined(map: &HeaderMap, name: &str) -> Option<Box<str>> {
    let mut values = map.get_all(name).iter().filter_map(|v| v.to_str().ok());
    let first = values.next()?;
    match values.next() {
        None => Some(first.into()),
        Some(second) => {
            let mut all = format!("{first},{second}");
            for value in values {
                all.push(',');
                all.push_str(value);
            }
            Some(all.into())
        }
    }
}

/// A CONNECT that waits for an answer. Dropped without one, its stream is reset.
pub struct Request {
    /// Where to.
    pub authority: Authority,
    /// It asks for a way for datagrams to there, and the tunnel carries capsules ([`crate::datagrams`]); only where that was
    /// offered.
    pub datagrams: bool,
    /// What came along.
    pub headers: RequestHeaders,
    answer: Answer,
    body: Receiving,
    lease: Lease,
}

/// Headers of our answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseHeaders {
    /// `baggage` of the destination, if the peer is to learn it.
    pub baggage: Option<String>,
}

/// The answers a mesh gives instead of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// 400: this destination is not ours to serve.
    BadRequest,
    /// 401: denied by policy.
    Denied,
    /// 503: the destination cannot be reached.
    Unavailable,
}

impl Status {
    /// The HTTP status code.
    pub fn code(self) -> u16 {
        self.http().as_u16()
    }

    fn http(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::UNAUTHORIZED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Request {
    /// Answers 200; from now on bytes flow.
    ///
    /// # Errors
    /// When the peer has given up on the stream or the connection is gone.
    pub fn accept(mut self, headers: ResponseHeaders) -> Result<Tunnel, TunnelError> {
        let sending = self.answer.send(StatusCode::OK, headers, false)?;
        Ok(Tunnel::new(self.body, sending, self.lease))
    }

    /// Answers with a status and ends the stream.
    pub fn refuse(mut self, status: Status) {
        self.answer.refuse(status.http());
    }

    /// Ready when the peer has given up on the request. Cancel safe.
    pub async fn abandoned(&mut self) {
        poll_fn(|cx| self.answer.answering.poll_abandoned(cx)).await;
        self.answer.gauge.reset_early();
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("authority", &self.authority)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// The way back for one request, and who hears when there is none.
struct Answer {
    answering: Answering,
    gauge: Arc<Gauge>,
}

impl Answer {
    fn refuse(&mut self, status: StatusCode) {
        // The peer has gone: nobody is left to be told.
        let _ = self.send(status, ResponseHeaders::default(), true);
    }

    fn send(
        &mut self,
        status: StatusCode,
        headers: ResponseHeaders,
        end: bool,
    ) -> Result<Sending, TunnelError> {
        let sent = self.answering.answer(status, headers, end);
        // The stream was reset before its answer: what rapid reset lives on.
        sent.inspect_err(|_| self.gauge.reset_early())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_a_connect_to_a_readable_authority_is_let_through() {
        for (method, uri, said) in [
            ("CONNECT", "10.0.0.1:80", Ok("10.0.0.1:80")),
            ("CONNECT", "Web.svc:80", Ok("web.svc:80")),
            (
                "GET",
                "https://10.0.0.1:80/",
                Err("expected method CONNECT, got GET"),
            ),
            (
                "connect",
                "10.0.0.1:80",
                Err("expected method CONNECT, got connect"),
            ),
            (
                "CONNECT",
                "10.0.0.1",
                Err("no valid authority pseudo header: 10.0.0.1"),
            ),
            ("CONNECT", "/", Err("no valid authority pseudo header: ")),
        ] {
            let request = http::Request::builder().method(method).uri(uri);
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let read = destination(&parts)
                .map_or_else(|why| Err(why.to_string()), |to| Ok(to.to_string()));
            assert_eq!(
                read.as_deref().map_err(String::as_str),
                said,
                "{method} {uri}"
            );
        }
    }

    #[test]
    fn several_baggage_headers_are_one_list_and_what_is_not_text_is_left_out() {
        let read = |values: &[&[u8]]| {
            let mut map = HeaderMap::new();
            for value in values {
                map.append("baggage", HeaderValue::from_bytes(value).unwrap());
            }
            read_headers(&map).baggage
        };
        for (values, list) in [
            (&[][..], None),
            (&[&b"a=1"[..]][..], Some("a=1")),
            (
                &[b"a=1", b"b=2,c=3", b"\xff", b"d=4"],
                Some("a=1,b=2,c=3,d=4"),
            ),
            (&[b"\xff"], None),
        ] {
            assert_eq!(read(values).as_deref(), list, "{values:?}");
        }
    }
}
