//! A processor in a pod, which capitalises requests' bodies and puts a mark behind answers'. What it does beside that a
//! request tells it in `x-do`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use api::ext_proc::body_mutation::Mutation;
use api::ext_proc::common_response::ResponseStatus;
use api::ext_proc::external_processor_server::{ExternalProcessor, ExternalProcessorServer};
use api::ext_proc::processing_mode::BodySendMode;
use api::ext_proc::processing_request::Request as Told;
use api::ext_proc::processing_response::Response as Says;
use api::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeaderValue, HeaderValueOption,
    HeadersResponse, HttpBody, HttpHeaders, HttpStatus, ImmediateResponse, ProcessingMode,
    ProcessingRequest, ProcessingResponse, StreamedBodyResponse, TrailersResponse,
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
    /// At which of his doors.
    name: &'static str,
}

impl Clerk {
    /// Service `shop/clerk`, ports 9000 and, as another, 9001; nobody is at 9100.
    pub(super) fn start(shop: &Shop<'_>) -> Result<Self> {
        let pod = shop.lab.pod("shop/clerk").node(0);
        let pod = pod.service_account("clerk").label("app", "clerk").start()?;
        let clerk = Self::default();
        let _in = shop.runtime.enter();
        for (port, name) in [(9000, "one"), (9001, "two")] {
            let listener = pod.listen(port)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let clerk = Self {
                name,
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
        shop.lab.service_of("shop/clerk", &ports)?;
        Ok(clerk)
    }

    async fn serve(
        self,
        mut told: Streaming<ProcessingRequest>,
        says: mpsc::Sender<Result<ProcessingResponse, Status>>,
    ) -> Option<()> {
        let mut modes = (BodySendMode::None, BodySendMode::None);
        let (mut wish, mut pieces) = (String::new(), 0);
        while let Ok(Some(message)) = told.message().await {
            if let Some(config) = &message.protocol_config {
                modes = (config.request_body_mode(), config.response_body_mode());
            }
            if let Some(Told::RequestHeaders(it)) = &message.request {
                wish = value(it, "x-do");
            }
            let attributes: Vec<(String, String)> = attributes(&message);
            let ill = || Status::internal("he is ill");
            let answer = match message.request? {
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
                    "told" => {
                        let told: Vec<(&str, &str)> = attributes
                            .iter()
                            .map(|(name, value)| (&**name, &**value))
                            .collect();
                        headers(&told)
                    }
                    "big" => headers(&[("x-big", &"b".repeat(2 << 20))]),
                    "nothing" => ProcessingResponse::default(),
                    "bad" => headers(&[("bad name", "1")]),
                    "replace" => answer(Says::RequestHeaders(replaces("replaced"))),
                    "order" | "break-two" => {
                        headers(&[("x-order", &(value(&it, "x-order") + self.name))])
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
                    "noise" => answer(Says::ResponseHeaders(HeadersResponse::default())),
                    "deny" => deny(),
                    wish => request(&it, wish),
                },
                Told::ResponseHeaders(_) if wish == "replace-back" => {
                    answer(Says::ResponseHeaders(replaces("for you")))
                }
                Told::ResponseHeaders(it) if wish == "order" => {
                    let order = value(&it, "x-order") + self.name;
                    answer(Says::ResponseHeaders(HeadersResponse {
                        response: Some(CommonResponse {
                            header_mutation: Some(set(&[("x-order", &order)])),
                            ..Default::default()
                        }),
                    }))
                }
                Told::ResponseHeaders(_) => answer(Says::ResponseHeaders(HeadersResponse {
                    response: Some(CommonResponse {
                        header_mutation: Some(set(&[("x-back", "1")])),
                        ..Default::default()
                    }),
                })),
                Told::RequestBody(it) => {
                    pieces += 1;
                    let bytes = it.body.to_ascii_uppercase();
                    answer(Says::RequestBody(body(bytes, &it, modes.0)))
                }
                Told::ResponseBody(it) => {
                    let mut bytes = it.body.clone();
                    if it.end_of_stream {
                        bytes.push(b'!');
                    }
                    answer(Says::ResponseBody(body(bytes, &it, modes.1)))
                }
                Told::RequestTrailers(_) => answer(Says::RequestTrailers(trailers())),
                Told::ResponseTrailers(_) => answer(Says::ResponseTrailers(trailers())),
            };
            says.send(Ok(answer)).await.ok()?;
        }
        Some(())
    }
}

/// As headers that an app sees.
fn attributes(message: &ProcessingRequest) -> Vec<(String, String)> {
    let told = message.attributes.get("envoy.filters.http.ext_proc");
    let fields = told.into_iter().flat_map(|told| &told.fields);
    let texts = fields.filter_map(|(name, value)| match &value.kind {
        Some(Kind::StringValue(text)) => Some((name, text.clone())),
        Some(Kind::BoolValue(yes)) => Some((name, yes.to_string())),
        Some(Kind::NumberValue(number)) => Some((name, number.to_string())),
        _ => None,
    });
    texts
        .map(|(name, text)| (format!("told-{name}"), text))
        .collect()
}

fn value(headers: &HttpHeaders, name: &str) -> String {
    let all = headers.headers.iter().flat_map(|it| &it.headers);
    let mut found = all.filter(|it| it.key == name).map(|it| &it.raw_value);
    String::from_utf8_lossy(found.next_back().map_or(&[][..], |it| it)).into_owned()
}

fn answer(says: Says) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(says),
        ..Default::default()
    }
}

fn headers(all: &[(&str, &str)]) -> ProcessingResponse {
    answer(Says::RequestHeaders(HeadersResponse {
        response: Some(CommonResponse {
            header_mutation: Some(set(all)),
            ..Default::default()
        }),
    }))
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
    let option = |(key, value): &(&str, &str)| HeaderValueOption {
        header: Some(HeaderValue {
            key: (*key).to_owned(),
            raw_value: value.as_bytes().to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    };
    HeaderMutation {
        set_headers: headers.iter().map(option).collect(),
        remove_headers: vec!["x-secret".to_owned(), "host".to_owned()],
    }
}

/// What he may change, and what he may not.
fn request(it: &HttpHeaders, wish: &str) -> ProcessingResponse {
    let method = value(it, ":method");
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
        ..answer(Says::RequestHeaders(HeadersResponse {
            response: Some(CommonResponse {
                header_mutation: Some(set(&headers)),
                ..Default::default()
            }),
        }))
    }
}

fn deny() -> ProcessingResponse {
    answer(Says::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus { code: 451 }),
        headers: Some(set(&[("x-why", "clerk")])),
        body: b"not here".to_vec(),
        details: "he does not like it".to_owned(),
        ..Default::default()
    }))
}

fn body(bytes: Vec<u8>, of: &HttpBody, mode: BodySendMode) -> BodyResponse {
    let mutation = match mode {
        BodySendMode::FullDuplexStreamed => Mutation::StreamedResponse(StreamedBodyResponse {
            body: bytes,
            end_of_stream: of.end_of_stream,
        }),
        _ => Mutation::Body(bytes),
    };
    BodyResponse {
        response: Some(CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(mutation),
            }),
            ..Default::default()
        }),
    }
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
