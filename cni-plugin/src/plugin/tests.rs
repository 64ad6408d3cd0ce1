//! The plugin called as a runtime calls it, with an agent that is played: what it asks, what it answers.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// Who asks, which somebody must.
fn accepted(listener: &UnixListener) -> UnixStream {
    const PATIENCE: Duration = Duration::from_secs(60);
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "nobody asks the agent");
                #[allow(clippy::disallowed_methods)] // a thread of its own
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("the agent cannot be asked: {error}"),
        }
    }
}

/// Answers one request on `name` in `dir` and returns head and body of it.
fn agent(dir: &Path, name: &str, answer: &'static str) -> JoinHandle<(String, Vec<u8>)> {
    let listener = UnixListener::bind(dir.join(name)).unwrap();
    std::thread::spawn(move || {
        let mut stream = accepted(&listener);
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let head_end = got.windows(4).position(|w| w == b"\r\n\r\n");
            if let Some(end) = head_end {
                let head = String::from_utf8(got[..end].to_vec()).unwrap();
                let length: usize = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: "))
                    .map_or(0, |length| length.parse().unwrap());
                if got.len() == end + 4 + length {
                    stream.write_all(answer.as_bytes()).unwrap();
                    return (head, got[end + 4..].to_vec());
                }
            }
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the plugin hung up early");
            got.extend_from_slice(&buffer[..n]);
        }
    })
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const NO_ZTUNNEL: &str =
    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 22\r\n\r\nno ztunnel connection\n";

struct Ran {
    outcome: Result<(), Failure>,
    stdout: Option<Value>,
}

fn call(env: &[(&str, &str)], stdin: &str) -> Ran {
    let env: HashMap<_, _> = env.iter().copied().collect();
    let mut stdout = Vec::new();
    let outcome = run(
        |name| env.get(name).map(|value| (*value).to_owned()),
        stdin.as_bytes(),
        &mut stdout,
    );
    let stdout = (!stdout.is_empty()).then(|| serde_json::from_slice(&stdout).unwrap());
    Ran { outcome, stdout }
}

const POD: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=app;K8S_POD_NAME=web";

fn env<'a>(verb: &'a str, args: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/web"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", args),
    ]
}

fn conf(version: &str, run_dir: &Path) -> Value {
    json!({
        "cniVersion": version, "name": "podnet", "type": "istio-cni",
        "cni_agent_run_dir": run_dir, "exclude_namespaces": ["kube-system"],
        "pod_namespace": "istio-system",
        "prevResult": {
            "cniVersion": version,
            "interfaces": [{ "name": "eth0", "sandbox": "/var/run/netns/web" }],
            "ips": [{ "interface": 0, "address": "10.1.2.3/24", "gateway": "10.1.2.1" }],
        },
    })
}

