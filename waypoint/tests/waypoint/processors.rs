//! External processors: from an ExternalProcessor to what client and app see.

#[path = "processors/clerk.rs"]
mod clerk;
#[path = "processors/clients.rs"]
mod clients;
#[path = "processors/faults.rs"]
mod faults;
#[path = "processors/onlookers.rs"]
mod onlookers;
#[path = "processors/sayings.rs"]
mod sayings;

use ::http::Request;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;

use self::clerk::Clerk;
use super::app::{Heard, One, SOON, Two, text};
use super::shop::{Shop, in_shop};

#[test]
fn processors_are_shown_requests_and_answers_and_change_them() {
    in_shop(|shop| {
        let clerk = Clerk::start(shop)?;
        let yaml = objects();
        shop.lab.apply_yaml("processors", &yaml)?;
        shop.until("all processors to be in force", |shop| {
            let asked = |path, status| {
                let heard = shop.runtime.block_on(ask(shop, path, "", ""));
                heard.is_ok_and(|heard| heard.status == status)
            };
            asked("/nowhere", 500) && asked("/headers", 200) && asked("/forbidden", 403)
        })?;
        shop.runtime.block_on(async {
            heads(shop).await.context("heads")?;
            bodies(shop).await.context("bodies")?;
            bodiless(shop).await.context("HEAD")?;
            failures(shop).await.context("failures")?;
            rules(shop)
                .await
                .context("what he may change, and is told")?;
            gone(shop, &clerk).await.context("a client that goes away")
        })?;
        shop.each_asked(
            "ext_proc",
            &[
                ("shop/headers", "ok"),
                ("shop/headers", "refused"),
                ("shop/duplex", "ok"),
                ("shop/quick", "timeout"),
                ("shop/headers", "error"),
                ("shop/nobody", "error"),
                ("shop/open", "timeout"),
            ],
        )
    });
}

/// A route and a processor of it for each way of being shown something; all lead to `/echo` but the first.
fn objects() -> String {
    let both = |mode: &str| {
        format!("request: {{ body: {mode} }}\n  response: {{ body: {mode}, trailers: true }}")
    };
    let mut all = String::new();
    for (name, echo, port, more) in [
        ("headers", false, 9000, "timeout: 20s".to_owned()),
        (
            "whole",
            true,
            9000,
            format!("timeout: 20s\n  bodyBytes: 16\n  {}", both("Buffered")),
        ),
        (
            "pieces",
            true,
            9000,
            format!("timeout: 20s\n  {}", both("Streamed")),
        ),
        (
            "duplex",
            true,
            9000,
            format!("timeout: 20s\n  {}", both("FullDuplexStreamed")),
        ),
        (
            "beginning",
            true,
            9000,
            "timeout: 20s\n  bodyBytes: 4\n  request: { body: BufferedPartial }".to_owned(),
        ),
        (
            "override",
            true,
            9000,
            "timeout: 20s\n  modeOverride: true".to_owned(),
        ),
        (
            "routing",
            false,
            9000,
            "timeout: 20s
  mutations: { routing: true, deny: [x-clerk] }
  attributes:
  - request.path
  - source.address
  - connection.uri_san_peer_certificate
  - destination.port
  - connection.mtls
  - filter_state.downstream_peer.workload"
                .to_owned(),
        ),
        (
            "strict",
            false,
            9000,
            "timeout: 20s\n  mutations: { strict: true }".to_owned(),
        ),
        (
            "secret",
            false,
            9000,
            "timeout: 20s\n  mutations: { allow: [x-clerk] }".to_owned(),
        ),
        ("quick", false, 9000, "timeout: 300ms".to_owned()),
        (
            "open",
            false,
            9000,
            "timeout: 300ms\n  onFailure: Allow".to_owned(),
        ),
        (
            "nobody",
            false,
            9100,
            "timeout: 5s\n  statusOnFailure: 503".to_owned(),
        ),
        ("nowhere", false, 9000, "timeout: nonsense".to_owned()),
    ] {
        let filters = match echo {
            true => {
                "\n    filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /echo } } }]"
            }
            false => "",
        };
        all += &format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: shop, name: {name} }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: web, port: 80 }}]
  rules:
  - matches: [{{ path: {{ type: PathPrefix, value: /{name} }} }}]{filters}
    backendRefs: [{{ name: web, port: 80 }}]
---
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: shop, name: {name} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name} }}]
  backendRef: {{ name: clerk, port: {port} }}
  {more}
