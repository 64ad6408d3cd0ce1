//! F-8, H1-7: more than there is room for, slow clients, and clients that vanish. One client takes half of the room at most,
//! whoever is one too many is told so, and a person sees who it was and why.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod};

use super::peer::{Answered, Peer};
use super::raw::{END_HEADERS, END_STREAM, HEADERS, frame};
use crate::app::One;
use crate::shop::{Shop, in_shop_of};

const REQUESTS: usize = 10;
const TUNNELS: usize = 40;

#[test]
fn too_much_is_refused_with_a_reason_and_others_are_served() {
    let lab = Lab::builder()
        .waypoint_env("AMBIT_MAX_REQUESTS", &REQUESTS.to_string())
        .waypoint_env("AMBIT_MAX_TUNNELS", &TUNNELS.to_string())
        .waypoint_env("AMBIT_MAX_CONNECTIONS", "12");
    in_shop_of(lab, |shop| {
        let other = shop.lab.pod("shop/other").node(1).start()?;
        shop.until("the other client", |shop| serves(shop, &other))?;
        requests(shop, &other).context("requests")?;
        tunnels(shop, &other).context("tunnels")?;
        connections(shop, &other).context("connections")?;
        vanished(shop, &other).context("clients that vanish")
    });
}

fn serves(shop: &Shop<'_>, client: &Pod) -> bool {
    shop.runtime
        .block_on(async {
            let mut one = One::to(client, shop.at(80)).await?;
            one.get("/").await?.is(200)
        })
        .is_ok()
}

fn number(shop: &Shop<'_>, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(shop.waypoint.pod().metrics()?.sum(name, labels))
}

fn refused(shop: &Shop<'_>, what: &str) -> Result<f64> {
    number(shop, "ambit_overload_refused_total", &[("what", what)])
}

fn hang(peer: &mut Peer, stream: u32) -> Result<()> {
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "web.shop"),
        (":path", "/hang"),
    ];
    let block = super::peer::block(&fields);
    peer.say(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block))
}

fn requests(shop: &Shop<'_>, other: &Pod) -> Result<()> {
    let mut peer = Peer::to(&shop.client, shop.at(90))?;
    for stream in (0..REQUESTS as u32 / 2).map(|n| 2 * n + 1) {
        hang(&mut peer, stream)?;
    }
    shop.until("half of the room to be taken", |shop| {
        number(shop, "ambit_requests_carried", &[]).is_ok_and(|now| now == REQUESTS as f64 / 2.0)
    })?;
    hang(&mut peer, 101)?;
    let one_more = peer.answered(101)?;
    ensure!(one_more == Answered::Status(503), "{one_more:?}");
    shop.until("it to be counted", |shop| {
        refused(shop, "requests_of_one_client").is_ok_and(|count| count >= 1.0)
    })?;
    ensure!(serves(shop, other), "the other client is not served");
    shop.until("the other client's place to be free", |shop| {
        number(shop, "ambit_requests_carried", &[]).is_ok_and(|now| now == REQUESTS as f64 / 2.0)
    })?;
    // Two clients have it all; a third one is told.
    let mut second = Peer::to(other, shop.at(90))?;
    for stream in (0..REQUESTS as u32 / 2).map(|n| 2 * n + 1) {
        hang(&mut second, stream)?;
    }
    shop.until("all of the room to be taken", |shop| {
        number(shop, "ambit_requests_carried", &[]).is_ok_and(|now| now == REQUESTS as f64)
    })?;
    let third = shop.lab.pod("shop/third").node(1).start()?;
    shop.runtime.block_on(async {
        let mut one = One::to(&third, shop.at(80)).await?;
        let request = ::http::Request::get("/late")
            .header("host", "web.shop")
            .header("x-request-id", "one-too-many");
        let heard = one
            .ask(request.body(http_body_util::Full::default())?)
            .await?
            .is(503)?;
        ensure!(heard.text().contains("overloaded"), "{heard:?}");
        anyhow::Ok(())
    })?;
    shop.until("that to be counted", |shop| {
        refused(shop, "requests").is_ok_and(|count| count >= 1.0)
    })?;
    let log = shop.waypoint.pod().access_log();
    let line = log.find("the refusal", |line| {
        line.field("request_id") == "one-too-many"
    })?;
    ensure!(line.field("flags") == "OM", "{line:?}");
    ensure!(
        line.field("detail").contains("too many requests"),
        "{line:?}"
    );
    drop((peer, second));
    shop.until("the room to be free again", |shop| serves(shop, &third))
}

