//! A processor in a pod, which capitalises requests' bodies and puts a mark behind answers'. What it does beside that a
//! request tells it in `x-do`.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use api::ext_proc::body_mutation::Mutation;
use api::ext_proc::common_response::ResponseStatus;
use api::ext_proc::external_processor_server::{ExternalProcessor, ExternalProcessorServer};
use api::ext_proc::processing_mode::BodySendMode;
use api::ext_proc::processing_request::Request as Told;
use api::ext_proc::processing_response::Response as Says;
use api::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpHeaders,
    HttpStatus, ImmediateResponse, ProcessingMode, ProcessingRequest, ProcessingResponse,
    TrailersResponse,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use prost_types::value::Kind;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::shop::Shop;

#[derive(Clone, Default)]
pub(super) struct Clerk {
    /// Somebody waits for him.
    pub(super) asked: Arc<Notify>,
    /// Nobody does any more.
    pub(super) let_go: Arc<Notify>,
    /// Requests that he only looked on at, each when it had ended.
    seen: Arc<Mutex<Vec<String>>>,
    /// At which of his doors.
    name: &'static str,
}

/// A request that he only looks on at.
#[derive(Default)]
struct Looked {
    heads: String,
    sent: usize,
    received: usize,
    /// How often he was told that a body has ended there, or its trailers came.
    ends: usize,
    trailers: usize,
}

impl Looked {
    fn at(&mut self, told: &Told) {
        match told {
            Told::RequestHeaders(it) => {
                self.heads = format!("{} {}", it.value(":method"), it.value(":path"));
                self.ends += usize::from(it.end_of_stream);
            }
            Told::ResponseHeaders(it) => {
                self.heads += &format!(" {}", it.value(":status"));
                self.ends += usize::from(it.end_of_stream);
            }
            Told::RequestBody(it) => {
                self.sent += it.body.len();
                self.ends += usize::from(it.end_of_stream);
            }
            Told::ResponseBody(it) => {
                self.received += it.body.len();
                self.ends += usize::from(it.end_of_stream);
            }
            Told::RequestTrailers(_) | Told::ResponseTrailers(_) => self.trailers += 1,
        }
    }

    fn line(&self) -> String {
        let Self {
            heads,
            sent,
            received,
            ends,
            trailers,
        } = self;
        format!("{heads}: {sent} there, {received} back, {ends} ends, {trailers} trailers")
    }
}

impl Clerk {
    /// Service `shop/clerk`, ports 9000 and, as another, 9001; nobody is at 9100.
    pub(super) fn start(shop: &Shop<'_>) -> Result<Self> {
        Self::start_at(shop, "shop/clerk")
    }

