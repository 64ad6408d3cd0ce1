//! The life of one request, top to bottom.
//!
//! 1. room         there is some, or it is answered 503 at once           ([`crate::load`]);
//!    what it is for is still behind us                                  ([`crate::compiled::Fronts`])
//! 2. parse        for which host; one spelling of the path               ([`crate::asked`])
//! 3. authenticate whose token it carries, and whether that is good       ([`crate::authenticate`])
//! 4. authorise    whether it may pass, and whom to ask about that         ([`crate::authorize`], [`crate::permission`])
//! 5. route        which rule is for it                                   ([`crate::route`])
//! 6. limit        whether there have been too many like it             ([`crate::limit`])
//! 7. process      who else is shown it, and changes it                   ([`crate::process`])
//! 8. transform    what that rule changes, or answers itself              ([`crate::filter`]);
//!    what a rule of clients changes is judged as if they had said it     (`consumer`)
//! 9. call         an endpoint, perhaps again                             ([`crate::call`])
//! 10. respond     what is changed of the answer
//!
//! The report ends with the answer's last byte ([`crate::report`]). Whatever refuses a request does it with a
//! [`Refused`], which says to the client what it may know, and to the report why. What is judged in 4 and 5 is what the
//! app will see: nothing is read twice.

mod again;
mod consult;
mod consumer;
mod count;
mod decide;
mod edge;
mod process;
mod refused;
mod silence;
mod transform;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;

use self::consult::Consulting;
pub use self::consult::Unpermitted;
pub(crate) use self::consult::about_connection;
use self::consumer::Sent;
pub use self::count::Exceeded;
use self::decide::{decided, view};
pub use self::process::Stopped;
use self::process::{Shown, Source, processed};
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
use crate::retry::Hedge;
use crate::upstream::{Answer, ReadAhead};

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
    report.meant(arrived.to.address());
    let grpc = call::is_grpc(&head.headers);
    let connect = head.method == Method::CONNECT;
    let bare = head.method == Method::HEAD;
    let mut answer = match respond(&arrived, head, body, &mut report).await {
        Ok(answer) => answer,
        Err(refused) => refused.answer(grpc, &mut report),
    };
    if connect {
        // The engine would end the connection without having said any of it.
        answer.headers_mut().remove(CONNECTION);
    }
    if bare {
        bodiless(&mut answer);
    }
    Ok(report.answer(answer))
}

