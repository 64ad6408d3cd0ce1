//! Pure: services of others that are asked over gRPC: authorizers, rate limit services, processors.
//!
//! 1. how a call begins                                        ([`call`])
//! 2. messages in their frames, and out of them                ([`framed`], [`Messages`])
//! 3. how it ends; an answer that is one message and an end    ([`end`], [`one`])
//!
//! What they answer is as little to be trusted as what clients say: frames are bounded, nobody asked for compressed
//! ones, and what is cut off is an error.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::request::Builder;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use prost::Message;

use crate::report::REQUEST_ID;
use crate::route::ServiceName;

/// An answer, as it came.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'a> {
    /// Of HTTP.
    pub status: StatusCode,
    /// All of them.
    pub headers: &'a HeaderMap,
    /// All of it.
    pub body: &'a Bytes,
    /// What came after it.
    pub trailers: Option<&'a HeaderMap>,
}

/// The head of a call. `method`: `package.Service/Method`; `about`: the headers of the request that it is about;
/// `within`: how long it may take, none for a stream.
pub(crate) fn call(
    service: &ServiceName,
    method: &str,
    about: &HeaderMap,
    within: Option<Duration>,
) -> Builder {
    let mut request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!(
            "http://{}:{}/{method}",
            service.hostname, service.port
        ))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers");
    if let Some(within) = within {
        let within = format!("{}m", within.as_millis().clamp(1, 99_999_999));
        request = request.header("grpc-timeout", within);
    }
    if let Some(id) = about.get(REQUEST_ID) {
        request = request.header(REQUEST_ID, id);
    }
    request
}

/// A message in its frame.
///
/// # Errors
/// It is too large for one.
pub(crate) fn framed(message: &impl Message) -> Result<Bytes, String> {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).map_err(|_| "the message is too large")?);
    let written = message.encode(&mut framed);
    written.map_err(|why| format!("the message cannot be written: {why}"))?;
    Ok(framed.freeze())
}

/// The one message of an answer that has come to a good end.
///
/// # Errors
/// There is no such message, or no such end.
pub(crate) fn one<M: Message + Default>(heard: &Heard<'_>) -> Result<M, String> {
    begun(heard.status, heard.headers)?;
    end(heard.trailers.unwrap_or(heard.headers))?;
    let mut messages = Messages::of(heard.body.len());
    messages.take(heard.body.clone())?;
    match (messages.next()?, messages.is_empty()) {
        (Some(message), true) => Ok(message),
        _ => Err("its answer is not one message".to_owned()),
    }
}

/// Whether an answer is one of gRPC's.
///
/// # Errors
/// It is not.
pub(crate) fn begun(status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
    if status != StatusCode::OK {
        return Err(format!("it answers {status}"));
    }
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    match kind {
        Some(kind) if kind.starts_with(b"application/grpc") => Ok(()),
        _ => Err("it does not speak gRPC".to_owned()),
    }
}

/// Whether an answer has come to a good end.
///
/// # Errors
/// It has not.
pub(crate) fn end(trailers: &HeaderMap) -> Result<(), String> {
    match trailers.get("grpc-status").map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        Some(code) => {
            let why = text(trailers, &HeaderName::from_static("grpc-message")).unwrap_or_default();
            let code = String::from_utf8_lossy(code);
            Err(format!("it answers with gRPC status {code} {why:?}"))
        }
        None => Err("its answer has no end".to_owned()),
    }
}

/// A header's value, if it is text.
pub(crate) fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    Some(value.to_str().ok()?.to_owned())
}

/// Messages out of their frames, as bytes come.
#[derive(Debug)]
pub struct Messages {
    bytes: BytesMut,
    /// Bytes of one message.
    most: usize,
}

impl Messages {
    /// None yet; each at most so long.
    pub fn of(most: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            most,
        }
    }

    /// More bytes. To be called when [`Messages::next`] has none left: what is held is then less than one message.
    ///
    /// # Errors
    /// The message that they belong to is too large, or compressed.
    pub fn take(&mut self, bytes: Bytes) -> Result<(), String> {
        self.bytes.extend_from_slice(&bytes);
        self.length().map(drop)
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// It cannot be read.
    #[allow(clippy::should_implement_trait)] // of any kind, and an end that is none
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, String> {
        let Some(length) = self.length()? else {
            return Ok(None);
        };
        if self.bytes.len() < PREFIX + length {
            return Ok(None);
        }
        self.bytes.advance(PREFIX);
        let message = M::decode(self.bytes.split_to(length).freeze());
        let message = message.map_err(|why| format!("its answer cannot be read: {why}"))?;
        Ok(Some(message))
    }

    /// Whether nothing is held: an end here cuts off nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn length(&self) -> Result<Option<usize>, String> {
        let Some(([compressed, length @ ..], _)) = self.bytes.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        if *compressed != 0 {
            return Err("its answer is compressed, which nobody asked for".to_owned());
        }
        let length = u32::from_be_bytes(*length) as usize;
        match length <= self.most {
            true => Ok(Some(length)),
            false => Err(format!("a message of {length} bytes is too large")),
        }
    }
}

/// Of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

#[cfg(test)]
mod tests {
    use api::ext_authz::Status;

    use super::*;

    fn message(code: i32) -> Status {
        Status {
            code,
            ..Status::default()
        }
    }

    #[test]
    fn messages_come_out_however_their_bytes_are_cut() {
        let mut bytes = BytesMut::new();
        for code in [1, 0, 300] {
            bytes.extend_from_slice(&framed(&message(code)).unwrap());
        }
        for step in 1..bytes.len() {
            let mut messages = Messages::of(100);
            let mut codes = Vec::new();
            for chunk in bytes.chunks(step) {
                messages.take(Bytes::copy_from_slice(chunk)).unwrap();
                while let Some(message) = messages.next::<Status>().unwrap() {
                    codes.push(message.code);
                }
            }
            assert!(messages.is_empty());
            assert_eq!(codes, [1, 0, 300]);
        }
    }

    #[test]
    fn what_is_too_large_or_compressed_is_refused_before_it_has_come() {
        for (bytes, said) in [
            (&[0, 0, 0, 1, 0][..], "256 bytes is too large"),
            (&[0, 255, 255, 255, 255], "too large"),
            (&[1, 0, 0, 0, 1], "compressed"),
        ] {
            let mut messages = Messages::of(255);
            let taken = messages.take(Bytes::copy_from_slice(bytes));
            assert!(taken.is_err_and(|why| why.contains(said)), "{bytes:?}");
        }
        let mut messages = Messages::of(255);
        let broken = Bytes::from_static(&[0, 0, 0, 0, 1, 0xff]);
        messages.take(broken).unwrap();
        assert!(messages.next::<Status>().is_err());
    }
}
