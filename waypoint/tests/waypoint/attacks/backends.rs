//! H1-6, H2-7, H2-11: apps that do not keep to the protocol. Their client gets one answer, theirs or ours, that is whole or
//! visibly not; nobody gets an answer to somebody else's request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ::http::Request;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::Full;
use lab::Pod;

use super::peer::block;
use super::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame,
};
use super::{resident, unharmed};
use crate::app::{One, Two, get};
use crate::shop::{Shop, in_shop};

#[test]
fn apps_that_do_not_keep_to_the_protocol_harm_their_own_requests_only() {
    in_shop(|shop| {
        let memory = resident(shop)?;
        let app = ("app", "web");
        for pod in &shop.apps {
            scripted(pod, 8700, one)?;
            scripted(pod, 8701, two)?;
        }
        let first = shop
            .lab
            .service_for("shop/odd", app, &[("http", 80, 8700)])?;
        let second = shop
            .lab
            .service_for("shop/odd-two", app, &[("grpc", 80, 8701)])?;
        let served = |at, two| {
            shop.until("the odd app", |shop| {
                let asked = shop.runtime.block_on(asked(shop, at, two, "/good"));
                matches!(asked, Ok(Got::Whole(200, ref body)) if body == "good")
            })
        };
        served(first.at(80), false)?;
        for (number, (what, expected, _)) in ANSWERS.iter().enumerate() {
            let path = format!("/{number}");
            let got = shop
                .runtime
                .block_on(asked(shop, first.at(80), false, &path));
            let got = got.with_context(|| (*what).to_owned())?;
            ensure!(expected.fits(&got), "{what}: {got:?}, and not {expected:?}");
            // Whoever comes next, on whatever is left of the app's connections.
            for _ in 0..3 {
                let next = shop
                    .runtime
                    .block_on(asked(shop, first.at(80), false, "/good"))?;
                let good = matches!(&next, Got::Whole(200, body) if body == "good");
                ensure!(good, "after {what}: {next:?}");
            }
            unharmed(shop, what, memory)?;
        }
        served(second.at(80), true)?;
        for (number, (what, expected, _)) in FRAMES.iter().enumerate() {
            CASE.store(number, SeqCst);
            let got = shop.runtime.block_on(asked(shop, second.at(80), true, "/"));
            CASE.store(usize::MAX, SeqCst);
            let got = got.with_context(|| (*what).to_owned())?;
            ensure!(expected.fits(&got), "{what}: {got:?}, and not {expected:?}");
            served(second.at(80), true).with_context(|| format!("after {what}"))?;
            unharmed(shop, what, memory)?;
        }
        early(shop, first.at(80)).context("an answer before the request's end")
    });
}

/// What a client got.
#[derive(Debug)]
enum Got {
    Whole(u16, String),
    /// A status, and then a body that broke off.
    Part(#[expect(dead_code, reason = "shown where a case fails")] u16),
    /// Nothing within the time.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    /// That status with that body.
    Is(u16, &'static str),
    /// An answer of ours that says so.
    Failed,
    /// A failure, whether it was seen before the answer's head was passed on or after.
    Broken,
    /// The same, or the client is tired of waiting, or what came before it was an answer.
    Any,
}

impl Expected {
    fn fits(self, got: &Got) -> bool {
        match (self, got) {
            (Self::Is(status, body), Got::Whole(got, text)) => *got == status && text == body,
            (Self::Failed | Self::Broken | Self::Any, Got::Whole(502..=504, _)) => true,
            (Self::Broken | Self::Any, Got::Part(_)) => true,
            (Self::Any, Got::Nothing) => true,
            (Self::Any, Got::Whole(200, text)) => text == "ok",
            _ => false,
        }
    }
}

async fn asked(shop: &Shop<'_>, at: std::net::SocketAddr, two: bool, path: &str) -> Result<Got> {
    use http_body_util::BodyExt;
    let answer = async {
        anyhow::Ok(match two {
            false => {
                let mut one = One::to(&shop.client, at).await?;
                one.send(get(path)).await?
            }
            true => {
                let mut two = Two::to(&shop.client, at).await?;
                let request = Request::get(format!("http://web.shop{path}"));
                two.send(request.body(Full::<Bytes>::default())?).await?
            }
        })
    };
    let answer: Result<_> = match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => return Ok(Got::Nothing),
    };
    // Cut off before its head was sent on.
    let Ok(answer) = answer else {
        return Ok(Got::Part(0));
    };
    let status = answer.status().as_u16();
    Ok(
        match tokio::time::timeout(PATIENCE, answer.into_body().collect()).await {
            Ok(Ok(body)) => Got::Whole(
                status,
                String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            ),
            Ok(Err(_)) => Got::Part(status),
            Err(_) => Got::Nothing,
        },
    )
}

/// For one answer of an app that may have none.
const PATIENCE: Duration = Duration::from_secs(15);

/// A listener each of whose connections is a thread.
fn scripted(pod: &Pod, port: u16, each: fn(TcpStream) -> Result<()>) -> Result<()> {
    let listener = pod.listen(port)?;
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // How it ends is the other end's to say.
            std::thread::spawn(move || each(stream));
        }
    });
    Ok(())
}

