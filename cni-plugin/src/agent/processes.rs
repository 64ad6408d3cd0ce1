//! Reads `/proc`: where a running pod's network namespace is.
//!
//! A pod that was running before it was labelled never came by the plugin with its namespace. Its
//! processes are found by the pod's UID in their cgroup's name; of several the oldest is taken,
//! which is the sandbox itself.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::cgroup;
use super::netns::{Netns, NotPods};
use super::pod::Uid;

/// Looks for the network namespaces of running pods. Many pods are often looked for at once (a namespace
/// was labelled), so one look serves everyone who asked before it began.
#[derive(Debug)]
pub(crate) struct Finder {
    proc: PathBuf,
    not_pods: NotPods,
    seen: Mutex<(Option<Instant>, HashMap<Uid, PathBuf>)>,
}

impl Finder {
    /// `proc` is the node's.
    pub(crate) fn new(proc: PathBuf, not_pods: NotPods) -> Self {
        Self {
            proc,
            not_pods,
            seen: Mutex::default(),
        }
    }

    /// The namespace of a pod that has a process, never the node's own. Whether it is the right one is
    /// for the caller to check against the pod's addresses, if they are known.
    pub(crate) async fn find(&self, uid: &Uid) -> Option<Netns> {
        let asked = Instant::now();
        let mut seen = self.seen.lock().await;
        if seen.0.is_none_or(|began| began < asked) {
            let (proc, began) = (self.proc.clone(), Instant::now());
            let looked = tokio::task::spawn_blocking(move || look(&proc)).await;
            *seen = (Some(began), looked.unwrap_or_default());
        }
        self.not_pods.pod(seen.1.get(uid)?).ok()
    }
}

/// The namespace of each pod's oldest process below `proc` (blocking).
fn look(proc: &Path) -> HashMap<Uid, PathBuf> {
    let first_process = fs::read_to_string(proc.join("1/cgroup")).unwrap_or_default();
    let mut oldest: HashMap<Uid, (u64, PathBuf)> = HashMap::new();
    for path in all(proc) {
        let Ok(list) = fs::read_to_string(path.join("cgroup")) else {
            continue; // it ended
        };
        let Some(uid) = cgroup::pod(&list, &first_process) else {
            continue;
        };
        let Some(start) = started(&path) else {
            continue;
        };
        let netns = path.join("ns/net");
        let known = oldest
            .entry(Uid::new(&uid))
            .or_insert((start, netns.clone()));
        if start < known.0 {
            *known = (start, netns);
        }
    }
    let oldest = oldest.into_iter();
    oldest.map(|(uid, (_, path))| (uid, path)).collect()
}

/// The directories of all processes.
pub(crate) fn all(proc: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        let digits = name.to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| entry.path())
    })
}

/// When the process of that directory was started, in ticks since the node's boot; `None`: it ended.
pub(crate) fn started(process: &Path) -> Option<u64> {
    start_time(&fs::read_to_string(process.join("stat")).ok()?)
}

/// Field 22 of `/proc/PID/stat`. The name in field 2 may hold anything, so count from its end.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_survives_any_name() {
        let fields = "S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 0 0";
        assert_eq!(start_time(&format!("12 (a) b) {fields}")), Some(777));
        assert_eq!(start_time("12 (a"), None);
    }

    /// A process in a directory that looks like `/proc`.
    fn process(proc: &Path, pid: &str, cgroup: &str, started: u64, netns: &Path) {
        let process = proc.join(pid);
        fs::create_dir_all(process.join("ns")).unwrap();
        fs::write(process.join("cgroup"), cgroup).unwrap();
        let zeros = " 0".repeat(18);
        fs::write(
            process.join("stat"),
            format!("{pid} (x) S{zeros} {started}"),
        )
        .unwrap();
        std::os::unix::fs::symlink(netns, process.join("ns/net")).unwrap();
    }

    fn finder(proc: &Path) -> Finder {
        Finder::new(proc.to_owned(), NotPods::look(None).unwrap())
    }

    const UID: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn of_a_pods_processes_the_oldest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = format!("0::/kubepods-pod{}.slice/x", UID.replace('-', "_"));
        for (pid, list, started) in [
            ("9", &*cgroup, 5),
            ("5", &cgroup, 7),
            ("x", &cgroup, 1),
            ("7", "0::/", 2),
        ] {
            process(dir.path(), pid, list, started, Path::new(pid));
        }
        let expected = dir.path().join("9/ns/net");
        assert_eq!(look(dir.path()), [(Uid::new(UID), expected)].into());
    }

    #[tokio::test]
    async fn a_process_of_the_pod_that_shares_the_nodes_network_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = format!("0::/kubepods/pod{UID}/x");
        process(dir.path(), "5", &cgroup, 7, Path::new("/proc/self/ns/net"));
        assert!(finder(dir.path()).find(&Uid::new(UID)).await.is_none());
    }

    #[tokio::test]
    async fn who_asks_later_is_not_answered_with_what_was_seen_before() {
        let dir = tempfile::tempdir().unwrap();
        let finder = finder(dir.path());
        assert!(finder.find(&Uid::new(UID)).await.is_none());
        let before = finder.seen.lock().await.0;
        process(
            dir.path(),
            "5",
            &format!("0::/kubepods/pod{UID}/x"),
            7,
            Path::new("y"),
        );
        let _ = finder.find(&Uid::new(UID)).await;
        let seen = finder.seen.lock().await;
        assert!(seen.0 > before && seen.1.contains_key(&Uid::new(UID)));
    }
}
