//! The mesh as its chart has it: asked after every loud test, put back after one that failed.
//!
//! What puts it back is `e2e/run mend`: it works where the API server or the nodes' plugins are gone, by the container engine.

use std::{
    env,
    fs::{File, OpenOptions},
    time::Instant,
};

use anyhow::{Context as _, Result};
use tokio::task::spawn_blocking;

use crate::{cluster::Cluster, program};

/// Whoever started us is alone with the cluster already.
const ALONE: &str = "E2E_ALONE";

/// What other runs on the same cluster wait for: shared while tests are quiet.
pub struct Turn(Option<File>);

impl Turn {
    /// Opens the lock that `e2e/run` names; without one everybody has a turn.
    pub fn open() -> Result<Self> {
        let path = env::var("E2E_LOCK").unwrap_or_default();
        if path.is_empty() || env::var_os(ALONE).is_some() {
            return Ok(Self(None));
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(&path);
        file.map(|file| Self(Some(file))).context(path)
    }

    /// Beside other runs of quiet tests.
    pub async fn shared(&self) -> Result<()> {
        self.take(File::try_lock_shared, File::lock_shared).await
    }

    /// Alone.
    pub async fn alone(&self) -> Result<()> {
        self.take(File::try_lock, File::lock).await
    }

    async fn take(
        &self,
        at_once: fn(&File) -> Result<(), std::fs::TryLockError>,
        waiting: fn(&File) -> std::io::Result<()>,
    ) -> Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        // What is held is let go first: two that want to be alone would wait for each other.
        file.unlock()?;
        if at_once(file).is_ok() {
            return Ok(());
        }
        eprintln!("somebody else is at this cluster; waiting");
        let file = file.try_clone()?;
        spawn_blocking(move || waiting(&file)).await??;
        Ok(())
    }
}

/// What is wrong with the mesh, if it does not become well by itself.
pub async fn ails(cluster: &Cluster) -> Option<String> {
    let error = cluster.mesh().well().await.err()?;
    Some(format!("{error:#}"))
}

/// Puts nodes and mesh back; what it did.
pub async fn mend(cluster: &Cluster) -> Result<String> {
    let began = Instant::now();
    let alone = format!("{ALONE}=1");
    program::run("env".into(), &[&alone, "e2e/run", "mend"], "")
        .await?
        .with(0)?;
    cluster.mesh().well().await?;
    Ok(format!(
        "the mesh was put back as its chart says ({} s)",
        began.elapsed().as_secs()
    ))
}
