//! What the OpenTelemetry Collector reads in our spans and lines, by OTLP over gRPC and HTTP, and by Zipkin's protocol.
//! `OTELCOL=path cargo test --workspace --test waypoint otelcol -- --ignored`: a build of it with the receivers `otlp` and
//! `zipkin` and the exporter `otlphttp`, by which it says here what it has read.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use ::http::{Request, Response};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lab::{Lab, Pod};
use serde_json::Value;

use crate::app::{Heard, One};
use crate::shop::{Shop, in_shop_of};

const SETTINGS: &str = "
extensionProviders:
- name: grpc
  opentelemetry: { service: shop/otelcol.shop.svc.cluster.local, port: 4317 }
- name: http
  opentelemetry: { service: shop/otelcol.shop.svc.cluster.local, port: 4318, http: { path: /v1/traces } }
- name: zipkin
  zipkin: { service: shop/otelcol.shop.svc.cluster.local, port: 9411 }
- name: lines
  envoyOtelAls:
    service: shop/otelcol.shop.svc.cluster.local
    port: 4317
    logName: shop-log
    logFormat: { text: '%REQ(:METHOD)% %REQ(:PATH)%', labels: { code: '%RESPONSE_CODE%', flags: '%RESPONSE_FLAGS%' } }
";

const CONFIG: &str = "
receivers:
  otlp: { protocols: { grpc: { endpoint: '0.0.0.0:4317' }, http: { endpoint: '0.0.0.0:4318' } } }
  zipkin: { endpoint: '0.0.0.0:9411' }
exporters:
  otlphttp: { endpoint: 'http://127.0.0.1:9999', encoding: json, compression: none, sending_queue: { enabled: false } }
service:
  telemetry: { metrics: { level: none } }
  pipelines:
    traces: { receivers: [otlp, zipkin], exporters: [otlphttp] }
    logs: { receivers: [otlp], exporters: [otlphttp] }
";

#[test]
#[ignore = "needs the OpenTelemetry Collector: OTELCOL=path"]
fn the_otelcol_reads_what_we_mean() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(settings.path(), SETTINGS).unwrap();
    let path = settings.path().display().to_string();
    let lab = Lab::builder().istiod_env("MESH_CONFIG", &path);
    in_shop_of(lab, |shop| {
        let config = tempfile::NamedTempFile::new()?;
        std::fs::write(config.path(), CONFIG)?;
        let config = config.path().display().to_string();
        let program = std::env::var("OTELCOL").context("OTELCOL")?;
        let pod = shop.lab.pod("shop/otelcol").node(0);
        let pod = pod.label("app", "otelcol").start()?;
        let read = Read::default();
        read.listen(shop, &pod)?;
        let running = pod.spawn("otelcol", [&*program, "--config", &config])?;
        for port in [4317, 4318, 9411] {
            pod.until_listening(&running, port)?;
        }
        let ports = [
            ("grpc", 4317, 4317),
            ("http", 4318, 4318),
            ("http-zipkin", 9411, 9411),
        ];
        shop.lab.service_of("shop/otelcol", &ports)?;
        for provider in ["grpc", "http", "zipkin"] {
            spans(shop, &read, provider).context(provider)?;
        }
        lines(shop, &read).context("lines")
    });
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn told(shop: &Shop<'_>, spec: &str) -> Result<()> {
    let yaml = format!(
        "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{ namespace: shop, name: told }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: way }}]
{spec}"
    );
    shop.lab.apply_yaml("told", &yaml)?;
    Ok(())
}

fn ask(shop: &Shop<'_>, path: &str) -> Result<Heard> {
    let request = Request::get(path)
        .header("host", "web.shop")
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .header("tracestate", "vendor=1")
        .body(Full::<Bytes>::default())?;
    shop.runtime.block_on(async {
        let mut client = One::to(&shop.client, shop.at(80)).await?;
        client.ask(request).await
    })
}

/// What the collector has read, in its own words: OTLP as JSON.
#[derive(Clone, Default)]
struct Read(Arc<Mutex<Vec<Value>>>);

impl Read {
    /// At port 9999 of its pod.
    fn listen(&self, shop: &Shop<'_>, pod: &Pod) -> Result<()> {
        let listener = pod.listen(9999)?;
        listener.set_nonblocking(true)?;
        let _in = shop.runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let read = self.clone();
        shop.runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let read = read.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| read.clone().take(request));
                    let serving =
                        http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
                    let _ = serving.await;
                });
            }
        });
        Ok(())
    }

    async fn take(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        if let Ok(body) = request.into_body().collect().await {
            let message = serde_json::from_slice(&body.to_bytes()).unwrap();
            self.0.lock().unwrap().push(message);
        }
        let answer = Response::builder().header("content-type", "application/json");
        Ok(answer.body(Full::from("{}")).unwrap())
    }

    /// Each of those: with the resource and the scope that it came with.
    fn all(&self, [of_resources, of_scopes, records]: [&str; 3]) -> Vec<[Value; 3]> {
        let mut found = Vec::new();
        for message in &*self.0.lock().unwrap() {
            for of_resource in message[of_resources].as_array().into_iter().flatten() {
                for of_scope in of_resource[of_scopes].as_array().into_iter().flatten() {
                    for record in of_scope[records].as_array().into_iter().flatten() {
                        let (resource, scope) = (&of_resource["resource"], &of_scope["scope"]);
                        found.push([resource.clone(), scope.clone(), record.clone()]);
                    }
                }
            }
        }
        found
    }
}

