//! Which tokens are good.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode};
use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use serde_json::{Value, json};
use waypoint::authenticate::{Fault, KeyError, Keys, Refused};

use super::signer::*;

#[test]
fn a_token_of_each_algorithm_is_good() {
    let tokens = tokens(vec![rule()]);
    for signer in [&*RSA, &*EC, &*EC384, &*ED] {
        assert_eq!(subject(&tokens, &signer.token("me")), Ok("me".to_owned()));
        // Again: from memory.
        assert_eq!(subject(&tokens, &signer.token("me")), Ok("me".to_owned()));
    }
    for algorithm in [
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ] {
        let header = json!({"alg": format!("{algorithm:?}"), "kid": "rsa"});
        let token = RSA.sign_as(algorithm, &header, &json!({"iss": ISSUER, "sub": "me"}));
        assert_eq!(
            subject(&tokens, &token),
            Ok("me".to_owned()),
            "{algorithm:?}"
        );
    }
}

#[test]
fn no_token_is_nobody() {
    let tokens = tokens(vec![rule()]);
    assert!(
        check(&tokens, &HeaderMap::new(), "/?x=1")
            .unwrap()
            .is_none()
    );
    let mut basic = HeaderMap::new();
    basic.insert("authorization", "Basic dTpw".parse().unwrap());
    assert!(check(&tokens, &basic, "/").unwrap().is_none());
}

#[test]
fn a_token_is_good_from_its_beginning_to_its_end() {
    let tokens = tokens(vec![rule()]);
    let judged = |claims: Value| {
        let mut payload = json!({"iss": ISSUER, "sub": "me"});
        payload
            .as_object_mut()
            .unwrap()
            .extend(claims.as_object().unwrap().clone());
        subject(&tokens, &EC.sign(&payload)).map(drop)
    };
    assert_eq!(judged(json!({})), Ok(()));
    assert_eq!(judged(json!({"exp": NOW + 1})), Ok(()));
    assert_eq!(judged(json!({"exp": NOW - 60})), Ok(()), "clocks differ");
    assert_eq!(judged(json!({"exp": NOW - 61})), Err(Fault::Expired));
    assert_eq!(judged(json!({"exp": NOW as f64 + 0.5})), Ok(()));
    assert_eq!(judged(json!({"exp": 0})), Err(Fault::Expired));
    assert_eq!(judged(json!({"exp": -1})), Err(Fault::Expired));
    assert_eq!(judged(json!({"exp": 1e300})), Ok(()));
    assert_eq!(judged(json!({"exp": "2100-01-01"})), Err(Fault::Payload));
    assert_eq!(judged(json!({"exp": null})), Err(Fault::Payload));
    assert_eq!(judged(json!({"nbf": NOW + 60})), Ok(()), "clocks differ");
    assert_eq!(judged(json!({"nbf": NOW + 61})), Err(Fault::NotYet));
    assert_eq!(judged(json!({"nbf": "soon"})), Err(Fault::Payload));
    assert_eq!(judged(json!({"sub": 7})), Err(Fault::Payload));
    assert_eq!(judged(json!({"aud": 7})), Err(Fault::Payload));
    assert_eq!(judged(json!({"aud": [7]})), Err(Fault::Payload));
}

#[test]
fn a_token_that_was_good_is_not_when_it_has_expired() {
    let tokens = tokens(vec![rule()]);
    let token = EC.sign(&json!({"iss": ISSUER, "sub": "me", "exp": NOW}));
    assert!(subject(&tokens, &token).is_ok());
    let later = now() + std::time::Duration::from_secs(61);
    let uri = "/".parse().unwrap();
    let headers = bearer(&token);
    let checked =
        futures_util::FutureExt::now_or_never(tokens.check(&headers, &uri, later)).unwrap();
    assert_eq!(checked.unwrap_err().fault, Fault::Expired);
}

