//! Which trace a request belongs to: W3C trace context, and B3 in both of its forms.
//!
//! 1. what the client sent is read (`read`): `traceparent` goes before `b3`, and that before `x-b3-…`;
//! 2. one is begun where there is none, and sampled by share ([`Trace::begin`]); a decision that was made is kept;
//! 3. upstream learns of it in the form that the client used ([`Trace::write`]); `tracestate` passes as it is.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// 16 bytes that name a whole trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// 8 bytes that name one span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub u64);

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How a trace is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `traceparent`
    W3c,
    /// `b3: trace-span-sampled`
    B3,
    /// `x-b3-traceid`, `x-b3-spanid`, `x-b3-sampled`
    B3Headers,
}

/// The trace of one request, and this proxy's span in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    id: TraceId,
    span: SpanId,
    parent: Option<SpanId>,
    sampled: bool,
    form: Form,
}

impl Trace {
    /// The client's trace with a span of ours in it, or a new one, which is told in `form`. `percent` of new ones are
    /// sampled; `draws` are random numbers.
    pub fn begin(headers: &HeaderMap, form: Form, percent: f64, draws: [u64; 4]) -> Self {
        let [high, low, span, luck] = draws;
        let span = SpanId(span | 1); // ids that are all zero are forbidden
        let drawn = || (luck >> 11) as f64 / (1u64 << 53) as f64 * 100.0 < percent;
        match read(headers) {
            Some(told) => Self {
                id: told.id,
                span,
                parent: Some(told.span),
                sampled: told.sampled.unwrap_or_else(drawn),
                form: told.form,
            },
            None => Self {
                id: TraceId(u128::from(high) << 64 | u128::from(low | 1)),
                span,
                parent: None,
                sampled: decision(headers).unwrap_or_else(drawn),
                form,
            },
        }
    }

    /// Of the whole trace.
    pub fn id(&self) -> TraceId {
        self.id
    }

    /// Of this proxy's span.
    pub fn span(&self) -> SpanId {
        self.span
    }

    /// The client's span.
    pub fn parent(&self) -> Option<SpanId> {
        self.parent
    }

    /// Whether spans are to be collected.
    pub fn sampled(&self) -> bool {
        self.sampled
    }

    /// Tells upstream.
    pub fn write(&self, headers: &mut HeaderMap) {
        let flag = u8::from(self.sampled);
        match self.form {
            Form::W3c => {
                let text = format!("00-{}-{}-0{flag}", self.id, self.span);
                set(headers, TRACEPARENT, &text);
            }
            Form::B3 => {
                let mut text = format!("{}-{}-{flag}", self.id, self.span);
                if let Some(parent) = self.parent {
                    text.push_str(&format!("-{parent}"));
                }
                set(headers, B3, &text);
            }
            Form::B3Headers => {
                set(headers, B3_TRACE, &self.id.to_string());
                set(headers, B3_SPAN, &self.span.to_string());
                set(headers, B3_SAMPLED, if self.sampled { "1" } else { "0" });
                if let Some(parent) = self.parent {
                    set(headers, B3_PARENT, &parent.to_string());
                }
            }
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// What a client said.
struct Told {
    id: TraceId,
    span: SpanId,
    /// None: whoever comes next decides.
    sampled: Option<bool>,
    form: Form,
}

/// The trace that a client says a request belongs to.
pub fn told(headers: &HeaderMap) -> Option<TraceId> {
    read(headers).map(|told| told.id)
}

fn read(headers: &HeaderMap) -> Option<Told> {
    w3c(headers)
        .or_else(|| b3(headers))
        .or_else(|| b3_headers(headers))
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may have more behind.
fn w3c(headers: &HeaderMap) -> Option<Told> {
    let mut parts = value(headers, &TRACEPARENT)?.splitn(5, '-');
    let (version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = hex(version, 2)?;
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    Some(Told {
        id: trace_id(id, false)?,
        span: span_id(span)?,
        sampled: Some(hex(flags, 2)? & 1 == 1),
        form: Form::W3c,
    })
}

fn b3(headers: &HeaderMap) -> Option<Told> {
    let mut parts = value(headers, &B3)?.split('-');
    Some(Told {
        id: trace_id(parts.next()?, true)?,
        span: span_id(parts.next()?)?,
        sampled: parts.next().and_then(decided),
        form: Form::B3,
    })
}

fn b3_headers(headers: &HeaderMap) -> Option<Told> {
    let debug = value(headers, &B3_FLAGS).is_some_and(|flags| flags == "1");
    let said = value(headers, &B3_SAMPLED).and_then(decided);
    Some(Told {
        id: trace_id(value(headers, &B3_TRACE)?, true)?,
        span: span_id(value(headers, &B3_SPAN)?)?,
        sampled: if debug { Some(true) } else { said },
        form: Form::B3Headers,
    })
}

/// Whether a trace that is yet to begin is sampled, where somebody has decided that before: B3 knows a decision alone
/// (`b3: 0`).
fn decision(headers: &HeaderMap) -> Option<bool> {
    let one = value(headers, &B3).and_then(decided);
    let debug = value(headers, &B3_FLAGS).filter(|flags| *flags == "1");
    let said = || value(headers, &B3_SAMPLED).and_then(decided);
    one.or(debug.map(|_| true)).or_else(said)
}

/// B3's sampling state; `d` is debug.
fn decided(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// B3 knows ids of 8 bytes as well.
fn trace_id(text: &str, short: bool) -> Option<TraceId> {
    let length = if short && text.len() == 16 { 16 } else { 32 };
    hex(text, length).filter(|id| *id != 0).map(TraceId)
}

fn span_id(text: &str) -> Option<SpanId> {
    let id = u64::try_from(hex(text, 16)?).ok()?;
    Some(SpanId(id)).filter(|id| id.0 != 0)
}

/// Exactly that many digits, in lower case.
fn hex(text: &str, length: usize) -> Option<u128> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != length || !text.bytes().all(digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
