//! Again, aside, and with whom a client stays: what a rule says of tries, as clients and apps see it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::http::Request;
use anyhow::{Context, Result, ensure};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::app::{App, Heard, One, get};
use super::shop::{Shop, in_shop};

#[test]
fn requests_are_tried_again_copied_and_kept_together_as_their_rule_says() {
    in_shop(|shop| {
        again(shop).context("retries")?;
        within_budget(shop).context("a retry budget")?;
        beside(shop).context("hedging")?;
        aside(shop).context("mirrors")?;
        far_behind(shop).context("mirrors of large bodies")?;
        stays(shop).context("sessions")?;
        shares(shop).context("weights")?;
        stays_among_shares(shop).context("sessions among shares")?;
        elsewhere(shop).context("WebSockets of a service with a dead endpoint")
    });
}

fn route(rules: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: shop, name: tries }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: web, port: 80 }}]
  rules:
{rules}"
    )
}

/// A body is sent again whole; what is not to be tried again is not.
fn again(shop: &Shop<'_>) -> Result<()> {
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /fail-first } }]
    retry: { codes: [503], attempts: 2, backoff: 10ms }
    backendRefs: [{ name: web, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /status } }]
    backendRefs: [{ name: web, port: 80 }]
";
    shop.apply_until("tries", &route(rules), "/unrouted", 404)?;
    shop.runtime.block_on(async {
        let mut client = One::to(&shop.client, shop.at(80)).await?;
        for number in 0..8 {
            let heard = client
                .ask(post(&format!("again-{number}"), 20_000)?)
                .await?;
            let heard = heard.is(200)?;
            ensure!(heard.saw("bytes").as_deref() == Some("20000"), "{heard:?}");
        }
        // More than is kept cannot be sent again: the app's own answer is the answer.
        let heard = client.ask(post("large", 300_000)?).await?.is(503)?;
        ensure!(heard.saw("bytes").as_deref() == Some("300000"), "{heard:?}");
        client.get("/status/503").await?.is(503)?;
        anyhow::Ok(())
    })
}

/// Of requests that would all be tried again, as many are as the budget has.
fn within_budget(shop: &Shop<'_>) -> Result<()> {
    let policy = "
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: { namespace: shop, name: web }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  retryConstraint:
    budget: { percent: 1, interval: 1h }
    minRetryRate: { count: 3, interval: 1h }
";
    shop.lab.apply_yaml("budget", policy)?;
    let tried = |round: usize| {
        shop.runtime.block_on(async {
            let mut client = One::to(&shop.client, shop.at(80)).await?;
            let mut good = 0;
            for number in 0..10 {
                let key = format!("budget-{round}-{number}");
                good += u32::from(client.ask(post(&key, 10)?).await?.status == 200);
            }
            anyhow::Ok(good)
        })
    };
    // Each round costs requests, so the policy is in force when one of them is not tried again.
    let (mut rounds, begun) = (Vec::new(), Instant::now());
    while rounds.last() != Some(&0) && begun.elapsed() < PATIENCE {
        rounds.push(tried(rounds.len())?);
    }
    // Three retries for sure, one for every hundred requests; before it came, all.
    let counted: u32 = rounds.iter().filter(|good| **good < 10).sum();
    ensure!(rounds.last() == Some(&0), "{rounds:?}");
    ensure!(counted <= 3 + 9, "{rounds:?}");
    shop.lab.delete_yaml("budget")?;
    let round = Cell::new(rounds.len());
    shop.until("the budget to go", |_| {
        round.set(round.get() + 1);
        tried(round.get()).is_ok_and(|good| good == 10)
    })
}

/// Who is slow is asked beside, and given up when the other answers; as far as the budget goes, and never twice what
/// may change something.
fn beside(shop: &Shop<'_>) -> Result<()> {
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /linger } }]
    timeouts: { request: 8s }
    backendRefs: [{ name: web, port: 80 }]
