//! The rules of a route become what waypoints are told, all but for whom they are.

use std::collections::BTreeSet;

use api::k8s::objects::Kind;
use api::k8s::routes::{
    BackendRef, Filter, GrpcRule, HttpRule, Retry, SessionPersistence, StreamRouteSpec, Timeouts,
};
use api::waypoint as wire;
use wire::filter::Filter as To;

use super::durations::milliseconds;
use super::{Resolve, Spec, Unresolved, filters, matches};

/// What came of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translated {
    /// Its rules, in its order.
    pub rules: Vec<Rule>,
    /// Whom its filters ask, by key.
    pub providers: Vec<(String, wire::Provider)>,
    /// Mistakes: with any of them it is not to be used.
    pub faults: Vec<String>,
    /// What of it answers 500, because of what it asks for: reason and text.
    pub unsupported: BTreeSet<(&'static str, String)>,
    /// What of it answers 500, because of what it refers to.
    pub unresolved: BTreeSet<Unresolved>,
}

/// A rule, without parents.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it says.
    pub body: Body,
}

/// What a rule says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Of an HTTPRoute or GRPCRoute.
    Http(Box<wire::Route>),
    /// Of a TCPRoute or TLSRoute.
    Stream(wire::TcpRoute),
}

/// Translates a route. `key`: of the route, in front of what is told beside its rules.
pub fn translate(spec: &Spec, key: &str, resolve: &Resolve<'_>) -> Translated {
    let mut pass = Pass {
        kind: spec.kind(),
        key,
        resolve,
        made: Translated::default(),
    };
    match spec {
        Spec::Http(spec) => {
            // Without rules there is one for everything.
            let one = [HttpRule::default()];
            for (index, rule) in spec.rules.as_deref().unwrap_or(&one).iter().enumerate() {
                let body = pass.http(rule, &format!("rules[{index}]"), &spec.hostnames);
                pass.rule(rule.name.clone(), Body::Http(Box::new(body)));
            }
        }
        Spec::Grpc(spec) => {
            for (index, rule) in spec.rules.iter().enumerate() {
                let body = pass.grpc(rule, &format!("rules[{index}]"), &spec.hostnames);
                pass.rule(rule.name.clone(), Body::Http(Box::new(body)));
            }
        }
        Spec::Tcp(spec) => pass.streams(spec, &[]),
        Spec::Tls(spec) => pass.streams(spec, &spec.hostnames),
    }
    pass.made
}

/// One pass over a route.
pub(super) struct Pass<'a> {
    pub(super) kind: Kind,
    key: &'a str,
    resolve: &'a Resolve<'a>,
    made: Translated,
}

