//! Pure: external processors, which are shown requests and answers and change them.
//!
//! 1. what the control plane says of one                                   ([`Processor::compile`])
//! 2. which parts it is shown; it may ask for others                        ([`Modes`], `modes`)
//! 3. what it is told, and what of the request beside that                  (`say`, `attributes`)
//! 4. what its words mean: changes, or an answer in the app's place         ([`Said`], `hear`)
//! 5. which changes are its to make                                         ([`Rules`], `rules`)
//! 6. what it is told of metadata, and may say of it                        ([`Metadata`], `metadata`)
//!
//! One that only looks on is shown the same, but nobody waits for it or hears what it says.
//!
//! It speaks Envoy's protocol (`envoy.service.ext_proc.v3`), one stream a request. What it says is as little to be
//! trusted as what clients say: framing is not its to change, hosts and methods only where its object says so, and what
//! nobody asked is an error. How the stream is carried is [`crate::request`]'s.

mod attributes;
mod hear;
mod metadata;
mod modes;
mod rules;
mod say;

use std::sync::Arc;
use std::time::Duration;

use api::waypoint as wire;
use bytes::Bytes;
use expression::cel::{Expression, Names};
use http::StatusCode;
use http_body::Frame;

pub use attributes::{Attributes, attributes, both};
pub use hear::{BodyChange, Common, Heard, Immediate, Mutation, Said, heard};
pub(crate) use metadata::AUTHORIZERS;
pub use metadata::Metadata;
pub use modes::{Body, Modes, Parts};
pub use rules::Rules;
pub use say::{Beside, answer_headers, body, headers, request_headers, trailers};

use crate::report::Keeps;
use crate::route::ServiceName;

/// Somebody who is shown requests and answers.
#[derive(Debug)]
pub struct Processor {
    /// Whose object it is: `ExternalProcessor/namespace/name`.
    pub name: Arc<str>,
    /// Where it is.
    pub service: ServiceName,
    /// How long an answer to a message may take.
    pub timeout: Duration,
    /// The longest that it may ask for; none: it may not.
    pub longest: Option<Duration>,
    /// Whether requests go on without it when it fails.
    pub fail_open: bool,
    /// What is answered when it fails, and they do not; none: 500, and 504 where it took too long.
    pub on_error: Option<StatusCode>,
    /// What it is shown.
    pub modes: Modes,
    /// Whether it may ask for other parts.
    pub overridable: bool,
    /// Bytes that are held of a body.
    pub most: usize,
    /// What it may change.
    pub rules: Rules,
    /// What it is told of requests beside what it is shown.
    pub attributes: Box<[Expression]>,
    /// The same of answers.
    pub of_answers: Box<[Expression]>,
    /// Headers of requests that those ask for.
    pub keeps: Keeps,
    /// Namespaces of metadata that it is told.
    pub accessible: Box<[String]>,
    /// Those in which it may say something.
    pub writable: Box<[String]>,
    /// Nobody waits for it, or hears what it says; how long it may go on with a request that has ended.
    pub watches: Option<Duration>,
}

/// Which way something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the app.
    There,
    /// From the app to the client.
    Back,
}

/// Somebody who sees a body pass, piece by piece, and holds nothing up.
pub trait Watch: std::fmt::Debug + Send + Sync {
    /// A piece, or trailers; `last`: a piece, and nothing follows it.
    fn sees(&mut self, frame: &Frame<Bytes>, last: bool);

    /// That was all. After the last piece, or after trailers, it says nothing new.
    fn end(&mut self);
}

impl Processor {
    /// Of a message, or what is wrong with it.
    pub fn compile(origin: &wire::Origin, wire: &wire::Processing) -> Result<Self, String> {
        if !wire.invalid.is_empty() {
            return Err(wire.invalid.clone());
        }
        let of = wire.processor.as_ref().ok_or("it says not who is asked")?;
        let service = of.service.as_ref().ok_or("it says not who is asked")?;
        let some = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        let most = match of.body_bytes {
            0 => USUAL,
            bytes => bytes as usize,
        };
        if most > LARGEST {
            return Err(format!("{most} bytes of a body are too many"));
        }
        let on_error = (of.status_on_error > 0).then(|| {
            let code = u16::try_from(of.status_on_error).ok();
            let code = code.filter(|code| (200..600).contains(code));
            let code = code.and_then(|code| StatusCode::from_u16(code).ok());
            code.ok_or_else(|| format!("{} is no status of an answer", of.status_on_error))
        });
        let modes = Modes::compile(of)?;
        if of.observe && !modes.stands_aside() {
            return Err("who is not waited for is shown bodies in pieces, or not".to_owned());
        }
        let of_answers = attributes::compile(&of.response_attributes)?;
        let mut asked = Names::default();
        for one in &of_answers {
            asked.merge(one.headers().request);
        }
        Ok(Self {
            name: name(origin),
            service: ServiceName::compile(service)?,
            timeout: some(of.timeout).unwrap_or(TIMEOUT),
            longest: some(of.longest_timeout),
            // Who only looks on decides nothing.
            fail_open: of.fail_open || of.observe,
            on_error: on_error.transpose()?,
            modes,
            overridable: of.mode_override,
            most,
            rules: Rules::compile(&of.mutations.clone().unwrap_or_default())?,
            attributes: attributes::compile(&of.attributes)?,
            of_answers,
            keeps: Keeps::of(&asked),
            accessible: of.metadata.as_slice().into(),
            writable: of.metadata_written.as_slice().into(),
            watches: of
                .observe
                .then(|| some(of.deferred_close).unwrap_or(AFTERWARDS)),
        })
    }
}

/// Whose object it is.
pub(crate) fn name(origin: &wire::Origin) -> Arc<str> {
    format!("{}/{}/{}", origin.kind, origin.namespace, origin.name).into()
}

/// Where nothing else is said.
const TIMEOUT: Duration = Duration::from_millis(200);
const AFTERWARDS: Duration = Duration::from_secs(5);
const USUAL: usize = 1 << 20;
/// Bytes of a body, whatever is said.
const LARGEST: usize = 16 << 20;
