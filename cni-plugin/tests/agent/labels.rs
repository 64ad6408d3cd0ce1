//! Running pods come and go by label, through restarts of the agent, without being restarted.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use lab::Place;
use serde_json::json;

use crate::support::agent::{Agent, uid};
use crate::support::eventually;
use crate::support::net::{Asked, place};

const NONE: &str = "none";

fn mode(value: &str) -> serde_json::Value {
    json!({ "labels": { "istio.io/dataplane-mode": value } })
}

fn is_captured(netns: &Place) -> bool {
    netns.ruleset().contains("redirect to :15006")
}

fn restored(netns: &Place) -> bool {
    netns.ruleset().is_empty()
        && !netns.says(["ip", "rule"]).contains("0x111")
        && !netns.says(["ip", "-6", "rule"]).contains("0x111")
        && netns
            .says(["ip", "route", "show", "table", "all"])
            .lines()
            .all(|line| !line.contains("table 100"))
}

/// Pretends below `root` that a process of pod `uid` runs in `netns`.
fn process(root: &Path, pid: &str, start: u32, netns: &Place, uid: &str) {
    let process = root.join("proc").join(pid);
    fs::create_dir_all(process.join("ns")).unwrap();
    let slice = format!("kubepods-pod{}.slice", uid.replace('-', "_"));
    fs::write(
        process.join("stat"),
        format!("{pid} (pause) S 1 2 3 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 {start} 0"),
    )
    .unwrap();
    symlink(netns.path(), process.join("ns/net")).unwrap();
    // Last: by this the process is found.
    fs::write(
        process.join("cgroup"),
        format!("0::/kubepods.slice/{slice}/x"),
    )
    .unwrap();
}

#[test]
fn a_running_pod_follows_its_label_and_its_namespaces() {
    let agent = Agent::start(&[]);
    let netns = place("pod");
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.pod("pod", mode(NONE), json!({}));
    assert_eq!(
        agent
            .cmdadd("pod", &netns.path(), &["10.30.0.1", "fd00:30::1"])
            .0,
        200
    );
    assert!(restored(&netns));

    for _ in 0..2 {
        agent.plain_pod("pod");
        agent.await_redirection("pod", Some("enabled"));
        assert!(is_captured(&netns));
        let added = ztunnel.next();
        assert_eq!(
            (added.say(), added.namespaces),
            (format!("add {}", uid("pod")), vec![netns.inode().unwrap()])
        );
        agent.pod("pod", mode(NONE), json!({}));
        assert_eq!(ztunnel.next().say(), format!("del {}", uid("pod")));
        eventually("the pod is restored", || restored(&netns));
        assert_eq!(agent.redirection("pod"), None);
    }

    agent.plain_pod("pod");
    agent.await_redirection("pod", Some("enabled"));
    agent.namespace("app", json!({}));
    agent.await_redirection("pod", None);
    eventually("the pod is restored", || restored(&netns));
    agent.namespace("app", json!({ "istio.io/dataplane-mode": "ambient" }));
    agent.await_redirection("pod", Some("enabled"));
    assert!(is_captured(&netns));
}

#[test]
fn a_label_that_comes_back_during_the_pause_interrupts_the_release() {
    let agent = Agent::start(&["--release-pause", "3600"]);
    let netns = place("pod");
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("pod");
    assert_eq!(agent.cmdadd("pod", &netns.path(), &["10.30.0.1"]).0, 200);
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("pod")));
    agent.pod("pod", mode(NONE), json!({}));
    agent.await_redirection("pod", None);
    assert!(
        is_captured(&netns),
        "peers that have not heard yet are still served"
    );
    agent.plain_pod("pod");
    agent.await_redirection("pod", Some("enabled"));
    assert!(is_captured(&netns));
    assert_eq!(ztunnel.so_far(), [""; 0], "ztunnel never had to let go");
}