"
        );
    }
    all + "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: others }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules: [{ backendRefs: [{ name: web, port: 80 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: absent }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /absent } }]
    backendRefs: [{ name: absent, port: 80 }]
---
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: { namespace: shop, name: absent }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: absent }]
  backendRef: { name: clerk, port: 9000 }
  timeout: 20s
  response: { body: Streamed }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: never }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules: [{ to: [{ operation: { paths: [/forbidden] } }] }]
"
}

/// Where an answer of ours to HEAD is shown in pieces, none is made up for the client.
async fn bodiless(shop: &Shop<'_>) -> Result<()> {
    let mut client = Two::to(&shop.client, shop.at(80)).await?;
    let asked = |method: &str| {
        let request = Request::builder().method(method);
        let request = request.uri("http://web.shop/absent");
        request.body(Full::default())
    };
    let whole = client.ask(asked("GET")?).await?.is(500)?;
    ensure!(!whole.body.is_empty(), "{whole:?}");
    let head = client.ask(asked("HEAD")?).await?.is(500)?;
    ensure!(head.body.is_empty(), "{head:?}");
    Ok(())
}

fn request(path: &str, wish: &str, body: &'static str) -> Request<Full<Bytes>> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "web.shop")
        .header("x-secret", "s")
        .header("x-clerk", "by myself");
    if !wish.is_empty() {
        request = request.header("x-do", wish);
    }
    request.body(Full::from(body)).unwrap()
}

async fn ask(shop: &Shop<'_>, path: &str, wish: &str, body: &'static str) -> Result<Heard> {
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    client.ask(request(path, wish, body)).await
}

async fn heads(shop: &Shop<'_>) -> Result<()> {
    let heard = ask(shop, "/headers/a", "", "").await?.is(200)?;
    ensure!(heard.saw("x-clerk").as_deref() == Some("GET"), "{heard:?}");
    ensure!(heard.saw("method").as_deref() == Some("GET"), "{heard:?}");
    ensure!(
        heard.saw("host").as_deref() == Some("web.shop"),
        "{heard:?}"
    );
    ensure!(heard.saw("x-secret").is_none(), "{heard:?}");
    ensure!(heard.saw("x-forwarded-client-cert").is_none(), "{heard:?}");
    ensure!(text(&heard.headers, "x-back") == "1", "{heard:?}");

    let heard = ask(shop, "/headers/a", "deny", "").await?.is(451)?;
    ensure!(heard.text() == "not here", "{heard:?}");
    ensure!(text(&heard.headers, "x-why") == "clerk", "{heard:?}");

    // What he makes of it is judged, and routed, as what a client says.
    let heard = ask(shop, "/headers/a", "path=/b/../c?d=1", "")
        .await?
        .is(200)?;
    ensure!(heard.saw("uri").as_deref() == Some("/c?d=1"), "{heard:?}");
    ask(shop, "/headers/a", "path=/x/../forbidden", "")
        .await?
        .is(403)?;
    ask(shop, "/headers/a", "path=no path", "").await?.is(500)?;
    Ok(())
}

async fn bodies(shop: &Shop<'_>) -> Result<()> {
    for (path, sent, back) in [
        ("/whole", "0123456789abcdef", "0123456789ABCDEF!"),
        ("/pieces", "some text", "SOME TEXT!"),
        ("/beginning", "abcdefgh", "ABCDefgh"),
        ("/beginning", "abc", "ABC"),
        ("/override", "as it is", "as it is"),
    ] {
        let heard = ask(shop, path, "", sent).await?.is(200)?;
        // An answer with trailers ends with them, not with its last piece.
        let back = back.trim_end_matches('!');
        ensure!(
            heard.text().trim_end_matches('!') == back,
            "{path}: {heard:?}"
        );
    }
    let heard = ask(shop, "/duplex", "", "to and fro").await?.is(200)?;
    ensure!(heard.text().starts_with("TO AND FRO"), "{heard:?}");
    let heard = ask(shop, "/override", "body", "as he likes")
        .await?
        .is(200)?;
    ensure!(heard.text() == "AS HE LIKES", "{heard:?}");
    ask(shop, "/whole", "", "0123456789abcdef+")
        .await?
        .is(413)?;

    let mut two = Two::to(&shop.client, shop.at(80)).await?;
    for path in ["/whole", "/pieces", "/duplex"] {
        let mut asking = request(path, "", "trailers");
        *asking.uri_mut() = format!("http://web.shop{path}").parse()?;
        asking.headers_mut().remove("host");
        // Its app is spoken to in HTTP/2, which has trailers for whoever wants them.
        let kind = "application/grpc".parse()?;
        asking.headers_mut().insert("content-type", kind);
        let heard = two.ask(asking).await?.is(200)?;
        ensure!(text(&heard.trailers, "x-bytes") == "8", "{path}: {heard:?}");
        ensure!(
            text(&heard.trailers, "x-clerk-end") == "1",
            "{path}: {heard:?}"
        );
    }
    Ok(())
}