    /// The same as a service of that name.
    pub(super) fn start_at(shop: &Shop<'_>, name: &str) -> Result<Self> {
        let pod = shop.lab.pod(name).node(0);
        let pod = pod.service_account("clerk").label("app", "clerk").start()?;
        let clerk = Self::default();
        let _in = shop.runtime.enter();
        for (port, door) in [(9000, "one"), (9001, "two")] {
            let listener = pod.listen(port)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let clerk = Self {
                name: door,
                ..clerk.clone()
            };
            let server = ExternalProcessorServer::new(clerk);
            shop.runtime.spawn(async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let service = TowerToHyperService::new(server.clone());
                    tokio::spawn(async move {
                        let builder = auto::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                    });
                }
            });
        }
        let ports = [
            ("grpc", 9000, 9000),
            ("grpc-two", 9001, 9001),
            ("nobody", 9100, 9100),
        ];
        shop.lab.service_of(name, &ports)?;
        Ok(clerk)
    }

    /// What he only looked on at.
    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    async fn serve(
        self,
        mut told: Streaming<ProcessingRequest>,
        says: mpsc::Sender<Result<ProcessingResponse, Status>>,
    ) -> Option<()> {
        let mut modes = (BodySendMode::None, BodySendMode::None);
        let (mut wish, mut pieces) = (String::new(), 0);
        let mut looked = None::<Looked>;
        while let Ok(Some(message)) = told.message().await {
            if let Some(config) = &message.protocol_config {
                modes = (config.request_body_mode(), config.response_body_mode());
            }
            if let Some(Told::RequestHeaders(it)) = &message.request {
                wish = it.value("x-do");
            }
            if message.observability_mode {
                let looked = looked.get_or_insert_default();
                looked.at(message.request.as_ref()?);
                match &*wish {
                    // He takes up nothing more.
                    "deaf" => std::future::pending().await,
                    "close" => return None,
                    // Nobody hears what he says all the same.
                    _ => drop(says.try_send(Ok(deny()))),
                }
                continue;
            }
            let attributes: Vec<(String, String)> = attributes(&message);
            let ill = || Status::internal("he is ill");
            let answer: ProcessingResponse = match message.request? {
                Told::RequestBody(_) if wish == "die" && pieces > 0 => {
                    let _ = says.send(Err(ill())).await;
                    return None;
                }
                Told::ResponseBody(_) if wish == "die-back" => {
                    let _ = says.send(Err(ill())).await;
                    return None;
                }
                Told::RequestHeaders(_) if wish == "break-two" && self.name == "two" => {
                    let _ = says.send(Err(ill())).await;
                    return None;
                }
                Told::RequestHeaders(it) if wish.starts_with("longer=") => {
                    let (asks, takes) = wish["longer=".len()..].split_once(',')?;
                    let longer = Duration::from_millis(asks.parse().ok()?);
                    let longer = ProcessingResponse {
                        override_message_timeout: Some(
                            prost_types::Duration::try_from(longer).ok()?,
                        ),
                        ..Default::default()
                    };
                    says.send(Ok(longer)).await.ok()?;
                    tokio::time::sleep(Duration::from_millis(takes.parse().ok()?)).await;
                    request(&it, "")
                }
                Told::RequestHeaders(it) => match &*wish {
                    "says" if self.name == "one" => says_of_it(&it),
                    "told" | "says" => Says::RequestHeaders(tells(&attributes)).into(),
                    "forge" if self.name == "one" => headers(&[("x-subject", "admin")]),
                    "big" => headers(&[("x-big", &"b".repeat(2 << 20))]),
                    "nothing" => ProcessingResponse::default(),
                    "bad" => headers(&[("bad name", "1")]),
                    "replace" => Says::RequestHeaders(replaces("replaced")).into(),
                    "order" | "break-two" => {
                        headers(&[("x-order", &(it.value("x-order") + self.name))])
                    }
                    "wait" => {
                        self.asked.notify_one();
                        while let Ok(Some(_)) = told.message().await {}
                        self.let_go.notify_one();
                        return None;
                    }
                    "close" => return None,
                    "break" => {
                        let _ = says.send(Err(ill())).await;
                        return None;
                    }
                    "noise" => Says::ResponseHeaders(HeadersResponse::default()).into(),
                    "deny" => deny(),
                    wish => request(&it, wish),
                },
                Told::ResponseHeaders(_) if wish == "replace-back" => {
                    Says::ResponseHeaders(replaces("for you")).into()
                }
                Told::ResponseHeaders(_) if wish == "says" && self.name == "two" => {
                    Says::ResponseHeaders(tells(&attributes)).into()
                }
                Told::ResponseHeaders(it) if wish == "order" => {
                    let order = it.value("x-order") + self.name;
                    Says::ResponseHeaders(set(&[("x-order", &order)]).into()).into()
                }
                Told::ResponseHeaders(_) => {
                    Says::ResponseHeaders(set(&[("x-back", "1")]).into()).into()
                }
                Told::RequestBody(it) => {
                    pieces += 1;
                    let bytes = it.body.to_ascii_uppercase();
                    Says::RequestBody(BodyResponse::instead(&it, modes.0, bytes)).into()
                }
                Told::ResponseBody(it) => {
                    let mut bytes = it.body.clone();
                    if it.end_of_stream {
                        bytes.push(b'!');
                    }
                    Says::ResponseBody(BodyResponse::instead(&it, modes.1, bytes)).into()
                }
                Told::RequestTrailers(_) => Says::RequestTrailers(trailers()).into(),
                Told::ResponseTrailers(_) => Says::ResponseTrailers(trailers()).into(),
            };
            says.send(Ok(answer)).await.ok()?;
        }
        if let Some(looked) = looked {
            if wish == "linger" {
                // For as long as he may.
                says.closed().await;
            }
            self.seen.lock().unwrap().push(looked.line());
        }
        Some(())
    }
}

