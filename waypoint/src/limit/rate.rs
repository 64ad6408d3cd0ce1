//! How many requests of a kind may pass in a time.
//!
//! 1. all limits that are for a request are asked, one after the other      ([`Limiter::judge`])
//! 2. if one says no, what the others took is given back
//! 3. the answer tells the client how much is left, in the headers of the IETF's draft (`RateLimit-Policy`,
//!    `RateLimit`), and, if it is refused, when to come again (`Retry-After`)
//!
//! Limits of a rate limit service are no decision here: [`Limiter::inquiries`] says what to ask it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::waypoint as wire;
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::bucket::Measure;
use super::counter::{Descriptor, Inquiry, Per};
use super::key::{Part, Whole};
use super::table::{Kind, Table};
use crate::asked::Asked;
use crate::route::{Rule, Table as Routes};

/// The limits of one service, in order.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    limits: Box<[Limit]>,
}

#[derive(Debug, Clone)]
struct Limit {
    /// `namespace/name/rule` of whose limit it is.
    name: Arc<str>,
    keys: Box<[Part]>,
    /// A table with one rule; without one the limit is for all requests.
    when: Option<Arc<Routes>>,
    by: By,
}

#[derive(Debug, Clone)]
enum By {
    Us(Measure, Arc<Table>),
    Service(Arc<Asking>),
}

/// A rate limit service, and how it is asked.
#[derive(Debug, PartialEq, Eq)]
struct Asking {
    provider: Box<str>,
    domain: Box<str>,
    fail_open: bool,
    /// How many, if it is not for the service to say.
    limit: Option<(u32, Per)>,
}

/// Whether a request passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// It does; of the limits that are for it, the one with the least left.
    Pass(Option<Told>),
    /// This limit says no: 429.
    Refuse(Told),
}

/// What the client is told of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whose.
    pub name: Arc<str>,
    /// Requests a window.
    pub requests: u64,
    /// The window.
    pub window: Duration,
    /// How many may pass now.
    pub left: u64,
    /// Until there are as many as there can be; of a refusal: until one may pass.
    pub after: Duration,
    /// Whether it was refused.
    pub refused: bool,
}

impl Limiter {
    /// From the wire. Limits that `before` had go on where they were.
    ///
    /// # Errors
    /// What cannot be done, for the person who asked for it.
    pub fn compile(
        found: &[(&wire::Origin, &wire::RateLimit)],
        before: Option<&Self>,
        now: Instant,
    ) -> Result<Self, String> {
        let limits = found
            .iter()
            .map(|(origin, limit)| Limit::compile(origin, limit, before, now));
        Ok(Self {
            limits: limits.collect::<Result<_, _>>()?,
        })
    }

    /// These, and after them others; both count where they did.
    #[must_use]
    pub fn and(&self, others: Self) -> Self {
        let own = self.limits.iter().cloned();
        Self {
            limits: own.chain(others.limits).collect(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Names of those that are for a request.
    pub fn concerning<'a>(&'a self, asked: &'a Asked<'a>) -> impl Iterator<Item = &'a str> {
        let limits = self.limits.iter().filter(|limit| limit.is_for(asked));
        limits.map(|limit| &*limit.name)
    }

    /// How many kinds of requests are remembered now; bounded.
    pub fn remembered(&self) -> usize {
        let tables = self.limits.iter().map(|limit| match &limit.by {
            By::Us(_, table) => table.len(),
            By::Service(_) => 0,
        });
        tables.sum()
    }

    /// Whether a request passes the limits of this proxy; if so, it has been counted.
    pub fn judge(&self, asked: &Asked<'_>, now: Instant) -> Judged {
        let mut least: Option<Told> = None;
        let mut taken: Vec<(&Measure, &Table, Kind)> = Vec::new();
        for limit in &self.limits {
            let By::Us(measure, table) = &limit.by else {
                continue;
            };
            if !limit.is_for(asked) {
                continue;
            }
            let kind = table.kind(Whole(&limit.keys, asked));
            let answer = table.take(measure, kind, now);
            let told = || Told {
                name: limit.name.clone(),
                requests: measure.requests,
                window: measure.window,
                left: answer.left,
                after: answer.after,
                refused: !answer.passes,
            };
            if !answer.passes {
                for (measure, table, kind) in taken {
                    table.give_back(measure, kind);
                }
                return Judged::Refuse(told());
            }
            taken.push((measure, table, kind));
            if least.as_ref().is_none_or(|least| answer.left < least.left) {
                least = Some(told());
            }
        }
        Judged::Pass(least)
    }

    /// A request that was judged to pass did not happen after all.
    pub fn give_back(&self, asked: &Asked<'_>) {
        for limit in &self.limits {
            if let By::Us(measure, table) = &limit.by
                && limit.is_for(asked)
            {
                table.give_back(measure, table.kind(Whole(&limit.keys, asked)));
            }
        }
    }

    /// What rate limit services are to be asked about it: of each one question for each domain.
    pub fn inquiries<'a>(&'a self, asked: &Asked<'_>) -> Vec<Inquiry<'a>> {
        let mut all: Vec<Inquiry<'a>> = Vec::new();
        for limit in &self.limits {
            let By::Service(asking) = &limit.by else {
                continue;
            };
            let Some(descriptor) = limit.descriptor(asking, asked) else {
                continue;
            };
            let like = |it: &&mut Inquiry<'_>| {
                it.provider == &*asking.provider
                    && it.domain == &*asking.domain
                    && it.fail_open == asking.fail_open
            };
            match all.iter_mut().find(like) {
                Some(inquiry) => inquiry.descriptors.push(descriptor),
                None => all.push(Inquiry {
                    provider: &asking.provider,
                    domain: &asking.domain,
                    fail_open: asking.fail_open,
                    descriptors: vec![descriptor],
                }),
            }
        }
        all
    }
}

