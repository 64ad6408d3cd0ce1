//! Apps that are told who their client is before a connection's first byte (PROXY protocol), whatever is spoken then.

use std::net::SocketAddr;

use ::http::{Request, Response};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use lab::Pod;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::app::{One, Two};
use super::shop::{Shop, in_shop};

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: told }
spec: { host: told, trafficPolicy: { proxyProtocol: { version: V1 } } }
";

#[test]
fn an_app_of_http_is_told_its_client_with_each_connection_and_no_two_clients_share_one() {
    in_shop(|shop| {
        let pod = shop.lab.pod("shop/told").node(0).label("app", "told");
        let pod = pod.start()?;
        serve(shop, &pod)?;
        let told = shop
            .lab
            .service_of("shop/told", &[("http", 80, 8080), ("grpc", 90, 8080)])?;
        shop.lab.apply_yaml("told", RULE)?;
        shop.until("the app to be told", |shop| {
            shop.runtime
                .block_on(one(shop, told.at(80)))
                .is_ok_and(|heard| heard.len() == 2)
        })?;
        shop.runtime.block_on(async {
            for port in [80, 90] {
                let to = told.at(port);
                let (first, second) = match port {
                    80 => (one(shop, to).await?, one(shop, to).await?),
                    _ => (two(shop, to).await?, two(shop, to).await?),
                };
                for heard in [&first, &second] {
                    let line = &heard[0];
                    let begins = format!("PROXY TCP4 {} {} ", shop.client.ip(), to.ip());
                    ensure!(line.starts_with(&begins), "{line}");
                    ensure!(line.ends_with(&format!(" {port}")), "{line}");
                    // All of a client's requests are its own.
                    ensure!(heard.iter().all(|it| it == line), "{heard:?}");
                }
                ensure!(first[0] != second[0], "{first:?} {second:?}");
            }
            Ok(())
        })
    });
}

/// What the app was told before each of two requests on one connection.
async fn one(shop: &Shop<'_>, to: SocketAddr) -> Result<Vec<String>> {
    let mut client = One::to(&shop.client, to).await?;
    let mut told = Vec::new();
    for _ in 0..2 {
        let request = Request::get("/").header("host", "told.shop");
        let request = request.body(Full::default())?;
        told.push(client.ask(request).await?.is(200)?.text());
    }
    Ok(told)
}

/// The same over HTTP/2.
async fn two(shop: &Shop<'_>, to: SocketAddr) -> Result<Vec<String>> {
    let mut client = Two::to(&shop.client, to).await?;
    let mut told = Vec::new();
    for _ in 0..2 {
        let request = Request::get("http://told.shop/").body(Full::default())?;
        told.push(client.ask(request).await?.is(200)?.text());
    }
    Ok(told)
}

/// Answers with what it was told before.
fn serve(shop: &Shop<'_>, pod: &Pod) -> Result<()> {
    let listener = pod.listen(8080)?;
    listener.set_nonblocking(true)?;
    let _in = shop.runtime.enter();
    let listener = TcpListener::from_std(listener)?;
    shop.runtime.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(served(tcp));
        }
    });
    Ok(())
}

async fn served(mut tcp: TcpStream) -> Result<()> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        ensure!(line.len() < 108, "no preamble");
        line.push(tcp.read_u8().await?);
    }
    let line = String::from_utf8(line).context("a line")?.trim().to_owned();
    let service = service_fn(move |_| {
        let line = Full::<Bytes>::from(line.clone());
        async move { anyhow::Ok(Response::new(line)) }
    });
    let serving = auto::Builder::new(TokioExecutor::new());
    let served = serving.serve_connection(TokioIo::new(tcp), service).await;
    served.map_err(|why| anyhow::anyhow!("{why}"))
}
