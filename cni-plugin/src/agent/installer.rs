//! Keeps the plugin on the host beside the agent: [`Watch`] on a thread of its own, since it waits for the
//! kernel.
//!
//! The gate `plugin installed` is open while everything is as it should be. A complaint is logged when
//! it is new, not at every attempt.

use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::path::PathBuf;

use ops::ready::Gate;
use tokio::task::JoinHandle;

use super::{Config, Signs};
use crate::install::{Install, InstallError, Kubeconfig, Watch};

/// The installation on this node, running or not.
pub(super) struct Installer {
    watch: Watch,
    gate: Gate,
    /// Closing it ends the thread.
    running: Option<(PipeWriter, JoinHandle<()>)>,
}

impl Installer {
    pub(super) fn new(config: &Config, signs: &Signs) -> Self {
        let watch = Watch {
            install: Install {
                site: config.site.clone(),
                files: config.files.clone(),
            },
            kubeconfig: Kubeconfig::of_this_pod(&config.site.cni_run_dir),
            metrics: signs.install.clone(),
        };
        Self {
            watch,
            gate: signs.readiness.gate("plugin installed"),
            running: None,
        }
    }

    pub(super) fn start(&mut self) {
        if self.watch.kubeconfig.is_none() {
            tracing::info!("not in a pod: no kubeconfig is written for plugins");
        }
        match keep(self.watch.clone(), self.gate.clone()) {
            Ok(running) => self.running = Some(running),
            Err(error) => tracing::error!(%error, "the plugin is not installed: no pipe"),
        }
    }

    /// Ends the watch; `clean`: and takes everything off the host.
    pub(super) async fn stop(self, clean: bool) {
        if let Some((open, thread)) = self.running {
            drop(open);
            let _ = thread.await;
        }
        if !clean {
            return;
        }
        let removed = tokio::task::spawn_blocking(move || self.watch.remove()).await;
        match removed {
            Ok(Ok(())) => tracing::info!("the plugin is off the host"),
            Ok(Err(error)) => tracing::error!(%error, "the plugin is not off the host"),
            Err(error) => tracing::error!(%error, "the plugin is not off the host"),
        }
    }
}

fn keep(watch: Watch, gate: Gate) -> io::Result<(PipeWriter, JoinHandle<()>)> {
    let (stop, open) = io::pipe()?;
    let thread = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        let kept = watch.run(stop.as_fd(), |applied| note(&gate, &mut said, applied));
        if let Err(error) = kept {
            gate.close();
            tracing::error!(%error, "the plugin is not looked after any more");
        }
    });
    Ok((open, thread))
}

fn note(gate: &Gate, said: &mut String, applied: Result<Vec<PathBuf>, InstallError>) {
    match applied {
        Ok(changed) => {
            for file in changed {
                tracing::info!(file = %file.display(), "written");
            }
            said.clear();
            gate.open();
        }
        Err(error) => {
            gate.close();
            let error = error.to_string();
            if *said != error {
                tracing::error!("the plugin is not installed, trying again: {error}");
                *said = error;
            }
        }
    }
}
