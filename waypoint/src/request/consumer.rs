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
use crate::arrive::{Arrived, To};
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

/// What a processor of such a rule has made of a request, where others have changed it later, who may change what they like.
pub(super) struct Made {
    sent: Sent,
    uri: Uri,
    headers: HeaderMap,
}

impl Sent {
    /// As it is now.
    pub(super) fn made(self, head: &Parts) -> Made {
        Made {
            sent: self,
            uri: head.uri.clone(),
            headers: head.headers.clone(),
        }
    }

    /// Whether it has become something that the service's policies judge; no: it goes to another service.
    ///
    /// # Errors
    /// It says what is not its clients' to say.
    fn judge(
        &self,
        service: &Service,
        arrived: &Arrived,
        to: &To,
        (headers, uri): (&HeaderMap, &Uri),
    ) -> Result<bool, Refused> {
        let mut names = self.headers.keys().chain(headers.keys());
        if let Some(name) = names.find(|it| is_proxies(it) && !self.has(it, headers)) {
            return Err(self.denied(name.as_str()));
        }
        let asked_for = arrived.to.service().map(|it| it.key());
        // Who leads to another service has that one's leave, or its own.
        if to.service().map(|it| it.key()) != asked_for {
            return Ok(false);
        }
        let mut written = service.tokens.written().iter();
        if let Some(name) = written.find(|it| !self.has(it, headers)) {
            return Err(self.denied(name.as_str()));
        }
        let before = (&self.headers, &self.uri);
        if !service.tokens.are_same(before, (headers, uri)) {
            return Err(self.denied("a token"));
        }
        Ok(true)
    }
}

/// Whether a request may pass as it is now, of which processors of such rules have made that on its way.
pub(super) async fn all_judged(
    service: &Service,
    consulting: &mut Consulting<'_>,
    all: &[Made],
    to: &To,
    head: &mut Parts,
    verified: Option<&Verified>,
    report: &mut Report,
) -> Result<(), Refused> {
    let mut stays = false;
    for Made { sent, uri, headers } in all {
        stays |= sent.judge(service, consulting.arrived, to, (headers, uri))?;
    }
    if stays {
        permitted_again(service, consulting, head, verified, report).await?;
        consulting.let_through(head, report.said());
    }
    Ok(())
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
    if !sent.judge(service, consulting.arrived, to, (&head.headers, &head.uri))? {
        return Ok(());
    }
    permitted_again(service, consulting, head, verified, report).await?;
    consulting.let_through(head, report.said());
    Ok(())
}
