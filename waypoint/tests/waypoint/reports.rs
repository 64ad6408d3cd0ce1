//! What an operator sees of real requests, and limits that are kept.

use std::collections::BTreeSet;

use ::http::{Request, Version};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use serde_json::Value;

use super::app::{One, Two};
use super::shop::{Shop, in_shop};

#[test]
fn an_operator_sees_who_asked_whom_and_limits_are_kept() {
    in_shop(|shop| {
        metrics(shop).context("metrics")?;
        lines(shop).context("access log")?;
        doors(shop).context("admin")?;
        rates(shop).context("rate limit")?;
        hashed(shop).context("consistent hash")?;
        breaking(shop).context("circuit breaking")?;
        left_out(shop).context("outliers")
    });
}

fn metrics(shop: &Shop<'_>) -> Result<()> {
    let labels = [
        ("reporter", "waypoint"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
        ("source_workload", "client"),
        ("source_canonical_service", "client"),
        ("source_workload_namespace", "shop"),
        (
            "source_principal",
            "spiffe://cluster.local/ns/shop/sa/client",
        ),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/shop/sa/web",
        ),
        ("destination_service", shop.web.host.as_str()),
        ("destination_service_name", "web"),
        ("destination_service_namespace", "shop"),
        ("destination_workload_namespace", "shop"),
    ];
    let count = || -> Result<f64> {
        let metrics = shop.waypoint.pod().metrics()?;
        Ok(metrics.sum("istio_requests_total", &labels))
    };
    // The one by which the shop was found open may be counted after its answer.
    shop.until("the first request in the metrics", |shop| {
        let metrics = shop.waypoint.pod().metrics();
        let good = [("response_code", "200")];
        metrics.is_ok_and(|it| it.sum("istio_requests_total", &good) >= 1.0)
    })?;
    let before = count()?;
    shop.runtime.block_on(async {
        for _ in 0..5 {
            shop.get("/counted").await?.is(200)?;
        }
        anyhow::Ok(())
    })?;
    shop.until("five more requests in the metrics", |_| {
        count().is_ok_and(|now| now == before + 5.0)
    })?;
    let took = "istio_request_duration_milliseconds_count";
    shop.until("how long each took", |shop| {
        let metrics = shop.waypoint.pod().metrics();
        metrics.is_ok_and(|it| it.sum(took, &labels) == before + 5.0)
    })?;
    let metrics = shop.waypoint.pod().metrics()?;
    ensure!(metrics.sum("istio_response_bytes_sum", &labels) > 0.0);
    ensure!(metrics.sum("istio_build", &[]) == 1.0);
    let available = [("state", "available")];
    ensure!(metrics.sum("ambit_certificates", &available) == 1.0);
    let asked = metrics.sum("ambit_certificate_requests_total", &[]);
    ensure!(asked == 1.0, "one for all connections: {asked}");
    ensure!(metrics.sum("ambit_certificate_expiry_timestamp_seconds", &[]) > 0.0);
    let lists = metrics.select("ambit_crl_lists", &[]).count();
    ensure!(
        lists == 1,
        "whether there are lists of revoked ones is said"
    );
    Ok(())
}

fn lines(shop: &Shop<'_>) -> Result<()> {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    shop.runtime.block_on(async {
        let mut client = One::to(&shop.client, shop.at(80)).await?;
        let request = Request::post("/logged?a=b")
            .header("host", "web.shop")
            .header("user-agent", "tests")
            .header("x-request-id", "id-7")
            .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
            .body(Full::new(Bytes::from_static(b"12345")))?;
        client.ask(request).await?.is(200)?;
        anyhow::Ok(())
    })?;
    let log = shop.waypoint.pod().access_log();
    let line = log.find("the request", |line| line.field("request_id") == "id-7")?;
    for (field, value) in [
        ("method", "POST"),
        ("path", "/logged?a=b"),
        ("host", "web.shop"),
        ("code", "200"),
        ("flags", "-"),
        ("bytes_recv", "5"),
        ("user_agent", "tests"),
        ("trace_id", trace),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/web"),
        ("dst.service", shop.web.host.as_str()),
        ("dst.port", "80"),
    ] {
        ensure!(line.field(field) == value, "{field}: {line:?}");
    }
    Ok(())
}

