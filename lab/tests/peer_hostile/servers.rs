//! What a server does to our client: the connection that was carried there is refused, and its line says why. Others of the same
//! proxy, and those to the same server that come later, do not notice.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, ensure};
use lab::{Pod, wait};
use rustls::ServerConfig;

use crate::{
    clients::{credit, filler, settings},
    door::{Door, ECHO, HBONE, identity, in_scene},
    raw::{
        self, CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, Raw, SETTINGS, block,
        frame,
    },
    support::{SOON, refused},
};

const PUSH_PROMISE: u8 = 5;

/// A name; what it says when it is asked for a tunnel on that stream, and what it then says without end; what our line says of it
/// with our own engine, which names each reason, and with `h2`.
type Deed = (
    &'static str,
    fn(u32) -> Vec<u8>,
    Option<fn(u32) -> Vec<u8>>,
    [&'static str; 2],
);

/// Nothing more can be said for certain: whoever writes to a connection just cut off may hear of that first.
const ANYTHING: &str = "";

#[rustfmt::skip]
const DEEDS: &[Deed] = &[
    ("H2-7, trailers without an end", |s| [granted(s), frame(HEADERS, END_HEADERS, s, &block(&[("a", "b")]))].concat(), None, ["protocol error", "protocol error"]),
    ("H2-7, DATA behind a reset", |s| [rst(s), frame(DATA, 0, s, b"undead")].concat(), None, ["stream no longer needed", "stream no longer needed"]),
    ("H2-4, an answer that unfolds", |s| frame(HEADERS, END_HEADERS, s, &[&[0x88][..], &[0xa0; 16_000]].concat()), None, ["protocol error", "excessive load"]),
    ("H2-2, an answer without end", |s| frame(HEADERS, 0, s, &[0x88]), Some(|s| frame(CONTINUATION, 0, s, &filler())), ["a header block in too many pieces", ANYTHING]),
    ("H2-6, PING", |_| vec![], Some(|_| frame(PING, 0, 0, &[0; 8])), ["ping_flood", "ping_flood"]),
    ("H2-6, SETTINGS", |_| vec![], Some(|_| settings(4, 0xffff)), ["settings_flood", "settings_flood"]),
    ("H2-6, empty DATA", granted, Some(|s| frame(DATA, 0, s, b"")), ["too many empty DATA", ANYTHING]),
    (UNREAD, granted, Some(|s| frame(DATA, 0, s, &[0; 16 << 10])), ["flow", ANYTHING]),
    ("H2-10, no status", |s| frame(HEADERS, END_HEADERS, s, &block(&[("a", "b")])), None, ["protocol error", "protocol error"]),
    ("H2-10, a status that is none", |s| frame(HEADERS, END_HEADERS, s, &block(&[(":status", "2OO")])), None, ["protocol error", "protocol error"]),
    ("H2-11, a push", |s| frame(PUSH_PROMISE, END_HEADERS, s, &[0, 0, 0, 2, 0x82]), None, ["a PUSH_PROMISE", "protocol error"]),
    ("H2-11, a frame beyond the limit", |s| [granted(s), frame(DATA, 0, s, &[0; (1 << 20) + 1])].concat(), None, ["a frame is too long", "invalid size"]),
    ("H2-3, credit beyond all", |s| [granted(s), credit(0, 0x7fff_ffff)].concat(), None, ["beyond the largest window", "flow-control"]),
    ("another protocol", |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), None, ["a frame is too long", "invalid size"]),
];

/// The app does not read a byte of it.
const UNREAD: &str = "H2-9, DATA beyond the window";

fn granted(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[0x88])
}

fn rst(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
}

#[test]
fn servers_that_attack_are_left_and_named_and_nobody_else_notices() {
    in_scene(|scene| {
        for node in [0, 1] {
            let account = format!("rogue-{node}");
            // It speaks HBONE for itself: nothing of ours stands before it.
            let rogue = scene.lab.pod(&format!("shop/{account}")).node(1 - node);
            let rogue = rogue
                .service_account(&account)
                .label("istio.io/dataplane-mode", "none")
                .label("networking.istio.io/tunnel", "http")
                .without_waiting()
                .start()?;
            scene.lab.until_dump(node, &account, |dump| {
                let all = dump["workloads"].as_array();
                all.is_some_and(|all| {
                    all.iter()
                        .any(|w| w["name"] == *account && w["protocol"] == "HBONE")
                })
            })?;
            let tls = raw::tls_server(scene.ca, scene.badge(&account));
            let listener = rogue.listen(HBONE)?;
            listener.set_nonblocking(true)?;
            let mut door = scene.door(node)?;
            for deed in DEEDS {
                let listener = listener.try_clone()?;
                door.under(deed.0, async |door| {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    suffers(door, &rogue, &listener, &tls, deed).await
                })?;
            }
        }
        Ok(())
    });
}

async fn suffers(
    door: &Door<'_>,
    rogue: &Pod,
    listener: &tokio::net::TcpListener,
    tls: &Arc<ServerConfig>,
    (what, once, over, names): &Deed,
) -> Result<()> {
    let (client, to) = (&door.scene.pods[door.node], rogue.at(ECHO));
    let log = door.scene.lab.access_log(door.node)?.from_now();
    let (app, unread) = (client.clone(), *what == UNREAD);
    let calls = tokio::task::spawn_blocking(move || match unread {
        true => reset_without_reading(&app, to),
        false => refused(&app, to),
    });
    let mut peers = tokio::task::JoinSet::new();
    let serves = async {
        // Each connection that is made for it; one that ended may be followed by another, and one that was made before may have
        // waited here and be dead.
        loop {
            let (socket, _) = listener.accept().await?;
            let (tls, once, over) = (tls.clone(), *once, *over);
            peers.spawn(async move {
                if let Ok(mut peer) = Raw::accept(socket, tls).await {
                    let _ = misbehaves(&mut peer, once, over).await;
                }
            });
        }
    };
    tokio::select! {
        failed = serves => return failed,
        outcome = calls => outcome?.context("the app")?,
    }
    // They hang up.
    peers.shutdown().await;
    let record = log.find("the refusal", |record| {
        record.outbound()
            && record.field("src.workload") == client.name()
            && !record.error().is_empty()
    })?;
    let whose = record.field("dst.identity") == identity(rogue.name());
    let [own, h2] = names;
    let said = if door.own() { own } else { h2 };
    ensure!(whose && record.error().contains(said), "{record:?}");
    Ok(())
}

/// A connection that is reset while nobody reads what has come.
fn reset_without_reading(client: &Pod, to: SocketAddr) -> Result<()> {
    let stream = client.connect(to)?;
    wait::until_true("a reset", SOON, || {
        stream.take_error().is_ok_and(|error| error.is_some())
    })
}

/// Until it is hung up on.
async fn misbehaves(
    peer: &mut Raw,
    once: fn(u32) -> Vec<u8>,
    over: Option<fn(u32) -> Vec<u8>>,
) -> Result<()> {
    peer.send(&frame(SETTINGS, 0, 0, &[])).await?;
    let stream = loop {
        let frame = peer.next().await?.context("it left")?;
        if frame.kind == HEADERS {
            break frame.stream;
        }
    };
    peer.send(&once(stream)).await?;
    if let Some(over) = over {
        let batch = over(stream).repeat(16);
        while peer.send(&batch).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
    while peer.next().await?.is_some() {}
    Ok(())
}
