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
        Format::Table => text(&plain(&table(found))),
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
    let _ = writeln!(io::stderr().lock(), "{}", plain(line));
}

/// Text of others without what a terminal would obey; lines stay lines.
pub(crate) fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => c,
        _ if c.is_control() => char::REPLACEMENT_CHARACTER,
        _ => c,
    };
    text.chars().map(shown).collect()
}

/// Columns without lines, as kubectl prints them.
pub(crate) fn columns(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().map(|name| (*name).to_owned()));
    for row in rows {
        // A cell is one line, whoever wrote it.
        table.add_row(row.iter().map(|cell| cell.replace('\n', " ")));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_moves_no_cursor_and_makes_no_lines_of_its_own() {
        let rows = [vec![
            "shop/web\u{1b}[2J\nshop/forged".to_owned(),
            "ok\u{9b}1m".to_owned(),
        ]];
        let shown = plain(&columns(&["POD", "STATE"], rows));
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(!shown.contains(['\u{1b}', '\u{9b}']), "{shown}");
        assert!(
            shown.contains("shop/web") && shown.contains("ok"),
            "{shown}"
        );
        assert_eq!(plain("a\nb\rc"), "a\nb\u{fffd}c");
    }
}
