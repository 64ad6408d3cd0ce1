//! Pure: heads, as the next connection has them.
//!
//! What belongs to one connection goes no further (RFC 9110 7.6.1); what HTTP/1.1 and HTTP/2 write differently is
//! written anew: the target and the host, cookies.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version};

use crate::call::has_token;
use crate::request::Refused;

/// Not in `http::header`.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Whether it is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

/// Takes out the fields that `connection` names, which a client chooses: before anything is judged, so that none of them
/// is judged and then not there. `connection` names them no more then: what is written under such a name later is ours, and
/// nothing that a client could have taken out.
pub(crate) fn without_named(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let (stay, named): (Vec<HeaderName>, Vec<HeaderName>) = {
        let values = headers.get_all(CONNECTION).iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        let names = texts.flat_map(|text| text.split(','));
        let parsed = names.filter_map(|name| name.trim().parse().ok());
        parsed.partition(|name| STAY.contains(name))
    };
    for name in named {
        headers.remove(name);
    }
    let stay: Vec<&str> = stay.iter().map(HeaderName::as_str).collect();
    headers.remove(CONNECTION);
    if let Ok(stay) = HeaderValue::try_from(stay.join(", "))
        && !stay.is_empty()
    {
        headers.insert(CONNECTION, stay);
    }
}

/// Named or not, these are dealt with where they mean something.
const STAY: [HeaderName; 6] = [
    HOST,
    TE,
    UPGRADE,
    TRANSFER_ENCODING,
    CONTENT_LENGTH,
    HTTP2_SETTINGS,
];

/// Takes out what is for one connection only.
pub(super) fn without_hops(headers: &mut HeaderMap) {
    without_named(headers);
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Of a request's trailers, without what only its head may say: for whom it is, who asks, what proxies add. Nobody has judged
/// it there, and an app that takes trailers for headers would believe it.
pub(crate) fn of_trailers(trailers: &mut HeaderMap) {
    let never = |name: &&HeaderName| {
        let name = name.as_str().replace('_', "-");
        let prefixes = ["x-forwarded-", "x-envoy-", "proxy-"];
        ONLY_IN_HEADS.contains(&&*name) || prefixes.iter().any(|it| name.starts_with(it))
    };
    let never: Vec<HeaderName> = trailers.keys().filter(never).cloned().collect();
    for name in never {
        trailers.remove(name);
    }
}

const ONLY_IN_HEADS: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-istio-source",
    "x-real-ip",
];

/// Without what a client could use to be taken for a proxy.
pub(super) fn without_proxy_words(headers: &mut HeaderMap) {
    headers.remove(PROXY_AUTHENTICATE);
    headers.remove(PROXY_AUTHORIZATION);
}

/// For what the endpoint speaks.
pub(super) fn rewrite<B: Default>(request: &mut Request<B>, http2: bool) -> Result<(), Refused> {
    let (mut head, body) = std::mem::take(request).into_parts();
    let written = match http2 {
        true => for_http2(&mut head),
        false => for_http1(&mut head),
    };
    *request = Request::from_parts(head, body);
    written
}

