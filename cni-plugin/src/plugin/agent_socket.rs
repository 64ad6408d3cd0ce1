//! Speaks to the agent: one HTTP/1.1 request over a unix socket, by hand, because the plugin must
//! start and end within a few milliseconds and needs nothing more.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::failure::Failure;
use crate::cmdadd::{CmdAdd, POD_UID};

/// Asks the agent to enrol a pod and waits until it has.
pub(super) fn add(run_dir: &Path, event: &CmdAdd) -> Result<(), Failure> {
    let body = serde_json::to_vec(event)?;
    let answer = post(
        &run_dir.join("pluginevent.sock"),
        "/cmdadd",
        uid(event),
        body,
        ADD_DEADLINE,
    )?;
    if answer.status == 200 {
        return Ok(());
    }
    Err(Failure::NotEnrolled {
        status: answer.status,
        reason: answer.text,
    })
}

/// Hands log lines to the agent.
pub(super) fn log(run_dir: &Path, lines: Vec<u8>) -> Result<(), Failure> {
    post(
        &run_dir.join("log.sock"),
        "/log",
        String::new(),
        lines,
        LOG_DEADLINE,
    )
    .map(|_| ())
}

/// The line of the header with the pod's UID, if there is one that may stand in a header.
fn uid(event: &CmdAdd) -> String {
    let plain = |uid: &&String| {
        uid.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let uid = event.pod_uid.as_ref().filter(plain);
    uid.map_or_else(String::new, |uid| format!("{POD_UID}: {uid}\r\n"))
}

struct Answer {
    status: u16,
    text: String,
}

/// The deadline holds for everything together. Connecting to a unix socket with a full backlog
/// cannot be bounded from outside, so the exchange runs on a thread that is left behind.
fn post(
    path: &Path,
    target: &'static str,
    header: String,
    body: Vec<u8>,
    limit: Duration,
) -> Result<Answer, Failure> {
    let (done, answer) = mpsc::sync_channel(1);
    let socket = path.to_owned();
    std::thread::spawn(move || {
        let _ = done.send(exchange(&socket, target, &header, &body));
    });
    match answer.recv_timeout(limit) {
        Ok(Ok(bytes)) => parse(&bytes),
        Ok(Err(error)) => Err(Failure::AgentAway {
            path: path.to_owned(),
            error,
        }),
        Err(_) => Err(Failure::AgentSilent(PathBuf::from(path))),
    }
}

fn exchange(path: &Path, target: &str, header: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: unix\r\nUser-Agent: ambit-cni\r\nContent-Length: {}\r\n\
         Content-Type: application/json\r\n{header}Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Status and text of an HTTP/1.x response whose end is the end of the connection.
fn parse(bytes: &[u8]) -> Result<Answer, Failure> {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or(Failure::AgentGarbled("the head does not end"))?;
    let head = std::str::from_utf8(&bytes[..end])
        .map_err(|_| Failure::AgentGarbled("the head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .filter(|status| (100..600).contains(status))
        .ok_or(Failure::AgentGarbled("no status line"))?;
    let chunked = lines.any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("transfer-encoding")
                && value.trim().eq_ignore_ascii_case("chunked")
        })
    });
    let body = &bytes[end + 4..];
    let body = if chunked {
        dechunk(body)
    } else {
        body.to_vec()
    };
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    Ok(Answer { status, text })
}

/// As much of a chunked body as can be understood: it is only read out in an error message.
fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line_end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&rest[..line_end])
            .ok()
            .and_then(|size| usize::from_str_radix(size.split(';').next()?.trim(), 16).ok());
        let Some(size) = size.filter(|size| *size > 0) else {
            break;
        };
        let chunk = &rest[line_end + 2..];
        body.extend_from_slice(&chunk[..size.min(chunk.len())]);
        rest = chunk.get(size.saturating_add(2)..).unwrap_or_default();
    }
    body
}

/// Istio's: below the runtimes' own patience, above what one pod takes.
const ADD_DEADLINE: Duration = Duration::from_secs(5);
/// A log that is not taken at once is not worth a pod's start.
const LOG_DEADLINE: Duration = Duration::from_millis(300);
const ANSWER_LIMIT: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_of_common_servers_are_read() {
        let cases: [(&str, u16, &str); 4] = [
            (
                "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 0\r\n\r\n",
                200,
                "",
            ),
            (
                "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 22\r\n\r\nno ztunnel connection\n",
                500,
                "no ztunnel connection",
            ),
            (
                "HTTP/1.0 404\r\n\r\n404 page not found\n",
                404,
                "404 page not found",
            ),
            (
                "HTTP/1.1 500 x\r\ntransfer-encoding:  Chunked\r\n\r\n3\r\nno \r\n2;a=b\r\nzt\r\n0\r\n\r\n",
                500,
                "no zt",
            ),
        ];
        for (bytes, status, text) in cases {
            let answer = parse(bytes.as_bytes()).unwrap();
            assert_eq!(
                (answer.status, answer.text.as_str()),
                (status, text),
                "{bytes}"
            );
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [
            "",
            "hello",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 \r\n\r\n",
            "HTTP/1.1 999 x\r\n\r\n",
        ] {
            assert!(parse(bytes.as_bytes()).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_plugin_fall_over(bytes: Vec<u8>, chunked: bool) {
            let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
            if chunked {
                answer.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            }
            answer.extend_from_slice(b"\r\n");
            answer.extend_from_slice(&bytes);
            prop_assert!(parse(&answer).is_ok());
            let _ = parse(&bytes);
        }
    }
}