impl Limit {
    fn compile(
        origin: &wire::Origin,
        found: &wire::RateLimit,
        before: Option<&Limiter>,
        now: Instant,
    ) -> Result<Self, String> {
        let keys: Result<Box<[Part]>, String> = found.keys.iter().map(Part::compile).collect();
        let mut limit = Self {
            name: format!("{}/{}/{}", origin.namespace, origin.name, origin.rule).into(),
            keys: keys?,
            when: found.when.as_ref().map(condition).transpose()?,
            by: By::compile(found, now)?,
        };
        let old = before.into_iter().flat_map(|before| &before.limits);
        let mut old = old.filter(|old| old.name == limit.name && old.keys == limit.keys);
        if let By::Us(measure, table) = &mut limit.by
            && let Some(By::Us(_, held)) = old
                .find(|old| matches!(&old.by, By::Us(other, _) if other == measure))
                .map(|old| &old.by)
        {
            *table = held.clone();
        }
        Ok(limit)
    }

    /// What is counted of a request, if it is under this limit.
    ///
    /// Where we say how many, each limit is counted apart, under its own name, and what says nothing is a kind of its
    /// own, as with limits of ours. Where the service says it, it is asked about what its configuration names, and a
    /// request that says nothing of that is not under the limit.
    fn descriptor<'a>(&'a self, asking: &Asking, asked: &Asked<'_>) -> Option<Descriptor<'a>> {
        if !self.is_for(asked) {
            return None;
        }
        let mut entries = Vec::with_capacity(self.keys.len() + 1);
        if asking.limit.is_some() || self.keys.is_empty() {
            entries.push((LIMIT_KEY.to_owned(), self.name.to_string()));
        }
        for part in &self.keys {
            let value = part.value(asked).filter(|value| !value.is_empty());
            let value = match (value, asking.limit) {
                (Some(value), _) => value.into_owned(),
                (None, Some(_)) => NOTHING.to_owned(),
                (None, None) => return None,
            };
            entries.push((part.descriptor.to_string(), value));
        }
        Some(Descriptor {
            name: &self.name,
            entries,
            limit: asking.limit,
        })
    }

    fn is_for(&self, asked: &Asked<'_>) -> bool {
        let when = self.when.as_ref();
        when.is_none_or(|when| when.find(asked).is_some())
    }
}

/// A match is what a route with this one match would be for.
fn condition(found: &wire::Match) -> Result<Arc<Routes>, String> {
    let route = wire::Route {
        matches: vec![found.clone()],
        ..Default::default()
    };
    let rule = Rule::compile(&wire::Origin::default(), &route)?;
    Ok(Arc::new(Routes::of([Arc::new(rule)])))
}

impl By {
    fn compile(found: &wire::RateLimit, now: Instant) -> Result<Self, String> {
        if !found.service.is_empty() {
            return Ok(Self::Service(Arc::new(Asking {
                provider: found.service.as_str().into(),
                domain: found.domain.as_str().into(),
                fail_open: found.fail_open,
                limit: match found.service_decides {
                    true => None,
                    false => Some(per(found)?),
                },
            })));
        }
        if found.window == 0 {
            return Err("a limit without a window".to_owned());
        }
        let measure = Measure {
            requests: found.requests,
            window: Duration::from_millis(found.window),
            burst: match found.burst {
                0 => found.requests,
                burst => burst,
            },
            quota: found.quota,
        };
        Ok(Self::Us(measure, Arc::new(Table::new(now))))
    }
}

/// How many a rate limit service is told to let pass.
fn per(found: &wire::RateLimit) -> Result<(u32, Per), String> {
    let requests = u32::try_from(found.requests);
    let requests = requests.map_err(|_| format!("{} requests are too many", found.requests))?;
    let window = Duration::from_millis(found.window);
    let per = Per::of(window);
    let per = per.ok_or_else(|| format!("rate limit services do not count in {window:?}"))?;
    Ok((requests, per))
}

impl Told {
    /// Writes it into the answer's headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        let name = self.name.rsplit('/').nth(1).unwrap_or(&self.name);
        let window = self.window.as_secs().max(1);
        let after = self.after.as_millis().div_ceil(1_000);
        let policy = format!("\"{name}\";q={};w={window}", self.requests);
        let now = format!("\"{name}\";r={};t={after}", self.left);
        for (header, text) in [(POLICY, policy), (LIMIT, now)] {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(header, value);
            }
        }
        if self.refused
            && let Ok(value) = HeaderValue::try_from(after.max(1).to_string())
        {
            headers.insert(RETRY_AFTER, value);
        }
    }
}

/// The entry that tells one limit from another.
const LIMIT_KEY: &str = "limit";
/// The value of what a request does not say.
const NOTHING: &str = "-";
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