";
    let hedged = route(rules).replace(
        "name: tries }",
        "name: tries, annotations: { ambit.io/hedge-after: 100ms, ambit.io/hedge-at-most: '1' } }",
    );
    shop.apply_until("tries", &hedged, "/fail-first", 404)?;
    let asked = |method: &str, key: &str| {
        shop.runtime.block_on(async {
            let request = Request::builder().method(method).uri("/linger");
            let request = request.header("host", "web.shop").header("x-slow", "one");
            let request = request.header("x-request-id", key).header("x-key", key);
            let request = request.body(Full::default())?;
            One::to(&shop.client, shop.at(80)).await?.ask(request).await
        })
    };
    let labels = [("response_flags", "HG"), ("response_code", "200")];
    let counted = || {
        let metrics = shop.waypoint.pod().metrics();
        metrics.map_or(0.0, |it| it.sum("istio_requests_total", &labels))
    };
    let log = shop.waypoint.pod().access_log();
    let mut twice = Vec::new();
    for number in 0..24 {
        let key = format!("hedge-{number}");
        let heard = asked("GET", &key)?.is(200)?;
        ensure!(heard.saw("app").as_deref() == Some("two"), "{heard:?}");
        let line = log.find("the request", |line| line.field("request_id") == key)?;
        ensure!(line.field("dst.workload") == "two", "{line:?}");
        if line.field("flags") == "HG" {
            ensure!(line.field("tries") == "2", "{line:?}");
            twice.push(key);
        }
    }
    // One of two is asked first, so none of them would be chance of one in sixteen million.
    ensure!(!twice.is_empty(), "nobody was asked beside");
    shop.until("them to be counted", |_| counted() >= twice.len() as f64)?;
    shop.until("the slow app to be left alone", |shop| {
        let kept = shop.runtime.block_on(async {
            let mut slow = One::to(&shop.client, shop.apps[0].at(8080)).await?;
            anyhow::Ok(slow.get("/kept").await?.text())
        });
        let kept = kept.unwrap_or_default();
        // Not each: the quick one may be asked first, be late by chance, and answer before the other has heard of it.
        twice
            .iter()
            .any(|key| kept.contains(&format!("left={key}")))
    })?;
    let mut codes = Vec::new();
    while codes.last() != Some(&504) && codes.len() < 24 {
        codes.push(asked("POST", &format!("once-{}", codes.len()))?.status);
    }
    ensure!(
        codes.last() == Some(&504),
        "a POST was made twice: {codes:?}"
    );

    let policy = "
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: { namespace: shop, name: web }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  retryConstraint:
    budget: { percent: 1, interval: 1h }
    minRetryRate: { count: 1, interval: 1h }
";
    shop.lab.apply_yaml("budget", policy)?;
    let (mut codes, begun) = (Vec::new(), Instant::now());
    while codes.last() != Some(&504) && begun.elapsed() < PATIENCE {
        codes.push(asked("GET", &format!("bounded-{}", codes.len()))?.status);
    }
    ensure!(codes.last() == Some(&504), "there is no bound: {codes:?}");
    shop.lab.delete_yaml("budget")
}

fn post(key: &str, bytes: usize) -> Result<Request<Full<bytes::Bytes>>> {
    let request = Request::post("/fail-first").header("host", "web.shop");
    Ok(request
        .header("x-key", key)
        .body(Full::from(vec![7; bytes]))?)
}

/// A WebSocket that one endpoint cannot have seen begins with another one.
fn elsewhere(shop: &Shop<'_>) -> Result<()> {
    let half = |name: &str| shop.lab.pod(name).node(0).label("app", "half").start();
    let (live, _dead) = (half("shop/live")?, half("shop/dead")?);
    let _app = App::start(&shop.runtime, &live, 8080)?;
    let half = shop.lab.service_of("shop/half", &[("http", 80, 8080)])?;
    let asked = || {
        shop.runtime.block_on(async {
            let mut client = One::to(&shop.client, half.at(80)).await?;
            let mut request = get("/upgrade");
            let headers = request.headers_mut();
            headers.insert("connection", "upgrade".parse()?);
            headers.insert("upgrade", "websocket".parse()?);
            anyhow::Ok(client.send(request).await?.status().as_u16())
        })
    };
    shop.until("it to be served", |_| {
        asked().is_ok_and(|status| status == 101)
    })?;
    // One of the two is drawn for each.
    for number in 0..16 {
        let status = asked()?;
        ensure!(status == 101, "{number}: {status}");
    }
    Ok(())
}

