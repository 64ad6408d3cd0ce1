//! Keys that are fetched, on a clock that is moved.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::waypoint as wire;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Uri;
use serde_json::{Value, json};
use tokio::time::{advance, sleep};
use waypoint::authenticate::{Fault, Fetch, Fetched, KeySets, Tokens};

use super::signer::*;

/// Issuers' documents, and how often they were asked for.
#[derive(Clone, Default)]
struct Web {
    documents: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<Mutex<Vec<String>>>,
    delay: Duration,
}

impl Web {
    fn put(&self, uri: &str, document: &Value) {
        self.documents
            .lock()
            .unwrap()
            .insert(uri.to_owned(), document.to_string());
    }

    fn close(&self) {
        self.documents.lock().unwrap().clear();
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Fetch for Web {
    fn fetch(&self, uri: Uri, _: Duration) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(uri.to_string());
            sleep(self.delay).await;
            let found = self
                .documents
                .lock()
                .unwrap()
                .get(&uri.to_string())
                .cloned();
            found.map(Bytes::from).ok_or_else(|| "closed".to_owned())
        })
    }
}

const KEYS: &str = "https://issuer.example/keys";

fn fetched() -> wire::JwtRule {
    wire::JwtRule {
        jwks: String::new(),
        jwks_uri: KEYS.to_owned(),
        ..rule()
    }
}

fn with(web: &Web, rule: wire::JwtRule) -> Tokens {
    tokens_of(vec![rule], &KeySets::new(Arc::new(web.clone())))
}

async fn judged(tokens: &Tokens, token: &str) -> Result<(), Fault> {
    let (headers, uri) = (bearer(token), Uri::from_static("/"));
    let checked = tokens.check(&headers, &uri, now()).await;
    checked.map(drop).map_err(|refused| refused.fault)
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_first_keys() {
    let web = Web {
        delay: Duration::from_secs(2),
        ..Web::default()
    };
    web.put(KEYS, &json!({"keys": [EC.public]}));
    let tokens = with(&web, fetched());
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
    assert_eq!(judged(&tokens, &EC.token("you")).await, Ok(()));
    assert_eq!(web.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_no_longer_than_the_rule_says() {
    let web = Web {
        delay: Duration::from_secs(9),
        ..Web::default()
    };
    web.put(KEYS, &json!({"keys": [EC.public]}));
    let rule = wire::JwtRule {
        fetch_timeout: 1000,
        ..fetched()
    };
    let tokens = with(&web, rule);
    let began = tokio::time::Instant::now();
    assert_eq!(
        judged(&tokens, &EC.token("me")).await,
        Err(Fault::Unfetched)
    );
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    sleep(Duration::from_secs(9)).await;
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn without_keys_tokens_are_refused_at_once_and_never_believed() {
    let web = Web::default();
    let tokens = with(&web, fetched());
    assert_eq!(
        judged(&tokens, &EC.token("me")).await,
        Err(Fault::Unfetched)
    );
    let began = tokio::time::Instant::now();
    assert_eq!(
        judged(&tokens, &EC.token("me")).await,
        Err(Fault::Unfetched)
    );
    assert_eq!(began.elapsed(), Duration::ZERO, "failing is known");
    web.put(KEYS, &json!({"keys": "none"}));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(
        judged(&tokens, &EC.token("me")).await,
        Err(Fault::Unfetched)
    );
    web.put(KEYS, &json!({"keys": [EC.public]}));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_again_and_taken_back_ones_forgotten() {
    let web = Web::default();
    web.put(KEYS, &json!({"keys": [EC.public]}));
    let tokens = with(&web, fetched());
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
    let mut renamed = ED.public.clone();
    renamed["kid"] = json!("ec");
    web.put(KEYS, &json!({"keys": [renamed]}));
    sleep(Duration::from_secs(19 * 60)).await;
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
    sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(judged(&tokens, &EC.token("me")).await, Err(Fault::NoKey));
    // The third time for the key that nobody knows any more.
    assert_eq!(web.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_key_nobody_knows_is_asked_for_but_not_often() {
    let web = Web::default();
    web.put(KEYS, &json!({"keys": [EC.public]}));
    let tokens = with(&web, fetched());
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
    // Too early: anybody can make up keys.
    assert_eq!(judged(&tokens, &ED.token("me")).await, Err(Fault::NoKey));
    assert_eq!(web.asked(), 1);
    advance(Duration::from_secs(31)).await;
    web.put(KEYS, &json!({"keys": [EC.public, ED.public]}));
    assert_eq!(judged(&tokens, &ED.token("me")).await, Ok(()));
    assert_eq!(web.asked(), 2);
    for _ in 0..100 {
        assert_eq!(judged(&tokens, &RSA.token("me")).await, Err(Fault::NoKey));
    }
    assert_eq!(web.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn old_keys_are_believed_for_an_hour_while_the_issuer_is_away() {
    let web = Web::default();
    web.put(KEYS, &json!({"keys": [EC.public]}));
    let tokens = with(&web, fetched());
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
    web.close();
    sleep(Duration::from_secs(50 * 60)).await;
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
    sleep(Duration::from_secs(12 * 60)).await;
    assert_eq!(
        judged(&tokens, &EC.token("me")).await,
        Err(Fault::Unfetched)
    );
}

#[tokio::test(start_paused = true)]
async fn one_set_is_fetched_once_for_all_policies_and_no_longer_than_they_last() {
    let web = Web::default();
    web.put(KEYS, &json!({"keys": [EC.public]}));
    let sets = KeySets::new(Arc::new(web.clone()));
    let first = tokens_of(vec![fetched()], &sets);
    let second = tokens_of(vec![fetched()], &sets);
    assert_eq!(judged(&first, &EC.token("me")).await, Ok(()));
    assert_eq!(judged(&second, &EC.token("me")).await, Ok(()));
    drop(first);
    sleep(Duration::from_secs(21 * 60)).await;
    assert_eq!(web.asked(), 2);
    drop(second);
    sleep(Duration::from_secs(5 * 3600)).await;
    assert_eq!(web.asked(), 2, "nobody holds it");
}

#[tokio::test(start_paused = true)]
async fn keys_are_found_by_what_the_issuer_says_of_itself() {
    let configuration = "https://issuer.example/.well-known/openid-configuration";
    let discovered = || wire::JwtRule {
        jwks: String::new(),
        ..rule()
    };
    let web = Web::default();
    web.put(configuration, &json!({"issuer": ISSUER, "jwks_uri": KEYS}));
    web.put(KEYS, &json!({"keys": [EC.public]}));
    let tokens = with(&web, discovered());
    assert_eq!(judged(&tokens, &EC.token("me")).await, Ok(()));
    for wrong in [
        json!({"issuer": "https://other.example", "jwks_uri": KEYS}),
        json!({"issuer": ISSUER, "jwks_uri": "http://169.254.169.254/keys"}),
        json!({"issuer": ISSUER, "jwks_uri": "http://localhost:15000/"}),
        json!({"issuer": ISSUER}),
    ] {
        let web = Web::default();
        web.put(configuration, &wrong);
        web.put(KEYS, &json!({"keys": [EC.public]}));
        let tokens = with(&web, discovered());
        assert_eq!(
            judged(&tokens, &EC.token("me")).await,
            Err(Fault::Unfetched),
            "{wrong}"
        );
        assert_eq!(web.asked(), 1, "{wrong}");
    }
}
