//! A client, a service, an endpoint, and what is scraped and logged of what they do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Once};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh::{Service, Workload};
use prometheus_client::registry::Registry;
use waypoint::client::{Baggage, Client};
use waypoint::report::{Caller, Report, Reporter, Reports};

pub(crate) struct Scene {
    pub(crate) reports: Reports,
    registry: Registry,
    pub(crate) client: Client,
    pub(crate) service: Arc<Service>,
    pub(crate) endpoint: Arc<Workload>,
}

pub(crate) fn workload(name: &str, namespace: &str) -> Arc<Workload> {
    let message = api::workload::Workload {
        uid: format!("c//Pod/{namespace}/{name}"),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        workload_name: format!("{name}-deployment"),
        canonical_name: name.to_owned(),
        canonical_revision: "v1".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        ..Default::default()
    };
    Arc::new(message.try_into().unwrap())
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::of(Reports::new(Reporter::Waypoint))
    }

    pub(crate) fn of(reports: Reports) -> Self {
        let mut registry = Registry::default();
        reports.register(&mut registry);
        let service = api::workload::Service {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            hostname: "web.shop.svc.cluster.local".to_owned(),
            ..Default::default()
        };
        Self {
            reports,
            registry,
            client: Client {
                identity: Some("spiffe://cluster.local/ns/front/sa/app".parse().unwrap()),
                address: ([10, 0, 0, 5], 40_000).into(),
                peer: [10, 0, 0, 5].into(),
                workload: Some(workload("front", "front")),
                said: Baggage::default(),
            },
            service: Arc::new(service.try_into().unwrap()),
            endpoint: workload("web", "shop"),
        }
    }

    pub(crate) fn caller(&self) -> Arc<Caller> {
        self.reports.caller(Arc::new(self.client.clone()))
    }

    pub(crate) fn begin(&self, request: &Request<()>) -> Report {
        let (head, ()) = request.clone().into_parts();
        let mut report = self.reports.request(&self.caller(), &head, Instant::now());
        report.service(&self.service, 80);
        report
    }

    /// One that reached the endpoint.
    pub(crate) fn sent(&self, request: &Request<()>) -> Report {
        let mut report = self.begin(request);
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        report.tried(
            &self.endpoint,
            ([10, 0, 1, 7], 8080).into(),
            Some(&identity),
        );
        report
    }

    pub(crate) fn scraped(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// All series of a metric: labels and value.
    pub(crate) fn series(&self, metric: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let text = self.scraped();
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
        lines
            .map(|line| {
                let (labels, value) = line.rsplit_once("} ").unwrap();
                let pairs = labels.split("\",").map(|pair| {
                    let (name, value) = pair.split_once("=\"").unwrap();
                    (name.to_owned(), value.trim_end_matches('"').to_owned())
                });
                (pairs.collect(), value.parse().unwrap())
            })
            .collect()
    }

    pub(crate) fn total(&self, metric: &str) -> f64 {
        self.series(metric).iter().map(|(_, value)| value).sum()
    }
}

pub(crate) fn get(path: &str) -> Request<()> {
    Request::get(path).header("host", "web").body(()).unwrap()
}

pub(crate) fn grpc() -> Request<()> {
    Request::post("/shop.Web/Get")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap()
}

pub(crate) fn body(
    frames: Vec<Frame<Bytes>>,
) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Unpin {
    StreamBody::new(futures_util::stream::iter(frames.into_iter().map(Ok)))
}

pub(crate) fn data(bytes: &'static [u8]) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes))
}

pub(crate) fn trailers(name: &'static str, value: &'static str) -> Frame<Bytes> {
    let mut headers = HeaderMap::new();
    headers.insert(name, value.parse().unwrap());
    Frame::trailers(headers)
}

/// Reads all of an answer.
pub(crate) fn read<B>(answer: Response<B>) -> usize
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    use futures_util::FutureExt;
    let all = answer.into_body().collect().now_or_never().unwrap();
    all.map_or(0, |all| all.to_bytes().len())
}

/// The lines that this thread logs meanwhile: `LEVEL target message key=value …`.
pub(crate) fn logged(act: impl FnOnce()) -> Vec<String> {
    // One subscriber for all threads: what a callsite learns from one that is there for a while only is not certain.
    static LOG: Once = Once::new();
    LOG.call_once(|| tracing::subscriber::set_global_default(Log).unwrap());
    LINES.set(Some(Vec::new()));
    act();
    LINES.take().unwrap()
}

thread_local!(static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) });

struct Log;

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.insert_str(0, &format!("{value:?}"));
        } else {
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let (level, target) = (event.metadata().level(), event.metadata().target());
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.push(format!("{level} {target} {}", fields.0));
            }
        });
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
