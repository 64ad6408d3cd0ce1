//! One event as one line.
//!
//! Text, as Istio's ztunnel prints it (tools and people parse this):
//! `<time>\t<level>\t<target>[:<spans>]\t<message>[\t<key>=<value> …]`. Strings are quoted and
//! escaped, everything else is printed bare. JSON: the same keys in one object.

use std::fmt::{self, Write};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::time::Micros;

/// The shape of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Tab separated, for people and for Istio's tools.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl std::str::FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "plain" | "text" | "" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}

/// `LOG_FORMAT` names neither `plain` nor `json`.
#[derive(Debug, thiserror::Error)]
#[error("unknown log format {0:?}: use plain or json")]
pub struct UnknownFormat(String);

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self {
            Self::Text => text(context, &mut out, event),
            Self::Json => json(context, &mut out, event),
        }
    }
}

fn text<S, N>(
    context: &FmtContext<'_, S, N>,
    out: &mut Writer<'_>,
    event: &Event<'_>,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let metadata = event.metadata();
    write!(
        out,
        "{}\t{}\t{}",
        Micros(SystemTime::now()),
        level(metadata.level()),
        metadata.target()
    )?;
    for span in context
        .event_scope()
        .into_iter()
        .flat_map(|scope| scope.from_root())
    {
        write!(out, ":{}", span.name())?;
        let extensions = span.extensions();
        if let Some(fields) = extensions
            .get::<FormattedFields<N>>()
            .filter(|fields| !fields.is_empty())
        {
            write!(out, "{{{fields}}}")?;
        }
    }
    out.write_char('\t')?;
    let mut message = Message {
        out,
        result: Ok(()),
    };
    event.record(&mut message);
    message.result?;
    let mut fields = Fields {
        out,
        separator: '\t',
        result: Ok(()),
    };
    event.record(&mut fields);
    fields.result?;
    out.write_char('\n')
}

fn level(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Prints only the message; it stands before the fields wherever the macro was given it.
struct Message<'a, 'w> {
    out: &'a mut Writer<'w>,
    result: fmt::Result,
}

impl Visit for Message<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE {
            self.result = self.result.and_then(|()| write!(self.out, "{value:?}"));
        }
    }
}

/// Prints everything but the message as `key=value`.
struct Fields<'a, 'w> {
    out: &'a mut Writer<'w>,
    separator: char,
    result: fmt::Result,
}

impl Visit for Fields<'_, '_> {
    /// Strings land here too through the default methods: their `Debug` form is quoted and
    /// escaped, which is what the format asks for; `%value` prints bare.
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != MESSAGE {
            self.result = self
                .result
                .and_then(|()| write!(self.out, "{}{}={value:?}", self.separator, field.name()));
            self.separator = ' ';
        }
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &error.to_string());
    }
}

fn json<S, N>(
    context: &FmtContext<'_, S, N>,
    out: &mut Writer<'_>,
    event: &Event<'_>,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let metadata = event.metadata();
    write!(
        out,
        r#"{{"level":"{}","time":"{}","scope":"#,
        level(metadata.level()),
        Micros(SystemTime::now())
    )?;
    let mut scope = metadata.target().to_owned();
    for span in context
        .event_scope()
        .into_iter()
        .flat_map(|scope| scope.from_root())
    {
        write!(scope, ":{}", span.name())?;
        let extensions = span.extensions();
        if let Some(fields) = extensions
            .get::<FormattedFields<N>>()
            .filter(|fields| !fields.is_empty())
        {
            write!(scope, "{{{fields}}}")?;
        }
    }
    json_string(out, &scope)?;
    let mut members = Members {
        out,
        result: Ok(()),
    };
    event.record(&mut members);
    members.result?;
    out.write_str("}\n")
}

struct Members<'a, 'w> {
    out: &'a mut Writer<'w>,
    result: fmt::Result,
}

impl Members<'_, '_> {
    fn member(&mut self, field: &Field, print: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        self.result = self.result.and_then(|()| {
            self.out.write_char(',')?;
            json_string(self.out, field.name())?;
            self.out.write_char(':')?;
            print(self.out)
        });
    }
}

impl Visit for Members<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |out| json_string(out, value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.member(field, |out| json_string(out, &error.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field, |out| json_string(out, &format!("{value:?}")));
    }
}

fn json_string(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    let quoted = serde_json::to_string(text).map_err(|_| fmt::Error)?;
    out.write_str(&quoted)
}

const MESSAGE: &str = "message";
