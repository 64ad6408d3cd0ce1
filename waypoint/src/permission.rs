//! Pure: what an external authorizer is asked about a request, and what its answer means.
//!
//! 1. what the control plane says of it                                    ([`Authorizer::compile`])
//! 2. a request enters ([`Question`]), a request to the authorizer leaves  ([`Authorizer::asks`])
//!    and so for a connection that is not HTTP                             ([`Authorizer::asks_about`])
//! 3. its answer enters ([`Heard`]), a permission or a denial leaves       ([`Authorizer::hears`])
//! 4. what a permission changes: the request, and what is answered to it   ([`Allowed`])
//!
//! It is asked over gRPC (`envoy.service.auth.v3`) or with a request like the client's own. An answer that cannot be
//! understood, or not be followed in all it says, is an error and no permission.

mod change;
mod grpc;
mod names;
mod plain;
mod query;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use api::waypoint as wire;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use prost_types::Struct;

pub(crate) use change::is_framing;
pub use change::{Action, Change};
pub use names::Names;
pub use query::Parameters;

use crate::asked::remove_doubles;
use crate::client::Client;
use crate::route::ServiceName;
pub use crate::service::Heard;

/// Somebody who is asked whether requests may pass.
#[derive(Debug)]
pub struct Authorizer {
    /// Where it is.
    pub service: ServiceName,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether requests pass when it does not answer.
    pub fail_open: bool,
    /// What is answered when it does not, and they do not pass.
    pub on_error: StatusCode,
    /// How much it is shown of a request's body.
    pub body: Option<Part>,
    spoken: Spoken,
}

/// How much is shown of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Bytes.
    pub most: usize,
    /// The beginning of a longer one is shown; else a longer one is refused.
    pub cut: bool,
}

#[derive(Debug)]
enum Spoken {
    Grpc(grpc::Grpc),
    Plain(plain::Plain),
}

/// A request that somebody is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// As the app would get it.
    pub head: &'a Parts,
    /// For which host, as sent.
    pub authority: &'a str,
    /// `authorization` as it was sent: shown also where the app does not get it.
    pub token: Option<&'a HeaderValue>,
    /// Who asks.
    pub client: &'a Client,
    /// Where it was addressed to.
    pub destination: SocketAddr,
    /// Who this proxy is.
    pub own: &'a str,
    /// When it came.
    pub time: SystemTime,
    /// Its body, if that is shown.
    pub body: Option<&'a Sample>,
}

/// The beginning of a body, or all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// The bytes.
    pub bytes: Bytes,
    /// Whether this is all.
    pub whole: bool,
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// The request may pass.
    Allowed(Allowed),
    /// It may not.
    Denied(Denial),
}

/// What changes with a permission.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allowed {
    /// Of the request.
    pub request: Vec<Change>,
    /// Taken out of the request, before what is changed.
    pub removed: Vec<HeaderName>,
    /// Of its query.
    pub parameters: Parameters,
    /// Of what is answered to it.
    pub answer: Vec<Change>,
    /// What is said of it, for whoever comes later.
    pub metadata: Struct,
}

/// What the client is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Denial {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What is said of the request, for whoever tells of it.
    pub metadata: Struct,
}

impl Authorizer {
    /// Of a message, or what is wrong with it.
    pub fn compile(wire: &wire::Authorizer) -> Result<Self, String> {
        let service = wire.service.as_ref().ok_or("it says not who is asked")?;
        Ok(Self {
            service: ServiceName::compile(service)?,
            timeout: match wire.timeout {
                0 => TIMEOUT,
                milliseconds => Duration::from_millis(milliseconds),
            },
            fail_open: wire.fail_open,
            on_error: match wire.status_on_error {
                0 => StatusCode::FORBIDDEN,
                code => status(code).ok_or_else(|| format!("{code} is no status of an answer"))?,
            },
            body: (wire.body_bytes > 0).then_some(Part {
                most: wire.body_bytes as usize,
                cut: wire.body_partial,
            }),
            spoken: match wire.http {
                true => Spoken::Plain(plain::Plain::compile(wire)?),
                false => Spoken::Grpc(grpc::Grpc::compile(wire)?),
            },
        })
    }

    /// What is sent to it.
    ///
    /// # Errors
    /// The request cannot be told to it.
    pub fn asks(&self, question: &Question<'_>) -> Result<Request<Bytes>, String> {
        match &self.spoken {
            Spoken::Grpc(grpc) => grpc.asks(question, &self.service, self.timeout),
            Spoken::Plain(plain) => plain.asks(question),
        }
    }

    /// What is sent to it about a connection that is not HTTP: who wants to connect to what.
    ///
    /// # Errors
    /// It can be asked about requests only.
    pub fn asks_about(
        &self,
        client: &Client,
        destination: SocketAddr,
        own: &str,
    ) -> Result<Request<Bytes>, String> {
        match &self.spoken {
            Spoken::Grpc(_) => {
                let attributes = grpc::connection(client, destination, own);
                grpc::check(attributes, &HeaderMap::new(), &self.service, self.timeout)
            }
            Spoken::Plain(_) => Err("over HTTP it can be asked about requests only".to_owned()),
        }
    }

    /// What its answer means.
    ///
    /// # Errors
    /// Nothing that could be followed: it is no permission.
    pub fn hears(&self, heard: &Heard<'_>) -> Result<Answered, String> {
        match &self.spoken {
            Spoken::Grpc(_) => grpc::hears(heard),
            Spoken::Plain(plain) => plain.hears(heard),
        }
    }
}

impl Allowed {
    /// Changes the request's headers.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.removed {
            headers.remove(name);
        }
        remove_doubles(headers, &self.removed);
        for change in &self.request {
            change.apply(headers);
            remove_doubles(headers, std::slice::from_ref(&change.name));
        }
    }
}

/// One that ends a request.
fn status(code: u32) -> Option<StatusCode> {
    let code = u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code))?;
    StatusCode::from_u16(code).ok()
}

/// Where nothing else is said.
const TIMEOUT: Duration = Duration::from_millis(600);
