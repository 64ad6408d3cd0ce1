//! A request that asks for another protocol: a WebSocket, as HTTP/1.1 (RFC 6455) or HTTP/2 (RFC 8441) ask for it.
//!
//! It has a connection of its own to the endpoint, which is used for nothing after. Where none can be had, another endpoint is
//! asked, as for any request that nobody has seen. No byte that follows the request is passed on before the endpoint has
//! agreed.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, on};
use tokio_util::sync::CancellationToken;

use super::{Aim, Held, Shot, TRIES, failure, has_token, head, join, noted, random};
use crate::arrive::Arrived;
use crate::limit::Permit;
use crate::report::Report;
use crate::request::Refused;
use crate::retry::Outcome;
use crate::upstream::{Answer, Failed, Outgoing};

/// What is asked for, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    protocol: HeaderValue,
    /// By an extended CONNECT.
    connect: bool,
}

/// Of an answer by which both connections were joined: cancelled when they end, and ended by who cancels it.
#[derive(Debug, Clone)]
pub(crate) struct Switched(pub(crate) CancellationToken);

/// None for a request like any other. Of several protocols those are asked for that may be.
pub(crate) fn wish<B>(request: &Request<B>) -> Option<Wish> {
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        if *request.method() != Method::CONNECT || !may_be(protocol.as_str()) {
            return None;
        }
        return Some(Wish {
            protocol: HeaderValue::try_from(protocol.as_str()).ok()?,
            connect: true,
        });
    }
    if request.version() != Version::HTTP_11 || !asks(request.headers()) {
        return None;
    }
    let fit: Vec<&str> = protocols(request.headers()).collect();
    Some(Wish {
        protocol: HeaderValue::try_from(fit.join(", ")).ok()?,
        connect: false,
    })
}

/// Whether a head of HTTP/1.1 asks for a protocol that may be. One that asks for another, as some clients do with each first
/// request, is a request like any other.
pub(super) fn asks(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade") && protocols(headers).next().is_some()
}

/// Those that may be, of those that are asked for.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(UPGRADE).iter();
    let texts = lines.filter_map(|line| line.to_str().ok());
    let all = texts.flat_map(|text| text.split(',')).map(str::trim);
    all.filter(|protocol| may_be(protocol))
}

/// Whether a protocol may be asked for. HTTP in another form would bring requests that nobody has judged; so would TLS, and
/// `h2c` is asked for between two neighbours only.
fn may_be(protocol: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
    let name = protocol.split('/').next().unwrap_or_default();
    let never = ["h2c", "h2", "h3", "http", "tls"];
    let known = never.iter().any(|never| name.eq_ignore_ascii_case(never));
    !known && !name.is_empty() && protocol.bytes().all(token)
}

/// Sends it; when the endpoint agrees, both connections are joined.
pub(super) async fn answered(
    arrived: &Arc<Arrived>,
    mut asking: Request<Outgoing>,
    aim: &mut Aim<'_>,
    room: [Option<Permit>; 2],
    wish: Wish,
    report: &mut Report,
) -> Result<Response<Answer>, Refused> {
    let client = on(&mut asking);
    // Whatever body it says it has comes after, if at all.
    let (mut head, _) = asking.into_parts();
    head::for_http1(&mut head)?;
    let (method, headers) = (&mut head.method, &mut head.headers);
    if wish.connect {
        *method = Method::GET;
        let key = [random().to_be_bytes(), random().to_be_bytes()].concat();
        if let Ok(key) = HeaderValue::try_from(STANDARD.encode(key)) {
            headers.insert(SEC_WEBSOCKET_KEY, key);
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, wish.protocol.clone());
    headers.remove(CONTENT_LENGTH);
    let proxy = &arrived.proxy;
    let (shot, mut answer) = reached(arrived, &head, aim, report).await?;
    let [request, connection] = room;
    let held = shot.held(request, connection);
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        head::of_answer(&mut answer);
        let mut answer = answer.map(Answer::alien);
        answer.body_mut().hold(held);
        return Ok(answer);
    }
    let agreed = answer.headers().get(UPGRADE).cloned();
    let fits = |it: &HeaderValue| {
        let text = it.to_str();
        text.is_ok_and(|text| text.split(',').map(str::trim).all(may_be))
    };
    if !agreed.as_ref().is_none_or(fits) {
        return Err(Refused::Switched);
    }
    let endpoint = on(&mut answer);
    // Carried until both have ended, beyond the answer.
    let (now, over) = (proxy.drain.now().clone(), CancellationToken::new());
    let switched = Switched(over.clone());
    proxy.drain.spawn(async move {
        let _ended = over.clone().drop_guard();
        let joined = over.run_until_cancelled(joined(client, endpoint, held));
        now.run_until_cancelled(joined).await;
    });
    let mut answer = answer.map(|_| Answer::empty());
    answer.extensions_mut().insert(switched);
    head::of_answer(&mut answer);
    let headers = answer.headers_mut();
    if wish.connect {
        headers.remove(SEC_WEBSOCKET_ACCEPT);
        *answer.status_mut() = StatusCode::OK;
    } else {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, agreed.unwrap_or(wish.protocol));
    }
    Ok(answer)
}

