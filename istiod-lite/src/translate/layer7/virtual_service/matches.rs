//! What a request must be like.

use std::collections::BTreeMap;

use api::k8s::istio::virtual_service::{HttpMatch, StringMatch};
use api::waypoint as wire;
use wire::string_match::Match as Text;

/// `clients`: those with the labels that it asks for.
pub(super) fn of(it: &HttpMatch, clients: Option<wire::Workloads>) -> wire::Match {
    let without = it.without_headers.iter();
    let without = without.map(|(name, value)| wire::NamedMatch {
        name: name.clone(),
        value: Some(wire::StringMatch {
            invert: true,
            ..named(value)
        }),
    });
    let mut headers = all(&it.headers);
    headers.extend(without);
    wire::Match {
        path: it
            .uri
            .as_ref()
            .and_then(|uri| path(uri, it.ignore_uri_case)),
        headers,
        query: all(&it.query_params),
        method: it.method.as_ref().and_then(text),
        scheme: it.scheme.as_ref().and_then(text),
        authority: it.authority.as_ref().and_then(text),
        port: it.port.unwrap_or_default(),
        source_namespaces: it.source_namespace.clone().into_iter().collect(),
        source_workloads: clients,
        ..wire::Match::default()
    }
}

/// None if it says nothing.
pub(super) fn text(it: &StringMatch) -> Option<wire::StringMatch> {
    let exact = it.exact.clone().map(Text::Exact);
    let prefix = it.prefix.clone().map(Text::Prefix);
    let regex = it.regex.clone().map(Text::Regex);
    let found = exact.or(prefix).or(regex)?;
    Some(wire::StringMatch {
        r#match: Some(found),
        ..wire::StringMatch::default()
    })
}

/// Of something with a name: presence, if no value is asked for. A lone star asks for that, too: it is no expression, and
/// Istio takes it.
fn named(it: &StringMatch) -> wire::StringMatch {
    let present = || wire::StringMatch {
        r#match: Some(Text::Present(true)),
        ..wire::StringMatch::default()
    };
    let star = Some(Text::Regex("*".to_owned()));
    let value = text(it).filter(|it| it.r#match != star);
    value.unwrap_or_else(present)
}

fn all(matches: &BTreeMap<String, StringMatch>) -> Vec<wire::NamedMatch> {
    let match_of = |(name, value): (&String, &StringMatch)| wire::NamedMatch {
        name: name.clone(),
        value: Some(named(value)),
    };
    matches.iter().map(match_of).collect()
}

fn path(uri: &StringMatch, ignore_case: bool) -> Option<wire::PathMatch> {
    use wire::path_match::Match as Path;
    let exact = uri.exact.clone().map(Path::Exact);
    let prefix = uri.prefix.clone().map(Path::TextPrefix);
    let regex = uri.regex.clone().map(Path::Regex);
    let path = exact.or(prefix).or(regex)?;
    Some(wire::PathMatch {
        // An expression says itself what it thinks of case.
        ignore_case: ignore_case && !matches!(path, Path::Regex(_)),
        r#match: Some(path),
    })
}
