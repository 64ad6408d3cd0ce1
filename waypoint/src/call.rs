//! A request is sent on.
//!
//! 1. the head is written anew for what the endpoint speaks            (`head`)
//! 2. an endpoint is chosen ([`Aim`]), and the request sent            ([`Call::answered`])
//! 3. again, if its rule says so ([`crate::retry`]), or if the endpoint certainly has not seen it; beside a slow one
//!    another, if its rule says that                                   (`race`)
//! 4. an answer that switches protocols joins both connections         (`switch`)

mod aim;
mod ask;
mod head;
mod mirror;
mod race;
mod switch;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use api::waypoint::limits::Upgrade;
use http::{HeaderMap, Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use mesh::service::AppProtocol;
use tokio::time::Instant;

pub(crate) use ops::random::random;

pub(crate) use self::aim::{Aim, Held, Shot};
pub(crate) use self::ask::{ask, ourselves};
pub use self::head::is_grpc;
pub(crate) use self::head::{of_trailers, without_named};
pub(crate) use self::mirror::{Aside, send as send_aside};
pub(crate) use self::switch::Switched;
use crate::arrive::Arrived;
use crate::limit::Permit;
use crate::report::{Flag, Report};
use crate::request::Refused;
use crate::retry::{Hedge, Outcome, Retry};
use crate::route::Deadlines;
use crate::upstream::{Answer, Failed, Outgoing, Unanswered};

/// A request that was let through.
pub(crate) struct Call<'a> {
    pub(crate) arrived: &'a Arc<Arrived>,
    /// Where it goes.
    pub(crate) aim: Aim<'a>,
    pub(crate) request: Request<Outgoing>,
    /// Whether again.
    pub(crate) retry: Option<&'a Retry>,
    /// Whether twice.
    pub(crate) hedge: Option<&'a Hedge>,
    pub(crate) deadlines: Deadlines,
}

/// What follows a try.
enum Next {
    /// Another one, after a while.
    Again(Box<Request<Outgoing>>, Duration, Option<Permit>),
    /// Nothing.
    Done(Result<Response<Answer>, Failed>),
}

impl Call<'_> {
    /// The answer.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn answered(
        mut self,
        report: &mut Report,
    ) -> Result<Response<Answer>, Refused> {
        let Deadlines { request, idle, .. } = self.deadlines;
        let end = request.map(|limit| Instant::now() + limit);
        let room = self.aim.enter()?;
        if let Some(wish) = switch::wish(&self.request) {
            let room = [room, self.aim.enter_switching()?];
            let (arrived, aim) = (self.arrived, &mut self.aim);
            let switched = switch::answered(arrived, self.request, aim, room, wish, report);
            return within(end, Box::pin(switched).as_mut()).await;
        }
        if *self.request.method() == Method::CONNECT {
            return Err(Refused::Connect);
        }
        let tried = pin!(self.tried(end, room, report));
        let mut answer = within(end, tried).await?;
        answer.body_mut().within(end, idle);
        Ok(answer)
    }

    async fn tried(
        mut self,
        end: Option<Instant>,
        room: Option<Permit>,
        report: &mut Report,
    ) -> Result<Response<Answer>, Refused> {
        let http2 = over_http2(&self.aim, &self.request);
        head::rewrite(&mut self.request, http2)?;
        let (mut made, mut further, mut again) = (0, 0, None);
        loop {
            made += 1;
            let spare = self.spare();
            let request = std::mem::replace(&mut self.request, Request::new(Outgoing::Empty));
            let (shot, sent) = race::sent(&mut self, http2, request, &mut further, report).await?;
            let outcome = outcome(&sent);
            shot.ended(outcome);
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let wait = self
                .retry
                .and_then(|it| it.again(made, outcome, left, random()));
            match self.next(sent, spare, wait, made) {
                Next::Again(next, wait, place) => {
                    self.request = *next;
                    again = place;
                    drop(shot);
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                }
                Next::Done(done) => {
                    // As many as it may be, and the last one was no better.
                    let more = self.retry.filter(|_| made > 1);
                    if more.is_some_and(|retry| retry.concerns(outcome)) {
                        report.flag(Flag::RetriesExhausted);
                    }
                    let mut answer = done?;
                    self.aim.tell(&shot, &mut answer);
                    answer.body_mut().hold(shot.held(room, again));
                    return Ok(answer);
                }
            }
        }
    }

    /// `spare`: the same request again; `wait`: what the rule says; `made`: tries so far.
    fn next(
        &self,
        sent: Result<Response<Answer>, Unanswered>,
        spare: Option<Request<Outgoing>>,
        wait: Option<Duration>,
        made: u32,
    ) -> Next {
        // Retries by rule are counted; what nobody has seen is no burden on anybody.
        let place = || self.aim.enter_again();
        // More of its body may have passed since than is kept: then what has come of it stands, and nobody else is sent what
        // would have to break off.
        let spare = spare.filter(|spare| spare.body().again().is_some());
        match sent {
            Ok(answer) => match (wait, spare) {
                (Some(wait), Some(next)) => match place() {
                    Ok(place) => Next::Again(next.into(), wait, place),
                    Err(_) => Next::Done(Ok(answer)),
                },
                _ => Next::Done(Ok(answer)),
            },
            Err(Unanswered { why, request }) => {
                let next = request.or_else(|| spare.map(Box::new));
                // Where its rule says that it may be made again, it says when; of what may have been seen that is all.
                let changes_nothing = |it: &Request<Outgoing>| it.method().is_idempotent();
                let harmless = next.as_deref().is_some_and(changes_nothing);
                let free = why.is_unseen() || harmless && why.costs_nothing();
                let free = free && made < TRIES;
                match (wait, next) {
                    (Some(wait), Some(next)) => match place() {
                        Ok(place) => Next::Again(next, wait, place),
                        Err(_) => Next::Done(Err(why)),
                    },
                    (None, Some(next)) if free => Next::Again(next, Duration::ZERO, None),
                    _ => Next::Done(Err(why)),
                }
            }
        }
    }

    /// The same request, if it may be sent twice: because it changes nothing, or because its rule says so.
    fn spare(&self) -> Option<Request<Outgoing>> {
        if self.retry.is_none() && !self.request.method().is_idempotent() {
            return None;
        }
        again(&self.request)
    }
}

