//! RateLimitPolicy and QuotaPolicy: how many requests may pass. One limit is one resource.

use api::k8s::istio::virtual_service::StringMatch;
use api::k8s::limits::{By, Global, Key, Limit, LimitSpec, LimitsFrom, OnFailure, When};
use api::waypoint as wire;
use wire::limit_key::By as WireBy;

use super::{duration, provider};

/// What stands in the place of limits that cannot be read: no request is within it.
pub fn closed() -> wire::RateLimit {
    wire::RateLimit {
        window: 1_000,
        ..wire::RateLimit::default()
    }
}

/// What is said of it.
pub const REFUSES: &str =
    "until it is mended all requests to what it is attached to are answered with 429";

/// Whether requests that cannot be counted shall pass.
pub fn lets_pass(spec: &LimitSpec) -> bool {
    let global = spec.global.as_ref();
    global.is_some_and(|it| it.on_failure == OnFailure::Allow)
}

/// The limits of a spec, without their targets.
///
/// # Errors
/// Why it cannot be enforced as written; none of it is.
pub fn limits(
    spec: &LimitSpec,
    namespace: &str,
    name: &str,
    quota: bool,
) -> Result<Vec<wire::RateLimit>, String> {
    let domain = |it: &Global| match it.domain.as_str() {
        "" => format!("{namespace}/{name}"),
        domain => domain.to_owned(),
    };
    let global = spec.global.as_ref();
    if global.is_some_and(|it| it.provider.is_empty()) {
        return Err(
            "spec.global.provider is missing; name an extension provider of the mesh configuration"
                .to_owned(),
        );
    }
    let one = |(index, limit): (usize, &Limit)| {
        let made = match global {
            Some(global) => counted_by(global, limit, quota),
            None => self::limit(limit, quota),
        };
        let made = made.map_err(|why| format!("spec.limits[{index}]: {why}"))?;
        Ok(wire::RateLimit {
            service: global
                .map(|it| provider::key(&it.provider))
                .unwrap_or_default(),
            domain: global.map(domain).unwrap_or_default(),
            fail_open: global.is_some_and(|it| it.on_failure == OnFailure::Allow),
            ..made
        })
    };
    spec.limits.iter().enumerate().map(one).collect()
}

/// What a rate limit service can count.
fn counted_by(global: &Global, it: &Limit, quota: bool) -> Result<wire::RateLimit, String> {
    if it.burst.is_some() {
        return Err("burst: a rate limit service knows no bursts".to_owned());
    }
    if global.limits_from == LimitsFrom::Service {
        let mut it = it.clone();
        // Nobody reads it; it may be left out.
        it.window = "1s".to_owned();
        let made = limit(&it, quota)?;
        return Ok(wire::RateLimit {
            service_decides: true,
            ..made
        });
    }
    let made = limit(it, quota)?;
    if !UNITS.contains(&made.window) {
        let window = &it.window;
        return Err(format!(
            "window: rate limit services count in 1s, 1m, 1h or 24h, not in {window}"
        ));
    }
    if u32::try_from(made.requests).is_err() {
        return Err(format!("requests: {} are too many", made.requests));
    }
    Ok(made)
}

/// Windows of rate limit services, in milliseconds.
const UNITS: [u64; 4] = [1_000, 60_000, 3_600_000, 86_400_000];

fn limit(it: &Limit, quota: bool) -> Result<wire::RateLimit, String> {
    let window = duration::milliseconds(&it.window).map_err(|why| format!("window: {why}"))?;
    if window == 0 {
        return Err("window: nothing fits into no time".to_owned());
    }
    let keys: Result<Vec<_>, String> = it.keys.iter().enumerate().map(key).collect();
    Ok(wire::RateLimit {
        keys: keys?,
        requests: it.requests,
        window,
        burst: it.burst.unwrap_or_default(),
        quota,
        when: it.when.as_ref().map(when),
        ..wire::RateLimit::default()
    })
}

fn key((index, key): (usize, &Key)) -> Result<wire::LimitKey, String> {
    let (by, word) = match key.by {
        By::Fixed => (WireBy::Fixed, "generic_key"),
        By::Identity => (WireBy::Identity, "source_principal"),
        By::Namespace => (WireBy::Namespace, "source_namespace"),
        By::Address => (WireBy::Address, "remote_address"),
        By::Header => (WireBy::Header, key.name.as_str()),
        By::Claim => (WireBy::Claim, key.name.as_str()),
        By::Path => (WireBy::Path, "path"),
        By::Method => (WireBy::Method, "method"),
    };
    let named = matches!(key.by, By::Header | By::Claim | By::Fixed);
    if named && key.name.is_empty() {
        return Err(format!("keys[{index}].name is missing"));
    }
    Ok(wire::LimitKey {
        by: by.into(),
        name: if named {
            key.name.clone()
        } else {
            String::new()
        },
        descriptor: key.descriptor.clone().unwrap_or_else(|| word.to_owned()),
    })
}

