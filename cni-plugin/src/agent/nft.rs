//! Loads a script into the kernel: `nft -f -`, in a pod's network namespace or in the node's.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::netns::{self, Netns, NetnsError};

/// Runs `nft`, a few at a time.
#[derive(Clone, Debug)]
pub(crate) struct Nft {
    program: PathBuf,
    slots: Arc<Semaphore>,
}

/// Why a script did not get into the kernel. It takes all of one or nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("cannot run {program}: {error}; is package nftables installed?")]
    Run { program: PathBuf, error: io::Error },
    #[error("nft refused the rules: {0}{missing}", missing = missing(.0))]
    Refused(String),
    #[error("nft did not end within 5 s")]
    Hung,
}

impl Nft {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self {
            program,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Loads `script` into `netns`, or into the namespace this process runs in.
    pub(crate) async fn load(
        &self,
        netns: Option<&Arc<Netns>>,
        script: String,
    ) -> Result<(), NftError> {
        let mut command = self.command();
        let _slot = self.slots.acquire().await;
        let child = match netns {
            Some(netns) => netns.enter(move || command.spawn()).await?,
            None => command.spawn(),
        };
        self.finish(child, script).await
    }

    /// The same for a script that names cgroups of version 2 as the first process of `proc` sees them. nft
    /// looks names up below `/sys/fs/cgroup`, so they are shown to it there, and to nobody else.
    pub(crate) async fn load_by_cgroup(
        &self,
        netns: Option<&Arc<Netns>>,
        proc: &Path,
        script: String,
    ) -> Result<(), NftError> {
        let mut command = self.command();
        let _slot = self.slots.acquire().await;
        let namespace = proc.join("1/ns/cgroup");
        let child = netns::aside(netns, move || {
            see_cgroups_of(&namespace)?;
            command.spawn()
        });
        self.finish(child.await?, script).await
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn finish(&self, child: io::Result<Child>, script: String) -> Result<(), NftError> {
        let failed = |error| NftError::Run {
            program: self.program.clone(),
            error,
        };
        let finished = tokio::time::timeout(DEADLINE, feed(child.map_err(failed)?, script)).await;
        let output = finished.map_err(|_| NftError::Hung)?.map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(NftError::Refused(
            said.lines().take(4).collect::<Vec<_>>().join(" "),
        ))
    }
}

/// What a kernel lacks that does not know what a rule is made of. Only the rules of UDP need what not every kernel has that
/// Kubernetes runs on.
fn missing(said: &str) -> String {
    let unknown = ["No such file or directory", "Operation not supported"];
    if !unknown.iter().any(|why| said.contains(why)) {
        return String::new();
    }
    let modules = [(" tproxy ", "nft_tproxy"), (" fib ", "nft_fib_inet")];
    let of_it = modules.into_iter().filter(|(word, _)| said.contains(word));
    let names: Vec<_> = of_it.map(|(_, module)| module).collect();
    match names[..] {
        [] => String::new(),
        _ => format!(
            "; this kernel has no {}, which UDP needs that is captured: load it on the node, or take label ambit.io/udp away",
            names.join(" or no ")
        ),
    }
}

/// Changes what the calling thread, which must end soon, and its children see.
fn see_cgroups_of(namespace: &Path) -> io::Result<()> {
    let what = |errno: Errno, doing: &str| io::Error::other(format!("{doing}: {errno}"));
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| what(errno, "a mount namespace"))?;
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWCGROUP)
        .map_err(|errno| what(errno, "the node's cgroup namespace"))?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(|errno| what(errno, "private mounts"))?;
    mount(
        Some("cgroup2"),
        CGROUPS,
        Some("cgroup2"),
        MsFlags::empty(),
        none,
    )
    .map_err(|errno| what(errno, "mounting cgroup2"))
}

async fn feed(mut child: Child, script: String) -> io::Result<std::process::Output> {
    if let Some(mut stdin) = child.stdin.take() {
        // An nft that ends early says why on stderr; that is worth more than the broken pipe.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    child.wait_with_output().await
}

const CGROUPS: &str = "/sys/fs/cgroup";
const DEADLINE: Duration = Duration::from_secs(5);
/// Keeps a node with hundreds of pods from starting hundreds of processes.
const AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_what_udp_needs_is_told_of_by_the_names_of_the_modules() {
        let said = |what: &str, why: &str| {
            let rule =
                format!("/dev/stdin:12:17-90: Error: Could not process rule: {why} {what} ^^^^");
            NftError::Refused(rule).to_string()
        };
        for (what, modules) in [
            (
                "meta l4proto udp counter tproxy ip to 127.0.0.1:15001",
                "no nft_tproxy, which",
            ),
            (
                "meta l4proto udp fib daddr type local counter",
                "no nft_fib_inet, which",
            ),
            (
                "udp fib daddr type local counter tproxy ip to 127.0.0.1:15006",
                "no nft_tproxy or no nft_fib_inet, which",
            ),
        ] {
            let told = said(what, "No such file or directory");
            assert!(told.contains(modules), "{told}");
        }
        for (what, why) in [
            (
                "tcp dport 53 counter redirect to :15053",
                "No such file or directory",
            ),
            (
                "counter tproxy ip to 127.0.0.1:15001",
                "Operation not permitted",
            ),
        ] {
            let told = said(what, why);
            assert!(!told.contains("this kernel"), "{told}");
        }
    }
}
