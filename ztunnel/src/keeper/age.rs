//! Since when this ztunnel's listeners are there: as long as whoever holds them, its keeper, or itself where it has none.

use std::fs;
use std::io;

use nix::unistd::{getpid, getppid};

use super::KEPT;

/// In the kernel's ticks since it began: the same clock for every container of the node.
///
/// # Errors
/// When `/proc` does not say.
pub(crate) fn since() -> io::Result<u64> {
    let keeper = std::env::var(KEPT).ok();
    let keeper = keeper.and_then(|said| said.split_once(' ')?.0.parse().ok());
    let parent = getppid().as_raw();
    let holder = match keeper == Some(parent) {
        true => parent,
        false => getpid().as_raw(),
    };
    let stat = fs::read_to_string(format!("/proc/{holder}/stat"))?;
    begun(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// When the process of this `stat` began.
fn begun(stat: &str) -> Option<u64> {
    // The name may hold anything, and ends with the last bracket; the 22nd field is the 20th behind it.
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_began_when_its_stat_says_whatever_it_is_called() {
        let rest = "S 1 2 2 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 4 0 8123456 1000 50";
        assert_eq!(begun(&format!("2 (ztunnel) {rest} 7 8")), Some(8_123_456));
        assert_eq!(begun(&format!("2 (a) 1 (b c) {rest}")), Some(8_123_456));
        assert_eq!(begun("2 (ztunnel) S 1"), None);
        assert_eq!(begun(""), None);
    }

    #[test]
    fn this_process_began_before_a_child_of_it() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        assert!(since().unwrap() <= begun(&stat).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
