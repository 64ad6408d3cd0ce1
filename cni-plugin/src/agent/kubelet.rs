//! Which sockets of the node are the kubelet's: its probes must reach enrolled pods where plain text is
//! refused, and nothing else of the node may use their way.
//!
//! `/proc` enters, a [`Sign`] leaves, and again whenever the kubelet was restarted:
//!
//! 1. the process: by its name, in the node's own namespaces, and in no pod   ([`candidates`])
//! 2. its cgroup of version 2, if nothing else of the cluster lives there     ([`own_cgroup`])
//! 3. otherwise its user, which others may share                              ([`choose`])
//!
//! The cgroup is what nft can ask a socket for. systemd gives every service one, also on nodes that
//! manage resources by version 1.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cgroup;
use super::config::{Config, KubeletBy};
use super::processes;

/// How the kubelet's connections are recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// By the group of their socket; or by the user, should the kernel not know how.
    Cgroup(Cgroup, Option<u32>),
    /// By their user.
    User(u32),
    /// Not.
    None,
}

/// A group of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    /// Below the root that the node sees, without a leading slash.
    pub(crate) path: String,
    /// How deep below the root of all the node's root may lie.
    pub(crate) hidden: usize,
    /// Tells a group from its successor of the same name, which the kernel does not know by it.
    born: (u32, u64),
}

#[cfg(test)]
impl Cgroup {
    pub(crate) fn example(path: &str, hidden: usize) -> Self {
        Self {
            path: path.to_owned(),
            hidden,
            born: (1, 1),
        }
    }
}

/// What is known of a process that may be the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    pid: u32,
    started: u64,
    user: u32,
    /// `/proc/PID/cgroup`.
    cgroups: String,
}

/// Watches the kubelet until `stop`.
pub(crate) fn watch(config: &Config, stop: CancellationToken) -> watch::Receiver<Sign> {
    let by = config.kubelet_by();
    let (told, sign) = watch::channel(match (by, config.kubelet_uid) {
        (KubeletBy::Uid, Some(uid)) => Sign::User(uid),
        _ => Sign::None,
    });
    match (by, config.kubelet_uid) {
        (KubeletBy::None, _) => {
            tracing::info!(
                "the kubelet is not to be recognised: its probes count as plain text, no rule on the node"
            );
        }
        (KubeletBy::Uid, Some(_)) => {}
        (by, uid) => drop(tokio::spawn(keep(by, uid, config.proc(), told, stop))),
    }
    sign
}

