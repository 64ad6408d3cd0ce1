//! A command in a pod: as whom, with what, for how long.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result};

use super::Pod;
use crate::{
    process::Process,
    run::{self, Ran},
};

/// A command to be run in a pod.
#[derive(Debug)]
#[must_use = "a command runs with `run` or `spawn`"]
pub struct PodCommand {
    pod: Pod,
    command: Command,
    user: Option<String>,
    input: Vec<u8>,
    within: Duration,
}

impl PodCommand {
    pub(super) fn new(pod: Pod, command: Command, within: Duration) -> Self {
        Self {
            pod,
            command,
            user: None,
            input: Vec::new(),
            within,
        }
    }

    /// Runs it as another user than root.
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.into());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// What it reads from stdin (less than a pipe holds).
    pub fn input(mut self, input: &str) -> Self {
        self.input = input.into();
        self
    }

    /// After this it is killed, which is an error; 30 s if not said.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = deadline;
        self
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Result<Ran> {
        self.enter()?;
        run::run_entered(self.command, &self.input, self.within)
            .with_context(|| format!("in pod {}", self.pod.name()))
    }

    /// Starts it in the background, its output in `<name>.log` of the pod's directory.
    pub fn spawn(mut self, name: &str) -> Result<Process> {
        self.enter()?;
        let log = self.pod.dir().join(format!("{name}.log"));
        let process = Process::start(self.command, &log)
            .with_context(|| format!("in pod {}", self.pod.name()))?;
        self.pod.adopt(process.clone());
        Ok(process)
    }

    fn enter(&mut self) -> Result<()> {
        let mut entry = self.pod.entry()?;
        if let Some(user) = &self.user {
            entry = entry.user(user)?;
        }
        entry.prepare(&mut self.command);
        Ok(())
    }
}
