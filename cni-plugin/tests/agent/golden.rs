//! Pods of every kind enrolled by the real agent, in real network namespaces; what is then in the
//! pods, on the node and on ZDS is held against what Istio's agent did (`testdata/nftables-*`),
//! with the differences of `testdata/DEVIATIONS.md` taken out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lab::Place;
use serde_json::{Value, json};

use crate::support::agent::{Agent, uid};
use crate::support::net::{Asked, place};
use crate::support::ztunnel::golden_bytes;

/// A golden file of one pod: the pod, and the sections of what was found inside.
struct Golden {
    name: String,
    annotations: Value,
    addresses: Vec<String>,
    sections: BTreeMap<String, Vec<String>>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name)
}

fn golden(folder: &Path, name: &str) -> Golden {
    let text = fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
    let field = |prefix: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(prefix))
            .unwrap_or_default()
    };
    Golden {
        name: name.to_owned(),
        annotations: serde_json::from_str(field("# pod annotations before: ")).unwrap_or(json!({})),
        addresses: field("# addresses: ")
            .split(", ")
            .map(str::to_owned)
            .collect(),
        sections: sections(&text),
    }
}

fn sections(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut sections = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            current = Some(title.to_owned());
            sections.insert(title.to_owned(), Vec::new());
        } else if let Some(title) = &current {
            sections.get_mut(title).unwrap().push(line.to_owned());
        }
    }
    sections
}

