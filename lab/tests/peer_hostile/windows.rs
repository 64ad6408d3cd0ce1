//! Readers that stop: an app behind the proxy, a peer before it. What waits for them is bounded, and nobody waits with them.

use anyhow::{Result, ensure};

use crate::{
    clients::{credit, request, settings},
    door::{DEAF, Door, ECHO, FOUNTAIN, Peer, in_scene},
    raw::{self, ACK, DATA, HEADERS, PING, WINDOW_UPDATE, frame},
};

/// What the proxy announces for a stream.
const STREAM_WINDOW: usize = 4 << 20;
/// The same of our own engine.
const FIRST_STREAM_WINDOW: usize = 512 << 10;
/// Twice what fits into the connection's first window.
const STALLED: usize = 32 << 20;
/// Half of what a peer may have open.
const THIRSTY: u32 = 100;

#[test]
fn readers_that_stop_hold_up_nobody_else() {
    in_scene(|scene| {
        for node in [0, 1] {
            let mut door = scene.door(node)?;
            door.under("H2-9, apps that do not read", deaf_apps)?;
            door.under("H2-4, a peer that does not read", windows_of_zero)?;
            door.under("H2-11, a peer that reads byte by byte", windows_of_one)?;
        }
        Ok(())
    });
}

/// Each of them is sent a whole window. Another tunnel of the same connection works all the same.
async fn deaf_apps(door: &Door<'_>) -> Result<()> {
    let window = match door.own() {
        true => FIRST_STREAM_WINDOW,
        false => STREAM_WINDOW,
    };
    let stalled = u32::try_from(STALLED / window)?;
    let mut peer = door.greeted().await?;
    let to = door.to(DEAF).to_string();
    // A connection begins with this much (RFC 9113, 6.9.2).
    let mut left = 65_535;
    for n in 0..stalled {
        peer.raw.send(&request(2 * n + 1, &to)).await?;
        let mut said = 0;
        while said < window {
            let piece = (16 << 10).min(window - said);
            until_credit(&mut peer, &mut left, piece).await?;
            let bytes = frame(DATA, 0, 2 * n + 1, &vec![0; piece]);
            peer.raw.send(&bytes).await?;
            said += piece;
            left -= piece;
        }
    }
    until_credit(&mut peer, &mut left, 100).await?;
    peer.tunnel_works(2 * stalled + 1, door.to(ECHO)).await
}

/// Waits until so much may be sent on the connection.
async fn until_credit(peer: &mut Peer, left: &mut usize, wanted: usize) -> Result<()> {
    while *left < wanted {
        let more = |f: &raw::Frame| f.kind == WINDOW_UPDATE && f.stream == 0;
        let update = peer.frame("credit for the connection", more).await?;
        *left += usize::try_from(update.code())?;
    }
    Ok(())
}

/// Apps send without end to a peer that takes nothing, then some of it, from one of them.
async fn windows_of_zero(door: &Door<'_>) -> Result<()> {
    let mut peer = door.peer().await?;
    let to = door.to(FOUNTAIN).to_string();
    let hello = [raw::PREFACE, &settings(4, 0)].concat();
    peer.raw.send(&hello).await?;
    for n in 0..THIRSTY {
        peer.raw.send(&request(2 * n + 1, &to)).await?;
        let mine = |f: &raw::Frame| f.kind == DATA || f.kind == HEADERS && f.stream == 2 * n + 1;
        let answer = peer.frame("an answer", mine).await?;
        ensure!(answer.kind == HEADERS && answer.status() == 200);
    }
    ensure!(received(&mut peer).await? == 0, "it was given no credit");
    peer.raw.send(&credit(1, 1000)).await?;
    takes(&mut peer, 1000).await?;
    peer.raw.send(&settings(4, 100)).await?;
    peer.tunnel_works(2 * THIRSTY + 1, door.to(ECHO)).await
}

async fn windows_of_one(door: &Door<'_>) -> Result<()> {
    let mut peer = door.peer().await?;
    let to = door.to(FOUNTAIN).to_string();
    let hello = [raw::PREFACE, &settings(4, 1)].concat();
    peer.raw.send(&hello).await?;
    peer.raw.send(&request(1, &to)).await?;
    for _ in 0..200 {
        takes(&mut peer, 1).await?;
        peer.raw.send(&credit(1, 1)).await?;
    }
    takes(&mut peer, 1).await
}

/// Exactly so many bytes come.
async fn takes(peer: &mut Peer, mut bytes: usize) -> Result<()> {
    while bytes > 0 {
        let data = peer.frame("DATA", |f| f.kind == DATA).await?;
        ensure!(data.stream == 1 && data.payload.len() <= bytes, "{data:?}");
        bytes -= data.payload.len();
    }
    let more = received(peer).await?;
    ensure!(more == 0, "{more} bytes too many");
    Ok(())
}

/// Bytes of DATA that come before a PING is answered.
async fn received(peer: &mut Peer) -> Result<usize> {
    peer.raw.send(&frame(PING, 0, 0, b"anything")).await?;
    let mut bytes = 0;
    loop {
        let next = |f: &raw::Frame| f.kind == DATA || f.kind == PING && f.flags == ACK;
        let next = peer.frame("an answer to a PING", next).await?;
        if next.kind == PING {
            return Ok(bytes);
        }
        bytes += next.payload.len();
    }
}