/// A mirror gets whole requests, those that it should, and its answers are nobody's.
fn aside(shop: &Shop<'_>) -> Result<()> {
    let pod = shop.lab.pod("shop/aside").node(1).label("app", "aside");
    let pod = pod.start()?;
    let _app = App::start(&shop.runtime, &pod, 8080)?;
    let aside = shop.lab.service_of("shop/aside", &[("http", 80, 8080)])?;
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /keep } }]
    filters:
    - { type: RequestMirror, requestMirror: { backendRef: { name: aside, port: 80 } } }
    - { type: RequestMirror, requestMirror: { backendRef: { name: aside, port: 80 }, percent: 0 } }
    backendRefs: [{ name: web, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /hang } }]
    filters:
    - { type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /hang } } }
    backendRefs: [{ name: web, port: 80 }]
    timeouts: { request: 300ms }
";
    shop.apply_until("tries", &route(rules), "/hang", 504)?;
    let kept = || {
        shop.runtime.block_on(async {
            let mut direct = One::to(&shop.client, aside.at(80)).await?;
            anyhow::Ok(direct.get("/kept").await?.is(200)?.text())
        })
    };
    shop.until("the mirror to be served", |_| kept().is_ok())?;
    shop.runtime.block_on(async {
        let mut client = One::to(&shop.client, shop.at(80)).await?;
        for bytes in [0, 10, 50_000] {
            let request = Request::post("/keep").header("host", "web.shop");
            let request = request.header("x-key", "copy");
            let request = request.body(Full::from(vec![7; bytes]))?;
            let heard = client.ask(request).await?.is(200)?;
            ensure!(
                heard.saw("app").as_deref() != Some("shop/aside"),
                "{heard:?}"
            );
        }
        anyhow::Ok(())
    })?;
    shop.until("each request to be copied, once and whole", |_| {
        let mut lines: Vec<_> = kept()
            .unwrap_or_default()
            .lines()
            .map(String::from)
            .collect();
        lines.sort();
        lines == ["copy=0", "copy=10", "copy=50000"]
    })
}

/// A body of 100 MB gets to its app whatever becomes of its copies: a mirror that keeps up has all of it, one that reads
/// nothing is given up, counted and told of.
fn far_behind(shop: &Shop<'_>) -> Result<()> {
    let pod = shop.lab.pod("shop/deaf").node(1).label("app", "deaf");
    let pod = pod.start()?;
    let deaf = pod.listen(8080)?;
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = deaf.accept() {
            kept.push(stream);
        }
    });
    shop.lab.service_of("shop/deaf", &[("http", 80, 8080)])?;
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /keep } }]
    filters:
    - { type: RequestMirror, requestMirror: { backendRef: { name: aside, port: 80 } } }
    - { type: RequestMirror, requestMirror: { backendRef: { name: deaf, port: 80 } } }
    backendRefs: [{ name: web, port: 80 }]
";
    shop.apply_until("tries", &route(rules), "/hang", 404)?;
    let mirrored = |service: &str, outcome: &str| {
        let labels = [("service", service), ("outcome", outcome)];
        let metrics = shop.waypoint.pod().metrics();
        metrics.map_or(0.0, |it| it.sum("ambit_mirrored_total", &labels))
    };
    let (kept_up, gave_up) = (
        mirrored("aside.shop.svc.cluster.local", "answered"),
        mirrored("deaf.shop.svc.cluster.local", "behind"),
    );
    let body = bytes::Bytes::from(vec![7; 100 << 20]);
    let sent = || {
        shop.runtime.block_on(async {
            let tcp = TokioIo::new(super::app::connect(&shop.client, shop.at(80))?);
            let (mut sender, connection) = http1::handshake(tcp).await?;
            tokio::spawn(connection);
            let request = Request::post("/keep").header("host", "web.shop");
            let request = request.header("x-key", "large");
            let sending = sender.send_request(request.body(Full::new(body.clone()))?);
            let answer = tokio::time::timeout(LONG, sending).await??;
            Heard::of(answer).await?.is(200)
        })
    };
    // A machine that is busy may make a mirror slow that is not.
    let done = || {
        sent()?;
        shop.until("one copy to be whole, the other given up", |_| {
            mirrored("aside.shop.svc.cluster.local", "answered") > kept_up
                && mirrored("deaf.shop.svc.cluster.local", "behind") > gave_up
        })
    };
    done().or_else(|_| done()).or_else(|_| done())?;
    shop.until("somebody to be told", |shop| {
        let log = std::fs::read_to_string(shop.waypoint.pod().component().log_path());
        log.unwrap_or_default().lines().any(|line| {
            line.contains("mirror: copies are given up")
                && line.contains("deaf.shop.svc.cluster.local")
        })
    })
}

