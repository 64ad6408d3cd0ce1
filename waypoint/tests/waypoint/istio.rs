//! Istio's objects and ours beside Gateway API's, from the directory to what a client sees.

use ::http::Request;
use anyhow::{Context, Result, ensure};
use http_body_util::Full;

use lab::Pod;

use super::app::{App, One};
use super::shop::{Shop, in_shop};

#[test]
fn virtual_services_destination_rules_and_limits_do_what_they_say() {
    in_shop(|shop| {
        let pod = shop.lab.pod("shop/three").node(0);
        let pod = pod.service_account("web").label("app", "web");
        let pod = pod.label("version", "v2").start()?;
        let _app = App::start(&shop.runtime, &pod, 8080)?;
        routed(shop).context("VirtualService")?;
        upgraded(shop).context("h2UpgradePolicy")?;
        limited(shop).context("RateLimitPolicy")
    });
}

const ROUTES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { namespace: shop, name: web }
spec:
  hosts: [web]
  http:
  - match: [{ uri: { exact: /teapot } }]
    fault: { abort: { httpStatus: 418, percentage: { value: 100 } } }
    route: [{ destination: { host: web } }]
  - match: [{ uri: { prefix: /v2/ } }]
    rewrite: { uri: / }
    headers: { request: { set: { x-routed: 'yes' } } }
    route: [{ destination: { host: web, subset: v2, port: { number: 80 } } }]
  - match: [{ uri: { prefix: /gone } }]
    directResponse: { status: 410, body: { string: no more } }
  - match: [{ uri: { exact: /keep } }]
    route: [{ destination: { host: web, port: { number: 80 } } }]
    mirror: { host: web, subset: v2, port: { number: 80 } }
  - match: [{ uri: { prefix: /tier }, sourceLabels: { tier: gold, kind: shopper } }]
    directResponse: { status: 203, body: { string: gold } }
  - match: [{ uri: { prefix: /tier } }]
    directResponse: { status: 202, body: { string: other } }
  - match: [{ headers: { x-lost: {} } }]
    route: [{ destination: { host: web, subset: unheard-of, port: { number: 80 } } }]
  - route: [{ destination: { host: web, port: { number: 80 } } }]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: web }
spec:
  host: web
  subsets: [{ name: v2, labels: { version: v2 } }]
";

fn routed(shop: &Shop<'_>) -> Result<()> {
    shop.apply_until("istio", ROUTES, "/teapot", 418)?;
    shop.until("the subset's only pod to be asked", |shop| {
        let got = shop.runtime.block_on(shop.get("/v2/x"));
        got.is_ok_and(|heard| heard.status == 200)
    })?;
    shop.runtime.block_on(async {
        for _ in 0..6 {
            let heard = shop.get("/v2/cart").await?.is(200)?;
            ensure!(heard.saw("uri").as_deref() == Some("/cart"), "{heard:?}");
            ensure!(heard.saw("x-routed").as_deref() == Some("yes"), "{heard:?}");
            ensure!(heard.saw("app").as_deref() == Some("three"), "{heard:?}");
        }
        let heard = shop.get("/gone").await?.is(410)?;
        ensure!(heard.text() == "no more", "{heard:?}");
        shop.get("/else").await?.is(200)?;
        anyhow::Ok(())
    })?;
    mirrored(shop).context("a mirror")?;
    labelled(shop).context("labels of clients")?;
    shop.lab.delete_yaml("istio")?;
    shop.until("the rules to go", |shop| {
        let got = shop.runtime.block_on(shop.get("/teapot"));
        got.is_ok_and(|heard| heard.status == 200)
    })
}

/// Each copy goes to the subset that the mirror names, wherever the request itself goes.
fn mirrored(shop: &Shop<'_>) -> Result<()> {
    const COPIES: usize = 12;
    shop.runtime.block_on(async {
        for number in 0..COPIES {
            let request = Request::post("/keep").header("host", "web.shop");
            let request = request.header("x-key", format!("copy-{number}"));
            let mut client = One::to(&shop.client, shop.at(80)).await?;
            client
                .ask(request.body(Full::from("1234"))?)
                .await?
                .is(200)?;
        }
        anyhow::Ok(())
    })?;
    shop.until("all copies to be with the subset's only pod", |shop| {
        let kept = shop.runtime.block_on(shop.get("/v2/kept"));
        kept.is_ok_and(|kept| {
            let text = kept.text();
            let is_there = |number| text.lines().any(|it| it == format!("copy-{number}=4"));
            (0..COPIES).all(is_there)
        })
    })
}

