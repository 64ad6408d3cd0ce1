//! Tokens, from an issuer that publishes its keys to what the app sees.

use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::Request;
use anyhow::{Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use lab::Pod;
use serde_json::{Value, json};

use super::access::signer::{EC, STRANGER, Signer};
use super::app::{Heard, One};
use super::shop::{Shop, in_shop};

#[test]
fn a_token_is_good_by_the_keys_that_its_issuer_publishes() {
    in_shop(|shop| {
        let issuer = shop.lab.pod("shop/issuer").node(0).start()?;
        publish(&issuer, &json!({"keys": [EC.public]}))?;
        let yaml = format!(
            "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ namespace: shop, name: tokens }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  jwtRules:
  - issuer: https://issuer.example
    audiences: [shop]
    jwksUri: http://{}/keys
    outputClaimToHeaders: [{{ header: x-subject, claim: sub }}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: members }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  action: DENY
  rules:
  - from: [{{ source: {{ notRequestPrincipals: ['https://issuer.example/*'] }} }}]
    to: [{{ operation: {{ paths: ['/members/*'] }} }}]
",
            issuer.at(8080)
        );
        shop.apply_until("tokens", &yaml, "/members/x", 403)?;
        shop.runtime.block_on(judged(shop))
    });
}

async fn judged(shop: &Shop<'_>) -> Result<()> {
    let claims = |change: Value| {
        let mut claims = json!({"iss": "https://issuer.example", "sub": "me", "aud": "shop", "exp": now() + 300});
        claims
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        claims
    };
    let good = claims(json!({}));
    let heard = ask(shop, "/members/x", Some(EC.sign(&good)))
        .await?
        .is(200)?;
    ensure!(heard.saw("x-subject").as_deref() == Some("me"), "{heard:?}");
    ensure!(
        heard.saw("authorization").is_none(),
        "the token went on: {heard:?}"
    );
    // What a client made up does not reach the app, with a token or without.
    let heard = ask(shop, "/", None).await?.is(200)?;
    ensure!(heard.saw("x-subject").is_none(), "{heard:?}");

    let refused: [(&Signer, Value, u16, &str); 5] = [
        (&EC, json!({"exp": now() - 300}), 401, "Jwt is expired"),
        (&EC, json!({"nbf": now() + 300}), 401, "Jwt not yet valid"),
        (
            &EC,
            json!({"iss": "other"}),
            401,
            "Jwt issuer is not configured",
        ),
        (
            &EC,
            json!({"aud": "bank"}),
            403,
            "Audiences in Jwt are not allowed",
        ),
        (&STRANGER, json!({}), 401, "Jwt verification fails"),
    ];
    for (signer, change, status, text) in refused {
        let heard = ask(shop, "/", Some(signer.sign(&claims(change))))
            .await?
            .is(status)?;
        ensure!(heard.text() == text, "{heard:?}");
        let challenge = heard.headers.get("www-authenticate");
        ensure!(challenge.is_some() == (status == 401), "{heard:?}");
    }
    Ok(())
}

/// With a token, and with a header that only the waypoint may write.
async fn ask(shop: &Shop<'_>, path: &str, token: Option<String>) -> Result<Heard> {
    let mut request = Request::get(path)
        .header("host", "web.shop")
        .header("x-subject", "root");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::<Bytes>::default())?;
    One::to(&shop.client, shop.at(80)).await?.ask(request).await
}

/// Answers everything with a document.
fn publish(issuer: &Pod, document: &Value) -> Result<()> {
    let listener = issuer.listen(8080)?;
    let text = document.to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut asked = [0; 4096];
            let _ = stream
                .read(&mut asked)
                .and_then(|_| stream.write_all(answer.as_bytes()));
        }
    });
    Ok(())
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}
