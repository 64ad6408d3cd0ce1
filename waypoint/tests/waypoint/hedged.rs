//! Calls of gRPC that are made twice, as the annotations of their GRPCRoute say.

use std::convert::Infallible;
use std::time::Duration;

use ::http::Request;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::app::{Heard, SOON, Two, connect};
use super::shop::{Shop, in_shop};

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { namespace: shop, name: calls, annotations: { ambit.io/hedge-after: 100ms } }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 90 }]
  rules: [{ backendRefs: [{ name: web, port: 90 }] }]
";

#[test]
fn a_call_is_made_twice_once_all_it_sends_is_there_and_a_stream_never_is() {
    in_shop(|shop| {
        shop.lab.apply_yaml("calls", ROUTE)?;
        // One of two is asked first: that none of so many is the slow one is no chance that anybody will live to see.
        let all = |shop: &Shop<'_>, round: &str, patience: Duration| {
            let mut keys = (0..CALLS).map(|number| format!("{round}-{number}"));
            keys.try_for_each(|key| {
                let called = shop.runtime.block_on(called(shop, &key, patience));
                called.map(drop).context(key)
            })
        };
        // Before the route is known, a call to the slow one has no answer.
        shop.until("calls to be made twice", |shop| {
            all(shop, "first", Duration::from_secs(5)).is_ok()
        })?;
        all(shop, "then", SOON)?;
        let log = shop.waypoint.pod().access_log();
        let mut twice = 0;
        for number in 0..CALLS {
            let key = format!("then-{number}");
            let line = log.find("the call", |line| line.field("request_id") == key)?;
            ensure!(line.field("dst.workload") == "two", "{line:?}");
            if line.field("flags") == "HG" {
                ensure!(line.field("tries") == "2", "{line:?}");
                twice += 1;
            }
        }
        ensure!(twice > 0, "nobody was asked beside");
        // What a client goes on with has one reader: it is for one endpoint, however slow that is.
        let waited = shop.runtime.block_on(async {
            for _ in 0..CALLS {
                if streamed(shop).await?.is_none() {
                    return anyhow::Ok(true);
                }
            }
            Ok(false)
        })?;
        ensure!(waited, "a stream was made twice");
        Ok(())
    });
}

fn request(key: &str) -> ::http::request::Builder {
    Request::post("http://web.shop/linger")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-slow", "one")
        .header("x-request-id", key)
        .header("x-key", key)
}

const CALLS: usize = 40;
/// An empty message.
const MESSAGE: [u8; 5] = [0; 5];

async fn called(shop: &Shop<'_>, key: &str, patience: Duration) -> Result<Heard> {
    let mut two = Two::to(&shop.client, shop.at(90)).await?;
    let asking = two.ask(request(key).body(Full::from(MESSAGE.to_vec()))?);
    let heard = tokio::time::timeout(patience, asking).await;
    heard.context("no answer")??.is(200)
}

/// A call that has sent one message and does not end; none if there is no answer for a while.
async fn streamed(shop: &Shop<'_>) -> Result<Option<()>> {
    let tcp = TokioIo::new(connect(&shop.client, shop.at(90))?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), tcp).await?;
    tokio::spawn(connection);
    let (say, frames) = mpsc::channel(1);
    let message = Frame::data(Bytes::from_static(&MESSAGE));
    say.send(Ok::<_, Infallible>(message)).await?;
    let body = StreamBody::new(ReceiverStream::new(frames));
    let answer = sender.send_request(request("stream").body(body)?);
    let answer = tokio::time::timeout(Duration::from_secs(1), answer).await;
    drop(say);
    Ok(answer.ok().transpose()?.map(drop))
}