impl Pass<'_> {
    pub(super) fn is_http(&self) -> bool {
        self.kind == Kind::HttpRoute
    }

    pub(super) fn unresolved(&mut self, reason: &'static str, text: String) {
        self.made.unresolved.insert(Unresolved { reason, text });
    }

    pub(super) fn unsupported(&mut self, reason: &'static str, text: String) {
        self.made.unsupported.insert((reason, text));
    }

    /// Where a reference leads; that it leads nowhere is noted.
    pub(super) fn resolved(&mut self, reference: &BackendRef) -> Option<wire::ServiceRef> {
        match (self.resolve)(reference) {
            Ok(service) => Some(service),
            Err(unresolved) => {
                self.made.unresolved.insert(unresolved);
                None
            }
        }
    }

    /// Enters somebody who is asked; gives the key.
    pub(super) fn provider(&mut self, authorizer: wire::Authorizer) -> String {
        let key = format!("{}/asked-{}", self.key, self.made.providers.len());
        let kind = wire::provider::Kind::Authorizer(authorizer);
        let provider = wire::Provider { kind: Some(kind) };
        self.made.providers.push((key.clone(), provider));
        key
    }

    fn rule(&mut self, name: Option<String>, body: Body) {
        let name = name.filter(|it| !it.is_empty());
        self.made.rules.push(Rule { name, body });
    }

    fn fault(&mut self, place: &str, reason: &str) {
        self.made.faults.push(format!("spec.{place}.{reason}"));
    }

    /// A value, or a default one and a fault.
    fn good<T: Default>(&mut self, place: &str, found: Result<T, String>) -> T {
        found.unwrap_or_else(|reason| {
            self.fault(place, &reason);
            T::default()
        })
    }

    fn http(&mut self, rule: &HttpRule, place: &str, hostnames: &[String]) -> wire::Route {
        let matches = rule.matches.iter().enumerate().map(|(index, it)| {
            matches::http(it).map_err(|reason| format!("matches[{index}].{reason}"))
        });
        let matches = matches.collect::<Result<Vec<_>, _>>();
        let route = wire::Route {
            hostnames: hostnames.to_vec(),
            matches: self.good(place, matches),
            filters: self.filters(&rule.filters, place),
            backends: self.backends(&rule.backend_refs, place),
            timeouts: self.good(place, rule.timeouts.as_ref().map(timeouts).transpose()),
            retry: self.good(place, rule.retry.as_ref().map(retry).transpose()),
            session: self.good(place, session(rule.session_persistence.as_ref())),
            ..wire::Route::default()
        };
        self.check_prefixes(&route, place);
        route
    }

    fn grpc(&mut self, rule: &GrpcRule, place: &str, hostnames: &[String]) -> wire::Route {
        let matches = rule.matches.iter().enumerate().map(|(index, it)| {
            matches::grpc(it).map_err(|reason| format!("matches[{index}].{reason}"))
        });
        let matches = matches.collect::<Result<Vec<_>, _>>();
        wire::Route {
            hostnames: hostnames.to_vec(),
            matches: self.good(place, matches),
            filters: self.filters(&rule.filters, place),
            backends: self.backends(&rule.backend_refs, place),
            session: self.good(place, session(rule.session_persistence.as_ref())),
            grpc: true,
            ..wire::Route::default()
        }
    }

    fn streams(&mut self, spec: &StreamRouteSpec, sni: &[String]) {
        for (index, rule) in spec.rules.iter().enumerate() {
            let route = wire::TcpRoute {
                sni: sni.to_vec(),
                backends: self.backends(&rule.backend_refs, &format!("rules[{index}]")),
                ..wire::TcpRoute::default()
            };
            self.rule(rule.name.clone(), Body::Stream(route));
        }
    }

    fn filters(&mut self, filters: &[Filter], place: &str) -> Vec<wire::Filter> {
        let mut made = Vec::with_capacity(filters.len());
        for (index, filter) in filters.iter().enumerate() {
            let at = format!("{place}.filters[{index}]");
            match filters::filter(self, filter, &at) {
                Ok(filter) => made.extend(filter),
                Err(reason) => self.fault(&at, &reason),
            }
        }
        let has =
            |wanted: fn(&To) -> bool| made.iter().any(|it| it.filter.as_ref().is_some_and(wanted));
        if has(|it| matches!(it, To::Redirect(_))) && has(|it| matches!(it, To::Rewrite(_))) {
            let text = "who is sent elsewhere is not rewritten: RequestRedirect and URLRewrite exclude each other";
            self.unsupported("IncompatibleFilters", format!("{place}: {text}"));
            let filter = Some(To::Unknown(text.to_owned()));
            made.insert(0, wire::Filter { filter });
        }
        made
    }

    fn backends(&mut self, references: &[BackendRef], place: &str) -> Vec<wire::Backend> {
        let mut made = Vec::with_capacity(references.len());
        for (index, reference) in references.iter().enumerate() {
            let at = format!("{place}.backendRefs[{index}]");
            let weight = reference.weight.unwrap_or(1);
            let weight = u32::try_from(weight).map_err(|_| format!("weight: {weight} is no share"));
            let to = match (self.resolve)(reference) {
                Ok(service) => wire::backend::To::Service(service),
                Err(unresolved) => {
                    self.made.unresolved.insert(unresolved.clone());
                    wire::backend::To::Invalid(unresolved.text)
                }
            };
            made.push(wire::Backend {
                to: Some(to),
                weight: self.good(&at, weight),
                filters: self.filters(&reference.filters, &at),
                subset: String::new(),
            });
        }
        made
    }

    /// A prefix can only be replaced where one was matched.
    fn check_prefixes(&mut self, route: &wire::Route, place: &str) {
        let backends = route.backends.iter().flat_map(|it| &it.filters);
        let paths = route
            .filters
            .iter()
            .chain(backends)
            .filter_map(|it| match &it.filter {
                Some(To::Redirect(it)) => it.path.as_ref()?.change.as_ref(),
                Some(To::Rewrite(it)) => it.path.as_ref()?.change.as_ref(),
                _ => None,
            });
        let replaces = paths
            .into_iter()
            .any(|it| matches!(it, wire::path_change::Change::Prefix(_)));
        let other = |it: &wire::Match| {
            let path = it.path.as_ref().and_then(|it| it.r#match.as_ref());
            path.is_some_and(|it| !matches!(it, wire::path_match::Match::Prefix(_)))
        };
        if replaces && route.matches.iter().any(other) {
            self.fault(
                place,
                "filters: ReplacePrefixMatch needs matches of type PathPrefix",
            );
        }
    }
}

