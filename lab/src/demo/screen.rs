//! Lines on a terminal: aligned, coloured where someone looks, plain in a pipe.
#![allow(clippy::print_stdout)] // this file is where the demo prints

use std::io::{IsTerminal, Write};

/// How a piece of text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
    Notable,
    Accent,
}

/// Where everything is printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    colours: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none();
        Self {
            colours: wanted && std::io::stdout().is_terminal(),
        }
    }

    /// Whether a person may be watching, and lines can be drawn again.
    pub(super) fn live(self) -> bool {
        self.colours
    }

    pub(super) fn title(self, text: &str) {
        self.line(&format!("\n{}", self.paint(Tone::Strong, text)));
    }

    pub(super) fn chapter(self, number: usize, text: &str) {
        self.line(&format!(
            "\n{} {}",
            self.paint(Tone::Accent, &format!("{number}.")),
            self.paint(Tone::Strong, text)
        ));
    }

    pub(super) fn step(self, text: &str) {
        self.line(&format!("   {}", self.paint(Tone::Faint, text)));
    }

    pub(super) fn note(self, text: &str) {
        self.line(&format!("   {text}"));
    }

    pub(super) fn done(self, text: &str) {
        self.line(&format!(" {} {text}", self.paint(Tone::Good, "✓")));
    }

    pub(super) fn failure(self, error: &anyhow::Error) {
        self.line(&format!(
            "\n {} {}",
            self.paint(Tone::Bad, "✗ the demo failed:"),
            error
        ));
        for cause in error.chain().skip(1) {
            self.line(&format!("   because: {cause}"));
        }
    }

    pub(super) fn parting(self, clean: bool) {
        let text = if clean {
            "everything is removed again"
        } else {
            "not everything could be removed: run `lab clean`"
        };
        self.line(&format!("\n   {text}"));
    }

    /// Text of a file, set apart.
    pub(super) fn quote(self, text: &str) {
        for line in text.trim_end().lines() {
            self.line(&format!(
                "     {}",
                self.paint(Tone::Notable, &format!("│ {line}"))
            ));
        }
    }

    /// A row of cells, each padded to its column.
    pub(super) fn row(self, cells: &[(usize, Tone, &str)]) {
        self.line(&self.compose(cells));
    }

    pub(super) fn compose(self, cells: &[(usize, Tone, &str)]) -> String {
        let mut line = String::from("   ");
        for (width, tone, text) in cells {
            // Padding outside of the colour: escape codes have no width.
            let gap = width.saturating_sub(text.chars().count()) + 2;
            line += &format!("{}{:gap$}", self.paint(*tone, text), "");
        }
        line.trim_end().to_owned()
    }

    /// Draws `lines` over the whole terminal.
    pub(super) fn redraw(self, lines: &[String]) {
        self.line(&format!("\x1b[H\x1b[2J{}", lines.join("\n")));
    }

    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Notable => "33",
            Tone::Accent => "36",
        };
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(self, text: &str) {
        // A reader that has gone away (`| head`) is no reason to fail.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }
}

/// A number of bytes as a person reads it.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_colours() {
        let cells = [
            (6, Tone::Good, "ab"),
            (4, Tone::Plain, "→x"),
            (1, Tone::Bad, "end"),
        ];
        let plain = Screen { colours: false }.compose(&cells);
        assert_eq!(plain, "   ab      →x    end");
        let painted = Screen { colours: true }.compose(&cells);
        assert_eq!(
            painted,
            "   \x1b[32mab\x1b[0m      →x    \x1b[31mend\x1b[0m"
        );
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1_500), bytes(2_000_000)],
            ["0 B", "999 B", "1.5 kB", "2.0 MB"]
        );
    }
}
