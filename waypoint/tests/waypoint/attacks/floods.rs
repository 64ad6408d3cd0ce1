//! H2: clients that do not keep to HTTP/2 within their tunnel. Each is cut off or answered, others are served, and nothing
//! is held.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::peer::{Answered, Peer, block, literal};
use super::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame,
};
use super::{resident, unharmed};
use crate::shop::{Shop, in_shop};

const PRIORITY: u8 = 2;
const UNKNOWN: u8 = 0xbb;
const PORT: u16 = 90;

#[test]
fn clients_that_attack_within_a_tunnel_are_cut_off_and_nobody_else_notices() {
    in_shop(|shop| {
        let memory = resident(shop)?;
        for (class, what, first, each) in FLOODS {
            let name = format!("{class}, {what}");
            let mut peer = Peer::to(&shop.client, shop.at(PORT))?;
            peer.say(&first(1)).with_context(|| name.clone())?;
            let flooded = peer.flood(400_000, |n| each(2 * n + 1));
            let flooded = flooded.with_context(|| name.clone())?;
            ensure!(flooded.is_some(), "{name}: it was not cut off");
            unharmed(shop, &name, memory)?;
        }
        nothing_is_left_of_them(shop)?;
        bombs(shop).context("H2-4, H2-5, lists that unfold")?;
        unharmed(shop, "lists that unfold", memory)?;
        lengths(shop).context("H2-8, lengths that are not true")?;
        held_windows(shop).context("H2-4, windows that stay shut")?;
        unharmed(shop, "windows that stay shut", memory)?;
        tables(shop).context("H2-11, SETTINGS")?;
        unharmed(shop, "SETTINGS", memory)
    });
}

type Piece = fn(u32) -> Vec<u8>;

const NOTHING: Piece = |_| Vec::new();

#[rustfmt::skip]
const FLOODS: &[(&str, &str, Piece, Piece)] = &[
    ("H2-1", "rapid reset", NOTHING, |s| [ended(s), rst(s)].concat()),
    ("H2-1", "rapid reset of requests with a body to come", NOTHING, |s| [begun(s), rst(s)].concat()),
    ("H2-2", "a header block without end", |s| frame(HEADERS, 0, s, &get()), |_| frame(CONTINUATION, 0, 1, &filler())),
    ("H2-2", "an empty one", |s| frame(HEADERS, 0, s, &get()), |_| frame(CONTINUATION, 0, 1, &[])),
    ("H2-3", "streams that credit of nothing ends", NOTHING, |s| [begun(s), credit(s, 0)].concat()),
    ("H2-3", "streams that too much credit ends", NOTHING, |s| [begun(s), credit(s, 0x7fff_ffff)].concat()),
    ("H2-3", "streams that DATA behind the end ends", NOTHING, |s| [ended(s), frame(DATA, 0, s, b"x")].concat()),
    ("H2-3", "streams that depend on themselves", NOTHING, |s| [begun(s), priority(s), rst(s)].concat()),
    ("H2-6", "empty DATA", begun, |_| frame(DATA, 0, 1, b"")),
    ("H2-6", "empty HEADERS", NOTHING, |s| frame(HEADERS, END_HEADERS, s, b"")),
    ("H2-6", "PING", NOTHING, |s| frame(PING, 0, 0, &u64::from(s).to_be_bytes())),
    ("H2-6", "answers to no PING", NOTHING, |s| frame(PING, 1, 0, &u64::from(s).to_be_bytes())),
    ("H2-6", "SETTINGS", NOTHING, |_| settings(4, 0xffff)),
    ("H2-6", "WINDOW_UPDATE", NOTHING, |_| credit(0, 1)),
    ("H2-6", "PRIORITY", NOTHING, |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 5])),
    ("H2-6", "frames of no kind", NOTHING, |_| frame(UNKNOWN, 0, 0, b"x")),
    ("H2-10", "requests that are none", NOTHING, |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &block(&[(":method", "GET"), ("X", "y")]))),
    ("H2-11", "a header table that comes and goes", NOTHING, |s| settings(1, s / 2 % 2 * 4096)),
    ("H2-11", "a frame larger than allowed", NOTHING, |s| frame(DATA, 0, s, &[0; 17 << 10])),
];

fn get() -> Vec<u8> {
    block(&fields("/hang"))
}

fn fields(path: &str) -> [(&str, &str); 4] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "web.shop"),
        (":path", path),
    ]
}

fn begun(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &get())
}

fn ended(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &get())
}

