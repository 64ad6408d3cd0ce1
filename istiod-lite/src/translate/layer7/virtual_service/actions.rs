//! What is done with a request before it is sent on, in the order of a sidecar's filters: CORS, faults, headers, then
//! another answer or another address, and copies.

use api::k8s::istio::virtual_service as k8s;
use api::waypoint as wire;
use base64::Engine as _;
use wire::filter::Filter as One;
use wire::path_change::Change;

use super::matches::text;
use super::{Place, destinations};
use crate::translate::layer7::duration;

/// The entry's matches in parts that are rewritten alike: what a path is rewritten to depends on what matched.
pub(super) fn parts<'a>(
    entry: &k8s::HttpRoute,
    matches: &[&'a k8s::HttpMatch],
) -> Vec<Vec<&'a k8s::HttpMatch>> {
    let rewrites = entry.rewrite.as_ref().is_some_and(|it| it.uri.is_some());
    if !rewrites || matches.is_empty() {
        return vec![matches.to_vec()];
    }
    let (by_prefix, others): (Vec<_>, Vec<_>) = matches.iter().partition(|it| is_prefix(it));
    let parts = [by_prefix, others].into_iter();
    parts.filter(|it| !it.is_empty()).collect()
}

fn is_prefix(it: &k8s::HttpMatch) -> bool {
    it.uri.as_ref().is_none_or(|uri| uri.prefix.is_some())
}

fn filter(one: One) -> wire::Filter {
    wire::Filter { filter: Some(one) }
}

/// Every request fails, and says why.
pub(super) fn fails(why: &str) -> wire::Filter {
    filter(One::Unknown(why.to_owned()))
}

pub(super) fn filters(
    entry: &k8s::HttpRoute,
    matches: &[&k8s::HttpMatch],
    place: &Place<'_>,
    faults: &mut Vec<String>,
) -> Vec<wire::Filter> {
    let mut filters = Vec::new();
    if let Some(it) = &entry.cors_policy {
        filters.push(filter(One::Cors(cors(it, faults))));
    }
    if let Some(it) = &entry.fault {
        let delay = it
            .delay
            .as_ref()
            .and_then(|it| it.exponential_delay.as_ref());
        let abort = it.abort.as_ref().and_then(|it| it.http2_error.as_ref());
        let unread = delay.map(|_| "delay.exponentialDelay");
        let unread = unread.into_iter().chain(abort.map(|_| "abort.http2Error"));
        faults.extend(unread.map(|it| format!("fault.{it} has no effect")));
        filters.push(match fault(it) {
            Ok(fault) => filter(One::Fault(fault)),
            Err(why) => {
                faults.push(format!("fault: {why}"));
                fails(&why)
            }
        });
    }
    filters.extend(headers(entry.headers.as_ref()));
    if let Some(it) = &entry.direct_response {
        filters.push(match direct(it) {
            Ok(response) => filter(One::DirectResponse(response)),
            Err(why) => {
                faults.push(format!("directResponse: {why}"));
                fails(&why)
            }
        });
    }
    if let Some(it) = &entry.redirect {
        filters.push(filter(One::Redirect(redirect(it, faults))));
    }
    if let Some(it) = &entry.rewrite {
        filters.push(filter(One::Rewrite(rewrite(it, matches))));
    }
    filters.extend(mirrors(entry, place, faults));
    filters
}

fn mirrors(
    entry: &k8s::HttpRoute,
    place: &Place<'_>,
    faults: &mut Vec<String>,
) -> Vec<wire::Filter> {
    let single = entry.mirror.as_ref().map(|destination| {
        let old = entry.mirror_percent.map(|it| k8s::Percent {
            value: f64::from(it),
        });
        let percentage = entry.mirror_percentage.clone().or(old);
        k8s::MirrorPolicy {
            destination: destination.clone(),
            percentage,
        }
    });
    let all = entry.mirrors.iter().cloned().chain(single);
    let mirror = |it: k8s::MirrorPolicy| {
        filter(One::Mirror(wire::Mirror {
            backend: Some(destinations::one(&it.destination, 1, place, faults)),
            fraction: it.percentage.as_ref().map(fraction),
        }))
    };
    all.map(mirror).collect()
}

