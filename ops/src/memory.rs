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
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_below(Path::new("/sys/fs/cgroup"), &groups)
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

/// The least limit of the `groups` that a process is in and of those above them. `root`: where they are mounted.
fn limit_below(root: &Path, groups: &str) -> Option<u64> {
    let files = groups.lines().flat_map(|line| {
        // number:controllers:path; version 2 has neither number nor controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let (folder, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            some if some.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let path = PathBuf::from(path.trim_start_matches('/'));
        let above = path.ancestors().map(|group| folder.join(group).join(file));
        above.collect()
    });
    files.filter_map(|file| read(&file)).min()
}

/// The number in a file of a group, if it is a limit.
fn read(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    // "max" is none; version 1 says a number beyond all memory instead.
    let limit: u64 = text.trim().parse().ok()?;
    (limit < 1 << 60).then_some(limit)
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
            assert_eq!(limit_below(root.path(), said), limit, "{files:?} {said:?}");
        }
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(resident().unwrap() > 100_000);
    }
}
