//! One try; or, where a rule says so, others beside one that takes long, and the first good answer counts.
//!
//! A further try is bounded as a retry is: by the room for retries, and by their budget. What keeps it from being made
//! is no reason to give up those that are under way. Who did not answer first is given up, and that is not held
//! against its endpoint. A bad answer is kept while another may still do better, and with it its connection: where all
//! others wait for one it counts, for they may wait for this.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response};
use tokio::time::Instant;

use super::{Call, Shot, again, answering, head, noted, outcome};
use crate::arrive::Arrived;
use crate::report::{Flag, Report};
use crate::request::Refused;
use crate::retry::Hedge;
use crate::upstream::{Answer, Failed, Outgoing, Unanswered};

type Sent = Result<Response<Answer>, Unanswered>;

/// Sends it to an endpoint that is chosen now. `further`: requests made beside others so far, of all tries.
pub(super) async fn sent(
    call: &mut Call<'_>,
    http2: bool,
    request: Request<Outgoing>,
    further: &mut u32,
    report: &mut Report,
) -> Result<(Shot, Sent), Refused> {
    let shot = call.aim.choose()?;
    call.aim.greet(http2);
    noted(&shot, report)?;
    let limit = call.deadlines.attempt;
    // Who has an endpoint stays with it.
    let is_bound = call.aim.is_bound();
    let can = |hedge: &&Hedge| {
        let body = match request.body() {
            Outgoing::Empty => true,
            Outgoing::Kept(_) => hedge.keeps(),
            _ => false,
        };
        body && hedge.suits(request.method()) && !is_bound
    };
    match call.hedge.filter(can) {
        None => Ok(one(call.arrived, shot, limit, http2, request).await),
        // Seldom, and large.
        Some(hedge) => {
            let raced = raced(call, hedge, shot, http2, request, further, report);
            Ok(Box::pin(raced).await)
        }
    }
}

async fn raced(
    call: &mut Call<'_>,
    hedge: &Hedge,
    shot: Shot,
    http2: bool,
    request: Request<Outgoing>,
    further: &mut u32,
    report: &mut Report,
) -> (Shot, Sent) {
    let (arrived, limit, retry) = (call.arrived, call.deadlines.attempt, call.retry);
    let mut newest = Instant::now();
    let mut spare = again(&request);
    let mut failed = None;
    // Of those that are under way, where requests may have to wait for a connection: whether they do.
    let mut waits: Vec<_> = shot.way.waits().into_iter().collect();
    let mut running = FuturesUnordered::new();
    running.push(one(arrived, shot, limit, http2, request));
    loop {
        let due = hedge.due(*further).filter(|_| spare.is_some());
        let next = async {
            match due {
                Some(due) => tokio::time::sleep_until(newest + due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((shot, sent)) = running.next() => {
                if let Some(own) = shot.way.waits() {
                    waits.retain(|other| !Arc::ptr_eq(other, &own));
                }
                let settled = Hedge::settles(retry, outcome(&sent));
                let ended = match (settled, failed.take()) {
                    (false, Some(before)) => telling(before, (shot, sent)),
                    (_, before) => {
                        before.iter().for_each(over);
                        (shot, sent)
                    }
                };
                let held = ended.1.is_ok() && all_wait(&waits, running.len());
                if settled || held || running.is_empty() {
                    answering(&ended.0, report);
                    return ended;
                }
                failed = Some(ended);
            }
            () = next => {
                newest = Instant::now();
                // A body is read once: two readers at a time would take from each other what is still to come.
                if !spare.as_ref().is_some_and(|it| is_there(it.body())) {
                    continue;
                }
                let shot = beside(call, report);
                let (Some(shot), Some(request)) = (shot, spare.take()) else {
                    continue;
                };
                *further += 1;
                spare = again(&request);
                waits.extend(shot.way.waits());
                running.push(one(arrived, shot, limit, http2, request));
            }
        }
    }
}

/// Whether each of those that are under way waits for a connection.
fn all_wait(waits: &[Arc<AtomicBool>], running: usize) -> bool {
    waits.len() == running && waits.iter().all(|waits| waits.load(Relaxed))
}

/// Whether as many as like may read it.
fn is_there(body: &Outgoing) -> bool {
    match body {
        Outgoing::Empty | Outgoing::Whole(_) => true,
        Outgoing::Kept(reading) => reading.is_whole(),
        _ => false,
    }
}

/// An endpoint for one more; none where there is no room for it, or no endpoint.
fn beside(call: &mut Call<'_>, report: &mut Report) -> Option<Shot> {
    let room = call.aim.enter_again().ok()?;
    let mut shot = call.aim.choose().ok()?;
    noted(&shot, report).ok()?;
    report.flag(Flag::Hedged);
    shot.room = room;
    Some(shot)
}

/// Of two failures the one that says more: an app's own words before none.
fn telling(before: (Shot, Sent), now: (Shot, Sent)) -> (Shot, Sent) {
    let (kept, other) = match (&before.1, &now.1) {
        (Ok(_), Err(_)) => (before, now),
        _ => (now, before),
    };
    over(&other);
    kept
}

fn over((shot, sent): &(Shot, Sent)) {
    shot.ended(outcome(sent));
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