fn rst(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

fn credit(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn priority(stream: u32) -> Vec<u8> {
    let payload = [&stream.to_be_bytes()[..], &[0]].concat();
    frame(PRIORITY, 0, stream, &payload)
}

fn settings(id: u8, value: u32) -> Vec<u8> {
    let payload = [&[0, id][..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn filler() -> Vec<u8> {
    block(&[("x-filler", &"x".repeat(200))])
}

/// Requests whose clients took them back are given up towards the app as well.
fn nothing_is_left_of_them(shop: &Shop<'_>) -> Result<()> {
    let carried =
        |name: &str| Ok::<_, anyhow::Error>(shop.waypoint.pod().metrics()?.sum(name, &[]));
    shop.until("no request to be carried any more", |_| {
        carried("ambit_requests_carried").is_ok_and(|now| now == 0.0)
    })?;
    shop.until("the floods to be counted", |shop| {
        let labels = [("reason", "idle_frame_flood")];
        let metrics = shop.waypoint.pod().metrics();
        metrics.is_ok_and(|it| it.sum("ambit_tunnel_refusals_total", &labels) >= 3.0)
    })
}

/// Small blocks that unfold into large lists.
fn bombs(shop: &Shop<'_>) -> Result<()> {
    // One long value goes into the table; then a byte each stands for it.
    let mut long = block(&fields("/"));
    long.push(0x40);
    literal(&mut long, "x-long");
    literal(&mut long, &"y".repeat(4000));
    long.extend([0x80 | 62; 1000]);
    // As cookies, which are crumbs to HTTP/2, and as hosts.
    let crumbs = |name: &str, value: &str, times: usize| {
        let mut small = block(&fields("/"));
        small.push(0x40);
        literal(&mut small, name);
        literal(&mut small, value);
        small.extend(vec![0x80 | 62; times]);
        small
    };
    for (what, block) in [
        ("one value of 4 MB", long),
        ("cookies, large", crumbs("cookie", &"z".repeat(3000), 500)),
        ("cookies, many", crumbs("cookie", "a", 1000)),
        ("hosts", crumbs("host", "web.shop", 1000)),
        ("empty fields", crumbs("x", "", 1500)),
    ] {
        let mut peer = Peer::to(&shop.client, shop.at(PORT))?;
        for stream in [1, 3, 5] {
            // As many of them as a client likes, one after the other.
            let whole = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
            if peer.say(&whole).is_err() {
                break;
            }
            match peer.answered(stream)? {
                Answered::Status(status @ (400 | 431)) => ensure!(status >= 400),
                Answered::Status(status) => anyhow::bail!("{what}: {status}"),
                Answered::Reset(_) => {}
                Answered::Ended(_) => break,
            }
        }
    }
    Ok(())
}

/// What is sent is what was said to be sent, or the stream ends; no app gets a whole request.
fn lengths(shop: &Shop<'_>) -> Result<()> {
    for (key, said, parts) in [
        ("short", "10", &[&b"abc"[..]][..]),
        ("long", "3", &[b"abcdef"]),
        ("longer in pieces", "3", &[b"abc", b"def"]),
        ("none", "10", &[b""]),
    ] {
        let mut peer = Peer::to(&shop.client, shop.at(PORT))?;
        let mut head = fields("/keep").to_vec();
        head.push(("x-key", key));
        head.push(("content-length", said));
        peer.say(&frame(HEADERS, END_HEADERS, 1, &block(&head)))?;
        for (number, part) in parts.iter().enumerate() {
            let last = u8::from(number + 1 == parts.len());
            // Ended by the other side already, it cannot be said.
            let _ = peer.say(&frame(DATA, last, 1, part));
        }
        let answered = peer.answered(1)?;
        ensure!(
            !matches!(answered, Answered::Status(200)),
            "{key}: {answered:?}"
        );
    }
    // Whichever app it went to.
    for _ in 0..6 {
        let kept = shop.runtime.block_on(shop.get("/kept"))?;
        for key in ["short", "long", "none"] {
            ensure!(!kept.text().contains(key), "{key}: {}", kept.text());
        }
    }
    Ok(())
}

/// As many answers as there may be, of which no byte is taken: others that share the way to the app go on.
fn held_windows(shop: &Shop<'_>) -> Result<()> {
    const INITIAL_WINDOW: u8 = 4;
    let mut peers = Vec::new();
    for _ in 0..4 {
        let mut peer = Peer::saying(&shop.client, shop.at(PORT), &[(INITIAL_WINDOW, 1)])?;
        let credit = |found: &super::raw::Frame| found.kind == WINDOW_UPDATE && found.stream == 0;
        while !credit(&peer.next()?.context("an end")?) {}
        for stream in (0..60).map(|n| 2 * n + 1) {
            peer.say(&frame(
                HEADERS,
                END_HEADERS,
                stream,
                &block(&fields("/stream")),
            ))?;
            // Into the first window only: the app says it all again, and nobody reads that.
            let part = frame(DATA, 0, stream, &[7; 8 << 10]);
            peer.say(&part.repeat(6))?;
        }
        peers.push(peer);
    }
    for peer in &mut peers {
        let first = peer.answered(1)?;
        ensure!(first == Answered::Status(200), "{first:?}");
    }
    // Another client's answer of a megabyte, over the same connections to the apps.
    shop.runtime.block_on(async {
        let mut two = crate::app::Two::to(&shop.client, shop.at(PORT)).await?;
        for _ in 0..4 {
            let request = http::Request::post("http://web.shop:90/echo")
                .body(http_body_util::Full::from(vec![1; 1 << 20]))?;
            let asked = tokio::time::timeout(Duration::from_secs(60), two.ask(request));
            let heard = asked
                .await
                .context("others wait for those who do not read")??;
            ensure!(heard.is(200)?.body.len() == 1 << 20);
        }
        anyhow::Ok(())
    })
}

fn tables(shop: &Shop<'_>) -> Result<()> {
    // (setting, value): no window, no table, the smallest and the largest of each.
    for settings in [
        &[(1u8, 0u32)][..],
        &[(1, u32::MAX)],
        &[(3, 0)],
        &[(4, 0x7fff_ffff)],
        &[(5, 0xff_ffff)],
        &[(0xff, 7)],
    ] {
        let mut peer = Peer::saying(&shop.client, shop.at(PORT), settings)?;
        let answered = peer.ask(1, &fields("/"))?;
        ensure!(
            answered == Answered::Status(200),
            "{settings:?}: {answered:?}"
        );
    }
    for settings in [&[(4u8, 0x8000_0000u32)][..], &[(5, 1)], &[(2, 7)]] {
        let mut peer = Peer::saying(&shop.client, shop.at(PORT), settings)?;
        let _ = peer.say(&ended(1));
        let answered = peer.answered(1)?;
        ensure!(
            matches!(answered, Answered::Ended(_)),
            "{settings:?}: {answered:?}"
        );
    }
    Ok(())
}
