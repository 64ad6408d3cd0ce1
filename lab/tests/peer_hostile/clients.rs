//! What a client does to the tunnel port.

use anyhow::{Context, Result, ensure};
use lab::wait;

use crate::{
    door::{Door, ECHO, Peer, in_scene},
    raw::{
        self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM,
        SETTINGS, WINDOW_UPDATE, block, connect_headers, frame,
    },
    support::SOON,
};

const PRIORITY: u8 = 2;
const UNKNOWN: u8 = 0xbb;

pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const CANCEL: u32 = 8;
pub(crate) const CALM: u32 = 11;

/// What floods are made of, as a function of the stream's number and the destination.
type Piece = fn(u32, &str) -> Vec<u8>;

/// Class, name, what is said once, what is said over and over, and the names under which that may be cut off.
type Flood = (
    &'static str,
    &'static str,
    Piece,
    Piece,
    &'static [&'static str],
);

const NOTHING: Piece = |_, _| Vec::new();

#[rustfmt::skip]
const FLOODS: &[Flood] = &[
    ("H2-1", "rapid reset", NOTHING, |s, to| [request(s, to), rst(s)].concat(), &["reset_flood", "violated HTTP/2"]),
    ("H2-2", "a header block without end", |_, to| begun(1, to), |_, _| more(1, &filler()), &["violated HTTP/2"]),
    ("H2-2", "an empty one", |_, to| begun(1, to), |_, _| more(1, &[]), &["violated HTTP/2"]),
    ("H2-3", "streams that credit of nothing ends", NOTHING, |s, to| [request(s, to), credit(s, 0)].concat(), &["reset_flood", "idle_frame_flood", "violated HTTP/2"]),
    ("H2-3", "streams that too much credit ends", NOTHING, |s, to| [request(s, to), credit(s, 0x7fff_ffff)].concat(), &["reset_flood", "idle_frame_flood", "violated HTTP/2"]),
    ("H2-3", "streams that DATA behind the end ends", NOTHING, |s, to| [ended(s, to), frame(DATA, 0, s, b"x")].concat(), &["reset_flood", "violated HTTP/2"]),
    ("H2-3", "streams that depend on themselves", NOTHING, |s, to| [request(s, to), priority(s)].concat(), &["reset_flood", "idle_frame_flood", "violated HTTP/2"]),
    ("H2-6", "empty DATA", |_, to| request(1, to), |_, _| frame(DATA, 0, 1, b""), &["empty_data_flood"]),
    ("H2-6", "empty HEADERS", NOTHING, |s, _| frame(HEADERS, END_HEADERS, s, b""), &["reset_flood", "violated HTTP/2"]),
    ("H2-6", "PING", NOTHING, |s, _| frame(PING, 0, 0, &u64::from(s).to_be_bytes()), &["ping_flood"]),
    ("H2-6", "SETTINGS", NOTHING, |_, _| settings(4, 0xffff), &["settings_flood"]),
    ("H2-11", "a header table that comes and goes", NOTHING, |s, _| settings(1, s / 2 % 2 * 4096), &["settings_flood"]),
    ("H2-6", "PRIORITY", NOTHING, |_, _| frame(PRIORITY, 0, 1, &[0; 5]), &["idle_frame_flood"]),
    ("H2-6", "frames of no kind", NOTHING, |_, _| frame(UNKNOWN, 0, 0, b"x"), &["idle_frame_flood"]),
    ("H2-10", "requests that are none", NOTHING, |s, _| headers(s, &[(":method", "CONNECT"), (":authority", "a b")]), &["reset_flood", "violated HTTP/2"]),
];

pub(crate) fn request(stream: u32, to: &str) -> Vec<u8> {
    headers(stream, &connect_headers(to))
}

pub(crate) fn headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(fields))
}

fn ended(stream: u32, to: &str) -> Vec<u8> {
    let flags = END_HEADERS | END_STREAM;
    frame(HEADERS, flags, stream, &block(&connect_headers(to)))
}

fn begun(stream: u32, to: &str) -> Vec<u8> {
    frame(HEADERS, 0, stream, &block(&connect_headers(to)))
}

fn more(stream: u32, piece: &[u8]) -> Vec<u8> {
    frame(CONTINUATION, 0, stream, piece)
}

pub(crate) fn filler() -> Vec<u8> {
    block(&[("x-filler", &"x".repeat(120))])
}