/// For an endpoint that speaks HTTP/1.1.
pub(super) fn for_http1(head: &mut Parts) -> Result<(), Refused> {
    without_hops(&mut head.headers);
    without_proxy_words(&mut head.headers);
    head.headers.remove(TE);
    if let Some(authority) = head.uri.authority() {
        let host = HeaderValue::try_from(host(authority)).map_err(|_| Refused::Target)?;
        head.headers.insert(HOST, host);
        let target = head.uri.path_and_query().cloned();
        head.uri = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    if head.version == Version::HTTP_2 {
        one_cookie(&mut head.headers);
    }
    head.version = Version::HTTP_11;
    Ok(())
}

/// For an endpoint that speaks HTTP/2.
pub(super) fn for_http2(head: &mut Parts) -> Result<(), Refused> {
    let trailers = has_token(&head.headers, &TE, "trailers");
    without_hops(&mut head.headers);
    without_proxy_words(&mut head.headers);
    head.headers.remove(TE);
    if trailers {
        head.headers
            .insert(TE, HeaderValue::from_static("trailers"));
    }
    let said = head.headers.remove(HOST);
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    if parts.authority.is_none() {
        let said = said.as_ref().map(HeaderValue::as_bytes);
        let authority = said.and_then(|said| http::uri::Authority::try_from(said).ok());
        parts.authority = Some(authority.ok_or(Refused::Target)?);
    }
    parts.scheme = Some(Scheme::HTTP);
    parts
        .path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(parts).map_err(|_| Refused::Target)?;
    head.version = Version::HTTP_2;
    Ok(())
}

/// Of an endpoint's answer, for the client.
pub(super) fn of_answer<B>(answer: &mut Response<B>) {
    without_hops(answer.headers_mut());
    *answer.version_mut() = Version::HTTP_11;
}

/// Without what only a URL has.
fn host(authority: &http::uri::Authority) -> &str {
    let text = authority.as_str();
    text.rsplit_once('@').map_or(text, |(_, host)| host)
}

/// HTTP/2 may part cookies; HTTP/1.1 has one field (RFC 9113 8.2.3).
fn one_cookie(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(version: Version, uri: &str, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn shown(head: &Parts) -> Vec<String> {
        let fields = head.headers.iter();
        let fields = fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        let mut shown: Vec<_> = fields.collect();
        shown.sort();
        shown.insert(0, head.uri.to_string());
        shown
    }

    #[test]
    fn what_is_for_one_connection_goes_no_further() {
        let said = [
            ("host", "web"),
            ("connection", "close, X-Private, host"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ];
        let mut one = head(Version::HTTP_11, "/a?b", &said);
        for_http1(&mut one).unwrap();
        assert_eq!(shown(&one), ["/a?b", "accept: */*", "host: web"]);
        let mut two = head(Version::HTTP_11, "/a?b", &said);
        for_http2(&mut two).unwrap();
        assert_eq!(
            shown(&two),
            ["http://web/a?b", "accept: */*", "te: trailers"]
        );
    }

    #[test]
    fn who_has_named_a_field_takes_out_his_own_and_none_that_is_written_later() {
        let said = [
            ("host", "web"),
            ("connection", "upgrade, x-user, X-Forwarded-Client-Cert"),
            ("connection", "close, Host"),
            ("connection", "x-late"),
            ("upgrade", "websocket"),
            ("x-user", "admin"),
        ];
        let mut one = head(Version::HTTP_11, "/", &said);
        without_named(&mut one.headers);
        assert_eq!(
            shown(&one),
            [
                "/",
                "connection: upgrade, host",
                "host: web",
                "upgrade: websocket"
            ]
        );
        for name in ["x-user", "x-forwarded-client-cert", "x-late"] {
            let ours = HeaderValue::from_static("ours");
            one.headers.insert(HeaderName::from_static(name), ours);
        }
        let mut two = head(Version::HTTP_11, "/", &[]);
        two.headers = one.headers.clone();
        for_http1(&mut one).unwrap();
        let written = [
            "x-forwarded-client-cert: ours",
            "x-late: ours",
            "x-user: ours",
        ];
        assert_eq!(
            shown(&one)[1..],
            [&["host: web"][..], &written[..]].concat()
        );
        for_http2(&mut two).unwrap();
        assert_eq!(shown(&two)[1..], written);
    }

    #[test]
    fn trailers_do_not_say_what_only_a_head_may() {
        let said = [
            ("x-sum", "1"),
            ("grpc-status", "0"),
            ("x-forwarded-client-cert", "URI=spiffe://evil"),
            ("x_forwarded_for", "10.0.0.1"),
            ("authorization", "Bearer x"),
            ("host", "admin"),
            ("x-envoy-retry-on", "5xx"),
        ];
        let mut trailers = head(Version::HTTP_2, "/", &said);
        of_trailers(&mut trailers.headers);
        assert_eq!(shown(&trailers), ["/", "grpc-status: 0", "x-sum: 1"]);
    }

    #[test]
    fn the_target_and_cookies_are_written_as_the_endpoint_reads_them() {
        let said = [("cookie", "a=1"), ("cookie", "b=2")];
        let mut one = head(Version::HTTP_2, "http://web.shop:80/a", &said);
        for_http1(&mut one).unwrap();
        assert_eq!(shown(&one), ["/a", "cookie: a=1; b=2", "host: web.shop:80"]);
        let mut absolute = head(Version::HTTP_11, "http://web/a", &[("host", "web")]);
        for_http1(&mut absolute).unwrap();
        assert_eq!(shown(&absolute), ["/a", "host: web"]);
    }
}
