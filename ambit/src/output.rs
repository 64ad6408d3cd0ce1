//! What is printed: findings to standard output, progress to standard error.

use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Columns for a person.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Prints `found` for a machine, or what `table` makes of it for a person.
pub(crate) fn print<T: Serialize>(
    format: Format,
    found: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Table => text(&table(found)),
        Format::Json => text(&format!("{}\n", serde_json::to_string_pretty(found)?)),
        Format::Yaml => text(&serde_saphyr::to_string(found)?),
    }
}

/// To standard output; a reader that has gone away (`| head`) is no failure.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A line of progress.
pub(crate) fn say(line: &str) {
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Columns without lines, as kubectl prints them.
pub(crate) fn columns(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().map(|name| (*name).to_owned()));
    for row in rows {
        table.add_row(row);
    }
    let lines = table.to_string();
    // The style pads each cell on both sides.
    let trimmed: Vec<&str> = lines
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
        .collect();
    let mut text = trimmed.join("\n");
    text.push('\n');
    text
}
