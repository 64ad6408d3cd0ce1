//! Asking those who must be asked whether a request may pass.
//!
//! 1. the part of the body that is shown is read ahead               ([`ReadAhead`])
//! 2. the question goes to the provider's service, as any request    ([`call::ask`])
//! 3. what the answer changes is changed                             ([`crate::permission`])
//!
//! A client that goes away takes all of this with it: what waits here is dropped, and with it the question.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

use super::process::Source;
use super::{Refused, lead};
use crate::arrive::Arrived;
use crate::asked;
use crate::call;
use crate::compiled::Config;
use crate::permission::{Answered, Authorizer, Change, Denial, Question, Sample};
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
        let outcome = match &answered {
            Ok(Answered::Allowed(_)) => Outcome::Passes,
            Ok(Answered::Denied(_)) => Outcome::Refuses,
            Err(why) => why.outcome(),
        };
        answers.count(outcome, begun.elapsed());
        match answered {
            Ok(Answered::Allowed(allowed)) => {
                allowed.apply(&mut head.headers);
                self.said.extend(allowed.answer);
                Ok(())
            }
            Ok(Answered::Denied(denial)) => Err(Unpermitted::Denied(denial.into())),
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

/// For the part of a body that is shown.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer's body.
const LARGEST: usize = 256 << 10;
