//! What a processor's words mean.

use std::time::Duration;

use api::ext_proc::body_mutation::Mutation as Wire;
use api::ext_proc::common_response::ResponseStatus;
use api::ext_proc::processing_response::Response as Of;
use api::ext_proc::{
    BodyMutation, CommonResponse, HeaderMutation, HeaderValueOption, ImmediateResponse,
    ProcessingMode, ProcessingResponse,
};
use bytes::Bytes;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use prost_types::Struct;

use super::{Rules, Way};
use crate::asked::{self, remove_doubles};
use crate::permission::{Action, Change, is_framing};

/// One message of its.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// What it is about; none: the request as a whole.
    pub way: Option<Way>,
    /// What it says.
    pub said: Said,
    /// Which parts it wants to be shown from now on.
    pub modes: Option<ProcessingMode>,
    /// What it says of the request to whoever comes later, by namespace.
    pub metadata: Option<Struct>,
}

/// What it says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// To a head.
    Headers(Common),
    /// To a piece of a body.
    Body(Common),
    /// To trailers.
    Trailers(Mutation),
    /// Nobody else is to answer.
    Immediate(Immediate),
    /// It will take longer.
    Longer(Duration),
}

/// To a head or a piece.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Common {
    /// Of the head.
    pub mutation: Mutation,
    /// Of the body; none: it stays as it is.
    pub body: Option<BodyChange>,
    /// To a head: this is the whole body, and the processor wants to see no more this way.
    pub replaces: bool,
}

/// What a piece becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyChange {
    /// These bytes.
    Bytes(Bytes),
    /// One more piece of its own, and whether it is the last.
    Piece(Bytes, bool),
}

/// Changes of a head or of trailers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mutation {
    removed: Vec<HeaderName>,
    changes: Vec<Change>,
    /// Of a request, with its query.
    pub path: Option<String>,
    /// For whom a request is.
    pub authority: Option<Authority>,
    /// Of a request; never one of those that say whether there is a body at all (HEAD, CONNECT).
    pub method: Option<Method>,
    /// Of an answer.
    pub status: Option<StatusCode>,
}

/// An answer in the app's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Immediate {
    /// Its status.
    pub status: StatusCode,
    /// Changes of its headers.
    pub headers: Mutation,
    /// Its body.
    pub body: Bytes,
    /// For a client that speaks gRPC.
    pub grpc: Option<u32>,
    /// For the log.
    pub details: String,
}

/// What a message means of a processor that may change what `rules` say.
///
/// # Errors
/// Nothing that could be followed.
pub fn heard(message: ProcessingResponse, rules: &Rules) -> Result<Heard, String> {
    if let Some(longer) = message.override_message_timeout {
        let longer =
            Duration::try_from(longer).map_err(|_| "it wants to take less than no time")?;
        return Ok(Heard {
            way: None,
            said: Said::Longer(longer),
            modes: None,
            metadata: None,
        });
    }
    let (way, said) = match message.response.ok_or("it says nothing")? {
        Of::RequestHeaders(it) => (Some(Way::There), Said::Headers(common(it.response, rules)?)),
        Of::ResponseHeaders(it) => (Some(Way::Back), Said::Headers(common(it.response, rules)?)),
        Of::RequestBody(it) => (Some(Way::There), Said::Body(common(it.response, rules)?)),
        Of::ResponseBody(it) => (Some(Way::Back), Said::Body(common(it.response, rules)?)),
        Of::RequestTrailers(it) => {
            let mutation = Mutation::read(it.header_mutation, rules)?;
            (Some(Way::There), Said::Trailers(mutation))
        }
        Of::ResponseTrailers(it) => {
            let mutation = Mutation::read(it.header_mutation, rules)?;
            (Some(Way::Back), Said::Trailers(mutation))
        }
        Of::ImmediateResponse(it) => (None, Said::Immediate(immediate(it)?)),
    };
    Ok(Heard {
        way,
        said,
        modes: message.mode_override,
        metadata: message.dynamic_metadata,
    })
}

fn common(response: Option<CommonResponse>, rules: &Rules) -> Result<Common, String> {
    let Some(response) = response else {
        return Ok(Common::default());
    };
    let replaces = response.status() == ResponseStatus::ContinueAndReplace;
    Ok(Common {
        mutation: Mutation::read(response.header_mutation, rules)?,
        body: response.body_mutation.and_then(body),
        replaces,
    })
}

