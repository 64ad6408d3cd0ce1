//! Where tokens are found.

use api::waypoint as wire;
use http::HeaderMap;
use waypoint::authenticate::{Fault, Tokens};

use super::signer::*;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, value.parse().unwrap());
    }
    headers
}

fn found(rule: wire::JwtRule, lines: &[(&str, &str)], uri: &str) -> Result<Option<String>, Fault> {
    let verified = check(&tokens(vec![rule]), &headers(lines), uri)?;
    Ok(verified.map(|verified| verified.claims.subject.clone()))
}

#[test]
fn the_usual_places_are_a_header_and_a_parameter() {
    let token = EC.token("me");
    let me = Ok(Some("me".to_owned()));
    let bearer = format!("Bearer {token}");
    assert_eq!(found(rule(), &[("authorization", &bearer)], "/"), me);
    assert_eq!(
        found(
            rule(),
            &[("authorization", &bearer.replace("Bearer", "bearer"))],
            "/"
        ),
        me
    );
    assert_eq!(
        found(
            rule(),
            &[("authorization", &bearer.replace("Bearer", "BEARER "))],
            "/"
        ),
        me
    );
    assert_eq!(
        found(rule(), &[], &format!("/?a=b&access_token={token}&c")),
        me
    );
    assert_eq!(
        found(
            rule(),
            &[],
            &format!("/?access%5Ftoken={}", token.replace('.', "%2E"))
        ),
        me
    );
    assert_eq!(found(rule(), &[("authorization", &token)], "/"), Ok(None));
    assert_eq!(
        found(rule(), &[("x-token", &token)], &format!("/?token={token}")),
        Ok(None)
    );
    assert_eq!(
        found(rule(), &[("cookie", &format!("access_token={token}"))], "/"),
        Ok(None)
    );
}

#[test]
fn other_places_are_looked_at_instead() {
    let token = EC.token("me");
    let me = Ok(Some("me".to_owned()));
    let location = |name: &str, prefix: &str| wire::JwtLocation {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
    };
    let elsewhere = || wire::JwtRule {
        from_headers: vec![location("X-Token", ""), location("x-jwt", "Token ")],
        from_params: vec!["jwt".to_owned()],
        from_cookies: vec!["session".to_owned()],
        ..rule()
    };
    assert_eq!(found(elsewhere(), &[("x-token", &token)], "/"), me);
    assert_eq!(
        found(elsewhere(), &[("x-jwt", &format!("Token {token}"))], "/"),
        me
    );
    assert_eq!(found(elsewhere(), &[], &format!("/?jwt={token}")), me);
    let cookie = format!("a=b; session={token}; c=d");
    assert_eq!(found(elsewhere(), &[("cookie", &cookie)], "/"), me);
    assert_eq!(
        found(
            elsewhere(),
            &[
                ("cookie", "a=b"),
                ("cookie", &format!("session=\"{token}\""))
            ],
            "/"
        ),
        me
    );
    assert_eq!(
        found(
            elsewhere(),
            &[("authorization", &format!("Bearer {token}"))],
            "/"
        ),
        Ok(None)
    );
    assert_eq!(found(elsewhere(), &[("x-jwt", &token)], "/"), Ok(None));
}

#[test]
fn a_place_with_two_is_refused() {
    let bearer = format!("Bearer {}", EC.token("me"));
    let other = format!("Bearer {}", STRANGER.token("root"));
    assert_eq!(
        found(
            rule(),
            &[("authorization", &bearer), ("authorization", &other)],
            "/"
        ),
        Err(Fault::Twice)
    );
    assert_eq!(
        found(
            rule(),
            &[("authorization", "Basic x"), ("authorization", &other)],
            "/"
        ),
        Err(Fault::Twice)
    );
    let token = EC.token("me");
    assert_eq!(
        found(
            rule(),
            &[],
            &format!("/?access_token={token}&access_token=x")
        ),
        Err(Fault::Twice)
    );
    let cookies = wire::JwtRule {
        from_cookies: vec!["s".to_owned()],
        ..rule()
    };
    assert_eq!(
        found(
            cookies,
            &[("cookie", &format!("s={token}")), ("cookie", "s=x")],
            "/"
        ),
        Err(Fault::Twice)
    );
}