#[test]
fn golden_add_asks_the_agent_and_prints_what_istio_prints() {
    let golden: Value =
        serde_json::from_str(include_str!("../../testdata/plugin-add-plain-v4.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let asked = agent(dir.path(), "pluginevent.sock", OK);
    let mut stdin = golden["stdin"].clone();
    stdin["cni_agent_run_dir"] = json!(dir.path());
    let env: Vec<(&str, &str)> = golden["env"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
        .collect();
    let ran = call(&env, &stdin.to_string());
    ran.outcome.unwrap();
    let printed: Value = serde_json::from_str(golden["stdout"].as_str().unwrap()).unwrap();
    assert_eq!(ran.stdout, Some(printed));

    let (head, body) = asked.join().unwrap();
    let expected = &golden["calls_to_agent"][0];
    assert!(
        head.starts_with(expected["request_line"].as_str().unwrap()),
        "{head}"
    );
    for header in [
        "Host: unix",
        "Content-Type: application/json",
        "Content-Length: 172",
        "ambit-pod-uid: 733b4a15-e21e-40a5-beea-7b14dd295de1",
    ] {
        assert!(head.contains(header), "{header} in {head}");
    }
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap(),
        expected["request_body"]
    );
}

#[test]
fn pods_of_no_concern_pass_without_a_question() {
    let dir = tempfile::tempdir().unwrap(); // no agent here
    let excluded = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns";
    let mut off = conf("1.0.0", dir.path());
    off["ambient_enabled"] = json!(false);
    let on = conf("1.0.0", dir.path());
    for (args, conf) in [
        ("", &on),
        ("IgnoreUnknown=1", &on),
        (excluded, &on),
        (POD, &off),
    ] {
        let ran = call(&env("ADD", args), &conf.to_string());
        ran.outcome.unwrap();
        let mut expected = conf["prevResult"].clone();
        expected["dns"] = json!({});
        assert_eq!(ran.stdout.unwrap(), expected, "{args}");
    }
}

#[test]
fn the_result_is_printed_in_the_version_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    for (version, family) in [
        ("0.3.1", Some("4")),
        ("0.4.0", Some("4")),
        ("1.0.0", None),
        ("1.1.0", None),
    ] {
        let ran = call(&env("ADD", ""), &conf(version, dir.path()).to_string());
        ran.outcome.unwrap();
        let result = ran.stdout.unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"].as_str(), family, "{version}");
    }
}

#[test]
fn a_pod_the_agent_refuses_does_not_start_and_the_reason_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let asked = agent(dir.path(), "pluginevent.sock", NO_ZTUNNEL);
    let logged = agent(dir.path(), "log.sock", OK);
    let ran = call(&env("ADD", POD), &conf("1.0.0", dir.path()).to_string());
    assert!(matches!(
        ran.outcome,
        Err(Failure::NotEnrolled { status: 500, .. })
    ));
    let error = ran.stdout.unwrap();
    assert_eq!(error["cniVersion"], "1.0.0");
    assert_eq!(error["code"], 100);
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .ends_with("no ztunnel connection")
    );
    asked.join().unwrap();
    let (head, body) = logged.join().unwrap();
    assert!(head.starts_with("POST /log HTTP/1.1"));
    let lines: Vec<String> = serde_json::from_slice(&body).unwrap();
    let line: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("app/web"));
}

#[test]
fn without_an_agent_no_pod_starts_but_the_agents_own() {
    let dir = tempfile::tempdir().unwrap();
    let conf = conf("1.1.0", dir.path()).to_string();
    let ran = call(&env("ADD", POD), &conf);
    assert!(matches!(ran.outcome, Err(Failure::AgentAway { .. })));
    let error = ran.stdout.unwrap();
    assert_eq!(error["code"], 11);
    assert!(error["msg"].as_str().unwrap().contains("pluginevent.sock"));
    let file = std::fs::read_to_string(dir.path().join("istio-cni.log")).unwrap();
    assert!(file.contains("app/web"), "{file}");

    for (namespace, name, starts) in [
        ("istio-system", "istio-cni-node-x7f2p", true),
        ("istio-system", "ztunnel-7gk2c", true),
        ("app", "istio-cni-node-x7f2p", false),
        ("app", "ztunnel-7gk2c", false),
        ("istio-system", "ztunnel-mine-7gk2c", false),
        ("istio-system", "istio-cni-node-", false),
        ("istio-system", "istiod-5f7c9-x7f2p", false),
    ] {
        let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        let outcome = call(&env("ADD", &args), &conf).outcome;
        assert_eq!(outcome.is_ok(), starts, "{args}");
    }
}

#[test]
fn called_alone_it_has_no_result_to_pass_on() {
    let dir = tempfile::tempdir().unwrap();
    let asked = agent(dir.path(), "pluginevent.sock", OK);
    let mut alone = conf("1.0.0", dir.path());
    alone.as_object_mut().unwrap().remove("prevResult");
    let ran = call(&env("ADD", POD), &alone.to_string());
    assert!(matches!(ran.outcome, Err(Failure::NotChained)));
    alone["ambit_alone"] = json!(true);
    let ran = call(&env("ADD", POD), &alone.to_string());
    ran.outcome.unwrap();
    assert_eq!(
        ran.stdout,
        Some(json!({ "cniVersion": "1.0.0", "dns": {} }))
    );
    let (_, body) = asked.join().unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["IPs"], json!([]));
}

