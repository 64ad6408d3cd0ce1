//! An external processor: one stream a request, an answer to each message.
//!
//! Requests get `x-clerk` (their method) and lose `x-secret`; their bodies are doubled. Answers get `x-back` (this server's name), and
//! their bodies are capitalized. A request's `x-wish` says otherwise: `deny` is answered in the app's place, `silence` never.

use std::{convert::Infallible, future::pending};

use api::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeaderValue, HeaderValueOption,
    HeadersResponse, HttpBody, HttpHeaders, HttpStatus, ImmediateResponse, ProcessingRequest,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation::Mutation,
    processing_mode::BodySendMode, processing_request::Request as Told,
    processing_response::Response as Says,
};
use bytes::{Buf, BytesMut};
use futures_util::stream;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use prost::Message;

use super::PREFIX;
use crate::serve::{Body, finished, framed, rpc};

/// What holds one request's stream.
struct Clerk {
    name: String,
    body: Incoming,
    heard: BytesMut,
    /// How bodies are shown, there and back.
    modes: (BodySendMode, BodySendMode),
}

/// His answers, as they come.
pub(super) fn process(name: String, body: Incoming) -> Response<Body> {
    let clerk = Clerk {
        name,
        body,
        heard: BytesMut::new(),
        modes: (BodySendMode::None, BodySendMode::None),
    };
    let said = stream::unfold(Some(clerk), |clerk: Option<Clerk>| async move {
        let mut clerk = clerk?;
        let (frame, clerk) = match clerk.next().await {
            Some(told) => {
                let answer = clerk.answer(told).await;
                (Frame::data(framed(&answer.encode_to_vec())), Some(clerk))
            }
            None => (finished(), None),
        };
        Some((Ok::<_, Infallible>(frame), clerk))
    });
    rpc(StreamBody::new(said).boxed_unsync())
}

impl Clerk {
    /// The next message; none when they have ended, or are none.
    async fn next(&mut self) -> Option<ProcessingRequest> {
        loop {
            if let Some(prefix) = self.heard.first_chunk::<PREFIX>() {
                let [_, length @ ..] = *prefix;
                let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
                if self.heard.len() >= PREFIX + length {
                    self.heard.advance(PREFIX);
                    return ProcessingRequest::decode(self.heard.split_to(length)).ok();
                }
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(bytes) = frame.into_data() {
                self.heard.extend_from_slice(&bytes);
            }
        }
    }

    async fn answer(&mut self, told: ProcessingRequest) -> ProcessingResponse {
        if let Some(config) = &told.protocol_config {
            self.modes = (config.request_body_mode(), config.response_body_mode());
        }
        let says = match told.request {
            Some(Told::RequestHeaders(it)) => match &*value(&it, "x-wish") {
                "silence" => pending().await,
                "deny" => self.deny(),
                _ => Says::RequestHeaders(head(&[("x-clerk", &value(&it, ":method"))])),
            },
            Some(Told::ResponseHeaders(_)) => {
                Says::ResponseHeaders(head(&[("x-back", &self.name)]))
            }
            Some(Told::RequestBody(it)) => {
                Says::RequestBody(body(it.body.repeat(2), &it, self.modes.0))
            }
            Some(Told::ResponseBody(it)) => {
                Says::ResponseBody(body(it.body.to_ascii_uppercase(), &it, self.modes.1))
            }
            Some(Told::RequestTrailers(_)) => Says::RequestTrailers(TrailersResponse::default()),
            Some(Told::ResponseTrailers(_)) => Says::ResponseTrailers(TrailersResponse::default()),
            None => return ProcessingResponse::default(),
        };
        ProcessingResponse {
            response: Some(says),
            ..Default::default()
        }
    }

    fn deny(&self) -> Says {
        Says::ImmediateResponse(ImmediateResponse {
            status: Some(HttpStatus { code: 451 }),
            body: format!("{} says no", self.name).into_bytes(),
            ..Default::default()
        })
    }
}

fn value(head: &HttpHeaders, name: &str) -> String {
    let mut all = head.headers.iter().flat_map(|it| &it.headers);
    let found = all.find(|it| it.key == name);
    String::from_utf8_lossy(found.map_or(&[][..], |it| &it.raw_value)).into_owned()
}

fn head(set: &[(&str, &str)]) -> HeadersResponse {
    let option = |(key, value): &(&str, &str)| HeaderValueOption {
        header: Some(HeaderValue {
            key: (*key).to_owned(),
            raw_value: value.as_bytes().to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    };
    HeadersResponse {
        response: Some(CommonResponse {
            header_mutation: Some(HeaderMutation {
                set_headers: set.iter().map(option).collect(),
                remove_headers: vec!["x-secret".to_owned()],
            }),
            ..Default::default()
        }),
    }
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