/// Who has the labels is told apart from others of the same identity, also who came after the rule.
fn labelled(shop: &Shop<'_>) -> Result<()> {
    let gold = shop.lab.pod("shop/gold").node(1).service_account("client");
    let gold = gold
        .label("tier", "gold")
        .label("kind", "shopper")
        .start()?;
    let silver = shop
        .lab
        .pod("shop/silver")
        .node(1)
        .service_account("client");
    let silver = silver.label("tier", "gold").start()?;
    let asked = |pod: &Pod| {
        shop.runtime.block_on(async {
            let mut client = One::to(pod, shop.at(80)).await?;
            anyhow::Ok(client.get("/tier").await?.status)
        })
    };
    shop.until("a client with the labels to be known", |_| {
        asked(&gold).is_ok_and(|status| status == 203)
    })?;
    let others = [asked(&silver)?, asked(&shop.client)?];
    ensure!(others == [202, 202], "{others:?}");
    drop(gold);
    Ok(())
}

/// An app that says nothing of HTTP/2 is spoken to in it where its DestinationRule says so, also where it gets copies.
fn upgraded(shop: &Shop<'_>) -> Result<()> {
    let app = ("app", "web");
    let up = shop
        .lab
        .service_for("shop/up", app, &[("http", 80, 8080)])?;
    let spoken = |shop: &Shop<'_>| {
        shop.runtime.block_on(async {
            let mut client = One::to(&shop.client, up.at(80)).await?;
            let heard = client.get("/").await?.is(200)?;
            heard.saw("version").context("no version")
        })
    };
    let is = |version: &str| {
        shop.until(version, |shop| {
            spoken(shop).is_ok_and(|spoken| spoken == version)
        })
    };
    is("HTTP/1.1")?;
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: up }
spec: { host: up, trafficPolicy: { connectionPool: { http: { h2UpgradePolicy: UPGRADE } } } }
";
    shop.lab.apply_yaml("up", rule)?;
    is("HTTP/2.0")?;
    let copies = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { namespace: shop, name: copies }
spec:
  hosts: [web]
  http:
  - match: [{ uri: { exact: /keep-version } }]
    route: [{ destination: { host: web, port: { number: 80 } } }]
    mirror: { host: up, port: { number: 80 } }
  - route: [{ destination: { host: web, port: { number: 80 } } }]
";
    shop.lab.apply_yaml("copies", copies)?;
    shop.until("a copy over HTTP/2", |shop| {
        let copied = shop.runtime.block_on(async {
            shop.get("/keep-version").await?.is(200)?;
            let kept = shop.get("/kept").await?.is(200)?;
            anyhow::Ok(kept.text().lines().any(|version| version == "HTTP/2.0"))
        });
        copied.is_ok_and(|copied| copied)
    })?;
    shop.lab.delete_yaml("copies")?;
    Ok(())
}

fn limited(shop: &Shop<'_>) -> Result<()> {
    let policy = "
apiVersion: ambit.io/v1alpha1
kind: RateLimitPolicy
metadata: { namespace: shop, name: few }
spec:
  targetRefs: [{ kind: Service, name: web }]
  limits:
  - requests: 2
    window: 1h
    keys: [{ by: Identity }]
    when: { path: { prefix: /few } }
";
    shop.apply_until("limit", policy, "/few", 429)?;
    shop.runtime.block_on(async {
        shop.get("/many").await?.is(200)?;
        let heard = shop.get("/few/more").await?.is(429)?;
        ensure!(
            heard.headers.contains_key("ratelimit")
                || heard.headers.contains_key("retry-after")
                || heard.headers.contains_key("x-ratelimit-limit"),
            "{heard:?}"
        );
        anyhow::Ok(())
    })
}
