//! Asks a machine's application how it does, as its WorkloadGroup says.
//!
//! Who may write a WorkloadGroup decides what is asked here, so what is asked is bounded by this machine's own operator:
//! requests go to addresses of the machine itself and nowhere else, and commands are run only where that was allowed
//! (`AMBIT_EXEC_PROBES`); elsewhere such a probe fails, and says so.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::machine::{Exec, Http, Probe, Tcp, Told, probe::Check};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// What this machine's operator allows.
#[derive(Debug, Clone)]
pub struct Rules {
    commands: bool,
    /// On our sockets: the rules of the namespace leave them alone.
    mark: Option<u32>,
}

impl Rules {
    /// As the flags say.
    pub fn of(config: &Config) -> Self {
        Self {
            commands: config.exec_probes,
            mark: config.dialler().mark,
        }
    }
}

/// Before anything is known.
pub fn unknown() -> Option<String> {
    Some("its application has not been asked yet".into())
}

/// Asks what is `asked`, and writes down what is found, until `stop`: `None` for well, or why not.
pub async fn run(
    rules: Rules,
    mut asked: watch::Receiver<Option<Told>>,
    found: Arc<watch::Sender<Option<String>>>,
    stop: CancellationToken,
) {
    loop {
        let told = asked.borrow_and_update().clone();
        let asking = async {
            match told {
                None => std::future::pending().await,
                Some(Told { probe: None }) => {
                    say(&found, None);
                    std::future::pending().await
                }
                Some(Told { probe: Some(probe) }) => {
                    say(&found, unknown());
                    ask(&rules, &probe, &found).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = asked.changed() => if changed.is_err() { return },
            () = asking => {}
        }
    }
}

/// One probe, again and again.
async fn ask(rules: &Rules, probe: &Probe, found: &watch::Sender<Option<String>>) {
    let seconds = |number: u32| Duration::from_secs(number.into());
    tokio::time::sleep(seconds(probe.initial_delay_seconds)).await;
    let mut tally = Tally::default();
    loop {
        let begun = Instant::now();
        let timeout = seconds(probe.timeout_seconds.max(1));
        let answered = tokio::time::timeout(timeout, once(rules, probe)).await;
        let answer = answered.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
        if let Some(verdict) = tally.count(answer, probe) {
            say(found, verdict);
        }
        tokio::time::sleep_until(begun + seconds(probe.period_seconds.max(1))).await;
    }
}

fn say(found: &watch::Sender<Option<String>>, now: Option<String>) {
    found.send_if_modified(|found| {
        let differs = *found != now;
        *found = now;
        differs
    });
}

/// Answers in a row.
#[derive(Debug, Default)]
struct Tally {
    well: u32,
    failed: u32,
}

impl Tally {
    /// What is known after one more answer, once enough of them agree. Pure.
    fn count(&mut self, answer: Result<(), String>, probe: &Probe) -> Option<Option<String>> {
        match answer {
            Ok(()) => {
                self.failed = 0;
                self.well = self.well.saturating_add(1);
                (self.well >= probe.success_threshold.max(1)).then_some(None)
            }
            Err(why) => {
                self.well = 0;
                self.failed = self.failed.saturating_add(1);
                (self.failed >= probe.failure_threshold.max(1)).then_some(Some(why))
            }
        }
    }
}

/// One question, one answer.
pub(super) async fn once(rules: &Rules, probe: &Probe) -> Result<(), String> {
    match &probe.check {
        Some(Check::Http(http)) => http_get(rules, http).await,
        Some(Check::Tcp(Tcp { port, host })) => connect(rules, host, *port).await.map(drop),
        Some(Check::Exec(exec)) if rules.commands => command(exec).await,
        Some(Check::Exec(_)) => {
            Err("this machine runs no commands of probes (AMBIT_EXEC_PROBES)".into())
        }
        None => Err("the probe asks nothing that is known here".into()),
    }
}

async fn http_get(rules: &Rules, http: &Http) -> Result<(), String> {
    let mut stream = connect(rules, &http.host, http.port).await?;
    let request = request(http)?;
    let io = |error: io::Error| format!("port {}: {error}", http.port);
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    let mut head = Vec::with_capacity(64);
    // The status line; what follows is the application's business.
    while !head.contains(&b'\n') && head.len() < LONGEST_LINE {
        if stream.read_buf(&mut head).await.map_err(io)? == 0 {
            break;
        }
    }
    match status(&head) {
        Some(200..=399) => Ok(()),
        Some(other) => Err(format!("port {}{}: status {other}", http.port, http.path)),
        None => Err(format!("port {}: the answer is no HTTP", http.port)),
    }
}

/// The request. Pure; nothing in it can end a line.
fn request(http: &Http) -> Result<String, String> {
    let texts = http.headers.iter().flat_map(|it| [&it.name, &it.value]);
    let mut texts = texts.chain([&http.path, &http.host]);
    if texts.any(|text| text.chars().any(|c| c.is_control())) || http.path.contains(' ') {
        return Err("the probe's path or headers cannot be sent".into());
    }
    let path = match &*http.path {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let named = http
        .headers
        .iter()
        .any(|it| it.name.eq_ignore_ascii_case("host"));
    let mut text =
        format!("GET {path} HTTP/1.1\r\nconnection: close\r\nuser-agent: ambit-probe\r\n");
    if !named {
        let host = match &*http.host {
            "" => "localhost".to_owned(),
            v6 if v6.contains(':') => format!("[{v6}]"),
            host => host.to_owned(),
        };
        text += &format!("host: {host}:{}\r\n", http.port);
    }
    for header in &http.headers {
        text += &format!("{}: {}\r\n", header.name, header.value);
    }
    Ok(text + "\r\n")
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.")?;
    std::str::from_utf8(line.get(2..5)?).ok()?.parse().ok()
}

/// To this machine itself. Where the application listens on one of its addresses only, that is said as the host.
async fn connect(rules: &Rules, host: &str, port: u32) -> Result<TcpStream, String> {
    let port = u16::try_from(port).map_err(|_| format!("{port} is no port"))?;
    let ip = match host {
        "" | "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host
            .parse()
            .map_err(|_| format!("{host:?} is no address of this machine"))?,
    };
    let failed = |error: io::Error| format!("port {port}: {error}");
    let socket = match ip {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(failed)?;
    // Only an address of its own can be bound: so nothing is asked of others in this machine's name.
    socket
        .bind(SocketAddr::new(ip, 0))
        .map_err(|_| format!("{ip} is no address of this machine"))?;
    if let Some(mark) = rules.mark {
        SockRef::from(&socket).set_mark(mark).map_err(failed)?;
    }
    socket
        .connect(SocketAddr::new(ip, port))
        .await
        .map_err(failed)
}

async fn command(exec: &Exec) -> Result<(), String> {
    let (program, arguments) = exec.command.split_first().ok_or("no command")?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

const LONGEST_LINE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(commands: bool) -> Rules {
        Rules {
            commands,
            mark: None,
        }
    }

    fn http(port: u32) -> Http {
        Http {
            port,
            path: "/well".into(),
            ..Http::default()
        }
    }

    #[test]
    fn enough_answers_in_a_row_decide() {
        let probe = Probe {
            success_threshold: 2,
            failure_threshold: 3,
            ..Probe::default()
        };
        let mut tally = Tally::default();
        let no = || Err("no".to_owned());
        let answers = [
            Ok(()),
            no(),
            Ok(()),
            Ok(()),
            no(),
            no(),
            Ok(()),
            no(),
            no(),
            no(),
        ];
        let found: Vec<_> = answers
            .into_iter()
            .map(|answer| tally.count(answer, &probe))
            .collect();
        let decided: Vec<_> = found
            .iter()
            .map(|it| it.as_ref().map(Option::is_none))
            .collect();
        let (well, not) = (Some(true), Some(false));
        assert_eq!(
            decided,
            [None, None, None, well, None, None, None, None, None, not]
        );
    }

    #[test]
    fn nothing_in_a_probe_can_end_a_line_of_its_request() {
        let good = request(&http(80)).unwrap();
        assert!(good.starts_with("GET /well HTTP/1.1\r\n") && good.ends_with("\r\n\r\n"));
        for bad in ["/x\r\nevil: 1", "/x y", "/x\n"] {
            let path = bad.to_owned();
            assert!(request(&Http { path, ..http(80) }).is_err(), "{bad:?}");
        }
        let header = api::machine::Header {
            name: "a".into(),
            value: "b\r\nc: d".into(),
        };
        let headers = vec![header];
        assert!(
            request(&Http {
                headers,
                ..http(80)
            })
            .is_err()
        );
    }

    #[tokio::test]
    async fn only_this_machine_is_asked_and_commands_only_where_that_is_allowed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = u32::from(listener.local_addr().unwrap().port());
        assert!(connect(&rules(false), "", port).await.is_ok());
        for other in ["192.0.2.1", "example.com", "169.254.169.254"] {
            let refused = connect(&rules(false), other, port).await.unwrap_err();
            assert!(refused.contains("no address of this machine"), "{refused}");
        }
        let exec = |words: &[&str]| Probe {
            check: Some(Check::Exec(Exec {
                command: words.iter().map(|word| (*word).to_owned()).collect(),
            })),
            ..Probe::default()
        };
        let refused = once(&rules(false), &exec(&["true"])).await.unwrap_err();
        assert!(refused.contains("AMBIT_EXEC_PROBES"), "{refused}");
        assert_eq!(once(&rules(true), &exec(&["true"])).await, Ok(()));
        assert!(once(&rules(true), &exec(&["false"])).await.is_err());
    }

    #[tokio::test]
    async fn a_status_decides_and_an_answer_that_is_no_http_fails() {
        for (answer, well) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 302 Found\r\n\r\n", true),
            ("HTTP/1.1 503 No\r\n\r\n", false),
            ("220 mail\r\n", false),
            ("", false),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = u32::from(listener.local_addr().unwrap().port());
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 512]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
            let found = http_get(&rules(false), &http(port)).await;
            assert_eq!(found.is_ok(), well, "{answer:?}: {found:?}");
            server.await.unwrap();
        }
    }
}
