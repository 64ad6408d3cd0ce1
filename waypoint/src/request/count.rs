//! Asking those who count requests for all proxies together.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;

use super::Refused;
use super::consult::{Consulting, Unheard, heard};
use crate::asked::remove_doubles;
use crate::limit::{Counted, Inquiry, Told};
use crate::permission::Change;
use crate::report::{Outcome, Report, Who};

/// A request that is beyond a limit that a service counts.
#[derive(Debug)]
pub struct Exceeded {
    /// Whose limit, if the service has said that.
    pub told: Option<Told>,
    /// Who counts.
    pub provider: String,
    /// Of the answer.
    headers: Vec<Change>,
    /// Empty: ours.
    pub body: Bytes,
}

impl Exceeded {
    /// Writes what the client is told.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        if let Some(told) = &self.told {
            told.write(headers);
        }
        for change in &self.headers {
            change.apply(headers);
        }
    }
}

/// Asks each, one after the other; what is left of the limit that is nearest.
pub(super) async fn counted(
    consulting: &mut Consulting<'_>,
    inquiries: &[Inquiry<'_>],
    head: &mut Parts,
    report: &mut Report,
) -> Result<Option<Told>, Refused> {
    let mut least: Option<Told> = None;
    for inquiry in inquiries {
        let Counted {
            told,
            passes,
            request,
            answer,
            body,
        } = match asked(consulting, inquiry, head).await {
            Ok(counted) => counted,
            Err(why) if inquiry.fail_open => {
                let provider = inquiry.provider;
                report.detail(format!(
                    "passes uncounted, {provider} cannot be asked: {why}"
                ));
                continue;
            }
            Err(why) => {
                report.denied(limits(inquiry));
                return Err(Refused::Uncounted(format!("{}: {why}", inquiry.provider)));
            }
        };
        if !passes {
            let name = told.as_ref().map(|told| told.name.clone());
            report.denied(name.unwrap_or_else(|| limits(inquiry)));
            return Err(Refused::Exceeded(Box::new(Exceeded {
                told,
                provider: inquiry.provider.to_owned(),
                headers: answer,
                body,
            })));
        }
        for change in request {
            change.apply(&mut head.headers);
            remove_doubles(&mut head.headers, std::slice::from_ref(&change.name));
        }
        consulting.said.extend(answer);
        least = nearest(least, told);
    }
    Ok(least)
}

/// Asks, and counts what came of it.
async fn asked(
    consulting: &Consulting<'_>,
    inquiry: &Inquiry<'_>,
    head: &Parts,
) -> Result<Counted, Unheard> {
    let begun = Instant::now();
    let answered = ask(consulting, inquiry, head).await;
    let outcome = match &answered {
        Ok(counted) if counted.passes => Outcome::Passes,
        Ok(_) => Outcome::Refuses,
        Err(why) => why.outcome(),
    };
    let (provider, reports) = (inquiry.provider, &consulting.arrived.proxy.reports);
    let name = provider.strip_prefix("provider/").unwrap_or(provider);
    reports
        .asked(Who::Counter, name)
        .count(outcome, begun.elapsed());
    answered
}

async fn ask(
    consulting: &Consulting<'_>,
    inquiry: &Inquiry<'_>,
    head: &Parts,
) -> Result<Counted, Unheard> {
    let known = consulting.config.counters.of(inquiry.provider);
    let counter = known.map_err(str::to_owned)?;
    let request = counter.asks(inquiry, &head.headers)?;
    let (arrived, config) = (consulting.arrived, consulting.config);
    let (service, within) = (&counter.service, counter.timeout);
    heard(arrived, config, service, within, request, |heard| {
        counter.hears(inquiry, heard)
    })
    .await
}

/// The limit that a question is about; of several the first.
fn limits(inquiry: &Inquiry<'_>) -> Arc<str> {
    let first = inquiry.descriptors.first();
    first.map_or_else(|| inquiry.domain.into(), |it| it.name.clone())
}

/// The one with less left.
pub(super) fn nearest(one: Option<Told>, other: Option<Told>) -> Option<Told> {
    match (one, other) {
        (Some(one), Some(other)) if other.left < one.left => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}
