//! A request is sent on.
//!
//! 1. the head is written anew for what the endpoint speaks            (`head`)
//! 2. an endpoint is chosen, and the request sent                      ([`Call::answered`])
//! 3. again, if its rule says so ([`crate::retry`]), or if the endpoint certainly has not seen it
//! 4. an answer that switches protocols joins both connections         (`switch`)

mod head;
mod mirror;
mod switch;

use std::cell::Cell;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use mesh::service::AppProtocol;
use mesh::{Client, NoEndpoint, Workload};
use tokio::time::Instant;

pub use self::head::is_grpc;
pub(crate) use self::mirror::{Aside, send as send_aside};
use crate::arrive::{Arrived, To};
use crate::report::{Flag, Report};
use crate::request::Refused;
use crate::retry::{Outcome, Retry};
use crate::route::Deadlines;
use crate::upstream::{Answer, Failed, Outgoing, Unanswered, Way};

/// A request that was let through.
pub struct Call<'a> {
    arrived: &'a Arc<Arrived>,
    to: &'a To,
    request: Request<Outgoing>,
    retry: Option<&'a Retry>,
    deadlines: Deadlines,
}

impl<'a> Call<'a> {
    /// To `to`, and if it fails, as `retry` says.
    pub fn new(
        arrived: &'a Arc<Arrived>,
        to: &'a To,
        request: Request<Outgoing>,
        retry: Option<&'a Retry>,
        deadlines: Deadlines,
    ) -> Self {
        Self {
            arrived,
            to,
            request,
            retry,
            deadlines,
        }
    }

    /// The answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn answered(self, report: &mut Report) -> Result<Response<Answer>, Refused> {
        let Deadlines { request, idle, .. } = self.deadlines;
        let end = request.map(|limit| Instant::now() + limit);
        if let Some(wish) = switch::wish(&self.request) {
            let way = choose(self.arrived, self.to, None)?;
            self.noted(&way, report)?;
            return within(end, switch::answered(self, &way, wish)).await;
        }
        if *self.request.method() == Method::CONNECT {
            return Err(Refused::Connect);
        }
        let mut answer = within(end, self.tried(end, report)).await?;
        answer.body_mut().within(end, idle);
        Ok(answer)
    }

    async fn tried(
        mut self,
        end: Option<Instant>,
        report: &mut Report,
    ) -> Result<Response<Answer>, Refused> {
        let http2 = speaks_http2(self.to.protocol(), &self.request);
        head::rewrite(&mut self.request, http2)?;
        let retry = self.retry;
        let (mut made, mut last) = (0, None);
        loop {
            let way = choose(self.arrived, self.to, last.as_ref())?;
            self.noted(&way, report)?;
            made += 1;
            let spare = self.spare();
            let request = std::mem::replace(&mut self.request, Request::new(Outgoing::Empty));
            let sent = self.sent(&way, http2, request).await;
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let outcome = outcome(&sent);
            let wait = retry.and_then(|retry| retry.again(made, outcome, left, random()));
            let (wait, next) = match sent {
                Ok(answer) => match (wait, spare) {
                    (Some(wait), Some(next)) => (wait, next),
                    _ => return Ok(answer),
                },
                Err(Unanswered { why, request }) => {
                    let free = why.costs_nothing() && made < TRIES;
                    let wait = wait.or(free.then_some(Duration::ZERO));
                    match (wait, request.map(|request| *request).or(spare)) {
                        (Some(wait), Some(next)) => (wait, next),
                        _ => {
                            if made > 1 {
                                report.flag(Flag::RetriesExhausted);
                            }
                            return Err(why.into());
                        }
                    }
                }
            };
            self.request = next;
            last = way.workload;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn sent(
        &self,
        way: &Way,
        http2: bool,
        request: Request<Outgoing>,
    ) -> Result<Response<Answer>, Unanswered> {
        let sending = self.arrived.proxy.upstreams.send(way, http2, request);
        let sent = match self.deadlines.attempt {
            None => sending.await,
            Some(limit) => match tokio::time::timeout(limit, sending).await {
                Ok(sent) => sent,
                Err(_) => Err(Failed::Late(limit).into()),
            },
        };
        sent.map(|mut answer| {
            head::of_answer(&mut answer);
            answer
        })
    }

    fn noted(&self, way: &Way, report: &mut Report) -> Result<(), Refused> {
        if let (Some(workload), Some(address)) = (&way.workload, way.known_address()) {
            report.tried(workload, address, way.identity()?.as_ref());
        }
        Ok(())
    }

    /// The same request, if it may be sent twice: because it changes nothing, or because its rule says so.
    fn spare(&self) -> Option<Request<Outgoing>> {
        if self.retry.is_none() && !self.request.method().is_idempotent() {
            return None;
        }
        let mut spare = Request::new(self.request.body().again()?);
        *spare.method_mut() = self.request.method().clone();
        *spare.uri_mut() = self.request.uri().clone();
        *spare.version_mut() = self.request.version();
        *spare.headers_mut() = self.request.headers().clone();
        Some(spare)
    }
}

async fn within<T>(
    end: Option<Instant>,
    work: impl Future<Output = Result<T, Refused>>,
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
        Err(Unanswered { why, .. }) => match why {
            Failed::Late(_) => Outcome::Timeout,
            why if why.is_connect() => Outcome::ConnectFailure,
            why if why.is_unseen() => Outcome::RefusedStream,
            _ => Outcome::Reset,
        },
    }
}

/// An endpoint of a service, or a workload itself; another one than `before`, if there is one.
pub(crate) fn choose(
    arrived: &Arrived,
    to: &To,
    before: Option<&Arc<Workload>>,
) -> Result<Way, Refused> {
    let proxy = &arrived.proxy;
    let snapshot = proxy.mesh.load();
    let address = to.address();
    let service = match to {
        To::Service { service, .. } => service,
        To::Workload { workload, .. } => {
            return Ok(Way::to(workload, Some(address.ip()), address.port(), None)?);
        }
    };
    let own = snapshot.workload_at(&proxy.network, proxy.config.own_ip());
    let nowhere = mesh::Locality::default();
    let client = match own {
        Some(own) => Client::of(own, address.is_ipv6()),
        None => Client {
            network: &proxy.network,
            locality: &nowhere,
            node: &proxy.config.node_name,
            cluster: &proxy.config.cluster_id,
            namespace: &proxy.config.pod_namespace,
            ipv6: address.is_ipv6(),
        },
    };
    let pick = || mesh::pick(&snapshot, service, to.port(), &client, random());
    let mut picked = pick();
    for _ in 0..REDRAWS {
        match (&picked, before) {
            (Ok(found), Some(before)) if found.workload.uid == before.uid => picked = pick(),
            _ => break,
        }
    }
    match picked {
        Ok(found) => Ok(Way::to(
            &found.workload,
            found.address,
            found.target_port,
            Some(service),
        )?),
        Err(NoEndpoint::Passthrough) => Ok(Way::plain(address)),
        Err(why) => Err(why.into()),
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

/// Numbers that need not be secret: draws, ids. One generator a thread (SplitMix64).
pub(crate) fn random() -> u64 {
    thread_local!(static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish()));
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
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
/// For another endpoint than the last one.
const REDRAWS: u32 = 3;
