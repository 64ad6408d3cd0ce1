//! Authorizers that really are asked, over gRPC and over HTTP: from a policy or a route to what client and app see.

#[path = "authorizers/judge.rs"]
mod judge;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ::http::Request;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use lab::{Lab, Pod};

use self::judge::Judge;
use super::app::{Heard, One, SOON, Two, text};
use super::shop::{Shop, in_shop_of};

/// Port 9000 speaks gRPC, 8000 HTTP, and at 9100 there is nobody.
const PROVIDERS: &str = "
accessLogFile: /dev/stdout
accessLogFormat: \"said %REQ(:PATH)% %RESPONSE_CODE% %DYNAMIC_METADATA(envoy.filters.http.ext_authz:verdict)% %CEL(metadata.filter_metadata['envoy.filters.http.ext_authz'].score)%\\n\"
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
            query(shop).await.context("a query that is changed")?;
            said(shop).await.context("what is said of requests")?;
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
        lines(shop)?;
        socket(shop).context("a WebSocket")?;
        by_route(shop).context("a route's filter")?;
        by_query(shop).context("a query that routes look at")?;
        connections(shop).context("connections")
    });
}

/// A CUSTOM policy for each provider, and three that deny by what the judge has added or said.
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
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: dirty }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules:
  - when: [{ key: 'experimental.envoy.filters.http.ext_authz[verdict]', values: [dirty] }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: unjudged }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules:
  - to: [{ operation: { paths: [/upgrade] } }]
    when: [{ key: 'request.headers[x-judged]', notValues: [grpc] }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: watched }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: AUDIT
  rules:
  - to: [{ operation: { paths: [/grpc/said] } }]
    when: [{ key: 'experimental.envoy.filters.http.ext_authz[verdict]', values: [clean] }]
"
    .to_owned();
    for (provider, paths) in [
        ("by-grpc", "/grpc/*, /echo, /keep, /upgrade"),
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

/// The app gets another query.
async fn query(shop: &Shop<'_>) -> Result<()> {
    for (asked, got) in [
        (
            "/grpc/query?z=1&tenant=root&a=2&key=k",
            "/grpc/query?a=2&tenant=anna&z=1",
        ),
        ("/grpc/query", "/grpc/query?tenant=anna"),
    ] {
        let heard = ask(shop, asked, "anna", "").await?.is(200)?;
        ensure!(heard.saw("uri").as_deref() == Some(got), "{heard:?}");
    }
    // One that cannot be done is no permission.
    ask(shop, "/grpc/query/broken", "anna", "").await?.is(403)?;
    Ok(())
}

/// What the judge says of a request, a policy denies by.
async fn said(shop: &Shop<'_>) -> Result<()> {
    ask(shop, "/grpc/said?clean", "anna", "").await?.is(200)?;
    ask(shop, "/grpc/said?dirty", "anna", "").await?.is(403)?;
    ask(shop, "/grpc/said?clean", "bert", "").await?.is(418)?;
    Ok(())
}

/// And the log tells it, also of those who were denied.
fn lines(shop: &Shop<'_>) -> Result<()> {
    let log = |shop: &Shop<'_>| {
        let log = std::fs::read_to_string(shop.waypoint.pod().component().log_path());
        log.unwrap_or_default()
    };
    for line in [
        "said /grpc/said?clean 200 clean 3",
        "said /grpc/said?dirty 403 dirty 3",
        "said /grpc/said?clean 418 clean 3",
    ] {
        shop.until(line, |shop| log(shop).lines().any(|it| it.contains(line)))?;
    }
    // Who passed is noted once, by a policy that asks what was said; who was denied by the judge himself is not.
    let noted = |line: &&str| line.contains("policy: noted") && line.contains("shop/watched");
    shop.until("a note", |shop| log(shop).lines().any(|it| noted(&it)))?;
    let times = log(shop).lines().filter(noted).count();
    ensure!(times == 1, "{times} notes");
    Ok(())
}

