//! Asking those who must be asked whether a request may pass.
//!
//! 1. the part of the body that is shown is read ahead               ([`ReadAhead`])
//! 2. the question goes to the provider's service, as any request    ([`call::ask`])
//! 3. what the answer changes is changed                             ([`crate::permission`])
//!    and what it says of the request is kept for whoever asks         ([`crate::process::Metadata`])
//!
//! A changed query leads to no other rule: which one a request is for is told by the query that the client sent, as it is
//! by Envoy as Istio sets it up (`clear_route_cache`). The app gets the changed one.
//!
//! A client that goes away takes all of this with it: what waits here is dropped, and with it the question.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::time::timeout;

use super::again::{self, Passed};
use super::process::Source;
use super::{Refused, lead};
use crate::arrive::Arrived;
use crate::asked;
use crate::call;
use crate::compiled::Config;
use crate::permission::{Answered, Authorizer, Change, Denial, Question, Sample};
use crate::process::Metadata;
use crate::report::{Outcome, Report, Who};
use crate::route::{Rule, ServiceName};
use crate::service::Heard;
use crate::upstream::Outgoing;

/// What is needed to ask about one request, and what came of it.
pub(super) struct Consulting<'a> {
    pub(super) arrived: &'a Arc<Arrived>,
    pub(super) config: &'a Arc<Config>,
    /// The request's body.
    pub(super) body: Source,
    /// `authorization`, as it was sent.
    pub(super) token: Option<HeaderValue>,
    /// What is said to the client with whatever is answered.
    pub(super) said: Vec<Change>,
    /// The rule whose own authorizers have agreed.
    pub(super) permitted: Option<Arc<str>>,
    /// The query, if an authorizer has changed it.
    pub(super) query: Option<Changed>,
    /// What policies let through, of a request that may switch protocols.
    pub(super) passed: Vec<Passed>,
}

/// A query that an authorizer has changed.
pub(super) struct Changed {
    /// As it was.
    sent: Option<Box<str>>,
    /// As it is.
    now: Option<Box<str>>,
}

/// Why a request does not pass.
#[derive(Debug)]
pub enum Unpermitted {
    /// That was the answer.
    Denied(Box<Denial>),
    /// There was no answer that could be followed: what is said then, and why.
    Unanswered(StatusCode, String),
    /// Its body is larger than may be shown.
    TooLarge,
    /// Its body broke off, or did not come.
    Unread,
}

