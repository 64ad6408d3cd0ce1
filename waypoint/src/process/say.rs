//! What a processor is told.

use std::collections::HashMap;

use api::ext_proc::processing_request::Request as Of;
use api::ext_proc::{
    HeaderMap as Headers, HeaderValue, HttpBody, HttpHeaders, HttpTrailers, Metadata,
    ProcessingRequest, ProtocolConfiguration,
};
use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use prost_types::Struct;

use super::{Attributes, Modes, Way};
use crate::service::framed;

/// What a processor is told with a message beside what that shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Beside {
    /// With its first one: what it will be shown.
    pub modes: Option<Modes>,
    /// With the first one of each way: what else there is to know of the request, or of the answer.
    pub attributes: Attributes,
    /// What was said of the request before, by namespace.
    pub metadata: HashMap<String, Struct>,
    /// Nobody waits for its answer.
    pub observed: bool,
}

/// The head of a request, as the app would get it.
pub fn request_headers(head: &Parts, authority: &str) -> Headers {
    let path = head.uri.path_and_query();
    let path = path.map_or_else(|| head.uri.path(), |path| path.as_str());
    let mut headers = vec![
        told(":method", head.method.as_str().as_bytes()),
        told(":path", path.as_bytes()),
        told(":authority", authority.as_bytes()),
        told(":scheme", b"http"),
    ];
    headers.extend(all(&head.headers));
    Headers { headers }
}

/// The head of an answer.
pub fn answer_headers(status: StatusCode, headers: &HeaderMap) -> Headers {
    let mut told = vec![told(":status", status.as_str().as_bytes())];
    told.extend(all(headers));
    Headers { headers: told }
}

/// A head. `ended`: nothing follows it.
///
/// # Errors
/// It is too large.
pub fn headers(way: Way, headers: Headers, ended: bool, beside: Beside) -> Result<Bytes, String> {
    let headers = HttpHeaders {
        headers: Some(headers),
        end_of_stream: ended,
    };
    say(
        match way {
            Way::There => Of::RequestHeaders(headers),
            Way::Back => Of::ResponseHeaders(headers),
        },
        beside,
    )
}

/// A piece of a body.
///
/// # Errors
/// It is too large.
pub fn body(way: Way, piece: Bytes, ended: bool, beside: Beside) -> Result<Bytes, String> {
    let body = HttpBody {
        body: piece.into(),
        end_of_stream: ended,
    };
    say(
        match way {
            Way::There => Of::RequestBody(body),
            Way::Back => Of::ResponseBody(body),
        },
        beside,
    )
}

/// Trailers.
///
/// # Errors
/// They are too large.
pub fn trailers(way: Way, trailers: &HeaderMap, beside: Beside) -> Result<Bytes, String> {
    let trailers = HttpTrailers {
        trailers: Some(Headers {
            headers: all(trailers).collect(),
        }),
    };
    say(
        match way {
            Way::There => Of::RequestTrailers(trailers),
            Way::Back => Of::ResponseTrailers(trailers),
        },
        beside,
    )
}

fn say(request: Of, beside: Beside) -> Result<Bytes, String> {
    let mut message = ProcessingRequest {
        request: Some(request),
        attributes: beside.attributes,
        observability_mode: beside.observed,
        ..ProcessingRequest::default()
    };
    if !beside.metadata.is_empty() {
        message.metadata_context = Some(Metadata {
            filter_metadata: beside.metadata,
        });
    }
    if let Some(modes) = beside.modes {
        let (there, back) = modes.bodies();
        message.protocol_config = Some(ProtocolConfiguration {
            request_body_mode: there.into(),
            response_body_mode: back.into(),
            send_body_without_waiting_for_header_response: false,
        });
    }
    framed(&message)
}

fn all(headers: &HeaderMap) -> impl Iterator<Item = HeaderValue> {
    let shown = headers.iter().filter(|(name, _)| **name != HOST);
    shown.map(|(name, value)| told(name.as_str(), value.as_bytes()))
}

fn told(key: &str, value: &[u8]) -> HeaderValue {
    HeaderValue {
        key: key.to_owned(),
        value: String::new(),
        raw_value: value.to_vec(),
    }
}