async fn keep(
    by: KubeletBy,
    uid: Option<u32>,
    proc: PathBuf,
    told: watch::Sender<Sign>,
    stop: CancellationToken,
) {
    let mut current: Option<Candidate> = None;
    let mut announced = None;
    let mut missing = false;
    loop {
        let alive = current.as_ref().is_some_and(|known| {
            processes::started(&proc.join(known.pid.to_string())) == Some(known.started)
        });
        if !alive {
            let proc = proc.clone();
            let looked = tokio::task::spawn_blocking(move || look(&proc)).await;
            let looked = looked.unwrap_or_default();
            current.clone_from(&looked.kubelet);
            match choose(by, uid, &looked) {
                Some(sign) => {
                    missing = false;
                    if announced.as_ref() != Some(&sign) {
                        announce(by, &sign);
                        announced = Some(sign.clone());
                    }
                    told.send_if_modified(|known| std::mem::replace(known, sign.clone()) != sign);
                }
                // It is being restarted, or this node has none: what was known stays.
                None if !std::mem::replace(&mut missing, true) => tracing::warn!(
                    "no kubelet is found on this node: until there is one its probes count as plain text, which STRICT refuses (KUBELET_UID names its user)"
                ),
                None => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn announce(by: KubeletBy, sign: &Sign) {
    match sign {
        Sign::Cgroup(cgroup, _) => {
            tracing::info!(cgroup = cgroup.path, "the kubelet is known by its cgroup");
        }
        Sign::User(uid) if by == KubeletBy::Uid => {
            tracing::info!(uid, "the kubelet is known by its user");
        }
        Sign::User(uid) => tracing::warn!(
            uid,
            "the kubelet has no cgroup (version 2) of its own, so it is known by its user: whatever else this user runs on the node reaches enrolled pods without a policy; run the kubelet as a service of its own, or set KUBELET_BY=cgroup to do without probes instead"
        ),
        Sign::None => tracing::warn!(
            "the kubelet has no cgroup (version 2) of its own: its probes count as plain text, which STRICT refuses"
        ),
    }
}

/// What was found on the node.
#[derive(Clone, Debug, Default)]
struct Looked {
    kubelet: Option<Candidate>,
    /// Groups of version 2 in which pods run.
    pods: Vec<String>,
    /// Depth that the node's root may have, and the age of the kubelet's group.
    hidden: usize,
}

/// Pure: the sign, or `None` if there is no kubelet to recognise.
fn choose(by: KubeletBy, uid: Option<u32>, looked: &Looked) -> Option<Sign> {
    let kubelet = looked.kubelet.as_ref()?;
    let user = uid.unwrap_or(kubelet.user);
    let group = own_cgroup(&kubelet.cgroups, &looked.pods).map(|path| Cgroup {
        path: path.to_owned(),
        hidden: looked.hidden,
        born: (kubelet.pid, kubelet.started),
    });
    Some(match (by, group) {
        (KubeletBy::None, _) => Sign::None,
        (KubeletBy::Uid, _) => Sign::User(user),
        (KubeletBy::Auto, Some(group)) => Sign::Cgroup(group, Some(user)),
        (KubeletBy::Cgroup, Some(group)) => Sign::Cgroup(group, None),
        (KubeletBy::Auto, None) => Sign::User(user),
        (KubeletBy::Cgroup, None) => Sign::None,
    })
}

/// The kubelet's group, unless it is the root, lies outside of what the node sees, has a name that
/// would mean something else to nft, or contains pods.
fn own_cgroup<'a>(list: &'a str, pods: &[String]) -> Option<&'a str> {
    let path = cgroup::unified(list)?.strip_prefix('/')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@\\".contains(c);
    let usable = !path.is_empty()
        && !path.starts_with("..")
        && !path.ends_with("(deleted)")
        && path.chars().all(plain);
    let shared = pods.iter().any(|pod| {
        let below = pod.trim_start_matches('/').strip_prefix(path);
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    (usable && !shared).then_some(path)
}

/// Looks at every process (blocking), from within the node's cgroup namespace: only there do paths mean
/// what they mean to nft when it loads the rules.
fn look(proc: &Path) -> Looked {
    let proc = proc.to_owned();
    let visit = std::thread::spawn(move || {
        let namespace = proc.join("1/ns/cgroup");
        if let Ok(file) = fs::File::open(&namespace) {
            // Where it is not allowed, paths may begin with `..`, and are of no use.
            let _ = setns(file, CloneFlags::CLONE_NEWCGROUP);
        }
        let is_root = fs::metadata(&namespace).is_ok_and(|ns| ns.ino() == INITIAL_CGROUP_NAMESPACE);
        Looked {
            kubelet: candidates(&proc),
            pods: groups_of_pods(&proc),
            hidden: if is_root { 0 } else { DEEPEST },
        }
    });
    visit.join().unwrap_or_default()
}

/// The oldest process that is a kubelet by name, in the namespaces of the node's first process, and in
/// no pod's cgroup: a pod may share the node's namespaces and may call its program as it likes.
fn candidates(proc: &Path) -> Option<Candidate> {
    let namespace = |process: &Path, kind: &str| fs::read_link(process.join("ns").join(kind)).ok();
    let first = proc.join("1");
    let same = |process: &Path| {
        ["pid", "net"].iter().all(|kind| {
            let of_first = namespace(&first, kind);
            of_first.is_some() && of_first == namespace(process, kind)
        })
    };
    processes::all(proc)
        .filter(|process| {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            NAMES.contains(&name.trim_end())
        })
        .filter(|process| same(process))
        .filter_map(|process| {
            let cgroups = fs::read_to_string(process.join("cgroup")).ok()?;
            let status = fs::read_to_string(process.join("status")).ok()?;
            Some(Candidate {
                pid: process.file_name()?.to_str()?.parse().ok()?,
                started: processes::started(&process)?,
                user: effective_user(&status)?,
                cgroups,
            })
        })
        .filter(|candidate| !cgroup::is_of_a_pod(&candidate.cgroups))
        .min_by_key(|candidate| candidate.started)
}

fn groups_of_pods(proc: &Path) -> Vec<String> {
    let lists = processes::all(proc)
        .filter_map(|process| fs::read_to_string(process.join("cgroup")).ok())
        .filter(|list| cgroup::is_of_a_pod(list));
    // Where version 2 manages nothing, pods are in its root like everything that has no service.
    let mut groups: Vec<String> = lists
        .filter_map(|list| cgroup::unified(&list).map(str::to_owned))
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Line `Uid:` has the real, effective, saved and file system user.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Also the programs that have a kubelet inside.
const NAMES: [&str; 5] = ["kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"];
/// A restarted kubelet must not wait long for its probes; looking at one process costs nothing.
const LOOK: Duration = Duration::from_secs(1);
/// How far below the kernel's root a node in a container has its own.
const DEEPEST: usize = 6;
/// `PROC_CGROUP_INIT_INO` of the kernel's proc_ns.h.
const INITIAL_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn looked(cgroups: &str, pods: &[&str]) -> Looked {
        Looked {
            kubelet: Some(Candidate {
                pid: 7,
                started: 70,
                user: 0,
                cgroups: cgroups.to_owned(),
            }),
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            hidden: 0,
        }
    }

    #[test]
    fn a_group_of_its_own_is_told_from_one_that_others_share() {
        let cases = [
            (
                "0::/system.slice/kubelet.service",
                "/kubepods.slice/x",
                Some("system.slice/kubelet.service"),
            ),
            (
                "0::/kubelet.slice/kubelet.service",
                "/kubelet.slice/kubelet-kubepods.slice/x",
                Some("kubelet.slice/kubelet.service"),
            ),
            (
                "4:memory:/\n0::/system.slice/k3s.service",
                "/",
                Some("system.slice/k3s.service"),
            ),
            (
                "0::/podruntime/kubelet",
                "/kubepods/x",
                Some("podruntime/kubelet"),
            ),
            ("0::/", "/kubepods/x", None),
            ("0::/../other", "/", None),
            ("0::/kubelet", "/kubelet/kubepods/x", None),
            ("0::/kubelet", "/kubelet", None),
            ("0::/kubelet", "/kubelet2/x", Some("kubelet")),
            ("0::/a\"b", "/", None),
            ("0::/a/b (deleted)", "/", None),
            ("4:memory:/kubelet", "/", None),
        ];
        for (list, pod, expected) in cases {
            assert_eq!(
                own_cgroup(list, &[pod.to_owned()]),
                expected,
                "{list} {pod}"
            );
        }
    }

    #[test]
    fn the_user_is_asked_for_only_where_the_group_says_nothing() {
        let (own, none) = (
            looked("0::/system.slice/kubelet.service", &["/kubepods"]),
            looked("0::/", &["/kubepods"]),
        );
        let is_group = |sign: Option<Sign>, user: Option<u32>| matches!(sign, Some(Sign::Cgroup(group, fallback)) if group.path.ends_with("kubelet.service") && fallback == user);
        assert!(is_group(choose(KubeletBy::Auto, None, &own), Some(0)));
        assert!(is_group(choose(KubeletBy::Cgroup, Some(5), &own), None));
        let cases = [
            (KubeletBy::Uid, None, &own, Sign::User(0)),
            (KubeletBy::Uid, Some(5), &own, Sign::User(5)),
            (KubeletBy::None, Some(5), &own, Sign::None),
            (KubeletBy::Auto, None, &none, Sign::User(0)),
            (KubeletBy::Auto, Some(5), &none, Sign::User(5)),
            (KubeletBy::Cgroup, None, &none, Sign::None),
        ];
        for (by, uid, looked, sign) in cases {
            assert_eq!(choose(by, uid, looked), Some(sign), "{by:?} {uid:?}");
        }
        assert_eq!(choose(KubeletBy::Auto, Some(0), &Looked::default()), None);
    }

    /// A directory that looks like `/proc`: processes by pid, name, namespaces, cgroups and age.
    fn proc(processes: &[(&str, &str, &str, &str, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (pid, name, namespace, cgroups, started) in processes {
            let process = dir.path().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            for kind in ["pid", "net"] {
                symlink(
                    format!("{kind}:[{namespace}]"),
                    process.join("ns").join(kind),
                )
                .unwrap();
            }
            fs::write(process.join("comm"), format!("{name}\n")).unwrap();
            fs::write(process.join("cgroup"), cgroups).unwrap();
            fs::write(process.join("status"), "Name:\tx\nUid:\t1\t0\t0\t0\n").unwrap();
            let zeros = " 0".repeat(18);
            fs::write(
                process.join("stat"),
                format!("{pid} (x) S{zeros} {started} 0"),
            )
            .unwrap();
        }
        dir
    }

    #[test]
    fn a_pod_that_calls_its_program_kubelet_is_not_taken_for_it() {
        let pod = "0::/kubepods/pod11111111-2222-3333-4444-555555555555/c";
        let dir = proc(&[
            ("1", "systemd", "1", "0::/init.scope", 1),
            ("20", "kubelet", "1", pod, 5),
            ("30", "kubelet", "2", "0::/docker/x", 6),
            ("40", "kubelet", "1", "0::/system.slice/kubelet.service", 7),
            ("50", "kubelet", "1", "0::/user.slice/later", 8),
            ("60", "kubelet-helper", "1", "0::/", 2),
        ]);
        let found = candidates(dir.path()).unwrap();
        assert_eq!((found.pid, found.user), (40, 0));
        assert_eq!(groups_of_pods(dir.path()), [cgroup::unified(pod).unwrap()]);
        let alone = proc(&[
            ("1", "systemd", "1", "0::/", 1),
            ("20", "kubelet", "1", pod, 5),
        ]);
        assert_eq!(candidates(alone.path()), None);
    }

    #[test]
    fn a_restarted_kubelet_has_another_sign_even_in_a_group_of_the_same_name() {
        let first = looked("0::/system.slice/kubelet.service", &[]);
        let mut second = first.clone();
        second.kubelet.as_mut().unwrap().pid = 8;
        let [first, second] = [first, second].map(|looked| choose(KubeletBy::Auto, None, &looked));
        assert_ne!(first, second);
    }
}
