//! Header fields as they are decoded: checked, and what a mesh knows of them kept.
//!
//! A collector takes a block's fields one by one ([`Request`], [`Response`], [`Trailers`]); nothing is
//! kept but what is returned at the end. The rules are RFC 9113, 8.2, 8.3 and 8.5. A list beyond the
//! announced size, counted as the RFC counts (decoded, 32 more for each field), or of more than
//! [`FIELDS`] fields, is too large whatever it says.

use crate::{incoming::ResponseHeaders, request::RequestHeaders};

/// Fields in one list; a browser sends forty, a mesh five. What a field costs us is not only its bytes.
const FIELDS: u32 = 256;
/// What a field costs beside its bytes (RFC 9113, 10.5.1).
const OVERHEAD: usize = 32;

/// A request's method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// The one that is served.
    Connect,
    /// CONNECT, and what it is for (RFC 8441); only where that was offered.
    Extended {
        /// `:protocol`.
        protocol: Box<str>,
        /// `:path`.
        path: Box<str>,
    },
    /// Any other; its first 80 characters.
    Other(Box<str>),
}

/// What a request says. Well-formed, which is not yet acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// `:method`.
    pub method: Method,
    /// `:authority`, as it was written; empty if there was none.
    pub authority: Box<str>,
    /// The headers that mean something to a mesh.
    pub headers: RequestHeaders,
}

/// What a response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// `:status`, 200 to 999.
    pub status: u16,
    /// The headers that mean something to a mesh.
    pub headers: ResponseHeaders,
}

/// Why a header list is refused. The connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It breaks a rule.
    Malformed(&'static str),
    /// It is beyond what we announced.
    TooLarge,
}

/// What is common to all lists.
#[derive(Debug)]
struct List {
    room: usize,
    fields: u32,
    /// A field that is no pseudo-header has come.
    regular: bool,
    fault: Option<Fault>,
}

impl List {
    fn new(limit: u32) -> Self {
        Self {
            room: limit as usize,
            fields: 0,
            regular: false,
            fault: None,
        }
    }

    /// Counts a field and checks it by itself. False when it need not be looked at.
    fn count(&mut self, name: &[u8], value: &[u8]) -> bool {
        let cost = name.len() + value.len() + OVERHEAD;
        self.fields += 1;
        match self.room.checked_sub(cost) {
            Some(left) if self.fields <= FIELDS => self.room = left,
            _ => {
                self.room = 0;
                self.fault = Some(Fault::TooLarge);
            }
        }
        if self.fault.is_some() {
            return false;
        }
        let pseudo = name.first() == Some(&b':');
        let ordered = !(pseudo && self.regular);
        self.regular |= !pseudo;
        if !ordered {
            self.malformed("a pseudo-header behind a header");
        } else if !is_name(if pseudo { &name[1..] } else { name }) {
            self.malformed("a header name that is none");
        } else if !is_value(value) {
            self.malformed("a header value that is none");
        } else if !pseudo && is_of_a_connection(name, value) {
            self.malformed("a header that belongs to a connection");
        }
        self.fault.is_none()
    }

    fn malformed(&mut self, what: &'static str) {
        self.fault.get_or_insert(Fault::Malformed(what));
    }

    fn finish(self) -> Result<(), Fault> {
        self.fault.map_or(Ok(()), Err)
    }
}

/// Token characters but capitals (RFC 9113, 8.2.1).
fn is_name(name: &[u8]) -> bool {
    let allowed = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
    !name.is_empty() && name.iter().all(allowed)
}

/// No control characters, no blanks at either end.
fn is_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    let allowed = |b: &u8| *b == b'\t' || (*b >= 0x20 && *b != 0x7f);
    !blank(value.first()) && !blank(value.last()) && value.iter().all(allowed)
}

/// What HTTP/2 has no use for, because it says it otherwise (8.2.2).
fn is_of_a_connection(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
            true
        }
        b"te" => value != b"trailers",
        _ => false,
    }
}

