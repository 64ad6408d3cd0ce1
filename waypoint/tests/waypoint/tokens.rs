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
use super::app::{Heard, One, SOON};
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
        // They are fetched beside the requests, and again if that fails.
        let good = json!({"iss": "https://issuer.example", "sub": "me", "aud": "shop", "exp": now() + 300});
        shop.until("the issuer's keys", |shop| {
            let asking = ask(shop, "/", Some(EC.sign(&good)));
            let heard = shop.runtime.block_on(asking);
            heard.is_ok_and(|heard| heard.status == 200)
        })?;
        shop.runtime.block_on(judged(shop))
    });
}

#[test]
fn keys_of_an_issuer_that_takes_nothing_but_mesh_tls_are_fetched_through_the_mesh() {
    in_shop(|shop| {
        shop.lab.namespace("out").plain()?;
        shop.lab.namespace("auth").ambient()?;
        let stranger = shop.lab.pod("out/stranger").node(1).start()?;
        let issuer = shop.lab.pod("auth/issuer").node(1).label("app", "issuer");
        let issuer = issuer.start()?;
        publish(&issuer, &json!({"keys": [EC.public]}))?;
        let app = ("app", "issuer");
        shop.lab
            .service_for("auth/issuer", app, &[("http", 80, 8080)])?;
        // Nobody but the waypoint may ask it, and that by mesh TLS only.
        let own = shop.waypoint.pod().pod().identity();
        let own = own.trim_start_matches("spiffe://");
        let closed = format!(
            "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{ namespace: auth, name: default }}
spec: {{ mtls: {{ mode: STRICT }} }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: auth, name: waypoint }}
spec:
  selector: {{ matchLabels: {{ app: issuer }} }}
  rules: [{{ from: [{{ source: {{ principals: ['{own}'] }} }}] }}]
"
        );
        shop.lab.apply_yaml("closed", &closed)?;
        shop.until("plain text to be refused", |_| {
            plainly(&stranger, issuer.at(8080)).is_none()
        })?;
        let good = json!({"iss": "https://issuer.example", "sub": "me", "exp": now() + 600});
        let asked = |status: u16, text: &str| {
            let asking = ask(shop, "/", Some(EC.sign(&good)));
            let heard = shop.runtime.block_on(asking);
            heard.is_ok_and(|it| it.status == status && it.text().contains(text))
        };
        // By its address it is nobody that the mesh could be asked for.
        for (uri, status, text) in [
            (
                format!("http://{}/keys", issuer.at(8080)),
                401,
                "Jwks remote fetch is failed",
            ),
            (
                "http://issuer.auth.svc.cluster.local/keys".to_owned(),
                200,
                "x-subject: me",
            ),
            (
                format!("http://{}/again", issuer.at(8080)),
                401,
                "Jwks remote fetch is failed",
            ),
            (
                "http://issuer.auth:80/again".to_owned(),
                200,
                "x-subject: me",
            ),
        ] {
            let yaml = format!(
                "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ namespace: shop, name: tokens }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  jwtRules:
  - issuer: https://issuer.example
    jwksUri: {uri}
    outputClaimToHeaders: [{{ header: x-subject, claim: sub }}]
"
            );
            shop.lab.apply_yaml("tokens", &yaml)?;
            shop.until(&uri, |_| asked(status, text))?;
        }
        Ok(())
    });
}

/// What is answered in plain text, if anything is.
fn plainly(pod: &Pod, to: std::net::SocketAddr) -> Option<String> {
    let mut stream = pod.connect(to).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|it| !it.is_empty())
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
            // Who says nothing keeps the next one waiting, but not for ever.
            let _ = stream.set_read_timeout(Some(SOON));
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
