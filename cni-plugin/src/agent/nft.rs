//! Loads a script into the kernel: `nft -f -`, in a pod's network namespace or in the node's.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::netns::{Netns, NetnsError};

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
    #[error("nft refused the rules: {0}")]
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
        let _slot = self.slots.acquire().await;
        let failed = |error| NftError::Run {
            program: self.program.clone(),
            error,
        };
        let mut command = Command::new(&self.program);
        command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = match netns {
            Some(netns) => netns.enter(move || command.spawn()).await?,
            None => command.spawn(),
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

async fn feed(mut child: Child, script: String) -> io::Result<std::process::Output> {
    if let Some(mut stdin) = child.stdin.take() {
        // An nft that ends early says why on stderr; that is worth more than the broken pipe.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    child.wait_with_output().await
}

const DEADLINE: Duration = Duration::from_secs(5);
/// Keeps a node with hundreds of pods from starting hundreds of processes.
const AT_ONCE: usize = 8;
