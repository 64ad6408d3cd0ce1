//! Starts the process's log and changes its levels while it runs.
//!
//! A filter (`info`, `info,hbone::pool=trace`) and a [`Format`] enter; every `tracing` event that
//! passes leaves as one line through the [`Sink`]. Connections report under target `access`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::{Layer, Registry, fmt};

pub use crate::format::{Format, UnknownFormat};
use crate::sink::Sink;

/// The target under which connections report: `tracing::event!(target: ops::log::ACCESS, Level::INFO,
/// src.addr = %address, …, "connection complete")` (`info!` cannot take a target and dotted keys).
pub const ACCESS: &str = "access";

/// Starts the log on stdout. `filter` is `RUST_LOG`'s syntax: a level, then `module=level` pairs,
/// comma separated; empty means `info`. Call once, before the first event.
pub fn init(filter: &str, format: Format) -> Result<LogHandle, LogError> {
    let sink = Sink::new(io::stdout(), BUFFER).map_err(LogError::Thread)?;
    let (log, handle) = build(filter, format, sink)?;
    tracing::subscriber::set_global_default(log).map_err(|_| LogError::Twice)?;
    Ok(handle)
}

/// Why the log could not start or its levels could not change.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level and not `module=level`.
    #[error("{0:?} is neither a level (off, error, warn, info, debug, trace) nor module=level")]
    Directive(String),
    /// The writer thread could not start.
    #[error("log writer thread: {0}")]
    Thread(io::Error),
    /// A second call of [`init`].
    #[error("the log is already running")]
    Twice,
}

/// Changes the levels of the running log. Clones share the log.
#[derive(Clone, Debug)]
pub struct LogHandle {
    levels: Arc<Mutex<Levels>>,
    filter: reload::Handle<EnvFilter, Registry>,
    start: Arc<Levels>,
    sink: Sink,
}

impl LogHandle {
    /// The levels in force, in the syntax [`init`] reads.
    pub fn current(&self) -> String {
        self.levels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .to_string()
    }

    /// Applies `change` on top of what is in force: a bare level sets the default of all modules
    /// without an own one, `module=level` (or `module:level`, as istioctl sends) sets that module's.
    pub fn change(&self, change: &str) -> Result<(), LogError> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = levels.clone();
        next.apply(change)?;
        self.load(&next)?;
        *levels = next;
        Ok(())
    }

    /// Back to the levels of the start.
    pub fn reset(&self) -> Result<(), LogError> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        self.load(&self.start)?;
        *levels = (*self.start).clone();
        Ok(())
    }

    /// One line as it is, with its end, among the others: for who writes lines in a form that users choose. Never
    /// blocks; dropped and counted as the others are.
    pub fn line(&self, line: &[u8]) {
        self.sink.put(line);
    }

    /// Lines dropped since the start, because stdout did not keep up.
    pub fn dropped(&self) -> u64 {
        self.sink.dropped()
    }

    /// Waits, at most `limit`, for the last lines to be out. For the end of the process only: it
    /// blocks the thread.
    pub fn flush(&self, limit: Duration) -> bool {
        self.sink.flush(limit)
    }

    fn load(&self, levels: &Levels) -> Result<(), LogError> {
        self.filter
            .reload(levels.filter()?)
            .map_err(|_| LogError::Twice)
    }
}

fn build(
    filter: &str,
    format: Format,
    sink: Sink,
) -> Result<(impl tracing::Subscriber + Send + Sync, LogHandle), LogError> {
    let mut start = Levels::default();
    start.apply(filter)?;
    let (layer, handle) = reload::Layer::new(start.filter()?);
    let lines = fmt::layer().event_format(format).with_writer(sink.clone());
    let log = Registry::default().with(lines.with_filter(layer));
    Ok((
        log,
        LogHandle {
            levels: Arc::new(Mutex::new(start.clone())),
            filter: handle,
            start: Arc::new(start),
            sink,
        },
    ))
}

/// A default level and the modules that differ from it.
#[derive(Clone, Debug)]
struct Levels {
    default: LevelFilter,
    modules: BTreeMap<String, LevelFilter>,
}

impl Default for Levels {
    fn default() -> Self {
        Self {
            default: LevelFilter::INFO,
            modules: BTreeMap::new(),
        }
    }
}

impl Levels {
    fn apply(&mut self, change: &str) -> Result<(), LogError> {
        for part in change
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let bad = || LogError::Directive(part.to_owned());
            match split_directive(part) {
                None => self.default = part.parse().map_err(|_| bad())?,
                Some((module, level)) if is_module(module) => {
                    self.modules
                        .insert(module.to_owned(), level.parse().map_err(|_| bad())?);
                }
                Some(_) => return Err(bad()),
            }
        }
        Ok(())
    }

    fn filter(&self) -> Result<EnvFilter, LogError> {
        let text = self.to_string();
        EnvFilter::builder()
            .parse(&text)
            .map_err(|_| LogError::Directive(text))
    }
}

