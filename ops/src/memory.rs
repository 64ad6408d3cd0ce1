//! Memory: how much this process has, and how much it may have before the kernel ends it.
//!
//! A container's limit is that of its control group or of one above it, whichever is the least. Both versions of control
//! groups are read; inside a container their folder shows the container's own group at its root.

use std::fs;
use std::path::{Path, PathBuf};

/// Resident memory of this process in bytes.
pub fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size())
}

/// Bytes that the process's container may use; none if it may use all there is.
pub fn limit() -> Option<u64> {
    Some(of_this_process()?.limit)
}

/// Bytes that count towards [`limit`]: this process's, or its container's where those are more. What the kernel has for
/// sockets, of which a proxy has many, is among the container's only. Reads some files, which may take milliseconds.
pub fn used() -> Option<u64> {
    let of_container = of_this_process().and_then(|group| group.used());
    of_container.max(resident())
}

/// The share of a limit beyond which nothing new is taken on: nine tenths. The rest is for what is being done already.
pub fn enough(limit: u64) -> u64 {
    limit / 10 * 9
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let size = size.ok().flatten();
    size.and_then(|size| size.try_into().ok()).unwrap_or(4096)
}

/// A control group with a limit.
#[derive(Debug)]
struct Group {
    limit: u64,
    folder: PathBuf,
    files: &'static Files,
}

/// What a version of control groups calls things.
#[derive(Debug)]
struct Files {
    limit: &'static str,
    used: &'static str,
    /// Keys of `memory.stat`: pages of files, which the kernel gives back before it ends anybody.
    given_back: [&'static str; 2],
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    given_back: ["total_inactive_file", "total_active_file"],
};
const VERSION_2: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    given_back: ["inactive_file", "active_file"],
};

impl Group {
    fn used(&self) -> Option<u64> {
        let used: u64 = read(&self.folder.join(self.files.used))?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let figures = stat.lines().filter_map(|line| line.split_once(' '));
        let given_back = figures.filter(|(key, _)| self.files.given_back.contains(key));
        let given_back = given_back.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok());
        Some(used.saturating_sub(given_back.sum()))
    }
}

fn of_this_process() -> Option<Group> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    narrowest(Path::new("/sys/fs/cgroup"), &groups)
}

/// The one with the least limit, of the `groups` that a process is in and those above them. `root`: where they are mounted.
fn narrowest(root: &Path, groups: &str) -> Option<Group> {
    let all = groups.lines().flat_map(|line| {
        // number:controllers:path; version 2 has neither number nor controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let (mounted, files) = match controllers {
            "" => (root.to_owned(), &VERSION_2),
            some if some.split(',').any(|one| one == "memory") => (root.join("memory"), &VERSION_1),
            _ => return Vec::new(),
        };
        let path = PathBuf::from(path.trim_start_matches('/'));
        let above = path.ancestors().filter_map(|group| {
            let folder = mounted.join(group);
            // Version 1 says a number beyond all memory where there is no limit.
            let limit = read(&folder.join(files.limit)).filter(|limit| *limit < 1 << 60)?;
            Some(Group {
                limit,
                folder,
                files,
            })
        });
        above.collect()
    });
    all.min_by_key(|group| group.limit)
}

/// The number in a file; "max" is none.
fn read(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of control groups with these files.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn the_least_limit_of_either_version_counts() {
        const V1: &str = "9:name=systemd:/\n4:memory:/pods/a\n0::/\n";
        const UNLIMITED: &str = "9223372036854771712\n";
        for (files, said, limit) in [
            (&[("memory.max", "1000\n")][..], "0::/\n", Some(1000)),
            (&[("memory.max", "max\n")], "0::/\n", None),
            (
                &[("memory.max", "3000\n"), ("pods/a/memory.max", "2000\n")],
                "0::/pods/a\n",
                Some(2000),
            ),
            (
                &[("pods/memory.max", "500\n"), ("pods/a/memory.max", "max\n")],
                "0::/pods/a\n",
                Some(500),
            ),
            (
                &[
                    ("memory/memory.limit_in_bytes", UNLIMITED),
                    ("memory/pods/a/memory.limit_in_bytes", "700\n"),
                ],
                V1,
                Some(700),
            ),
            // A container sees its own group at the root, whatever its path is outside.
            (&[("memory/memory.limit_in_bytes", "800\n")], V1, Some(800)),
            (
                &[("memory/memory.limit_in_bytes", UNLIMITED)],
                "4:cpu,memory:/\n",
                None,
            ),
            (&[("memory.max", "nonsense")], "0::/\n", None),
            (&[], "", None),
            (&[], "no group", None),
        ] {
            let root = groups(files);
            let found = narrowest(root.path(), said).map(|group| group.limit);
            assert_eq!(found, limit, "{files:?} {said:?}");
        }
    }

    #[test]
    fn what_a_container_uses_is_counted_but_for_what_the_kernel_gives_back() {
        const V1: &str = "4:memory:/pods/a\n1:cpu:/pods/a\n0::/\n";
        for (files, said, used) in [
            (
                &[
                    ("pods/a/memory.max", "1000\n"),
                    ("pods/a/memory.current", "900\n"),
                    (
                        "pods/a/memory.stat",
                        "anon 500\ninactive_file 300\nactive_file 50\nsock 90\n",
                    ),
                ][..],
                "0::/pods/a\n",
                Some(550),
            ),
            (
                &[
                    ("memory/pods/a/memory.limit_in_bytes", "1000\n"),
                    ("memory/pods/a/memory.usage_in_bytes", "900\n"),
                    (
                        "memory/pods/a/memory.stat",
                        "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n",
                    ),
                ],
                V1,
                Some(600),
            ),
            // Of the group whose limit counts, which may be one above.
            (
                &[
                    ("pods/memory.max", "500\n"),
                    ("pods/memory.current", "400\n"),
                    ("pods/a/memory.max", "max\n"),
                    ("pods/a/memory.current", "100\n"),
                ],
                "0::/pods/a\n",
                Some(400),
            ),
            (
                &[
                    ("memory.max", "500\n"),
                    ("memory.current", "10\n"),
                    ("memory.stat", "inactive_file 11\n"),
                ],
                "0::/\n",
                Some(0),
            ),
            (
                &[("memory.max", "max\n"), ("memory.current", "400\n")],
                "0::/\n",
                None,
            ),
        ] {
            let root = groups(files);
            let found = narrowest(root.path(), said).and_then(|group| group.used());
            assert_eq!(found, used, "{files:?}");
        }
    }

    #[test]
    fn this_process_has_some_memory() {
        let resident = resident().unwrap();
        assert!(resident > 100_000 && used().unwrap() > 100_000);
    }
}