#[test]
fn changed_settings_reach_the_rules_of_a_running_pod() {
    let agent = Agent::start(&[]);
    let netns = place("pod");
    let _ztunnel = agent.ztunnel();
    agent.plain_pod("pod");
    eventually("ztunnel is there", || {
        agent.cmdadd("pod", &netns.path(), &["10.30.0.1"]).0 == 200
    });
    assert!(netns.ruleset().contains("15053"));
    agent.pod(
        "pod",
        json!({ "annotations": { "ambient.istio.io/dns-capture": "false" } }),
        json!({}),
    );
    eventually("DNS is no longer captured", || {
        !netns.ruleset().contains("15053")
    });
    assert!(is_captured(&netns));
    agent.pod(
        "pod",
        json!({ "annotations": { "ambient.istio.io/bypass-inbound-capture": "true" } }),
        json!({}),
    );
    eventually("inbound is no longer captured", || !is_captured(&netns));
}

#[test]
fn rules_that_someone_removed_are_back_after_a_restart() {
    let mut agent = Agent::start(&[]);
    let netns = place("pod");
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("pod");
    assert_eq!(agent.cmdadd("pod", &netns.path(), &["10.30.0.1"]).0, 200);
    agent.kill();
    netns.nft("flush ruleset").unwrap();
    agent.launch();
    eventually("the rules are back", || is_captured(&netns));
    let next = agent.ztunnel();
    assert_eq!(next.snapshot()[0].namespaces, [netns.inode().unwrap()]);
    assert_eq!(agent.redirection("pod").as_deref(), Some("enabled"));
}

#[test]
fn what_happened_while_the_agent_was_away_is_made_up_for() {
    let mut agent = Agent::start(&[]);
    let pods = ["stays", "leaves", "dies", "joins"].map(|name| (name, place(name)));
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    for (name, netns) in &pods {
        agent.pod(
            name,
            mode(if *name == "joins" { NONE } else { "ambient" }),
            json!({}),
        );
        assert_eq!(agent.cmdadd(name, &netns.path(), &["10.30.0.1"]).0, 200);
    }
    agent.kill();
    drop(ztunnel);
    agent.pod("leaves", mode(NONE), json!({}));
    agent.pod("joins", mode("ambient"), json!({}));
    agent.delete_pod("dies");
    agent.launch();
    let next = agent.ztunnel();
    let said: Vec<String> = next.snapshot().iter().map(|heard| heard.say()).collect();
    assert!(said.contains(&format!("add {}", uid("stays"))), "{said:?}");
    assert!(!said.contains(&format!("add {}", uid("dies"))), "{said:?}");
    agent.await_redirection("joins", Some("enabled"));
    agent.await_redirection("leaves", None);
    let [(_, stays), (_, leaves), _, (_, joins)] = &pods;
    eventually("the pod that left is restored", || restored(leaves));
    assert!(is_captured(stays));
    assert!(is_captured(joins));
    let state = agent.run_dir().join("state");
    eventually("the dead pod is forgotten", || {
        !state.join(format!("{}.json", uid("dies"))).exists()
    });
    assert!(!agent.config().join(".status/Pod/app/dies.yaml").exists());
}

