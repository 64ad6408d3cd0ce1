//! RequestAuthentication: which tokens are good.
//!
//! A rule that cannot be read makes all of it refuse every token: a request that proves who it is with a token
//! nobody checked must not pass for one without.
//!
//! An issuer that is a service of the mesh may take nothing but the mesh's own TLS. Proxies are told which service has the
//! host of `jwksUri`, so that they ask it through the mesh.

use api::k8s::istio::request_authentication::{JwtRule, RequestAuthenticationSpec};
use api::waypoint as wire;
use http::Uri;

use super::duration;
use super::virtual_service::Found;

/// Of a spec; its targets are filled in by who knows what stands there. Rules that cannot be read are told with the
/// rest: where they look for tokens is where tokens are refused. `find`: the service of a host; `domain`: of Kubernetes'
/// services.
pub fn authentication(
    spec: &RequestAuthenticationSpec,
    find: &dyn Fn(&str) -> Option<Found>,
    domain: &str,
) -> wire::Authentication {
    let rules = spec.jwt_rules.iter().enumerate();
    let faults = rules.filter_map(|(index, rule)| {
        let what = fault(rule)?;
        Some(format!("jwtRules[{index}]: {what}"))
    });
    let faults: Vec<String> = faults.collect();
    let told = |rule: &JwtRule| wire::JwtRule {
        service: issuer(rule, find, domain),
        ..jwt(rule)
    };
    wire::Authentication {
        rules: spec.jwt_rules.iter().map(told).collect(),
        invalid: faults.join("; "),
        ..wire::Authentication::default()
    }
}

/// Hosts of which it matters who has them in the mesh: keys are fetched from there.
pub fn issuers(spec: &RequestAuthenticationSpec, domain: &str) -> Vec<String> {
    let places = spec.jwt_rules.iter().filter_map(place);
    places
        .flat_map(|(host, _)| candidates(&host, domain))
        .collect()
}

/// The service that keys are fetched from, if it is one and has that port.
fn issuer(
    rule: &JwtRule,
    find: &dyn Fn(&str) -> Option<Found>,
    domain: &str,
) -> Option<wire::ServiceRef> {
    let (host, port) = place(rule)?;
    let found = candidates(&host, domain)
        .into_iter()
        .find_map(|host| Some((find(&host)?, host)));
    let (found, hostname) = found.filter(|(found, _)| found.ports.contains(&port))?;
    Some(wire::ServiceRef {
        namespace: found.namespace,
        hostname,
        port,
    })
}

