//! The program itself: a stdout that nobody reads, and its end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::workload as wire;
use lab::Place;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use ztunnel::netns::From;

use crate::control;
use crate::fixture::{FakeAgent, eventually};
use crate::place::{HandedOver, place};

/// Longer than anything here takes on a busy machine; reached only when a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const ENVIRONMENT: [(&str, &str); 6] = [
    ("XDS_ADDRESS", "http://127.0.0.1:15010"),
    ("AUTH_TOKEN", ""),
    ("NODE_NAME", "node-1"),
    ("AMBIT_ENGINE", "h2"),
    ("RUST_LOG", "trace"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "1"),
];

/// A running ztunnel; ends with the test, whatever became of it.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts ztunnel in `place`, its stdout a pipe.
fn start(place: &Place, agent: PathBuf) -> Running {
    start_as(place, agent, "exec \"$0\" proxy ztunnel")
}

/// The same, by a shell command that ends in becoming it.
pub(crate) fn start_as(place: &Place, agent: PathBuf, command: &'static str) -> Running {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command, env!("CARGO_BIN_EXE_ztunnel")])
        .envs(ENVIRONMENT)
        .env("INPOD_UDS", agent)
        .stdout(Stdio::piped());
    Running(place.spawn(shell).unwrap())
}

pub(crate) fn get(place: &Place, port: u16, path: &'static str) -> Option<String> {
    let ask = || {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    place.within(ask).unwrap()
}

pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        #[allow(clippy::disallowed_methods)] // no runtime in this test
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn read_all(mut stdout: std::process::ChildStdout) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut log = String::new();
        stdout.read_to_string(&mut log).unwrap();
        log
    })
}

pub(crate) fn workload() -> wire::Workload {
    wire::Workload {
        uid: "w".into(),
        name: "client".into(),
        namespace: "app".into(),
        node: "node-1".into(),
        ..Default::default()
    }
}

/// Each connection is a line or more of the log, and nobody reads the log.
#[tokio::test(flavor = "multi_thread")]
async fn unread_stdout_stops_neither_connections_nor_the_end() {
    let (place, pod) = (place(), place());
    let directory = tempfile::tempdir().unwrap();
    let agent = FakeAgent::listen(directory.path().join("agent.sock"));
    let workload = workload();
    control::serve(
        place
            .netns()
            .listen_on("127.0.0.1:15010".parse().unwrap())
            .unwrap(),
        workload,
    );
    let mut ztunnel = start(&place, directory.path().join("agent.sock"));
    let agent = agent.accept().await;
    assert_eq!(agent.snapshot_sent().await, "");
    assert_eq!(agent.add("uid", "client", pod.fd()).await, "");
    eventually("ready: the agent's pods and the mesh are known", || {
        get(&place, 15021, "/healthz/ready")
            .is_some_and(|answer| answer.ends_with("\r\n\r\nready\n"))
    })
    .await;

    let netns = pod.netns();
    let mut connections = 0;
    let dropped = loop {
        for _ in 0..500 {
            connections += 1;
            // To the proxy itself: refused with a reset, which is an answer.
            if let Ok(mut stream) = netns
                .connect(From::Any, "127.0.0.1:15001".parse().unwrap())
                .await
            {
                let answered = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
                assert!(
                    answered.is_ok(),
                    "connection {connections} was not answered"
                );
            }
        }
        let metrics = get(&place, 15020, "/metrics").expect("doors are open");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("ambit_log_lines_dropped_total "))
            .unwrap();
        let dropped = line.parse::<f64>().unwrap();
        if dropped > 100.0 {
            break dropped;
        }
        assert!(connections < 50_000, "the log never filled");
    };
    println!("{connections} connections answered, {dropped} lines dropped");

    kill(
        Pid::from_raw(ztunnel.0.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    let status = until("it ends", || ztunnel.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

/// With 128 descriptors, 200 connections that say nothing: the newest are refused before the last descriptor is gone, so
/// that the doors still answer, and when those who were let in go, it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn before_descriptors_run_out_the_newest_is_refused_and_told_why() {
    let (place, pod) = (place(), place());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let agent = FakeAgent::listen(path.clone());
    let command = "ulimit -n 128; export AMBIT_MAX_CONNECTIONS=9999 AMBIT_MAX_HANDSHAKES=9999; exec \"$0\" proxy ztunnel";
    let mut ztunnel = start_as(&place, path, command);
    let log = read_all(ztunnel.0.stdout.take().unwrap());
    let workload = workload();
    control::serve(
        place
            .netns()
            .listen_on("127.0.0.1:15010".parse().unwrap())
            .unwrap(),
        workload,
    );
    let agent = agent.accept().await;
    assert_eq!(agent.add("uid", "client", pod.fd()).await, "");

    let netns = pod.netns();
    let connect = || async {
        netns
            .connect(From::Any, "127.0.0.1:15008".parse().unwrap())
            .await
    };
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.extend(connect().await);
    }
    eventually("some are refused, and the doors say so", || {
        get(&place, 15020, "/metrics").is_some_and(|metrics| {
            let refused = metrics.lines().find_map(|line| {
                line.strip_prefix("ambit_overload_refused_total{what=\"descriptors\"} ")
            });
            refused.is_some_and(|count| count.parse::<u64>().unwrap() > 0)
        })
    })
    .await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", ztunnel.0.id()));
    assert!(
        open.unwrap().count() < 128,
        "some are kept for other things"
    );
    let deadline = Instant::now() + PATIENCE;
    while !is_refused(connect().await).await {
        assert!(Instant::now() < deadline, "it is let in");
        // Who was let in is sent away when there is no certificate for him in time: on a slow machine, before now.
        silent.clear();
        for _ in 0..200 {
            silent.extend(connect().await);
        }
    }

    drop(silent);
    let deadline = Instant::now() + PATIENCE;
    while is_refused(connect().await).await {
        assert!(Instant::now() < deadline, "it did not go on");
    }
    drop(ztunnel);
    let log = log.join().unwrap();
    assert!(
        log.contains("file descriptors of ztunnel are taken, and the rest is reserved"),
        "{log}"
    );
    assert!(!log.contains("cannot accept connections"), "{log}");
}

/// Reset, at once or within a while; one that is let in hears nothing.
async fn is_refused(connected: std::io::Result<tokio::net::TcpStream>) -> bool {
    let Ok(mut stream) = connected else {
        return true;
    };
    let heard = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut [0])).await;
    heard.is_ok()
}

