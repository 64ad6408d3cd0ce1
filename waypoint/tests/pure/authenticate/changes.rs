//! What a good token changes about a request.

use api::waypoint as wire;
use http::{HeaderMap, Uri};
use serde_json::json;

use super::signer::*;

fn changed(rule: wire::JwtRule, headers: &HeaderMap, uri: &str) -> (HeaderMap, String) {
    let tokens = tokens(vec![rule]);
    let mut headers = headers.clone();
    tokens.strip(&mut headers);
    let verified = check(&tokens, &headers, uri).unwrap().unwrap();
    let mut uri: Uri = uri.parse().unwrap();
    verified.apply(&mut headers, &mut uri);
    (headers, uri.to_string())
}

#[test]
fn the_app_does_not_get_the_token_unless_that_is_asked_for() {
    let token = EC.token("me");
    let (headers, _) = changed(rule(), &bearer(&token), "/");
    assert!(headers.is_empty());
    let forwarded = wire::JwtRule {
        forward: true,
        ..rule()
    };
    let (headers, _) = changed(forwarded, &bearer(&token), "/");
    assert_eq!(headers, bearer(&token));
    for (uri, expected) in [
        (format!("/a?access_token={token}"), "/a"),
        (format!("/a?x=1&access_token={token}&y=%20"), "/a?x=1&y=%20"),
        (
            format!("http://h/a?access%5Ftoken={token}&y"),
            "http://h/a?y",
        ),
    ] {
        assert_eq!(changed(rule(), &HeaderMap::new(), &uri).1, expected);
    }
}

#[test]
fn a_cookie_is_taken_out_of_the_others() {
    let by_cookie = wire::JwtRule {
        from_cookies: vec!["s".to_owned()],
        ..rule()
    };
    let mut headers = HeaderMap::new();
    headers.append(
        "cookie",
        format!("a=1; s={}; b=2", EC.token("me")).parse().unwrap(),
    );
    headers.append("cookie", "c=3".parse().unwrap());
    let (headers, _) = changed(by_cookie.clone(), &headers, "/");
    let left: Vec<_> = headers.get_all("cookie").iter().collect();
    assert_eq!(left, ["a=1; b=2", "c=3"]);
    let mut alone = HeaderMap::new();
    alone.append("cookie", format!("s={}", EC.token("me")).parse().unwrap());
    let (headers, _) = changed(by_cookie, &alone, "/");
    assert!(headers.is_empty());
}

#[test]
fn claims_become_headers_and_nobody_else_writes_those() {
    let claim = |header: &str, claim: &str| wire::ClaimHeader {
        header: header.to_owned(),
        claim: claim.to_owned(),
    };
    let rule = wire::JwtRule {
        output_payload_header: "X-Payload".to_owned(),
        claims_to_headers: vec![
            claim("x-sub", "sub"),
            claim("x-level", "level"),
            claim("x-admin", "admin"),
            claim("x-city", "address.city"),
            claim("x-list", "list"),
            claim("x-missing", "missing"),
            claim("x-odd", "odd"),
        ],
        ..rule()
    };
    let payload = json!({
        "iss": ISSUER, "sub": "me", "level": 5, "admin": true, "address": {"city": "Köln"}, "list": ["a"], "odd": "a\nb",
    });
    let token = EC.sign(&payload);
    let mut headers = bearer(&token);
    for name in [
        "x-payload",
        "x-sub",
        "x-level",
        "x-list",
        "x-missing",
        "x-odd",
    ] {
        headers.insert(name, "forged".parse().unwrap());
        headers.append(name, "twice".parse().unwrap());
    }
    let (headers, _) = changed(rule.clone(), &headers, "/");
    assert_eq!(headers["x-payload"], token.split('.').nth(1).unwrap());
    assert_eq!(headers["x-sub"], "me");
    assert_eq!(headers["x-level"], "5");
    assert_eq!(headers["x-admin"], "true");
    assert_eq!(headers["x-city"].as_bytes(), "Köln".as_bytes());
    assert_eq!(headers.len(), 5, "{headers:?}");

    // Without a token, what a client made up goes as well.
    let mut forged = HeaderMap::new();
    forged.insert("x-sub", "root".parse().unwrap());
    forged.insert("x_sub", "root".parse().unwrap());
    forged.insert("x_Level", "9".parse().unwrap());
    tokens(vec![rule]).strip(&mut forged);
    assert!(forged.is_empty());
}

#[test]
fn scopes_are_lists_where_that_is_asked_for() {
    let rule = wire::JwtRule {
        spaces_in_scope: true,
        space_delimited_claims: vec!["roles".to_owned()],
        ..rule()
    };
    let payload = json!({"iss": ISSUER, "sub": "me", "scope": "a  b", "permission": "x", "roles": "c d", "other": "a b"});
    let verified = check(&tokens(vec![rule]), &bearer(&EC.sign(&payload)), "/")
        .unwrap()
        .unwrap();
    assert_eq!(verified.claims.all["scope"], json!(["a", "b"]));
    assert_eq!(verified.claims.all["permission"], json!(["x"]));
    assert_eq!(verified.claims.all["roles"], json!(["c", "d"]));
    assert_eq!(verified.claims.all["other"], "a b");
}
