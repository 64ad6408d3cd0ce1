//! The program itself: a stdout that nobody reads, and its end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::place::Place;

const ENVIRONMENT: [(&str, &str); 5] = [
    ("XDS_ADDRESS", "http://127.0.0.1:1"),
    ("AUTH_TOKEN", ""),
    ("NODE_NAME", "node-1"),
    ("RUST_LOG", "trace"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "1"),
];

/// Starts ztunnel in `place`, its stdout a pipe.
fn start(place: &Place, directory: &std::path::Path) -> Child {
    let socket = directory.join("none.sock");
    place.inside(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ztunnel"));
        command.args(["proxy", "ztunnel"]).envs(ENVIRONMENT).env("INPOD_UDS", socket);
        command.stdout(Stdio::piped()).spawn().unwrap()
    })
}

fn get(place: &Place, port: u16, path: &'static str) -> Option<String> {
    place.inside(move || {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        #[allow(clippy::disallowed_methods)] // no runtime in this test
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn unread_stdout_stops_neither_the_doors_nor_the_end() {
    let Some(place) = Place::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut ztunnel = start(&place, directory.path());
    until("metrics are served", || get(&place, 15020, "/metrics"));

    // At level trace each request is several lines: far more than a pipe and the buffer hold.
    let dropped = until("lines are dropped", || {
        for _ in 0..50 {
            get(&place, 15020, "/stats/prometheus");
        }
        let metrics = get(&place, 15020, "/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("ambit_log_lines_dropped_total "))?;
        line.parse::<f64>().ok().filter(|dropped| *dropped > 0.0)
    });
    assert!(dropped > 0.0);
    let ready = get(&place, 15021, "/healthz/ready").unwrap();
    assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("not ready, waiting for: xds, zds\n"), "{ready}");

    kill(Pid::from_raw(ztunnel.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let status = until("it ends", || ztunnel.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn doors_answer_and_quitquitquit_ends_the_process_in_good_order() {
    let Some(place) = Place::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut ztunnel = start(&place, directory.path());
    let mut stdout = ztunnel.stdout.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        stdout.read_to_string(&mut log).unwrap();
        log
    });
    until("doors are open", || get(&place, 15021, "/healthz/ready"));
    let dump = get(&place, 15000, "/config_dump").unwrap();
    assert!(dump.contains("\"localNode\": \"node-1\""), "{dump}");
    let logging = get(&place, 15000, "/logging").unwrap();
    assert!(logging.ends_with("current log level is trace\n"), "{logging}");
    let outside = place.inside(|| TcpStream::connect("127.0.0.2:15000").is_ok());
    assert!(!outside, "the admin door is for localhost only");

    place.inside(|| {
        let mut stream = TcpStream::connect("127.0.0.1:15000").unwrap();
        stream.write_all(b"POST /quitquitquit HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    });
    let status = until("it ends", || ztunnel.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let log = log.join().unwrap();
    assert!(log.contains("\tinfo\tztunnel\tstarting\t"), "{log}");
    assert!(log.contains("\tinfo\tztunnel\tstopped"), "the last words are out: {log}");
}
