//! One of the real binaries in its place: started, waited for, stopped, killed, started again.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{process::Process, run, wait::Probe};

/// A debug build on a busy two-core machine takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);

type Recipe = Box<dyn Fn() -> Result<Command> + Send + Sync>;
type Ready = Box<dyn Fn() -> Result<Probe<()>> + Send + Sync>;

/// A program of the mesh that can be stopped and started while the lab stands.
pub struct Component {
    name: String,
    log: PathBuf,
    recipe: Recipe,
    ready: Ready,
    process: Mutex<Option<Process>>,
}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Component")
            .field("name", &self.name)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl Component {
    pub(crate) fn new(name: &str, log: PathBuf, recipe: Recipe, ready: Ready) -> Self {
        Self {
            name: name.to_owned(),
            log,
            recipe,
            ready,
            process: Mutex::new(None),
        }
    }

    /// What it is called in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log, over all its lives.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.until_ready()
    }

    /// Starts it without waiting.
    pub fn launch(&self) -> Result<()> {
        self.launch_by(Process::start)
    }

    /// [`Component::start`] with its stdout in a pipe that nobody reads.
    pub fn start_unheard(&self) -> Result<()> {
        self.launch_by(Process::start_unheard)?;
        self.until_ready()
    }

    fn launch_by(&self, start: impl Fn(Command, &Path) -> Result<Process>) -> Result<()> {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(Process::running) {
            bail!("{} is already running", self.name);
        }
        let process = start((self.recipe)()?, &self.log).with_context(|| self.name.clone())?;
        *slot = Some(process);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub fn until_ready(&self) -> Result<()> {
        self.process()?.until_ready(
            &format!("{} to become ready", self.name),
            PATIENCE,
            &self.ready,
        )
    }

    /// Whether it is ready at this moment.
    pub fn is_ready(&self) -> bool {
        self.running() && matches!((self.ready)(), Ok(Probe::Ready(())))
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.process()?.kill();
        Ok(())
    }

    /// SIGTERM, and its end within `grace`.
    pub fn terminate(&self, grace: Duration) -> Result<ExitStatus> {
        self.process()?
            .terminate(grace)
            .with_context(|| self.name.clone())
    }

    /// SIGTERM, its end, and a new start until ready.
    pub fn restart(&self) -> Result<()> {
        self.terminate(PATIENCE)?;
        self.start()
    }

    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.slot().as_ref().is_some_and(Process::running)
    }

    /// The running (or last) process.
    pub fn process(&self) -> Result<Process> {
        self.slot()
            .clone()
            .with_context(|| format!("{} was never started", self.name))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command with nothing of our own environment but what makes errors readable.
pub(crate) fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", run::SEARCH_PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("RUST_BACKTRACE", "1");
    command
}
