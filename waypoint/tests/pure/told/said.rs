//! What is said, and who hears of it.

use std::sync::Arc;

use api::otlp::{LogRecord, Span, any_value::Value};
use api::waypoint as wire;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use mesh::{Mesh, NamespacedHost, Payload, Update};
use prost::Message;
use waypoint::authenticate::{Http, KeySets};
use waypoint::compiled::{Compiler, Config};
use waypoint::report::{Collectors, Opened, Openings, Record, Report, Told};
use waypoint::state::{Keeper, State};
use wire::resource::Kind;
use wire::target::To;

use crate::report::scene::{Scene, get, read};

pub(super) struct Said {
    keeper: Keeper<Compiler>,
    state: Arc<State<Config>>,
    collectors: Collectors,
    openings: Openings,
}

impl Said {
    /// With collector `otel` of spans and `lines` of log records.
    pub(super) fn new() -> Self {
        let (_, writer) = Mesh::new();
        let state = State::new(Config::default());
        let (collectors, openings) = Collectors::new();
        let compiler = Compiler::new(KeySets::new(Arc::new(Http::new(None))));
        let compiler = compiler.reporting(collectors.clone());
        let mut said = Self {
            keeper: Keeper::new("shop/way", state.clone(), writer, compiler),
            state,
            collectors,
            openings,
        };
        said.provider(
            "otel",
            wire::provider::Kind::TraceCollector(wire::TraceCollector {
                service: Some(service()),
                ..Default::default()
            }),
        );
        said.provider(
            "lines",
            wire::provider::Kind::LogCollector(wire::LogCollector {
                service: Some(service()),
                body: "%REQ(:METHOD)% %REQ(X-USER)%".to_owned(),
                attributes: [
                    ("code", "%RESPONSE_CODE%"),
                    ("server", "%RESP(SERVER)%"),
                    ("none", "%REQ(NONE)%"),
                ]
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .into(),
                ..Default::default()
            }),
        );
        said
    }

    pub(super) fn set(&mut self, key: &str, kind: Kind) -> usize {
        let resource = wire::Resource {
            key: key.to_owned(),
            kind: Some(kind),
            ..Default::default()
        };
        let mut update = Update::default();
        let bytes = Payload::Bytes(resource.encode_to_vec().into());
        update
            .resources
            .set
            .push((format!("shop/way/{key}").into(), bytes));
        self.keeper.apply(update).len()
    }

    pub(super) fn provider(&mut self, name: &str, kind: wire::provider::Kind) {
        let provider = wire::Provider { kind: Some(kind) };
        assert_eq!(
            self.set(&format!("provider/{name}"), Kind::Provider(provider)),
            0
        );
    }

    pub(super) fn telemetry(&mut self, name: &str, telemetry: wire::Telemetry) {
        let telemetry = wire::Telemetry {
            targets: vec![wire::Target {
                to: Some(To::Gateway("shop/way".to_owned())),
            }],
            ..telemetry
        };
        let key = format!("telemetry/shop/{name}");
        assert_eq!(self.set(&key, Kind::Telemetry(telemetry)), 0);
    }

    pub(super) fn told(&self) -> Arc<Told> {
        let config = self.state.load();
        config
            .service(&NamespacedHost::new("shop", "web.shop"))
            .telemetry
            .clone()
    }

    pub(super) fn open(&mut self, name: &str) -> Opened {
        loop {
            let opened = self.openings.already().expect("a collector");
            if *opened.to.key == *format!("provider/{name}") {
                return opened;
            }
        }
    }

    /// Nobody waits to be taken.
    pub(super) fn nothing_opened(&mut self, name: &str) -> bool {
        let key = format!("provider/{name}");
        let mut opened = std::iter::from_fn(|| self.openings.already());
        !opened.any(|it| *it.to.key == *key)
    }

    pub(super) fn counts(&self, name: &str) -> [u64; 3] {
        use std::sync::atomic::Ordering::Relaxed;
        let all = self.collectors.counts();
        let found = all
            .iter()
            .find(|(key, _)| **key == *format!("provider/{name}"));
        let counts = &found.expect("its counts").1;
        [&counts.sent, &counts.dropped, &counts.failed].map(|it| it.load(Relaxed))
    }
}

pub(super) fn service() -> wire::ServiceRef {
    wire::ServiceRef {
        namespace: "obs".to_owned(),
        hostname: "otel.obs".to_owned(),
        port: 4317,
    }
}

pub(super) fn log(rules: &[(&[&str], bool, &str)]) -> wire::Telemetry {
    let rule = |(providers, disabled, filter): &(&[&str], bool, &str)| wire::LogRule {
        providers: providers
            .iter()
            .map(|it| format!("provider/{it}"))
            .collect(),
        disabled: *disabled,
        filter: (*filter).to_owned(),
    };
    wire::Telemetry {
        access_log: Some(wire::AccessLog {
            rules: rules.iter().map(rule).collect(),
        }),
        ..Default::default()
    }
}

pub(super) fn tracing(tracing: wire::Tracing) -> wire::Telemetry {
    wire::Telemetry {
        tracing: Some(wire::Tracing {
            providers: vec!["provider/otel".to_owned()],
            ..tracing
        }),
        ..Default::default()
    }
}

/// A request with user `anna` that the app answers, under what is told of it.
pub(super) fn pass(scene: &Scene, told: &Arc<Told>, request: &Request<()>) -> http::HeaderMap {
    let mut report: Report = scene.sent(request);
    report.told(told);
    let mut headers = request.headers().clone();
    headers.insert("x-user", "anna".parse().unwrap());
    report.heard(&mut headers);
    let answer = Response::builder().header("server", "app").status(404);
    read(report.answer(answer.body(Full::<Bytes>::from("nothing")).unwrap()));
    headers
}

pub(super) fn sampled() -> Request<()> {
    let mut request = get("/cart?item=7");
    let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request
        .headers_mut()
        .insert("traceparent", told.parse().unwrap());
    request
}

pub(super) fn spans(opened: &mut Opened) -> Vec<Span> {
    std::iter::from_fn(|| opened.records.try_recv().ok())
        .filter_map(|it| match it {
            Record::Span(span) => Some(*span),
            Record::Line(_) => None,
        })
        .collect()
}

pub(super) fn lines(opened: &mut Opened) -> Vec<LogRecord> {
    std::iter::from_fn(|| opened.records.try_recv().ok())
        .filter_map(|it| match it {
            Record::Line(line) => Some(*line),
            Record::Span(_) => None,
        })
        .collect()
}

pub(super) fn attribute(all: &[api::otlp::KeyValue], name: &str) -> Option<String> {
    let found = all.iter().find(|it| it.key == name)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}