/// An attribute as text.
fn attribute(of: &Value, name: &str) -> Option<String> {
    let all = of["attributes"].as_array()?;
    let value = &all.iter().find(|it| it["key"] == name)?["value"];
    let text = value["stringValue"].as_str().or(value["intValue"].as_str());
    text.map(str::to_owned)
}

fn spans(shop: &Shop<'_>, read: &Read, provider: &str) -> Result<()> {
    let spec = format!(
        "  tracing: [{{ providers: [{{ name: {provider} }}], customTags: {{ team: {{ literal: {{ value: carts }} }} }} }}]\n"
    );
    told(shop, &spec)?;
    let span = |path: &str| {
        let url = format!("http://web.shop{path}");
        let all = read.all(["resourceSpans", "scopeSpans", "spans"]);
        all.into_iter()
            .find(|[_, _, span]| attribute(span, "http.url").as_ref() == Some(&url))
    };
    let first = format!("/{provider}/first");
    shop.until("a first span", |shop| {
        ask(shop, &first).is_ok() && span(&first).is_some()
    })?;
    let (good, bad) = (format!("/{provider}"), format!("/status/503?{provider}"));
    ask(shop, &good)?.is(200)?;
    ask(shop, &bad)?.is(503)?;
    shop.until("both spans", |_| {
        span(&good).is_some() && span(&bad).is_some()
    })?;
    for (path, code, failed) in [(&good, "200", false), (&bad, "503", true)] {
        let [resource, scope, span] = span(path).context("it was there")?;
        let what = format!("{resource} {scope} {span}");
        ensure!(
            attribute(&resource, "service.name").as_deref() == Some("way.shop"),
            "{what}"
        );
        ensure!(span["traceId"] == TRACE, "{what}");
        ensure!(span["parentSpanId"] == PARENT, "{what}");
        ensure!(
            span["spanId"].as_str().is_some_and(|id| id.len() == 16),
            "{what}"
        );
        ensure!(span["name"] == "web.shop.svc.cluster.local:80/*", "{what}");
        ensure!(span["kind"] == 2, "it is a server's: {what}");
        ensure!((span["status"]["code"] == 2) == failed, "{what}");
        let nanos = |name: &str| span[name].as_str().and_then(|it| it.parse::<u64>().ok());
        let (start, end) = (nanos("startTimeUnixNano"), nanos("endTimeUnixNano"));
        ensure!(start > Some(0) && end > start, "{what}");
        for (name, value) in [
            ("http.method", "GET"),
            ("http.status_code", code),
            ("istio.source_workload", "client"),
            ("istio.source_namespace", "shop"),
            ("team", "carts"),
        ] {
            ensure!(
                attribute(&span, name).as_deref() == Some(value),
                "{name}: {what}"
            );
        }
        if provider != "zipkin" {
            // Zipkin's protocol has no such fields.
            ensure!(span["traceState"] == "vendor=1", "{what}");
            ensure!(scope["name"] == "ambit.waypoint", "{what}");
            for name in ["k8s.namespace.name", "k8s.pod.name", "k8s.cluster.name"] {
                ensure!(attribute(&resource, name).is_some(), "{name}: {what}");
            }
        }
    }
    Ok(())
}

fn lines(shop: &Shop<'_>, read: &Read) -> Result<()> {
    told(
        shop,
        "  accessLogging: [{ providers: [{ name: lines }] }]\n",
    )?;
    let line = |path: &str| {
        let text = format!("GET {path}");
        let all = read.all(["resourceLogs", "scopeLogs", "logRecords"]);
        all.into_iter()
            .find(|[_, _, line]| line["body"]["stringValue"] == text.as_str())
    };
    shop.until("a first line", |shop| {
        ask(shop, "/lines/first").is_ok() && line("/lines/first").is_some()
    })?;
    ask(shop, "/status/503?lines")?.is(503)?;
    shop.until("the line", |_| line("/status/503?lines").is_some())?;
    let [resource, scope, line] = line("/status/503?lines").context("it was there")?;
    let what = format!("{resource} {scope} {line}");
    ensure!(
        attribute(&resource, "service.name").as_deref() == Some("way.shop"),
        "{what}"
    );
    ensure!(
        attribute(&resource, "log_name").as_deref() == Some("shop-log"),
        "{what}"
    );
    ensure!(attribute(&line, "code").as_deref() == Some("503"), "{what}");
    ensure!(line["traceId"] == TRACE, "{what}");
    ensure!(
        line["severityText"] == "INFO" && line["severityNumber"] == 9,
        "{what}"
    );
    let nanos = |name: &str| line[name].as_str().and_then(|it| it.parse::<u64>().ok());
    ensure!(
        nanos("timeUnixNano") > Some(0) && nanos("observedTimeUnixNano") >= nanos("timeUnixNano"),
        "{what}"
    );
    Ok(())
}