/// Visible ASCII; anything else counts as absent.
fn text(value: &[u8]) -> Option<&str> {
    let visible = |b: &u8| *b == b'\t' || (0x20..0x7f).contains(b);
    let text = value.iter().all(visible).then_some(value)?;
    std::str::from_utf8(text).ok()
}

/// Adds a value to a list of them.
fn join(list: &mut Option<Box<str>>, value: &[u8]) {
    if let Some(more) = text(value) {
        *list = Some(match list.take() {
            Some(before) => format!("{before},{more}").into(),
            None => more.into(),
        });
    }
}

/// Collects a request.
#[derive(Debug)]
pub(super) struct Request {
    list: List,
    method: Option<Method>,
    authority: Option<Box<str>>,
    /// `:scheme` and `:path`, of which we only want to know whether they are there.
    scheme: bool,
    path: bool,
    /// A CONNECT may say what it is for.
    extended: bool,
    protocol: Option<Box<str>>,
    /// `:path` itself, where that may matter.
    place: Option<Box<str>>,
    host: Option<Box<[u8]>>,
    /// `content-length`.
    declared: Option<u64>,
    /// Headers of which the first counts, seen before.
    seen: u8,
    headers: RequestHeaders,
}

impl Request {
    /// `extended`: a CONNECT may say what it is for.
    pub(super) fn new(limit: u32, extended: bool) -> Self {
        Self {
            list: List::new(limit),
            extended,
            protocol: None,
            place: None,
            method: None,
            authority: None,
            scheme: false,
            path: false,
            host: None,
            declared: None,
            seen: 0,
            headers: RequestHeaders::default(),
        }
    }

    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        if !self.list.count(name, value) {
            return;
        }
        match name {
            b":method" => self.method(value),
            b":authority" => self.authority(value),
            b":scheme" => once(&mut self.list, &mut self.scheme, !value.is_empty()),
            b":path" => {
                let sound = value.starts_with(b"/") || value == b"*";
                once(&mut self.list, &mut self.path, sound);
                self.place = text(value).filter(|_| self.extended).map(Box::from);
            }
            b":protocol" if self.extended => {
                if self.protocol.is_some() || value.is_empty() {
                    self.list.malformed("a protocol that is none, or two");
                }
                self.protocol = text(value).map(Box::from);
            }
            b"baggage" => join(&mut self.headers.baggage, value),
            b"forwarded" => first(&mut self.seen, 1, &mut self.headers.forwarded, value),
            b"traceparent" => first(&mut self.seen, 2, &mut self.headers.traceparent, value),
            b"x-forwarded-network" => first(
                &mut self.seen,
                4,
                &mut self.headers.x_forwarded_network,
                value,
            ),
            b"x-istio-source" => first(&mut self.seen, 8, &mut self.headers.x_istio_source, value),
            b"host" if self.host.is_some() => self.list.malformed("two hosts"),
            b"host" => self.host = Some(value.into()),
            b"content-length" => self.length(value),
            [b':', ..] => self
                .list
                .malformed("a pseudo-header that requests do not have"),
            _ => {}
        }
    }

    fn method(&mut self, value: &[u8]) {
        let token = |b: &u8| is_name(&[b.to_ascii_lowercase()]);
        if self.method.is_some() || value.is_empty() || !value.iter().all(token) {
            return self.list.malformed("a method that is none, or two");
        }
        self.method = Some(match value {
            b"CONNECT" => Method::Connect,
            // A token is ASCII.
            other => Method::Other(other.iter().take(80).map(|b| char::from(*b)).collect()),
        });
    }

    fn authority(&mut self, value: &[u8]) {
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@[]%".contains(b);
        match std::str::from_utf8(value) {
            Ok(authority)
                if self.authority.is_none() && !value.is_empty() && value.iter().all(allowed) =>
            {
                self.authority = Some(authority.into());
            }
            _ => self.list.malformed("an authority that is none, or two"),
        }
    }

    fn length(&mut self, value: &[u8]) {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse().ok());
        match (length, self.declared) {
            (Some(length), None) if digits => self.declared = Some(length),
            _ => self.list.malformed("a content length that is none, or two"),
        }
    }

    /// What the request says, and how many bytes of content it declares.
    pub(super) fn finish(mut self) -> Result<(RequestHead, Option<u64>), Fault> {
        let mut method = self.method.take();
        match method {
            None => self.list.malformed("a request without a method"),
            Some(Method::Connect) => {
                // RFC 8441, 4: one that says what it is for has both.
                let extended = self.protocol.is_some();
                if extended != self.scheme || extended != self.path {
                    self.list
                        .malformed("a CONNECT with scheme or path, or one with a protocol without");
                }
                // Bytes of a tunnel are no content.
                if self.declared.take().is_some_and(|n| n > 0) {
                    self.list.malformed("a CONNECT with a content length");
                }
            }
            Some(_) => {
                if self.protocol.is_some() {
                    self.list.malformed("a protocol, and no CONNECT");
                }
                if !self.scheme || !self.path {
                    self.list.malformed("a request without scheme or path");
                }
            }
        }
        if let (Some(host), Some(authority)) = (&self.host, &self.authority)
            && !host.eq_ignore_ascii_case(authority.as_bytes())
        {
            self.list.malformed("a host that is not the authority");
        }
        self.list.finish()?;
        if let Some(protocol) = self.protocol.take() {
            let path = self.place.take().unwrap_or_default();
            method = Some(Method::Extended { protocol, path });
        }
        let head = RequestHead {
            method: method.ok_or(Fault::Malformed("a request without a method"))?,
            authority: self.authority.unwrap_or_default(),
            headers: self.headers,
        };
        Ok((head, self.declared))
    }
}

