//! H1: the table of requests that could be read in more than one way (`testdata/smuggling.txt`), to an app that takes
//! nothing that could, and the same over HTTP/2 to an app that speaks HTTP/1.1 (H1-5).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::peer::{Answered, Peer};
use super::strict::Strict;
use crate::shop::{Shop, in_shop};

const TABLE: &str = include_str!("../../../testdata/smuggling.txt");

#[test]
fn no_request_is_read_in_two_ways() {
    in_shop(|shop| {
        let strict = Strict::default();
        for pod in &shop.apps {
            strict.listen(pod, 8600)?;
        }
        let app = ("app", "web");
        let service = shop
            .lab
            .service_for("shop/strict", app, &[("http", 80, 8600)])?;
        let at = service.at(80);
        shop.until("the strict app", |shop| {
            let got = say(shop, at, &[FIRST, LAST].concat());
            got.is_ok_and(|said| said.starts_with("HTTP/1.1 200"))
        })?;
        table(shop, &strict, at).context("the table")?;
        answers_end_their_connection(shop, at).context("answers to what was refused")?;
        downgraded(shop, &strict, at).context("HTTP/2 to HTTP/1.1")
    });
}

fn table(shop: &Shop<'_>, strict: &Strict, at: SocketAddr) -> Result<()> {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for line in TABLE.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut parts = line.splitn(3, " | ");
        let mut part = || parts.next().context("three parts");
        let (verdict, name, said) = (part()?.trim(), part()?, part()?);
        count += 1;
        let (first, evil) = (format!("/v{count}-"), format!("/evil{count}-"));
        let mut said_all = bytes(said, &first, &evil)?;
        // Whoever ends a connection that was to be kept is served no more; what is whole is followed by one that is not.
        let whole = said.contains("{E}") || said.ends_with(r"\r\n\r\n");
        if whole || !matches!(verdict, "refuse" | "cut") {
            said_all.extend_from_slice(LAST);
        }
        let heard = say(shop, at, &said_all)?;
        let times = (strict.times(&first), strict.times(&evil));
        let expected = match verdict {
            "refuse" | "cut" => (0, 0),
            "next" => (0, 1),
            "one" => (1, 0),
            "two" => (1, 1),
            other => anyhow::bail!("{other:?} is no verdict"),
        };
        let answered = heard.get(9..12).unwrap_or("-").to_owned();
        let refused = !matches!(verdict, "refuse" | "next") || !answered.starts_with('2');
        if times != expected || !refused {
            wrong.push(format!("{verdict} | {name}: {times:?} {answered}"));
        }
    }
    let broken = strict.broken();
    ensure!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    ensure!(broken.is_empty(), "the app could not read: {broken:#?}");
    ensure!(count >= 150, "only {count} of the table");
    Ok(())
}

/// What follows a request that was refused is never taken for another.
fn answers_end_their_connection(shop: &Shop<'_>, at: SocketAddr) -> Result<()> {
    let refused = "POST /x HTTP/1.1\r\nhost: web.shop\r\ncontent-length: z\r\n\r\n";
    let heard = say(shop, at, refused.repeat(3).as_bytes())?;
    ensure!(heard.matches("HTTP/1.1 ").count() == 1, "{heard}");
    Ok(())
}

/// The bytes of a line of the table.
fn bytes(text: &str, first: &str, evil: &str) -> Result<Vec<u8>> {
    let host = r"host: web.shop\r\n";
    let text = text
        .replace("{P}", &format!(r"POST /v HTTP/1.1\r\n{host}"))
        .replace("{G}", &format!(r"GET /v HTTP/1.1\r\n{host}"))
        .replace("{E}", &format!(r"GET /evil HTTP/1.1\r\n{host}\r\n"))
        .replace("{20k}", &"x".repeat(20_000))
        .replace("/v", first)
        .replace("/evil", evil);
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&kind, after) = rest.split_first().context("half an escape")?;
        rest = after;
        bytes.push(match kind {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'x' => {
                let digits = std::str::from_utf8(rest.get(..2).context("two digits")?)?;
                rest = &rest[2..];
                u8::from_str_radix(digits, 16)?
            }
            other => other,
        });
    }
    Ok(bytes)
}

