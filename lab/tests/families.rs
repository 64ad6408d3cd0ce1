//! The mesh where one of the two address families is missing: on the whole machine, or in single pods.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::Lab;
use support::{
    Pair,
    dns::{A, AAAA, ask},
    in_lab, talk,
};

#[test]
fn without_ipv6_everything_is_ipv4_and_nothing_is_missing() {
    in_lab(Lab::builder().ipv6(false), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        let service = lab.service("shop/web", &[(80, 8080)])?;
        ensure!(pair.server.ip6().is_err() && service.addresses.len() == 1);
        let capture = lab.capture(0)?;
        for client in [&pair.client, &near] {
            for to in [pair.at(), service.at(80)] {
                talk(client, to, "in one family")?;
            }
            let name = |kind| ask(client, lab.name_server_address(), &service.host, kind);
            ensure!(name(A)?.addresses == service.addresses);
            // The name exists, so the answer is an empty one: "no such name" would end the search for it.
            let answer = name(AAAA)?;
            ensure!(
                answer.code == 0 && answer.addresses.is_empty(),
                "{answer:?}"
            );
        }
        let seen = capture.stop()?;
        ensure!(seen.count("tcp port 15008")? > 0 && !seen.shows("in one family"));
        Ok(())
    });
}

#[test]
fn pods_that_lost_their_ipv4_reach_each_other_through_the_mesh_over_ipv6() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        let service = lab.service("shop/web", &[(80, 8080)])?;
        for pod in [&pair.server, &pair.client, &near] {
            pod.exec(["ip", "-4", "address", "flush", "dev", "eth0"])?
                .success()?;
        }
        let capture = lab.capture(0)?;
        for client in [&pair.client, &near] {
            for (ip, port) in [(pair.server.ip6()?, 8080), (v6_of(&service.addresses)?, 80)] {
                talk(client, SocketAddr::new(ip, port), "over IPv6 alone")?;
                let seen = pair.echo.peers().pop().context("nobody came")?;
                ensure!(seen.ip() == client.ip6()?, "it came from {seen}");
            }
        }
        let seen = capture.stop()?;
        ensure!(seen.count("ip6 and tcp port 15008")? > 0 && !seen.shows("over IPv6 alone"));
        Ok(())
    });
}

fn v6_of(addresses: &[IpAddr]) -> Result<IpAddr> {
    let v6 = addresses.iter().copied().find(IpAddr::is_ipv6);
    v6.context("the service has no IPv6 address")
}