/// Of a million.
pub(super) fn fraction(percent: &k8s::Percent) -> wire::Fraction {
    let millionths = (percent.value.clamp(0.0, 100.0) * 10_000.0).round();
    // Within 0 and 1,000,000 after the line above.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let numerator = millionths as u32;
    wire::Fraction {
        numerator,
        denominator: 1_000_000,
    }
}

/// Header operations of a route or of one of its destinations. Who sets `host`, or adds it, rewrites the host.
pub(super) fn headers(headers: Option<&k8s::Headers>) -> Vec<wire::Filter> {
    let Some(headers) = headers else {
        return Vec::new();
    };
    let mut filters = Vec::new();
    if let Some(it) = &headers.request {
        let (host, change) = change(it);
        filters.extend(host.map(|hostname| {
            filter(One::Rewrite(wire::Rewrite {
                hostname,
                path: None,
            }))
        }));
        filters.push(filter(One::RequestHeaders(change)));
    }
    if let Some(it) = &headers.response {
        filters.push(filter(One::ResponseHeaders(change(it).1)));
    }
    filters
}

fn change(it: &k8s::HeaderOperations) -> (Option<String>, wire::HeaderChange) {
    let is_host = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
    let header = |(name, value): (&String, &String)| wire::Header {
        name: name.clone(),
        value: value.clone(),
    };
    // There is but one, so to add it is to set it.
    let mut all = it.set.iter().chain(&it.add);
    let host = all.find(|(name, _)| is_host(name));
    let set = it.set.iter().filter(|(name, _)| !is_host(name));
    let add = it.add.iter().filter(|(name, _)| !is_host(name));
    let change = wire::HeaderChange {
        set: set.map(header).collect(),
        add: add.map(header).collect(),
        remove: it.remove.clone(),
    };
    (host.map(|(_, value)| value.clone()), change)
}

fn redirect(it: &k8s::Redirect, faults: &mut Vec<String>) -> wire::Redirect {
    let authority = it.authority.clone().unwrap_or_default();
    let with_port = authority.rsplit_once(':');
    let with_port = with_port.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (hostname, port) = match with_port {
        Some((host, port)) => (host.to_owned(), u32::from(port)),
        None => (authority, 0),
    };
    let kept = |uri: &String| match uri.strip_prefix("%PREFIX()%") {
        Some(rest) => Change::Prefix(rest.to_owned()),
        None => Change::Full(uri.clone()),
    };
    let change = it.uri.as_ref().map(|uri| wire::PathChange {
        change: Some(kept(uri)),
    });
    let secure = it.scheme.as_deref() == Some("https");
    let unsaid = it.port.is_none() && port == 0;
    let derived = match it.derive_port.filter(|_| unsaid) {
        Some(k8s::DerivePort::FromProtocolDefault) if secure => 443,
        Some(k8s::DerivePort::FromProtocolDefault) => 80,
        // That is what a redirect does by itself, unless it names another scheme.
        Some(k8s::DerivePort::FromRequestPort) if it.scheme.is_some() => {
            faults.push("redirect.derivePort: FROM_REQUEST_PORT has no effect beside scheme, the scheme's own port is named".to_owned());
            0
        }
        // This service's port says nothing of another host's.
        None if unsaid && it.scheme.is_none() && !hostname.is_empty() => 80,
        _ => 0,
    };
    wire::Redirect {
        scheme: it.scheme.clone().unwrap_or_default(),
        hostname,
        path: change,
        port: it.port.unwrap_or(port).max(derived),
        status: it.redirect_code.filter(|code| *code != 0).unwrap_or(301),
        strip_query: false,
    }
}

