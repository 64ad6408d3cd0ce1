//! What a consumer's rule has made of a request, judged as if the client had said it.
//!
//! Such a rule is written in the clients' namespace, and not by who has the service and its policies. So what it changes is
//! no more to be believed than what its clients say themselves:
//!
//! 1. who asks, and what only proxies may say, stays as it was; of the service itself also tokens, and what good ones say
//! 2. the service's policies judge what the app will get; whoever must be asked is asked about that

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Uri};

use super::Refused;
use super::consult::Consulting;
use super::decide::permitted_again;
use super::edge::is_proxies;
use crate::arrive::To;
use crate::asked::is_double;
use crate::authenticate::Verified;
use crate::compiled::Service;
use crate::report::Report;
use crate::route::Rule;

/// A request before a consumer's rule has changed it.
pub(super) struct Sent {
    label: Arc<str>,
    uri: Uri,
    headers: HeaderMap,
}

impl Sent {
    /// None where who has the service has written the rule.
    pub(super) fn of(rule: &Rule, head: &Parts) -> Option<Self> {
        rule.consumer().is_some().then(|| Self {
            label: rule.label.clone(),
            uri: head.uri.clone(),
            headers: head.headers.clone(),
        })
    }

    fn is(&self, head: &Parts) -> bool {
        self.uri == head.uri && self.headers == head.headers
    }

    /// Whether a header has the values that it had, and no other stands beside it that some apps take for it.
    fn has(&self, name: &HeaderName, now: &HeaderMap) -> bool {
        let same = |name: &HeaderName| {
            let (before, after) = (self.headers.get_all(name), now.get_all(name));
            before.iter().eq(after.iter())
        };
        let mut doubles = now.keys().filter(|it| is_double(it, name));
        same(name) && doubles.all(same)
    }

    fn denied(&self, what: &str) -> Refused {
        let label = &self.label;
        Refused::Denied(format!(
            "{label} is a rule of clients, and changes {what}, which is not theirs to say"
        ))
    }
}

/// Whether a request may pass as it is now. `to`: where it goes.
pub(super) async fn judged(
    service: &Service,
    consulting: &mut Consulting<'_>,
    sent: &Sent,
    to: &To,
    head: &mut Parts,
    verified: Option<&Verified>,
    report: &mut Report,
) -> Result<(), Refused> {
    if sent.is(head) {
        return Ok(());
    }
    let mut names = sent.headers.keys().chain(head.headers.keys());
    if let Some(name) = names.find(|it| is_proxies(it) && !sent.has(it, &head.headers)) {
        return Err(sent.denied(name.as_str()));
    }
    let asked_for = consulting.arrived.to.service().map(|it| it.key());
    // Who leads to another service has that one's leave, or its own.
    if to.service().map(|it| it.key()) != asked_for {
        return Ok(());
    }
    let mut written = service.tokens.written().iter();
    if let Some(name) = written.find(|it| !sent.has(it, &head.headers)) {
        return Err(sent.denied(name.as_str()));
    }
    let (before, after) = ((&sent.headers, &sent.uri), (&head.headers, &head.uri));
    if !service.tokens.are_same(before, after) {
        return Err(sent.denied("a token"));
    }
    permitted_again(service, consulting, head, verified, report).await?;
    consulting.let_through(head, report.said());
    Ok(())
}
