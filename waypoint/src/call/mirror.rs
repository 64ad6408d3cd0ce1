//! Copies of requests, whose answers nobody waits for.
//!
//! A copy has the head that the app gets, and the body as it passes (`upstream/tee.rs`). It takes nothing from the
//! request itself: not its time, not its place, not its outcome. A mirror that is slower than the app is behind by some
//! megabytes at most, then its copy is given up; what becomes of copies is counted.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::request::Parts;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

use super::{Aim, head, over_http2, random};
use crate::arrive::{Arrived, To};
use crate::asked;
use crate::filter::{About, Mirror};
use crate::report::Copied;
use crate::request::Refused;
use crate::route::Matched;
use crate::upstream::Outgoing;

/// Where copies of a request go.
pub(crate) struct Aside<'r> {
    pub(crate) mirror: &'r Mirror,
    pub(crate) to: To,
}

/// Sends a copy to each. `limit`: how long the request itself may take.
pub(crate) fn send(
    arrived: &Arc<Arrived>,
    asides: Vec<Aside<'_>>,
    head: &Parts,
    copies: Vec<Outgoing>,
    limit: Option<Duration>,
) {
    for (aside, body) in asides.into_iter().zip(copies) {
        let service = &aside.mirror.backend.service.hostname;
        let Ok(place) = PLACES.try_acquire() else {
            arrived.proxy.reports.mirrored(service, Copied::Crowded);
            continue;
        };
        let (behind, passed, no_more) = (body.behind(), body.passed(), body.passed());
        let Some(request) = copy(arrived, aside.mirror, head, body) else {
            continue;
        };
        let (arrived, service, to) = (arrived.clone(), service.clone(), aside.to);
        let subset = aside.mirror.backend.subset.clone().unwrap_or_default();
        tokio::spawn(async move {
            let _place = place;
            let late = async {
                match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => {
                        passed.await;
                        tokio::time::sleep(LIMIT).await;
                    }
                }
            };
            // What is written and not taken would keep it until then.
            let given_up = async {
                no_more.await;
                if !behind() {
                    std::future::pending::<()>().await;
                }
            };
            let copied = tokio::select! {
                sent = sent(&arrived, &to, &subset, request) => match sent {
                    Ok(()) => Copied::Answered,
                    Err(why) => {
                        tracing::debug!(to = %to.address(), %why, "mirror: no answer");
                        Copied::Failed
                    }
                },
                () = late => {
                    tracing::debug!(to = %to.address(), "mirror: no answer in time");
                    Copied::Late
                }
                () = given_up => Copied::Behind,
            };
            let copied = if behind() { Copied::Behind } else { copied };
            arrived.proxy.reports.mirrored(&service, copied);
        });
    }
}

/// The request as it goes there. None if the backend's own filters have something else to say.
fn copy(
    arrived: &Arrived,
    mirror: &Mirror,
    head: &Parts,
    body: Outgoing,
) -> Option<Request<Outgoing>> {
    let mut copy = Request::new(body);
    *copy.method_mut() = head.method.clone();
    *copy.uri_mut() = head.uri.clone();
    *copy.version_mut() = head.version;
    *copy.headers_mut() = head.headers.clone();
    let filters = &mirror.backend.filters;
    if filters.is_empty() {
        return Some(copy);
    }
    let (mut parts, body) = copy.into_parts();
    let host = asked::host(asked::authority(&head.uri, &head.headers).ok()?).ok()?;
    let about = About {
        scheme: "http",
        host: &host.name,
        port: arrived.to.port(),
        matched: Matched::default(),
    };
    let passed = filters.request(&mut parts, &about, random);
    let goes = passed.answer.is_none();
    goes.then(|| Request::from_parts(parts, body))
}

/// To one of the service's endpoints, or of that subset of them: one try, no hints.
async fn sent(
    arrived: &Arc<Arrived>,
    to: &To,
    subset: &str,
    mut request: Request<Outgoing>,
) -> Result<(), Refused> {
    let config = arrived.proxy.state.load_full();
    let mut aim = Aim::at(arrived, &config, to.clone(), subset)?;
    let http2 = over_http2(&aim, &request);
    head::rewrite(&mut request, http2)?;
    if aim.wants_name() {
        let authority = asked::authority(request.uri(), request.headers())?;
        aim.named(&asked::host(authority)?.name);
    }
    let shot = aim.choose()?;
    let sending = arrived.proxy.upstreams.send(&shot.way, http2, request);
    let answer = sending.await.map_err(|unanswered| unanswered.why)?;
    // To its end: the connection is then good for another request.
    let mut body = answer.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Ok(())
}

/// Copies on their way, of all requests.
static PLACES: Semaphore = Semaphore::const_new(1024);
/// From the end of a request's body to the end of its copy's answer, where the request may take as long as it likes.
const LIMIT: Duration = Duration::from_secs(15);