fn doors(shop: &Shop<'_>) -> Result<()> {
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: no-secrets }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules: [{ to: [{ operation: { paths: ['/secret*'] } }] }]
";
    shop.apply_until("policy", policy, "/secret", 403)?;
    let pod = shop.waypoint.pod();
    let dump = pod.config_dump()?;
    let resources = dump["resources"].as_array().context("resources")?;
    let is_policy = |resource: &&Value| resource["origin"]["name"] == "no-secrets";
    let shown = resources.iter().find(is_policy).context("the policy")?;
    ensure!(shown["authorization"]["action"] == "DENY", "{shown}");
    let endpoints = dump["calls"].to_string();
    ensure!(
        shop.apps.iter().all(|app| endpoints.contains(app.name())),
        "{endpoints}"
    );

    let host = shop.web.host.as_str();
    let explained = |rest: &str| -> Result<Value> {
        let page = pod.ask(&format!("/explain?host={host}&port=80{rest}"))?;
        Ok(serde_json::from_str(&page)?)
    };
    let secret = explained("&path=/a/../secret")?;
    ensure!(secret["answer"] == 403, "{secret}");
    ensure!(secret["path"] == "/secret", "{secret}");
    ensure!(
        secret["because"].to_string().contains("no-secrets"),
        "{secret}"
    );
    let open = explained("&path=/open")?;
    ensure!(open["authorization"]["verdict"] == "allow", "{open}");
    ensure!(explained("&path=relative").is_err());
    shop.lab.delete_yaml("policy")
}

fn rates(shop: &Shop<'_>) -> Result<()> {
    let policy = "
apiVersion: ambit.io/v1alpha1
kind: RateLimitPolicy
metadata: { namespace: shop, name: few }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  limits:
  - { name: each, requests: 3, window: 1h, keys: [{ by: Header, name: x-user }], when: { path: { prefix: /limited } } }
";
    shop.lab.apply_yaml("limit", policy)?;
    shop.until("the limit to be known", |shop| {
        let dump = shop.waypoint.pod().config_dump().unwrap_or_default();
        dump["resources"].to_string().contains("rate_limit")
    })?;
    shop.runtime.block_on(async {
        for (user, path, expected) in [
            ("anna", "/limited/a", [200, 200, 200, 429, 429]),
            ("bob", "/limited/a", [200, 200, 200, 429, 429]),
            ("anna", "/free", [200; 5]),
        ] {
            let mut client = One::to(&shop.client, shop.at(80)).await?;
            for status in expected {
                let request = Request::get(path)
                    .header("host", "web.shop")
                    .header("x-user", user);
                let heard = client
                    .ask(request.body(Full::default())?)
                    .await?
                    .is(status)?;
                let told = heard.headers.contains_key("ratelimit");
                ensure!(told == path.starts_with("/limited"), "{heard:?}");
                ensure!(
                    heard.headers.contains_key("retry-after") == (status == 429),
                    "{heard:?}"
                );
            }
        }
        anyhow::Ok(())
    })?;
    let log = shop.waypoint.pod().access_log();
    log.find("a refusal", |line| {
        line.field("flags") == "RL" && line.field("code") == "429"
    })?;
    shop.lab.delete_yaml("limit")
}

fn hashed(shop: &Shop<'_>) -> Result<()> {
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: sticky }
spec:
  host: web.shop.svc.cluster.local
  trafficPolicy:
    loadBalancer: { consistentHash: { httpHeaderName: x-user } }
";
    shop.lab.apply_yaml("sticky", rule)?;
    shop.until("the rule to be known", |shop| {
        let dump = shop.waypoint.pod().config_dump().unwrap_or_default();
        dump["resources"].to_string().contains("backend_policy")
    })?;
    shop.runtime.block_on(async {
        let mut all = BTreeSet::new();
        for user in 0..24 {
            let mut apps = BTreeSet::new();
            for _ in 0..4 {
                let mut client = One::to(&shop.client, shop.at(80)).await?;
                let request = Request::get("/")
                    .header("host", "web.shop")
                    .header("x-user", user);
                let heard = client.ask(request.body(Full::default())?).await?.is(200)?;
                apps.extend(heard.saw("app"));
            }
            ensure!(apps.len() == 1, "user {user} was with {apps:?}");
            all.extend(apps);
        }
        ensure!(all.len() == 2, "all were with {all:?}");
        anyhow::Ok(())
    })?;
    shop.lab.delete_yaml("sticky")
}

