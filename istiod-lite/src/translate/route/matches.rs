//! What a request must be like.

use std::collections::HashSet;

use api::k8s::routes::{GrpcMatch, GrpcMethod, HttpMatch, Named, Typed};
use api::waypoint as wire;
use wire::path_match::Match as Path;
use wire::string_match::Match as Text;

/// A match of an HTTPRoute.
pub(super) fn http(r#match: &HttpMatch) -> Result<wire::Match, String> {
    Ok(wire::Match {
        path: r#match.path.as_ref().map(path).transpose()?,
        headers: named(&r#match.headers, true)?,
        query: named(&r#match.query_params, false)?,
        method: r#match.method.as_deref().map(method).transpose()?,
        ..wire::Match::default()
    })
}

/// A match of a GRPCRoute: `/service/method` is the path.
pub(super) fn grpc(r#match: &GrpcMatch) -> Result<wire::Match, String> {
    let path = r#match.method.as_ref().map(call).transpose()?.flatten();
    Ok(wire::Match {
        path: path.map(|it| wire::PathMatch {
            r#match: Some(it),
            ignore_case: false,
        }),
        headers: named(&r#match.headers, true)?,
        ..wire::Match::default()
    })
}

/// What a text is without a type in a path.
const PREFIX: &str = "PathPrefix";
const EXACT: &str = "Exact";
const REGEX: &str = "RegularExpression";

fn path(path: &Typed) -> Result<wire::PathMatch, String> {
    let value = path.value.as_deref().unwrap_or("/");
    let found = match path.r#type.as_deref().unwrap_or(PREFIX) {
        EXACT => Path::Exact(absolute(value)?),
        PREFIX => Path::Prefix(absolute(value)?),
        REGEX => Path::Regex(regex(value).map_err(|it| format!("path.value: {it}"))?),
        other => return Err(unknown("path.type", other, &[EXACT, PREFIX, REGEX])),
    };
    Ok(wire::PathMatch {
        r#match: Some(found),
        ignore_case: false,
    })
}

/// What can be the path of a request after it was made plain.
fn absolute(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("path.value: {path:?} does not begin with /"));
    }
    let lower = path.to_ascii_lowercase();
    let never = ["//", "/./", "/../", "%2f", "#"];
    let at_end = ["/..", "/."].iter().find(|part| path.ends_with(**part));
    let never = never.iter().find(|part| lower.contains(**part)).or(at_end);
    match never {
        Some(part) => Err(format!(
            "path.value: {path:?} matches nothing: no path of a request has {part:?} in it"
        )),
        None => Ok(path.to_owned()),
    }
}

fn method(method: &str) -> Result<wire::StringMatch, String> {
    if http::Method::from_bytes(method.as_bytes()).is_err() {
        return Err(format!("method: {method:?} is no method"));
    }
    Ok(text(Text::Exact(method.to_owned())))
}

/// Of entries of one name the first counts.
fn named(entries: &[Named], are_headers: bool) -> Result<Vec<wire::NamedMatch>, String> {
    let list = if are_headers {
        "headers"
    } else {
        "queryParams"
    };
    let mut seen = HashSet::new();
    let mut matches = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let at = |field: &str, reason: String| format!("{list}[{index}].{field}: {reason}");
        let name = if are_headers {
            header_name(&entry.name).map_err(|it| at("name", it))?
        } else {
            entry.name.clone()
        };
        let value = match entry.r#type.as_deref().unwrap_or(EXACT) {
            EXACT => Text::Exact(entry.value.clone()),
            REGEX => Text::Regex(regex(&entry.value).map_err(|it| at("value", it))?),
            other => return Err(at("type", none_of(other, &[EXACT, REGEX]))),
        };
        if seen.insert(name.clone()) {
            matches.push(wire::NamedMatch {
                name,
                value: Some(text(value)),
            });
        }
    }
    Ok(matches)
}

fn call(method: &GrpcMethod) -> Result<Option<Path>, String> {
    let said = |it: &Option<String>| it.clone().filter(|it| !it.is_empty());
    let (service, name) = (said(&method.service), said(&method.method));
    let kind = method.r#type.as_deref().unwrap_or(EXACT);
    Ok(Some(match (kind, service, name) {
        (EXACT | REGEX, None, None) => return Ok(None),
        (EXACT, Some(service), Some(name)) => Path::Exact(format!("/{service}/{name}")),
        (EXACT, Some(service), None) => Path::Prefix(format!("/{service}")),
        (EXACT, None, Some(name)) => Path::Regex(format!("/[^/]+/{}", ::regex::escape(&name))),
        (REGEX, service, name) => {
            let part = |it: Option<String>| match it {
                Some(it) => match regex(&it) {
                    Ok(it) => Ok(format!("(?:{it})")),
                    Err(reason) => Err(format!("method: {reason}")),
                },
                None => Ok("[^/]+".to_owned()),
            };
            Path::Regex(format!("/{}/{}", part(service)?, part(name)?))
        }
        (other, ..) => return Err(unknown("method.type", other, &[EXACT, REGEX])),
    }))
}

fn text(r#match: Text) -> wire::StringMatch {
    wire::StringMatch {
        r#match: Some(r#match),
        ..wire::StringMatch::default()
    }
}

/// As proxies write names.
pub(super) fn header_name(name: &str) -> Result<String, String> {
    http::HeaderName::from_bytes(name.as_bytes())
        .map(|name| name.as_str().to_owned())
        .map_err(|_| format!("{name:?} is no name of a header"))
}

/// A regular expression that proxies can compile too, in bounded memory.
pub(super) fn regex(expression: &str) -> Result<String, String> {
    let compiled = ::regex::RegexBuilder::new(expression)
        .size_limit(REGEX_MEMORY)
        .build();
    match compiled {
        Ok(_) => Ok(expression.to_owned()),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default();
            let reason = reason.trim_start_matches("error: ");
            Err(format!("{expression:?} is no regular expression: {reason}"))
        }
    }
}

/// Bytes of a compiled expression; those that people write take some thousands.
const REGEX_MEMORY: usize = 1 << 20;

pub(super) fn unknown(field: &str, found: &str, known: &[&str]) -> String {
    format!("{field}: {}", none_of(found, known))
}

fn none_of(found: &str, known: &[&str]) -> String {
    format!("{found:?} is none of {}", known.join(", "))
}
