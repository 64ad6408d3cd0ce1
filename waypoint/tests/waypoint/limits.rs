//! Limits that a rate limit service counts for all proxies together: from a policy to what client and app see, with a
//! service of ours and, where one is given, with Envoy's own.

#[path = "limits/counter.rs"]
mod counter;

use ::http::Request;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use lab::{Lab, Process};

use self::counter::Counter;
use super::app::{Heard, One, text};
use super::shop::{Shop, in_shop_of};

/// At port 9000 somebody counts, at 9100 there is nobody.
const PROVIDERS: &str = "
extensionProviders:
- name: limits
  envoyRateLimit: { service: shop/counter.shop.svc.cluster.local, port: 9000, timeout: 20s }
- name: impatient
  envoyRateLimit: { service: shop/counter.shop.svc.cluster.local, port: 9000, timeout: 0.2s }
- name: nobody
  envoyRateLimit: { service: shop/counter.shop.svc.cluster.local, port: 9100, timeout: 5s }
";

/// As the service has it, that of ours too: of those who are not told how many, carl may once an hour.
const CONFIGURED: &str = "
domain: shop
descriptors:
- { key: x-user, value: carl, rate_limit: { unit: hour, requests_per_unit: 1 } }
";

#[test]
fn a_rate_limit_service_is_asked_and_obeyed() {
    with_providers(|shop| {
        let _counter = Counter::start(shop)?;
        expected(shop)?;
        shop.runtime.block_on(async {
            told(shop).await.context("what is told")?;
            nobody(shop).await.context("nobody there")
        })?;
        shop.each_asked(
            "ratelimit",
            &[
                ("limits", "ok"),
                ("limits", "refused"),
                ("impatient", "timeout"),
                ("nobody", "error"),
                ("someone", "error"),
            ],
        )?;
        by_route(shop).context("limits of a route")
    });
}

/// `PEER_RATELIMIT`: github.com/envoyproxy/ratelimit/src/service_cmd; `redis-server` is in the path.
#[test]
#[ignore = "needs PEER_RATELIMIT and redis-server"]
fn envoys_rate_limit_service_is_asked_and_obeyed() {
    let program = std::env::var("PEER_RATELIMIT").expect("PEER_RATELIMIT names the program");
    with_providers(|shop| {
        let _running = peer(shop, &program)?;
        expected(shop)
    });
}