/// What is in a pod, in the golden files' sections.
fn found(netns: &Place) -> BTreeMap<String, Vec<String>> {
    let show = |command: &str| {
        // `ip route show table 100` fails where nobody ever made that table.
        let text = netns.exec(command.split(' ')).unwrap().stdout;
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    [
        "ip rule",
        "ip -6 rule",
        "ip route show table 100",
        "ip -6 route show table 100",
        "nft list ruleset",
    ]
    .into_iter()
    .map(|command| (command.to_owned(), show(command)))
    .collect()
}

/// Brings both sides to what they should have in common: no rule of a family the pod does not have,
/// no guard, no condition on TCP flags, no counts, no blank lines.
fn common(lines: &[String], v4: bool, v6: bool) -> Vec<String> {
    let mut common = Vec::new();
    let mut in_guard = false;
    for line in lines {
        in_guard |= line.contains("chain ambit-guard");
        let of_family = |ip: &str| {
            line.contains(&format!("{ip} daddr")) || line.contains(&format!("{ip} saddr"))
        };
        let foreign = !v4 && (of_family(" ip") || of_family("\tip")) || !v6 && of_family("ip6");
        if !in_guard && !foreign && !line.contains("jump ambit-guard") && !line.trim().is_empty() {
            common.push(plain(line));
        }
        in_guard &= line.trim() != "}";
    }
    common
}

fn plain(line: &str) -> String {
    let mut line = line
        .trim_end()
        .replace("tcp flags syn / fin,syn,rst,ack ", "")
        .replace("meta l4proto tcp ", "");
    if let Some(at) = line.find("counter packets ") {
        let rest: Vec<&str> = line[at..].split(' ').skip(5).collect();
        line = format!("{}counter {}", &line[..at], rest.join(" "));
    }
    line.trim_end().to_owned()
}

fn compare(golden: &Golden, netns: &Place, ipv6: bool) {
    let v4 = golden.addresses.iter().any(|ip| ip.contains('.'));
    let v6 = ipv6 && golden.addresses.iter().any(|ip| ip.contains(':'));
    let found = found(netns);
    for (title, lines) in &golden.sections {
        let expected = match title.as_str() {
            "ip rule" if !v4 => without_mark(lines),
            "ip -6 rule" if !v6 => without_mark(lines),
            "ip route show table 100" if !v4 => Vec::new(),
            "ip -6 route show table 100" if !v6 => Vec::new(),
            _ => lines.clone(),
        };
        let (expected, ours) = (common(&expected, v4, v6), common(&found[title], v4, v6));
        assert_eq!(ours, expected, "{} of {}", title, golden.name);
    }
    if golden.sections.contains_key("nft list ruleset") {
        let ours = found["nft list ruleset"].join("\n");
        for redirect in ours
            .lines()
            .filter(|line| line.contains("redirect") && !line.contains("udp"))
        {
            assert!(
                redirect.contains("tcp flags syn / fin,syn,rst,ack"),
                "{redirect}"
            );
        }
    }
}

fn without_mark(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .filter(|line| !line.contains("0x111"))
        .cloned()
        .collect()
}

/// Enrols the pods of `names` with the settings of a golden folder, in that order.
fn enrol(agent: &Agent, folder: &Path, names: &[&str]) -> Vec<(Golden, Place)> {
    names
        .iter()
        .map(|name| {
            let golden = golden(folder, name);
            let netns = place("pod");
            agent.pod(
                name,
                json!({ "annotations": golden.annotations }),
                json!({}),
            );
            let ips: Vec<&str> = golden.addresses.iter().map(String::as_str).collect();
            assert_eq!(
                agent.cmdadd(name, &netns.path(), &ips),
                (200, String::new()),
                "{}",
                agent.log()
            );
            assert_eq!(
                agent.redirection(name).as_deref(),
                Some("enabled"),
                "annotated before the runtime hears of it"
            );
            (golden, netns)
        })
        .collect()
}

/// The node's table, with the uids of our pods under their golden names.
fn node_table(node: &Place, names: &[&str]) -> Vec<String> {
    // Istio's table; the one that drops forged probes is ours alone and comes after it.
    let whole = node.ruleset();
    let (text, ours) = whole.split_once("table inet ambit-probes").unwrap();
    assert!(!ours.contains("table "), "{ours}");
    let mut text = text.to_owned();
    for name in names {
        text = text.replace(&uid(name), &format!("uid-of-{name}"));
    }
    // nft breaks lines of elements by their length, which differs with the uids'.
    let text = text.replace(",\n\t\t\t     ", ", ");
    common(
        &text.lines().map(str::to_owned).collect::<Vec<_>>(),
        true,
        true,
    )
}

fn golden_node_table(folder: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(folder.join(file))
        .unwrap()
        .replace(",\n\t\t\t     ", ", ");
    common(&sections(&text)["nft list ruleset"], true, true)
}

const PODS: [&str; 8] = [
    "plain-v4",
    "dual",
    "v6-only",
    "bypass",
    "reroute",
    "dns-annotation-off",
    "dns-annotation-on",
    "bypass-and-reroute",
];

#[test]
fn pods_node_and_ztunnel_are_as_istio_leaves_them() {
    let folder = folder("nftables-dns");
    let node = place("node");
    let agent = Agent::start_in(&node, &["--kubelet-uid", "0"]);
    let ztunnel = agent.ztunnel();
    let mut heard = ztunnel.snapshot();

    let pods = enrol(&agent, &folder, &PODS);
    for (golden, netns) in &pods {
        compare(golden, netns, true);
    }
    assert_eq!(
        node_table(&node, &PODS),
        golden_node_table(&folder, "host.txt")
    );

    agent.pod(
        "not-ambient",
        json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
        json!({}),
    );
    let outside = place("pod");
    assert_eq!(
        agent.cmdadd("not-ambient", &outside.path(), &["10.30.0.9"]),
        (200, String::new())
    );
    compare(&golden(&folder, "not-ambient"), &outside, true);
    assert_eq!(outside.ruleset(), "");
    assert_eq!(agent.redirection("not-ambient"), None);

    // Pod plain-v4 leaves the mesh, pod dual is deleted.
    agent.pod(
        "plain-v4",
        json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
        json!({}),
    );
    heard.extend((0..PODS.len()).map(|_| ztunnel.next()));
    heard.push(ztunnel.next());
    agent.delete_pod("dual");
    heard.push(ztunnel.next());
    crate::support::eventually("plain-v4 is restored", || {
        // The rules go first, the routes that they need after them.
        let netns = &pods[0].1;
        let marks = |family| netns.says(["ip", family, "rule"]).contains("0x111");
        let routes = |family| {
            let all = netns.says(["ip", family, "route", "show", "table", "all"]);
            all.contains("table 100")
        };
        netns.ruleset().is_empty()
            && !["-4", "-6"]
                .into_iter()
                .any(|family| marks(family) || routes(family))
    });
    compare(&golden(&folder, "plain-v4-after-removal"), &pods[0].1, true);
    assert_eq!(agent.redirection("plain-v4"), None);
    crate::support::eventually("the node's table has lost both", || {
        node_table(&node, &PODS) == golden_node_table(&folder, "host-after-removal.txt")
    });

    let transcript = fs::read_to_string(folder.join("zds.jsonl")).unwrap();
    let lines = transcript
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said: Vec<Value> = lines
        .filter(|line| line["dir"] == "agent->ztunnel")
        .collect();
    assert_eq!(said.len(), heard.len());
    for (golden, ours) in said.iter().zip(&heard) {
        assert_eq!(
            ours.bytes,
            golden_bytes(golden["hex"].as_str().unwrap(), uid),
            "{golden}"
        );
        assert_eq!(
            ours.namespaces.len() as u64,
            golden["fds"].as_u64().unwrap(),
            "{golden}"
        );
    }
    let inodes: Vec<u64> = heard
        .iter()
        .flat_map(|heard| heard.namespaces.clone())
        .collect();
    let expected: Vec<u64> = pods
        .iter()
        .map(|(_, netns)| netns.inode().unwrap())
        .collect();
    assert_eq!(inodes, expected, "each pod came with its own namespace");
}

#[test]
fn the_node_is_left_as_it_was_when_the_agent_stops_and_pods_keep_their_rules() {
    let folder = folder("nftables-dns");
    let node = place("node");
    let mut agent = Agent::start_in(&node, &["--kubelet-uid", "0"]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let pods = enrol(&agent, &folder, &["reroute"]);
    assert!(!node.ruleset().is_empty());
    agent.terminate();
    assert_eq!(node.ruleset(), "");
    compare(&pods[0].0, &pods[0].1, true);
}

#[test]
fn dns_is_captured_only_where_it_is_asked_for() {
    let folder = folder("nftables-nodns");
    let agent = Agent::start(&["--dns-capture", "false"]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    for (golden, netns) in enrol(
        &agent,
        &folder,
        &["plain-v4", "dual", "bypass", "dns-annotation-on"],
    ) {
        compare(&golden, &netns, true);
    }
}

#[test]
fn ipv6_is_left_alone_where_it_is_switched_off() {
    let folder = folder("nftables-noipv6");
    let node = place("node");
    let agent = Agent::start_in(&node, &["--ipv6", "false", "--kubelet-uid", "0"]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let names = ["plain-v4", "dual", "bypass", "dns-annotation-on"];
    for (golden, netns) in enrol(&agent, &folder, &names) {
        compare(&golden, &netns, false);
    }
    assert_eq!(
        node_table(&node, &names),
        golden_node_table(&folder, "host.txt")
    );
}
