//! A program that runs in the background with its output in a file.

use std::{
    fs,
    fs::{File, OpenOptions},
    io::{self, PipeReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    enter, run,
    wait::{self, Probe},
};

/// A running (or ended) program. Clones are the same program; dropping them does not end it, its lab does.
#[derive(Debug, Clone)]
pub struct Process {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    what: String,
    pid: i32,
    log: PathBuf,
    child: Mutex<Child>,
    /// The other end of its stdout, if nobody listens there.
    _unheard: Option<PipeReader>,
}

impl Process {
    /// Starts `command`, stdout and stderr appended to `log`.
    pub(crate) fn start(command: Command, log: &Path) -> Result<Self> {
        Self::start_into(command, log, open(log)?, None)
    }

    /// [`Process::start`] with stdout in a pipe that nobody reads for as long as the program is known.
    pub(crate) fn start_unheard(command: Command, log: &Path) -> Result<Self> {
        let (unheard, stdout) = io::pipe()?;
        Self::start_into(command, log, stdout, Some(unheard))
    }

    fn start_into(
        mut command: Command,
        log: &Path,
        stdout: impl Into<Stdio>,
        unheard: Option<PipeReader>,
    ) -> Result<Self> {
        let what = run::spell(&command);
        command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(open(log)?);
        let child = enter::spawn(command).with_context(|| format!("starting `{what}`"))?;
        let pid = i32::try_from(child.id()).context("pid")?;
        Ok(Self {
            shared: Arc::new(Shared {
                what,
                pid,
                log: log.to_owned(),
                child: Mutex::new(child),
                _unheard: unheard,
            }),
        })
    }

    /// Its process id, also that of its process group.
    pub fn pid(&self) -> i32 {
        self.shared.pid
    }

    /// The programs that it has started and not buried.
    pub fn children(&self) -> Result<Vec<i32>> {
        let pid = self.shared.pid;
        let all = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .with_context(|| format!("the children of `{}`", self.shared.what))?;
        let children = all.split_whitespace().map(str::parse);
        children.collect::<Result<_, _>>().context("pids")
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.shared.log
    }

    /// All it has written so far (by every program that shares its log file).
    pub fn log(&self) -> String {
        fs::read(&self.shared.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        tail(&self.log(), 15)
    }

    /// Whether it has not ended.
    pub fn running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Sends a signal to the program itself (not to what it started).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child();
        if child.try_wait()?.is_some() {
            bail!("`{}` has already ended", self.shared.what);
        }
        // Not reaped yet, so the pid is still this program's.
        kill(Pid::from_raw(self.shared.pid), signal)?;
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&self, within: Duration) -> Result<ExitStatus> {
        wait::until(
            &format!("the end of `{}`", self.shared.what),
            within,
            || {
                Ok(match self.child().try_wait()? {
                    Some(status) => Probe::Ready(status),
                    None => Probe::NotYet(format!("it still runs; its log ends:\n{}", self.tail())),
                })
            },
        )
    }

    /// SIGTERM, and SIGKILL when that did not help within `grace`.
    pub fn terminate(&self, grace: Duration) -> Result<ExitStatus> {
        if self.running() {
            self.signal(Signal::SIGTERM)?;
        }
        let ended = self.wait(grace);
        if ended.is_err() {
            self.kill();
        }
        ended
    }

    /// SIGKILL to its process group, and reaps it.
    pub fn kill(&self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            enter::kill_session(&mut child);
        }
    }

    /// Waits until `ready` says so; the program's early end or the deadline are errors that show the end of its log.
    pub(crate) fn until_ready(
        &self,
        what: &str,
        within: Duration,
        mut ready: impl FnMut() -> Result<Probe<()>>,
    ) -> Result<()> {
        let outcome = wait::until(what, within, || match self.child().try_wait()? {
            Some(status) => bail!("{what}: the program ended: {status}"),
            None => ready(),
        });
        outcome.with_context(|| {
            format!(
                "`{}`, whose log {} ends:\n{}",
                self.shared.what,
                self.shared.log.display(),
                self.tail()
            )
        })
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        // A panic of another holder leaves the child as it was.
        self.shared
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(log: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.with_context(|| format!("log file {}", log.display()))
}

pub(crate) fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, log: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        enter::Entry::default().prepare(&mut command);
        Process::start(command, log).unwrap()
    }

    #[test]
    fn a_program_that_dies_before_it_is_ready_shows_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let process = sh("echo no such luck; exit 4", &dir.path().join("log"));
        let error = process
            .until_ready("luck", Duration::from_secs(20), || {
                Ok(Probe::NotYet("waiting".into()))
            })
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("no such luck") && text.contains("exit status: 4"),
            "{text}"
        );
    }

    #[test]
    fn a_program_nobody_listens_to_stops_at_a_full_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "head -c 65536 /dev/zero; echo full >&2; echo one more; echo done >&2",
        ]);
        enter::Entry::default().prepare(&mut command);
        let process = Process::start_unheard(command, &dir.path().join("log")).unwrap();
        wait::until_true("a full pipe", Duration::from_secs(20), || {
            process.log().contains("full")
        })
        .unwrap();
        assert!(process.running() && !process.log().contains("done"));
        process.kill();
    }

    #[test]
    fn killing_takes_the_programs_children_along() {
        let dir = tempfile::tempdir().unwrap();
        let process = sh("sleep 1000 & echo child $!; wait", &dir.path().join("log"));
        wait::until_true("the child", Duration::from_secs(20), || {
            process.log().contains("child")
        })
        .unwrap();
        let child: i32 = process
            .log()
            .split_whitespace()
            .last()
            .unwrap()
            .parse()
            .unwrap();
        process.kill();
        assert!(!process.running());
        wait::until_true("its end", Duration::from_secs(20), || {
            fs::read_to_string(format!("/proc/{child}/stat"))
                .map_or(true, |stat| stat.contains(") Z"))
        })
        .unwrap();
    }

    #[test]
    fn a_program_that_ignores_sigterm_is_killed_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let process = sh(
            "trap '' TERM; echo deaf; while :; do sleep 1; done",
            &dir.path().join("log"),
        );
        wait::until_true("the trap", Duration::from_secs(20), || {
            process.log().contains("deaf")
        })
        .unwrap();
        assert!(process.terminate(Duration::from_millis(100)).is_err());
        assert!(!process.running());
    }
}
