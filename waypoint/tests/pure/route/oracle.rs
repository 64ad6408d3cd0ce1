//! What a table must answer, found by looking at every match of every rule, as the specification is written.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::HashMap;

use api::waypoint::path_match::Match as Path;
use api::waypoint::route::Precedence;
use api::waypoint::string_match::Match as Text;
use api::waypoint::{Match, PathMatch, StringMatch};
use regex::Regex;

use super::request::Request;
use super::wire::Written;

/// The name of the rule that is for the request.
pub(crate) fn find<'a>(rules: &'a [Written], request: &Request) -> Option<&'a str> {
    let candidates = rules.iter().flat_map(|rule| {
        let all = [Match::default()];
        let matches = match rule.route.matches.is_empty() {
            true => all.to_vec(),
            false => rule.route.matches.clone(),
        };
        let numbered = matches.into_iter().enumerate();
        numbered.filter_map(move |(number, one)| {
            let host = host(rule, request)?;
            let consumer = consumer(rule, request)?;
            let grpc = request.headers.get("content-type");
            let grpc = grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
            (matches_request(&one, request) && (grpc || !rule.route.grpc)).then(|| {
                let place = (consumer, host, place(rule, &one, number));
                (place, rule)
            })
        })
    });
    let best = candidates.min_by(|(a, a_rule), (b, b_rule)| {
        // Consumers' first, then listed ones, then by host.
        let listed = |rule: &Written| rule.route.precedence() != Precedence::Listed;
        (a.0, listed(a_rule), &a.1, &a.2).cmp(&(b.0, listed(b_rule), &b.1, &b.2))
    });
    best.map(|(_, rule)| rule.origin.rule.as_str())
}

fn consumer(rule: &Written, request: &Request) -> Option<u8> {
    match rule.route.consumer_namespace.as_str() {
        "" => Some(1),
        namespace => (request.client.namespace() == Some(namespace)).then_some(0),
    }
}

/// Kind and length of the most specific host of the rule that the request's is.
fn host(rule: &Written, request: &Request) -> Option<(u8, Reverse<usize>)> {
    if rule.route.hostnames.is_empty() {
        return Some((2, Reverse(0)));
    }
    let fits = rule.route.hostnames.iter().filter_map(|host| {
        let length = Reverse(host.len());
        match host.strip_prefix('*') {
            None => (*host == request.host).then_some((0, length)),
            Some(ending) => {
                let front = request.host.strip_suffix(ending)?;
                (!front.is_empty()).then_some((1, length))
            }
        }
    });
    fits.min()
}

type Place = (
    Option<(u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>)>,
    i64,
    String,
    String,
    u32,
    usize,
);

fn place(rule: &Written, one: &Match, number: usize) -> Place {
    let path = one.path.as_ref().and_then(|path| path.r#match.as_ref());
    let (rank, text) = match path {
        Some(Path::Exact(text)) => (0, text.as_str()),
        Some(Path::Prefix(text)) => match text.trim_end_matches('/') {
            "" => (3, ""),
            text => (1, text),
        },
        Some(Path::TextPrefix(text)) if !text.is_empty() => (1, text.as_str()),
        Some(Path::Regex(text)) => (2, text.as_str()),
        _ => (3, ""),
    };
    let specific = (
        rank,
        Reverse(text.chars().count()),
        one.method.is_none(),
        Reverse(one.headers.len()),
        Reverse(one.query.len()),
    );
    let origin = &rule.origin;
    (
        (rule.route.precedence() != Precedence::Listed).then_some(specific),
        origin.created,
        origin.namespace.clone(),
        origin.name.clone(),
        origin.index,
        number,
    )
}

fn matches_request(one: &Match, request: &Request) -> bool {
    let header = |name: &str| {
        let values = request.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        (!values.is_empty()).then(|| values.join(","))
    };
    let parameter = |name: &str| {
        let query = request.query.as_deref()?;
        let pairs = query.split('&').map(|pair| pair.split_once('='));
        let mut values = pairs.flatten().filter(|(key, _)| *key == name);
        values.next().map(|(_, value)| value.to_owned())
    };
    let fits = |wanted: &Option<StringMatch>, value: Option<String>| {
        wanted.as_ref().is_none_or(|wanted| text(wanted, value))
    };
    one.path.as_ref().is_none_or(|it| path(it, &request.path))
        && fits(&one.method, Some(request.method.to_string()))
        && fits(&one.scheme, Some(request.scheme.into()))
        && fits(&one.authority, Some(request.host.clone()))
        && (one.port == 0 || one.port == u32::from(request.port))
        && one
            .headers
            .iter()
            .all(|it| fits(&it.value, header(&it.name)))
        && one
            .query
            .iter()
            .all(|it| fits(&it.value, parameter(&it.name)))
        && (one.source_namespaces.is_empty()
            || one
                .source_namespaces
                .iter()
                .any(|name| request.client.namespace() == Some(name)))
}

fn path(wanted: &PathMatch, path: &str) -> bool {
    let lower = |text: &str| match wanted.ignore_case {
        true => text.to_ascii_lowercase(),
        false => text.to_owned(),
    };
    let path = lower(path);
    match &wanted.r#match {
        None => true,
        Some(Path::Exact(text)) => path == lower(text),
        Some(Path::TextPrefix(text)) => path.starts_with(&lower(text)),
        Some(Path::Prefix(text)) => {
            let wanted: Vec<_> = lower(text.trim_end_matches('/'))
                .split('/')
                .map(String::from)
                .collect();
            let path: Vec<_> = path.split('/').collect();
            path.len() >= wanted.len() && wanted.iter().zip(&path).all(|(a, b)| a == b)
        }
        Some(Path::Regex(pattern)) => whole(pattern, wanted.ignore_case).is_match(&path),
    }
}

/// The same few are asked for again and again.
pub(crate) fn whole(pattern: &str, ignore_case: bool) -> Regex {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, Regex>> = RefCell::default();
    }
    let flags = if ignore_case { "(?i)" } else { "" };
    let text = format!("^{flags}(?:{pattern})$");
    KNOWN.with_borrow_mut(|known| {
        let build = || Regex::new(&text).unwrap();
        known.entry(text.clone()).or_insert_with(build).clone()
    })
}

fn text(wanted: &StringMatch, value: Option<String>) -> bool {
    let how = wanted.r#match.as_ref().unwrap();
    let meets = match (how, value) {
        (Text::Present(wanted), value) => *wanted == value.is_some(),
        (_, None) => false,
        (how, Some(value)) => {
            let lower = |text: &str| match wanted.ignore_case {
                true => text.to_ascii_lowercase(),
                false => text.to_owned(),
            };
            let value = lower(&value);
            match how {
                Text::Exact(text) => value == lower(text),
                Text::Prefix(text) => value.starts_with(&lower(text)),
                Text::Suffix(text) => value.ends_with(&lower(text)),
                Text::Regex(pattern) => whole(pattern, wanted.ignore_case).is_match(&value),
                Text::Present(_) => unreachable!(),
            }
        }
    };
    meets != wanted.invert
}
