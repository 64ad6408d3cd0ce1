//! The recorded session `testdata/errors-and-restart` replayed against our agent: bad requests, no
//! ztunnel, the agent killed and restarted, two ztunnels.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::agent::{Agent, uid};
use crate::support::net::{Asked, place};
use crate::support::ztunnel::golden_bytes;

fn golden_cases() -> Vec<Value> {
    let text = include_str!("../../testdata/errors-and-restart/cmdadd.jsonl");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What the agent must send on the first connection, as bytes.
fn golden_first_connection() -> Vec<Vec<u8>> {
    let text = include_str!("../../testdata/errors-and-restart/zds.jsonl");
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["conn"] == 1 && line["dir"] == "agent->ztunnel")
        .map(|line| golden_bytes(line["hex"].as_str().unwrap(), uid))
        .collect()
}

#[test]
fn the_recorded_session_goes_the_same_way() {
    let mut agent = Agent::start(&[]);
    let (one, nonet, two) = (place("one"), place("nonet"), place("two"));
    for name in ["one", "nonet", "two"] {
        agent.plain_pod(name);
    }
    agent.pod(
        "off",
        json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
        json!({}),
    );
    agent.pod("hostnet", json!({}), json!({ "hostNetwork": true }));

    let mut ztunnel = None;
    let mut heard = Vec::new();
    for golden in golden_cases() {
        let case = golden["case"].as_str().unwrap();
        if case == "pod two, two ztunnels connected" {
            break;
        }
        if case == "the same again, ztunnel connected" {
            ztunnel = Some(agent.ztunnel());
            heard = ztunnel.as_ref().unwrap().snapshot();
        }
        let body = golden["body"].to_string();
        let body = match &golden["body"] {
            Value::String(text) => text.clone(),
            _ => [("one", &one), ("nonet", &nonet)]
                .iter()
                .fold(body, |body, (name, netns)| {
                    body.replace(
                        &format!("/var/run/netns/{name}\""),
                        &format!("{}\"", netns.path().display()),
                    )
                }),
        };
        let (method, path) = golden["request"].as_str().unwrap().split_once(' ').unwrap();
        let ask = || agent.request(method, path, &body);
        let (mut status, mut text) = ask();
        // A busy machine may take longer than a second to tell the agent of the pods.
        let (known, end) = (
            case != "pod unknown to the API server",
            Instant::now() + PATIENCE,
        );
        while known && text.contains("no such pod of node") && Instant::now() < end {
            (status, text) = ask();
        }

        // DEVIATIONS.md: what does not belong into the mesh is no error.
        let not_ours = matches!(case, "pod that is not ambient" | "host network pod");
        let expected = if not_ours {
            200
        } else {
            golden["status"].as_u64().unwrap()
        };
        assert_eq!(
            u64::from(status),
            expected,
            "{case}: {text}\n{}",
            agent.log()
        );
        match case {
            "no ztunnel is connected" | "unknown path" => {
                assert_eq!(text, golden["response_body"].as_str().unwrap());
            }
            "pod unknown to the API server" => {
                assert!(text.starts_with("failed to get pod app/ghost: "), "{text}")
            }
            "network namespace path does not exist" => {
                assert!(text.contains("/var/run/netns/missing"), "{text}")
            }
            _ => assert_eq!(text.is_empty(), status == 200, "{case}: {text}"),
        }
        if let Some(annotations) = golden.get("pod_annotations_after") {
            let name = golden["body"]["PodName"].as_str().unwrap();
            let expected = annotations["ambient.istio.io/redirection"].as_str();
            assert_eq!(agent.redirection(name).as_deref(), expected, "{case}");
        }
        if golden.get("rules_in_pod_after").is_some() {
            assert_eq!(
                one.ruleset(),
                "",
                "DEVIATIONS.md: nothing is left half done"
            );
        }
    }

    let first = ztunnel.unwrap();
    heard.extend((0..3).map(|_| first.next()));
    let bytes: Vec<Vec<u8>> = heard.iter().map(|heard| heard.bytes.clone()).collect();
    assert_eq!(bytes, golden_first_connection());
    assert_eq!(first.so_far(), [""; 0]);

    // The agent is killed and started again.
    agent.kill();
    first.hung_up();
    agent.launch();
    let second = agent.ztunnel();
    let snapshot: BTreeSet<String> = second.snapshot().iter().map(|heard| heard.say()).collect();
    let expected = [
        format!("add {}", uid("one")),
        format!("add {}", uid("nonet")),
        "snapshot sent".into(),
    ];
    assert_eq!(
        snapshot,
        expected.into(),
        "DEVIATIONS.md: Add where Istio can only say Keep"
    );

    // A second ztunnel connects beside the first; Add goes to the newest, Del to both.
    let third = agent.ztunnel();
    assert_eq!(third.snapshot().len(), 3);
    assert_eq!(agent.cmdadd("two", &two.path(), &["10.30.0.6"]).0, 200);
    let added = third.next();
    assert_eq!(
        (added.say(), added.namespaces),
        (format!("add {}", uid("two")), vec![two.inode().unwrap()])
    );
    agent.pod(
        "two",
        json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
        json!({}),
    );
    assert_eq!(second.next().say(), format!("del {}", uid("two")));
    assert_eq!(third.next().say(), format!("del {}", uid("two")));
    agent.delete_pod("one");
    assert_eq!(second.next().say(), format!("del {}", uid("one")));
    assert_eq!(third.next().say(), format!("del {}", uid("one")));
}

