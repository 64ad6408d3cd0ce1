//! Keeps what connections report, as the text of their log lines.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Starts keeping; once per process, for all tests.
pub(crate) fn keep() {
    static START: Once = Once::new();
    START.call_once(|| tracing::subscriber::set_global_default(Keeper).unwrap());
}

/// The first line that contains all of these, which must come within some seconds.
pub(crate) async fn line(parts: &[&str]) -> String {
    for _ in 0..6000 {
        if let Some(found) = lines(parts).into_iter().next() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all = LINES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .join("\n");
    panic!("no line with {parts:?} in\n{all}");
}

/// All lines that contain all of these, now.
pub(crate) fn lines(parts: &[&str]) -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines
        .iter()
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .cloned()
        .collect()
}

struct Keeper;

impl Subscriber for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == ops::log::ACCESS && *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = event.metadata().level().to_string().to_lowercase();
        let line = format!(
            "{level}\taccess\t{}\t{}",
            line.message,
            line.fields.trim_start()
        );
        LINES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// One event in Istio's text form: text quoted, all else as it is.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            let _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.fields, " {}={value:?}", field.name());
    }
}
