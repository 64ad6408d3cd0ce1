//! What a rule makes of a request: another head, a backend, or an answer of its own.

use std::time::SystemTime;

use http::request::Parts;
use http::{HeaderMap, Response, Version};

use super::Refused;
use super::consult::Consulting;
use crate::arrive::{Arrived, To};
use crate::asked;
use crate::call::{Aim, Aside, is_grpc, random};
use crate::filter::{self, About, Filters, Granted, Passed, Reason};
use crate::report::{Flag, Report};
use crate::retry::{Hedge, Retry};
use crate::route::{Backend, Deadlines, Found, Picked, Rule, ServiceName, Timeouts};
use crate::session::Session;
use crate::upstream::Answer;

/// Where a request goes from here.
#[allow(clippy::large_enum_variant)] // one a request, taken apart at once
pub(super) enum Going<'r> {
    /// To an endpoint.
    On(On<'r>),
    /// Back to the client.
    Back(Response<Answer>),
}

/// A request that is sent on.
pub(super) struct On<'r> {
    pub(super) to: To,
    pub(super) head: Parts,
    /// Of the service; "" = all of it.
    pub(super) subset: &'r str,
    pub(super) retry: Option<&'r Retry>,
    pub(super) hedge: Option<&'r Hedge>,
    pub(super) session: Option<&'r Session>,
    pub(super) changes: Changes<'r>,
    /// Where copies of it go.
    pub(super) asides: Vec<Aside<'r>>,
    timeouts: Timeouts,
}

/// What is changed of the answer.
#[derive(Default)]
pub(super) struct Changes<'r> {
    rule: Option<&'r Filters>,
    backend: Option<&'r Filters>,
    granted: Vec<Granted<'r>>,
}

impl On<'_> {
    pub(super) fn deadlines(&self) -> Deadlines {
        let each = self.retry.and_then(|retry| retry.each);
        self.timeouts
            .of(&self.head.headers, Deadlines::default(), each)
    }
}

impl Changes<'_> {
    /// The rule cannot be followed: an answer of ours, of which it says what it says of all.
    fn broken<'r>(&self, why: String, head: &Parts, report: &mut Report) -> Going<'r> {
        let grpc = is_grpc(&head.headers);
        let mut answer = Refused::Broken(why).answer(grpc, report);
        self.apply(&mut answer);
        Going::Back(answer)
    }

    pub(super) fn apply<B>(&self, answer: &mut Response<B>) {
        if self.rule.is_none() && self.granted.is_empty() {
            return;
        }
        let mut head = Response::new(()).into_parts().0;
        head.status = answer.status();
        head.version = answer.version();
        head.headers = std::mem::take(answer.headers_mut());
        for filters in self.backend.iter().chain(&self.rule) {
            filters.response(&mut head);
        }
        for granted in &self.granted {
            granted.response(&mut head);
        }
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
    }
}

impl Going<'_> {
    /// To whom it was addressed, as it is.
    pub(super) fn straight(arrived: &Arrived, head: Parts) -> Self {
        Self::On(On {
            to: arrived.to.clone(),
            head,
            subset: "",
            retry: None,
            hedge: None,
            session: None,
            changes: Changes::default(),
            asides: Vec::new(),
            timeouts: Timeouts::default(),
        })
    }
}

/// As its rule says.
pub(super) async fn by_rule<'r>(
    consulting: &mut Consulting<'_>,
    found: Found<'r>,
    mut head: Parts,
    report: &mut Report,
) -> Result<Going<'r>, Refused> {
    let rule: &'r Rule = found.rule;
    report.routed(rule.label.clone());
    if let Some(why) = &rule.broken {
        return Err(Refused::Broken(why.to_string()));
    }
    let mut asides = Vec::new();
    let mut changes = Changes {
        rule: Some(&rule.filters),
        ..Changes::default()
    };
    if let Some(answer) = filtered(
        consulting,
        &rule.filters,
        &found,
        &mut head,
        &mut changes,
        &mut asides,
        report,
    )
    .await?
    {
        return Ok(Going::Back(answer));
    }
    let picked = rule.backends.pick(random());
    let picked = staying(consulting, rule, &head, picked).unwrap_or(picked);
    let backend = match picked {
        Picked::Backend(backend) => backend,
        Picked::Invalid(why) => return Ok(changes.broken(why.to_owned(), &head, report)),
        Picked::Nothing => {
            return Ok(changes.broken("the rule leads nowhere".to_owned(), &head, report));
        }
    };
    changes.backend = Some(&backend.filters);
    if let Some(answer) = filtered(
        consulting,
        &backend.filters,
        &found,
        &mut head,
        &mut changes,
        &mut asides,
        report,
    )
    .await?
    {
        return Ok(Going::Back(answer));
    }
    let to = match lead(consulting.arrived, &backend.service) {
        Ok(to) => to,
        Err(Refused::Broken(why)) => return Ok(changes.broken(why, &head, report)),
        Err(refused) => return Err(refused),
    };
    Ok(Going::On(On {
        to,
        head,
        subset: backend.subset.as_deref().unwrap_or_default(),
        retry: rule.retry.as_ref(),
        hedge: rule.hedge.as_ref(),
        session: rule.session.as_ref(),
        changes,
        asides,
        timeouts: rule.timeouts,
    }))
}

