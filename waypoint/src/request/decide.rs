//! What is decided by one view of a request: whether it may pass, by which rule, and whether it is one too many.

use std::time::Instant;

use http::request::Parts;

use super::Refused;
use super::consult::Consulting;
use super::count::{counted, nearest};
use crate::arrive::Arrived;
use crate::asked::{self, Asked};
use crate::authenticate::Verified;
use crate::authorize::Verdict;
use crate::carry;
use crate::compiled::Service;
use crate::limit::{Inquiry, Judged, Told};
use crate::report::Report;
use crate::route::Found;

/// What was decided.
enum Decided<'s> {
    /// It goes on, by that rule, if it is within its limits.
    On(Option<Found<'s>>, Within<'s>),
    /// These must be asked first.
    Ask(Vec<&'s str>),
}

/// What was done about a request before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Who must be asked has been asked, and agreed.
    Permitted,
    /// The same, and it has been counted.
    Counted,
}

/// What is known of a request's limits.
#[derive(Default)]
struct Within<'s> {
    /// What is left of the one that is nearest, of those that we count.
    left: Option<Told>,
    /// What others count.
    inquiries: Vec<Inquiry<'s>>,
}

/// Decides; whoever must be asked first is asked, and what it then is is decided upon.
pub(super) async fn decided<'s>(
    service: &'s Service,
    consulting: &mut Consulting<'_>,
    head: &mut Parts,
    verified: Option<&Verified>,
    report: &mut Report,
) -> Result<(Option<Found<'s>>, Option<Told>), Refused> {
    let arrived = consulting.arrived;
    let judged = decide(service, consulting, head, verified, Before::Nothing, report)?;
    let (found, within) = match judged {
        Decided::On(found, within) => (found, within),
        Decided::Ask(providers) => {
            Box::pin(consulting.all(providers, head, report)).await?;
            let judged = decide(
                service,
                consulting,
                head,
                verified,
                Before::Permitted,
                report,
            )?;
            match judged {
                Decided::On(found, within) => (found, within),
                Decided::Ask(_) => {
                    let why = "who was asked must be asked again".to_owned();
                    return Err(Refused::Denied(why));
                }
            }
        }
    };
    if within.inquiries.is_empty() {
        return Ok((found, within.left));
    }
    let asking = counted(consulting, &within.inquiries, head, report);
    match Box::pin(asking).await {
        Ok(left) => Ok((found, nearest(within.left, left))),
        Err(refused) => {
            give_back(service, found.as_ref(), arrived, head, verified)?;
            Err(refused)
        }
    }
}

/// A request that others refuse has not passed our limits.
fn give_back(
    service: &Service,
    found: Option<&Found<'_>>,
    arrived: &Arrived,
    head: &Parts,
    verified: Option<&Verified>,
) -> Result<(), Refused> {
    let authority = asked::authority(&head.uri, &head.headers)?;
    let host = asked::host(authority)?;
    let asked = view(arrived, head, authority, &host.name, verified);
    let limiter = service.limits.of(found.map(|found| &found.rule.name));
    limiter.give_back(&asked);
    Ok(())
}

/// A request that has passed and is another now: whether it still may, and by which rule. It is counted once.
pub(super) fn decided_again<'s>(
    service: &'s Service,
    consulting: &Consulting<'_>,
    head: &Parts,
    verified: Option<&Verified>,
    report: &mut Report,
) -> Result<Option<Found<'s>>, Refused> {
    match decide(service, consulting, head, verified, Before::Counted, report)? {
        Decided::On(found, _) => Ok(found),
        Decided::Ask(_) => Err(Refused::Denied(
            "who was asked must be asked again".to_owned(),
        )),
    }
}

fn decide<'s>(
    service: &'s Service,
    consulting: &Consulting<'_>,
    head: &Parts,
    verified: Option<&Verified>,
    before: Before,
    report: &mut Report,
) -> Result<Decided<'s>, Refused> {
    let authority = asked::authority(&head.uri, &head.headers)?;
    let host = asked::host(authority)?;
    let asked = Asked {
        query: consulting.query(head),
        ..view(consulting.arrived, head, authority, &host.name, verified)
    };
    let providers = authorise(service, &asked, before, report)?;
    if !providers.is_empty() {
        return Ok(Decided::Ask(providers));
    }
    let found = route(service, &asked)?;
    if before == Before::Counted {
        return Ok(Decided::On(found, Within::default()));
    }
    let within = limit(service, found.as_ref(), &asked)?;
    Ok(Decided::On(found, within))
}

