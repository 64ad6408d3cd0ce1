//! An API server that cannot be used when the program starts: it says in one line what is wrong and what to look at, is not
//! ready, and does not end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::support::{Deadline, PATIENCE};

/// The program, ended with the test.
struct Program {
    child: Child,
    monitoring: (Ipv4Addr, u16),
    said: Vec<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Program {
    /// Runs it before this API server until it says a line like that.
    fn until(api_server: &str, test: u8, like: impl Fn(&str) -> bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{api_server}'}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        );
        std::fs::write(&kubeconfig, text).unwrap();
        // An address that no other process has: the port need not be guessed.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let monitoring = (Ipv4Addr::new(127, high, low, test), 15014);
        let mut child = Command::new(env!("CARGO_BIN_EXE_istiod-lite"))
            .args(["run", "--kubeconfig", kubeconfig.to_str().unwrap()])
            .args([
                "--listen-grpc",
                "127.0.0.1:0",
                "--listen-webhook",
                "127.0.0.1:0",
            ])
            .arg("--listen-monitoring")
            .arg(format!("{}:{}", monitoring.0, monitoring.1))
            .args(["--log-format", "plain"])
            .env_clear()
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _in_time = Deadline::of(&child);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut program = Self {
            child,
            monitoring,
            said: Vec::new(),
        };
        for line in lines {
            let line = line.unwrap();
            let found = like(&line);
            program.said.push(line);
            if found {
                return program;
            }
        }
        panic!("it ended, and said: {:#?}", program.said);
    }

    /// What `/ready` answers.
    fn ready(&self) -> String {
        let mut stream = TcpStream::connect(self.monitoring).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /ready HTTP/1.1\r\nHost: istiod\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

#[test]
fn an_api_server_that_cannot_be_reached_is_one_line_with_what_to_look_at() {
    // Nobody listens on port 1.
    let program = Program::until("http://127.0.0.1:1", 1, |line| {
        line.contains("API server unreachable: ")
    });
    let line = program.said.last().unwrap();
    assert!(
        line.contains("look at its address in the kubeconfig"),
        "{line}"
    );
    let ready = program.ready();
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("API server unreachable"), "{ready}");
}

/// Refuses everything, as an API server does whose rules grant nothing.
fn forbidding() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            std::thread::spawn(move || refuse(stream));
        }
    });
    format!("http://{address}")
}

fn refuse(mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    // The end of the head; these requests have no body.
    while lines
        .next()
        .and_then(Result::ok)
        .is_some_and(|it| !it.is_empty())
    {}
    let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"forbidden: User \"x\"","reason":"Forbidden","code":403}"#;
    let head = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Who has gone needs no answer.
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

#[test]
fn a_right_that_is_missing_is_one_line_with_verb_and_resource_to_grant() {
    let program = Program::until(&forbidding(), 2, |line| line.contains("no right to "));
    let line = program.said.last().unwrap();
    assert!(line.contains("forbidden: User \"x\""), "{line}");
    assert!(line.contains("; grant verb"), "{line}");
    assert!(line.contains("to our service account"), "{line}");
    let ready = program.ready();
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("no right to "), "{ready}");
}