const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

/// What is said over HTTP/1.1; {E} is a whole answer that is another's.
#[rustfmt::skip]
const ANSWERS: &[(&str, Expected, &str)] = &[
    ("two answers", Expected::Is(200, "ok"), "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{E}"),
    ("two answers, the first without body", Expected::Is(204, ""), "HTTP/1.1 204 No Content\r\n\r\n{E}"),
    ("not modified, with a length and a body", Expected::Is(304, ""), "HTTP/1.1 304 Not Modified\r\ncontent-length: 95\r\n\r\n{E}"),
    ("no content, with a body", Expected::Is(204, ""), "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nevil{E}"),
    ("a length and chunks", Expected::Broken, "HTTP/1.1 200 OK\r\ncontent-length: 99\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n{E}"),
    ("two lengths", Expected::Failed, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 97\r\n\r\nok{E}"),
    ("a length that is none", Expected::Failed, "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok{E}"),
    ("a length that is a list", Expected::Failed, "HTTP/1.1 200 OK\r\ncontent-length: 2, 97\r\n\r\nok{E}"),
    ("a body that is shorter than it says", Expected::Broken, "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nok"),
    ("chunks that break off", Expected::Broken, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"),
    ("a chunk size that is none", Expected::Broken, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n{E}"),
    ("a chunk size beyond 64 bits", Expected::Broken, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n{E}"),
    ("chunks, and another answer", Expected::Is(200, "ok"), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{E}"),
    ("a header with bare CR", Expected::Failed, "HTTP/1.1 200 OK\r\nx: a\rset-cookie: evil\r\ncontent-length: 2\r\n\r\nok"),
    ("a header with NUL", Expected::Failed, "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok"),
    ("a header folded", Expected::Failed, "HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\nok"),
    ("a header with a space before its colon", Expected::Failed, "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok"),
    ("a status that is none", Expected::Failed, "HTTP/1.1 2x0 OK\r\n\r\n"),
    ("a status of 99", Expected::Failed, "HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok"),
    ("another protocol", Expected::Failed, "SSH-2.0-OpenSSH\r\n"),
    ("nothing", Expected::Failed, ""),
    ("half a head", Expected::Failed, "HTTP/1.1 200 OK\r\ncontent-"),
    ("protocols switched unasked", Expected::Failed, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\n{E}"),
    ("early hints, then an answer", Expected::Is(200, "ok"), "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    ("hints without end", Expected::Failed, "{1xx}"),
    ("a head without end", Expected::Failed, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n"),
    ("more headers than anybody needs", Expected::Failed, "HTTP/1.1 200 OK\r\n{many}content-length: 2\r\n\r\nok"),
];

/// Answers each request with its path's number in the table, or well; the connection goes on for as long as it can.
fn one(mut stream: TcpStream) -> Result<()> {
    let mut waiting = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = waiting.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            let mut part = [0; 4096];
            match stream.read(&mut part)? {
                0 => return Ok(()),
                n => waiting.extend_from_slice(&part[..n]),
            }
        };
        let head = String::from_utf8(waiting.drain(..end).collect())?;
        let path = head.split(' ').nth(1).context("a path")?;
        if path == "/early" {
            // Whatever it is that still comes, it is not waited for.
            stream.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")?;
            return drain(stream);
        }
        let number = path.trim_start_matches('/').parse::<usize>();
        let Some((.., said)) = number.ok().and_then(|number| ANSWERS.get(number)) else {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood")?;
            continue;
        };
        let hints = "HTTP/1.1 100 Continue\r\n\r\n".repeat(20_000);
        let head = format!("x-long: {}\r\n", "y".repeat(1000)).repeat(1000);
        let many: String = (0..1000).map(|n| format!("x-{n}: y\r\n")).collect();
        let said = said.replace("{E}", EVIL).replace("{1xx}", &hints);
        let said = said.replace("{head}", &head).replace("{many}", &many);
        stream.write_all(said.as_bytes())?;
        let whole = said.ends_with("ok") && !said.contains("length: 99");
        let ends = !said.contains(EVIL) && !whole;
        if ends {
            return drain(stream);
        }
    }
}

/// Ends, and reads until the other end does, so that what was said is not taken back by a reset.
fn drain(mut stream: TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(())
}

type Frames = fn(u32) -> Vec<u8>;

const PUSH_PROMISE: u8 = 5;

/// What is said over HTTP/2 to a request on that stream.
#[rustfmt::skip]
const FRAMES: &[(&str, Expected, Frames)] = &[
    ("trailers that do not end", Expected::Broken, |s| [head(s), data(s, 0, b"ok"), frame(HEADERS, END_HEADERS, s, &block(&[("x", "y")]))].concat()),
    ("a reset in the place of an answer", Expected::Broken, rst),
    ("a reset behind the head", Expected::Broken, |s| [head(s), rst(s)].concat()),
    ("a reset behind the data", Expected::Broken, |s| [head(s), data(s, 0, b"ok"), rst(s)].concat()),
    ("one stream at a time", Expected::Is(200, "ok"), |s| [frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]), head(s), data(s, END_STREAM, b"ok")].concat()),
    ("DATA behind a reset", Expected::Broken, |s| [head(s), data(s, 0, b"o"), rst(s), data(s, 0, b"k"), data(s, END_STREAM, b"")].concat()),
    ("DATA behind the end", Expected::Any, |s| [head(s), data(s, END_STREAM, b"ok"), data(s, 0, b"evil")].concat()),
    ("DATA of a stream that nobody began", Expected::Broken, |s| [data(s + 100, 0, b"evil"), head(s), data(s, END_STREAM, b"ok")].concat()),
    ("DATA without a head", Expected::Broken, |s| data(s, END_STREAM, b"evil")),
    ("an answer promised unasked", Expected::Broken, |s| frame(PUSH_PROMISE, END_HEADERS, s, &[&2u32.to_be_bytes()[..], &block(&[(":method", "GET"), (":path", "/")])].concat())),
    ("a length that is not true", Expected::Broken, |s| [frame(HEADERS, END_HEADERS, s, &block(&[(":status", "200"), ("content-length", "9")])), data(s, END_STREAM, b"ok")].concat()),
    ("two heads", Expected::Broken, |s| [head(s), head(s), data(s, END_STREAM, b"evil")].concat()),
    ("no status", Expected::Broken, |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &block(&[("x", "y")]))),
    ("a status that is none", Expected::Broken, |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &block(&[(":status", "2x0")]))),
    ("a header in capitals", Expected::Broken, |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &block(&[(":status", "200"), ("X-Y", "z")]))),
    ("a header with CR LF", Expected::Broken, |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &block(&[(":status", "200"), ("x", "a\r\nset-cookie: evil")]))),
    ("headers of a connection", Expected::Broken, |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &block(&[(":status", "200"), ("transfer-encoding", "chunked")]))),
    ("a header block without end", Expected::Broken, |s| [frame(HEADERS, 0, s, &block(&[(":status", "200")])), frame(CONTINUATION, 0, s, &block(&[("x", &"y".repeat(100))])).repeat(20_000)].concat()),
    ("a list that unfolds", Expected::Broken, |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &[&block(&[(":status", "200")])[..], &[0x40, 1, b'x', 120], &[b'y'; 120], &[0x80 | 62; 5000]].concat())),
    ("empty DATA over and over", Expected::Any, |s| [head(s), data(s, 0, b"").repeat(50_000)].concat()),
    ("PING over and over", Expected::Is(200, "ok"), |s| [frame(PING, 0, 0, &[7; 8]).repeat(10_000), head(s), data(s, END_STREAM, b"ok")].concat()),
    ("credit of nothing", Expected::Broken, |s| [frame(WINDOW_UPDATE, 0, 0, &[0; 4]), head(s), data(s, END_STREAM, b"ok")].concat()),
    ("too much credit", Expected::Broken, |s| [frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), head(s), data(s, END_STREAM, b"ok")].concat()),
    ("a farewell to all", Expected::Any, |_| frame(GOAWAY, 0, 0, &[0; 8])),
    ("a farewell, and its answer", Expected::Is(200, "ok"), |s| [frame(GOAWAY, 0, 0, &[&s.to_be_bytes()[..], &[0; 4]].concat()), head(s), data(s, END_STREAM, b"ok")].concat()),
    ("no HTTP/2", Expected::Broken, |_| EVIL.as_bytes().to_vec()),
];