#[test]
fn a_namespace_that_cannot_be_found_after_a_restart_is_kept_by_ztunnel() {
    let mut agent = Agent::start(&[]);
    let netns = place("lost");
    agent.plain_pod("lost");
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    assert_eq!(agent.cmdadd("lost", &netns.path(), &["10.30.0.1"]).0, 200);
    agent.kill();
    drop(netns);
    agent.launch();
    let said: Vec<String> = agent
        .ztunnel()
        .snapshot()
        .iter()
        .map(|heard| heard.say())
        .collect();
    assert_eq!(
        said,
        [format!("keep {}", uid("lost")), "snapshot sent".into()]
    );
}

#[test]
fn the_runtime_may_be_ahead_of_the_pods_object() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    // Ahead by less than a second: a busy machine may not keep to that each time.
    let mut answers = Vec::new();
    for round in 0..5 {
        let (name, netns) = (format!("early-{round}"), place("early"));
        let answer = std::thread::scope(|scope| {
            let asked = scope.spawn(|| agent.cmdadd_once(&name, &netns.path(), &["10.30.0.1"]));
            agent.plain_pod(&name);
            asked.join().unwrap()
        });
        if answer == (200, String::new()) {
            assert_eq!(agent.redirection(&name).as_deref(), Some("enabled"));
            return;
        }
        answers.push(answer);
    }
    panic!("{answers:?}\n{}", agent.log());
}

#[test]
fn the_nodes_own_namespace_is_never_touched() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("evil");
    let own = std::path::Path::new("/proc/self/ns/net");
    let (status, text) = agent.cmdadd("evil", own, &["10.30.0.1"]);
    assert_eq!(status, 500);
    assert!(text.contains("the node's own network namespace"), "{text}");
}

#[test]
fn only_root_is_heard() {
    let agent = Agent::start(&[]);
    std::fs::set_permissions(
        agent.dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let socket = agent.run_dir().join("pluginevent.sock");
    let become_user = |user: &str| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", user, "--clear-groups"]);
        command
    };
    let ask = |user: &str| {
        let output = become_user(user)
            .args(["curl", "-sS", "-X", "POST", "-o", "/dev/null"])
            .args(["--max-time", "60", "-w", "%{http_code}", "--unix-socket"])
            .arg(&socket)
            .arg("http://unix/cmddel")
            .output()
            .unwrap();
        (
            String::from_utf8(output.stdout).unwrap(),
            output.status.code(),
        )
    };
    assert_eq!(ask("0"), ("404".to_owned(), Some(0)));
    // Nobody may connect, so what follows is the agent's doing and not the file's mode.
    let mut may = become_user("65534");
    assert!(
        may.arg("test")
            .arg("-w")
            .arg(&socket)
            .status()
            .unwrap()
            .success()
    );
    let (status, code) = ask("65534");
    assert_eq!(status, "000");
    // curl's words for a peer that closes: at once, before an answer, while it still sends, by reset.
    assert!(
        matches!(code, Some(7 | 52 | 55 | 56)),
        "nobody is hung up on: {code:?}"
    );
}
