//! Authorizers that are asked with a request like the client's own: 200 allows, another status below 500 denies.

use api::waypoint as wire;
use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use prost_types::Struct;

use super::change::is_framing;
use super::{Action, Allowed, Answered, Change, Denial, Heard, Names, Question};
use crate::report::REQUEST_ID;

/// How it is asked, and what is taken of its answers.
#[derive(Debug)]
pub(super) struct Plain {
    path_prefix: Box<str>,
    /// Of the request's headers, beside those that are always sent.
    shown: Names,
    added: Box<[(HeaderName, HeaderValue)]>,
    to_upstream: Names,
    /// None: all.
    on_deny: Names,
    on_allow: Names,
}

impl Plain {
    pub(super) fn compile(wire: &wire::Authorizer) -> Result<Self, String> {
        let added = wire.add_headers.iter().map(|header| {
            let unfit = || format!("header {:?} cannot be written", header.name);
            let name = header.name.parse().map_err(|_| unfit())?;
            Ok((
                name,
                HeaderValue::from_str(&header.value).map_err(|_| unfit())?,
            ))
        });
        Ok(Self {
            path_prefix: match wire.path_prefix.as_str() {
                "" => "".into(),
                path if path.starts_with('/') && path.parse::<Uri>().is_ok() => path.into(),
                path => return Err(format!("{path:?} is no path")),
            },
            shown: Names::compile(&wire.send_headers)?,
            added: added.collect::<Result<_, String>>()?,
            to_upstream: Names::compile(&wire.to_upstream)?,
            on_deny: Names::compile(&wire.to_downstream_on_deny)?,
            on_allow: Names::compile(&wire.to_downstream_on_allow)?,
        })
    }

    pub(super) fn asks(&self, question: &Question<'_>) -> Result<Request<Bytes>, String> {
        let head = question.head;
        let path = match head.uri.path_and_query().map_or("/", |path| path.as_str()) {
            "*" => "/",
            path => path,
        };
        let uri = Uri::builder()
            .scheme("http")
            .authority(question.authority)
            .path_and_query(format!("{}{path}", self.path_prefix))
            .build()
            .map_err(|why| format!("it cannot be asked: {why}"))?;
        let body = question.body.map_or_else(Bytes::new, |it| it.bytes.clone());
        let mut request = Request::new(body);
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = uri;
        // A CONNECT would be one to the authorizer itself.
        *request.method_mut() = match head.method {
            Method::CONNECT => Method::GET,
            _ => head.method.clone(),
        };
        let headers = request.headers_mut();
        for (name, value) in &head.headers {
            let always = *name == AUTHORIZATION || *name == REQUEST_ID;
            if (always || self.shown.has(name)) && !is_framing(name) {
                headers.append(name, value.clone());
            }
        }
        if let Some(token) = question.token {
            headers
                .entry(AUTHORIZATION)
                .or_insert_with(|| token.clone());
        }
        if let Some(sample) = question.body {
            let partial = if sample.whole { "false" } else { "true" };
            headers.insert(PARTIAL, HeaderValue::from_static(partial));
        }
        for (name, value) in &self.added {
            headers.insert(name, value.clone());
        }
        Ok(request)
    }

    pub(super) fn hears(&self, heard: &Heard<'_>) -> Result<Answered, String> {
        if heard.status == StatusCode::OK {
            return Ok(Answered::Allowed(Allowed {
                request: taken(heard.headers, &self.to_upstream, Action::Set),
                removed: removed(heard.headers)?,
                answer: taken(heard.headers, &self.on_allow, Action::Append),
                ..Allowed::default()
            }));
        }
        if heard.status.is_server_error() || heard.status.is_informational() {
            return Err(format!("it answers {}", heard.status));
        }
        let told = |name: &HeaderName| {
            let named = self.on_deny.is_empty() || self.on_deny.has(name);
            (named || *name == WWW_AUTHENTICATE || *name == LOCATION) && !is_framing(name)
        };
        let all = heard.headers.iter();
        let told = all.filter(|(name, _)| told(name));
        Ok(Answered::Denied(Denial {
            status: heard.status,
            headers: told
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            body: heard.body.clone(),
            metadata: Struct::default(),
        }))
    }
}

/// Headers of an answer that go elsewhere. `first`: what the first value of a name does to those that are there.
fn taken(headers: &HeaderMap, names: &Names, first: Action) -> Vec<Change> {
    let mut changes = Vec::new();
    for name in headers.keys() {
        if !names.takes(name) || is_framing(name) || *name == REMOVED {
            continue;
        }
        let mut action = first;
        for value in headers.get_all(name) {
            changes.push(Change {
                name: name.clone(),
                value: value.clone(),
                action,
            });
            action = Action::Append;
        }
    }
    changes
}

/// Headers of the request that the app is not to get.
fn removed(headers: &HeaderMap) -> Result<Vec<HeaderName>, String> {
    let mut removed = Vec::new();
    for list in headers.get_all(REMOVED) {
        let list = list.to_str().map_err(|_| "it removes what has no name")?;
        let names = list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let names = names.filter_map(|name| name.parse::<HeaderName>().ok());
        removed.extend(names.filter(|name| !is_framing(name)));
    }
    Ok(removed)
}

const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const REMOVED: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
