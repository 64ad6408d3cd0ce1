//! Answers HTTP on the doors of a process. Listeners and routes enter; the loop ends when told to.
//!
//! Small and stubborn: a bounded number of connections, a deadline for request heads, and errors
//! of `accept` (no file descriptors left) never end the loop.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Binds `address`. The unspecified IPv6 address also takes IPv4, and falls back to IPv4 alone on
/// a host without IPv6.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if no_ipv6(&error) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Binds `port` on 127.0.0.1 and, where there is one, on `[::1]`: doors that change things are for
/// callers inside the pod only.
pub async fn bind_localhost(port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?];
    let port = listeners[0].local_addr()?.port();
    match TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
        Ok(listener) => listeners.push(listener),
        Err(error) if no_ipv6(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// Serves `routes` on `listener` until `stop` is cancelled.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Ok((stream, slot)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, routes) => {}
            }
            drop(slot);
        });
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn connection(stream: TcpStream, routes: Router) {
    let service = TowerToHyperService::new(routes);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a door's connection ended early");
    }
}

/// Scrapers, probes and people: a handful. More is a mistake or an attack.
const CONNECTIONS: usize = 64;
/// A caller that is silent this long gives its slot back; probes and scrapers send at once.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::admin;
    use crate::ready::Readiness;

    #[tokio::test]
    async fn silent_callers_do_not_keep_others_out() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
            admin::readiness(Readiness::new()),
            stop.clone(),
        ));

        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS - 1 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller
            .write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let answered = caller.read_to_string(&mut answer);
        let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
        answered.expect("no answer").unwrap();
        assert!(
            answer.starts_with(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n"
            ),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nready\n"), "{answer}");
        stop.cancel();
        server.await.unwrap();
    }
}