fn timeouts(timeouts: &Timeouts) -> Result<wire::Timeouts, String> {
    let read = |name: &str, text: &Option<String>| match text {
        Some(text) => milliseconds(text)
            .map(Some)
            .map_err(|it| format!("timeouts.{name}: {it}")),
        None => Ok(None),
    };
    let request = read("request", &timeouts.request)?;
    let backend = read("backendRequest", &timeouts.backend_request)?;
    if let (Some(request @ 1..), Some(backend)) = (request, backend)
        && backend > request
    {
        return Err("timeouts: backendRequest is longer than request".into());
    }
    Ok(wire::Timeouts {
        request: request.unwrap_or(0),
        backend: backend.unwrap_or(0),
        idle: 0,
        no_request_limit: request == Some(0),
        no_backend_limit: backend == Some(0),
    })
}

/// Beside the codes, what never reached an app or got no answer of it (GEP-1731).
fn retry(retry: &Retry) -> Result<wire::Retry, String> {
    let code = |it: &i64| match u32::try_from(*it) {
        Ok(code @ 400..=599) => Ok(code),
        _ => Err(format!("retry.codes: {it} is no code of a failure")),
    };
    let backoff = retry.backoff.as_deref().map(milliseconds).transpose();
    let attempts = retry.attempts.unwrap_or(ATTEMPTS);
    Ok(wire::Retry {
        attempts: u32::try_from(attempts)
            .ok()
            .filter(|it| *it <= MOST_ATTEMPTS)
            .ok_or_else(|| {
                format!("retry.attempts: {attempts} is not from 0 to {MOST_ATTEMPTS}")
            })?,
        codes: retry.codes.iter().map(code).collect::<Result<_, _>>()?,
        backoff: backoff
            .map_err(|it| format!("retry.backoff: {it}"))?
            .unwrap_or(0),
        connect_failure: true,
        reset: true,
        refused_stream: true,
        ..wire::Retry::default()
    })
}

/// As Istio does by itself.
const ATTEMPTS: i64 = 2;
const MOST_ATTEMPTS: u32 = 100;

fn session(session: Option<&SessionPersistence>) -> Result<Option<wire::Session>, String> {
    let Some(session) = session else {
        return Ok(None);
    };
    let read = |name: &str, text: &Option<String>| {
        let read = text.as_deref().map_or(Ok(0), milliseconds);
        read.map_err(|it| format!("sessionPersistence.{name}: {it}"))
    };
    let name = session.session_name.clone().filter(|it| !it.is_empty());
    let name = name.unwrap_or_else(|| SESSION.to_owned());
    let lifetime = session.cookie_config.as_ref();
    let lifetime = lifetime.and_then(|it| it.lifetime_type.as_deref());
    let permanent = match lifetime.unwrap_or("Session") {
        "Session" => false,
        "Permanent" => true,
        other => {
            return Err(matches::unknown(
                "sessionPersistence.cookieConfig.lifetimeType",
                other,
                &["Session", "Permanent"],
            ));
        }
    };
    let by = match session.r#type.as_deref().unwrap_or("Cookie") {
        "Cookie" => wire::session::By::Cookie(name),
        "Header" => wire::session::By::Header(matches::header_name(&name)?),
        other => {
            return Err(matches::unknown(
                "sessionPersistence.type",
                other,
                &["Cookie", "Header"],
            ));
        }
    };
    let absolute_timeout = read("absoluteTimeout", &session.absolute_timeout)?;
    if permanent && absolute_timeout == 0 {
        return Err("sessionPersistence: a permanent cookie needs absoluteTimeout".into());
    }
    Ok(Some(wire::Session {
        by: Some(by),
        absolute_timeout,
        idle_timeout: read("idleTimeout", &session.idle_timeout)?,
        permanent,
        path: String::new(),
    }))
}

/// Where the route does not name its cookie or header.
const SESSION: &str = "ambit-session";
