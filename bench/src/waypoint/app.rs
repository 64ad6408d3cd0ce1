//! The app behind the waypoint: it speaks HBONE for itself, so that nothing but the waypoint stands between it and a client.
//! Inside, HTTP/1.1, or HTTP/2 where that is how a client begins (`bulk`).

use std::sync::Arc;

use anyhow::{Result, bail};
use hbone::{Certificates, Identity, Incoming, Limits, ResponseHeaders, TunnelIo};
use lab::Pod;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use super::{HBONE, bulk};

/// Body of an answer, in bytes.
const BODY: usize = 1024;
/// A request's head.
const LONGEST: usize = 8 << 10;

/// Answers every request in `pod` with 200 and 1 KiB, for as long as `runtime` lives.
pub(crate) fn serve(
    runtime: &Runtime,
    pod: &Pod,
    certificates: &Arc<Certificates>,
    identity: &Identity,
) -> Result<()> {
    let listener = pod.listen(HBONE)?;
    listener.set_nonblocking(true)?;
    let _in = runtime.enter();
    let listener = TcpListener::from_std(listener)?;
    let (certificates, identity) = (certificates.clone(), identity.clone());
    runtime.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (certificates, identity) = (certificates.clone(), identity.clone());
            tokio::spawn(async move {
                // A client that goes away in the middle is the end of its work, not an error here.
                let _ = tunnels(tcp, &certificates, &identity).await;
            });
        }
    });
    Ok(())
}

async fn tunnels(tcp: TcpStream, certificates: &Certificates, identity: &Identity) -> Result<()> {
    let certificate = certificates.of(identity).await?;
    let mut connection = hbone::accept(tcp, certificate, &Limits::default()).await?;
    while let Some(incoming) = connection.next().await {
        let Incoming::Request(request) = incoming? else {
            continue;
        };
        if let Ok(tunnel) = request.accept(ResponseHeaders::default()) {
            tokio::spawn(async move { requests(tunnel.into_io()).await });
        }
    }
    Ok(())
}

async fn requests(mut io: TunnelIo) -> Result<()> {
    let body = "x".repeat(BODY);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n{body}"
    );
    let (mut buffer, mut held) = (vec![0; LONGEST], 0);
    loop {
        let n = io.read(&mut buffer[held..]).await?;
        if n == 0 {
            return Ok(());
        }
        held += n;
        if buffer[..held].starts_with(bulk::PREFACE) {
            buffer.truncate(held);
            return bulk::serve(buffer, io).await;
        }
        // A proxy sends one request and waits, so a request always ends the buffer.
        if buffer[..held].ends_with(b"\r\n\r\n") {
            io.write_all(answer.as_bytes()).await?;
            io.flush().await?;
            held = 0;
        } else if held == buffer.len() {
            bail!("a request's head is over {LONGEST} bytes");
        }
    }
}