fn rst(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

pub(crate) fn credit(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// On itself.
fn priority(stream: u32) -> Vec<u8> {
    let mut payload = stream.to_be_bytes().to_vec();
    payload.push(0);
    frame(PRIORITY, 0, stream, &payload)
}

pub(crate) fn settings(id: u8, value: u32) -> Vec<u8> {
    let mut payload = vec![0, id];
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

#[test]
fn clients_that_attack_are_cut_off_by_name_and_nobody_else_notices() {
    in_scene(|scene| {
        for node in [0, 1] {
            let mut door = scene.door(node)?;
            for flood in FLOODS {
                let (class, what, ..) = flood;
                door.under(&format!("{class}, {what}"), async |door| {
                    cut_off(door, flood).await
                })?;
            }
            door.under("H2-6, WINDOW_UPDATE", credit_for_nothing)?;
            door.under("H2-4 and 5, lists", lists)?;
            door.under("H2-10, requests", requests)?;
            door.under("H2-8, a length", a_length)?;
            door.under("H2-3 and 7, tunnels", tunnels)?;
            for end in ENDS {
                door.under(end.0, async |door| ends(door, end).await)?;
            }
        }
        Ok(())
    });
}

async fn cut_off(door: &Door<'_>, (class, _, once, each, names): &Flood) -> Result<()> {
    let to = door.to(ECHO).to_string();
    let arrived = door.arrived();
    let mut peer = door.greeted().await?;
    peer.raw.send(&once(1, &to)).await?;
    let flooded = peer.flood(100_000, |n| each(2 * n + 1, &to)).await;
    ensure!(flooded.cut, "it was not cut off: {flooded:?}");
    let record = peer.line(names)?;
    // `h2` ends a connection at once for some of what our own engine lets a peer do a thousand times.
    let at_once = !door.own() && *class == "H2-3" && flooded.code == Some(PROTOCOL_ERROR);
    ensure!(
        at_once || flooded.code == Some(CALM),
        "{flooded:?}, {record:?}"
    );
    let arrived = door.arrived() - arrived;
    ensure!(arrived <= 2_000, "{arrived} connections at the app");
    Ok(())
}

/// It costs our own engine's budget; `h2` counts no such frames, and they leave nothing behind.
async fn credit_for_nothing(door: &Door<'_>) -> Result<()> {
    let mut peer = door.greeted().await?;
    let flooded = peer.flood(50_000, |_| credit(0, 1)).await;
    if door.own() {
        ensure!(flooded.cut && flooded.code == Some(CALM), "{flooded:?}");
        peer.line(&["idle_frame_flood"]).map(drop)
    } else {
        ensure!(!flooded.cut, "{flooded:?}");
        peer.tunnel_works(1, door.to(ECHO)).await
    }
}

/// What is remembered (our SETTINGS, which forbid it, are not acknowledged yet): a field of 4,000 bytes.
const REMEMBERED: &[u8] = b"\x40\x01x\x7f\xa1\x1e";
/// That field, `cookie` and `host` without a value, by their numbers: one byte each, 4,033, 38 and 36 by the rules.
const AGAIN: u8 = 0xbe;
const CRUMB: u8 = 0xa0;
const HOST: u8 = 0xa6;

/// Blocks of a few kilobytes that unfold into lists of hundreds: answered 431 before they are kept, and the connection goes
/// on; `h2` ends it with the worst of them.
async fn lists(door: &Door<'_>) -> Result<()> {
    let to = door.to(ECHO).to_string();
    let list = |begin: &[u8], again: u8, times: usize| {
        let fields = [&block(&connect_headers(&to)), begin, &vec![again; times]].concat();
        move |stream: u32| frame(HEADERS, END_HEADERS, stream, &fields)
    };
    let remembered = [REMEMBERED, &[b'y'; 4000]].concat();
    let counted = door.refusals("malformed_stream")?;
    for bomb in [
        list(&remembered, AGAIN, 20),
        list(&[], CRUMB, 2_000),
        list(&[], HOST, 2_000),
    ] {
        let mut peer = door.greeted().await?;
        peer.raw.send(&bomb(1)).await?;
        answered_431(&mut peer, 1).await?;
        peer.tunnel_works(3, door.to(ECHO)).await?;
    }
    // What is remembered is so once: with our SETTINGS acknowledged, a peer that refers to it is no peer of ours any more.
    for (bomb, times) in [
        (list(&remembered, AGAIN, 4_000), 1),
        (list(&[], CRUMB, 16_000), 200),
        (list(&[], HOST, 16_000), 200),
    ] {
        let mut peer = door.greeted().await?;
        if !door.own() {
            let _ = peer.raw.send(&bomb(1)).await;
            let code = peer.goaway().await?;
            ensure!(code == CALM, "code {code}");
            peer.line(&["violated HTTP/2"])?;
            continue;
        }
        for n in 0..times {
            peer.raw.send(&bomb(2 * n + 1)).await?;
            answered_431(&mut peer, 2 * n + 1).await?;
        }
        peer.tunnel_works(2 * times + 1, door.to(ECHO)).await?;
    }
    let wanted = if door.own() { 404.0 } else { 3.0 };
    wait::until("each of them to be counted", SOON, || {
        let counted = door.refusals("malformed_stream")? - counted;
        Ok(if counted == wanted {
            wait::Probe::Ready(())
        } else {
            wait::Probe::NotYet(format!("{counted} were counted, not {wanted}"))
        })
    })
}

async fn answered_431(peer: &mut Peer, stream: u32) -> Result<()> {
    let mine = |f: &raw::Frame| f.stream == stream && f.kind == HEADERS;
    let answer = peer.frame("431", mine).await?;
    ensure!(answer.status() == 431, "status {}", answer.status());
    Ok(())
}

/// What makes no sense as a request ends that stream and no other; some of it ends the connection with `h2`.
async fn requests(door: &Door<'_>) -> Result<()> {
    let to = door.to(ECHO).to_string();
    let and = |more: &[(&'static str, &'static str)]| {
        let mut fields = connect_headers(&to);
        fields.extend(more);
        fields
    };
    let mut peer = door.greeted().await?;
    let mut stream = 1;
    for (what, fields) in [
        ("capitals", and(&[("Upper", "x")])),
        ("no name", and(&[("", "x")])),
        ("a blank in a name", and(&[("a b", "x")])),
        ("a line's end in a value", and(&[("a", "x\r\nb: y")])),
        ("a null in a value", and(&[("a", "\0")])),
        ("a header of the connection", and(&[("connection", "x")])),
        ("another", and(&[("transfer-encoding", "chunked")])),
        ("te", and(&[("te", "gzip")])),
        ("a path", and(&[(":path", "/")])),
        ("a scheme", and(&[(":scheme", "https")])),
        ("a pseudo header that is none", and(&[(":odd", "x")])),
        ("one behind others", and(&[("a", "x"), (":path", "/")])),
        ("two authorities", and(&[(":authority", "10.0.0.1:80")])),
        ("two methods", and(&[(":method", "CONNECT")])),
        ("an answer", and(&[(":status", "200")])),
        ("no method", vec![(":authority", &*to)]),
        ("nothing", vec![]),
        ("a path without a slash", {
            let get = [(":method", "GET"), (":scheme", "https")];
            let rest = [(":path", "admin"), (":authority", &*to)];
            [get, rest].concat()
        }),
    ] {
        peer.raw.send(&headers(stream, &fields)).await?;
        let ends = |f: &raw::Frame| f.kind == GOAWAY || f.kind == RST_STREAM && f.stream == stream;
        let end = peer.frame(what, ends).await?;
        ensure!(end.code() == PROTOCOL_ERROR, "{what}: {end:?}");
        stream += 2;
        if end.kind == GOAWAY {
            ensure!(!door.own(), "{what}: the whole connection ended");
            peer.line(&["violated HTTP/2"])?;
            (peer, stream) = (door.greeted().await?, 1);
        }
    }
    for (fields, said) in [
        (
            vec![(":method", "CONNECT")],
            "no valid authority pseudo header",
        ),
        (
            connect_headers("010.0.0.1:80"),
            "no valid authority pseudo header",
        ),
    ] {
        peer.raw.send(&headers(stream, &fields)).await?;
        let mine = |f: &raw::Frame| f.kind == HEADERS && f.stream == stream;
        let answer = peer.frame("400", mine).await?;
        ensure!(answer.status() == 400, "status {}", answer.status());
        peer.line(&[said])?;
        stream += 2;
    }
    peer.tunnel_works(stream, door.to(ECHO)).await
}

/// A CONNECT has no content. Our own engine refuses a length; `h2` takes it and holds the peer to it.
async fn a_length(door: &Door<'_>) -> Result<()> {
    let to = door.to(ECHO).to_string();
    let mut peer = door.greeted().await?;
    let fields = [&connect_headers(&to)[..], &[("content-length", "5")]].concat();
    for (stream, said) in [
        (1, frame(DATA, 0, 1, b"more than that")),
        (3, frame(DATA, END_STREAM, 3, b"less")),
    ] {
        peer.raw.send(&headers(stream, &fields)).await?;
        if !door.own() {
            peer.raw.send(&said).await?;
        }
        let mine = |f: &raw::Frame| f.kind == RST_STREAM && f.stream == stream;
        let reset = peer.frame("a reset", mine).await?;
        ensure!(reset.code() == PROTOCOL_ERROR, "{reset:?}");
    }
    peer.tunnel_works(5, door.to(ECHO)).await
}

/// What may not be said in a tunnel ends it, and no other.
async fn tunnels(door: &Door<'_>) -> Result<()> {
    let to = door.to(ECHO).to_string();
    let trailers = |flags| frame(HEADERS, END_HEADERS | flags, 1, &block(&[("a", "b")]));
    let data = |flags| frame(DATA, flags, 1, b"x");
    for (what, then, code) in [
        ("H2-7, trailers without an end", trailers(0), PROTOCOL_ERROR),
        ("trailers", trailers(END_STREAM), PROTOCOL_ERROR),
        ("a second request", request(1, &to), PROTOCOL_ERROR),
        (
            "H2-3, DATA behind the end",
            [data(END_STREAM), data(0)].concat(),
            STREAM_CLOSED,
        ),
        (
            "H2-7, DATA behind a reset",
            [rst(1), data(0)].concat(),
            STREAM_CLOSED,
        ),
    ] {
        let mut peer = door.greeted().await?;
        peer.raw.send(&request(1, &to)).await?;
        peer.frame("200", |f| f.kind == HEADERS).await?;
        peer.raw.send(&then).await?;
        let works = if door.own() {
            let mine = |f: &raw::Frame| f.kind == RST_STREAM && f.stream == 1;
            let reset = peer.frame(what, mine).await?;
            ensure!(reset.code() == code, "{what}: {reset:?}");
            true
        } else {
            // `h2` takes what behaves like an end for one, and hangs up on DATA behind it.
            !what.ends_with("behind the end")
        };
        if works {
            peer.tunnel_works(3, door.to(ECHO)).await.context(what)?;
        } else {
            ensure!(peer.goaway().await? == PROTOCOL_ERROR);
            peer.line(&["violated HTTP/2"])?;
        }
    }
    Ok(())
}

/// What breaks the rules, and the code that ends the connection.
type End = (&'static str, fn() -> Vec<u8>, u32);

#[rustfmt::skip]
const ENDS: &[End] = &[
    ("H2-11, a frame beyond the limit", || frame(DATA, 0, 1, &[0; (1 << 20) + 1]), FRAME_SIZE_ERROR),
    ("H2-11, a window beyond all", || settings(4, 1 << 31), FLOW_CONTROL_ERROR),
    ("H2-11, frames smaller than all", || settings(5, 100), PROTOCOL_ERROR),
    ("H2-11, a switch that is neither on nor off", || settings(2, 2), PROTOCOL_ERROR),
    ("H2-11, a part of a setting", || frame(SETTINGS, 0, 0, &[0; 5]), FRAME_SIZE_ERROR),
    ("H2-11, an acknowledgement that says more", || frame(SETTINGS, ACK, 0, &[0; 6]), FRAME_SIZE_ERROR),
    ("H2-3, credit of nothing", || credit(0, 0), PROTOCOL_ERROR),
    ("H2-3, credit beyond all", || credit(0, 0x7fff_ffff), FLOW_CONTROL_ERROR),
    ("H2-6, a short PING", || frame(PING, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
    ("H2-7, DATA of no stream", || frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    ("H2-7, DATA of a stream that never was", || frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    ("H2-10, a request on the server's stream", || request(2, "10.0.0.1:80"), PROTOCOL_ERROR),
];

async fn ends(door: &Door<'_>, (_, bytes, code): &End) -> Result<()> {
    let mut peer = door.greeted().await?;
    // It may hang up before all of it is said.
    let _ = peer.raw.send(&bytes()).await;
    let said = peer.goaway().await?;
    // `h2` has one code for nearly everything.
    ensure!(
        said == *code || !door.own() && said == PROTOCOL_ERROR,
        "code {said}, not {code}"
    );
    peer.line(&["violated HTTP/2"]).map(drop)
}
