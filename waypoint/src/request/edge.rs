//! What only proxies may say: taken out of what clients say, and written anew.

use std::fmt::Write as _;

use api::waypoint::ForwardClientCert;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Refused;
use crate::arrive::Arrived;
use crate::asked::{is_double, remove_doubles};
use crate::call::{random, without_named};
use crate::compiled::Gateway;
use crate::report::{REQUEST_ID, Report};

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const ISTIO_SOURCE: HeaderName = HeaderName::from_static("x-istio-source");
/// Header fields of a request, each cookie's crumb among them.
const MOST_FIELDS: usize = 256;
/// By these, Envoys are told what to do.
const ORDERS: &str = "x-envoy-";

/// Whether only proxies may say it, also where some apps take it for what they say.
pub(super) fn is_proxies(name: &HeaderName) -> bool {
    let client_cert = *name == XFCC || is_double(name, &XFCC);
    client_cert || *name == ISTIO_SOURCE || name.as_str().starts_with(ORDERS)
}

/// Whether it says in one way where it ends, and has no more fields than anybody needs. The engines have looked at most
/// of that; what they let pass would reach the app as something else than what was judged.
pub(super) fn framed(head: &Parts) -> Result<(), Refused> {
    if head.headers.len() > MOST_FIELDS {
        return Err(Refused::TooManyFields);
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes().iter().all(u8::is_ascii_digit);
        if lengths.next().is_some() || !digits || length.is_empty() {
            return Err(Refused::Framing);
        }
    }
    // A coding that is not taken off here is none that the app would be told of.
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !chunked(coding))
    {
        return Err(Refused::Framing);
    }
    Ok(())
}

/// A request has come in.
pub(super) fn arrived(
    headers: &mut HeaderMap,
    arrived: &Arrived,
    gateway: &Gateway,
    report: &mut Report,
) {
    without_named(headers);
    client_cert(headers, arrived, gateway.forward_client_cert);
    headers.remove(ISTIO_SOURCE);
    let mut orders = headers
        .keys()
        .filter(|name| name.as_str().starts_with(ORDERS));
    if orders.next().is_some() {
        let orders: Vec<HeaderName> = headers
            .keys()
            .filter(|name| name.as_str().starts_with(ORDERS))
            .cloned()
            .collect();
        for order in orders {
            headers.remove(order);
        }
    }
    if !headers.contains_key(PROTO) {
        headers.insert(PROTO, HeaderValue::from_static("http"));
    }
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::try_from(request_id())
    {
        report.request_id(id.clone());
        headers.insert(REQUEST_ID, id);
    }
}

fn client_cert(headers: &mut HeaderMap, arrived: &Arrived, wanted: ForwardClientCert) {
    let said = headers.remove(XFCC);
    remove_doubles(headers, &[XFCC]);
    if wanted == ForwardClientCert::Sanitize {
        return;
    }
    let Some(client) = &arrived.client.identity else {
        return;
    };
    let mut text = String::new();
    if wanted == ForwardClientCert::Append
        && let Some(said) = said.as_ref().and_then(|said| said.to_str().ok())
    {
        text.push_str(said);
        text.push(',');
    }
    let _ = write!(text, "By={};URI={client}", arrived.proxy.identity);
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(XFCC, value);
    }
}

/// A random UUID (RFC 9562, version 4).
fn request_id() -> String {
    let (high, low) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0x0fff,
        low >> 48 & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff
    )
}
