//! Texts, and what they are compared with.
//!
//! Values are bytes: a header may hold any, and comparing them needs no decoding.

use api::waypoint::StringMatch;
use api::waypoint::string_match::Match as Wire;
use regex::bytes::{Regex, RegexBuilder};

/// Longest regular expression that is taken, in bytes.
const PATTERN_LIMIT: usize = 4096;
/// What one compiled expression may take, in bytes. `\w{500}` and the like are refused rather than built.
const PROGRAM_LIMIT: usize = 256 << 10;

/// A condition on one text.
#[derive(Debug, Clone)]
pub struct Text {
    how: How,
    ignore_case: bool,
    invert: bool,
}

#[derive(Debug, Clone)]
enum How {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Regex(Regex),
    Present(bool),
}

impl Text {
    /// What is wrong with it, or the condition.
    pub fn compile(wire: &StringMatch) -> Result<Self, String> {
        let bytes = |text: &str| text.as_bytes().into();
        let how = match &wire.r#match {
            Some(Wire::Exact(text)) => How::Exact(bytes(text)),
            Some(Wire::Prefix(text)) => How::Prefix(bytes(text)),
            Some(Wire::Suffix(text)) => How::Suffix(bytes(text)),
            Some(Wire::Regex(text)) => How::Regex(whole(text, wire.ignore_case)?),
            Some(Wire::Present(wanted)) => How::Present(*wanted),
            None => return Err("a text is compared with nothing".into()),
        };
        Ok(Self {
            how,
            ignore_case: wire.ignore_case,
            invert: wire.invert,
        })
    }

    /// Whether the value is one that is meant. None: there is no value.
    pub fn matches(&self, value: Option<&[u8]>) -> bool {
        self.meets(value) != self.invert
    }

    fn meets(&self, value: Option<&[u8]>) -> bool {
        let Some(value) = value else {
            return matches!(self.how, How::Present(false));
        };
        match &self.how {
            How::Exact(text) => same(value, text, self.ignore_case),
            How::Prefix(text) => value
                .get(..text.len())
                .is_some_and(|start| same(start, text, self.ignore_case)),
            How::Suffix(text) => value
                .len()
                .checked_sub(text.len())
                .is_some_and(|at| same(&value[at..], text, self.ignore_case)),
            How::Regex(regex) => regex.is_match(value),
            How::Present(wanted) => *wanted,
        }
    }

    /// The one value that is meant, if there is just one.
    pub(crate) fn only(&self) -> Option<&[u8]> {
        match &self.how {
            How::Exact(text) if !self.ignore_case && !self.invert => Some(text),
            _ => None,
        }
    }
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case {
        a.eq_ignore_ascii_case(b)
    } else {
        a == b
    }
}

/// An expression in RE2's syntax that must match the whole value.
pub(crate) fn whole(pattern: &str, ignore_case: bool) -> Result<Regex, String> {
    // On its own first, so that `a)|(b` cannot leave the group.
    let build = |text: &str, unicode| {
        RegexBuilder::new(text)
            .case_insensitive(ignore_case)
            .unicode(unicode)
            .size_limit(PROGRAM_LIMIT)
            .dfa_size_limit(PROGRAM_LIMIT)
            .build()
    };
    compiled(pattern, build)?;
    compiled(&format!(r"\A(?:{pattern})\z"), build)
}

/// An expression that may match anywhere in a path.
pub(crate) fn search(pattern: &str) -> Result<Regex, String> {
    compiled(pattern, |text, unicode| {
        RegexBuilder::new(text)
            .unicode(unicode)
            .size_limit(PROGRAM_LIMIT)
            .dfa_size_limit(PROGRAM_LIMIT)
            .build()
    })
}

fn compiled(
    pattern: &str,
    build: impl Fn(&str, bool) -> Result<Regex, regex::Error>,
) -> Result<Regex, String> {
    if pattern.len() > PATTERN_LIMIT {
        return Err(format!(
            "a regular expression of {} bytes is longer than {PATTERN_LIMIT}",
            pattern.len()
        ));
    }
    // RE2's \d, \w and \s are ASCII's. What only makes sense in Unicode (\p{Greek}, [é]) gets it.
    build(pattern, false)
        .or_else(|_| build(pattern, true))
        .map_err(|error| format!("regular expression {pattern:?}: {}", first_line(&error)))
}

fn first_line(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "is too large when compiled".into(),
        other => {
            let text = other.to_string();
            text.lines().last().unwrap_or_default().trim().into()
        }
    }
}