#[test]
fn doors_answer_and_quitquitquit_ends_the_process_in_good_order() {
    let place = place();
    let directory = tempfile::tempdir().unwrap();
    let mut ztunnel = start(&place, directory.path().join("none.sock"));
    let stdout = ztunnel.0.stdout.take().unwrap();
    let log = read_all(stdout);
    until("doors are open", || get(&place, 15021, "/healthz/ready"));
    let ready = get(&place, 15021, "/healthz/ready").unwrap();
    assert!(
        ready.starts_with("HTTP/1.1 503")
            && ready.ends_with("not ready, waiting for: handover, xds, zds\n"),
        "{ready}"
    );
    let metrics = get(&place, 15020, "/metrics").unwrap();
    for line in ["ambit_pool_connections 0", "ambit_pool_streams 0"] {
        assert!(metrics.lines().any(|shown| shown == line), "{metrics}");
    }
    let dump = get(&place, 15000, "/config_dump").unwrap();
    assert!(dump.contains("\"localNode\": \"node-1\""), "{dump}");
    let logging = get(&place, 15000, "/logging").unwrap();
    assert!(
        logging.ends_with("current log level is trace\n"),
        "{logging}"
    );
    let outside = place.within(|| TcpStream::connect("127.0.0.2:15000").is_ok());
    assert!(!outside.unwrap(), "the admin door is for localhost only");

    let quit = || {
        let mut stream = TcpStream::connect("127.0.0.1:15000").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"POST /quitquitquit HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    };
    place.within(quit).unwrap();
    let status = until("it ends", || ztunnel.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let log = log.join().unwrap();
    let started = log
        .lines()
        .find(|line| line.contains("\tinfo\tztunnel\tstarting\t"));
    assert!(
        started.is_some_and(|line| line.contains("engine=\"h2\"")),
        "{log}"
    );
    assert!(
        log.contains("\tinfo\tztunnel\tstopped"),
        "the last words are out: {log}"
    );
}