pub(super) fn view<'a>(
    arrived: &'a Arrived,
    head: &'a Parts,
    authority: &'a str,
    host: &'a str,
    verified: Option<&'a Verified>,
) -> Asked<'a> {
    let address = arrived.client.address.ip();
    Asked {
        method: &head.method,
        scheme: "http",
        host,
        authority,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &head.headers,
        port: arrived.to.port(),
        destination: arrived.to.address(),
        sni: None,
        client: &arrived.client,
        remote: asked::remote(address, &head.headers, 0),
        claims: verified.map(|verified| &*verified.claims),
    }
}

/// Whether it may pass: who must be asked, or none.
fn authorise<'s>(
    service: &'s Service,
    asked: &Asked<'_>,
    before: Before,
    report: &mut Report,
) -> Result<Vec<&'s str>, Refused> {
    let policies = &service.policies;
    if policies.is_empty() {
        return Ok(Vec::new());
    }
    let verdict = match before {
        Before::Nothing => policies.judge(asked),
        Before::Permitted | Before::Counted => policies.judge_after_asking(asked, report.said()),
    };
    // Once, and of what whoever was asked has made of it.
    let is_asked = matches!(verdict, Verdict::Ask(_));
    if service.notes && before != Before::Counted && !is_asked {
        for note in policies.notes(asked, report.said()) {
            tracing::info!(
                policy = note.policy, action = ?note.action, dry_run = note.dry_run, rule = note.rule,
                client = %asked.client.address, method = %asked.method, path = asked.path, "policy: noted"
            );
        }
    }
    match verdict {
        Verdict::Allow { .. } => Ok(Vec::new()),
        Verdict::Deny(denied) => {
            report.denied(carry::policy(&denied));
            Err(Refused::Denied(denied.to_string()))
        }
        Verdict::Ask(providers) => Ok(providers),
    }
}

/// A request that others than who has the service have changed: whether it may pass as it is now. Whoever must be asked is
/// asked about that.
pub(super) async fn permitted_again(
    service: &Service,
    consulting: &mut Consulting<'_>,
    head: &mut Parts,
    verified: Option<&Verified>,
    report: &mut Report,
) -> Result<(), Refused> {
    let providers = judged(service, consulting, head, verified, Before::Nothing, report)?;
    if providers.is_empty() {
        return Ok(());
    }
    Box::pin(consulting.all(providers, head, report)).await?;
    let before = Before::Permitted;
    let providers = judged(service, consulting, head, verified, before, report)?;
    match providers.is_empty() {
        true => Ok(()),
        false => {
            let why = "who was asked must be asked again".to_owned();
            Err(Refused::Denied(why))
        }
    }
}

/// What policies say of it alone: who must be asked, or none.
fn judged<'s>(
    service: &'s Service,
    consulting: &Consulting<'_>,
    head: &Parts,
    verified: Option<&Verified>,
    before: Before,
    report: &mut Report,
) -> Result<Vec<&'s str>, Refused> {
    let authority = asked::authority(&head.uri, &head.headers)?;
    let host = asked::host(authority)?;
    let asked = Asked {
        query: consulting.query(head),
        ..view(consulting.arrived, head, authority, &host.name, verified)
    };
    authorise(service, &asked, before, report)
}

/// The rule that a request is for; none where the service has no rules for this client.
fn route<'s>(service: &'s Service, asked: &Asked<'_>) -> Result<Option<Found<'s>>, Refused> {
    let rules = service.routes(asked.port);
    if !rules.concerns(asked.client.namespace()) {
        return Ok(None);
    }
    let found = rules.find(asked);
    found.map(Some).ok_or(Refused::NoRoute)
}

/// Counts it, and says what is left of the limit that is nearest. Refused where there have been too many.
fn limit<'s>(
    service: &'s Service,
    found: Option<&Found<'_>>,
    asked: &Asked<'_>,
) -> Result<Within<'s>, Refused> {
    if service.limits.is_empty() {
        return Ok(Within::default());
    }
    let limiter = service.limits.of(found.map(|found| &found.rule.name));
    match limiter.judge(asked, Instant::now()) {
        Judged::Pass(left) => Ok(Within {
            left,
            inquiries: limiter.inquiries(asked),
        }),
        Judged::Refuse(told) => Err(Refused::Limited(told)),
    }
}
