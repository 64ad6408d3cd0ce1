//! A connection that has switched protocols (a WebSocket), judged again when policies change.
//!
//! The request that began it was judged once, and it may live for days. What policies looked at is kept for as long as it
//! does; when one of them would refuse that request now, the connection is ended.

use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};

use super::Refused;
use super::decide::view;
use crate::arrive::Arrived;
use crate::asked;
use crate::authenticate::Verified;
use crate::authorize::Verdict;
use crate::call::Switched;
use crate::carry::{MOMENT, policy};
use crate::compiled::Service;
use crate::process::Metadata;

/// What policies look at, of a request that may switch; none of any other.
pub(super) fn kept(head: &Parts) -> Option<Parts> {
    let switches = head.method == Method::CONNECT
        || head.headers.contains_key(UPGRADE) && head.headers.contains_key(CONNECTION);
    switches.then(|| {
        let mut kept = Request::new(()).into_parts().0;
        kept.method = head.method.clone();
        kept.uri = head.uri.clone();
        kept.version = head.version;
        kept.headers = head.headers.clone();
        kept
    })
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
    kept: Option<Parts>,
    verified: Option<Verified>,
    said: &Metadata,
    answer: &mut Response<B>,
) {
    let Some(Switched(over)) = answer.extensions_mut().remove::<Switched>() else {
        return;
    };
    let Some(head) = kept else {
        return;
    };
    let (arrived, said) = (arrived.clone(), said.clone());
    tokio::spawn(async move {
        let ended = async {
            tokio::select! {
                policy = denied(&arrived, &head, verified.as_ref(), &said) => policy,
                () = arrived.over() => None,
            }
        };
        if let Some(why) = over.run_until_cancelled(ended).await {
            let client = &arrived.client;
            tracing::warn!(
                client = %client.address,
                identity = client.identity.as_ref().map(tracing::field::display),
                policy = why.as_deref(),
                path = head.uri.path(),
                "a connection that had switched protocols was ended: a policy refuses it, or this waypoint is not asked any more"
            );
            over.cancel();
        }
    });
}

/// Ends when what was published meanwhile would refuse it: the policy that says so, if one does.
async fn denied(
    arrived: &Arrived,
    head: &Parts,
    verified: Option<&Verified>,
    said: &Metadata,
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
        if let Some(policy) = denies(service, arrived, head, verified, said) {
            return policy;
        }
    }
    std::future::pending().await
}

/// Whether it does: the policy that says so. Whoever had to be asked has been asked when it began.
fn denies(
    service: &Service,
    arrived: &Arrived,
    head: &Parts,
    verified: Option<&Verified>,
    said: &Metadata,
) -> Option<Option<Arc<str>>> {
    let authority = asked::authority(&head.uri, &head.headers).ok()?;
    let host = asked::host(authority).ok()?;
    let asked = view(arrived, head, authority, &host.name, verified);
    match service.policies.judge_after_asking(&asked, said) {
        Verdict::Deny(denied) => Some(Some(policy(&denied))),
        Verdict::Allow { .. } | Verdict::Ask(_) => None,
    }
}
