//! Processors that only look on: nobody waits for them, and nothing changes by them.

use anyhow::{Context, Result, ensure};

use super::clerk::Clerk;
use super::{ask, request};
use crate::app::{Two, text};
use crate::shop::{Shop, in_shop};

#[test]
fn who_only_looks_on_sees_all_of_it_and_nobody_waits_for_him() {
    in_shop(|shop| {
        let clerk = Clerk::start(shop)?;
        shop.lab.apply_yaml("onlookers", &objects())?;
        shop.until("him to be shown something", |shop| {
            let asked = |path| shop.runtime.block_on(ask(shop, path, "", "")).is_ok();
            // What he has seen is known when it has ended for him, too.
            asked("/watched") && asked("/slow") && asked("/absent") && {
                let seen = clerk.seen();
                ["/watched", "/slow"].iter().all(|path| {
                    let start = format!("GET {path} 200");
                    seen.iter().any(|line| line.starts_with(&start))
                })
            }
        })?;
        seen(shop, &clerk).context("what he sees")?;
        trailers(shop, &clerk).context("trailers")?;
        bad(shop, &clerk).context("one that does not what it should")
    });
}

fn objects() -> String {
    let both = "request: { body: Streamed, trailers: true }
  response: { body: Streamed, trailers: true }";
    let mut all = String::new();
    for (name, port, more) in [
        ("watched", 9000, both.to_owned()),
        (
            "slow",
            9000,
            format!("{both}\n  bodyBytes: 65536\n  deferredCloseTimeout: 300ms"),
        ),
        ("absent", 9100, both.to_owned()),
    ] {
        all += &format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: shop, name: {name} }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: web, port: 80 }}]
  rules:
  - matches: [{{ path: {{ type: PathPrefix, value: /{name}/echo }} }}]
    filters: [{{ type: URLRewrite, urlRewrite: {{ path: {{ type: ReplaceFullPath, replaceFullPath: /echo }} }} }}]
    backendRefs: [{{ name: web, port: 80 }}]
  - matches: [{{ path: {{ type: PathPrefix, value: /{name} }} }}]
    backendRefs: [{{ name: web, port: 80 }}]
---
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: shop, name: {name} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name} }}]
  backendRef: {{ name: clerk, port: {port} }}
  observabilityMode: true
  {more}
"
        );
    }
    all
}

fn seen(shop: &Shop<'_>, clerk: &Clerk) -> Result<()> {
    let heard = shop
        .runtime
        .block_on(ask(shop, "/watched/echo", "", "some text"));
    let heard = heard?.is(200)?;
    ensure!(heard.text() == "some text", "{heard:?}");
    ensure!(text(&heard.headers, "x-back").is_empty(), "{heard:?}");
    line(shop, clerk, "POST /watched/echo 200: 9 there, 9 back,")?;
    // It reaches the app as it was sent: its length is known, and what he says changes nothing.
    let heard = shop
        .runtime
        .block_on(ask(shop, "/watched/it", "", "some text"));
    let heard = heard?.is(200)?;
    for (name, value) in [
        ("content-length", "9"),
        ("x-secret", "s"),
        ("x-clerk", "by myself"),
    ] {
        ensure!(
            heard.saw(name).as_deref() == Some(value),
            "{name}: {heard:?}"
        );
    }
    shop.each_asked("ext_proc", &[("shop/watched", "ok")])
}

fn trailers(shop: &Shop<'_>, clerk: &Clerk) -> Result<()> {
    let heard = shop.runtime.block_on(async {
        let mut two = Two::to(&shop.client, shop.at(80)).await?;
        let mut asking = request("/watched/echo", "", "trailers");
        *asking.uri_mut() = "http://web.shop/watched/echo?2".parse()?;
        asking.headers_mut().remove("host");
        let kind = "application/grpc".parse()?;
        asking.headers_mut().insert("content-type", kind);
        two.ask(asking).await
    })?;
    ensure!(text(&heard.trailers, "x-bytes") == "8", "{heard:?}");
    ensure!(text(&heard.trailers, "x-clerk-end").is_empty(), "{heard:?}");
    line(
        shop,
        clerk,
        "POST /watched/echo?2 200: 8 there, 8 back, 1 ends, 1 trailers",
    )
}

fn bad(shop: &Shop<'_>, clerk: &Clerk) -> Result<()> {
    let large: &'static str = Box::leak("x".repeat(8 << 20).into_boxed_str());
    for (path, wish, body, outcome) in [
        ("/absent/echo", "", "some text", "error"),
        ("/watched/echo", "close", "some text", "ok"),
        ("/slow/echo", "deaf", large, "timeout"),
    ] {
        let name = path.split('/').nth(1).unwrap_or_default();
        let provider = format!("shop/{name}");
        let before = shop.asked("ext_proc", &provider, outcome)?;
        let heard = shop.runtime.block_on(ask(shop, path, wish, body));
        let heard = heard.with_context(|| path.to_owned())?.is(200)?;
        ensure!(heard.body == body, "{path}: {} bytes", heard.body.len());
        shop.until(&format!("{path}: {outcome}"), |shop| {
            let now = shop.asked("ext_proc", &provider, outcome);
            now.is_ok_and(|now| now > before)
        })?;
    }
    // One that stays at a request that has ended is sent away.
    let heard = shop.runtime.block_on(ask(shop, "/slow/late", "linger", ""));
    heard?.is(200)?;
    shop.until("him to be let go", |_| {
        let seen = clerk.seen();
        seen.iter()
            .any(|line| line.starts_with("GET /slow/late 200"))
    })
}

fn line(shop: &Shop<'_>, clerk: &Clerk, line: &str) -> Result<()> {
    let found = shop.until(line, |_| clerk.seen().iter().any(|it| it.starts_with(line)));
    found.with_context(|| format!("{:?}", clerk.seen()))
}
