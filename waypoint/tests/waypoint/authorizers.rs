//! Authorizers that really are asked, over gRPC and over HTTP: from a policy or a route to what client and app see.

#[path = "authorizers/judge.rs"]
mod judge;

use ::http::Request;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use lab::Lab;

use self::judge::Judge;
use super::app::{Heard, One, SOON, Two, text};
use super::shop::{Shop, in_shop_of};

/// Port 9000 speaks gRPC, 8000 HTTP, and at 9100 there is nobody.
const PROVIDERS: &str = "
extensionProviders:
- name: by-grpc
  envoyExtAuthzGrpc:
    service: shop/judge.shop.svc.cluster.local
    port: 9000
    timeout: 20s
    includeRequestBodyInCheck: { maxRequestBytes: 8, allowPartialMessage: true }
- name: by-http
  envoyExtAuthzHttp:
    service: shop/judge.shop.svc.cluster.local
    port: 8000
    timeout: 20s
    pathPrefix: /check
    includeRequestHeadersInCheck: [x-user]
    headersToUpstreamOnAllow: [x-judged]
    headersToDownstreamOnDeny: [x-why]
    headersToDownstreamOnAllow: [x-seen]
    includeRequestBodyInCheck: { maxRequestBytes: 8 }
- name: impatient
  envoyExtAuthzGrpc:
    service: shop/judge.shop.svc.cluster.local
    port: 9000
    timeout: 0.2s
- name: nobody
  envoyExtAuthzGrpc:
    service: shop/judge.shop.svc.cluster.local
    port: 9100
    timeout: 5s
- name: nobody-503
  envoyExtAuthzHttp:
    service: shop/judge.shop.svc.cluster.local
    port: 9100
    timeout: 5s
    statusOnError: '503'
- name: nobody-open
  envoyExtAuthzGrpc:
    service: shop/judge.shop.svc.cluster.local
    port: 9100
    timeout: 5s
    failOpen: true
";

#[test]
fn authorizers_are_asked_and_obeyed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), PROVIDERS).unwrap();
    let path = file.path().display().to_string();
    let lab = Lab::builder().istiod_env("MESH_CONFIG", &path);
    in_shop_of(lab, |shop| {
        let judge = Judge::start(shop)?;
        shop.apply_until("asked", &policies(), "/unknown/x", 403)?;
        shop.until("the judge to be asked", |shop| {
            let asked = |path| {
                let asking = ask(shop, path, "anna", "");
                shop.runtime
                    .block_on(asking)
                    .is_ok_and(|heard| heard.status == 200)
            };
            asked("/grpc/x") && asked("/http/x")
        })?;
        shop.runtime.block_on(async {
            by_grpc(shop).await.context("over gRPC")?;
            by_http(shop).await.context("over HTTP")?;
            nobody(shop).await.context("nobody there")?;
            gone(shop, &judge).await.context("a client that goes away")
        })?;
        shop.each_asked(
            "ext_authz",
            &[
                ("by-grpc", "ok"),
                ("by-grpc", "refused"),
                ("by-http", "ok"),
                ("impatient", "timeout"),
                ("nobody", "error"),
                ("nobody-open", "error"),
                ("unheard-of", "error"),
            ],
        )?;
        by_route(shop).context("a route's filter")
    });
}

/// A CUSTOM policy for each provider, and one that denies by what the judge has added.
fn policies() -> String {
    let mut all = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: never }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules:
  - to: [{ operation: { paths: [/grpc/never] } }]
    when: [{ key: 'request.headers[x-judged]', values: [grpc] }]
"
    .to_owned();
    for (provider, paths) in [
        ("by-grpc", "/grpc/*, /echo, /keep"),
        ("by-http", "/http/*"),
        ("impatient", "/impatient/*"),
        ("nobody", "/nobody/*"),
        ("nobody-503", "/nobody-503/*"),
        ("nobody-open", "/nobody-open/*"),
        ("unheard-of", "/unknown/*"),
    ] {
        all += &format!(
            "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: {provider} }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  action: CUSTOM
  provider: {{ name: {provider} }}
  rules: [{{ to: [{{ operation: {{ paths: [{paths}] }} }}] }}]
"
        );
    }
    all
}

fn request(path: &str, user: &str, body: &'static str) -> Request<Full<Bytes>> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "web.shop")
        .header("x-user", user)
        .header("x-judged", "by myself")
        .header("x-secret", "s")
        .body(Full::from(body))
        .unwrap()
}

async fn ask(shop: &Shop<'_>, path: &str, user: &str, body: &'static str) -> Result<Heard> {
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    client.ask(request(path, user, body)).await
}

