//! What collectors are told of real requests, and what they are not: Telemetry objects, from YAML to a collector.

#[path = "told/collector.rs"]
mod collector;

use ::http::Request;
use anyhow::{Context, Result, ensure};
use api::otlp::ExportTraceServiceRequest;
use bytes::Bytes;
use http_body_util::Full;
use lab::Lab;

use self::collector::{Collector, attribute};
use super::app::{Heard, One};
use super::shop::{Shop, in_shop_of};

/// At 4319 there is nobody.
const SETTINGS: &str = "
accessLogFile: /dev/stdout
accessLogFormat: \"usual %REQ(:PATH)% %RESPONSE_CODE%\\n\"
extensionProviders:
- name: otel
  opentelemetry: { service: shop/collector.shop.svc.cluster.local, port: 4317 }
- name: over-http
  opentelemetry:
    service: collector.shop.svc.cluster.local
    port: 4318
    http: { path: /v1/traces, timeout: 5s, headers: [{ name: x-key, value: k }] }
- name: zipkin
  zipkin: { service: shop/collector.shop.svc.cluster.local, port: 4318 }
- name: nobody
  opentelemetry: { service: shop/collector.shop.svc.cluster.local, port: 4319 }
- name: lines
  envoyOtelAls:
    service: shop/collector.shop.svc.cluster.local
    port: 4317
    logName: shop-log
    logFormat:
      text: '%REQ(:METHOD)% %REQ(:PATH)%'
      labels: { code: '%RESPONSE_CODE%', by: '%DOWNSTREAM_PEER_URI_SAN%', server: '%RESP(X-APP)%' }
- name: json
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat: { labels: { told: 'json', path: '%REQ(:PATH)%', code: '%RESPONSE_CODE%' } }
defaultConfig: { tracing: { sampling: 100 } }
";

#[test]
fn collectors_are_told_what_telemetry_objects_say() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SETTINGS).unwrap();
    let path = file.path().display().to_string();
    let lab = Lab::builder().istiod_env("MESH_CONFIG", &path);
    in_shop_of(lab, |shop| {
        let collector = Collector::start(shop)?;
        usual(shop).context("the usual lines")?;
        spans(shop, &collector).context("spans")?;
        over_http(shop, &collector).context("over HTTP")?;
        lines(shop, &collector).context("lines")?;
        labels(shop).context("labels")?;
        nobody(shop).context("nobody there")
    });
}

/// How often the waypoint's log says that.
fn said(shop: &Shop<'_>, text: &str) -> usize {
    let log =
        std::fs::read_to_string(shop.waypoint.pod().component().log_path()).unwrap_or_default();
    log.lines().filter(|line| line.contains(text)).count()
}

/// The mesh's settings say how lines are written.
fn usual(shop: &Shop<'_>) -> Result<()> {
    shop.until("the mesh's form to be known", |shop| {
        let _ = shop.runtime.block_on(ask(shop, "/usual", &[]));
        said(shop, "usual /usual 200") >= 1
    })?;
    shop.runtime
        .block_on(async { ask(shop, "/usual?a=1", &[]).await?.is(200) })?;
    shop.until("a line in the mesh's form", |shop| {
        said(shop, "usual /usual?a=1 200") == 1
    })
}

fn telemetry(spec: &str) -> String {
    format!(
        "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{ namespace: shop, name: told }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: way }}]
{spec}"
    )
}