/// An answer to HEAD. It is said how long our own would be; over HTTP/2 the engine would send it, too, which is an error to clients.
fn bodiless(answer: &mut Response<Answer>) {
    if let Some(length) = answer.body_mut().leave_own_away() {
        let headers = answer.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
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
    // What says who may has gone with it: whatever is asked for it now would be let through by nobody's leave.
    if arrived.to.front(&config.fronts).is_none() {
        return Err(Refused::NotOurs);
    }

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
    if let Some(verified) = &verified {
        report.verified(&verified.claims);
    }

    // 4. Authorise, 5. route, 6. limit: by the same view.
    let mut consulting = Consulting {
        arrived,
        config: &config,
        body: Source::Client(ReadAhead::of(body)),
        token,
        said: Vec::new(),
        permitted: None,
        query: None,
        passed: Vec::new(),
    };
    let by = verified.as_ref();
    let bare = head.method == Method::HEAD;
    let (found, left) = decided(service, &mut consulting, &mut head, by, report).await?;
    consulting.let_through(&head, report.said());

    // Before anybody whom a rule of clients names has changed it.
    let sent = found.as_ref().and_then(|found| Sent::of(found.rule, &head));

    // 7. Process.
    let (found, mut shown) = match service.processors.is_empty() {
        true => (found, None),
        false => {
            let processing = processed(service, &mut consulting, found, &mut head, by, report);
            // Its type is left behind: the compiler cannot follow it through the connection's.
            let processing: Pin<Box<dyn Future<Output = _> + Send + '_>> = Box::pin(processing);
            let (found, shown) = processing.await?;
            (found, Some(shown))
        }
    };

    // 8. Transform.
    let mut going = match found {
        None => Going::straight(arrived, head),
        Some(found) => {
            // Processors of the service itself may change what they like.
            let sent = sent.filter(|_| service.processors.of(None).is_empty());
            let sent = sent.or_else(|| Sent::of(found.rule, &head));
            let mut going = transform::by_rule(&mut consulting, found, head, report).await?;
            if let (Some(sent), Going::On(on)) = (&sent, &mut going) {
                let (to, head) = (&on.to, &mut on.head);
                let judging =
                    consumer::judged(service, &mut consulting, sent, to, head, by, report);
                let judging: Pin<Box<dyn Future<Output = _> + Send + '_>> = Box::pin(judging);
                judging.await?;
            }
            going
        }
    };
    let made = shown.as_mut().map(|shown| std::mem::take(&mut shown.made));
    let made = made.unwrap_or_default();
    if let Going::On(on) = &mut going
        && !made.is_empty()
    {
        let (to, head) = (&on.to, &mut on.head);
        let judging = consumer::all_judged(service, &mut consulting, &made, to, head, by, report);
        let judging: Pin<Box<dyn Future<Output = _> + Send + '_>> = Box::pin(judging);
        judging.await?;
    }
    let Consulting {
        body, said, passed, ..
    } = consulting;
    let mut going = match going {
        Going::On(going) => going,
        Going::Back(answer) => {
            let answer = seen(shown, answer, bare, report).await?;
            return Ok(telling(left.as_ref(), &said, answer));
        }
    };

    // 9. Call.
    let deadlines = going.deadlines();
    let copies = going.asides.len();
    let awaited = silence::awaited(&body);
    let repeatable = going.retry.is_some() || going.hedge.is_some_and(Hedge::keeps);
    let (body, copies) = body.outgoing(repeatable, report, copies);
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
    let answered = match (call, silent, shown.as_mut()) {
        (Err(refused), ..) => Err(refused),
        (Ok(call), None, None) => call.answered(report).await,
        (Ok(call), silent, shown) => Box::pin(watched(call, silent, shown, report)).await,
    };

    // 10. Respond: what the rule says of answers it says of ours as well, or no page could read why it failed.
    let answered = answered.and_then(again::asked_for);
    let shown = shown.filter(|_| !matches!(answered, Err(Refused::Processed { .. })));
    let mut answer = answered.unwrap_or_else(|refused| refused.answer(grpc, report));
    going.changes.apply(&mut answer);
    again::look_after(arrived, passed, verified, &mut answer);
    let answer = seen(shown, answer, bare, report).await?;
    Ok(telling(left.as_ref(), &said, answer))
}

/// The answer, unless the client falls silent or a processor stops the request first.
async fn watched(
    call: Call<'_>,
    silent: Option<impl Future<Output = ()>>,
    mut shown: Option<&mut Shown>,
    report: &mut Report,
) -> Result<Response<Answer>, Refused> {
    let answered = {
        let stopped = async {
            match shown.as_mut() {
                Some(shown) => shown.stopped().await,
                None => std::future::pending().await,
            }
        };
        let silent = async {
            match silent {
                Some(silent) => silent.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            refused = stopped => return Err(refused),
            answer = call.answered(report) => answer,
            () = silent => return Err(Refused::Silent),
        }
    };
    // A body that a processor has broken off breaks the call, too.
    answered.map_err(|refused| shown.and_then(Shown::why).unwrap_or(refused))
}

/// The answer, as processors make it. To HEAD (`bare`) there is no body that they could be shown.
async fn seen(
    shown: Option<Shown>,
    mut answer: Response<Answer>,
    bare: bool,
    report: &mut Report,
) -> Result<Response<Answer>, Refused> {
    let Some(shown) = shown else {
        return Ok(answer);
    };
    if bare {
        bodiless(&mut answer);
    }
    Box::pin(shown.answer(answer, report)).await
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