#[test]
fn every_token_must_be_good_and_the_first_rules_counts() {
    let other = wire::JwtRule {
        from_headers: vec![wire::JwtLocation {
            name: "x-other".to_owned(),
            prefix: String::new(),
        }],
        ..rule()
    };
    let both = |first: &str, second: &str| {
        let lines = headers(&[
            ("authorization", &format!("Bearer {first}")),
            ("x-other", second),
        ]);
        let verified = check(&tokens(vec![other.clone(), rule()]), &lines, "/")?;
        Ok(verified.map(|verified| verified.claims.subject.clone()))
    };
    assert_eq!(
        both(&EC.token("a"), &ED.token("b")),
        Ok(Some("b".to_owned())),
        "the first rule's"
    );
    assert_eq!(both(&EC.token("a"), "x"), Err(Fault::Form));
    assert_eq!(
        both(&STRANGER.token("a"), &ED.token("b")),
        Err(Fault::Signature)
    );
}

#[test]
fn rules_that_cannot_be_read_refuse_tokens_and_nothing_else() {
    let broken = |change: fn(&mut wire::JwtRule)| {
        let mut broken = rule();
        change(&mut broken);
        broken
    };
    for rule in [
        broken(|rule| rule.issuer.clear()),
        broken(|rule| rule.jwks = "{}".to_owned()),
        broken(|rule| rule.jwks = r#"{"keys":[{"kty":"oct","k":"eA"}]}"#.to_owned()),
        broken(|rule| rule.output_payload_header = "a b".to_owned()),
        broken(|rule| rule.output_payload_header = "Host".to_owned()),
        broken(|rule| {
            rule.claims_to_headers = vec![wire::ClaimHeader {
                header: "content-length".to_owned(),
                claim: "sub".to_owned(),
            }];
        }),
        broken(|rule| {
            rule.jwks.clear();
            rule.jwks_uri = "http://169.254.169.254/latest".to_owned();
        }),
        broken(|rule| {
            rule.jwks.clear();
            rule.jwks_uri = "file:///etc/passwd".to_owned();
        }),
        broken(|rule| {
            rule.jwks.clear();
            rule.issuer = "no address".to_owned();
        }),
        broken(|rule| {
            rule.from_headers = vec![wire::JwtLocation {
                name: "a b".to_owned(),
                prefix: String::new(),
            }];
        }),
    ] {
        let tokens = tokens(vec![rule.clone()]);
        assert_eq!(tokens.complaints().len(), 1, "{rule:?}");
        let policy = wire::Authentication {
            rules: vec![rule.clone()],
            ..Default::default()
        };
        let complaint = Tokens::check_policy(&policy).unwrap_err();
        assert_eq!(complaint, tokens.complaints()[0].1);
        assert_eq!(
            subject(&tokens, &EC.token("me")),
            Err(Fault::Policy),
            "{rule:?}"
        );
        assert!(check(&tokens, &HeaderMap::new(), "/").unwrap().is_none());
    }
}

#[test]
fn a_policy_that_cannot_be_read_refuses_tokens_wherever_they_may_be() {
    let policy = wire::Authentication {
        rules: vec![wire::JwtRule {
            from_params: vec!["jwt".to_owned()],
            ..rule()
        }],
        invalid: "no such target".to_owned(),
        ..Default::default()
    };
    let origin = wire::Origin::default();
    let sets = waypoint::authenticate::KeySets::new(std::sync::Arc::new(Nowhere));
    let tokens = Tokens::compile(&[(&origin, &policy)], &sets);
    let token = EC.token("me");
    assert_eq!(subject(&tokens, &token), Err(Fault::Policy));
    let by_parameter = check(&tokens, &HeaderMap::new(), &format!("/?jwt={token}"));
    assert_eq!(by_parameter.unwrap_err(), Fault::Policy);
    assert!(check(&tokens, &HeaderMap::new(), "/").unwrap().is_none());
}
