//! Short commands: run to the end, what they printed, an error that repeats what they said.

use std::{
    io::{Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{enter, wait};

/// Where programs are looked for; the environment of whoever started us does not leak into a lab.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Long enough for anything that is not stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Until what an ended program wrote has been read; longer only if a child of its own holds the pipe.
const GATHERING: Duration = Duration::from_secs(10);

/// What a finished command left.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout, invalid UTF-8 replaced.
    pub stdout: String,
    /// What it wrote to stderr, invalid UTF-8 replaced.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
    what: String,
}

impl Ran {
    /// Whether it exited with 0.
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// Stdout of a command that exited with 0; else an error with both outputs.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!(
            "`{}`: {}\n{}{}",
            self.what,
            self.status,
            self.stdout,
            self.stderr
        )
    }
}

/// Runs to the end; failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, b"")
}

pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let what = spell(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{what}`"))?;
    feed(&mut child, input);
    collect(child, what, PATIENCE)?.success()
}

/// Runs a command that must enter somewhere first (see [`enter`]).
pub(crate) fn run_entered(mut command: Command, input: &[u8], within: Duration) -> Result<Ran> {
    let what = spell(&command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = enter::spawn(command).with_context(|| format!("starting `{what}`"))?;
    feed(&mut child, input);
    collect(child, what, within)
}

/// Small inputs only: they fit the pipe. A program that does not read its input is none of our business.
fn feed(child: &mut Child, input: &[u8]) {
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
}

fn collect(mut child: Child, what: String, within: Duration) -> Result<Ran> {
    let started = Instant::now();
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let ended = wait::until(&format!("the end of `{what}`"), within, || {
        Ok(match child.try_wait()? {
            Some(status) => wait::Probe::Ready(status),
            None => wait::Probe::NotYet("it still runs and was killed".into()),
        })
    });
    let took = started.elapsed();
    if ended.is_err() {
        enter::kill_session(&mut child);
    }
    let text = |output: &mpsc::Receiver<Vec<u8>>| {
        let bytes = output.recv_timeout(GATHERING)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (stdout, stderr): (Result<_>, Result<_>) = (text(&stdout), text(&stderr));
    let status = ended.map_err(|error| {
        let said = |output: &Result<String>| output.as_deref().unwrap_or_default().to_owned();
        anyhow!("{error}\n{}{}", said(&stdout), said(&stderr))
    })?;
    // Not known is not the same as nothing.
    let held = || format!("`{what}` has ended, and something it started still holds its output");
    let (stdout, stderr) = (stdout.with_context(held)?, stderr.with_context(held)?);
    Ok(Ran {
        status,
        stdout,
        stderr,
        took,
        what,
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (give, take) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = give.send(bytes);
    });
    take
}

/// A command as one would type it, near enough.
pub(crate) fn spell(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_repeats_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3\nout\nerr"), "{error}");
    }

    #[test]
    fn output_that_somebody_still_holds_is_an_error_and_not_empty() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo here; sleep 40 &"]);
        let error = run_entered(command, b"", PATIENCE).unwrap_err().to_string();
        assert!(error.contains("still holds its output"), "{error}");
    }

    #[test]
    fn a_command_that_never_ends_is_killed_and_named() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let error = run_entered(command, b"", Duration::from_millis(50))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`sleep 1000`"), "{error}");
    }
}