fn when(it: &When) -> wire::Match {
    use wire::path_match::Match as Path;
    let path = it.path.as_ref().and_then(|it| {
        let exact = it.exact.clone().map(Path::Exact);
        let prefix = it.prefix.clone().map(Path::Prefix);
        exact.or(prefix).or(it.regex.clone().map(Path::Regex))
    });
    let headers = it.headers.iter();
    wire::Match {
        path: path.map(|path| wire::PathMatch {
            r#match: Some(path),
            ignore_case: false,
        }),
        method: it.method.as_ref().map(text),
        headers: headers
            .map(|(name, value)| wire::NamedMatch {
                name: name.clone(),
                value: Some(text(value)),
            })
            .collect(),
        ..wire::Match::default()
    }
}

/// Presence, if no value is asked for.
fn text(it: &StringMatch) -> wire::StringMatch {
    use wire::string_match::Match as Text;
    let exact = it.exact.clone().map(Text::Exact);
    let prefix = it.prefix.clone().map(Text::Prefix);
    let regex = it.regex.clone().map(Text::Regex);
    wire::StringMatch {
        r#match: Some(exact.or(prefix).or(regex).unwrap_or(Text::Present(true))),
        ..wire::StringMatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<wire::RateLimit>, String> {
        let spec: LimitSpec = serde_saphyr::from_str(text).expect("a spec");
        limits(&spec, "shop", "web", false)
    }

    #[test]
    fn each_limit_is_told_with_its_keys() {
        let made = read(
            "limits:
- requests: 10
  window: 1m
  keys: [{by: Identity}, {by: Header, name: x-user}, {by: Claim, name: org, descriptor: tenant}]
  when: {path: {prefix: /api}, method: {exact: POST}, headers: {x-a: {}}}
- {requests: 5, window: 1s}
global: {provider: limits, onFailure: Allow}
",
        )
        .expect("limits");
        let [first, second] = made.as_slice() else {
            unreachable!("two")
        };
        assert_eq!((first.requests, first.window), (10, 60_000));
        assert!(!first.service_decides);
        let words: Vec<_> = first.keys.iter().map(|it| it.descriptor.as_str()).collect();
        assert_eq!(words, ["source_principal", "x-user", "tenant"]);
        assert_eq!(first.service, "provider/limits");
        assert_eq!(
            (second.domain.as_str(), second.fail_open),
            ("shop/web", true)
        );
        assert!(
            first
                .when
                .as_ref()
                .is_some_and(|it| it.headers.len() == 1 && it.method.is_some())
        );
    }

    #[test]
    fn the_service_may_know_how_many() {
        let made = read(
            "limits: [{keys: [{by: Header, name: x-user}]}]
global: {provider: limits, domain: shop, limitsFrom: Service}
",
        )
        .expect("limits");
        assert!(made[0].service_decides && !made[0].fail_open);
        assert_eq!(made[0].domain, "shop");
        let local = read("limits: [{requests: 4, window: 10s, burst: 9}]").expect("limits");
        assert_eq!((local[0].window, local[0].burst), (10_000, 9));
    }

    #[test]
    fn what_cannot_be_counted_is_refused_with_its_place() {
        for (text, said) in [
            ("limits: [{requests: 1, window: 0s}]", "limits[0]: window"),
            ("limits: [{requests: 1, window: week}]", "week"),
            (
                "limits: [{requests: 1, window: 1s, keys: [{by: Header}]}]",
                "keys[0].name",
            ),
            ("limits: []\nglobal: {}", "provider"),
            (
                "limits: [{requests: 1, window: 10s}]\nglobal: {provider: x}",
                "1s, 1m, 1h or 24h, not in 10s",
            ),
            (
                "limits: [{requests: 1, window: 1s, burst: 2}]\nglobal: {provider: x}",
                "knows no bursts",
            ),
            (
                "limits: [{requests: 4294967296, window: 1s}]\nglobal: {provider: x}",
                "too many",
            ),
        ] {
            let made = read(text);
            assert!(
                made.as_ref().is_err_and(|it| it.contains(said)),
                "{text}: {made:?}"
            );
        }
    }
}
