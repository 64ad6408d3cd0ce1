//! ztunnels that are absent, slow, broken or many, and what the agent makes of it.

use std::time::Duration;

use api::zds::workload_request::Payload;
use serde_json::json;

use crate::support::agent::{Agent, uid};
use crate::support::net::{Asked, place};
use crate::support::ztunnel::{Answer, LATER, Ztunnel};
use crate::support::{PATIENCE, eventually, output};

#[test]
fn a_pod_that_waited_for_a_ztunnel_is_enrolled_when_one_connects() {
    let agent = Agent::start(&[]);
    let netns = place("waits");
    agent.plain_pod("waits");
    assert_eq!(
        agent.cmdadd("waits", &netns.path(), &["10.30.0.1"]),
        (500, "no ztunnel connection\n".into())
    );
    assert_eq!(agent.redirection("waits").as_deref(), Some("pending"));
    assert_eq!(netns.ruleset(), "");
    assert!(!netns.says(["ip", "rule"]).contains("0x111"));

    let ztunnel = agent.ztunnel();
    assert_eq!(ztunnel.snapshot()[0].say(), format!("add {}", uid("waits")));
    agent.await_redirection("waits", Some("enabled"));
    assert!(netns.ruleset().contains("redirect to :15006"));
}

#[test]
fn rules_come_only_after_ztunnel_has_its_listeners() {
    let agent = Agent::start(&[]);
    let netns = place("order");
    agent.plain_pod("order");
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let (inside, config) = (netns.clone(), agent.config());
    let (told, seen) = std::sync::mpsc::channel();
    ztunnel.answering(move |_| {
        told.send((
            inside.says(["nft", "list", "ruleset"]),
            config.join(".status/Pod/app/order.yaml").exists(),
        ))
        .unwrap();
        Answer::Ack
    });
    assert_eq!(agent.cmdadd("order", &netns.path(), &["10.30.0.1"]).0, 200);
    assert_eq!(
        seen.recv_timeout(PATIENCE).unwrap(),
        (String::new(), false),
        "no rule, no annotation yet"
    );
    assert!(!netns.ruleset().is_empty());
}

#[test]
fn a_pod_ztunnel_refuses_is_left_as_it_was_and_tried_again() {
    let agent = Agent::start(&[]);
    let netns = place("refused");
    agent.plain_pod("refused");
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    ztunnel.answering(|heard| match heard.payload {
        Payload::Add(_) => Answer::Refuse("failure to start proxy : bind"),
        _ => Answer::Ack,
    });
    let (status, text) = agent.cmdadd("refused", &netns.path(), &["10.30.0.1"]);
    assert_eq!(
        (status, text.as_str()),
        (
            500,
            "ztunnel refused the pod: failure to start proxy : bind\n"
        )
    );
    assert_eq!(agent.redirection("refused").as_deref(), Some("pending"));
    assert_eq!(netns.ruleset(), "");
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("refused")));
    assert_eq!(
        ztunnel.next().say(),
        format!("del {}", uid("refused")),
        "it must not go on trying by itself"
    );

    ztunnel.answering(|_| Answer::Ack);
    agent.await_redirection("refused", Some("enabled"));
}

#[test]
fn a_ztunnel_that_misses_a_deadline_is_disconnected_and_the_next_one_is_in_step() {
    let agent = Agent::start(&[]);
    let netns = place("late");
    agent.plain_pod("late");
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    ztunnel.answering(|_| Answer::Silence);
    let (status, text) = agent.cmdadd("late", &netns.path(), &["10.30.0.1"]);
    assert_eq!(status, 500);
    assert!(text.contains("did not answer in time"), "{text}");
    ztunnel.hung_up();

    let next = agent.ztunnel();
    assert_eq!(next.snapshot().len(), 2);
    agent.await_redirection("late", Some("enabled"));
}

