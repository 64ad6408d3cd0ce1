//! The plugin's log. It has no terminal and no logger of its own: its lines go to the agent, which
//! prints them among its own, or to a file beside the agent's sockets while the agent is away.
//!
//! The body is a JSON list of strings, each a JSON object with level, time and msg.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::agent_socket;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// Lines of one call.
#[derive(Debug)]
pub(super) struct Log {
    from: Level,
    lines: Vec<String>,
}

impl Log {
    /// `level` as in the network configuration; anything unknown means info.
    pub(super) fn new(level: &str) -> Self {
        let from = match level {
            "debug" | "all" => Level::Debug,
            "warn" => Level::Warn,
            "error" | "fatal" | "none" => Level::Error,
            _ => Level::Info,
        };
        Self {
            from,
            lines: Vec::new(),
        }
    }

    pub(super) fn line(&mut self, level: Level, message: fmt::Arguments<'_>) {
        if level >= self.from {
            let time = ops::time::Micros(std::time::SystemTime::now()).to_string();
            let line = json!({ "level": level.name(), "time": time, "msg": message.to_string() });
            self.lines.push(line.to_string());
        }
    }

    /// To the agent, or else to the file. A log that gets lost stops no pod.
    pub(super) fn send(self, run_dir: &Path) {
        if self.lines.is_empty() {
            return;
        }
        let body = json!(self.lines).to_string().into_bytes();
        if agent_socket::log(run_dir, body).is_err() {
            let _ = append(&run_dir.join(LOG_FILE), &self.lines);
        }
    }
}

/// The kubelet tries for as long as the agent is away, so the file starts again when it is full.
fn append(path: &Path, lines: &[String]) -> std::io::Result<()> {
    let full = fs::metadata(path).is_ok_and(|file| file.len() > FILE_LIMIT);
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(!full)
        .truncate(full)
        .open(path)?;
    file.write_all((lines.join("\n") + "\n").as_bytes())
}

/// Beside the agent's sockets.
pub(crate) const LOG_FILE: &str = "istio-cni.log";
const FILE_LIMIT: u64 = 1 << 20;
