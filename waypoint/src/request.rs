//! The life of one request.
//!
//! 1. there is room for it, or not                                 ([`Load::enter`])
//! 2. parse: for which host, and one spelling of the path          ([`crate::asked`])
//! 3. choose an endpoint and call it                               ([`crate::call`])
//! 4. respond; the report ends with the answer's last byte         ([`crate::report`])
//!
//! Whatever refuses a request does it with a [`Refused`], which says to the client what it may know, and to the report
//! why.

mod refused;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;

pub use self::refused::Refused;
use crate::arrive::Arrived;
use crate::asked;
use crate::call::{self, Call};
use crate::proxy::Load;
use crate::report::{Report, Reported};
use crate::upstream::{Answer, Outgoing};

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
    // 1. Room.
    let _carried = Load::enter(&arrived.proxy)?;
    if let Some(service) = arrived.to.service() {
        report.service(service, arrived.to.port());
    }

    // 2. Parse: what is judged from here on is what the app will see.
    if let std::borrow::Cow::Owned(path) =
        asked::target(&head.method, &head.uri, asked::Form::default())?
    {
        asked::put_path(&mut head.uri, &path).map_err(|_| Refused::Target)?;
    }
    asked::authority(&head.uri, &head.headers)?;

    // 3. Call.
    let call = Call::new(arrived, head, Outgoing::of(body, report));
    call.answered(report).await
}