#[test]
fn who_breaks_the_protocol_is_disconnected_and_nobody_else() {
    let agent = Agent::start(&[]);
    let socket = agent.ztunnel_socket();
    let good = agent.ztunnel();
    good.snapshot();
    let pause = || crate::support::pause(Duration::from_millis(1100)); // five connections a second
    Ztunnel::saying(&socket, &[0x08, 0x02]).hung_up(); // another version
    Ztunnel::saying(&socket, &[0xff; 3]).hung_up();
    Ztunnel::saying(&socket, &[0x08; 1500]).hung_up(); // too long
    pause();
    let unasked = agent.ztunnel();
    unasked.snapshot();
    unasked.speak(&[0x0a, 0x00]);
    unasked.hung_up();
    let garbled = agent.ztunnel();
    garbled.snapshot();
    garbled.answering(|_| Answer::Garbage);
    let netns = place("pod");
    agent.plain_pod("pod");
    assert_eq!(agent.cmdadd("pod", &netns.path(), &["10.30.0.1"]).0, 500);
    garbled.hung_up();

    // The first is the newest that is left, and was never disturbed.
    agent.await_redirection("pod", Some("enabled"));
    let said = [good.next().say(), good.next().say()];
    let uid = uid("pod");
    assert_eq!(said, [format!("del {uid}"), format!("add {uid}")]);
}

#[test]
fn what_only_a_ztunnel_was_told_that_is_gone_is_told_to_the_one_before_it() {
    let agent = Agent::start(&[]);
    let old = agent.ztunnel();
    old.snapshot();
    let new = agent.ztunnel();
    new.snapshot();
    let netns = place("pod");
    agent.plain_pod("pod");
    assert_eq!(agent.cmdadd("pod", &netns.path(), &["10.30.0.1"]).0, 200);
    let add = format!("add {}", uid("pod"));
    assert_eq!(new.next().say(), add);
    assert_eq!(old.so_far(), [""; 0], "only the newest is told");

    // The new version fails, or is taken back: the old one serves on.
    drop(new);
    let told = old.next();
    assert_eq!(
        (told.say(), told.namespaces),
        (add, vec![netns.inode().unwrap()])
    );
    assert_eq!(agent.redirection("pod").as_deref(), Some("enabled"));
    assert!(netns.ruleset().contains("redirect to :15006"));
}

#[test]
fn what_a_later_ztunnel_says_beside_what_is_known_is_passed_over() {
    let agent = Agent::start(&[]);
    let hello = [&[0x08, 0x01][..], LATER].concat();
    let ztunnel = Ztunnel::saying(&agent.ztunnel_socket(), &hello);
    ztunnel.snapshot();
    ztunnel.answering(|_| Answer::LaterAck);
    let netns = place("later");
    agent.plain_pod("later");
    assert_eq!(agent.cmdadd("later", &netns.path(), &["10.30.0.1"]).0, 200);
    agent.await_redirection("later", Some("enabled"));
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("later")));
}

#[test]
fn a_ztunnel_that_says_nothing_is_disconnected() {
    let agent = Agent::start(&[]);
    Ztunnel::saying(&agent.ztunnel_socket(), &[]).hung_up();
    agent.await_log("did not answer in time");
}

#[test]
fn one_pod_a_new_ztunnel_refuses_does_not_keep_the_others_from_it() {
    let mut agent = Agent::start(&[]);
    let pods = [place("a"), place("b"), place("c")];
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    for (name, netns) in ["a", "b", "c"].iter().zip(&pods) {
        agent.plain_pod(name);
        assert_eq!(agent.cmdadd(name, &netns.path(), &["10.30.0.1"]).0, 200);
    }
    drop(ztunnel);
    let next = Ztunnel::saying(&agent.ztunnel_socket(), &[]);
    next.answering(|heard| match &heard.payload {
        Payload::Add(add) if add.workload_info.as_ref().unwrap().name == "b" => {
            Answer::Refuse("no")
        }
        _ => Answer::Ack,
    });
    next.speak(&[0x08, 0x01]);
    assert_eq!(next.snapshot().len(), 4, "all three and the end");
    assert!(agent.is_running());
    for name in ["a", "b", "c"] {
        assert_eq!(
            agent.redirection(name).as_deref(),
            Some("enabled"),
            "what was enrolled stays"
        );
    }
}