#[test]
fn a_pod_the_runtime_never_named_is_found_by_its_processes() {
    let netns = place("pod");
    let root = tempfile::tempdir().unwrap();
    let other = place("sidecar-of-another");
    for (pid, start, target, uid) in [
        ("7", 900, &netns, uid("found")),
        ("8", 500, &netns, uid("found")),
        ("9", 100, &other, uid("another")),
    ] {
        process(root.path(), pid, start, target, &uid);
    }
    let agent = Agent::start(&["--host-root", root.path().to_str().unwrap()]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("found");
    agent.await_redirection("found", Some("enabled"));
    assert!(is_captured(&netns));
    assert_eq!(ztunnel.next().namespaces, [netns.inode().unwrap()]);
    assert_eq!(other.ruleset(), "");
}

#[test]
fn a_pod_that_brings_its_own_proxy_is_left_alone_also_by_an_agent_that_starts_beside_it() {
    let (netns, root) = (place("pod"), tempfile::tempdir().unwrap());
    netns.says([
        env!("CARGO_BIN_EXE_ambit-cni-agent"),
        "capture",
        "up",
        "--exempt-inbound-ports=15021",
    ]);
    let own = netns.ruleset();
    process(root.path(), "7", 900, &netns, &uid("pod"));
    let mut agent = Agent::start(&["--host-root", root.path().to_str().unwrap()]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    symlink(netns.path(), root.path().join("pod")).unwrap();
    let annotations =
        json!({ "sidecar.istio.io/status": "{}", "ambient.istio.io/redirection": "enabled" });
    agent.pod("pod", json!({ "annotations": annotations }), json!({}));
    assert_eq!(
        agent.cmdadd("pod", Path::new("/pod"), &["10.30.0.1"]).0,
        200
    );
    // Once with and once without a memory of it; the pod beside it shows that the agent has looked around.
    for (neighbour, forgetful) in [("one", false), ("two", true)] {
        agent.kill();
        if forgetful {
            fs::remove_dir_all(agent.run_dir().join("state")).unwrap();
        }
        agent.launch();
        let next = agent.ztunnel();
        let known: Vec<String> = next.snapshot().iter().map(|heard| heard.say()).collect();
        assert!(
            known.iter().all(|it| !it.contains(&uid("pod"))),
            "{known:?}"
        );
        let beside = place(neighbour);
        symlink(beside.path(), root.path().join(neighbour)).unwrap();
        agent.plain_pod(neighbour);
        assert_eq!(
            agent
                .cmdadd(neighbour, &Path::new("/").join(neighbour), &["10.30.0.2"])
                .0,
            200
        );
        assert_eq!(next.next().say(), format!("add {}", uid(neighbour)));
        assert_eq!(
            counted_out(&netns.ruleset()),
            counted_out(&own),
            "its rules are its own"
        );
        assert_eq!(agent.redirection("pod").as_deref(), Some("enabled"));
        agent.delete_pod(neighbour);
    }
}

/// Rules without what their counters say.
fn counted_out(ruleset: &str) -> Vec<&str> {
    let words = ruleset.split_whitespace();
    words.filter(|word| word.parse::<u64>().is_err()).collect()
}

#[test]
fn a_living_pod_that_cannot_be_found_keeps_its_listeners_as_long_as_its_rules() {
    let (netns, root) = (place("pod"), tempfile::tempdir().unwrap());
    let path = root.path().join("ns");
    symlink(netns.path(), &path).unwrap();
    let mut agent = Agent::start(&["--host-root", root.path().to_str().unwrap()]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("pod");
    assert_eq!(agent.cmdadd("pod", Path::new("/ns"), &["10.30.0.1"]).0, 200);
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("pod")));

    fs::remove_file(&path).unwrap();
    let still_in = |agent: &Agent| {
        assert!(is_captured(&netns));
        assert_eq!(agent.redirection("pod").as_deref(), Some("enabled"));
    };
    agent.pod("pod", mode(NONE), json!({}));
    let tries = |agent: &Agent| agent.log().matches("release failed").count();
    eventually("it was tried twice", || tries(&agent) >= 2);
    assert_eq!(ztunnel.so_far(), [""; 0], "ztunnel must not let go");
    still_in(&agent);

    // The same for an agent that starts anew, even when it has lost its memory.
    for memory in [true, false] {
        agent.kill();
        if !memory {
            fs::remove_dir_all(agent.run_dir().join("state")).unwrap();
        }
        let before = tries(&agent);
        agent.launch();
        let next = agent.ztunnel();
        assert_eq!(next.snapshot()[0].say(), format!("keep {}", uid("pod")));
        eventually("it was tried again", || tries(&agent) > before);
        assert_eq!(next.so_far(), [""; 0], "ztunnel must not let go");
        still_in(&agent);
    }

    let last = agent.ztunnel();
    last.snapshot();
    process(root.path(), "7", 900, &netns, &uid("pod"));
    assert_eq!(last.next().say(), format!("del {}", uid("pod")));
    eventually("the pod is restored", || restored(&netns));
    assert_eq!(agent.redirection("pod"), None);
}

#[test]
fn a_new_sandbox_of_the_same_pod_replaces_the_old_one() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("pod");
    let old = place("old");
    assert_eq!(agent.cmdadd("pod", &old.path(), &["10.30.0.1"]).0, 200);
    drop(old);
    let new = place("new");
    assert_eq!(agent.cmdadd("pod", &new.path(), &["10.30.0.2"]).0, 200);
    assert!(is_captured(&new));
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("pod")));
    assert_eq!(ztunnel.next().namespaces, [new.inode().unwrap()]);
}

