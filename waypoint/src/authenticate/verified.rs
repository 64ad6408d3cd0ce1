//! What a good token changes about a request.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri, header};
use serde_json::Value;

use super::Claims;
use super::find::{cookies, parameters};
use super::rule::{ClaimHeader, Place, Rule};

/// Who asks, by a token; and what becomes of the tokens.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Of the first good one.
    pub claims: Arc<Claims>,
    good: Vec<Good>,
}

#[derive(Debug, Clone)]
struct Good {
    place: Place,
    rule: Arc<Rule>,
    claims: Arc<Claims>,
    payload: Option<HeaderValue>,
}

impl Verified {
    pub(super) fn new(
        claims: Arc<Claims>,
        good: Vec<(Place, Arc<Rule>, Arc<Claims>, &str)>,
    ) -> Self {
        let good = good.into_iter().map(|(place, rule, claims, payload)| Good {
            payload: rule
                .payload_header
                .as_ref()
                .and(HeaderValue::from_str(payload).ok()),
            place,
            rule,
            claims,
        });
        Self {
            claims,
            good: good.collect(),
        }
    }

    /// Takes tokens out of a request whose rule does not forward them, and writes the headers that rules ask for.
    pub fn apply(&self, headers: &mut HeaderMap, uri: &mut Uri) {
        for good in &self.good {
            if !good.rule.forward {
                take_out(&good.place, headers, uri);
            }
        }
        for good in &self.good {
            if let (Some(name), Some(payload)) = (&good.rule.payload_header, &good.payload) {
                headers.insert(name.clone(), payload.clone());
            }
            for claim in &good.rule.claim_headers {
                if let Some(value) = value_of(claim, &good.claims) {
                    headers.insert(claim.header.clone(), value);
                }
            }
        }
    }
}

fn take_out(place: &Place, headers: &mut HeaderMap, uri: &mut Uri) {
    match place {
        Place::Header(name, _) => {
            headers.remove(name);
        }
        Place::Parameter(name) => without_parameter(uri, name),
        Place::Cookie(name) => without_cookie(headers, name),
    }
}

/// The text of a claim; None for one that is not there, or has parts.
fn value_of(wanted: &ClaimHeader, claims: &Claims) -> Option<HeaderValue> {
    let (first, further) = wanted.claim.split_first()?;
    let mut value = claims.all.get(&**first)?;
    for name in further {
        value = value.as_object()?.get(&**name)?;
    }
    match value {
        Value::String(text) => HeaderValue::from_bytes(text.as_bytes()).ok(),
        Value::Bool(_) | Value::Number(_) => HeaderValue::from_str(&value.to_string()).ok(),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn without_parameter(uri: &mut Uri, name: &str) {
    let Some(query) = uri.query() else {
        return;
    };
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| parameters(pair).all(|(found, _)| found != name))
        .collect();
    let mut whole = uri.path().to_owned();
    if !kept.is_empty() {
        whole.push('?');
        whole.push_str(&kept.join("&"));
    }
    let mut parts = std::mem::take(uri).into_parts();
    // It was a part of one that could be read; were it not, nothing of it may go on.
    let path_only = || PathAndQuery::from_static("/");
    parts.path_and_query = Some(PathAndQuery::try_from(whole).unwrap_or_else(|_| path_only()));
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

fn without_cookie(headers: &mut HeaderMap, name: &str) {
    let mut lines = Vec::new();
    for line in headers.get_all(header::COOKIE) {
        let text = String::from_utf8_lossy(line.as_bytes());
        let kept: Vec<&str> = text
            .split(';')
            .map(str::trim)
            .filter(|pair| cookies(pair).all(|(found, _)| found != name))
            .collect();
        if !kept.is_empty()
            && let Ok(line) = HeaderValue::from_bytes(kept.join("; ").as_bytes())
        {
            lines.push(line);
        }
    }
    headers.remove(header::COOKIE);
    for line in lines {
        headers.append(header::COOKIE, line);
    }
}
