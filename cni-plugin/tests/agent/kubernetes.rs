//! The agent beside an API server: pods come and go by watches, the annotation by patches, and a server that is
//! away, forgetful or grudging disturbs nobody.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lab::Place;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::agent::uid;
use crate::support::api_server::ApiServer;
use crate::support::net::{Asked, Running, place};
use crate::support::ztunnel::Ztunnel;
use crate::support::{PATIENCE, ended, output, pause};

const BEFORE: &str = include_str!("../../testdata/conflist-before.json");

/// A node with an agent, a host to install on, and a cluster around it.
struct Node {
    dir: tempfile::TempDir,
    api: ApiServer,
    process: Option<Running>,
}

impl Node {
    /// Namespace `app` is in the mesh, the agent's DaemonSet is there.
    fn prepared() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ambit-t-cni-")
            .tempdir()
            .unwrap();
        for name in ["bin", "net.d"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("net.d/10-podnet.conflist"), BEFORE).unwrap();
        let node = Self {
            api: ApiServer::start(),
            dir,
            process: None,
        };
        node.namespace("app", json!({ "istio.io/dataplane-mode": "ambient" }));
        node.api.set(
            "daemonsets",
            json!({ "metadata": { "name": "istio-cni-node", "namespace": "istio-system" } }),
        );
        node
    }

    fn start() -> Self {
        let mut node = Self::prepared();
        node.launch();
        node.await_ready();
        node
    }

    fn launch(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        fs::write(path("kubeconfig"), self.api.kubeconfig()).unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path("log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambit-cni-agent"));
        command
            .args([
                "--node-name",
                "n1",
                "--log",
                "debug",
                "--kubelet-by",
                "none",
            ])
            // These tests share the machine's network with everything else.
            .args(["--switch-to-host-netns", "false"])
            .args([
                "--metrics-address",
                "127.0.0.1:0",
                "--readiness-address",
                "127.0.0.1:0",
            ])
            .env("KUBECONFIG", path("kubeconfig"))
            .env_remove("KUBERNETES_SERVICE_HOST")
            .env("RELEASE_PAUSE", "0.1")
            .env("CNI_RUN_DIR", self.run_dir())
            .env("CNI_BIN_DIR", path("bin"))
            .env("CNI_CONF_DIR", path("net.d"))
            .env("ZTUNNEL_UDS_ADDRESS", path("zds/ztunnel.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.process = Some(Running(command.spawn().unwrap()));
    }

    /// SIGTERM, and its end.
    fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let pid = Pid::from_raw(process.0.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        ended(&mut process.0)
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn ztunnel(&self) -> Ztunnel {
        let ztunnel = Ztunnel::connect(&self.dir.path().join("zds/ztunnel.sock"));
        ztunnel.snapshot();
        ztunnel
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until `what` holds; tells what the agent said meanwhile if it does not.
    fn wait(&self, why: &str, mut what: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !what(self) {
            assert!(
                Instant::now() < end,
                "not within {PATIENCE:?}: {why}\n{}",
                self.log()
            );
            pause(Duration::from_millis(10));
        }
    }

    fn await_log(&self, text: &str) {
        self.wait(text, |node| node.log().contains(text));
    }

    /// All gates are open: the last change of readiness says so.
    fn is_ready(&self) -> bool {
        let log = self.log();
        let last = log.lines().rfind(|line| line.contains("readiness changed"));
        last.is_some_and(|line| line.ends_with("missing=[]"))
    }

    fn await_ready(&self) {
        self.wait("ready", Self::is_ready);
    }

    fn namespace(&self, name: &str, labels: Value) {
        self.api.set(
            "namespaces",
            json!({ "metadata": { "name": name, "labels": labels } }),
        );
    }

    fn pod(&self, name: &str, labels: Value) {
        self.pod_with(name, &uid(name), labels);
    }

    fn pod_with(&self, name: &str, uid: &str, labels: Value) {
        let mut metadata =
            json!({ "name": name, "namespace": "app", "uid": uid, "labels": labels });
        if let Some(old) = self.api.object("pods", "app", name) {
            metadata["annotations"] = old["metadata"]["annotations"].clone();
        }
        self.api.set(
            "pods",
            json!({ "metadata": metadata, "spec": { "nodeName": "n1", "containers": [] }, "status": { "phase": "Pending" } }),
        );
    }

    fn redirection(&self, name: &str) -> Option<String> {
        let pod = self.api.object("pods", "app", name)?;
        let value = &pod["metadata"]["annotations"]["ambient.istio.io/redirection"];
        value.as_str().map(str::to_owned)
    }

    fn await_redirection(&self, name: &str, expected: Option<&str>) {
        let why = format!("redirection of {name} is {expected:?}");
        self.wait(&why, |node| node.redirection(name).as_deref() == expected);
    }

    /// Runs the installed plugin as a runtime does; its failure, if it fails.
    fn add(&self, name: &str, uid: Option<&str>, netns: &Place) -> Result<(), String> {
        let list: Value = serde_json::from_str(&self.conflist()).unwrap();
        let mut conf = list["plugins"].as_array().unwrap().last().unwrap().clone();
        conf["cniVersion"] = "1.0.0".into();
        conf["prevResult"] =
            json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.30.0.2/24" }] });
        let uid = uid
            .map(|uid| format!(";K8S_POD_UID={uid}"))
            .unwrap_or_default();
        let mut plugin = Command::new("timeout")
            .arg(PATIENCE.as_secs().to_string())
            .arg(self.dir.path().join("bin/istio-cni"))
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "c")
            .env("CNI_NETNS", netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/")
            .env(
                "CNI_ARGS",
                format!("K8S_POD_NAMESPACE=app;K8S_POD_NAME={name}{uid}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        serde_json::to_writer(plugin.stdin.take().unwrap(), &conf).unwrap();
        let output = plugin.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(said)
        }
    }

    fn conflist(&self) -> String {
        fs::read_to_string(self.dir.path().join("net.d/10-podnet.conflist")).unwrap()
    }

    fn is_installed(&self) -> bool {
        self.dir.path().join("bin/istio-cni").exists() && self.conflist().contains("\"istio-cni\"")
    }
}

fn is_captured(netns: &Place) -> bool {
    netns.ruleset().contains("redirect to :15006")
}

#[test]
fn a_pod_is_annotated_through_the_api_and_follows_its_labels_without_a_restart() {
    let node = Node::start();
    let ztunnel = node.ztunnel();
    let netns = place("pod");
    node.pod("web", json!({}));
    node.add("web", Some(&uid("web")), &netns).unwrap();
    assert_eq!(node.redirection("web").as_deref(), Some("enabled"));
    assert!(is_captured(&netns));
    ztunnel.next();

    node.pod("web", json!({ "istio.io/dataplane-mode": "none" }));
    node.await_redirection("web", None);
    node.wait("its rules are gone", |_| netns.ruleset().is_empty());
    node.pod("web", json!({}));
    node.await_redirection("web", Some("enabled"));
    node.namespace("app", json!({}));
    node.await_redirection("web", None);
    node.namespace("app", json!({ "istio.io/dataplane-mode": "ambient" }));
    node.await_redirection("web", Some("enabled"));
    node.wait("it is captured again", |_| is_captured(&netns));
}

#[test]
fn an_annotation_that_someone_else_removes_is_set_right() {
    let node = Node::start();
    let _ztunnel = node.ztunnel();
    let netns = place("pod");
    node.pod("web", json!({}));
    node.add("web", None, &netns).unwrap();
    let mut pod = node.api.object("pods", "app", "web").unwrap();
    pod["metadata"]["annotations"] = json!({});
    node.api.set("pods", pod);
    node.await_redirection("web", Some("enabled"));
    // And nothing is written that is there already.
    let patches = || {
        node.api
            .asked()
            .iter()
            .filter(|line| line.starts_with("PATCH"))
            .count()
    };
    let before = patches();
    node.pod("web", json!({ "more": "labels" }));
    node.pod("other", json!({ "istio.io/dataplane-mode": "none" }));
    node.add("other", None, &place("pod")).unwrap();
    assert_eq!(patches(), before);
}

#[test]
fn a_runtime_that_is_ahead_of_the_watches_is_waited_for_by_asking_the_api() {
    let node = Node::start();
    let _ztunnel = node.ztunnel();
    node.api.hold(&["pods", "namespaces"]);
    // A new namespace and its first pod: judged by labels that no watch has told of.
    let netns = place("pod");
    node.namespace("new", json!({ "istio.io/dataplane-mode": "ambient" }));
    node.pod("web", json!({}));
    node.add("web", Some(&uid("web")), &netns).unwrap();
    assert!(is_captured(&netns));
    // Its successor of the same name, while the watch still knows the old one.
    let successor = uid("web's successor");
    node.pod_with("web", &successor, json!({}));
    let second = place("pod");
    node.add("web", Some(&successor), &second).unwrap();
    assert!(is_captured(&second));
    // The runtime is behind: what it means is gone.
    let refused = node.add("web", Some(&uid("web")), &netns).unwrap_err();
    assert!(refused.contains("another pod has its name"), "{refused}");
    let refused = node.add("none", None, &netns).unwrap_err();
    assert!(refused.contains("there is no such pod"), "{refused}");
    node.api.hold(&[]);
    node.await_log("the pod is gone");
    assert_eq!(
        node.redirection("web").as_deref(),
        Some("enabled"),
        "the successor's"
    );
    assert!(is_captured(&second));
}

#[test]
fn what_is_told_late_of_a_pod_whose_name_another_has_by_now_takes_nothing_from_that() {
    let node = Node::start();
    let ztunnel = node.ztunnel();
    let (before, after, beside) = (place("before"), place("after"), place("beside"));
    let (old, new) = (uid("old"), uid("new"));
    node.pod("other", json!({}));
    node.add("other", Some(&uid("other")), &beside).unwrap();
    node.pod_with("web", &old, json!({}));
    node.add("web", Some(&old), &before).unwrap();

    node.api.hold(&["pods"]);
    let metadata = json!({ "name": "web", "namespace": "app", "uid": old, "deletionTimestamp": "2026-01-01T00:00:00Z" });
    node.api.set(
        "pods",
        json!({ "metadata": metadata, "spec": { "nodeName": "n1", "containers": [] }, "status": { "phase": "Pending" } }),
    );
    node.pod("other", json!({ "istio.io/dataplane-mode": "none" }));
    let then = node.api.version();
    node.api.delete("pods", "app", "web");
    node.pod_with("web", &new, json!({}));
    node.add("web", Some(&new), &after).unwrap();

    // The watch tells that the first is being deleted, and after that of another pod, by which it is seen that both are known.
    node.api.tell_until(then);
    let mut said = Vec::new();
    let last = format!("del {}", uid("other"));
    while said.last() != Some(&last) {
        said.push(ztunnel.next().say());
    }
    assert!(!said.contains(&format!("del {new}")), "{said:?}");
    assert!(is_captured(&after));
    assert_eq!(node.redirection("web").as_deref(), Some("enabled"));
}

#[test]
fn a_pod_of_a_namespace_no_watch_has_told_of_does_not_start_unmeshed() {
    let node = Node::start();
    let _ztunnel = node.ztunnel();
    node.api.hold(&["namespaces"]);
    node.namespace("app2", json!({ "istio.io/dataplane-mode": "ambient" }));
    let mut pod = json!({ "metadata": { "name": "web", "namespace": "app2", "uid": uid("w2") }, "spec": { "nodeName": "n1", "containers": [] } });
    node.api.set("pods", pod.take());
    let netns = place("pod");
    let event =
        json!({ "Netns": netns.path(), "PodName": "web", "PodNamespace": "app2", "IPs": [] });
    assert_eq!(post(&node.run_dir(), &event), 200);
    let pod = node.api.object("pods", "app2", "web").unwrap();
    assert_eq!(
        pod["metadata"]["annotations"]["ambient.istio.io/redirection"],
        "enabled"
    );
}

fn post(run_dir: &Path, event: &Value) -> u16 {
    let output = Command::new("curl")
        .args([
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "60",
            "--unix-socket",
        ])
        .arg(run_dir.join("pluginevent.sock"))
        .args(["-d", &event.to_string(), "http://unix/cmdadd"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

#[test]
fn while_the_api_server_is_away_pods_stay_and_no_new_one_starts_and_then_everything_is_made_up_for()
{
    let mut node = Node::start();
    let ztunnel = node.ztunnel();
    let [known, lost, new] = ["pod", "pod", "pod"].map(place);
    for (name, netns) in [("known", &known), ("lost", &lost)] {
        node.pod(name, json!({}));
        node.add(name, None, netns).unwrap();
        ztunnel.next();
    }
    node.api.away();
    node.wait("not ready", |node| !node.is_ready());
    node.await_log("the API server cannot be reached");
    assert!(is_captured(&known));
    let refused = node.add("new", None, &new).unwrap_err();
    assert!(refused.contains("API server"), "{refused}");

    node.api.delete("pods", "app", "lost");
    node.pod("new", json!({}));
    node.pod("known", json!({ "istio.io/dataplane-mode": "none" }));
    node.api.forget_history();
    node.api.back();
    node.await_ready();
    node.await_redirection("known", None);
    node.wait("the rules of a pod that left the mesh are gone", |_| {
        known.ruleset().is_empty()
    });
    node.await_log("the pod is gone\tpod=app/lost");
    node.add("new", None, &new).unwrap();
    assert_eq!(node.redirection("new").as_deref(), Some("enabled"));
}

#[test]
fn an_api_server_that_is_away_at_the_start_is_waited_for() {
    let mut node = Node::prepared();
    node.api.away();
    node.launch();
    // It is one trouble, and told once: whichever watch meets it first.
    node.await_log("the API server cannot be reached to list ");
    assert!(!node.is_ready() && !node.is_installed());
    assert!(
        !node.run_dir().join("pluginevent.sock").exists(),
        "the plugin finds nobody"
    );
    node.api.back();
    node.await_ready();
    assert!(node.is_installed());
}

#[test]
fn a_missing_right_is_named_once_and_mended_without_a_restart() {
    let mut node = Node::prepared();
    node.api
        .forbid(&["watch pods", "list namespaces", "list daemonsets"]);
    node.launch();
    for line in [
        "its ClusterRole must allow verb watch on pods",
        "its ClusterRole must allow verb list on namespaces",
        "its Role must allow verb list on daemonsets",
    ] {
        node.await_log(line);
    }
    assert!(!node.is_ready());
    node.api.forbid(&[]);
    node.await_ready();
    let times = node
        .log()
        .matches("its ClusterRole must allow verb list on namespaces")
        .count();
    assert_eq!(times, 1);

    node.api.forbid(&["patch pods/status"]);
    let _ztunnel = node.ztunnel();
    let netns = place("pod");
    node.pod("web", json!({}));
    let refused = node.add("web", None, &netns).unwrap_err();
    assert!(
        refused.contains("its ClusterRole must allow verb patch on pods/status"),
        "{refused}"
    );
    assert!(
        !is_captured(&netns),
        "a pod that did not start keeps nothing"
    );
}

#[test]
fn a_wrong_kubeconfig_is_one_line() {
    let node = Node::prepared();
    let refused = output(
        Command::new(env!("CARGO_BIN_EXE_ambit-cni-agent"))
            .args(["--node-name", "n1", "--switch-to-host-netns", "false"])
            .args([
                "--metrics-address",
                "127.0.0.1:0",
                "--readiness-address",
                "127.0.0.1:0",
            ])
            .env("KUBECONFIG", "/nowhere")
            .env("CNI_RUN_DIR", node.run_dir())
            .env(
                "ZTUNNEL_UDS_ADDRESS",
                node.dir.path().join("zds/ztunnel.sock"),
            ),
    );
    assert!(!refused.status.success());
    let log = String::from_utf8(refused.stdout).unwrap();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("\terror\t"))
        .collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(
        errors[0].contains("/nowhere") && errors[0].contains("KUBECONFIG"),
        "{log}"
    );
}

#[test]
fn an_agent_that_is_replaced_leaves_everything_and_its_successor_takes_it_up() {
    let mut node = Node::start();
    let netns = place("pod");
    {
        let _ztunnel = node.ztunnel();
        node.pod("web", json!({}));
        node.add("web", None, &netns).unwrap();
    }
    assert!(node.stop().success());
    assert!(node.is_installed() && is_captured(&netns));
    assert_eq!(node.redirection("web").as_deref(), Some("enabled"));
    let refused = node.add("web", None, &netns).unwrap_err();
    assert!(refused.contains("pluginevent.sock"), "{refused}");
    node.add("gone", None, &place("pod")).unwrap_err();

    // Meanwhile it leaves the mesh.
    node.pod("web", json!({ "istio.io/dataplane-mode": "none" }));
    node.launch();
    node.await_redirection("web", None);
    node.wait("its rules are gone", |_| netns.ruleset().is_empty());
}

#[test]
fn the_last_agent_of_a_mesh_leaves_nodes_and_pods_clean() {
    for rights_go_first in [false, true] {
        let mut node = Node::start();
        let _ztunnel = node.ztunnel();
        let netns = place("pod");
        node.pod("web", json!({}));
        node.add("web", None, &netns).unwrap();
        node.api
            .delete("daemonsets", "istio-system", "istio-cni-node");
        node.await_log("fate=Gone");
        if rights_go_first {
            node.api
                .forbid(&["get daemonsets", "list daemonsets", "patch pods/status"]);
        }
        assert!(node.stop().success());
        assert_eq!(netns.ruleset(), "", "{}", node.log());
        let annotation = rights_go_first.then_some("enabled");
        assert_eq!(node.redirection("web").as_deref(), annotation);
        assert!(!node.is_installed());
        let conflist: Value = serde_json::from_str(&node.conflist()).unwrap();
        assert_eq!(conflist, serde_json::from_str::<Value>(BEFORE).unwrap());
        let left = fs::read_dir(node.run_dir()).unwrap().count();
        assert_eq!(left, 0, "sockets and memory are gone");
    }
}

#[test]
fn a_pod_that_was_leaving_when_the_mesh_is_removed_has_left_in_time() {
    let mut node = Node::start();
    let _ztunnel = node.ztunnel();
    let netns = place("pod");
    node.pod("web", json!({}));
    node.add("web", Some(&uid("web")), &netns).unwrap();
    // A connection that goes through ztunnel, as its end in the pod shows; it has half a minute.
    let open = netns.within(|| {
        let listener = TcpListener::bind("127.0.0.1:15001").unwrap();
        let client = TcpStream::connect("127.0.0.1:15001").unwrap();
        (client, listener.accept().unwrap())
    });
    let open = open.unwrap();
    node.pod("web", json!({ "istio.io/dataplane-mode": "none" }));
    node.await_redirection("web", None);

    node.api
        .delete("daemonsets", "istio-system", "istio-cni-node");
    node.await_log("fate=Gone");
    assert!(node.stop().success());
    assert_eq!(netns.ruleset(), "", "{}", node.log());
    drop(open);
}

#[test]
fn what_another_installer_overwrites_is_repaired_and_a_network_that_is_not_there_yet_is_waited_for()
{
    let mut node = Node::prepared();
    let conflist = node.dir.path().join("net.d/10-podnet.conflist");
    fs::remove_file(&conflist).unwrap();
    node.launch();
    node.await_log("install the cluster's network first");
    assert!(!node.is_ready());
    for _ in 0..2 {
        fs::write(&conflist, BEFORE).unwrap();
        node.wait("it is installed", |node| node.is_installed());
    }
    node.await_ready();
    fs::remove_file(node.dir.path().join("bin/istio-cni")).unwrap();
    node.wait("it is installed", |node| node.is_installed());
}