async fn by_grpc(shop: &Shop<'_>) -> Result<()> {
    let heard = ask(shop, "/grpc/cart", "anna", "").await?.is(200)?;
    ensure!(
        heard.saw("x-judged").as_deref() == Some("grpc"),
        "{heard:?}"
    );
    ensure!(heard.saw("x-secret").is_none(), "{heard:?}");
    let by = text(&heard.headers, "x-client");
    ensure!(by.ends_with("/ns/shop/sa/client"), "{heard:?}");

    let heard = ask(shop, "/grpc/cart", "bert", "").await?.is(418)?;
    ensure!(heard.text() == "bert is not known", "{heard:?}");
    ensure!(text(&heard.headers, "x-why") == "unknown", "{heard:?}");

    // It is shown the beginning of a body; the app gets all of it.
    let body = "0123456789abcdef";
    let heard = ask(shop, "/echo", "anna", body).await?.is(200)?;
    ensure!(text(&heard.headers, "x-shown") == "01234567", "{heard:?}");
    ensure!(heard.text() == body, "{heard:?}");

    // What it allows, others may deny; its own trouble is no permission, nor is its silence.
    ask(shop, "/grpc/never", "anna", "").await?.is(403)?;
    ask(shop, "/grpc/x", "broken", "").await?.is(403)?;
    ask(shop, "/impatient/x", "slow", "").await?.is(403)?;

    let mut call = request("/grpc/call", "bert", "x");
    let kind = "application/grpc".parse()?;
    call.headers_mut().insert("content-type", kind);
    *call.uri_mut() = "http://web.shop/grpc/call".parse()?;
    call.headers_mut().remove("host");
    let mut two = Two::to(&shop.client, shop.at(80)).await?;
    let heard = two.ask(call).await?.is(200)?;
    ensure!(text(&heard.headers, "grpc-status") == "2", "{heard:?}");
    ensure!(text(&heard.headers, "x-why") == "unknown", "{heard:?}");
    Ok(())
}

async fn by_http(shop: &Shop<'_>) -> Result<()> {
    let heard = ask(shop, "/http/cart", "anna", "short").await?.is(200)?;
    ensure!(
        heard.saw("x-judged").as_deref() == Some("http"),
        "{heard:?}"
    );
    ensure!(heard.saw("x-else").is_none(), "{heard:?}");
    ensure!(
        text(&heard.headers, "x-seen") == "/check/http/cart short",
        "{heard:?}"
    );

    let heard = ask(shop, "/http/cart", "bert", "").await?.is(401)?;
    ensure!(heard.text() == "who are you?", "{heard:?}");
    ensure!(
        text(&heard.headers, "www-authenticate") == "Judge",
        "{heard:?}"
    );
    ensure!(text(&heard.headers, "x-why") == "unknown", "{heard:?}");
    ensure!(!heard.headers.contains_key("x-else"), "{heard:?}");

    ask(shop, "/http/x", "broken", "").await?.is(403)?;
    ask(shop, "/http/x", "anna", "more than that")
        .await?
        .is(413)?;
    Ok(())
}

async fn nobody(shop: &Shop<'_>) -> Result<()> {
    ask(shop, "/nobody/x", "anna", "").await?.is(403)?;
    ask(shop, "/nobody-503/x", "anna", "").await?.is(503)?;
    let heard = ask(shop, "/nobody-open/x", "anna", "").await?.is(200)?;
    ensure!(heard.saw("app").is_some(), "{heard:?}");
    ask(shop, "/unknown/x", "anna", "").await?.is(403)?;
    ask(shop, "/", "bert", "").await?.is(200)?;
    Ok(())
}

/// The question goes with it.
async fn gone(shop: &Shop<'_>, judge: &Judge) -> Result<()> {
    let mut two = Two::to(&shop.client, shop.at(80)).await?;
    let mut request = request("/keep", "waits", "x");
    *request.uri_mut() = "http://web.shop/keep".parse()?;
    request.headers_mut().remove("host");
    let asking = tokio::spawn(async move { two.ask(request).await });
    tokio::time::timeout(SOON, judge.asked.notified()).await?;
    asking.abort();
    tokio::time::timeout(SOON, judge.let_go.notified()).await?;
    // And nobody else is hurt.
    ask(shop, "/grpc/x", "anna", "").await?.is(200)?;
    Ok(())
}

fn by_route(shop: &Shop<'_>) -> Result<()> {
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: asked }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /route } }]
    filters:
    - type: ExternalAuth
      externalAuth: { protocol: GRPC, backendRef: { name: judge, port: 9000 } }
    backendRefs: [{ name: web, port: 80 }]
  - backendRefs: [{ name: web, port: 80 }]
";
    shop.apply_until("route", route, "/route/x", 418)?;
    shop.until("the route to lead on", |shop| {
        let asking = ask(shop, "/route/x", "anna", "");
        let heard = shop.runtime.block_on(asking);
        heard.is_ok_and(|heard| heard.saw("x-judged").as_deref() == Some("grpc"))
    })?;
    shop.runtime.block_on(async {
        shop.get("/else").await?.is(200)?;
        anyhow::Ok(())
    })
}
