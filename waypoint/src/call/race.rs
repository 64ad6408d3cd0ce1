//! One try; or, where a rule says so, others beside one that takes long, and the first good answer counts.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response};
use tokio::time::Instant;

use super::{Call, Shot, again, head, noted, outcome};
use crate::arrive::Arrived;
use crate::report::Report;
use crate::request::Refused;
use crate::retry::Hedge;
use crate::upstream::{Answer, Failed, Outgoing, Unanswered};

type Sent = Result<Response<Answer>, Unanswered>;

/// Sends it to an endpoint that is chosen now.
pub(super) async fn sent(
    call: &mut Call<'_>,
    http2: bool,
    request: Request<Outgoing>,
    report: &mut Report,
) -> Result<(Shot, Sent), Refused> {
    let shot = call.aim.choose()?;
    noted(&shot, report)?;
    let limit = call.deadlines.attempt;
    // A body is read once; two readers at a time would take it from each other.
    let alone = !Hedge::suits(request.method()) || !matches!(request.body(), Outgoing::Empty);
    match call.hedge.filter(|_| !alone) {
        None => Ok(one(call.arrived, shot, limit, http2, request).await),
        // Seldom, and large.
        Some(hedge) => Box::pin(raced(call, hedge, shot, http2, request, report)).await,
    }
}

async fn raced(
    call: &mut Call<'_>,
    hedge: &Hedge,
    shot: Shot,
    http2: bool,
    request: Request<Outgoing>,
    report: &mut Report,
) -> Result<(Shot, Sent), Refused> {
    let (arrived, limit, retry) = (call.arrived, call.deadlines.attempt, call.retry);
    let (began, mut further) = (Instant::now(), 0);
    let mut spare = again(&request);
    let mut running = FuturesUnordered::new();
    running.push(one(arrived, shot, limit, http2, request));
    loop {
        let due = hedge.due(further).filter(|_| spare.is_some());
        let next = async {
            match due {
                Some(due) => tokio::time::sleep_until(began + due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((shot, sent)) = running.next() => {
                let outcome = outcome(&sent);
                if Hedge::settles(retry, outcome, running.len()) {
                    return Ok((shot, sent));
                }
                shot.ended(outcome);
            }
            () = next => {
                further += 1;
                let Some(request) = spare.take() else { continue };
                spare = again(&request);
                let shot = call.aim.choose()?;
                noted(&shot, report)?;
                running.push(one(arrived, shot, limit, http2, request));
            }
        }
    }
}

async fn one(
    arrived: &Arc<Arrived>,
    shot: Shot,
    limit: Option<Duration>,
    http2: bool,
    request: Request<Outgoing>,
) -> (Shot, Sent) {
    let mut sent = {
        let sending = pin!(arrived.proxy.upstreams.send(&shot.way, http2, request));
        match limit {
            None => sending.await,
            Some(limit) => match tokio::time::timeout(limit, sending).await {
                Ok(sent) => sent,
                Err(_) => Err(Failed::Late(limit).into()),
            },
        }
    };
    if let Ok(answer) = &mut sent {
        head::of_answer(answer);
    }
    (shot, sent)
}