#[test]
fn one_pod_that_hangs_does_not_stall_another() {
    let dir = tempfile::tempdir().unwrap();
    let nft = dir.path().join("nft");
    // In the bad pod, nft hangs.
    let script = "#!/bin/sh\n[ -e /sys/class/net/bad0 ] || ip link show bad0 >/dev/null 2>&1 && exec sleep 60\nexec nft \"$@\"\n";
    program(&nft, script);
    let agent = Agent::start(&["--nft", nft.to_str().unwrap()]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    // On a machine that stands still for five seconds the good one is late as well; not each time.
    let stalled = (0..3).all(|round| {
        let names = ["bad", "good"].map(|name| format!("{name}-{round}"));
        let (bad, good) = (place("bad"), place("good"));
        bad.ip("link add bad0 type veth peer name bad1\n").unwrap();
        names.iter().for_each(|name| agent.plain_pod(name));
        let late = std::thread::scope(|scope| {
            let stuck = scope.spawn(|| agent.cmdadd(&names[0], &bad.path(), &["10.30.0.1"]));
            eventually("the bad pod is being worked on", || {
                ztunnel
                    .so_far()
                    .contains(&format!("add {}", uid(&names[0])))
            });
            let enrolled = agent.cmdadd(&names[1], &good.path(), &["10.30.0.2"]);
            assert_eq!(enrolled.0, 200, "{}", enrolled.1);
            let late = stuck.is_finished();
            let (status, text) = stuck.join().unwrap();
            assert_eq!(
                (status, text.as_str()),
                (500, "nft did not end within 5 s\n")
            );
            late
        });
        eventually("ztunnel lets the bad pod go", || {
            ztunnel
                .so_far()
                .contains(&format!("del {}", uid(&names[0])))
        });
        late
    });
    assert!(!stalled, "the good one waits for the bad one");
}

/// A script that can be run. This process has it never open: a child that another test is just starting would hold it open
/// too, and what is open to be written cannot be run.
fn program(path: &std::path::Path, script: &str) {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\""]);
    assert!(output(shell.arg(path).arg(script)).status.success());
}

#[test]
fn rules_the_kernel_refuses_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let nft = dir.path().join("nft");
    // Refuses whatever redirects, takes the rest.
    let script = "#!/bin/sh\ns=$(cat)\ncase \"$s\" in *redirect*) echo 'Error: no' >&2; exit 1;; esac\necho \"$s\" | exec nft \"$@\"\n";
    program(&nft, script);
    let agent = Agent::start(&["--nft", nft.to_str().unwrap()]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let netns = place("pod");
    agent.plain_pod("pod");
    let (status, text) = agent.cmdadd("pod", &netns.path(), &["10.30.0.1"]);
    assert_eq!(
        (status, text.as_str()),
        (500, "nft refused the rules: Error: no\n")
    );
    assert_eq!(ztunnel.next().say(), format!("add {}", uid("pod")));
    assert_eq!(ztunnel.next().say(), format!("del {}", uid("pod")));
    assert_eq!(netns.ruleset(), "");
    assert!(!netns.says(["ip", "rule"]).contains("0x111"));
    assert_eq!(agent.redirection("pod").as_deref(), Some("pending"));
}

#[test]
fn an_annotation_that_names_no_interface_is_refused_with_its_name() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let netns = place("pod");
    agent.pod(
        "pod",
        json!({ "annotations": { "istio.io/reroute-virtual-interfaces": "eth0\"; drop" } }),
        json!({}),
    );
    let (status, text) = agent.cmdadd("pod", &netns.path(), &["10.30.0.1"]);
    assert_eq!(status, 500);
    assert!(
        text.contains("istio.io/reroute-virtual-interfaces"),
        "{text}"
    );
    assert_eq!(netns.ruleset(), "");
}