fn rewrite(it: &k8s::Rewrite, matches: &[&k8s::HttpMatch]) -> wire::Rewrite {
    let by_prefix = matches.iter().all(|it| is_prefix(it));
    let plain = it.uri.clone().map(|uri| match by_prefix {
        true => Change::Prefix(uri),
        false => Change::Full(uri),
    });
    let regex = it.uri_regex_rewrite.as_ref();
    let regex = regex.map(|it| {
        Change::Regex(wire::RegexChange {
            pattern: it.matches.clone(),
            substitution: it.rewrite.clone(),
        })
    });
    wire::Rewrite {
        hostname: it.authority.clone().unwrap_or_default(),
        path: regex.or(plain).map(|change| wire::PathChange {
            change: Some(change),
        }),
    }
}

fn direct(it: &k8s::DirectResponse) -> Result<wire::DirectResponse, String> {
    let body = match &it.body {
        None => Vec::new(),
        Some(k8s::ResponseBody {
            bytes: Some(bytes), ..
        }) => base64::engine::general_purpose::STANDARD
            .decode(bytes)
            .map_err(|why| format!("body.bytes: {why}"))?,
        Some(body) => body.string.clone().unwrap_or_default().into_bytes(),
    };
    if !(200..=599).contains(&it.status) {
        return Err(format!("{} is no status to answer with", it.status));
    }
    Ok(wire::DirectResponse {
        status: it.status,
        body,
        headers: Vec::new(),
    })
}

fn fault(it: &k8s::Fault) -> Result<wire::Fault, String> {
    let none = wire::Fraction {
        numerator: 0,
        denominator: 100,
    };
    let mut made = wire::Fault {
        delayed: Some(none),
        aborted: Some(none),
        ..wire::Fault::default()
    };
    if let Some(delay) = &it.delay {
        made.delay = duration::optional(delay.fixed_delay.as_deref())?;
        let old = delay.percent.map(|it| k8s::Percent {
            value: f64::from(it),
        });
        let share = delay.percentage.clone().or(old);
        made.delayed = Some(share.as_ref().map_or(none, fraction));
    }
    if let Some(abort) = &it.abort {
        made.status = abort.http_status.unwrap_or_default();
        let code = abort.grpc_status.as_deref();
        made.grpc_status = code
            .map(|text| grpc(text).ok_or(format!("{text:?} is no gRPC code")))
            .transpose()?;
        if made.status == 0 && made.grpc_status.is_none() {
            return Err("abort names neither httpStatus nor grpcStatus".to_owned());
        }
        made.aborted = Some(abort.percentage.as_ref().map_or(none, fraction));
    }
    Ok(made)
}

/// The names of gRPC's codes, in the order of their numbers.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC code by name (also with `-`) or number.
pub(super) fn grpc(text: &str) -> Option<u32> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    let by_name = GRPC.iter().position(|it| *it == name);
    let number = text.parse().ok().filter(|it: &usize| *it < GRPC.len());
    u32::try_from(by_name.or(number)?).ok()
}

fn cors(it: &k8s::CorsPolicy, faults: &mut Vec<String>) -> wire::Cors {
    let exact = |origin: &String| k8s::StringMatch {
        exact: Some(origin.clone()),
        ..k8s::StringMatch::default()
    };
    let old = it.allow_origin.iter().map(exact);
    let origins: Vec<_> = it.allow_origins.iter().cloned().chain(old).collect();
    let is_any = |origin: &k8s::StringMatch| origin.exact.as_deref() == Some("*");
    let max_age = duration::optional(it.max_age.as_deref());
    let max_age = max_age.unwrap_or_else(|why| {
        faults.push(format!("corsPolicy.maxAge: {why}"));
        0
    });
    let ignored = it.unmatched_preflights == Some(k8s::UnmatchedPreflights::Ignore);
    wire::Cors {
        any_origin: origins.iter().any(is_any),
        origins: origins
            .iter()
            .filter(|it| !is_any(it))
            .filter_map(text)
            .collect(),
        credentials: it.allow_credentials.unwrap_or_default(),
        methods: it.allow_methods.clone(),
        headers: it.allow_headers.clone(),
        expose: it.expose_headers.clone(),
        max_age_seconds: max_age / 1_000,
        forward_unmatched: !ignored,
    }
}