/// Says it all, and ends unless its last request says so; what came back until the other end ended as well.
fn say(shop: &Shop<'_>, at: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = shop.client.connect(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    // Refused in the middle, it cannot be said to its end.
    let _ = stream.write_all(bytes);
    if !bytes.ends_with(LAST) {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

const FIRST: &[u8] = b"GET /first HTTP/1.1\r\nhost: web.shop\r\n\r\n";
const LAST: &[u8] = b"GET /last HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\n\r\n";

type Fields = &'static [(&'static str, &'static str)];

/// Fields of a request over HTTP/2 beside the usual ones (one without `:` takes none away), and whether it is served.
#[rustfmt::skip]
const DOWNGRADES: &[(&str, bool, Fields)] = &[
    ("a plain one", true, &[("x", "y")]),
    ("CR LF in a value", false, &[("x", "a\r\ntransfer-encoding: chunked")]),
    ("LF in a value", false, &[("x", "a\nhost: admin")]),
    ("CR in a value", false, &[("x", "a\rb")]),
    ("NUL in a value", false, &[("x", "a\0b")]),
    ("CR LF in a name", false, &[("x\r\nhost: admin\r\ny", "z")]),
    ("a colon in a name", false, &[("host: admin", "z")]),
    ("a space in a name", false, &[("x y", "z")]),
    ("an empty name", false, &[("", "z")]),
    ("capitals in a name", false, &[("X-Big", "z")]),
    ("8 bits in a name", false, &[("x\u{ff}", "z")]),
    ("transfer-encoding", false, &[("transfer-encoding", "chunked")]),
    ("connection", false, &[("connection", "close")]),
    ("connection that names the host", false, &[("connection", "host")]),
    ("keep-alive", false, &[("keep-alive", "timeout=5")]),
    ("proxy-connection", false, &[("proxy-connection", "close")]),
    ("upgrade", false, &[("upgrade", "websocket")]),
    ("te with a coding", false, &[("te", "gzip")]),
    ("te: trailers", true, &[("te", "trailers")]),
    ("two lengths", false, &[("content-length", "0"), ("content-length", "44")]),
    ("a length that is a list", false, &[("content-length", "0, 0")]),
    ("a length that is none", false, &[("content-length", "x")]),
    ("a length, and no body", false, &[("content-length", "44")]),
    ("a length with plus", false, &[("content-length", "+0")]),
    ("another host", false, &[("host", "admin")]),
    ("the host again", true, &[("host", "web.shop")]),
    ("the host five times", false, &[("host", "web.shop"), ("host", "web.shop"), ("host", "web.shop"), ("host", "web.shop"), ("host", "web.shop")]),
    ("a path with a space", false, &[(":path", "/v HTTP/1.1")]),
    ("a path with CR LF", false, &[(":path", "/v HTTP/1.1\r\nhost: admin\r\n\r\nGET /evil")]),
    ("a path without slash", false, &[(":path", "v")]),
    ("an empty path", false, &[(":path", "")]),
    ("no path", false, &[(":path", "-")]),
    ("a star", false, &[(":path", "*")]),
    ("a whole address for a path", false, &[(":path", "http://admin/v")]),
    ("a fragment in the path, which goes no further", true, &[(":path", "/v#x y")]),
    ("a method with a space", false, &[(":method", "GET /evil HTTP/1.1\r\n\r\nGET")]),
    ("an empty method", false, &[(":method", "")]),
    ("no method", false, &[(":method", "-")]),
    ("CONNECT", false, &[(":method", "CONNECT"), (":path", "-"), (":scheme", "-")]),
    ("CONNECT with a path", false, &[(":method", "CONNECT")]),
    ("CONNECT for a protocol, without path", false, &[(":method", "CONNECT"), (":protocol", "websocket"), (":path", "-")]),
    ("a protocol without CONNECT", false, &[(":protocol", "websocket")]),
    ("a user in the authority", false, &[(":authority", "admin@web.shop")]),
    ("a path in the authority", false, &[(":authority", "web.shop/x")]),
    ("a space in the authority", false, &[(":authority", "web.shop admin")]),
    ("an empty authority", false, &[(":authority", "")]),
    ("no authority", false, &[(":authority", "-")]),
    ("no scheme", false, &[(":scheme", "-")]),
    ("a path twice", false, &[("::path", "/evil")]),
    ("a pseudo header behind others", false, &[("x", "y"), ("::scheme", "http")]),
    ("a pseudo header of answers", false, &[("::status", "200")]),
    ("a pseudo header that is none", false, &[("::evil", "x")]),
];

fn downgraded(shop: &Shop<'_>, strict: &Strict, at: SocketAddr) -> Result<()> {
    let (mut wrong, before) = (Vec::new(), strict.broken().len());
    for (number, (name, served, fields)) in DOWNGRADES.iter().enumerate() {
        let path = format!("/two{number}");
        let mut all = vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "web.shop"),
            (":path", path.as_str()),
        ];
        for (name, value) in *fields {
            let pseudo = name.starts_with(':');
            match all.iter_mut().find(|(known, _)| pseudo && known == name) {
                Some(known) => known.1 = value,
                None if name.starts_with("::") => all.push((&name[1..], value)),
                None if *name == ":protocol" => all.insert(1, (":protocol", value)),
                None => all.push((name, value)),
            }
        }
        all.retain(|(name, value)| !name.starts_with(':') || *value != "-");
        let arrived = || strict.times(&path) + strict.times("/evil") + strict.times("/v");
        let earlier = arrived();
        let mut peer = Peer::to(&shop.client, at)?;
        let answered = peer.ask(1, &all)?;
        let arrived = arrived() - earlier;
        let right = match served {
            true => arrived == 1 && answered == Answered::Status(200),
            false => arrived == 0 && answered != Answered::Status(200),
        };
        if !right {
            wrong.push(format!(
                "{name}: {arrived} {answered:?} {:?}",
                strict.head(&path)
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let broken = strict.broken();
    ensure!(
        broken.len() == before,
        "the app could not read: {broken:#?}"
    );
    Ok(())
}