impl Consulting<'_> {
    /// Asks those whom a rule names, unless they have agreed already.
    pub(super) async fn permitted(
        &mut self,
        rule: &Rule,
        head: &mut Parts,
        report: &mut Report,
    ) -> Result<(), Refused> {
        let by = self.permitted.as_ref();
        if rule.filters.authorizers().next().is_none()
            || by.is_some_and(|it| Arc::ptr_eq(it, &rule.label))
        {
            return Ok(());
        }
        self.all(rule.filters.authorizers(), head, report).await?;
        self.permitted = Some(rule.label.clone());
        Ok(())
    }

    /// Asks all of them, one after the other: each sees what the one before has changed.
    pub(super) async fn all<'p>(
        &mut self,
        providers: impl IntoIterator<Item = &'p str>,
        head: &mut Parts,
        report: &mut Report,
    ) -> Result<(), Refused> {
        for provider in providers {
            if let Err(why) = self.one(provider, head, report).await {
                report.denied(provider.into());
                let provider = provider.to_owned();
                return Err(Refused::Unpermitted { provider, why });
            }
        }
        Ok(())
    }

    async fn one(
        &mut self,
        provider: &str,
        head: &mut Parts,
        report: &mut Report,
    ) -> Result<(), Unpermitted> {
        // Whoever is not known cannot have said that all may pass without him.
        let name = provider.strip_prefix("provider/").unwrap_or(provider);
        let answers = self.arrived.proxy.reports.asked(Who::Authorizer, name);
        let closed = |why: &str| {
            answers.count(Outcome::Fails, Duration::ZERO);
            Unpermitted::Unanswered(StatusCode::FORBIDDEN, why.to_owned())
        };
        let authorizer = self.config.authorizers.of(provider).map_err(closed)?;
        let sample = self.sample(authorizer).await?;
        let begun = Instant::now();
        let answered = self.ask(authorizer, head, sample.as_ref()).await;
        let took = begun.elapsed();
        let denied = match answered {
            Ok(answered) => self.follow(answered, took, head, report),
            Err(why) => Err(why),
        };
        let outcome = match &denied {
            Ok(None) => Outcome::Passes,
            Ok(Some(_)) => Outcome::Refuses,
            Err(why) => why.outcome(),
        };
        answers.count(outcome, took);
        match denied {
            Ok(None) => Ok(()),
            Ok(Some(denial)) => Err(Unpermitted::Denied(denial)),
            Err(why) if authorizer.fail_open => {
                report.detail(format!(
                    "passes unasked, as provider {provider} says: {why}"
                ));
                Ok(())
            }
            Err(why) => Err(Unpermitted::Unanswered(
                authorizer.on_error,
                why.to_string(),
            )),
        }
    }

    /// Does what an answer says, all of it or nothing; the denial, if it is one.
    fn follow(
        &mut self,
        answered: Answered,
        took: Duration,
        head: &mut Parts,
        report: &mut Report,
    ) -> Result<Option<Box<Denial>>, Unheard> {
        let mut allowed = match answered {
            Answered::Allowed(allowed) => allowed,
            Answered::Denied(mut denial) => {
                // Too much to be told of is no reason to let it pass.
                let _ = note(std::mem::take(&mut denial.metadata), report);
                return Ok(Some(Box::new(denial)));
            }
        };
        let uri = allowed.parameters.of(&head.uri)?;
        let mut metadata = std::mem::take(&mut allowed.metadata);
        if !metadata.fields.is_empty() {
            metadata
                .fields
                .insert(DURATION.to_owned(), milliseconds(took));
        }
        note(metadata, report)?;
        if let Some(uri) = uri {
            self.lead(uri, head);
        }
        allowed.apply(&mut head.headers);
        self.said.extend(allowed.answer);
        Ok(None)
    }

    /// The request has another query.
    fn lead(&mut self, uri: Uri, head: &mut Parts) {
        let sent = self.query(head).map(Box::from);
        let now = uri.query().map(Box::from);
        self.query = Some(Changed { sent, now });
        head.uri = uri;
    }

    /// The query by which the request's rule is found: the one that authorizers were asked about, unless somebody else has
    /// changed it since.
    pub(super) fn query<'h>(&'h self, head: &'h Parts) -> Option<&'h str> {
        let now = head.uri.query();
        match &self.query {
            Some(changed) if changed.now.as_deref() == now => changed.sent.as_deref(),
            _ => now,
        }
    }

    /// Policies have let it through as it is now.
    pub(super) fn let_through(&mut self, head: &Parts, said: &Metadata) {
        if again::may_switch(head) {
            let query = self.query(head).map(Box::from);
            self.passed.push(Passed::of(head, query, said));
        }
    }

    /// What is shown of the body.
    async fn sample(&mut self, authorizer: &Authorizer) -> Result<Option<Sample>, Unpermitted> {
        let Some(part) = authorizer.body else {
            return Ok(None);
        };
        let looked = timeout(PATIENCE, self.body.look(part.most)).await;
        match looked {
            Ok(Ok(sample)) if sample.whole || part.cut => Ok(Some(sample)),
            Ok(Ok(_)) => Err(Unpermitted::TooLarge),
            Ok(Err(_)) | Err(_) => Err(Unpermitted::Unread),
        }
    }

    async fn ask(
        &self,
        authorizer: &Authorizer,
        head: &Parts,
        body: Option<&Sample>,
    ) -> Result<Answered, Unheard> {
        let arrived = self.arrived;
        let own = arrived.proxy.identity.to_string();
        let authority = asked::authority(&head.uri, &head.headers);
        let request = authorizer.asks(&Question {
            head,
            authority: authority.map_err(|why| why.to_string())?,
            token: self.token.as_ref(),
            client: &arrived.client,
            destination: arrived.to.address(),
            own: &own,
            time: SystemTime::now(),
            body,
        })?;
        let (service, within) = (&authorizer.service, authorizer.timeout);
        heard(arrived, self.config, service, within, request, |heard| {
            authorizer.hears(heard)
        })
        .await
    }
}

