//! Paths as policies write them.
//!
//! A pattern is compared in two readings: as normalised paths are written, and with all escapes decoded and
//! `;parameters` cut off, as a lax app may read (`asked`). Where they differ, nobody knows.

use std::cell::OnceCell;

use super::pattern::{Case, Pattern};
use super::truth::Truth;
use crate::asked::{liberal, liberal_pattern, normal_pattern};

/// What a policy wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathPattern {
    normal: Shape,
    liberal: Shape,
    /// It has parameters itself: those of the path then count.
    parameters: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Text(Pattern),
    Template(Box<[Step]>),
    /// Braces in a way that templates do not have: nobody knows what it matches.
    Unreadable,
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Literal(Box<[u8]>),
    /// `{*}`: one segment, not empty.
    Segment,
    /// `{**}`: anything, slashes too; the last of a template.
    Anything,
}

/// A path and how else it may be read, worked out when first asked for.
#[derive(Debug)]
pub(super) struct Readings<'a> {
    normal: &'a str,
    decoded: OnceCell<Option<Vec<u8>>>,
    cut: OnceCell<Option<Vec<u8>>>,
}

impl<'a> Readings<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        Self {
            normal: path,
            decoded: OnceCell::new(),
            cut: OnceCell::new(),
        }
    }

    fn liberal(&self, with_parameters: bool) -> &[u8] {
        let (cell, cut) = if with_parameters {
            (&self.decoded, false)
        } else {
            (&self.cut, true)
        };
        let read = cell.get_or_init(|| liberal(self.normal, cut));
        read.as_deref().unwrap_or(self.normal.as_bytes())
    }
}

impl PathPattern {
    pub(super) fn new(text: &str) -> Self {
        let parameters = liberal_pattern(text).contains(&b';');
        if !text.contains(['{', '}']) {
            return Self {
                normal: Shape::Text(Pattern::written(text, as_normal)),
                liberal: Shape::Text(Pattern::written(text, liberal_pattern)),
                parameters,
            };
        }
        let Some(steps) = template(text) else {
            return Self {
                normal: Shape::Unreadable,
                liberal: Shape::Unreadable,
                parameters,
            };
        };
        let written = |as_written: fn(&str) -> Vec<u8>| {
            let step = |step: &Piece<'_>| match step {
                Piece::Literal(text) => Step::Literal(as_written(text).into()),
                Piece::Segment => Step::Segment,
                Piece::Anything => Step::Anything,
            };
            Shape::Template(steps.iter().map(step).collect())
        };
        Self {
            normal: written(as_normal),
            liberal: written(liberal_pattern),
            parameters,
        }
    }

    pub(super) fn matches(&self, path: &Readings<'_>) -> Truth {
        let normal = self.normal.matches(path.normal.as_bytes());
        normal.agreed(self.liberal.matches(path.liberal(self.parameters)))
    }
}

impl Shape {
    fn matches(&self, path: &[u8]) -> Truth {
        match self {
            Self::Text(pattern) => pattern.matches(&[path], Case::Counts),
            Self::Template(steps) => follows(steps, path).into(),
            Self::Unreadable => Truth::Undecidable,
        }
    }
}

enum Piece<'a> {
    Literal(&'a str),
    Segment,
    Anything,
}

fn as_normal(text: &str) -> Vec<u8> {
    normal_pattern(text).into_bytes()
}

/// Takes a template apart; None if it is none: an operator must be a whole segment, and nothing but
/// literals may come after `{**}`.
fn template(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut literal_from = 0;
    let mut at = 0;
    let mut over = false;
    for segment in text.split('/') {
        let end = at + segment.len();
        let piece = match segment {
            "{*}" => Some(Piece::Segment),
            "{**}" => Some(Piece::Anything),
            other if other.contains(['{', '}', '*']) => return None,
            _ => None,
        };
        if let Some(piece) = piece {
            if over {
                return None;
            }
            over = matches!(piece, Piece::Anything);
            pieces.push(Piece::Literal(&text[literal_from..at]));
            pieces.push(piece);
            literal_from = end;
        }
        at = end + 1;
    }
    pieces.push(Piece::Literal(&text[literal_from..]));
    text.starts_with('/').then_some(pieces)
}

/// One pass: there is no choice before `Anything`, and one way to go on after it.
fn follows(steps: &[Step], path: &[u8]) -> bool {
    let mut rest = path;
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Literal(text) => match rest.strip_prefix(&**text) {
                Some(after) => rest = after,
                None => return false,
            },
            Step::Segment => {
                let length = rest
                    .iter()
                    .position(|&byte| byte == b'/')
                    .unwrap_or(rest.len());
                if length == 0 {
                    return false;
                }
                rest = &rest[length..];
            }
            Step::Anything => {
                return match &steps[at + 1..] {
                    [Step::Literal(text)] => rest.ends_with(text),
                    _ => false,
                };
            }
        }
    }
    rest.is_empty()
}
