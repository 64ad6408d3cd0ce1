//! A request that asks for another protocol: a WebSocket, as HTTP/1.1 (RFC 6455) or HTTP/2 (RFC 8441) ask for it.
//!
//! It has a connection of its own to the endpoint, which is used for nothing after. No byte that follows the request is
//! passed on before the endpoint has agreed.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, on};
use tokio_util::sync::CancellationToken;

use super::{Held, Shot, has_token, head, join, random};
use crate::arrive::Arrived;
use crate::limit::Permit;
use crate::request::Refused;
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

/// None for a request like any other. HTTP/2 without TLS (`h2c`) is asked for between two neighbours only.
pub(crate) fn wish<B>(request: &Request<B>) -> Option<Wish> {
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        let protocol = HeaderValue::try_from(protocol.as_str()).ok()?;
        return (*request.method() == Method::CONNECT).then_some(Wish {
            protocol,
            connect: true,
        });
    }
    if request.version() != Version::HTTP_11
        || !has_token(request.headers(), &CONNECTION, "upgrade")
    {
        return None;
    }
    let protocol = request.headers().get(UPGRADE)?;
    let known = protocol.as_bytes().eq_ignore_ascii_case(b"h2c");
    (!known).then(|| Wish {
        protocol: protocol.clone(),
        connect: false,
    })
}

/// Sends it; when the endpoint agrees, both connections are joined.
pub(super) async fn answered(
    arrived: &Arc<Arrived>,
    mut asking: Request<Outgoing>,
    shot: Shot,
    room: Option<Permit>,
    wish: Wish,
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
    let request = Request::from_parts(head, Outgoing::Empty);
    let proxy = &arrived.proxy;
    let mut answer = proxy.upstreams.upgrade(&shot.way, request).await?;
    let held = shot.held(room, None);
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        head::of_answer(&mut answer);
        let mut answer = answer.map(Answer::alien);
        answer.body_mut().hold(held);
        return Ok(answer);
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
        headers.insert(UPGRADE, wish.protocol);
    }
    Ok(answer)
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
