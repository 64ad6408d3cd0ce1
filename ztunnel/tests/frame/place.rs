//! Network namespaces for tests: anonymous, gone with the last descriptor, nothing to clean up.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use ztunnel::netns::{Netns, Options};

/// A namespace with its loopback up.
pub(crate) struct Place {
    fd: OwnedFd,
}

impl Place {
    /// `None` without root, said aloud; a failure where tests must not be skipped (`CI=true`).
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(
                std::env::var("CI").as_deref(),
                Ok("true"),
                "needs root, and CI must not skip it"
            );
            eprintln!("SKIPPED: needs root (network namespaces)");
            return None;
        }
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            std::fs::File::open("/proc/thread-self/ns/net")
                .unwrap()
                .into()
        });
        Some(Self {
            fd: made.join().unwrap(),
        })
    }

    /// Runs something with the whole thread inside.
    pub(crate) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let fd = self.fd();
        let thread = std::thread::spawn(move || {
            setns(fd.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// Runs a shell command inside; it must succeed.
    pub(crate) fn run(&self, command: &'static str) {
        self.inside(move || run(command));
    }

    pub(crate) fn fd(&self) -> OwnedFd {
        self.fd.try_clone().unwrap()
    }

    /// As the proxy sees it.
    pub(crate) fn netns(&self) -> Netns {
        Netns::new(self.fd(), options()).unwrap()
    }
}

pub(crate) fn options() -> Options {
    Options {
        mark: 0x539,
        keepalive: None,
        user_timeout: None,
        reuse_port: true,
        ipv6: true,
    }
}

fn run(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
