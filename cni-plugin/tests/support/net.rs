//! Network namespaces and what runs inside.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace that ends with this value.
#[derive(Debug)]
pub struct Netns(String);

impl Netns {
    pub fn new(name: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ambit-t-cni-{}-{number}-{name}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let netns = Self(name);
        netns.run("ip", &["link", "set", "lo", "up"]);
        netns
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.0)
    }

    pub fn inode(&self) -> u64 {
        std::fs::metadata(self.path()).unwrap().ino()
    }

    /// A command inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    pub fn run(&self, program: &str, args: &[&str]) -> String {
        finish(program, self.command(program).args(args).output().unwrap())
    }

    pub fn spawn(&self, program: &str, args: &[&str]) -> Running {
        let mut command = self.command(program);
        Running(
            command
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Loads an nft script.
    pub fn nft(&self, script: &str) {
        let mut command = self.command("nft");
        command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        finish("nft", child.wait_with_output().unwrap());
    }

    /// Runs `visit` inside, on a thread of its own.
    pub fn enter<T: Send>(&self, visit: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = std::fs::File::open(self.path()).unwrap();
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                visit()
            });
            inside.join().unwrap()
        })
    }

    /// A veth pair from here to `other`, with addresses.
    pub fn join(&self, other: &Netns, ours: &[&str], theirs: &[&str]) {
        let (a, b) = (self.name(), other.name());
        run(
            "ip",
            &[
                "link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns",
                b,
            ],
        );
        for (netns, addresses) in [(self, ours), (other, theirs)] {
            for address in addresses {
                netns.run("ip", &["address", "add", address, "dev", "eth0", "nodad"]);
            }
            netns.run("ip", &["link", "set", "eth0", "up"]);
        }
    }

    pub fn ruleset(&self) -> String {
        self.run("nft", &["list", "ruleset"])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A process that ends with this value.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    finish(program, Command::new(program).args(args).output().unwrap())
}

fn finish(program: &str, output: Output) -> String {
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