/// A pseudo-header that may come once.
fn once(list: &mut List, seen: &mut bool, sound: bool) {
    if *seen || !sound {
        list.malformed("a scheme or path that is none, or two");
    }
    *seen = true;
}

/// A header of which the first counts, whatever it says.
fn first(seen: &mut u8, bit: u8, slot: &mut Option<Box<str>>, value: &[u8]) {
    if *seen & bit == 0 {
        *seen |= bit;
        *slot = text(value).map(Box::from);
    }
}

/// Collects a response.
#[derive(Debug)]
pub(super) struct Response {
    list: List,
    status: Option<u16>,
    baggage: Option<Box<str>>,
}

impl Response {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            list: List::new(limit),
            status: None,
            baggage: None,
        }
    }

    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        if !self.list.count(name, value) {
            return;
        }
        match name {
            b":status" => {
                let status = match *value {
                    [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                        u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
                    }
                    _ => 101, // as little a status of HTTP/2
                };
                if status == 101 || self.status.is_some() {
                    self.list.malformed("a status that is none, or two");
                }
                self.status = Some(status);
            }
            [b':', ..] => self
                .list
                .malformed("a pseudo-header that responses do not have"),
            b"baggage" => join(&mut self.baggage, value),
            _ => {}
        }
    }

    pub(super) fn finish(mut self) -> Result<ResponseHead, Fault> {
        if self.status.is_none() {
            self.list.malformed("a response without a status");
        }
        self.list.finish()?;
        Ok(ResponseHead {
            status: self.status.unwrap_or_default(),
            headers: ResponseHeaders {
                baggage: self.baggage.map(String::from),
            },
        })
    }
}

/// Looks at fields that come behind a body; none of them is kept.
#[derive(Debug)]
pub(super) struct Trailers(List);

impl Trailers {
    pub(super) fn new(limit: u32) -> Self {
        Self(List::new(limit))
    }

    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        if self.0.count(name, value) && name.starts_with(b":") {
            self.0.malformed("a pseudo-header behind a body");
        }
    }

    pub(super) fn finish(self) -> Result<(), Fault> {
        self.0.finish()
    }
}

/// Whether a value of ours may be sent.
pub(super) fn is_sendable(value: &str) -> bool {
    is_value(value.as_bytes())
}

#[cfg(test)]
mod tests;