/// One that may be because of what the judge has added is judged by that when policies change, too.
fn socket(shop: &Shop<'_>) -> Result<()> {
    let mut stream = shop.client.connect(shop.at(80))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(
        b"GET /upgrade HTTP/1.1\r\nhost: web.shop\r\nx-user: anna\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let said = String::from_utf8_lossy(&head);
    ensure!(said.starts_with("HTTP/1.1 101"), "{said}");
    let mut goes_on = || -> Result<()> {
        // Open connections are judged half a second after what is published, as it is when they begin.
        #[allow(clippy::disallowed_methods)] // a test's own thread
        std::thread::sleep(Duration::from_secs(2));
        stream.write_all(b"hello")?;
        let mut back = [0; 5];
        stream.read_exact(&mut back)?;
        ensure!(&back == b"hello");
        Ok(())
    };
    goes_on().context("a moment later")?;
    let harmless = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: harmless }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules: [{ to: [{ operation: { paths: [/harmless] } }] }]
";
    shop.apply_until("harmless", harmless, "/harmless", 403)?;
    goes_on().context("after a change that does not concern it")
}

/// Which rule a request is for is told by the query that the client sent.
fn by_query(shop: &Shop<'_>) -> Result<()> {
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: asked }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ queryParams: [{ name: tenant, value: anna }] }]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-rule, value: anna }] }
    backendRefs: [{ name: web, port: 80 }]
  - backendRefs: [{ name: web, port: 80 }]
";
    shop.lab.apply_yaml("route", route)?;
    shop.until("the rule", |shop| {
        let asking = ask(shop, "/?tenant=anna", "bert", "");
        let heard = shop.runtime.block_on(asking);
        heard.is_ok_and(|heard| heard.saw("x-rule").as_deref() == Some("anna"))
    })?;
    shop.runtime.block_on(async {
        for (asked, rule) in [("tenant=root", None), ("tenant=anna", Some("anna"))] {
            let path = format!("/grpc/query?{asked}");
            let heard = ask(shop, &path, "anna", "").await?.is(200)?;
            let uri = heard.saw("uri");
            ensure!(
                uri.as_deref() == Some("/grpc/query?tenant=anna"),
                "{heard:?}"
            );
            ensure!(heard.saw("x-rule").as_deref() == rule, "{heard:?}");
        }
        anyhow::Ok(())
    })
}

/// Of a service without policies about requests, port 70 is asked about over gRPC, 99 by somebody who knows requests only.
fn connections(shop: &Shop<'_>) -> Result<()> {
    for app in &shop.apps {
        let listener = app.listen(7070)?;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    let mut bytes = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut bytes) {
                        let _ = stream.write_all(&bytes[..n]);
                    }
                });
            }
        });
    }
    let (app, ports) = (("app", "web"), [("tcp", 70, 7070), ("raw", 99, 8080)]);
    let bytes = shop.lab.service_for("shop/bytes", app, &ports)?;
    let guest = shop.lab.pod("shop/guest").node(1);
    let guest = guest.service_account("guest").start()?;
    let asked = |name: &str, port: u16, provider: &str| {
        let yaml = format!(
            "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: {name} }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: bytes }}]
  action: CUSTOM
  provider: {{ name: {provider} }}
  rules: [{{ to: [{{ operation: {{ ports: ['{port}'] }} }}] }}]
"
        );
        shop.lab.apply_yaml(name, &yaml)
    };
    shop.until("bytes to come back", |shop| {
        echoed(&guest, bytes.at(70)).is_ok() && echoed(&shop.client, bytes.at(70)).is_ok()
    })?;
    asked("bytes", 70, "by-grpc")?;
    shop.until("a guest to be refused", |_| {
        echoed(&guest, bytes.at(70)).is_err()
    })?;
    let mut open = echoed(&shop.client, bytes.at(70))?;
    let unlike = || -> Result<Vec<u8>> {
        let mut stream = shop.client.connect(bytes.at(99))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"\0\x01\x02\x03 no request\r\n\r\n")?;
        let mut back = Vec::new();
        let _ = stream.read_to_end(&mut back);
        Ok(back)
    };
    ensure!(!unlike()?.is_empty(), "the app says what it thinks of it");
    asked("raw", 99, "by-http")?;
    shop.until("who knows requests only to be of no use", |_| {
        unlike().is_ok_and(|back| back.is_empty())
    })?;
    // What is open is asked about no more, and stays while nobody else must be asked.
    ensure!(open.write_all(b"still").is_ok() && open.read(&mut [0; 5])? > 0);
    asked("bytes-too", 70, "nobody")?;
    shop.until("it to end when somebody else must be", |_| {
        // A reference to a stream reads and writes as well as it does.
        let mut open = &open;
        let _ = open.write_all(b"?");
        matches!(open.read(&mut [0; 64]), Ok(0) | Err(_))
    })
}

/// A connection on which bytes came back.
fn echoed(pod: &Pod, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = pod.connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"bytes")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"bytes");
    Ok(stream)
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