#[test]
fn only_keys_of_the_issuer_sign() {
    let tokens = tokens(vec![rule()]);
    assert_eq!(
        subject(&tokens, &STRANGER.token("me")),
        Err(Fault::Signature)
    );
    let payload = json!({"iss": ISSUER, "sub": "me"});
    let unknown = EC.sign_as(
        Algorithm::ES256,
        &json!({"alg": "ES256", "kid": "other"}),
        &payload,
    );
    assert_eq!(subject(&tokens, &unknown), Err(Fault::NoKey));
    // Without a key's name all fitting ones are tried.
    let nameless = EC.sign_as(Algorithm::ES256, &json!({"alg": "ES256"}), &payload);
    assert!(subject(&tokens, &nameless).is_ok());
    // The name of a key of another kind.
    let confused = EC.sign_as(
        Algorithm::ES256,
        &json!({"alg": "ES256", "kid": "rsa"}),
        &payload,
    );
    assert_eq!(subject(&tokens, &confused), Err(Fault::NoKey));
    let wrong_curve = EC.sign_as(
        Algorithm::ES256,
        &json!({"alg": "ES384", "kid": "ec"}),
        &payload,
    );
    assert_eq!(subject(&tokens, &wrong_curve), Err(Fault::NoKey));
}

#[test]
fn neither_none_nor_a_shared_secret_is_an_algorithm() {
    let tokens = tokens(vec![rule()]);
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let payload = part(json!({"iss": ISSUER, "sub": "me"}));
    for alg in [
        "none", "None", "NONE", "nOnE", "HS256", "HS384", "HS512", "ES512", "ES256K", "RSA1_5", "",
        "rs256",
    ] {
        let token = format!(
            "{}.{payload}.{}",
            part(json!({"alg": alg})),
            part(json!("x"))
        );
        assert_eq!(subject(&tokens, &token), Err(Fault::Algorithm), "{alg}");
    }
    for header in [
        json!({}),
        json!({"alg": 1}),
        json!({"alg": ["RS256"]}),
        json!({"alg": null}),
    ] {
        let token = format!("{}.{payload}.eA", part(header));
        assert_eq!(subject(&tokens, &token), Err(Fault::Algorithm));
    }
    // The public key as a shared secret: the oldest trick.
    let secret = jsonwebtoken::EncodingKey::from_secret(jwks().as_bytes());
    let signed = format!("{}.{payload}", part(json!({"alg": "HS256", "kid": "rsa"})));
    let signature =
        jsonwebtoken::crypto::sign(signed.as_bytes(), &secret, Algorithm::HS256).unwrap();
    assert_eq!(
        subject(&tokens, &format!("{signed}.{signature}")),
        Err(Fault::Algorithm)
    );
    // No signature at all.
    let token = format!("{}.{payload}.", part(json!({"alg": "RS256"})));
    assert_eq!(subject(&tokens, &token), Err(Fault::Form));
}