impl std::fmt::Display for Levels {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (module, level) in &self.modules {
            write!(out, "{module}={level},")?;
        }
        write!(out, "{}", self.default)
    }
}

/// `a::b=debug` or `a::b:debug` into its halves; `None` for a bare level.
fn split_directive(part: &str) -> Option<(&str, &str)> {
    part.split_once('=').or_else(|| {
        part.rsplit_once(':')
            .map(|(module, level)| (module.trim_end_matches(':'), level))
    })
}

fn is_module(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.'))
}

/// About 2,500 access log lines: rides out a reader that pauses for some seconds at 1,000
/// connections a second, and is small beside the proxy itself.
const BUFFER: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, events: impl FnOnce(&LogHandle)) -> Vec<String> {
        let memory = Memory::default();
        let sink = Sink::new(memory.clone(), BUFFER).unwrap();
        let (log, handle) = build("", format, sink).unwrap();
        tracing::subscriber::with_default(log, || events(&handle));
        assert!(handle.flush(Duration::from_secs(60)));
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn access_event() {
        let (address, error) = ("10.99.0.2:49736", "said \"no\"");
        tracing::event!(
            target: ACCESS,
            tracing::Level::ERROR,
            src.addr = %address,
            src.workload = "client",
            bytes_sent = 4u64,
            duration = "47ms",
            error,
            "connection complete"
        );
    }

    /// Compares with the golden lines key by key: same separators, same quoting, same order.
    #[test]
    fn access_lines_have_istios_shape() {
        let ours = logged(Format::Text, |_| access_event());
        let (time, rest) = ours[0].split_once('\t').unwrap();
        assert_eq!(time.len(), "2026-11-20T21:31:52.525853Z".len());
        assert_eq!(
            rest,
            "error\taccess\tconnection complete\tsrc.addr=10.99.0.2:49736 src.workload=\"client\" bytes_sent=4 \
             duration=\"47ms\" error=\"said \\\"no\\\"\""
        );
    }

    /// Every golden line, taken apart and logged again through `tracing`, comes out the same.
    #[test]
    fn golden_access_lines_are_reproduced_byte_for_byte() {
        let golden = include_str!("../testdata/access-log-server-node.txt");
        let line = golden
            .lines()
            .find(|line| line.contains("10.99.0.2:29202"))
            .unwrap();
        let ours = logged(Format::Text, |_| {
            let (source, destination, hbone) =
                ("10.99.0.2:29202", "10.99.0.3:15008", "10.99.0.3:4444");
            tracing::event!(
                target: ACCESS,
                tracing::Level::ERROR,
                src.addr = %source,
                src.workload = "client",
                src.namespace = "default",
                src.identity = "spiffe://cluster.local/ns/default/sa/client",
                dst.addr = %destination,
                dst.hbone_addr = %hbone,
                dst.workload = "server",
                dst.namespace = "default",
                dst.identity = "spiffe://cluster.local/ns/default/sa/server",
                direction = "inbound",
                bytes_sent = 0,
                bytes_recv = 0,
                duration = "0ms",
                error = "connection failed: Connection refused (os error 111)",
                "connection complete"
            );
        });
        assert_eq!(
            ours[0].split_once('\t').unwrap().1,
            line.split_once('\t').unwrap().1
        );
    }

    #[test]
    fn json_lines_parse_and_carry_the_same_keys() {
        let ours = logged(Format::Json, |_| access_event());
        let line: serde_json::Value = serde_json::from_str(&ours[0]).unwrap();
        assert_eq!(line["scope"], "access");
        assert_eq!(line["level"], "error");
        assert_eq!(line["message"], "connection complete");
        assert_eq!(line["src.addr"], "10.99.0.2:49736");
        assert_eq!(line["bytes_sent"], 4);
        assert_eq!(line["error"], "said \"no\"");
    }

    #[test]
    fn levels_change_while_running_and_come_back() {
        let lines = logged(Format::Text, |log| {
            tracing::debug!("hidden");
            log.change("debug").unwrap();
            tracing::debug!("shown");
            log.change("ops::log:error").unwrap();
            assert_eq!(log.current(), "ops::log=error,debug");
            tracing::warn!("hidden again");
            tracing::debug!(target: "other", "other module");
            assert!(
                log.change("shout").is_err(),
                "an unknown level changes nothing"
            );
            assert_eq!(log.current(), "ops::log=error,debug");
            log.reset().unwrap();
            assert_eq!(log.current(), "info");
            tracing::info!("last");
        });
        let messages: Vec<_> = lines
            .iter()
            .map(|line| line.split('\t').nth(3).unwrap())
            .collect();
        assert_eq!(messages, ["shown", "other module", "last"]);
    }
}