fn with_providers(test: impl FnOnce(&Shop<'_>) -> Result<()>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), PROVIDERS).unwrap();
    let path = file.path().display().to_string();
    in_shop_of(Lab::builder().istiod_env("MESH_CONFIG", &path), test);
}

fn peer(shop: &Shop<'_>, program: &str) -> Result<[Process; 2]> {
    let pod = shop.lab.pod("shop/counter").node(0);
    let pod = pod
        .service_account("counter")
        .label("app", "counter")
        .start()?;
    let redis = pod.spawn("redis", ["redis-server", "--save", "", "--port", "6379"])?;
    pod.until_listening(&redis, 6379)?;
    let configured = pod.dir().join("limits/config");
    std::fs::create_dir_all(&configured)?;
    std::fs::write(configured.join("shop.yaml"), CONFIGURED)?;
    let root = pod.dir().display().to_string();
    let mut command = pod.command([program])?;
    for (name, value) in [
        ("RUNTIME_ROOT", &*root),
        ("RUNTIME_SUBDIRECTORY", "limits"),
        ("RUNTIME_WATCH_ROOT", "false"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", "127.0.0.1:6379"),
        ("USE_STATSD", "false"),
        ("GRPC_PORT", "9000"),
        ("PORT", "8880"),
    ] {
        command = command.env(name, value);
    }
    let service = command.spawn("ratelimit")?;
    pod.until_listening(&service, 9000)?;
    let ports = [("grpc", 9000, 9000), ("nobody", 9100, 9100)];
    shop.lab.service_of("shop/counter", &ports)?;
    Ok([redis, service])
}

fn policy(name: &str, of: &str) -> String {
    format!(
        "---
apiVersion: ambit.io/v1alpha1
kind: RateLimitPolicy
metadata: {{ namespace: shop, name: {name} }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
{of}"
    )
}

/// What everybody sees of it, whoever counts.
fn expected(shop: &Shop<'_>) -> Result<()> {
    let limit = |path: &str, requests: u64| {
        format!(
            "  - requests: {requests}
    window: 1h
    keys: [{{ by: Header, name: x-user }}]
    when: {{ path: {{ prefix: {path} }} }}
"
        )
    };
    let global = |provider: &str, more: &str| {
        format!("  global: {{ provider: {provider}, domain: shop{more} }}\n")
    };
    let limits = |path, requests| format!("  limits:\n{}", limit(path, requests));
    let yaml = [
        policy(
            "each",
            &(limits("/each", 2) + &limit("/none", 0) + &global("limits", "")),
        ),
        policy(
            "known",
            &(limits("/known", 9) + &global("limits", ", limitsFrom: Service")),
        ),
        policy(
            "impatient",
            &(limits("/impatient", 9) + &global("impatient", "")),
        ),
        policy("closed", &(limits("/closed", 9) + &global("nobody", ""))),
        policy(
            "open",
            &(limits("/open", 9) + &global("nobody", ", onFailure: Allow")),
        ),
        policy(
            "stranger",
            &(limits("/stranger", 9) + &global("someone", "")),
        ),
    ]
    .concat();
    shop.apply_until("limits", &yaml, "/none", 429)?;
    shop.until("all limits to be known", |shop| {
        let got = shop.runtime.block_on(shop.get("/stranger"));
        got.is_ok_and(|heard| heard.status == 500)
    })?;
    shop.runtime.block_on(async {
        for (user, path, expected) in [
            ("anna", "/each/a", &[200, 200, 429, 429][..]),
            ("bert", "/each/a", &[200]),
            // Who says nothing is somebody too.
            ("", "/each/a", &[200, 200, 429]),
            ("carl", "/known", &[200, 429]),
            ("dora", "/known", &[200, 200, 200]),
        ] {
            for (at, status) in expected.iter().enumerate() {
                let heard = ask(shop, path, user).await?;
                ensure!(heard.status == *status, "{user} {path} {at}: {heard:?}");
                let limit = text(&heard.headers, "ratelimit");
                let left = format!("r={};", 1_usize.saturating_sub(at));
                if path == "/each/a" {
                    ensure!(limit.contains(&left), "{user} {at}: {heard:?}");
                    ensure!(
                        text(&heard.headers, "ratelimit-policy") == "\"each\";q=2;w=3600",
                        "{heard:?}"
                    );
                }
                let again = heard.headers.contains_key("retry-after");
                ensure!(again == (*status == 429), "{heard:?}");
            }
        }
        Ok(())
    })
}

async fn ask(shop: &Shop<'_>, path: &str, user: &str) -> Result<Heard> {
    let mut request = Request::get(path).header("host", "web.shop");
    if !user.is_empty() {
        request = request.header("x-user", user);
    }
    request = request.header("x-counted", "by myself");
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    client.ask(request.body(Full::<Bytes>::default())?).await
}

/// What the service says to app and client.
async fn told(shop: &Shop<'_>) -> Result<()> {
    let heard = ask(shop, "/each/told", "eva").await?.is(200)?;
    ensure!(heard.saw("x-counted").as_deref() == Some("1"), "{heard:?}");
    ensure!(text(&heard.headers, "x-by") == "counter", "{heard:?}");
    let heard = ask(shop, "/none", "eva").await?.is(429)?;
    ensure!(text(&heard.headers, "x-by") == "counter", "{heard:?}");
    ensure!(heard.text() == "come again", "{heard:?}");
    Ok(())
}

async fn nobody(shop: &Shop<'_>) -> Result<()> {
    ask(shop, "/closed", "anna").await?.is(500)?;
    let heard = ask(shop, "/open", "anna").await?.is(200)?;
    ensure!(heard.saw("app").is_some(), "{heard:?}");
    ask(shop, "/impatient", "slow").await?.is(500)?;
    // Two tenths of a second may pass without an answer on a busy machine, but not always.
    for number in 0.. {
        let heard = ask(shop, "/impatient", &format!("anna-{number}")).await?;
        if heard.status == 200 {
            break;
        }
        ensure!(
            number < 200,
            "whoever is in time is refused, too: {heard:?}"
        );
    }
    ask(shop, "/each", "ill").await?.is(500)?;
    ask(shop, "/free", "slow").await?.is(200)?;
    Ok(())
}

fn by_route(shop: &Shop<'_>) -> Result<()> {
    let yaml = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: counted }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /route } }]
    backendRefs: [{ name: web, port: 80 }]
---
apiVersion: ambit.io/v1alpha1
kind: QuotaPolicy
metadata: { namespace: shop, name: budget }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: counted }]
  limits: [{ name: all, requests: 0, window: 24h }]
  global: { provider: limits }
";
    shop.apply_until("route", yaml, "/route", 429)?;
    let heard = shop.runtime.block_on(ask(shop, "/route", "anna"))?;
    let policy = text(&heard.headers, "ratelimit-policy");
    ensure!(policy == "\"budget\";q=0;w=86400", "{heard:?}");
    Ok(())
}