fn body(mutation: BodyMutation) -> Option<BodyChange> {
    Some(match mutation.mutation? {
        Wire::Body(bytes) => BodyChange::Bytes(bytes.into()),
        Wire::ClearBody(true) => BodyChange::Bytes(Bytes::new()),
        Wire::ClearBody(false) => return None,
        Wire::StreamedResponse(piece) => BodyChange::Piece(piece.body.into(), piece.end_of_stream),
    })
}

fn immediate(it: ImmediateResponse) -> Result<Immediate, String> {
    let code = it.status.map_or(0, |status| status.code);
    let status = match code {
        0 => StatusCode::OK,
        code => {
            status(&code.to_string()).ok_or_else(|| format!("it answers with status {code}"))?
        }
    };
    Ok(Immediate {
        status,
        // All of that answer is its own.
        headers: Mutation::read(it.headers, &Rules::default())?,
        body: it.body.into(),
        grpc: it.grpc_status.map(|grpc| grpc.status),
        details: it.details,
    })
}

fn status(text: &str) -> Option<StatusCode> {
    let code: u16 = text.parse().ok()?;
    let code = Some(code).filter(|code| (200..600).contains(code))?;
    StatusCode::from_u16(code).ok()
}

impl Mutation {
    fn read(wire: Option<HeaderMutation>, rules: &Rules) -> Result<Self, String> {
        let Some(wire) = wire else {
            return Ok(Self::default());
        };
        let mut made = Self::default();
        for option in &wire.set_headers {
            made.take(option, rules)?;
        }
        for name in &wire.remove_headers {
            // A request always has a host.
            let Some(name) = name.parse::<HeaderName>().ok().filter(|it| *it != HOST) else {
                continue;
            };
            if rules.allow(name.as_str())? {
                made.removed.push(name);
            }
        }
        Ok(made)
    }

    fn take(&mut self, option: &HeaderValueOption, rules: &Rules) -> Result<(), String> {
        let header = option.header.as_ref().ok_or("a change of no header")?;
        let key = header.key.to_ascii_lowercase();
        if key.starts_with(':') || key == HOST.as_str() {
            if !rules.allow(&key)? {
                return Ok(());
            }
            let value = match header.value.as_bytes() {
                [] => &header.raw_value,
                value => value,
            };
            let value = str::from_utf8(value).map_err(|_| format!("{} is no text", header.key))?;
            match &*key {
                ":path" => self.path = Some(value.to_owned()),
                ":authority" | "host" => {
                    let unfit = || format!("{value:?} is no host");
                    let authority: Authority = value.parse().map_err(|_| unfit())?;
                    asked::host(authority.as_str()).map_err(|_| unfit())?;
                    self.authority = Some(authority);
                }
                ":method" => self.method = Some(method(value)?),
                ":status" => {
                    let status = status(value);
                    self.status = Some(status.ok_or_else(|| format!("{value} is no status"))?);
                }
                _ => {}
            }
            return Ok(());
        }
        // One that the client sent beside it would be believed.
        let change = Change::read(option, Action::Set)?;
        if rules.allow(&key)? {
            self.changes.extend(change);
        }
        Ok(())
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes headers or trailers.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.removed {
            headers.remove(name);
        }
        remove_doubles(headers, &self.removed);
        for change in &self.changes {
            change.apply(headers);
            remove_doubles(headers, std::slice::from_ref(&change.name));
        }
    }
}

/// One by which an answer has a body as it says itself.
fn method(text: &str) -> Result<Method, String> {
    let method: Method = text.parse().map_err(|_| format!("{text:?} is no method"))?;
    match method == Method::HEAD || method == Method::CONNECT {
        true => Err(format!("no request becomes {method}")),
        false => Ok(method),
    }
}

/// Whether only proxies may say it.
pub(super) fn is_ours(name: &str) -> bool {
    let framing = name
        .parse::<HeaderName>()
        .is_ok_and(|name| is_framing(&name));
    framing || name.starts_with("x-envoy-") || name == "x-forwarded-client-cert"
}