async fn failures(shop: &Shop<'_>) -> Result<()> {
    ask(shop, "/quick", "wait", "").await?.is(504)?;
    ask(shop, "/headers", "break", "").await?.is(500)?;
    ask(shop, "/headers", "noise", "").await?.is(500)?;
    ask(shop, "/nobody", "", "").await?.is(503)?;
    ask(shop, "/nowhere", "", "").await?.is(500)?;
    // Who says goodbye has no more to say; who may fail does no harm.
    for (path, wish) in [
        ("/headers", "close"),
        ("/open", "wait"),
        ("/open", "break"),
        ("/open", "noise"),
    ] {
        let heard = ask(shop, path, wish, "").await?.is(200)?;
        ensure!(heard.saw("x-secret").is_some(), "{path} {wish}: {heard:?}");
    }
    Ok(())
}

async fn rules(shop: &Shop<'_>) -> Result<()> {
    let heard = ask(shop, "/routing/a", "", "").await?.is(200)?;
    for (name, value) in [
        ("method", Some("DELETE")),
        ("host", Some("evil.example")),
        // His own is forbidden; what is never his to say stays what it is.
        ("x-clerk", Some("by myself")),
        ("content-length", None),
        ("x-forwarded-client-cert", None),
    ] {
        ensure!(heard.saw(name).as_deref() == value, "{name}: {heard:?}");
    }
    let heard = ask(shop, "/routing/a?b=c", "told", "").await?.is(200)?;
    let told = |name: &str| heard.saw(&format!("told-{name}")).unwrap_or_default();
    ensure!(told("request.path") == "/routing/a?b=c", "{heard:?}");
    ensure!(
        told("destination.port") == "80" && told("connection.mtls") == "true",
        "{heard:?}"
    );
    let identity = "spiffe://cluster.local/ns/shop/sa/client";
    ensure!(
        told("connection.uri_san_peer_certificate") == identity,
        "{heard:?}"
    );
    ensure!(
        told("filter_state.downstream_peer.workload") == "client",
        "{heard:?}"
    );
    let source: std::net::SocketAddr = told("source.address").parse()?;
    ensure!(source.ip() == shop.client.ip(), "{source} {heard:?}");

    let log = shop.waypoint.pod().access_log().from_now();
    ask(shop, "/strict/a", "", "").await?.is(500)?;
    let line = log.find("its line", |line| {
        line.field("code") == "500" && line.field("path").starts_with("/strict")
    })?;
    ensure!(
        line.field("detail").contains("which it may not"),
        "{line:?}"
    );
    let heard = ask(shop, "/secret/a", "", "").await?.is(200)?;
    ensure!(heard.saw("x-clerk").as_deref() == Some("GET"), "{heard:?}");
    ensure!(
        heard.saw("x-secret").is_some(),
        "removing is changing: {heard:?}"
    );
    Ok(())
}

/// His part ends with it.
async fn gone(shop: &Shop<'_>, clerk: &Clerk) -> Result<()> {
    // The failures above have waited, too.
    for _ in 0..2 {
        let _ = tokio::time::timeout(SOON / 20, clerk.let_go.notified()).await;
        let _ = tokio::time::timeout(SOON / 20, clerk.asked.notified()).await;
    }
    // Of one of them he may hear later than that: then the client is gone before he was asked.
    let mut let_go = false;
    for _ in 0..3 {
        let mut two = Two::to(&shop.client, shop.at(80)).await?;
        let mut waiting = request("/headers", "wait", "");
        *waiting.uri_mut() = "http://web.shop/headers".parse()?;
        waiting.headers_mut().remove("host");
        let asking = tokio::spawn(async move { two.ask(waiting).await });
        let asked = tokio::time::timeout(SOON, clerk.asked.notified()).await;
        asking.abort();
        asked.context("he is not asked")?;
        let gone = tokio::time::timeout(SOON, clerk.let_go.notified()).await;
        let_go = gone.is_ok();
        if let_go {
            break;
        }
    }
    ensure!(let_go, "he is kept when the client has gone");
    ask(shop, "/headers", "", "").await?.is(200)?;
    Ok(())
}