fn head(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "200")]))
}

fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

fn rst(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// Which of them is said to whoever asks.
static CASE: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Answers each request with that, or well.
fn two(mut stream: TcpStream) -> Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match head[3] {
            SETTINGS if head[4] == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            PING if head[4] == 0 => stream.write_all(&frame(PING, 1, 0, &payload))?,
            GOAWAY => return Ok(()),
            HEADERS => {
                let said = match FRAMES.get(CASE.load(SeqCst)) {
                    Some((.., said)) => said(number),
                    None => [self::head(number), data(number, END_STREAM, b"good")].concat(),
                };
                stream.write_all(&said)?;
            }
            _ => {}
        }
    }
}

/// An app that answers before it has read everything: the client gets that answer, and the next request one of its own.
fn early(shop: &Shop<'_>, at: std::net::SocketAddr) -> Result<()> {
    let mut stream = shop.client.connect(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(
        b"POST /early HTTP/1.1\r\nhost: web.shop\r\ncontent-length: 100000\r\n\r\nabc",
    )?;
    let mut heard = Vec::new();
    let mut part = [0; 4096];
    while !heard.ends_with(b"no") {
        match stream.read(&mut part)? {
            0 => bail!("{}", String::from_utf8_lossy(&heard)),
            n => heard.extend_from_slice(&part[..n]),
        }
    }
    ensure!(
        heard.starts_with(b"HTTP/1.1 413"),
        "{}",
        String::from_utf8_lossy(&heard)
    );
    // The rest of the body, which looks like a request, is none.
    let _ = stream.write_all(b"GET /good HTTP/1.1\r\nhost: web.shop\r\n\r\n");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    ensure!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    Ok(())
}
