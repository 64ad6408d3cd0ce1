//! Authorizers that speak gRPC.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use api::ext_authz::attribute_context::{HttpRequest, Peer, Request as Asked};
use api::ext_authz::check_response::HttpResponse as Said;
use api::ext_authz::{
    Address, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption,
    OkHttpResponse, SocketAddress, address, socket_address,
};
use api::waypoint as wire;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HOST};
use http::{HeaderMap, HeaderName, Request, StatusCode, Version};
use prost_types::Struct;

use super::{
    Action, Allowed, Answered, Change, Denial, Heard, Names, Parameters, Question, change, status,
};
use crate::client::Client;
use crate::report::REQUEST_ID;
use crate::route::ServiceName;
use crate::service::{self, text};

/// How it is asked.
#[derive(Debug)]
pub(super) struct Grpc {
    /// Of the request's headers; none: all.
    shown: Names,
}

impl Grpc {
    pub(super) fn compile(wire: &wire::Authorizer) -> Result<Self, String> {
        Ok(Self {
            shown: Names::compile(&wire.send_headers)?,
        })
    }

    pub(super) fn asks(
        &self,
        question: &Question<'_>,
        to: &ServiceName,
        timeout: Duration,
    ) -> Result<Request<Bytes>, String> {
        let about = &question.head.headers;
        check(self.attributes(question), about, to, timeout)
    }

    fn attributes(&self, question: &Question<'_>) -> AttributeContext {
        let time = question.time.duration_since(SystemTime::UNIX_EPOCH);
        let time = time.unwrap_or_default();
        AttributeContext {
            request: Some(Asked {
                time: Some(prost_types::Timestamp {
                    seconds: i64::try_from(time.as_secs()).unwrap_or_default(),
                    nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
                }),
                http: Some(self.http(question)),
            }),
            ..connection(question.client, question.destination, question.own)
        }
    }

    fn http(&self, question: &Question<'_>) -> HttpRequest {
        let head = question.head;
        let path = head.uri.path_and_query();
        let path = path.map_or_else(|| head.uri.path().to_owned(), ToString::to_string);
        let mut headers = self.headers(question);
        for (name, value) in [
            (":authority", question.authority),
            (":method", head.method.as_str()),
            (":path", &path),
            (":scheme", "http"),
        ] {
            headers.insert(name.to_owned(), value.to_owned());
        }
        let length = text(&head.headers, &CONTENT_LENGTH);
        let mut http = HttpRequest {
            id: text(&head.headers, &REQUEST_ID).unwrap_or_default(),
            method: head.method.to_string(),
            path,
            host: question.authority.to_owned(),
            scheme: "http".to_owned(),
            size: length.and_then(|length| length.parse().ok()).unwrap_or(-1),
            protocol: match head.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            }
            .to_owned(),
            ..HttpRequest::default()
        };
        if let Some(sample) = question.body {
            let partial = (!sample.whole).to_string();
            headers.insert("x-envoy-auth-partial-body".to_owned(), partial);
            match str::from_utf8(&sample.bytes) {
                Ok(text) => http.body = text.to_owned(),
                Err(_) => http.raw_body = sample.bytes.to_vec(),
            }
        }
        http.headers = headers;
        http
    }

    fn headers(&self, question: &Question<'_>) -> HashMap<String, String> {
        let head = &question.head.headers;
        let shown =
            |name: &HeaderName| *name != HOST && (self.shown.is_empty() || self.shown.has(name));
        let mut headers: HashMap<String, String> = HashMap::with_capacity(head.keys_len() + 6);
        for (name, value) in head.iter().filter(|(name, _)| shown(name)) {
            let value = String::from_utf8_lossy(value.as_bytes());
            match headers.get_mut(name.as_str()) {
                None => {
                    headers.insert(name.as_str().to_owned(), value.into_owned());
                }
                Some(joined) => {
                    joined.push_str(if name == COOKIE { "; " } else { "," });
                    joined.push_str(&value);
                }
            }
        }
        if let Some(token) = question.token.filter(|_| shown(&AUTHORIZATION)) {
            let token = String::from_utf8_lossy(token.as_bytes()).into_owned();
            headers
                .entry(AUTHORIZATION.as_str().to_owned())
                .or_insert(token);
        }
        headers
    }
}