fn tunnels(shop: &Shop<'_>, other: &Pod) -> Result<()> {
    let mut kept = Vec::new();
    for _ in 0..TUNNELS {
        // Who is refused may be told before he knows that he is connected.
        kept.extend(shop.client.connect(shop.at(80)));
    }
    shop.until("one client to have its share", |shop| {
        refused(shop, "tunnels_of_one_client").is_ok_and(|count| count >= 1.0)
    })?;
    // Of those that came before some may still be ending.
    shop.until("no more tunnels than its share", |shop| {
        number(shop, "ambit_tunnels_carried", &[])
            .is_ok_and(|carried| carried <= TUNNELS as f64 / 2.0 + 4.0)
    })?;
    ensure!(serves(shop, other), "the other client is not served");
    drop(kept);
    shop.until("its share to be free again", |shop| {
        serves(shop, &shop.client)
    })
}

/// Who has connected to the tunnel port and says nothing keeps nobody out, and is not kept for long.
fn connections(shop: &Shop<'_>, other: &Pod) -> Result<()> {
    let at = shop.waypoint.pod().pod().at(15008);
    // Who is refused may be told before he knows that he is connected.
    let idle: Vec<_> = (0..12).flat_map(|_| shop.client.connect(at)).collect();
    shop.until("one client to have its share", |shop| {
        refused(shop, "connections_of_one_client").is_ok_and(|count| count >= 1.0)
    })?;
    // Whoever is connected goes on, and others come in beside those who say nothing, whose time will be up.
    ensure!(
        serves(shop, other),
        "a client that is connected is not served"
    );
    let fourth = shop.lab.pod("shop/fourth").node(0).start()?;
    shop.until("a new client", |shop| serves(shop, &fourth))?;
    shop.until("the slow to be counted", |shop| {
        let labels = [("reason", "slow_handshake")];
        number(shop, "ambit_tunnel_refusals_total", &labels).is_ok_and(|count| count >= 1.0)
    })?;
    drop(idle);
    Ok(())
}

/// Clients that go away at every moment of a request leave nothing behind.
fn vanished(shop: &Shop<'_>, other: &Pod) -> Result<()> {
    let head = "POST /echo HTTP/1.1\r\nhost: web.shop\r\ncontent-length: 200000\r\n\r\n";
    let whole = [head, &"x".repeat(200_000)].concat();
    for (what, said, heard) in [
        ("before a word", &whole[..0], false),
        ("in the head", &whole[..20], false),
        ("behind the head", &whole[..head.len()], false),
        ("in the body", &whole[..head.len() + 5000], false),
        ("behind the body", &whole[..], false),
        ("in the answer", &whole[..], true),
    ] {
        for _ in 0..3 {
            let mut stream = shop.client.connect(shop.at(80))?;
            let _ = stream.write_all(said.as_bytes());
            if heard {
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                let mut part = [0; 100];
                ensure!(stream.read(&mut part).is_ok_and(|n| n > 0), "{what}");
            }
            // With bytes unread this is a reset, else an end.
            drop(stream);
        }
        ensure!(serves(shop, other), "after {what}");
    }
    // While the app thinks: a reset over HTTP/1.1, or an end, and a connection's end over HTTP/2.
    for reset in [true, false] {
        let mut stream = shop.client.connect(shop.at(80))?;
        stream.write_all(b"GET /hang HTTP/1.1\r\nhost: web.shop\r\n\r\n")?;
        shop.until("the app to be asked over HTTP/1.1", |shop| {
            number(shop, "ambit_requests_carried", &[]).is_ok_and(|now| now == 1.0)
        })?;
        if reset {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        drop(stream);
        shop.until("nothing of it to be carried over HTTP/1.1", |shop| {
            number(shop, "ambit_requests_carried", &[]).is_ok_and(|now| now == 0.0)
        })?;
    }
    let mut peer = Peer::to(&shop.client, shop.at(90))?;
    hang(&mut peer, 1)?;
    shop.until("the app to be asked", |shop| {
        number(shop, "ambit_requests_carried", &[]).is_ok_and(|now| now == 1.0)
    })?;
    drop(peer);
    shop.until("nothing of it to be carried", |shop| {
        number(shop, "ambit_requests_carried", &[]).is_ok_and(|now| now == 0.0)
    })
}
