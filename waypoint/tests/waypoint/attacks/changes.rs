//! Connections that live for long: one that a policy would refuse now is ended, whatever it was when it began. Whoever may go
//! on goes on, also while others' policies come and go.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Pod;

use crate::shop::{Shop, in_shop};

#[test]
fn a_policy_ends_the_open_connections_that_it_denies_and_no_others() {
    in_shop(|shop| {
        for pod in &shop.apps {
            echo(pod)?;
        }
        let friend = shop.lab.pod("shop/friend").node(1);
        let friend = friend.service_account("friend").start()?;
        let mut kept = Vec::new();
        shop.until("both clients to be served", |shop| {
            websocket(shop, &friend).is_ok() && bytes(shop, &friend).is_ok()
        })?;
        for (name, client) in [("client", &shop.client), ("friend", &friend)] {
            kept.push((name, "WebSocket", websocket(shop, client)?));
            kept.push((name, "TCP", bytes(shop, client)?));
        }
        shop.lab
            .apply_yaml("harmless", &policy("harmless", "nobody"))?;
        shop.lab
            .apply_yaml("enemies", &policy("enemies", "client"))?;
        for (name, kind, stream) in &mut kept {
            let denied = *name == "client";
            let what = format!("{kind} of {name}");
            match denied {
                true => ends(stream).context(what)?,
                false => goes_on(stream).context(what)?,
            }
        }
        let log = shop.waypoint.pod().access_log();
        let line = log.find("the TCP connection", |line| {
            line.field("policy").contains("enemies") && line.field("protocol") == "TCP"
        })?;
        ensure!(line.field("flags").contains("UAEX"), "{line:?}");
        ensure!(line.number("bytes_recv") >= 5, "{line:?}");
        Ok(())
    });
}

fn policy(name: &str, account: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: {name} }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  action: DENY
  rules: [{{ from: [{{ source: {{ principals: ['cluster.local/ns/shop/sa/{account}'] }} }}] }}]
"
    )
}

fn echo(pod: &Pod) -> Result<()> {
    let listener = pod.listen(7070)?;
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut answers = stream.try_clone()?;
                std::io::copy(&mut &stream, &mut answers)
            });
        }
    });
    Ok(())
}

fn bytes(shop: &Shop<'_>, client: &Pod) -> Result<TcpStream> {
    let mut stream = client.connect(shop.at(70))?;
    goes_on(&mut stream)?;
    Ok(stream)
}

fn websocket(shop: &Shop<'_>, client: &Pod) -> Result<TcpStream> {
    let mut stream = client.connect(shop.at(80))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        b"GET /upgrade HTTP/1.1\r\nhost: web.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    ensure!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    goes_on(&mut stream)?;
    Ok(stream)
}

fn goes_on(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"hello");
    Ok(())
}

/// For an answer; news takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Without a word of ours.
fn ends(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(3 * PATIENCE))?;
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(0) => Ok(()),
        Ok(_) => anyhow::bail!("it says something"),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            anyhow::bail!("it goes on")
        }
        Err(_) => Ok(()),
    }
}
