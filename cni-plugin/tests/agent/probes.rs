//! Probes of the kubelet reach an enrolled pod whatever its policies; other processes of the node, though
//! they are root like it, are treated as any client without an identity.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::Place;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::agent::Agent;
use crate::support::eventually;
use crate::support::net::{Asked, place};

const NODE: [&str; 2] = ["10.30.0.1", "fd00:30::1"];
const POD: [&str; 2] = ["10.30.0.2", "fd00:30::2"];
const PROBES: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

/// The hierarchy of version 2, wherever this machine has it.
struct Cgroups(tempfile::TempDir);

impl Cgroups {
    fn mounted() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let none = None::<&str>;
        mount(
            Some("cgroup2"),
            dir.path(),
            Some("cgroup2"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        Self(dir)
    }

    /// A group below our own, and its path as `/proc` names it.
    fn make(&self, name: &str) -> (PathBuf, String) {
        let list = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = list
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .unwrap();
        let path = format!("{}/{name}", own.trim_end_matches('/'));
        let group = self.0.path().join(path.trim_start_matches('/'));
        fs::create_dir(&group).unwrap();
        (group, path)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// A group that goes with this value; its processes have ended by then.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Answers with the client's address.
fn serve(pod: &Place, port: u16) {
    let listener = pod
        .within(|| TcpListener::bind(("::", port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(from.to_string().as_bytes());
        }
    });
}

/// A process of the node that connects to the pod, from within `group` if one is given: what it reads, or
/// nothing if it is refused.
fn probe(node: &Place, group: Option<&Path>, ip: &str) -> String {
    let connect = format!("exec 3<>/dev/tcp/{ip}/8080 && exec cat <&3");
    let script = match group {
        Some(group) => format!("echo $$ > {}/cgroup.procs && {connect}", group.display()),
        None => connect,
    };
    let output = Command::new("nsenter")
        .arg(format!("--net={}", node.path().display()))
        .args(["--", "timeout", "30", "bash", "-c", &script])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A directory like a host's root: a first process in this one's cgroup namespace, and a kubelet.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.process(1, "init", "0::/", 1);
        host
    }

    fn process(&self, pid: u32, name: &str, cgroup: &str, started: u64) {
        let process = self.0.path().join("proc").join(pid.to_string());
        fs::create_dir_all(process.join("ns")).unwrap();
        for kind in ["pid", "net", "cgroup"] {
            symlink(
                format!("/proc/self/ns/{kind}"),
                process.join("ns").join(kind),
            )
            .unwrap();
        }
        fs::write(process.join("cgroup"), format!("{cgroup}\n")).unwrap();
        fs::write(process.join("status"), "Uid:\t0\t0\t0\t0\n").unwrap();
        let zeros = " 0".repeat(18);
        fs::write(
            process.join("stat"),
            format!("{pid} (x) S{zeros} {started} 0\n"),
        )
        .unwrap();
        fs::write(process.join("comm"), format!("{name}\n")).unwrap();
    }

    fn ended(&self, pid: u32) {
        fs::remove_dir_all(self.0.path().join("proc").join(pid.to_string())).unwrap();
    }
}

/// A node with an agent that knows the kubelet by `by`, and an enrolled pod.
struct World {
    agent: Agent,
    node: Place,
    _pod: Place,
    _ztunnel: crate::support::ztunnel::Ztunnel,
}

impl World {
    fn new(host: &Host, by: &str) -> Self {
        let (node, pod) = (place("node"), place("pod"));
        pod.cable("eth0", &node).unwrap();
        for (netns, [v4, v6]) in [(&node, NODE), (&pod, POD)] {
            netns
                .ip(&format!(
                    "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n"
                ))
                .unwrap();
        }
        pod.says(["ip", "route", "add", "default", "via", NODE[0]]);
        pod.says(["ip", "-6", "route", "add", "default", "via", NODE[1]]);
        serve(&pod, 8080);
        let root = host.0.path().to_str().unwrap();
        let agent = Agent::start_in(&node, &["--kubelet-by", by, "--host-root", root]);
        let ztunnel = agent.ztunnel();
        ztunnel.snapshot();
        agent.plain_pod("web");
        // The agent opens it below the host's root, where the runtime's directory would be mounted.
        let netns = host.0.path().join("web");
        symlink(pod.path(), &netns).unwrap();
        let answer = agent.cmdadd("web", Path::new("/web"), &POD);
        assert_eq!(answer, (200, String::new()), "{}", agent.log());
        Self {
            agent,
            node,
            _pod: pod,
            _ztunnel: ztunnel,
        }
    }
}

#[test]
fn only_the_kubelet_passes_ztunnel_by_and_not_every_process_of_its_user() {
    let (cgroups, host) = (Cgroups::mounted(), Host::new());
    let name = format!("ambit-t-cni-{}", std::process::id());
    let (kubelet, path) = cgroups.make(&name);
    let (other, _) = cgroups.make(&format!("{name}-other"));
    let _gone = [Group(kubelet.clone()), Group(other.clone())];
    host.process(70, "kubelet", &format!("0::{path}"), 70);
    let world = World::new(&host, "auto");
    eventually("the kubelet is known by its cgroup", || {
        world.node.ruleset().contains("socket cgroupv2")
    });
    for (ip, from) in POD.iter().zip(PROBES) {
        assert_eq!(
            probe(&world.node, Some(&kubelet), ip),
            from,
            "{}",
            world.node.ruleset()
        );
        // Nobody plays ztunnel here: what is redirected to it is refused.
        assert_eq!(probe(&world.node, Some(&other), ip), "");
        assert_eq!(probe(&world.node, None, ip), "");
    }

    // It is restarted, by a service manager that makes its group anew.
    host.ended(70);
    eventually("the group is empty", || fs::remove_dir(&kubelet).is_ok());
    fs::create_dir(&kubelet).unwrap();
    host.process(71, "kubelet", &format!("0::{path}"), 71);
    eventually("its successor is known too", || {
        probe(&world.node, Some(&kubelet), POD[0]) == PROBES[0]
    });
    assert_eq!(probe(&world.node, Some(&other), POD[0]), "");
}

#[test]
fn a_kubelet_without_a_group_of_its_own_is_known_by_its_user_and_the_log_says_what_that_means() {
    let host = Host::new();
    host.process(70, "kubelet", "0::/", 70);
    let world = World::new(&host, "auto");
    eventually("the kubelet is known by its user", || {
        world.node.ruleset().contains("skuid 0")
    });
    assert_eq!(probe(&world.node, None, POD[0]), PROBES[0]);
    world.agent.await_log("without a policy");

    let host = Host::new();
    host.process(70, "kubelet", "0::/", 70);
    let strict = World::new(&host, "cgroup");
    strict.agent.await_log("its probes count as plain text");
    assert_eq!(probe(&strict.node, None, POD[0]), "");
}

#[test]
fn a_packet_that_comes_with_the_address_of_probes_is_dropped() {
    let host = Host::new();
    host.process(70, "kubelet", "0::/", 70);
    let world = World::new(&host, "uid");
    let intruder = place("other");
    world.node.cable("eth1", &intruder).unwrap();
    let address = |ip: &str| format!("addr add {ip} dev eth0\nlink set eth0 up\n");
    world
        .node
        .ip("addr add 10.31.0.1/24 dev eth1\nlink set eth1 up\n")
        .unwrap();
    intruder.ip(&address("10.31.0.2/24")).unwrap();
    intruder
        .ip(&format!("addr add {} dev eth0\n", PROBES[0]))
        .unwrap();
    let _listener = world
        .node
        .within(|| TcpListener::bind(("10.31.0.1", 9)).unwrap());
    let connects = |source: &str, seconds: &str| {
        intruder.says([
            "ip",
            "route",
            "replace",
            "10.31.0.1",
            "dev",
            "eth0",
            "src",
            source,
        ]);
        let script = "exec 3<>/dev/tcp/10.31.0.1/9";
        let words = ["--", "timeout", seconds, "bash", "-c", script];
        let mut connect = Command::new("nsenter");
        connect
            .arg(format!("--net={}", intruder.path().display()))
            .args(words);
        connect.stderr(Stdio::null()).status().unwrap().success()
    };
    eventually("the node has its rules", || {
        world.node.ruleset().contains("ambit-probes")
    });
    let dropped = || {
        let rules = world.node.ruleset();
        let line = rules
            .lines()
            .find(|line| line.contains("saddr 169.254.7.127"));
        !line.unwrap().contains("packets 0")
    };
    assert!(connects("10.31.0.2", "30") && !dropped());
    assert!(!connects(PROBES[0], "5") && dropped());
}

#[test]
fn probes_go_on_while_the_agent_is_replaced() {
    let host = Host::new();
    host.process(70, "kubelet", "0::/", 70);
    let mut world = World::new(&host, "uid");
    eventually("the node has its rules", || {
        probe(&world.node, None, POD[0]) == PROBES[0]
    });
    world.agent.kill();
    assert_eq!(probe(&world.node, None, POD[0]), PROBES[0]);
    // A set that an agent before us filled, with a pod that nobody knows any more.
    world.node.says([
        "nft",
        "add",
        "element",
        "inet",
        "istio-ambient-nat",
        "istio-inpod-probes-v4",
        "{ 10.99.99.99 }",
    ]);
    world.agent.launch();
    assert_eq!(probe(&world.node, None, POD[0]), PROBES[0]);
    eventually(
        "what nobody knows is gone, once all pods were looked at",
        || !world.node.ruleset().contains("10.99.99.99"),
    );
    assert_eq!(probe(&world.node, None, POD[0]), PROBES[0]);
}