/// Keeps what is said of a request.
fn note(metadata: Struct, report: &mut Report) -> Result<(), String> {
    match metadata.fields.is_empty() {
        true => Ok(()),
        false => report.metadata().authorized(metadata),
    }
}

fn milliseconds(took: Duration) -> Value {
    // Whole ones, as Envoy has it; no authorizer takes years.
    let whole = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
    Value {
        kind: Some(Kind::NumberValue(whole.into())),
    }
}

/// Asks whether a connection that is not HTTP may be. Why nobody was asked, where it passes all the same.
pub(crate) async fn about_connection(
    arrived: &Arc<Arrived>,
    config: &Config,
    provider: &str,
) -> Result<Option<String>, Refused> {
    let name = provider.strip_prefix("provider/").unwrap_or(provider);
    let answers = arrived.proxy.reports.asked(Who::Authorizer, name);
    let refused = |why| Refused::Unpermitted {
        provider: provider.to_owned(),
        why,
    };
    let authorizer = config.authorizers.of(provider).map_err(|why| {
        answers.count(Outcome::Fails, Duration::ZERO);
        refused(Unpermitted::Unanswered(
            StatusCode::FORBIDDEN,
            why.to_owned(),
        ))
    })?;
    let begun = Instant::now();
    let own = arrived.proxy.identity.to_string();
    let answered = match authorizer.asks_about(&arrived.client, arrived.to.address(), &own) {
        Ok(request) => {
            let (service, within) = (&authorizer.service, authorizer.timeout);
            let read = |said: &Heard<'_>| authorizer.hears(said);
            heard(arrived, config, service, within, request, read).await
        }
        Err(why) => Err(why.into()),
    };
    let outcome = match &answered {
        Ok(Answered::Allowed(_)) => Outcome::Passes,
        Ok(Answered::Denied(_)) => Outcome::Refuses,
        Err(why) => why.outcome(),
    };
    answers.count(outcome, begun.elapsed());
    match answered {
        // Of a connection there is nothing that it could change.
        Ok(Answered::Allowed(_)) => Ok(None),
        Ok(Answered::Denied(denial)) => Err(refused(Unpermitted::Denied(denial.into()))),
        Err(why) if authorizer.fail_open => Ok(Some(format!(
            "passes unasked, as provider {provider} says: {why}"
        ))),
        Err(why) => {
            let why = Unpermitted::Unanswered(authorizer.on_error, why.to_string());
            Err(refused(why))
        }
    }
}

/// Why there is no answer that could be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unheard {
    /// It did not come in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It cannot be asked, or says what nobody understands.
    #[error("{0}")]
    Failed(String),
}

impl From<String> for Unheard {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Unheard {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Late(_) => Outcome::Late,
            Self::Failed(_) => Outcome::Fails,
        }
    }
}

/// Asks a service, and reads the whole answer.
pub(super) async fn heard<T>(
    arrived: &Arc<Arrived>,
    config: &Config,
    service: &ServiceName,
    within: Duration,
    request: Request<Bytes>,
    read: impl FnOnce(&Heard<'_>) -> Result<T, String>,
) -> Result<T, Unheard> {
    let to = lead(arrived, service).map_err(|why| why.to_string())?;
    let request = request.map(|body| match body.is_empty() {
        true => Outgoing::Empty,
        false => Outgoing::Whole(Some(body)),
    });
    let heard = async {
        let answer = call::ask(arrived, config, &to, request).await;
        let (head, body) = answer.map_err(|why| why.to_string())?.into_parts();
        let body = Limited::new(body, LARGEST).collect().await;
        let body = body.map_err(|why| format!("its answer broke off: {why}"))?;
        let trailers: Option<HeaderMap> = body.trailers().cloned();
        read(&Heard {
            status: head.status,
            headers: &head.headers,
            body: &body.to_bytes(),
            trailers: trailers.as_ref(),
        })
    };
    match timeout(within, heard).await {
        Ok(heard) => heard.map_err(Unheard::Failed),
        Err(_) => Err(Unheard::Late(within)),
    }
}

/// How long the authorizer took, beside what it says.
const DURATION: &str = "ext_authz_duration";
/// For the part of a body that is shown.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer's body.
const LARGEST: usize = 256 << 10;
