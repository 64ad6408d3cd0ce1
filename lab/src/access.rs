//! ztunnel's access log: one record a line, read back from its log file.
//!
//! `time ⇥ level ⇥ access ⇥ message ⇥ key=value key="va lue" …`

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::Result;

use crate::wait::{self, Probe};

/// A line is written when a connection has ended; one that is not there after this never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// One finished (or refused) connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRecord {
    /// When, as written.
    pub time: String,
    /// `info`, `warn`, `error`.
    pub level: String,
    /// `connection complete`, `connection failed`, …
    pub message: String,
    /// The rest, quotes removed.
    pub fields: BTreeMap<String, String>,
}

impl AccessRecord {
    /// A field's value, empty when absent.
    pub fn field(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    /// The `error` field, empty when the connection ended well.
    pub fn error(&self) -> &str {
        self.field("error")
    }

    /// Whether it was reported by the client's side.
    pub fn outbound(&self) -> bool {
        self.field("direction") == "outbound"
    }

    /// Whether it was reported by the server's side.
    pub fn inbound(&self) -> bool {
        self.field("direction") == "inbound"
    }

    /// A field as a number, 0 when absent.
    pub fn number(&self, key: &str) -> u64 {
        self.field(key).parse().unwrap_or(0)
    }

    /// Reads one line; `None` when it is no access record.
    pub fn parse(line: &str) -> Option<Self> {
        let mut columns = line.splitn(5, '\t');
        let (time, level, target, message) = (
            columns.next()?,
            columns.next()?,
            columns.next()?,
            columns.next()?,
        );
        if target != "access" {
            return None;
        }
        let fields = fields(columns.next().unwrap_or_default());
        Some(Self {
            time: time.into(),
            level: level.into(),
            message: message.into(),
            fields,
        })
    }
}

fn fields(mut text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some((key, rest)) = text.trim_start().split_once('=') {
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.insert(key.to_owned(), value);
        text = after;
    }
    fields
}

/// The text up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// A place in a ztunnel's log; what is read starts there.
#[derive(Debug, Clone)]
pub struct AccessLog {
    file: PathBuf,
    from: u64,
}

impl AccessLog {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file, from: 0 }
    }

    /// The same log, from its present end on.
    pub fn from_now(mut self) -> Self {
        self.from = fs::metadata(&self.file).map_or(0, |meta| meta.len());
        self
    }

    /// The records so far. A line that is still being written is left for later.
    pub fn records(&self) -> Vec<AccessRecord> {
        let bytes = fs::read(&self.file).unwrap_or_default();
        let from = usize::try_from(self.from)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let end = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(from, |at| at.max(from));
        String::from_utf8_lossy(&bytes[from..end])
            .lines()
            .filter_map(AccessRecord::parse)
            .collect()
    }

    /// Records since the last call (or the place given by [`AccessLog::from_now`]).
    pub fn fresh(&mut self) -> Vec<AccessRecord> {
        let bytes = fs::read(&self.file).unwrap_or_default();
        let from = usize::try_from(self.from)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let Some(end) = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .filter(|at| *at >= from)
        else {
            return Vec::new();
        };
        self.from = end as u64 + 1;
        String::from_utf8_lossy(&bytes[from..end])
            .lines()
            .filter_map(AccessRecord::parse)
            .collect()
    }

    /// Waits for a record that fits; the error shows the records there were.
    pub fn find(&self, what: &str, fits: impl Fn(&AccessRecord) -> bool) -> Result<AccessRecord> {
        wait::until(
            &format!("{what} in {}", self.file.display()),
            PATIENCE,
            || {
                let records = self.records();
                Ok(match records.iter().find(|record| fits(record)) {
                    Some(found) => Probe::Ready(found.clone()),
                    None => Probe::NotYet(format!("{records:#?}")),
                })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "2026-11-20T21:31:11.256428Z\terror\taccess\tconnection complete\tsrc.addr=10.99.0.2:32498 src.workload=\"client\" \
        direction=\"inbound\" bytes_sent=12 error=\"closed: \\\"why\\\" = default/deny\"";

    #[test]
    fn a_record_is_read_with_its_quotes_and_blanks() {
        let record = AccessRecord::parse(LINE).unwrap();
        assert_eq!(
            (record.level.as_str(), record.message.as_str()),
            ("error", "connection complete")
        );
        assert_eq!(record.field("src.addr"), "10.99.0.2:32498");
        assert_eq!(record.error(), "closed: \"why\" = default/deny");
        assert_eq!(record.number("bytes_sent"), 12);
        assert!(record.inbound() && !record.outbound());
        assert_eq!(record.field("absent"), "");
    }

    #[test]
    fn other_lines_are_no_records() {
        assert_eq!(AccessRecord::parse("2026\tinfo\tready\tall set\tx=1"), None);
        assert_eq!(AccessRecord::parse(""), None);
    }

    #[test]
    fn a_half_written_line_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        fs::write(&file, format!("{LINE}\n{}", &LINE[..60])).unwrap();
        let mut log = AccessLog::new(file.clone());
        assert_eq!(log.records().len(), 1);
        assert_eq!(log.fresh().len(), 1);
        assert_eq!(log.fresh().len(), 0);
        fs::write(&file, format!("{LINE}\n{LINE}\n")).unwrap();
        assert_eq!(log.fresh().len(), 1);
        assert_eq!(log.from_now().records().len(), 0);
    }
}