#[test]
fn a_token_that_cannot_be_read_is_not_good() {
    let tokens = tokens(vec![rule()]);
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"alg":"ES256"}"#);
    let payload = part(&json!({"iss": ISSUER}).to_string());
    let deep = format!("{{\"iss\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    for (token, fault) in [
        ("x".to_owned(), Fault::Form),
        ("..".to_owned(), Fault::Form),
        (format!("{header}.{payload}"), Fault::Form),
        (format!("{header}.{payload}.eA.eA"), Fault::Form),
        (format!("*.{payload}.eA"), Fault::Header),
        (format!("{}.{payload}.eA", part("[]")), Fault::Header),
        (format!("{}.{payload}.eA", part("{")), Fault::Header),
        (format!("{header}=.{payload}.eA"), Fault::Header),
        (
            format!("{}.{payload}.eA", part(r#"{"alg":"ES256","kid":7}"#)),
            Fault::Header,
        ),
        (
            format!(
                "{}.{payload}.eA",
                part(r#"{"alg":"ES256","crit":["b64"],"b64":false}"#)
            ),
            Fault::Critical,
        ),
        (format!("{header}.*.eA"), Fault::Payload),
        (format!("{header}.{}.eA", part("7")), Fault::Payload),
        (format!("{header}.{}.eA", part("\u{fffd}x")), Fault::Payload),
        (format!("{header}.{}.eA", part(&deep)), Fault::Payload),
        (format!("{header}.{payload}.*"), Fault::Signature),
        (format!("{header}.{payload}.eA"), Fault::Signature),
        (
            format!("{header}.{}.eA", part(&"x".repeat(17_000))),
            Fault::TooLong,
        ),
        (format!("{header}.{}.eA", part("{}")), Fault::Issuer),
        (
            format!("{header}.{}.eA", part(r#"{"iss":7}"#)),
            Fault::Issuer,
        ),
    ] {
        assert_eq!(
            subject(&tokens, &token),
            Err(fault),
            "{}",
            &token[..token.len().min(80)]
        );
    }
}

#[test]
fn one_changed_byte_is_noticed() {
    let tokens = tokens(vec![rule()]);
    let token = EC.token("me");
    assert!(subject(&tokens, &token).is_ok());
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(subject(&tokens, &changed).is_err(), "byte {at}");
    }
}

#[test]
fn a_token_is_for_its_audiences() {
    let for_shop = wire_rule(&["shop", "bank"]);
    let tokens = tokens(vec![for_shop]);
    let judged = |audiences: Value| {
        let payload = json!({"iss": ISSUER, "sub": "me", "aud": audiences});
        subject(&tokens, &EC.sign(&payload)).map(drop)
    };
    assert_eq!(judged(json!("shop")), Ok(()));
    assert_eq!(judged(json!(["x", "bank"])), Ok(()));
    assert_eq!(judged(json!("Shop")), Err(Fault::Audience));
    assert_eq!(judged(json!([])), Err(Fault::Audience));
    assert_eq!(subject(&tokens, &EC.token("me")), Err(Fault::Audience));
}

fn wire_rule(audiences: &[&str]) -> api::waypoint::JwtRule {
    api::waypoint::JwtRule {
        audiences: audiences
            .iter()
            .map(|&audience| audience.to_owned())
            .collect(),
        ..rule()
    }
}

#[test]
fn one_of_several_rules_is_enough() {
    let other = api::waypoint::JwtRule {
        issuer: "other".to_owned(),
        jwks: json!({"keys": [STRANGER.public]}).to_string(),
        ..Default::default()
    };
    let tokens = tokens(vec![wire_rule(&["shop"]), other, wire_rule(&["bank"])]);
    let of = |signer: &Signer, issuer: &str, audience: &str| {
        subject(
            &tokens,
            &signer.sign(&json!({"iss": issuer, "sub": "me", "aud": audience})),
        )
        .map(drop)
    };
    assert_eq!(of(&EC, ISSUER, "shop"), Ok(()));
    assert_eq!(of(&EC, ISSUER, "bank"), Ok(()));
    assert_eq!(of(&STRANGER, "other", "any"), Ok(()));
    // Keys of one issuer do not sign for another.
    assert_eq!(of(&STRANGER, ISSUER, "shop"), Err(Fault::Signature));
    assert_eq!(of(&EC, "other", "shop"), Err(Fault::Signature),);
    assert_eq!(of(&EC, ISSUER, "x"), Err(Fault::Audience));
    assert_eq!(of(&EC, "third", "shop"), Err(Fault::Issuer));
}

#[test]
fn answers_say_why_in_the_words_that_are_known() {
    let refused = |fault| Refused { fault };
    let expired = refused(Fault::Expired);
    assert_eq!(expired.to_string(), "Jwt is expired");
    assert_eq!(expired.status(), StatusCode::UNAUTHORIZED);
    let challenge = expired.challenge("http", "shop", "/a").unwrap();
    assert_eq!(
        challenge,
        "Bearer realm=\"http://shop/a\", error=\"invalid_token\""
    );
    let odd = expired.challenge("http", "shop", "/a\", x=\"").unwrap();
    assert_eq!(odd, "Bearer realm=\"shop\", error=\"invalid_token\"");
    let audience = refused(Fault::Audience);
    assert_eq!(audience.status(), StatusCode::FORBIDDEN);
    assert_eq!(audience.challenge("http", "shop", "/"), None);
}

#[test]
fn a_key_set_has_a_key_that_can_be_used() {
    let parsed = |document: Value| Keys::parse(document.to_string().as_bytes()).map(drop);
    let with = |name: &str, value: Value| {
        let mut key = EC.public.clone();
        key[name] = value;
        json!({"keys": [key]})
    };
    assert_eq!(parsed(with("use", json!("sig"))), Ok(()));
    assert_eq!(parsed(with("key_ops", json!(["verify"]))), Ok(()));
    assert_eq!(parsed(with("use", json!("enc"))), Err(KeyError::NoKey));
    assert_eq!(
        parsed(with("key_ops", json!(["encrypt"]))),
        Err(KeyError::NoKey)
    );
    assert_eq!(parsed(with("kty", json!("oct"))), Err(KeyError::NoKey));
    assert_eq!(parsed(with("crv", json!("P-521"))), Err(KeyError::NoKey));
    assert_eq!(parsed(with("x", json!(null))), Err(KeyError::NoKey));
    assert_eq!(parsed(json!({"keys": []})), Err(KeyError::NoKey));
    assert_eq!(
        parsed(json!({"keys": [{"kty": "oct", "k": "eA", "alg": "HS256"}]})),
        Err(KeyError::NoKey)
    );
    assert!(matches!(parsed(json!({})), Err(KeyError::Json(_))));
    assert!(matches!(parsed(json!([])), Err(KeyError::Json(_))));
    assert_eq!(
        parsed(json!({"keys": vec![json!({}); 257]})),
        Err(KeyError::TooMany)
    );
    // A key for one algorithm only is for that one.
    let only = api::waypoint::JwtRule {
        jwks: with("alg", json!("ES384")).to_string(),
        ..rule()
    };
    assert_eq!(
        subject(&tokens(vec![only]), &EC.token("me")),
        Err(Fault::NoKey)
    );
}

proptest! {
    #[test]
    fn no_token_panics(text in "[ -~]{0,60}", parts in proptest::collection::vec("[ -~]{0,20}", 0..5)) {
        let tokens = tokens(vec![rule()]);
        prop_assert!(subject_or_none(&tokens, &text).is_none());
        let coded: Vec<String> = parts.iter().map(|part| URL_SAFE_NO_PAD.encode(part)).collect();
        prop_assert!(subject_or_none(&tokens, &coded.join(".")).is_none());
    }
}

fn subject_or_none(tokens: &waypoint::authenticate::Tokens, text: &str) -> Option<String> {
    let verified = check(tokens, &bearer(text), "/").ok().flatten();
    verified.map(|verified| verified.claims.subject.clone())
}

#[test]
fn a_token_that_is_known_is_good_only_where_it_is_good() {
    let sets = waypoint::authenticate::KeySets::new(std::sync::Arc::new(Nowhere));
    let shop = tokens_of(vec![wire_rule(&["shop"])], &sets);
    let bank = tokens_of(vec![wire_rule(&["bank"])], &sets);
    let other = api::waypoint::JwtRule {
        issuer: "other".to_owned(),
        ..rule()
    };
    let other = tokens_of(vec![other], &sets);
    let stranger = api::waypoint::JwtRule {
        jwks: json!({"keys": [STRANGER.public]}).to_string(),
        ..rule()
    };
    let stranger = tokens_of(vec![stranger], &sets);
    let token = EC.sign(&json!({"iss": ISSUER, "sub": "me", "aud": "shop"}));
    for _ in 0..2 {
        assert!(subject(&shop, &token).is_ok());
        assert_eq!(subject(&bank, &token), Err(Fault::Audience));
        assert_eq!(subject(&other, &token), Err(Fault::Issuer));
        assert_eq!(subject(&stranger, &token), Err(Fault::Signature));
    }
    // More than are remembered.
    for number in 0..3000 {
        let token = ED.sign(&json!({"iss": ISSUER, "sub": number.to_string(), "aud": "shop"}));
        assert_eq!(subject(&shop, &token), Ok(number.to_string()));
    }
    assert!(subject(&shop, &token).is_ok());
}
