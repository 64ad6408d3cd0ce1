//! What only proxies may say: taken out of what clients say, and written anew.

use std::fmt::Write as _;

use api::waypoint::ForwardClientCert;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::arrive::Arrived;
use crate::asked::remove_doubles;
use crate::call::{random, without_named};
use crate::compiled::Gateway;
use crate::report::{REQUEST_ID, Report};

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const ISTIO_SOURCE: HeaderName = HeaderName::from_static("x-istio-source");
/// By these, Envoys are told what to do.
const ORDERS: &str = "x-envoy-";

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
