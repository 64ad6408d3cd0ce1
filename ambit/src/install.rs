//! `ambit install`, `ambit upgrade`, `ambit uninstall`.
//!
//! 1. the manifest: the one built in, or a file                      [`bundle`]
//! 2. what the caller wants otherwise: images, identity, paths       [`change`]
//! 3. is there a mesh already, and whose is it                       [`owner`]
//! 4. apply it stage by stage, waiting for each part                 [`apply`], [`rollout`]
//! 5. remove what an earlier version left and this one lacks         [`prune`]

mod apply;
mod bundle;
mod change;
mod owner;
mod prune;
#[cfg(test)]
mod rights;
mod rollout;
mod uninstall;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::Outcome;
use crate::cluster::Access;
use crate::output::say;
pub(crate) use rollout::Progress;
pub(crate) use uninstall::Uninstall;

/// Flags of `install` and of `upgrade`.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Apply this manifest instead of the one built in: what `helm template` printed with your values.
    #[arg(short = 'f', long, value_name = "FILE")]
    filename: Option<PathBuf>,
    #[command(flatten)]
    wishes: change::Wishes,
    /// Print what would be applied, and apply nothing.
    #[arg(long)]
    print: bool,
    /// How long each part may take to become ready, seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Apply even when another mesh is on the cluster or Helm installed this one.
    #[arg(long)]
    force: bool,
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing need be there; a mesh of ours that is there is brought to this version.
    Install,
    /// A mesh of ours must be there.
    Upgrade,
}

impl Install {
    pub(crate) async fn run(&self, access: &Access, mode: Mode) -> anyhow::Result<Outcome> {
        let text = match &self.filename {
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| path.display().to_string())?
            }
            None => bundle::BUILT_IN.to_owned(),
        };
        let mut objects = bundle::read(&text)?;
        change::namespace(&mut objects, &access.system)?;
        self.wishes.apply(&mut objects)?;
        bundle::label(&mut objects);
        if self.print {
            crate::output::text(&bundle::print(&objects)?)?;
            return Ok(Outcome::Well);
        }

        let client = access.connect().await?;
        let found = owner::find(&client, &access.system).await?;
        if let Some(reason) = found.refusal(mode) {
            if !self.force {
                bail!("{reason}");
            }
            say(&format!("! {reason} (--force)"));
        }
        if let Some(version) = found.version() {
            say(&format!(
                "* mesh {version} is here; bringing it to {}",
                env!("CARGO_PKG_VERSION")
            ));
        }
        let timeout = Duration::from_secs(self.timeout);
        for (stage, objects) in bundle::stages(&objects) {
            apply::stage(&client, stage, &objects).await?;
            rollout::wait(&client, &access.system, stage, &objects, timeout).await?;
        }
        let removed = prune::leftovers(&client, &objects).await?;
        for name in removed {
            say(&format!("- {name} belonged to an earlier version"));
        }
        say(
            "the mesh is installed; next:\n    ambit enroll NAMESPACE     # or: kubectl label namespace NAMESPACE istio.io/dataplane-mode=ambient\n    ambit status",
        );
        Ok(Outcome::Well)
    }
}
