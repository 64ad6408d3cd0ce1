//! The life of one request, top to bottom.
//!
//! 1. room         there is some, or it is answered 503 at once           ([`crate::load`])
//! 2. parse        for which host; one spelling of the path               ([`crate::asked`])
//! 3. authenticate whose token it carries, and whether that is good       ([`crate::authenticate`])
//! 4. authorise    whether it may pass, and whom to ask about that         ([`crate::authorize`], [`crate::permission`])
//! 5. route        which rule is for it                                   ([`crate::route`])
//! 6. limit        whether there have been too many like it             ([`crate::limit`])
//! 7. transform    what that rule changes, or answers itself              ([`crate::filter`])
//! 8. call         an endpoint, perhaps again                             ([`crate::call`])
//! 9. respond      what is changed of the answer
//!
//! The report ends with the answer's last byte ([`crate::report`]). Whatever refuses a request does it with a
//! [`Refused`], which says to the client what it may know, and to the report why. What is judged in 4 and 5 is what the
//! app will see: nothing is read twice.

mod consult;
mod count;
mod decide;
mod edge;
mod refused;
mod silence;
mod transform;

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;

use self::consult::Consulting;
pub use self::consult::Unpermitted;
pub use self::count::Exceeded;
use self::decide::{decided, view};
pub use self::refused::Refused;
pub(crate) use self::transform::lead;
use self::transform::{Going, On};
use crate::arrive::Arrived;
use crate::asked;
use crate::authenticate::Verified;
use crate::call::{self, Aim, Call};
use crate::compiled::{Config, Service};
use crate::limit::Told;
use crate::permission::Change;
use crate::report::{Report, Reported};
use crate::upstream::{Answer, Outgoing, ReadAhead};

/// Serves one request; whatever goes wrong, there is an answer.
///
/// # Errors
/// Never.
pub async fn serve(
    arrived: Arc<Arrived>,
    request: Request<Incoming>,
) -> Result<Response<Reported<Answer>>, Infallible> {
    let (head, body) = request.into_parts();
    let reports = &arrived.proxy.reports;
    let mut report = reports.request(&arrived.caller, &head, Instant::now());
    let grpc = call::is_grpc(&head.headers);
    let answer = match respond(&arrived, head, body, &mut report).await {
        Ok(answer) => answer,
        Err(refused) => refused.answer(grpc, &mut report),
    };
    Ok(report.answer(answer))
}

async fn respond(
    arrived: &Arc<Arrived>,
    mut head: Parts,
    body: Incoming,
    report: &mut Report,
) -> Result<Response<Answer>, Refused> {
    // 1. Room, for as long as there is no answer; what streams after that is bounded by its windows.
    let _carried = arrived.share.enter()?;
    let config = arrived.proxy.state.load_full();
    let service = match arrived.to.service() {
        Some(service) => {
            report.service(service, arrived.to.port());
            config.service(&service.key())
        }
        None => config.other(),
    };
    report.told(&service.telemetry);

    // 2. Parse: from here on there is one spelling of the path, and nothing that only proxies may say.
    edge::framed(&head)?;
    if let Cow::Owned(path) = asked::target(&head.method, &head.uri, asked::Form::default())? {
        asked::put_path(&mut head.uri, &path).map_err(|_| Refused::Target)?;
    }
    edge::arrived(&mut head.headers, arrived, &config.gateway, report);
    report.heard(&mut head.headers);

    // 3. Authenticate. Who is asked below may see the token, also where the app does not get it.
    let token = head.headers.get(AUTHORIZATION).cloned();
    let verified = authenticate(service, &mut head).await?;

    // 4. Authorise, 5. route, 6. limit: by the same view.
    let mut consulting = Consulting {
        arrived,
        config: &config,
        body: ReadAhead::of(body),
        token,
        said: Vec::new(),
    };
    let by = verified.as_ref();
    let (found, left) = decided(service, &mut consulting, &mut head, by, report).await?;

    // 7. Transform.
    let going = match found {
        None => Going::straight(arrived, head),
        Some(found) => transform::by_rule(&mut consulting, found, head, report).await?,
    };
    let Consulting { body, said, .. } = consulting;
    let mut going = match going {
        Going::On(going) => going,
        Going::Back(answer) => return Ok(telling(left.as_ref(), &said, answer)),
    };

    // 8. Call.
    let deadlines = going.deadlines();
    let copies = going.asides.len();
    let awaited = silence::awaited(&body);
    let (body, copies) = Outgoing::with_copies(body, going.retry.is_some(), report, copies);
    let silent = silence::of(awaited, report.moving());
    call::send_aside(
        arrived,
        std::mem::take(&mut going.asides),
        &going.head,
        copies,
        deadlines.request,
    );
    let grpc = call::is_grpc(&going.head.headers);
    let call = aim(arrived, &config, &going, by).map(|aim| Call {
        arrived,
        aim,
        request: Request::from_parts(going.head, body),
        retry: going.retry,
        hedge: going.hedge,
        deadlines,
    });
    let answered = match (call, silent) {
        (Err(refused), _) => Err(refused),
        (Ok(call), None) => call.answered(report).await,
        (Ok(call), Some(silent)) => tokio::select! {
            answered = call.answered(report) => answered,
            () = silent => Err(Refused::Silent),
        },
    };

    // 9. Respond: what the rule says of answers it says of ours as well, or no page could read why it failed.
    let mut answer = answered.unwrap_or_else(|refused| refused.answer(grpc, report));
    going.changes.apply(&mut answer);
    Ok(telling(left.as_ref(), &said, answer))
}

/// Where it goes, with what the request itself says about that.
fn aim<'a>(
    arrived: &'a Arrived,
    config: &Config,
    going: &On<'a>,
    verified: Option<&Verified>,
) -> Result<Aim<'a>, Refused> {
    let mut aim = Aim::at(arrived, config, going.to.clone(), going.subset)?;
    let (listens, named) = (aim.listens(going.session), aim.wants_name());
    if listens || named {
        let head = &going.head;
        let authority = asked::authority(&head.uri, &head.headers)?;
        let host = asked::host(authority)?;
        if listens {
            let asked = view(arrived, head, authority, &host.name, verified);
            aim.by(&asked, going.session);
        }
        if named {
            aim.named(&host.name);
        }
    }
    Ok(aim)
}

async fn authenticate(service: &Service, head: &mut Parts) -> Result<Option<Verified>, Refused> {
    if service.tokens.is_empty() {
        return Ok(None);
    }
    service.tokens.strip(&mut head.headers);
    let checking = service
        .tokens
        .check(&head.headers, &head.uri, SystemTime::now());
    let verified = checking.await.map_err(|refused| {
        let host = asked::authority(&head.uri, &head.headers).unwrap_or_default();
        Refused::Token {
            challenge: refused.challenge("http", host, head.uri.path()),
            refused,
        }
    })?;
    if let Some(verified) = &verified {
        verified.apply(&mut head.headers, &mut head.uri);
    }
    Ok(verified)
}

/// What is said with an answer: of limits, and by who was asked.
fn telling(left: Option<&Told>, said: &[Change], mut answer: Response<Answer>) -> Response<Answer> {
    let headers = answer.headers_mut();
    if let Some(left) = left {
        left.write(headers);
    }
    for change in said {
        change.apply(headers);
    }
    answer
}
