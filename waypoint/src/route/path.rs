//! Conditions on a path, and what part of it was matched.

use api::waypoint::PathMatch;
use api::waypoint::path_match::Match as Wire;
use regex::bytes::Regex;

use super::text;
use crate::asked::normal_pattern;

/// How a path must be. What the user wrote is given the escapes that normalised paths have.
#[derive(Debug, Clone)]
pub(super) struct Path {
    pub(super) how: How,
    pub(super) ignore_case: bool,
}

#[derive(Debug, Clone)]
pub(super) enum How {
    /// Nothing is asked of it.
    Any,
    Exact(Box<str>),
    /// By whole segments, without a slash at the end: `/a` is `/a` and `/a/b`, not `/ab`. Never empty.
    Segments(Box<str>),
    /// By characters. Never empty.
    Characters(Box<str>),
    /// With the text that it must begin with.
    Regex(Regex, Box<str>),
}

/// What part of the path the match was about: what a prefix replacement replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Matched {
    /// Bytes at the beginning of the path.
    pub length: usize,
    /// They end where a segment ends, so the replacement is joined as segments are.
    pub segments: bool,
}

impl Path {
    pub(super) const ANY: Self = Self {
        how: How::Any,
        ignore_case: false,
    };

    pub(super) fn compile(wire: Option<&PathMatch>) -> Result<Self, String> {
        let Some(wire) = wire else {
            return Ok(Self::ANY);
        };
        let how = match &wire.r#match {
            None => How::Any,
            Some(Wire::Exact(path)) => How::Exact(normal_pattern(path).into()),
            Some(Wire::Prefix(path)) => match path.trim_end_matches('/') {
                "" => How::Any,
                path => How::Segments(normal_pattern(path).into()),
            },
            Some(Wire::TextPrefix(path)) => match path.as_str() {
                "" => How::Any,
                path => How::Characters(normal_pattern(path).into()),
            },
            Some(Wire::Regex(pattern)) => How::Regex(
                text::whole(pattern, wire.ignore_case)?,
                beginning(pattern).into(),
            ),
        };
        Ok(Self {
            how,
            ignore_case: wire.ignore_case,
        })
    }

    /// What it is about in a path that it matches.
    pub(super) fn matched(&self, path: &str) -> Matched {
        match &self.how {
            How::Any => Matched {
                length: 0,
                segments: true,
            },
            How::Segments(prefix) => Matched {
                length: prefix.len(),
                segments: true,
            },
            How::Characters(prefix) => Matched {
                length: prefix.len(),
                segments: false,
            },
            How::Exact(_) | How::Regex(..) => Matched {
                length: path.len(),
                segments: false,
            },
        }
    }
}

impl Matched {
    /// The path with `replacement` in the place of what was matched. Always begins with a slash.
    pub fn replace(&self, path: &str, replacement: &str) -> String {
        let rest = path.get(self.length..).unwrap_or_default();
        let start = if self.segments {
            replacement.trim_end_matches('/')
        } else {
            replacement
        };
        let slash = if start.is_empty() {
            !rest.starts_with('/')
        } else {
            !start.starts_with('/')
        };
        let mut path = String::with_capacity(start.len() + rest.len() + 1);
        if slash {
            path.push('/');
        }
        path.push_str(start);
        path.push_str(rest);
        path
    }
}

/// Text that every match of an expression begins with, as far as it can be told by a look at it.
pub(super) fn beginning(pattern: &str) -> String {
    let mut text = String::new();
    let mut rest = pattern.chars();
    let stopped = loop {
        match rest.next() {
            Some('\\') => match rest.clone().next() {
                Some(escaped) if escaped.is_ascii_punctuation() => {
                    rest.next();
                    text.push(escaped);
                }
                _ => break Some('\\'),
            },
            Some(special @ ('.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | '{' | '^' | '$')) => {
                break Some(special);
            }
            Some(plain) => text.push(plain),
            None => break None,
        }
    };
    if matches!(stopped, Some('*' | '?' | '{')) {
        text.pop();
    }
    match stopped {
        Some(_) if alternates(pattern) => String::new(),
        _ => text,
    }
}

/// Whether there may be a `|` outside of parentheses. Where that is hard to tell, yes.
fn alternates(pattern: &str) -> bool {
    let plain = pattern.replace("(?:", "(");
    if !plain.contains('|') {
        return false;
    }
    if plain.contains('[') || plain.contains("(?") || plain.contains('\\') {
        return true;
    }
    let mut depth = 0usize;
    plain.chars().any(|each| {
        match each {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        each == '|' && depth == 0
    })
}