fn stays(shop: &Shop<'_>) -> Result<()> {
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /stay } }]
    sessionPersistence: { sessionName: stay, type: Cookie }
    backendRefs: [{ name: web, port: 80 }]
";
    shop.apply_until("tries", &route(rules), "/keep", 404)?;
    shop.runtime.block_on(async {
        let first = shop.get("/stay").await?.is(200)?;
        let given = first.headers.get("set-cookie").context("no cookie")?;
        let cookie = given.to_str()?.split(';').next().unwrap_or_default();
        ensure!(cookie.starts_with("stay="), "{cookie}");
        for _ in 0..12 {
            let mut request = get("/stay");
            request.headers_mut().insert("cookie", cookie.parse()?);
            let mut client = One::to(&shop.client, shop.at(80)).await?;
            let heard = client.ask(request).await?.is(200)?;
            ensure!(heard.saw("app") == first.saw("app"), "{heard:?}");
            ensure!(!heard.headers.contains_key("set-cookie"), "it knows");
        }
        anyhow::Ok(())
    })
}

fn shares(shop: &Shop<'_>) -> Result<()> {
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /share } }]
    backendRefs:
    - { name: web, port: 80, weight: 3, filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-to, value: first }] } }] }
    - { name: web, port: 90, weight: 1, filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-to, value: second }] } }] }
    - { name: missing, port: 80, weight: 0 }
";
    shop.apply_until("tries", &route(rules), "/stay", 404)?;
    let seen = shop.runtime.block_on(async {
        let mut client = One::to(&shop.client, shop.at(80)).await?;
        let mut seen = BTreeMap::<String, usize>::new();
        for _ in 0..200 {
            let heard: Heard = client.get("/share").await?.is(200)?;
            *seen
                .entry(heard.saw("x-to").unwrap_or_default())
                .or_default() += 1;
        }
        anyhow::Ok(seen)
    })?;
    let first = seen.get("first").copied().unwrap_or_default();
    // Of 200 draws with 3/4 each: 100 or 190 are further off than chance goes.
    ensure!((110..190).contains(&first) && seen.len() == 2, "{seen:?}");
    Ok(())
}

/// Who came once stays with its endpoint where requests are shared among services, too.
fn stays_among_shares(shop: &Shop<'_>) -> Result<()> {
    let pod = shop.lab.pod("shop/third").node(1).label("app", "third");
    let pod = pod.start()?;
    let _app = App::start(&shop.runtime, &pod, 8080)?;
    shop.lab.service_of("shop/third", &[("http", 80, 8080)])?;
    let rules = "
  - matches: [{ path: { type: PathPrefix, value: /split } }]
    sessionPersistence: { sessionName: split, type: Cookie }
    backendRefs:
    - { name: web, port: 80, weight: 1 }
    - { name: third, port: 80, weight: 1 }
";
    shop.apply_until("tries", &route(rules), "/share", 404)?;
    let asked = |cookie: Option<&str>| {
        shop.runtime.block_on(async {
            let mut request = get("/split");
            if let Some(cookie) = cookie {
                request.headers_mut().insert("cookie", cookie.parse()?);
            }
            let mut client = One::to(&shop.client, shop.at(80)).await?;
            client.ask(request).await?.is(200)
        })
    };
    for third in [true, false] {
        // Whom a client meets first is drawn.
        let first = RefCell::new(None);
        shop.until("a client of each service", |_| {
            let is_there = |heard: &Heard| {
                let app = heard.saw("app").unwrap_or_default();
                app.ends_with("third") == third
            };
            first.replace(asked(None).ok().filter(is_there));
            first.borrow().is_some()
        })?;
        let first: Heard = first.into_inner().context("nobody answered")?;
        let given = first.headers.get("set-cookie").context("no cookie")?;
        let cookie = given.to_str()?.split(';').next().unwrap_or_default();
        for _ in 0..24 {
            let heard = asked(Some(cookie))?;
            ensure!(heard.saw("app") == first.saw("app"), "{heard:?}");
            ensure!(!heard.headers.contains_key("set-cookie"), "it knows");
        }
    }
    Ok(())
}

/// For 100 MB through debug builds, three times at once.
const LONG: Duration = Duration::from_secs(120);
/// For what was applied to be in force.
const PATIENCE: Duration = Duration::from_secs(60);
