//! An external processor: one stream a request, an answer to each message.
//!
//! Requests get `x-clerk` (their method) and lose `x-secret`; their bodies are doubled. Answers get `x-back` (this server's name), and
//! their bodies are capitalized. A request's `x-wish` says otherwise: `deny` is answered in the app's place, `silence` never.

use std::{convert::Infallible, future::pending};

use api::ext_proc::{
    BodyResponse, HeaderMutation, HeadersResponse, HttpStatus, ImmediateResponse,
    ProcessingRequest, ProcessingResponse, TrailersResponse, processing_mode::BodySendMode,
    processing_request::Request as Told, processing_response::Response as Says,
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
            Some(Told::RequestHeaders(it)) => match &*it.value("x-wish") {
                "silence" => pending().await,
                "deny" => self.deny(),
                _ => Says::RequestHeaders(head("x-clerk", &it.value(":method"))),
            },
            Some(Told::ResponseHeaders(_)) => Says::ResponseHeaders(head("x-back", &self.name)),
            Some(Told::RequestBody(it)) => {
                let twice = it.body.repeat(2);
                Says::RequestBody(BodyResponse::instead(&it, self.modes.0, twice))
            }
            Some(Told::ResponseBody(it)) => {
                let loud = it.body.to_ascii_uppercase();
                Says::ResponseBody(BodyResponse::instead(&it, self.modes.1, loud))
            }
            Some(Told::RequestTrailers(_)) => Says::RequestTrailers(TrailersResponse::default()),
            Some(Told::ResponseTrailers(_)) => Says::ResponseTrailers(TrailersResponse::default()),
            None => return ProcessingResponse::default(),
        };
        says.into()
    }

    fn deny(&self) -> Says {
        Says::ImmediateResponse(ImmediateResponse {
            status: Some(HttpStatus { code: 451 }),
            body: format!("{} says no", self.name).into_bytes(),
            ..Default::default()
        })
    }
}

fn head(name: &str, value: &str) -> HeadersResponse {
    HeaderMutation::of(&[(name, value)], &["x-secret"]).into()
}