/// The question, as it is sent; `about`: the headers of the request that it is about.
pub(super) fn check(
    attributes: AttributeContext,
    about: &HeaderMap,
    to: &ServiceName,
    timeout: Duration,
) -> Result<Request<Bytes>, String> {
    let message = service::framed(&CheckRequest {
        attributes: Some(attributes),
    })?;
    let request = service::call(to, METHOD, about, Some(timeout));
    request
        .body(message)
        .map_err(|why| format!("it cannot be asked: {why}"))
}

/// Who wants to connect to what, and who it is that asks.
pub(super) fn connection(client: &Client, destination: SocketAddr, own: &str) -> AttributeContext {
    let peer = |address: SocketAddr, principal: String| Peer {
        address: Some(place(address)),
        principal,
    };
    let identity = client.identity.as_ref().map(ToString::to_string);
    AttributeContext {
        source: Some(peer(client.address, identity.unwrap_or_default())),
        destination: Some(peer(destination, own.to_owned())),
        request: None,
    }
}

fn place(address: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(
                address.port().into(),
            )),
        })),
    }
}

/// One message, and a good end.
pub(super) fn hears(heard: &Heard<'_>) -> Result<Answered, String> {
    meant(service::one::<CheckResponse>(heard)?)
}

/// Where the code and the rest of it say different things, it is denied.
fn meant(response: CheckResponse) -> Result<Answered, String> {
    let code = response.status.map(|status| status.code);
    let metadata = response.dynamic_metadata.unwrap_or_default();
    Ok(match (code, response.http_response) {
        (None, None) => return Err("its answer says nothing".to_owned()),
        (_, Some(Said::DeniedResponse(denied))) => Answered::Denied(denial(&denied, metadata)?),
        (None | Some(0), Some(Said::OkResponse(ok))) => Answered::Allowed(allowed(&ok, metadata)?),
        (Some(0), None) => Answered::Allowed(Allowed {
            metadata,
            ..Allowed::default()
        }),
        (Some(_), _) => Answered::Denied(Denial {
            status: StatusCode::FORBIDDEN,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            metadata,
        }),
    })
}

fn allowed(ok: &OkHttpResponse, metadata: Struct) -> Result<Allowed, String> {
    let removed = ok.headers_to_remove.iter();
    let removed = removed.filter_map(|name| name.parse::<HeaderName>().ok());
    Ok(Allowed {
        // One that the client sent beside it would be believed.
        request: changes(&ok.headers, Action::Set)?,
        removed: removed.filter(|name| !change::is_framing(name)).collect(),
        parameters: Parameters::read(ok)?,
        answer: changes(&ok.response_headers_to_add, Action::Append)?,
        metadata: ok.dynamic_metadata.clone().unwrap_or(metadata),
    })
}

fn denial(denied: &DeniedHttpResponse, metadata: Struct) -> Result<Denial, String> {
    let mut headers = HeaderMap::new();
    for change in changes(&denied.headers, Action::Append)? {
        change.apply(&mut headers);
    }
    let code = denied.status.as_ref().map_or(0, |status| status.code);
    let code = u32::try_from(code).ok().and_then(status);
    Ok(Denial {
        status: code.unwrap_or(StatusCode::FORBIDDEN),
        headers,
        body: denied.body.clone().into(),
        metadata,
    })
}

fn changes(options: &[HeaderValueOption], otherwise: Action) -> Result<Vec<Change>, String> {
    let read = options.iter().map(|option| Change::read(option, otherwise));
    read.filter_map(Result::transpose).collect()
}

const METHOD: &str = "envoy.service.auth.v3.Authorization/Check";