/// As headers that an app sees: of attributes `told-…`, of metadata `said-…`.
fn attributes(message: &ProcessingRequest) -> Vec<(String, String)> {
    let told = message.attributes.get("envoy.filters.http.ext_proc");
    let told = told.map(|told| ("told".to_owned(), told));
    let context = message.metadata_context.iter();
    let said = context.flat_map(|it| &it.filter_metadata);
    let said = said.map(|(namespace, said)| (format!("said-{namespace}"), said));
    let mut found = Vec::new();
    for (under, fields) in told.into_iter().chain(said) {
        for (name, value) in &fields.fields {
            let text = match &value.kind {
                Some(Kind::StringValue(text)) => text.clone(),
                Some(Kind::BoolValue(yes)) => yes.to_string(),
                Some(Kind::NumberValue(number)) => number.to_string(),
                Some(Kind::StructValue(all)) => format!("{:?}", all.fields.keys()),
                _ => continue,
            };
            let sign = |it: char| !it.is_ascii_alphanumeric() && !"-._".contains(it);
            found.push((format!("{under}-{name}").replace(sign, "_"), text));
        }
    }
    found
}

fn tells(all: &[(String, String)]) -> HeadersResponse {
    let all: Vec<(&str, &str)> = all
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    set(&all).into()
}

/// Where he may, and where he may not.
fn says_of_it(it: &HttpHeaders) -> ProcessingResponse {
    let value = |kind: Kind| prost_types::Value { kind: Some(kind) };
    let fields = |all: Vec<(&str, prost_types::Value)>| prost_types::Struct {
        fields: all
            .into_iter()
            .map(|(name, it)| (name.to_owned(), it))
            .collect(),
    };
    let said = || {
        let method = it.value(":method");
        let all = vec![
            ("verdict", value(Kind::StringValue("clean".to_owned()))),
            ("method", value(Kind::StringValue(method))),
        ];
        value(Kind::StructValue(fields(all)))
    };
    ProcessingResponse {
        dynamic_metadata: Some(fields(vec![
            ("com.example.clerk", said()),
            ("com.example.other", said()),
        ])),
        ..headers(&[])
    }
}

fn headers(all: &[(&str, &str)]) -> ProcessingResponse {
    Says::RequestHeaders(set(all).into()).into()
}

/// Another body, and nothing more is to be shown.
fn replaces(body: &str) -> HeadersResponse {
    HeadersResponse {
        response: Some(CommonResponse {
            status: ResponseStatus::ContinueAndReplace.into(),
            header_mutation: Some(set(&[("x-replaced", "1")])),
            body_mutation: Some(BodyMutation {
                mutation: Some(Mutation::Body(body.as_bytes().to_vec())),
            }),
            ..Default::default()
        }),
    }
}

fn set(headers: &[(&str, &str)]) -> HeaderMutation {
    HeaderMutation::of(headers, &["x-secret", "host"])
}

/// What he may change, and what he may not.
fn request(it: &HttpHeaders, wish: &str) -> ProcessingResponse {
    let method = it.value(":method");
    let mut headers = vec![
        ("x-clerk", &*method),
        (":method", "DELETE"),
        (":authority", "evil.example"),
        ("host", "evil.example"),
        ("content-length", "1"),
        ("x-forwarded-client-cert", "URI=spiffe://evil"),
    ];
    if let Some(path) = wish.strip_prefix("path=") {
        headers.push((":path", path));
    }
    ProcessingResponse {
        mode_override: (wish == "body").then(|| ProcessingMode {
            request_body_mode: BodySendMode::Buffered.into(),
            ..Default::default()
        }),
        ..Says::RequestHeaders(set(&headers).into()).into()
    }
}

fn deny() -> ProcessingResponse {
    let response = ImmediateResponse {
        status: Some(HttpStatus { code: 451 }),
        headers: Some(set(&[("x-why", "clerk")])),
        body: b"not here".to_vec(),
        details: "he does not like it".to_owned(),
        ..Default::default()
    };
    Says::ImmediateResponse(response).into()
}

fn trailers() -> TrailersResponse {
    TrailersResponse {
        header_mutation: Some(set(&[("x-clerk-end", "1")])),
    }
}

type Said = Result<ProcessingResponse, Status>;

#[tonic::async_trait]
impl ExternalProcessor for Clerk {
    type ProcessStream = Pin<Box<dyn tokio_stream::Stream<Item = Said> + Send>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        let (says, said) = mpsc::channel(4);
        let serving = self.clone().serve(request.into_inner(), says);
        tokio::spawn(serving);
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(said))))
    }
}