async fn ask(shop: &Shop<'_>, path: &str, headers: &[(&str, &str)]) -> Result<Heard> {
    let mut request = Request::get(path).header("host", "web.shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    client.ask(request.body(Full::<Bytes>::default())?).await
}

const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn spans(shop: &Shop<'_>, collector: &Collector) -> Result<()> {
    let sampled = format!("00-{ID}-00f067aa0ba902b7-01");
    shop.runtime.block_on(async {
        // Nobody traces yet: what the client says passes as it is.
        let heard = ask(shop, "/before", &[("traceparent", &sampled)]).await?;
        ensure!(
            heard.saw("traceparent").as_ref() == Some(&sampled),
            "{heard:?}"
        );
        Ok(())
    })?;
    let yaml = telemetry(
        "  tracing:
  - providers: [{ name: otel }]
    randomSamplingPercentage: 0
    customTags:
      team: { literal: { value: carts } }
      who: { header: { name: X-User, defaultValue: nobody } }
",
    );
    shop.lab.apply_yaml("told", &yaml)?;
    shop.until("a span of a request that is sampled", |shop| {
        let said = [("traceparent", &*sampled)];
        let _ = shop.runtime.block_on(ask(shop, "/first", &said));
        !collector.spans("/first").is_empty()
    })?;
    shop.runtime.block_on(async {
        let said = [("traceparent", &*sampled), ("x-user", "anna")];
        let heard = ask(shop, "/traced", &said).await?.is(200)?;
        let told = heard.saw("traceparent").unwrap_or_default();
        ensure!(told.starts_with(&format!("00-{ID}-")) && told != sampled);
        // Not sampled, by the client or by the draw.
        let not = format!("00-{ID}-00f067aa0ba902b7-00");
        let heard = ask(shop, "/unsampled", &[("traceparent", &not)]).await?;
        ensure!(heard.saw("traceparent").as_ref() == Some(&not), "{heard:?}");
        let heard = ask(shop, "/drawn", &[]).await?;
        let told = heard.saw("traceparent").unwrap_or_default();
        ensure!(told.ends_with("-00"), "{heard:?}");
        Ok(told)
    })?;
    shop.until("the span", |_| !collector.spans("/traced").is_empty())?;
    let (resource, span) = collector.spans("/traced").remove(0);
    ensure!(attribute(&resource.attributes, "service.name").as_deref() == Some("way.shop"));
    ensure!(span.trace_id == 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    ensure!(span.parent_span_id == 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    ensure!(span.name == "web.shop.svc.cluster.local:80/*", "{span:?}");
    ensure!(span.end_time_unix_nano > span.start_time_unix_nano);
    for (name, value) in [
        ("http.method", "GET"),
        ("http.url", "http://web.shop/traced"),
        ("http.status_code", "200"),
        ("response_flags", "-"),
        ("component", "proxy"),
        ("istio.source_workload", "client"),
        ("istio.source_namespace", "shop"),
        (
            "istio.source_principal",
            "spiffe://cluster.local/ns/shop/sa/client",
        ),
        ("istio.namespace", "shop"),
        ("team", "carts"),
        ("who", "anna"),
    ] {
        let found = attribute(&span.attributes, name);
        ensure!(
            found.as_deref() == Some(value),
            "{name}: {found:?} in {span:?}"
        );
    }
    ensure!(collector.spans("/unsampled").is_empty() && collector.spans("/drawn").is_empty());
    Ok(())
}

/// The same spans in two other protocols.
fn over_http(shop: &Shop<'_>, collector: &Collector) -> Result<()> {
    let sampled = format!("00-{ID}-00f067aa0ba902b7-01");
    for (provider, path, kind) in [
        ("over-http", "/v1/traces", "application/x-protobuf"),
        ("zipkin", "/api/v2/spans", "application/json"),
    ] {
        let spec = format!("  tracing: [{{ providers: [{{ name: {provider} }}] }}]\n");
        shop.lab.apply_yaml("told", &telemetry(&spec))?;
        shop.until(path, |shop| {
            let said = [("traceparent", &*sampled)];
            let _ = shop.runtime.block_on(ask(shop, "/plain", &said));
            !collector.plain(path).is_empty()
        })?;
        let (headers, body) = collector.plain(path).remove(0);
        ensure!(headers["content-type"] == kind, "{headers:?}");
        if provider == "zipkin" {
            let spans: serde_json::Value = serde_json::from_slice(&body)?;
            ensure!(spans[0]["traceId"] == ID, "{spans}");
            ensure!(spans[0]["tags"]["http.status_code"] == "200", "{spans}");
        } else {
            ensure!(headers["x-key"] == "k", "{headers:?}");
            let told: ExportTraceServiceRequest = prost::Message::decode(body)?;
            ensure!(!told.resource_spans[0].scope_spans[0].spans.is_empty());
        }
    }
    Ok(())
}

/// To a collector and into the log, each with a condition of its own.
fn lines(shop: &Shop<'_>, collector: &Collector) -> Result<()> {
    let yaml = telemetry(
        "  accessLogging:
  - providers: [{ name: lines }]
    filter: { expression: \"request.url_path.startsWith('/lines') && response.code == 200\" }
  - providers: [{ name: json }]
    filter: { expression: \"request.headers['x-user'] == 'anna'\" }
",
    );
    shop.lab.apply_yaml("told", &yaml)?;
    shop.until("a line at the collector", |shop| {
        let _ = shop.runtime.block_on(ask(shop, "/lines/first", &[]));
        !collector.lines("/lines/first").is_empty()
    })?;
    shop.runtime.block_on(async {
        ask(shop, "/other", &[]).await?.is(200)?;
        ask(shop, "/lines/anna", &[("x-user", "anna")])
            .await?
            .is(200)
    })?;
    shop.until("the line", |_| !collector.lines("/lines/anna").is_empty())?;
    let (resource, line) = collector.lines("/lines/anna").remove(0);
    ensure!(attribute(&resource.attributes, "log_name").as_deref() == Some("shop-log"));
    ensure!(
        format!("{:?}", line.body).contains("GET /lines/anna"),
        "{line:?}"
    );
    let by = attribute(&line.attributes, "by");
    ensure!(
        by.as_deref() == Some("spiffe://cluster.local/ns/shop/sa/client"),
        "{line:?}"
    );
    ensure!(collector.lines("/other").is_empty());
    shop.until("a line of JSON", |shop| {
        said(shop, "\"told\":\"json\"") == 1
    })?;
    ensure!(
        said(
            shop,
            "{\"code\":200,\"path\":\"/lines/anna\",\"told\":\"json\"}"
        ) == 1
    );
    ensure!(
        said(shop, "usual /lines/anna") == 0,
        "others were named instead"
    );
    Ok(())
}

fn labels(shop: &Shop<'_>) -> Result<()> {
    let yaml = telemetry(
        "  metrics:
  - providers: [{ name: prometheus }]
    overrides:
    - match: { metric: REQUEST_COUNT }
      tagOverrides:
        where: { value: \"request.url_path.split('/')[1]\" }
        response_flags: { operation: REMOVE }
    - match: { metric: REQUEST_SIZE }
      disabled: true
",
    );
    shop.lab.apply_yaml("told", &yaml)?;
    shop.until("a label of our own", |shop| {
        let _ = shop.runtime.block_on(ask(shop, "/labelled/x", &[]));
        let metrics = shop.waypoint.pod().metrics();
        metrics.is_ok_and(|it| it.sum("istio_requests_total", &[("where", "labelled")]) >= 1.0)
    })?;
    let metrics = shop.waypoint.pod().metrics()?;
    let both = [("where", "labelled"), ("response_flags", "-")];
    ensure!(metrics.sum("istio_requests_total", &both) == 0.0);
    Ok(())
}

/// Requests go on; what could not be told is counted.
fn nobody(shop: &Shop<'_>) -> Result<()> {
    let spec = "  tracing: [{ providers: [{ name: nobody }], randomSamplingPercentage: 100 }]\n";
    shop.lab.apply_yaml("told", &telemetry(spec))?;
    shop.until("spans that nobody takes", |shop| {
        let answered = shop.runtime.block_on(ask(shop, "/untold", &[]));
        let failed = [("provider", "nobody"), ("outcome", "failed")];
        let metrics = shop.waypoint.pod().metrics();
        answered.is_ok_and(|heard| heard.status == 200)
            && metrics.is_ok_and(|it| it.sum("ambit_reports_total", &failed) >= 1.0)
    })?;
    shop.lab.delete_yaml("told")
}
