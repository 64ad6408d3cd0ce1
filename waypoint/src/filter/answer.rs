//! Answers that no app gave.

use api::waypoint as wire;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};

use super::headers::pair;

/// What a client is answered by us.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Headers, without those of the body's length.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
    /// Why we answered.
    pub reason: Reason,
}

/// Why a rule answered by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It says where to go instead.
    Redirect,
    /// A browser asks whether it may.
    Preflight,
    /// Trouble was asked for.
    Fault,
    /// It has the answer itself.
    Direct,
    /// It cannot be understood or cannot be done.
    Broken,
}

impl Reason {
    /// As in `response_flags` of Envoy's access log; "-" where it has none.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Fault => "FI",
            Self::Redirect | Self::Preflight | Self::Direct | Self::Broken => "-",
        }
    }

    /// For logs: `response_code_details`.
    pub fn text(self) -> &'static str {
        match self {
            Self::Redirect | Self::Direct => "direct_response",
            Self::Preflight => "cors_response",
            Self::Fault => "fault_filter_abort",
            Self::Broken => "route_broken",
        }
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

impl Answer {
    /// With a text for the person who reads it.
    pub fn text(status: StatusCode, text: impl Into<Bytes>, reason: Reason) -> Self {
        let plain = HeaderValue::from_static("text/plain");
        Self {
            status,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, plain)]),
            body: text.into(),
            reason,
        }
    }

    /// 500: the rule is at fault, not the request.
    pub fn broken(why: &str) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::text(status, why.to_owned(), Reason::Broken)
    }

    pub(super) fn compile(wire: &wire::DirectResponse) -> Result<Self, String> {
        let status = u16::try_from(wire.status)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .filter(|status| status.as_u16() >= 200)
            .ok_or_else(|| format!("an answer with status {}", wire.status))?;
        let mut headers = HeaderMap::with_capacity(wire.headers.len() + 1);
        for header in &wire.headers {
            let (name, value) = pair(header)?;
            headers.append(name, value);
        }
        let body = Bytes::from(wire.body.clone());
        if !body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        Ok(Self {
            status,
            headers,
            body,
            reason: Reason::Direct,
        })
    }

    /// As one who speaks gRPC understands it: 200, with the code and the text in its headers.
    pub fn for_grpc(self, code: u32) -> Self {
        let mut headers = self.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(code));
        let message = escaped(&self.body);
        if let Some(message) = message.filter(|message| !message.is_empty()) {
            headers.insert(GRPC_MESSAGE, message);
        }
        Self {
            status: StatusCode::OK,
            headers,
            body: Bytes::new(),
            reason: self.reason,
        }
    }
}

/// `grpc-message`: bytes that are not printable ASCII, and `%`, as `%XX`.
fn escaped(text: &[u8]) -> Option<HeaderValue> {
    let mut message = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'~' if *byte != b'%' => message.push(char::from(*byte)),
            _ => message.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(message).ok()
}

/// Whether a request is gRPC's: `application/grpc`, alone or with `+` and a codec.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    kind.as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The code a gRPC client sees where it is answered with a status of HTTP (gRPC, http-grpc-status-mapping).
pub fn grpc_code(status: StatusCode) -> u32 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
