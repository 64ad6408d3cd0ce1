//! Clients that do not keep to the rules, and ends in the middle. After each, others are served as if nothing had been.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ::http::Request;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::app::{self, One, Two, get};
use super::shop::{Shop, in_shop};

#[test]
fn who_does_not_keep_to_the_rules_harms_nobody_else() {
    in_shop(|shop| {
        for (name, try_it) in ATTACKS {
            try_it(shop).with_context(|| (*name).to_owned())?;
            let heard = shop.runtime.block_on(shop.get("/"));
            heard
                .and_then(|heard| heard.is(200))
                .with_context(|| format!("after {name}"))?;
        }
        ensure!(shop.waypoint.pod().component().running());
        Ok(())
    });
}

type Attack = fn(&Shop<'_>) -> Result<()>;

const ATTACKS: &[(&str, Attack)] = &[
    ("two lengths that differ", |shop| {
        refused(
            shop,
            "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
            "400",
        )
    }),
    ("a length and chunks", |shop| {
        // One of both counts, and nothing of the body becomes a request of its own.
        let smuggled = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
        let answer = say(shop, smuggled.as_bytes())?;
        let first = answer.split("HTTP/1.1 ").nth(1).unwrap_or_default();
        ensure!(!first.contains("uri=/smuggled"), "{answer}");
        Ok(())
    }),
    ("chunks that are none", |shop| {
        let answer = say(
            shop,
            b"POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        )?;
        ensure!(!answer.contains("200 OK"), "{answer}");
        Ok(())
    }),
    ("a header name with a space", |shop| {
        refused(shop, "GET / HTTP/1.1\r\nhost : web\r\n\r\n", "400")
    }),
    ("a folded header", |shop| {
        refused(
            shop,
            "GET / HTTP/1.1\r\nhost: web\r\nx-a: b\r\n c\r\n\r\n",
            "400",
        )
    }),
    ("two hosts", |shop| {
        refused(
            shop,
            "GET / HTTP/1.1\r\nhost: web\r\nhost: admin\r\n\r\n",
            "400",
        )
    }),
    ("no host", |shop| {
        refused(shop, "GET / HTTP/1.1\r\n\r\n", "400")
    }),
    ("a path that means two things", |shop| {
        refused(shop, "GET /a%00b HTTP/1.1\r\nhost: web\r\n\r\n", "400")
    }),
    ("CONNECT to elsewhere", |shop| {
        refused(
            shop,
            "CONNECT 10.0.0.1:22 HTTP/1.1\r\nhost: 10.0.0.1:22\r\n\r\n",
            "400",
        )
    }),
    ("a head without end", |shop| {
        let mut head = b"GET / HTTP/1.1\r\nhost: web\r\n".to_vec();
        for number in 0..20_000 {
            head.extend_from_slice(format!("x-{number}: {number}\r\n").as_bytes());
        }
        let answer = say(shop, &head).unwrap_or_default();
        ensure!(!answer.contains("200 OK"), "{answer}");
        Ok(())
    }),
    ("more headers than anybody needs", |shop| {
        let mut head = "GET / HTTP/1.1\r\nhost: web\r\n".to_owned();
        for number in 0..300 {
            head += &format!("x-{number}: {number}\r\n");
        }
        refused(shop, &(head + "\r\n"), "431")
    }),
    ("a body that is cut off", |shop| {
        let mut stream = shop.client.connect(shop.at(80))?;
        stream.write_all(b"POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: 1000\r\n\r\nabc")?;
        drop(stream);
        Ok(())
    }),
    ("an answer that nobody waits for", |shop| {
        shop.runtime.block_on(async {
            let mut client = One::to(&shop.client, shop.at(80)).await?;
            let waiting = client.send(get("/hang"));
            ensure!(
                tokio::time::timeout(Duration::from_millis(300), waiting)
                    .await
                    .is_err()
            );
            Ok(())
        })
    }),
    ("many requests that are taken back at once", |shop| {
        shop.runtime.block_on(async {
            let client = Two::to(&shop.client, shop.at(90)).await?;
            for _ in 0..500 {
                let mut client = client.clone();
                let request = Request::get("http://web.shop:90/hang").body(Full::default())?;
                let asking = client.ask(request);
                let _ = tokio::time::timeout(Duration::from_micros(200), asking).await;
            }
            Ok(())
        })
    }),
    ("a client that does not read", |shop| {
        let mut stream = shop.client.connect(shop.at(80))?;
        let body = vec![b'x'; 4 << 20];
        let head = format!(
            "POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let _ = stream.write_all(&body);
        let heard = shop.runtime.block_on(shop.get("/"))?;
        heard.is(200).map(drop)
    }),
    ("another service than ours", |shop| {
        // The waypoint's own tunnel port, without a mesh identity.
        let waypoint = shop.waypoint.pod().pod();
        let mut stream = shop.client.connect(waypoint.at(15008))?;
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        ensure!(!String::from_utf8_lossy(&answer).contains("200 OK"));
        Ok(())
    }),
];

/// Sends bytes on a connection of its own; what comes back until it ends or, after the first word, is silent.
fn say(shop: &Shop<'_>, bytes: &[u8]) -> Result<String> {
    let mut stream: TcpStream = shop.client.connect(shop.at(80))?;
    stream.set_read_timeout(Some(app::SOON))?;
    // Refused in the middle, it cannot be said to its end.
    let _ = stream.write_all(bytes);
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut part) {
        answer.extend_from_slice(&part[..n]);
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn refused(shop: &Shop<'_>, said: &str, status: &str) -> Result<()> {
    let answer = say(shop, said.as_bytes())?;
    if !answer.starts_with(&format!("HTTP/1.1 {status}")) {
        bail!("not {status}: {answer:?}");
    }
    Ok(())
}

#[test]
fn a_body_of_a_gigabyte_is_never_held() {
    in_shop(|shop| {
        let before = resident(shop)?;
        let mut stream = shop.client.connect(shop.at(80))?;
        let mut reading = stream.try_clone()?;
        let reader = std::thread::spawn(move || {
            let mut part = [0; 64 << 10];
            let _ = reading.read(&mut part);
        });
        // The app neither reads nor answers.
        stream
            .write_all(b"POST /hang HTTP/1.1\r\nhost: web\r\ncontent-length: 1073741824\r\n\r\n")?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let part = Bytes::from(vec![1; 1 << 20]);
        let mut sent = 0;
        while sent < 200 && stream.write_all(&part).is_ok() {
            sent += 1;
        }
        let held = resident(shop)?.saturating_sub(before);
        ensure!(
            held < 64 << 20,
            "{held} bytes more after {sent} MB that nobody reads"
        );
        drop(stream);
        let _ = reader.join();
        Ok(())
    });
}

#[test]
#[ignore = "a minute or more where nothing is optimised"]
fn a_gigabyte_passes_both_ways_and_is_never_held() {
    in_shop(|shop| {
        for (name, two) in [("HTTP/1.1", false), ("HTTP/2", true)] {
            let before = peak(shop)?;
            let begun = Instant::now();
            let passed = shop.runtime.block_on(pass(shop, two));
            let back = passed.with_context(|| name.to_owned())?;
            ensure!(back == GIGABYTE, "{name}: {back} bytes came back");
            let held = peak(shop)?.saturating_sub(before);
            eprintln!(
                "{name}: {:?}, at most {} KiB more",
                begun.elapsed(),
                held >> 10
            );
            ensure!(held < 64 << 20, "{name}: {held} bytes more were held");
        }
        Ok(())
    });
}

const GIGABYTE: u64 = 1 << 30;

/// Sends it to an app that sends it back piece by piece; how much came back, each byte where it was.
async fn pass(shop: &Shop<'_>, two: bool) -> Result<u64> {
    // Of a length that no buffer has, so that a piece that is lost or comes twice is seen.
    let pattern: Bytes = (0..1_000_003_u32)
        .map(|at| ((at * 31) >> 3) as u8)
        .collect();
    let whole = GIGABYTE as usize / pattern.len();
    let rest = pattern.slice(..GIGABYTE as usize % pattern.len());
    let pieces = std::iter::repeat_n(pattern.clone(), whole).chain([rest]);
    let pieces = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let body = StreamBody::new(futures_util::stream::iter(pieces));
    let io = TokioIo::new(app::connect(
        &shop.client,
        shop.at(if two { 90 } else { 80 }),
    )?);
    let mut answer = if two {
        let request = Request::post("http://web.shop:90/stream").body(body)?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        let request = Request::post("/stream").header("host", "web.shop");
        let request = request.header("content-length", GIGABYTE).body(body)?;
        let (mut sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    ensure!(answer.status() == 200, "{}", answer.status());
    let mut back = 0;
    while let Some(frame) = tokio::time::timeout(app::SOON, answer.frame()).await? {
        let Ok(mut data) = frame?.into_data() else {
            continue;
        };
        while !data.is_empty() {
            let expected = &pattern[back as usize % pattern.len()..];
            let piece = data.split_to(data.len().min(expected.len()));
            ensure!(
                piece[..] == expected[..piece.len()],
                "other bytes at {back}"
            );
            back += piece.len() as u64;
        }
    }
    Ok(back)
}

/// The most memory that the waypoint's process has had, in bytes.
fn peak(shop: &Shop<'_>) -> Result<u64> {
    let pid = shop.waypoint.pod().component().process()?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("VmHWM")?.parse::<u64>()? << 10)
}

/// Memory of the waypoint's process, in bytes.
fn resident(shop: &Shop<'_>) -> Result<u64> {
    let pid = shop.waypoint.pod().component().process()?.pid();
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split_whitespace().nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}