/// Host and port of where keys are; none where nothing is fetched, or from an address.
fn place(rule: &JwtRule) -> Option<(String, u32)> {
    let uri: Uri = rule.jwks_uri.parse().ok()?;
    let usual = match uri.scheme_str()? {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let host = uri.host().filter(|_| rule.jwks.is_empty())?;
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let named = !host.is_empty() && !host.starts_with('[');
    named.then_some((host, uri.port_u16().unwrap_or(usual).into()))
}

/// What a name may stand for where a proxy runs: itself, `name.namespace`, `name.namespace.svc`.
fn candidates(host: &str, domain: &str) -> [String; 3] {
    [
        host.to_owned(),
        format!("{host}.svc.{domain}"),
        format!("{host}.{domain}"),
    ]
}

/// Why a rule cannot be used.
fn fault(rule: &JwtRule) -> Option<String> {
    if rule.issuer.is_empty() {
        return Some("issuer is missing".to_owned());
    }
    if rule.jwks_uri.is_empty() && rule.jwks.is_empty() {
        return Some("neither jwks nor jwksUri; keys are not looked for at the issuer's address, name where they are".to_owned());
    }
    let timeout = duration::optional(rule.timeout.as_deref());
    timeout.err().map(|why| format!("timeout: {why}"))
}

fn jwt(rule: &JwtRule) -> wire::JwtRule {
    let from_headers = rule.from_headers.iter();
    let claims = rule.output_claim_to_headers.iter();
    wire::JwtRule {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        jwks_uri: rule.jwks_uri.clone(),
        jwks: rule.jwks.clone(),
        from_headers: from_headers
            .map(|it| wire::JwtLocation {
                name: it.name.clone(),
                prefix: it.prefix.clone(),
            })
            .collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        output_payload_header: rule.output_payload_to_header.clone(),
        forward: rule.forward_original_token,
        claims_to_headers: claims
            .map(|it| wire::ClaimHeader {
                header: it.header.clone(),
                claim: it.claim.clone(),
            })
            .collect(),
        fetch_timeout: duration::optional(rule.timeout.as_deref()).unwrap_or_default(),
        spaces_in_scope: true,
        space_delimited_claims: rule.space_delimited_claims.clone(),
        service: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rule: JwtRule) -> RequestAuthenticationSpec {
        RequestAuthenticationSpec {
            jwt_rules: vec![rule],
            ..RequestAuthenticationSpec::default()
        }
    }

    #[test]
    fn a_rule_says_where_its_keys_are_or_refuses_every_token() {
        let good = JwtRule {
            issuer: "me".to_owned(),
            jwks: "{}".to_owned(),
            timeout: Some("2s".to_owned()),
            ..JwtRule::default()
        };
        let authentication = |spec: &_| authentication(spec, &|_| None, "cluster.local");
        let made = authentication(&spec(good.clone()));
        assert_eq!(made.invalid, "");
        assert_eq!(made.rules[0].fetch_timeout, 2_000);
        for (bad, said) in [
            (
                JwtRule {
                    jwks: String::new(),
                    ..good.clone()
                },
                "jwksUri",
            ),
            (
                JwtRule {
                    issuer: String::new(),
                    ..good.clone()
                },
                "issuer",
            ),
            (
                JwtRule {
                    timeout: Some("soon".to_owned()),
                    ..good.clone()
                },
                "soon",
            ),
        ] {
            let made = authentication(&spec(bad));
            assert!(
                made.rules.len() == 1 && made.invalid.contains(said),
                "{made:?}"
            );
        }
    }

    #[test]
    fn keys_that_a_service_of_the_mesh_has_are_fetched_from_it_by_its_name() {
        let find = |host: &str| {
            let namespace = match host {
                "keys.auth.svc.cluster.local" => "auth",
                "issuer.example" => "shop",
                _ => return None,
            };
            Some(Found {
                namespace: namespace.to_owned(),
                ports: vec![80, 443, 8080],
            })
        };
        let keys = "auth/keys.auth.svc.cluster.local";
        for (uri, expected) in [
            ("http://keys.auth.svc.cluster.local/k", format!("{keys}:80")),
            (
                "http://Keys.Auth.svc.cluster.local.:8080/",
                format!("{keys}:8080"),
            ),
            ("http://keys.auth:8080/k", format!("{keys}:8080")),
            ("https://keys.auth.svc/k?x=1", format!("{keys}:443")),
            (
                "https://issuer.example/k",
                "shop/issuer.example:443".to_owned(),
            ),
            // Another port is somebody else's.
            ("http://keys.auth:9090/k", String::new()),
            // Whose namespace it would be, nobody says.
            ("http://keys/k", String::new()),
            ("http://other.example/k", String::new()),
            ("http://10.0.0.1:8080/k", String::new()),
            ("http://[fd00::1]:8080/k", String::new()),
            ("file:///etc/passwd", String::new()),
            ("nothing", String::new()),
        ] {
            let rule = JwtRule {
                issuer: "me".to_owned(),
                jwks_uri: uri.to_owned(),
                ..JwtRule::default()
            };
            let told = |rule: JwtRule| {
                let made = authentication(&spec(rule), &find, "cluster.local");
                let service = made.rules[0].service.clone();
                service.map_or_else(String::new, |it| {
                    format!("{}/{}:{}", it.namespace, it.hostname, it.port)
                })
            };
            assert_eq!(told(rule.clone()), expected, "{uri}");
            let inline = JwtRule {
                jwks: "{}".to_owned(),
                ..rule
            };
            assert_eq!(told(inline), "", "{uri}");
        }
    }
}
