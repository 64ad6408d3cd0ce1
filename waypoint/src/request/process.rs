//! Showing a request and its answer to processors, and doing what they say.
//!
//! 1. a stream to each begins                                            (`stream`)
//! 2. they are shown the request's head, then its body and trailers      (`there`)
//! 3. they are shown the answer, the last of them first                  (`back`)
//! 4. bodies that are shown in pieces go on beside all of that           (`pieces`)
//! 5. who only looks on is told without being waited for                 (`watch`, `lane`)
//!
//! What holds a stream is the request's future and the bodies that are made by it: a client that goes away takes all of
//! it with it. Whatever a processor does that nobody asked for ends its part: the request goes on without it, or is
//! refused, as its object says.

mod back;
mod lane;
mod pieces;
mod source;
mod stream;
mod telling;
mod there;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use tokio::sync::mpsc;

pub(super) use self::source::Source;
use self::stream::Half;
pub(super) use self::there::processed;
use super::Refused;
use super::consumer::Made;
use super::refused::plain;
use crate::process::{Immediate, Processor};
use crate::report::{Outcome, Report};
use crate::upstream::Answer;

/// Why a request ends with a processor.
#[derive(Debug)]
pub enum Stopped {
    /// It has answered itself.
    Answered(Immediate),
    /// It has failed: what is said then, and why.
    Failed(StatusCode, String),
    /// The body is larger than it may be shown.
    TooLarge,
    /// The body broke off, or did not come.
    Unread,
}

/// What has become of a processor.
#[derive(Debug)]
pub(super) enum Broke {
    /// It wants to see no more.
    Closed,
    /// It does not answer.
    Late(Duration),
    /// It cannot be reached, or says what nobody understands or has asked for.
    Failed(String),
    /// It has answered itself.
    Answered(Box<Immediate>),
    /// The body is larger than it may be shown.
    TooLarge,
    /// The body broke off, or did not come.
    Unread,
    /// Whoever was to get it has gone.
    Gone,
}

impl Broke {
    /// As it is counted.
    fn outcome(&self) -> Outcome {
        match self {
            Self::Late(_) => Outcome::Late,
            Self::Failed(_) => Outcome::Fails,
            // Whatever else ends its part is nothing that it has done wrong.
            Self::Answered(_) => Outcome::Refuses,
            Self::Closed | Self::TooLarge | Self::Unread | Self::Gone => Outcome::Passes,
        }
    }
}

/// Processors that have been shown a request and may be shown its answer, first to last.
pub(super) struct Shown {
    halves: Vec<Half>,
    /// What those of clients' rules have made of it, where the service has some of its own.
    pub(super) made: Vec<Made>,
    /// From those that are still being shown its body.
    stopping: mpsc::Receiver<Refused>,
    /// For those, and to keep it open.
    stop: mpsc::Sender<Refused>,
}

impl Shown {
    pub(super) fn nobody() -> Self {
        let (stop, stopping) = mpsc::channel(1);
        Self {
            halves: Vec::new(),
            made: Vec::new(),
            stopping,
            stop,
        }
    }

    /// The same, if that has happened.
    pub(super) fn why(&mut self) -> Option<Refused> {
        self.stopping.try_recv().ok()
    }

    /// Shows them the answer, the last of them first.
    pub(super) async fn answer(
        self,
        mut answer: Response<Answer>,
        report: &mut Report,
    ) -> Result<Response<Answer>, Refused> {
        for half in self.halves.into_iter().rev() {
            if half.modes.back.any() {
                back::shown(half, &mut answer, report).await?;
            }
        }
        Ok(answer)
    }

    /// A request that one of them stops while the app is being asked.
    pub(super) async fn stopped(&mut self) -> Refused {
        match self.stopping.recv().await {
            Some(refused) => refused,
            None => std::future::pending().await,
        }
    }
}