/// The backend that has the endpoint with which a client stays, where requests are shared among several: the one that was
/// picked, if it does. None where nobody stays, or the endpoint is there no more.
fn staying<'r>(
    consulting: &Consulting<'_>,
    rule: &'r Rule,
    head: &Parts,
    picked: Picked<'r>,
) -> Option<Picked<'r>> {
    let session = rule.session.as_ref();
    let session = session.filter(|_| rule.backends.named() > 1)?;
    let wanted = session.wanted(&head.headers, SystemTime::now())?;
    let (arrived, config) = (consulting.arrived, consulting.config);
    let has = |backend: &Backend| {
        let subset = backend.subset.as_deref().unwrap_or_default();
        let to = lead(arrived, &backend.service);
        let aim = to.and_then(|to| Aim::at(arrived, config, to, subset));
        aim.is_ok_and(|aim| aim.has(&wanted))
    };
    match picked {
        Picked::Backend(backend) if has(backend) => Some(picked),
        _ => {
            let mut all = rule.backends.iter();
            all.find(|backend| has(backend)).map(Picked::Backend)
        }
    }
}

/// Runs filters; an answer if they have one.
async fn filtered<'r>(
    consulting: &mut Consulting<'_>,
    filters: &'r Filters,
    found: &Found<'r>,
    head: &mut Parts,
    changes: &mut Changes<'r>,
    asides: &mut Vec<Aside<'r>>,
    report: &mut Report,
) -> Result<Option<Response<Answer>>, Refused> {
    if filters.is_empty() {
        return Ok(None);
    }
    if filters.authorizers().next().is_some() {
        // Those of the rule itself may have been asked before.
        let own = std::ptr::eq(filters, &found.rule.filters);
        match own {
            true => Box::pin(consulting.permitted(found.rule, head, report)).await?,
            false => Box::pin(consulting.all(filters.authorizers(), head, report)).await?,
        }
    }
    let arrived = consulting.arrived;
    let host = asked::host(asked::authority(&head.uri, &head.headers)?)?
        .name
        .into_owned();
    let about = About {
        scheme: "http",
        host: &host,
        port: arrived.to.port(),
        matched: found.matched,
    };
    let Passed {
        answer,
        delay,
        granted,
        mirrors,
    } = filters.request(head, &about, random);
    changes.granted.extend(granted);
    for mirror in mirrors {
        match lead(arrived, &mirror.backend.service) {
            Ok(to) => asides.push(Aside { mirror, to }),
            Err(why) => tracing::debug!(%why, "mirror: leads nowhere"),
        }
    }
    if let Some(delay) = delay {
        report.flag(Flag::DelayInjected);
        tokio::time::sleep(delay).await;
    }
    let Some(answer) = answer else {
        return Ok(None);
    };
    if answer.reason == Reason::Fault {
        report.flag(Flag::FaultInjected);
    }
    report.detail(answer.reason.text());
    let grpc = is_grpc(&head.headers) && head.version == Version::HTTP_2;
    let status = answer.status;
    let answer = match grpc && answer.reason != Reason::Redirect {
        true => answer.for_grpc(filter::grpc_code(status)),
        false => answer,
    };
    let mut back = Response::new(Answer::whole(answer.body));
    *back.status_mut() = answer.status;
    merge(back.headers_mut(), answer.headers);
    changes.apply(&mut back);
    Ok(Some(back))
}

fn merge(into: &mut HeaderMap, headers: HeaderMap) {
    into.extend(headers);
}

/// The service of that name.
pub(crate) fn lead(arrived: &Arrived, name: &ServiceName) -> Result<To, Refused> {
    if let To::Service { service, port, .. } = &arrived.to
        && *service.hostname == *name.hostname
        && *service.namespace == *name.namespace
        && port.service_port == name.port
    {
        return Ok(arrived.to.clone());
    }
    let snapshot = arrived.proxy.mesh.load();
    let broken = |what: &str| {
        let why = format!("{}/{}:{} {what}", name.namespace, name.hostname, name.port);
        Refused::Broken(why)
    };
    let service = snapshot.service(&name.namespace, &name.hostname);
    let service = service.ok_or_else(|| broken("is not known"))?;
    let port = match name.port {
        0 => service.port(arrived.to.port()),
        port => service.port(port),
    };
    let port = *port.ok_or_else(|| broken("has no such port"))?;
    Ok(To::of(service, port, None))
}
