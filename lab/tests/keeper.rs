//! A worker dies, its keeper does not: what had been accepted is lost, all that comes from then on is served.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    fs, io,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use lab::{Builder, Lab, Pod, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{SOON, Server, calls::while_calling, in_lab, round_trip, talk, talk_soon};

/// Callers of each kind at a time.
const CALLERS: usize = 4;
/// Times each node's worker is killed.
const ROUNDS: usize = 2;

fn kept() -> Builder {
    Lab::builder().keeper(true)
}

/// Kills a node's worker; when it was sure to be gone, and with it its sockets.
fn kill_worker(lab: &Lab, node: usize) -> Result<Instant> {
    let worker = lab.node(node).worker()?.context("a worker to kill")?;
    kill(Pid::from_raw(worker), Signal::SIGKILL)?;
    wait::until_true("the worker's end", SOON, || {
        fs::metadata(format!("/proc/{worker}")).is_err()
    })?;
    Ok(Instant::now())
}

/// From whom to whom, and the nodes whose workers carry it.
struct Way<'a> {
    name: &'static str,
    client: &'a Pod,
    to: SocketAddr,
    nodes: &'a [usize],
}

/// When the end of a node's worker was asked for, and when it was gone.
struct Death {
    node: usize,
    asked: Instant,
    dead: Instant,
}

/// A call: when it began and ended, and what came of it.
struct Call<'a> {
    way: &'a Way<'a>,
    began: Instant,
    ended: Instant,
    lost: Option<anyhow::Error>,
}

#[test]
#[allow(clippy::print_stdout)] // the figures are what the test is about
fn no_connection_is_refused_when_a_worker_is_killed_and_the_next_one_serves_what_waited() {
    in_lab(kept(), |lab| {
        lab.namespace("shop").ambient()?;
        lab.namespace("out").plain()?;
        let server = lab.pod("shop/web").node(0).service_account("web").start()?;
        let near = lab.pod("shop/near").node(0).start()?;
        let far = lab.pod("shop/far").node(1).start()?;
        let outsider = lab.pod("out/side").node(1).start()?;
        let _meshed = Server::echo(&server, 8080)?;
        let _unmeshed = Server::echo(&outsider, 8080)?;
        let way = |name, client, to, nodes| Way {
            name,
            client,
            to,
            nodes,
        };
        let ways = [
            way("through a tunnel", &far, server.at(8080), &[0, 1][..]),
            way("within the node", &near, server.at(8080), &[0]),
            way("in plain text", &outsider, server.at(8080), &[0]),
            way("out of the mesh", &near, outsider.at(8080), &[0]),
        ];
        for way in &ways {
            talk_soon(way.client, way.to)?;
        }
        let (stop, calls) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let mut killed = Vec::new();
        thread::scope(|scope| {
            for way in &ways {
                for _ in 0..CALLERS {
                    scope.spawn(|| call_until(&stop, way, &calls));
                }
            }
            let outcome = (0..ROUNDS).flat_map(|_| [0, 1]).try_for_each(|node| {
                answered(&calls, ways.len())?;
                let asked = Instant::now();
                let dead = kill_worker(lab, node)?;
                let early = ways.iter().filter(|way| way.nodes.contains(&node));
                let early: Vec<_> = early
                    .flat_map(|way| [way; CALLERS])
                    .map(|way| way.client.connect(way.to))
                    .collect::<Result<_>>()?;
                lab.node(node).ztunnel()?.until_ready()?;
                let ready = Instant::now();
                let (away, waited) = (ready - dead, early.len());
                for mut stream in early {
                    round_trip(&mut stream, "it has waited")?;
                }
                let served = ready.elapsed();
                println!("node {node} was ready after {away:?}, and {waited} connections were served {served:?} later");
                killed.push(Death { node, asked, dead });
                answered(&calls, ways.len())
            });
            stop.store(true, SeqCst);
            outcome
        })?;
        judge(&calls.into_inner().unwrap(), &killed)
    });
}

fn call_until<'a>(stop: &AtomicBool, way: &'a Way<'a>, calls: &Mutex<Vec<Call<'a>>>) {
    while !stop.load(SeqCst) {
        let began = Instant::now();
        let lost = talk(way.client, way.to, "a call while workers die").err();
        let ended = Instant::now();
        calls.lock().unwrap().push(Call {
            way,
            began,
            ended,
            lost,
        });
    }
}

/// Waits until calls that begin now have been answered, on every way.
fn answered(calls: &Mutex<Vec<Call<'_>>>, ways: usize) -> Result<()> {
    let now = Instant::now();
    wait::until_true("calls on every way", SOON, || {
        let calls = calls.lock().unwrap();
        let new = calls.iter().rev().filter(|call| call.began > now);
        let mut seen: Vec<_> = new
            .filter(|call| call.lost.is_none())
            .map(|call| call.way.name)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len() == ways
    })
}

#[allow(clippy::print_stdout)] // the figures are what the test is about
fn judge(calls: &[Call<'_>], killed: &[Death]) -> Result<()> {
    let refused = |error: &anyhow::Error| {
        let mut causes = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<io::Error>());
        causes.any(|io| io.kind() == io::ErrorKind::ConnectionRefused)
    };
    // What a worker carries when it dies, dies with it; nothing else may.
    let carried = |call: &Call<'_>| {
        killed.iter().any(|death| {
            call.way.nodes.contains(&death.node)
                && call.began <= death.dead
                && call.ended >= death.asked
        })
    };
    for call in calls {
        if let Some(error) = &call.lost {
            ensure!(!refused(error), "{}: {error:#}", call.way.name);
            ensure!(carried(call), "{}: {error:#}", call.way.name);
        }
    }
    let lost = calls.iter().filter(|call| call.lost.is_some()).count();
    println!(
        "{} calls, {lost} in the hands of a worker that died",
        calls.len()
    );
    Ok(())
}

/// Both of them listen; whoever's turn it is stays so over the death of either worker.
#[test]
fn turns_between_two_ztunnels_outlive_their_workers() {
    in_lab(kept(), |lab| {
        while_calling(lab, |ways| {
            let elder = lab.node(0).ztunnel()?.process()?;
            let old = lab.surge_ztunnel(0)?;
            ensure!(old.pid() == elder.pid());
            // It has taken nothing, and so nothing is lost with it.
            kill_worker(lab, 0)?;
            lab.node(0).ztunnel()?.until_ready()?;
            support::calls::calls_more(ways)?;
            old.signal(Signal::SIGTERM)?;
            support::calls::calls_more(ways)?;
            old.wait(SOON)?;
            support::calls::calls_more(ways)
        })
    });
}
