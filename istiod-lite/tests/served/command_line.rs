//! The program as people run it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Deadline, pod};

fn istiod(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_istiod-lite"));
    command.args(arguments).env_clear();
    command
}

fn output(arguments: &[&str]) -> Output {
    let child = istiod(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _in_time = Deadline::of(&child);
    child.wait_with_output().unwrap()
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn check_names_file_line_and_reason_and_fails() {
    let good = pod("alpha", "web", "web", "node-1", "10.0.0.1");
    let fine = directory(&[("good.yaml", &good)]);
    let checked = output(&["check", "--config-dir", text(fine.path())]);
    assert!(checked.status.success());
    assert_eq!(
        String::from_utf8(checked.stdout).unwrap(),
        "1 objects, 0 refused\n"
    );

    let bad = good.replace("podIP: 10.0.0.1", "podIP: [1]");
    let line = 1 + bad
        .lines()
        .position(|line| line.contains("podIP: [1]"))
        .unwrap();
    let broken = directory(&[
        ("good.yaml", &good.replace("web", "ok")),
        ("bad.yaml", &bad),
    ]);
    let checked = output(&["check", "--config-dir", text(broken.path())]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        said.contains(&format!("bad.yaml:{line}: Pod alpha/web: ")),
        "{said}"
    );
    assert!(said.ends_with("1 objects, 1 refused\n"), "{said}");
}

#[test]
fn a_directory_that_is_not_there_is_an_error_with_its_name() {
    for verb in [&["check"][..], &["run", "--listen-grpc", "127.0.0.1:0"]] {
        let state = tempfile::tempdir().unwrap();
        let mut arguments = verb.to_vec();
        arguments.extend(["--config-dir", "/no/such/place"]);
        if verb[0] == "run" {
            arguments.extend(["--state-dir", text(state.path())]);
        }
        let output = output(&arguments);
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("/no/such/place"), "{said}");
    }
}

#[test]
fn a_token_is_made_for_a_pod_that_is_there_and_for_its_account_only() {
    let config = directory(&[(
        "pod.yaml",
        &pod(
            "istio-system",
            "ztunnel-node1",
            "ztunnel",
            "node-1",
            "10.0.0.1",
        ),
    )]);
    let ask = |account: &str, pod: &str| {
        output(&[
            "token",
            "--config-dir",
            text(config.path()),
            "--service-account",
            account,
            "--pod",
            pod,
        ])
    };
    let token = ask("ztunnel", "ztunnel-node1");
    assert!(token.status.success(), "{token:?}");
    let token = String::from_utf8(token.stdout).unwrap();
    let tokens = istiod_lite::token::Tokens::open(&config.path().join(".istiod-lite")).unwrap();
    let claims = tokens.verify(token.trim()).unwrap();
    assert_eq!(claims.sub, "system:serviceaccount:istio-system:ztunnel");
    assert_eq!(claims.kubernetes.pod.unwrap().uid, "uid-ztunnel-node1");
    assert_eq!(claims.kubernetes.node.unwrap().name, "node-1");

    for (account, pod, why) in [
        ("ztunnel", "nobody", "has no Pod istio-system/nobody"),
        (
            "other",
            "ztunnel-node1",
            "runs as service account \"ztunnel\"",
        ),
    ] {
        let refused = ask(account, pod);
        assert!(!refused.status.success());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn it_serves_until_it_is_told_to_end() {
    let (config, state) = (directory(&[]), tempfile::tempdir().unwrap());
    let mut child = istiod(&[
        "run",
        "--config-dir",
        text(config.path()),
        "--state-dir",
        text(state.path()),
        "--listen-grpc",
        "127.0.0.1:0",
        "--listen-monitoring",
        "127.0.0.1:0",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let _in_time = Deadline::of(&child);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let serving = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("serving"));
    assert!(serving.is_some());
    assert!(state.path().join("root-cert.pem").exists());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("ended")), "{rest:?}");
}

#[test]
fn a_machine_of_a_group_is_called_by_group_and_address_where_nobody_names_it() {
    let directory = directory(&[]);
    let token = |more: &[&str]| {
        let words = ["vm", "token", "--config-dir", text(directory.path())];
        let who = ["--namespace", "shop", "--service-account", "db"];
        let made = output(&[&words[..], &who, more].concat());
        // For whom it is, beside the token.
        String::from_utf8(made.stderr).unwrap()
    };
    let group = ["--group", "db", "--address"];
    let of = |address| token(&[&group[..], &[address]].concat());
    assert_eq!(of("10.9.0.5"), "for shop/db-10.9.0.5, as db\n");
    assert_eq!(of("fd00::5,10.9.0.5"), "for shop/db-fd00--5, as db\n");
    let named = ["--group", "db", "--address", "10.9.0.5", "--name", "db-1"];
    assert_eq!(token(&named), "for shop/db-1, as db\n");
    assert!(
        token(&["--group", "db"]).starts_with("for shop/db-"),
        "and something of its own"
    );
    assert!(token(&["--ttl", "25h"]).contains("a day at most"));
}