/// An endpoint's answer; another one's where it certainly has not seen the request.
async fn reached(
    arrived: &Arc<Arrived>,
    head: &Parts,
    aim: &mut Aim<'_>,
    report: &mut Report,
) -> Result<(Shot, Response<Incoming>), Refused> {
    let mut made = 0;
    loop {
        made += 1;
        let mut shot = aim.choose()?;
        noted(&shot, report)?;
        let mut request = Request::new(Outgoing::Empty);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers.clone();
        match arrived.proxy.upstreams.upgrade(&shot.way, request).await {
            Ok((answer, connection)) => {
                shot.connection = connection;
                shot.ended(Outcome::Answered {
                    status: answer.status(),
                    grpc: None,
                });
                return Ok((shot, answer));
            }
            Err(why) => {
                shot.ended(failure(&why));
                if !why.is_unseen() || made == TRIES {
                    return Err(why.into());
                }
            }
        }
    }
}

async fn joined(client: OnUpgrade, endpoint: OnUpgrade, _held: Held) {
    let both = futures_util::future::try_join(client, endpoint).await;
    match both {
        Ok((client, endpoint)) => {
            if let Err(error) = join(client, endpoint).await {
                tracing::debug!(%error, "a switched connection broke");
            }
        }
        Err(error) => tracing::debug!(error = %Failed::Http(error), "not switched"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wished(fields: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::get("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let wish = wish(&request.body(()).unwrap())?;
        Some(wish.protocol.to_str().unwrap().to_owned())
    }

    #[test]
    fn no_other_form_of_http_is_asked_for_however_it_is_written() {
        for (upgrade, asked) in [
            (&["websocket"][..], Some("websocket")),
            (&["WebSocket"], Some("WebSocket")),
            (&["SPDY/3.1"], Some("SPDY/3.1")),
            (&["h2c"], None),
            (&["H2C"], None),
            (&["HTTP/2.0"], None),
            (&["http/1.1, TLS/1.2"], None),
            (&["h2c, websocket"], Some("websocket")),
            (&["websocket,\th2c "], Some("websocket")),
            (&["h2c", "websocket"], Some("websocket")),
            (&["websocket", "h2c"], Some("websocket")),
            (&["a, ,b"], Some("a, b")),
            (&["a b"], None),
            (&[""], None),
        ] {
            let mut fields = vec![("connection", "Upgrade")];
            fields.extend(upgrade.iter().map(|value| ("upgrade", *value)));
            assert_eq!(wished(&fields).as_deref(), asked, "{upgrade:?}");
            let mut request = Request::get("/");
            for (name, value) in &fields {
                request = request.header(*name, *value);
            }
            // Who is to be shown its body asks the same.
            let (head, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(crate::call::switches(&head), asked.is_some(), "{upgrade:?}");
        }
        assert_eq!(wished(&[("upgrade", "websocket")]), None, "not asked");
        for (protocol, asked) in [("websocket", true), ("h2c", false), ("a, h2c", false)] {
            let mut request = Request::connect("http://web/").body(()).unwrap();
            let protocol = Protocol::from(protocol);
            request.extensions_mut().insert(protocol.clone());
            assert_eq!(wish(&request).is_some(), asked, "{protocol:?}");
        }
    }
}