fn known(shop: &Shop<'_>, name: &str, word: &str) -> Result<()> {
    shop.until(&format!("{name} to be known"), |shop| {
        let dump = shop.waypoint.pod().config_dump().unwrap_or_default();
        let resources = dump["resources"].as_array().into_iter().flatten();
        let named = |resource: &&Value| resource["origin"]["name"] == name;
        resources
            .filter(named)
            .any(|resource| resource.to_string().contains(word))
    })
}

fn breaking(shop: &Shop<'_>) -> Result<()> {
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: narrow }
spec:
  host: web.shop.svc.cluster.local
  trafficPolicy:
    connectionPool: { http: { http2MaxRequests: 2 } }
";
    shop.lab.apply_yaml("narrow", rule)?;
    known(shop, "narrow", "\"requests\":2")?;
    let inside = |expected: u64| {
        shop.until(&format!("{expected} requests inside"), |shop| {
            let dump = shop.waypoint.pod().config_dump().unwrap_or_default();
            let calls = dump["calls"].as_array().into_iter().flatten();
            let mut backends =
                calls.flat_map(|call| call["backends"].as_array().into_iter().flatten());
            backends.any(|backend| {
                backend["port"] == 90 && backend["gates"]["requests"]["inside"] == expected
            })
        })
    };
    let ask = |path: &'static str| {
        let (client, at) = (shop.client.clone(), shop.at(90));
        async move {
            let request = Request::get(format!("http://web.shop:90{path}"));
            let request = request.version(Version::HTTP_2).body(Full::default())?;
            Two::to(&client, at).await?.ask(request).await
        }
    };
    let hanging = [(); 2].map(|()| shop.runtime.spawn(ask("/hang")));
    inside(2)?;
    shop.runtime.block_on(async { ask("/").await?.is(503) })?;
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    inside(0)?;
    shop.runtime.block_on(async { ask("/").await?.is(200) })?;
    let log = shop.waypoint.pod().access_log();
    log.find("a refusal", |line| line.field("flags").contains("UO"))?;
    shop.lab.delete_yaml("narrow")
}

/// A pod that nobody answers in: its requests go elsewhere, and then it is left out.
fn left_out(shop: &Shop<'_>) -> Result<()> {
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: watchful }
spec:
  host: web.shop.svc.cluster.local
  trafficPolicy:
    outlierDetection: { consecutive5xxErrors: 2, baseEjectionTime: 300s, maxEjectionPercent: 50 }
";
    shop.lab.apply_yaml("watchful", rule)?;
    known(shop, "watchful", "outliers")?;
    let silent = shop.lab.pod("shop/silent").node(0).service_account("web");
    let silent = silent.label("app", "web").start()?;
    let is_out = |shop: &Shop<'_>| {
        let dump = shop.waypoint.pod().config_dump().unwrap_or_default();
        let calls = dump["calls"].as_array().into_iter().flatten();
        let backends = calls.flat_map(|call| call["backends"].as_array().into_iter().flatten());
        let mut endpoints =
            backends.flat_map(|backend| backend["endpoints"].as_array().into_iter().flatten());
        endpoints.any(|endpoint| {
            let uid = endpoint["workload"].as_str().unwrap_or_default();
            uid.ends_with("/silent") && endpoint["ejected_for_seconds"].is_u64()
        })
    };
    shop.until("the silent pod to be left out", |shop| {
        let answered = shop.runtime.block_on(shop.get("/"));
        answered.is_ok_and(|heard| heard.status == 200 || heard.status == 503) && is_out(shop)
    })?;
    shop.runtime.block_on(async {
        for _ in 0..30 {
            shop.get("/").await?.is(200)?;
        }
        anyhow::Ok(())
    })?;
    drop(silent);
    shop.lab.delete_yaml("watchful")
}
