//! A ztunnel is replaced as its DaemonSet replaces it, while connections are made all the time: each is counted, and
//! not one may be lost.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use anyhow::{Result, ensure};
use lab::{Lab, Pod, wait};
use nix::sys::signal::Signal;
use support::{SOON, Server, in_lab, talk};

/// Times each node's ztunnel is replaced.
const ROUNDS: usize = 3;
/// Callers of each kind at a time.
const CALLERS: usize = 2;

/// One way through the mesh, and how its calls went.
struct Way {
    name: &'static str,
    client: Pod,
    to: SocketAddr,
    done: AtomicUsize,
    lost: Mutex<Vec<String>>,
}

impl Way {
    fn new(name: &'static str, client: &Pod, to: SocketAddr) -> Self {
        Self {
            name,
            client: client.clone(),
            to,
            done: AtomicUsize::new(0),
            lost: Mutex::default(),
        }
    }

    /// Calls one after the other, each on a connection of its own.
    fn call_until(&self, stop: &AtomicBool) {
        while !stop.load(SeqCst) {
            match talk(&self.client, self.to, "a call in the middle of the change") {
                Ok(_) => drop(self.done.fetch_add(1, SeqCst)),
                Err(why) => self.lost.lock().unwrap().push(format!("{why:#}")),
            }
        }
    }

    fn done(&self) -> usize {
        self.done.load(SeqCst)
    }
}

/// Waits until each way has been gone some more times.
fn calls_more(ways: &[Way]) -> Result<()> {
    let before: Vec<usize> = ways.iter().map(Way::done).collect();
    wait::until_true("calls on every way", SOON, || {
        let more = |(way, before): (&Way, &usize)| way.done() > before + 10;
        ways.iter().zip(&before).all(more)
    })
}

/// Runs `change` while every way is called all the time, and expects that no call is lost.
#[allow(clippy::print_stdout)] // the count is what the test is about
fn while_calling(lab: &Lab, change: impl FnOnce(&[Way]) -> Result<()>) -> Result<()> {
    lab.namespace("shop").ambient()?;
    lab.namespace("out").plain()?;
    let server = lab.pod("shop/web").node(0).service_account("web").start()?;
    let near = lab.pod("shop/near").node(0).start()?;
    let far = lab.pod("shop/far").node(1).start()?;
    let outsider = lab.pod("out/side").node(1).start()?;
    let _meshed = Server::echo(&server, 8080)?;
    let _unmeshed = Server::echo(&outsider, 8080)?;
    let over_ipv6 = SocketAddr::new(server.ip6()?, 8080);
    let ways = [
        Way::new("through a tunnel", &far, server.at(8080)),
        Way::new("through a tunnel, IPv6", &far, over_ipv6),
        Way::new("within the node", &near, server.at(8080)),
        Way::new("in plain text", &outsider, server.at(8080)),
        Way::new("out of the mesh", &near, outsider.at(8080)),
    ];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for way in &ways {
            for _ in 0..CALLERS {
                scope.spawn(|| way.call_until(&stop));
            }
        }
        let changed = calls_more(&ways).and_then(|()| change(&ways));
        stop.store(true, SeqCst);
        changed
    })?;
    for way in &ways {
        let lost = way.lost.lock().unwrap();
        let report = format!("{}: {} calls, {} lost", way.name, way.done(), lost.len());
        println!("{report}");
        ensure!(lost.is_empty(), "{report}: {lost:#?}");
    }
    Ok(())
}

#[test]
fn new_connections_on_every_way_survive_the_replacement_of_either_ztunnel() {
    in_lab(Lab::builder(), |lab| {
        while_calling(lab, |ways| {
            for node in (0..ROUNDS).flat_map(|_| [0, 1]) {
                let old = lab.surge_ztunnel(node)?;
                calls_more(ways)?;
                old.signal(Signal::SIGTERM)?;
                calls_more(ways)?;
                old.wait(SOON)?;
                calls_more(ways)?;
            }
            Ok(())
        })
    });
}

/// The successor has its pods from the node agent, and listens, but cannot know who they are.
#[test]
fn a_successor_without_a_control_plane_takes_nothing_from_its_elder() {
    in_lab(Lab::builder(), |lab| {
        while_calling(lab, |ways| {
            lab.control_plane()?.kill()?;
            let old = lab.begin_surge(0)?;
            let new = lab.node(0).ztunnel()?.process()?;
            wait::until_true("the successor to listen", SOON, || {
                new.log().matches("the node's pods are known").count() == 2
            })?;
            calls_more(ways)?;
            lab.control_plane()?.start()?;
            lab.node(0).ztunnel()?.until_ready()?;
            old.signal(Signal::SIGTERM)?;
            old.wait(SOON)?;
            calls_more(ways)
        })
    });
}
