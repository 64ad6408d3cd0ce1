//! RequestAuthentication: which tokens are good.
//!
//! A rule that cannot be read makes all of it refuse every token: a request that proves who it is with a token
//! nobody checked must not pass for one without.

use api::k8s::istio::request_authentication::{JwtRule, RequestAuthenticationSpec};
use api::waypoint as wire;

use super::duration;

/// Of a spec; its targets are filled in by who knows what stands there. Rules that cannot be read are told with the
/// rest: where they look for tokens is where tokens are refused.
pub fn authentication(spec: &RequestAuthenticationSpec) -> wire::Authentication {
    let rules = spec.jwt_rules.iter().enumerate();
    let faults = rules.filter_map(|(index, rule)| {
        let what = fault(rule)?;
        Some(format!("jwtRules[{index}]: {what}"))
    });
    let faults: Vec<String> = faults.collect();
    wire::Authentication {
        rules: spec.jwt_rules.iter().map(jwt).collect(),
        invalid: faults.join("; "),
        ..wire::Authentication::default()
    }
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
}
