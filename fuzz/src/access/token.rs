//! 1. the bytes are a token, in a header, a cookie and a parameter
//! 2. nobody who has not the key makes one that is good

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use api::waypoint as wire;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Uri, header};
use waypoint::authenticate::{Fetch, Fetched, KeySets, Tokens};

/// The public key of RFC 7517's first example: nothing is signed with it for this issuer.
const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

/// See the file's head.
pub fn token(data: &[u8]) {
    static TOKENS: OnceLock<Tokens> = OnceLock::new();
    let tokens = TOKENS.get_or_init(tokens);
    let text = String::from_utf8_lossy(data);
    let uri: Uri = format!("/?access_token={text}").parse().unwrap_or_default();
    let plain = Uri::from_static("/");
    good(tokens, header::HOST, b"", &uri);
    good(
        tokens,
        header::AUTHORIZATION,
        &[b"Bearer ", data].concat(),
        &plain,
    );
    good(
        tokens,
        header::COOKIE,
        &[b"a=b; session=", data].concat(),
        &plain,
    );
}

fn good(tokens: &Tokens, name: header::HeaderName, value: &[u8], uri: &Uri) {
    let mut headers = HeaderMap::new();
    let Ok(value) = HeaderValue::from_bytes(value) else {
        return;
    };
    headers.insert(name, value);
    let checked = tokens
        .check(&headers, uri, SystemTime::now())
        .now_or_never();
    let found = checked.expect("its keys are at hand");
    assert!(!matches!(found, Ok(Some(_))), "a token that nobody signed");
}

fn tokens() -> Tokens {
    struct Nowhere;
    impl Fetch for Nowhere {
        fn fetch(&self, _: Uri, _: Duration) -> BoxFuture<'_, Fetched> {
            Box::pin(async { Err("nowhere".to_owned()) })
        }
    }
    let rule = wire::JwtRule {
        issuer: "https://issuer.example".to_owned(),
        jwks: JWKS.to_owned(),
        ..Default::default()
    };
    let by_cookie = wire::JwtRule {
        from_cookies: vec!["session".to_owned()],
        ..rule.clone()
    };
    let policy = wire::Authentication {
        rules: vec![rule, by_cookie],
        ..Default::default()
    };
    let tokens = Tokens::compile(
        &[(&wire::Origin::default(), &policy)],
        &KeySets::new(Arc::new(Nowhere)),
    );
    assert_eq!(tokens.complaints(), []);
    tokens
}
