//! A connection that has switched protocols (a WebSocket), judged again when policies change.
//!
//! The request that began it was judged when it came, and again when somebody who was shown it had changed it; and it may
//! live for days. What policies looked at is kept for as long as it does, each time as it was then; when one of them would
//! refuse that now, the connection is ended.

use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};

use super::Refused;
use super::decide::view;
use crate::arrive::Arrived;
use crate::asked::{self, Asked};
use crate::authenticate::Verified;
use crate::authorize::Verdict;
use crate::call::Switched;
use crate::carry::{MOMENT, policy};
use crate::compiled::Service;
use crate::process::Metadata;

/// What policies looked at when they let a request through.
pub(super) struct Passed {
    head: Parts,
    /// By which its rule is found.
    query: Option<Box<str>>,
    /// What had been said of it.
    said: Metadata,
}

impl Passed {
    /// As it is now.
    pub(super) fn of(head: &Parts, query: Option<Box<str>>, said: &Metadata) -> Self {
        let mut kept = Request::new(()).into_parts().0;
        kept.method = head.method.clone();
        kept.uri = head.uri.clone();
        kept.version = head.version;
        kept.headers = head.headers.clone();
        Self {
            head: kept,
            query,
            said: said.clone(),
        }
    }
}

/// Whether a request may switch: of any other nothing is kept.
pub(super) fn may_switch(head: &Parts) -> bool {
    head.method == Method::CONNECT
        || head.headers.contains_key(UPGRADE) && head.headers.contains_key(CONNECTION)
}

/// Whether the answer's protocol is the one that was asked for.
pub(super) fn asked_for<B>(answer: Response<B>) -> Result<Response<B>, Refused> {
    let unasked = answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && answer.extensions().get::<Switched>().is_none();
    if unasked {
        return Err(Refused::Switched);
    }
    Ok(answer)
}

/// Looks after it, if the answer is that both connections are joined.
pub(super) fn look_after<B>(
    arrived: &Arc<Arrived>,
    passed: Vec<Passed>,
    verified: Option<Verified>,
    answer: &mut Response<B>,
) {
    let Some(Switched(over)) = answer.extensions_mut().remove::<Switched>() else {
        return;
    };
    if passed.is_empty() {
        return;
    }
    let arrived = arrived.clone();
    tokio::spawn(async move {
        let ended = async {
            tokio::select! {
                policy = denied(&arrived, &passed, verified.as_ref()) => policy,
                () = arrived.over() => None,
            }
        };
        if let Some(why) = over.run_until_cancelled(ended).await {
            let client = &arrived.client;
            tracing::warn!(
                client = %client.address,
                identity = client.identity.as_ref().map(tracing::field::display),
                policy = why.as_deref(),
                path = passed.first().map(|it| it.head.uri.path()),
                "a connection that had switched protocols was ended: a policy refuses it, or this waypoint is not asked any more"
            );
            over.cancel();
        }
    });
}

/// Ends when what was published meanwhile would refuse it: the policy that says so, if one does.
async fn denied(
    arrived: &Arrived,
    passed: &[Passed],
    verified: Option<&Verified>,
) -> Option<Arc<str>> {
    let state = &arrived.proxy.state;
    let mut changed = state.changed();
    // What was published between the judgement and now counts too.
    changed.mark_changed();
    while changed.changed().await.is_ok() {
        tokio::time::sleep(MOMENT).await;
        changed.mark_unchanged();
        let config = state.load_full();
        arrived.to.front(&config.fronts)?;
        let service = match arrived.to.service() {
            Some(service) => config.service(&service.key()),
            None => config.other(),
        };
        let mut looks = passed.iter();
        if let Some(policy) = looks.find_map(|it| denies(service, arrived, it, verified)) {
            return policy;
        }
    }
    std::future::pending().await
}

/// Whether it does: the policy that says so. Whoever had to be asked has been asked when it began.
fn denies(
    service: &Service,
    arrived: &Arrived,
    passed: &Passed,
    verified: Option<&Verified>,
) -> Option<Option<Arc<str>>> {
    let Passed { head, query, said } = passed;
    let authority = asked::authority(&head.uri, &head.headers).ok()?;
    let host = asked::host(authority).ok()?;
    let asked = Asked {
        query: query.as_deref(),
        ..view(arrived, head, authority, &host.name, verified)
    };
    match service.policies.judge_after_asking(&asked, said) {
        Verdict::Deny(denied) => Some(Some(policy(&denied))),
        Verdict::Allow { .. } | Verdict::Ask(_) => None,
    }
}
