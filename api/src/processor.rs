//! What an external processor says, in few words: these messages are boxes in boxes.

use crate::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeaderValue, HeaderValueOption,
    HeadersResponse, HttpBody, HttpHeaders, ProcessingResponse, StreamedBodyResponse,
    body_mutation::Mutation, processing_mode::BodySendMode, processing_response::Response,
};

impl HttpHeaders {
    /// The last value of that name; empty if there is none.
    pub fn value(&self, name: &str) -> String {
        let mut all = self.headers.iter().flat_map(|it| &it.headers);
        let found = all.rfind(|it| it.key == name);
        String::from_utf8_lossy(found.map_or(&[][..], |it| &it.raw_value)).into_owned()
    }
}

impl HeaderMutation {
    /// Sets those and removes these.
    pub fn of(set: &[(&str, &str)], remove: &[&str]) -> Self {
        let option = |(key, value): &(&str, &str)| HeaderValueOption {
            header: Some(HeaderValue {
                key: (*key).to_owned(),
                raw_value: value.as_bytes().to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self {
            set_headers: set.iter().map(option).collect(),
            remove_headers: remove.iter().map(|name| (*name).to_owned()).collect(),
        }
    }
}

impl From<HeaderMutation> for HeadersResponse {
    fn from(mutation: HeaderMutation) -> Self {
        let response = CommonResponse {
            header_mutation: Some(mutation),
            ..Default::default()
        };
        Self {
            response: Some(response),
        }
    }
}

impl BodyResponse {
    /// These bytes in the place of those that were shown in that mode.
    pub fn instead(of: &HttpBody, mode: BodySendMode, body: Vec<u8>) -> Self {
        let mutation = match mode {
            BodySendMode::FullDuplexStreamed => Mutation::StreamedResponse(StreamedBodyResponse {
                body,
                end_of_stream: of.end_of_stream,
            }),
            _ => Mutation::Body(body),
        };
        let response = CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(mutation),
            }),
            ..Default::default()
        };
        Self {
            response: Some(response),
        }
    }
}

impl From<Response> for ProcessingResponse {
    fn from(response: Response) -> Self {
        Self {
            response: Some(response),
            ..Default::default()
        }
    }
}
