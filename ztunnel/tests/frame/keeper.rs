//! The keeper and its workers: what waits while none lives, and what is over when one is done.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::ExitStatus;

use lab::Place;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::control;
use crate::fixture::{FakeAgent, eventually};
use crate::place::{HandedOver, REDIRECT, place};
use crate::process::{PATIENCE, Running, get, read_all, start_as, until, workload};

const KEEP: &str = "exec \"$0\" keep proxy ztunnel";

/// The worker of a keeper.
fn worker(keeper: &Running) -> Option<i32> {
    let pid = keeper.0.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let child = children.split_whitespace().next()?.parse().ok()?;
    // Until then it is a copy of its parent, and knows no signals.
    (name(child)? == "ztunnel\n").then_some(child)
}

fn name(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok()
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn end(keeper: &mut Running) -> ExitStatus {
    until("the keeper ends", || keeper.0.try_wait().unwrap())
}

/// A figure of a process's memory, in kB.
fn memory(pid: u32, figure: &str) -> u64 {
    let all = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(figure));
    let value = line.unwrap().trim_matches([':', ' ']).strip_suffix(" kB");
    value.unwrap().parse().unwrap()
}

fn connect(place: &Place, to: &'static str) -> std::io::Result<TcpStream> {
    let stream = place.within(|| TcpStream::connect(to)).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

async fn accept(app: &TcpListener) -> (tokio::net::TcpStream, SocketAddr) {
    let accepted = tokio::time::timeout(PATIENCE, app.accept()).await;
    accepted.expect("no connection arrives").unwrap()
}

/// Connections that come while no worker lives are answered by the next; a pod that left meanwhile is let go.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_no_worker_lives_waits_for_the_next() {
    let (node, pod, gone) = (place(), place(), place());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let agent = FakeAgent::listen(path.clone());
    let door = "127.0.0.1:15010".parse().unwrap();
    control::serve(node.netns().listen_on(door).unwrap(), workload());
    pod.nft(REDIRECT).unwrap();
    pod.ip("addr add 10.9.8.7/32 dev lo\n").unwrap();
    let app = pod.netns().listen_on("10.9.8.7:80".parse().unwrap());
    let app = app.unwrap();

    let mut keeper = start_as(&node, path, KEEP);
    let log = read_all(keeper.0.stdout.take().unwrap());
    let conversation = agent.accept().await;
    assert_eq!(conversation.add("uid", "client", pod.fd()).await, "");
    assert_eq!(conversation.add("gone", "gone", gone.fd()).await, "");
    assert_eq!(conversation.snapshot_sent().await, "");
    let first = until("there is a worker", || worker(&keeper));
    // Taken before, and not again: what has come by a pod's listeners is remembered.
    let mut before = connect(&pod, "10.9.8.7:80").unwrap();
    drop(accept(&app).await);
    assert_eq!(before.read(&mut [0]).unwrap(), 0);

    signal(first, Signal::SIGKILL);
    drop(conversation);
    // It has heard of the mesh and asks for pods, but nobody tells it of any.
    let conversation = agent.accept().await;
    let second = until("there is another worker", || {
        worker(&keeper).filter(|second| *second != first)
    });
    let say_hello = |_| {
        let mut client = connect(&pod, "10.9.8.7:80").unwrap();
        client.write_all(b"hello").unwrap();
        client
    };
    let waiting: Vec<_> = (0..100).map(say_hello).collect();
    connect(&gone, "127.0.0.1:15001").unwrap();
    let resolver = pod.within(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    let resolver = resolver.unwrap();
    resolver.connect("127.0.0.1:15053").unwrap();
    for _ in 0..2 {
        // The second would hear that the port of the first was closed.
        resolver.send(b"no question").unwrap();
    }
    let anonymous = memory(keeper.0.id(), "Anonymous");
    println!("the keeper has {anonymous} kB of its own");
    assert!(anonymous < 2 << 10, "{anonymous} kB");

    assert_eq!(conversation.add("uid", "client", pod.fd()).await, "");
    // They arrive in whatever order they are opened.
    for _ in &waiting {
        let (mut carried, _) = accept(&app).await;
        let mut hello = [0; 5];
        let heard = tokio::time::timeout(PATIENCE, carried.read_exact(&mut hello)).await;
        heard.expect("nothing is carried").unwrap();
        carried.write_all(&hello).await.unwrap();
    }
    for mut client in waiting {
        let mut hello = [0; 5];
        client.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
    }
    assert_eq!(conversation.snapshot_sent().await, "");
    eventually("the listeners of the pod that left are closed", || {
        connect(&gone, "127.0.0.1:15001").is_err()
    })
    .await;
    let metrics = get(&node, 15020, "/metrics").unwrap();
    let restarts = "ambit_worker_restarts_total 1";
    assert!(metrics.lines().any(|line| line == restarts), "{metrics}");

    // And a third time, with a pod that is taken out of the mesh by the living.
    signal(second, Signal::SIGKILL);
    drop(conversation);
    let conversation = agent.accept().await;
    assert_eq!(conversation.add("uid", "client", pod.fd()).await, "");
    assert_eq!(conversation.snapshot_sent().await, "");
    drop(connect(&pod, "10.9.8.7:80").unwrap());
    drop(accept(&app).await);
    assert_eq!(conversation.del("uid").await, "");
    eventually("its listeners are closed", || {
        connect(&pod, "127.0.0.1:15001").is_err()
    })
    .await;

    signal(keeper.0.id().try_into().unwrap(), Signal::SIGTERM);
    let status = end(&mut keeper);
    assert!(status.success(), "{status}");
    let log = log.join().unwrap();
    let said = "the listeners of 2 pods are held for the next one";
    assert_eq!(log.matches(said).count(), 1, "{log}");
    assert!(log.contains("\tztunnel\tstopped"), "{log}");
}

#[test]
fn a_keeper_ends_as_a_worker_that_had_nothing_to_leave_behind() {
    let place = place();
    for (command, code) in [
        ("exec \"$0\" keep --version", 0),
        ("exec \"$0\" keep --engine nonsense", 2),
    ] {
        let mut keeper = start_as(&place, "none.sock".into(), command);
        let log = read_all(keeper.0.stdout.take().unwrap());
        assert_eq!(end(&mut keeper).code(), Some(code), "{command}");
        let starts = log.join().unwrap().matches("is started in").count();
        assert_eq!(starts, 0, "{command}");
    }
}

/// As in a container, where process 1 takes all others along.
#[test]
fn a_worker_does_not_outlive_its_keeper() {
    let place = place();
    let mut keeper = start_as(&place, "none.sock".into(), KEEP);
    let worker = until("there is a worker", || worker(&keeper));
    keeper.0.kill().unwrap();
    end(&mut keeper);
    until("the worker is gone", || {
        name(worker).is_none().then_some(())
    });
}

#[test]
fn a_worker_that_keeps_dying_is_given_up() {
    let place = place();
    let mut keeper = start_as(&place, "none.sock".into(), KEEP);
    let log = read_all(keeper.0.stdout.take().unwrap());
    let mut killed = 0;
    let status = until("it gives up", || {
        if let Some(worker) = worker(&keeper) {
            signal(worker, Signal::SIGKILL);
            until("it is buried", || name(worker).is_none().then_some(()));
            killed += 1;
        }
        keeper.0.try_wait().unwrap()
    });
    assert_eq!((status.code(), killed), (Some(137), 8));
    let log = log.join().unwrap();
    assert!(log.contains("and so does its keeper"), "{log}");
}