#[test]
fn rules_that_are_to_stand_are_written_in_a_sandbox_that_has_none() {
    let mut agent = Agent::start(&["--reconcile-rules", "false"]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("pod");
    let old = place("old");
    assert_eq!(agent.cmdadd("pod", &old.path(), &["10.30.0.1"]).0, 200);
    // As after a boot of the node: its annotation says that it is enrolled, and its sandbox is gone.
    agent.kill();
    drop((ztunnel, old));
    agent.launch();
    let next = agent.ztunnel();
    next.snapshot();
    let new = place("new");
    assert_eq!(agent.cmdadd("pod", &new.path(), &["10.30.0.2"]).0, 200);
    assert!(is_captured(&new), "{}", agent.log());
}

#[test]
fn a_successor_of_the_same_name_is_another_pod() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("web-0");
    let first = place("first");
    assert_eq!(agent.cmdadd("web-0", &first.path(), &["10.30.0.1"]).0, 200);
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("web-0")));

    agent.pod("web-0", json!({ "uid": uid("successor") }), json!({}));
    assert_eq!(ztunnel.next().say(), format!("del {}", uid("web-0")));
    let second = place("second");
    assert_eq!(agent.cmdadd("web-0", &second.path(), &["10.30.0.1"]).0, 200);
    let added = ztunnel.next();
    assert_eq!(
        (added.say(), added.namespaces),
        (
            format!("add {}", uid("successor")),
            vec![second.inode().unwrap()]
        )
    );
    assert_eq!(agent.redirection("web-0").as_deref(), Some("enabled"));
}

#[test]
fn an_ended_pod_is_let_go() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    agent.plain_pod("job");
    let netns = place("job");
    assert_eq!(agent.cmdadd("job", &netns.path(), &["10.30.0.1"]).0, 200);
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("job")));
    drop(netns);
    let file = agent.config().join("pod-job.json");
    let ended = fs::read_to_string(&file)
        .unwrap()
        .replace("Running", "Succeeded");
    fs::write(file, ended).unwrap();
    assert_eq!(ztunnel.next().say(), format!("del {}", uid("job")));
    agent.await_redirection("job", None);
}

#[test]
fn the_namespace_of_an_ended_pod_is_not_kept_for_as_long_as_its_object() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    for (name, wanted) in [("job", "ambient"), ("stranger", NONE)] {
        agent.pod(name, mode(wanted), json!({}));
        let netns = place(name);
        let held = fs::metadata(netns.path()).unwrap();
        let held = (held.dev(), held.ino());
        assert_eq!(agent.cmdadd(name, &netns.path(), &["10.30.0.1"]).0, 200);
        assert!(
            agent.has_open(held),
            "a pod that runs can still be released"
        );
        drop(netns);
        agent.pod_ends(name);
        eventually(&format!("nobody has {name}'s namespace open"), || {
            !agent.has_open(held)
        });
    }
}