#[test]
fn an_agent_that_refuses_its_own_pod_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let asked = agent(dir.path(), "pluginevent.sock", NO_ZTUNNEL);
    let own = "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istio-cni-node-x7f2p";
    assert!(
        call(&env("ADD", own), &conf("1.1.0", dir.path()).to_string())
            .outcome
            .is_err()
    );
    asked.join().unwrap();
}

#[test]
fn the_other_verbs_are_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let conf = conf("1.1.0", dir.path()).to_string();
    for verb in ["DEL", "CHECK", "STATUS", "GC"] {
        let ran = call(&env(verb, POD), &conf);
        ran.outcome.unwrap();
        assert_eq!(ran.stdout, None, "{verb}");
    }
    // A runtime that cleans up after a crash has no namespace left to name.
    let without_netns: Vec<_> = env("DEL", POD)
        .into_iter()
        .filter(|(name, _)| *name != "CNI_NETNS")
        .collect();
    call(&without_netns, &conf).outcome.unwrap();
}

#[test]
fn version_lists_what_istio_lists() {
    let ran = call(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"1.0.0"}"#);
    ran.outcome.unwrap();
    assert_eq!(
        ran.stdout.unwrap(),
        json!({
            "cniVersion": "1.1.0",
            "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        })
    );
}

#[test]
fn bad_calls_get_the_codes_of_the_specification() {
    let dir = tempfile::tempdir().unwrap();
    let good = conf("1.1.0", dir.path());
    let with = |key: &str, value: Value| {
        let mut conf = good.clone();
        conf[key] = value;
        conf.to_string()
    };
    let without = |name: &'static str| -> Vec<_> {
        env("ADD", POD)
            .into_iter()
            .filter(|(key, _)| *key != name)
            .collect()
    };
    let unmasked = json!({ "ips": [{ "address": "10.1.2.3" }] });
    let cases = [
        (env("ADD", POD), with("cniVersion", json!("2.0.0")), 1),
        (without("CNI_COMMAND"), good.to_string(), 4),
        (without("CNI_CONTAINERID"), good.to_string(), 4),
        (without("CNI_NETNS"), good.to_string(), 4),
        (without("CNI_IFNAME"), good.to_string(), 4),
        (without("CNI_PATH"), good.to_string(), 4),
        (env("JUMP", POD), good.to_string(), 4),
        (env("ADD", POD), "hello".into(), 6),
        (env("ADD", POD), String::new(), 6),
        (env("ADD", POD), with("prevResult", Value::Null), 7),
        (env("ADD", POD), with("prevResult", unmasked), 7),
    ];
    for (env, stdin, code) in cases {
        let ran = call(&env, &stdin);
        assert!(ran.outcome.is_err(), "{stdin}");
        let error = ran.stdout.unwrap();
        assert_eq!(error["code"], code, "{error}");
        assert!(SUPPORTED.contains(&error["cniVersion"].as_str().unwrap()) || code == 1);
        assert!(!error["msg"].as_str().unwrap().is_empty());
    }
}

#[test]
fn addresses_of_the_oldest_results_are_found_too() {
    let previous: PrevResult = serde_json::from_value(json!({
        "ip4": { "ip": "10.1.2.3/24", "gateway": "10.1.2.1" }, "ip6": { "ip": "fd00::3/64" },
    }))
    .unwrap();
    let found: Vec<_> = previous
        .addresses()
        .unwrap()
        .iter()
        .map(|a| a.address.ip.to_string())
        .collect();
    assert_eq!(found, ["10.1.2.3", "fd00::3"]);
}