/// What it means for the request that a processor is done; Ok: it goes on without it.
fn goes_on(processor: &Arc<Processor>, broke: Broke, report: &mut Report) -> Result<(), Refused> {
    match goes_on_quietly(processor, broke) {
        Ok(None) => Ok(()),
        Ok(Some(why)) => {
            let name = &processor.name;
            report.detail(format!("goes on without {name}: {why}"));
            Ok(())
        }
        Err(refused) => {
            report.denied(processor.name.clone());
            Err(refused)
        }
    }
}

/// The same; Ok: why it failed, if it did.
fn goes_on_quietly(processor: &Processor, broke: Broke) -> Result<Option<String>, Refused> {
    let (late, why) = match broke {
        Broke::Closed | Broke::Gone => return Ok(None),
        Broke::Answered(answer) => return Err(stopped(processor, Stopped::Answered(*answer))),
        Broke::TooLarge => return Err(stopped(processor, Stopped::TooLarge)),
        Broke::Unread => return Err(stopped(processor, Stopped::Unread)),
        Broke::Late(within) => (true, format!("no answer within {within:?}")),
        Broke::Failed(why) => (false, why),
    };
    if processor.fail_open {
        return Ok(Some(why));
    }
    let usual = match late {
        true => StatusCode::GATEWAY_TIMEOUT,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let status = processor.on_error.unwrap_or(usual);
    Err(stopped(processor, Stopped::Failed(status, why)))
}

/// The same for one whose failure ends the request, whatever its object says.
fn closed(processor: &Processor, broke: Broke) -> Refused {
    let why = match broke {
        Broke::Failed(why) => why,
        Broke::Late(within) => format!("no answer within {within:?}"),
        _ => "it closed its stream in the middle of a body".to_owned(),
    };
    let status = processor
        .on_error
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    stopped(processor, Stopped::Failed(status, why))
}

fn stopped(processor: &Processor, why: Stopped) -> Refused {
    Refused::Processed {
        processor: processor.name.clone(),
        why: Box::new(why),
    }
}

impl Stopped {
    /// With which status.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Answered(answer) => answer.headers.status.unwrap_or(answer.status),
            Self::Failed(status, _) => *status,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unread => StatusCode::BAD_REQUEST,
        }
    }

    /// For the client.
    pub(super) fn text(&self) -> &'static str {
        match self {
            // It has its own words.
            Self::Answered(_) => "",
            Self::Failed(..) => "the request cannot be processed",
            Self::TooLarge => "Payload Too Large",
            Self::Unread => "the body did not come",
        }
    }

    /// For a person who looks into the log.
    pub(super) fn words(&self, processor: &str) -> String {
        match self {
            Self::Answered(answer) => match &*answer.details {
                "" => format!("{processor} answers {}", answer.status),
                details => format!("{processor} answers {}: {details}", answer.status),
            },
            Self::Failed(_, why) => format!("{processor}: {why}"),
            Self::TooLarge => format!("the body is larger than {processor} may be shown"),
            Self::Unread => format!("the body that {processor} is to be shown did not come"),
        }
    }
}

/// What a processor answers in the app's place.
pub(super) fn answered(grpc: bool, answer: &Immediate) -> Response<Answer> {
    let status = answer.headers.status.unwrap_or(answer.status);
    let mut made = plain(grpc, status, &String::from_utf8_lossy(&answer.body));
    if !grpc {
        *made.body_mut() = Answer::whole(answer.body.clone());
        answer.headers.apply(made.headers_mut());
        return made;
    }
    if let Some(code) = answer.grpc {
        made.headers_mut().insert("grpc-status", code.into());
    }
    // What makes it an answer of gRPC's stays.
    let mut headers = HeaderMap::new();
    answer.headers.apply(&mut headers);
    headers.extend(made.headers_mut().drain());
    *made.headers_mut() = headers;
    made
}

/// For the part of a body that is read ahead.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing.
const NONE: Bytes = Bytes::new();