/// The same request, if its body can be had again.
fn again(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let mut again = Request::new(request.body().again()?);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// Whether a request asks for another protocol: what follows it is no body.
pub(crate) fn switches(head: &http::request::Parts) -> bool {
    head.method == Method::CONNECT || switch::asks(&head.headers)
}

fn noted(shot: &Shot, report: &mut Report) -> Result<(), Refused> {
    let way = &shot.way;
    if let (Some(workload), Some(address)) = (&way.workload, way.known_address()) {
        report.tried(workload, address, way.identity()?.as_ref());
    }
    Ok(())
}

/// Of several that were asked it is this one whose answer counts.
fn answering(shot: &Shot, report: &mut Report) {
    let way = &shot.way;
    if let (Some(workload), Some(address)) = (&way.workload, way.known_address())
        && let Ok(identity) = way.identity()
    {
        report.answering(workload, address, identity.as_ref());
    }
}

/// By reference: a future that is handed on is kept twice, and this one is large.
async fn within<T>(
    end: Option<Instant>,
    work: Pin<&mut impl Future<Output = Result<T, Refused>>>,
) -> Result<T, Refused> {
    match end {
        None => work.await,
        Some(end) => match tokio::time::timeout_at(end, work).await {
            Ok(done) => done,
            Err(_) => Err(Refused::Timeout),
        },
    }
}

/// What became of one try.
fn outcome(sent: &Result<Response<Answer>, Unanswered>) -> Outcome {
    match sent {
        Ok(answer) => Outcome::Answered {
            status: answer.status(),
            grpc: answer
                .headers()
                .get("grpc-status")
                .and_then(|code| code.to_str().ok()?.parse().ok()),
        },
        Err(Unanswered { why, .. }) => failure(why),
    }
}

/// The same where there was no answer.
fn failure(why: &Failed) -> Outcome {
    match why {
        Failed::Late(_) => Outcome::Timeout,
        Failed::Overflow => Outcome::Overflow,
        why if why.is_connect() => Outcome::ConnectFailure,
        why if why.is_unseen() => Outcome::RefusedStream,
        _ => Outcome::Reset,
    }
}

/// Whether an endpoint is spoken to in HTTP/2: as a policy says, else as declared.
fn over_http2<B>(aim: &Aim<'_>, request: &Request<B>) -> bool {
    match aim.upgrade() {
        Upgrade::AlwaysHttp2 => true,
        Upgrade::AsClient => request.version() == Version::HTTP_2,
        Upgrade::AsDeclared | Upgrade::NeverHttp2 => speaks_http2(aim.to().protocol(), request),
    }
}

/// Whether an endpoint is spoken to in HTTP/2: as declared; where nothing is, as the client speaks. gRPC has no other
/// way.
fn speaks_http2<B>(declared: AppProtocol, request: &Request<B>) -> bool {
    let two = request.version() == Version::HTTP_2;
    match declared {
        AppProtocol::Http2 | AppProtocol::Grpc => true,
        AppProtocol::Http11 => two && is_grpc(request.headers()),
        _ => two,
    }
}

/// Both ends of a switched connection, until both have ended; the bytes (to the client, from it).
pub(crate) async fn join(
    client: hyper::upgrade::Upgraded,
    endpoint: hyper::upgrade::Upgraded,
) -> std::io::Result<(u64, u64)> {
    let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
    let (received, sent) = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await?;
    Ok((sent, received))
}

/// Fields of one name, as one.
pub(crate) fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut texts = values.filter_map(|value| value.to_str().ok());
    texts.any(|text| {
        text.split(',')
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    })
}

/// Of a request that endpoints certainly have not seen.
const TRIES: u32 = 3;
