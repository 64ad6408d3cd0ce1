//! One rule, compiled.

use std::sync::Arc;

use api::waypoint::route::Precedence;
use api::waypoint::{Match, Origin, Route};

use super::backends::Backends;
use super::hosts::Host;
use super::path::Path;
use super::predicate::Predicate;
use super::timeouts::Timeouts;
use crate::filter::Filters;
use crate::retry::{Hedge, Retry};
use crate::session::Session;

/// Who wrote a rule, for logs and for those who ask why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// HTTPRoute, VirtualService …
    pub kind: Box<str>,
    /// Of the object.
    pub namespace: Box<str>,
    /// Of the object.
    pub name: Box<str>,
    /// The rule's own name, else its number.
    pub rule: Box<str>,
}

/// What is done with requests that match.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Who wrote it.
    pub name: Name,
    /// The same as one text: `kind/namespace/name/rule`, in reports.
    pub label: Arc<str>,
    /// What is changed, or answered.
    pub filters: Filters,
    /// Where it leads.
    pub backends: Backends,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Whether it is tried again.
    pub retry: Option<Retry>,
    /// Whether a second request is made beside a slow first.
    pub hedge: Option<Hedge>,
    /// Whether a client stays with its endpoint.
    pub session: Option<Session>,
    /// Why it could not be understood: what it matches is answered with 500.
    pub broken: Option<Box<str>>,
    pub(super) is: For,
}

/// For which requests a rule is, and where it stands among others.
#[derive(Debug, Clone)]
pub(super) struct For {
    pub(super) hostnames: Box<[Host]>,
    pub(super) conditions: Box<[Condition]>,
    pub(super) consumer: Option<Box<str>>,
    pub(super) listed: bool,
    pub(super) grpc: bool,
    /// Seconds since 1970.
    pub(super) created: i64,
    /// Of the rule in its object.
    pub(super) index: u32,
}

/// One match.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub(super) path: Path,
    pub(super) predicate: Predicate,
    /// Longer expressions are more specific ones.
    pub(super) written: usize,
}

impl Rule {
    /// What is wrong with it, or the rule.
    pub fn compile(origin: &Origin, wire: &Route) -> Result<Self, String> {
        Ok(Self {
            name: Name::of(origin),
            label: Name::of(origin).label(),
            filters: Filters::compile(&wire.filters)?,
            backends: Backends::compile(&wire.backends)?,
            timeouts: Timeouts::compile(wire.timeouts.as_ref()),
            retry: wire.retry.as_ref().map(Retry::compile).transpose()?,
            hedge: wire.hedge.as_ref().and_then(Hedge::compile),
            session: wire.session.as_ref().map(Session::compile).transpose()?,
            broken: None,
            is: For::compile(origin, wire, Condition::compile)?,
        })
    }

    /// Whose clients alone it is for: of this namespace, where it was written; none: all.
    pub fn consumer(&self) -> Option<&str> {
        self.is.consumer.as_deref()
    }

    /// What stands in the place of a first version that was not understood: it answers all that the user may have
    /// meant with 500, so that nobody is served by a rule that was meant for others.
    pub fn closed(origin: &Origin, wire: &Route, why: &str) -> Self {
        let mut wire = wire.clone();
        wire.hostnames.retain(|host| Host::compile(host).is_ok());
        let understood = |wire: &Match| Ok(Condition::understood(wire));
        Self {
            name: Name::of(origin),
            label: Name::of(origin).label(),
            filters: Filters::default(),
            backends: Backends::default(),
            timeouts: Timeouts::default(),
            retry: None,
            hedge: None,
            session: None,
            broken: Some(why.into()),
            is: For::compile(origin, &wire, understood)
                .unwrap_or_else(|_| For::everything(origin, &wire)),
        }
    }

    /// Either of them: last good ones are whoever keeps resources' business.
    pub fn understand(origin: &Origin, wire: &Route) -> Self {
        Self::compile(origin, wire).unwrap_or_else(|why| Self::closed(origin, wire, &why))
    }
}

impl Name {
    pub(super) fn of(origin: &Origin) -> Self {
        Self {
            kind: origin.kind.as_str().into(),
            namespace: origin.namespace.as_str().into(),
            name: origin.name.as_str().into(),
            rule: match origin.rule.as_str() {
                "" => origin.index.to_string().into(),
                rule => rule.into(),
            },
        }
    }
}

impl Name {
    fn label(&self) -> Arc<str> {
        let Self {
            kind,
            namespace,
            name,
            rule,
        } = self;
        format!("{kind}/{namespace}/{name}/{rule}").into()
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind,
            namespace,
            name,
            rule,
        } = self;
        write!(out, "{kind} {namespace}/{name} rule {rule}")
    }
}

impl For {
    fn compile(
        origin: &Origin,
        wire: &Route,
        condition: impl Fn(&Match) -> Result<Condition, String>,
    ) -> Result<Self, String> {
        let mut all = Self::everything(origin, wire);
        all.hostnames = wire
            .hostnames
            .iter()
            .map(|host| Host::compile(host))
            .collect::<Result<_, _>>()?;
        if !wire.matches.is_empty() {
            let conditions = wire.matches.iter().map(condition);
            all.conditions = conditions.collect::<Result<_, _>>()?;
        }
        Ok(all)
    }

    fn everything(origin: &Origin, wire: &Route) -> Self {
        let consumer = wire.consumer_namespace.as_str();
        Self {
            hostnames: Box::default(),
            conditions: Box::new([Condition::understood(&Match::default())]),
            consumer: (!consumer.is_empty()).then(|| consumer.into()),
            listed: wire.precedence() == Precedence::Listed,
            grpc: wire.grpc,
            created: origin.created,
            index: origin.index,
        }
    }
}

impl Condition {
    fn compile(wire: &Match) -> Result<Self, String> {
        Ok(Self {
            path: Path::compile(wire.path.as_ref())?,
            predicate: Predicate::compile(wire)?,
            written: written(wire),
        })
    }

    fn understood(wire: &Match) -> Self {
        Self {
            path: Path::compile(wire.path.as_ref()).unwrap_or(Path::ANY),
            predicate: Predicate::understood(wire),
            written: written(wire),
        }
    }
}

/// Characters of the path as the user wrote it; slashes at a prefix's end say nothing.
fn written(wire: &Match) -> usize {
    use api::waypoint::path_match::Match as Path;
    let path = wire.path.as_ref().and_then(|path| path.r#match.as_ref());
    let text = match path {
        None => "",
        Some(Path::Prefix(text)) => text.trim_end_matches('/'),
        Some(Path::Exact(text) | Path::Regex(text) | Path::TextPrefix(text)) => text,
    };
    text.chars().count()
}
