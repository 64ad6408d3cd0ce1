//! A text as policies write it: exact, or with a `*` at one end, or `*` alone.
//!
//! Everything else is literal: a dot is a dot. A value may come in pieces, so that a principal or `host:port` need
//! not be put together to be compared.

use super::truth::Truth;

/// What a policy wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// `*`: anything but nothing.
    Any,
    /// The text itself.
    Exact(Box<[u8]>),
    /// `text*`
    Prefix(Box<[u8]>),
    /// `*text`
    Suffix(Box<[u8]>),
    /// `*text*`: for Istio a suffix that ends in a star, for most who write it "has this in it". Where these differ,
    /// nobody knows.
    Around(Box<[u8]>),
}

/// Whether capital letters count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    /// They do.
    Counts,
    /// They do not.
    Ignored,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self::written(text, |text| text.as_bytes().to_vec())
    }

    /// With what is not a `*` written in another way.
    pub(super) fn written(text: &str, as_written: fn(&str) -> Vec<u8>) -> Self {
        let literal = |text: &str| as_written(text).into();
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Any,
            (Some(rest), Some(_)) => Self::Around(literal(&rest[..rest.len() - 1])),
            (Some(rest), None) => Self::Suffix(literal(rest)),
            (None, Some(rest)) => Self::Prefix(literal(rest)),
            (None, None) => Self::Exact(literal(text)),
        }
    }

    /// Whether `pieces`, read one after the other, match.
    pub(super) fn matches(&self, pieces: &[&[u8]], case: Case) -> Truth {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        match self {
            Self::Any => (length > 0).into(),
            Self::Exact(text) => (text.len() == length && starts(pieces, text, case)).into(),
            Self::Prefix(text) => starts(pieces, text, case).into(),
            Self::Suffix(text) => ends(pieces, text, case).into(),
            Self::Around(text) => around(&pieces.concat(), text, case),
        }
    }
}

/// `a` is `b`.
fn same(a: &[u8], b: &[u8], case: Case) -> bool {
    match case {
        Case::Counts => a == b,
        Case::Ignored => a.eq_ignore_ascii_case(b),
    }
}

fn starts(pieces: &[&[u8]], wanted: &[u8], case: Case) -> bool {
    let mut left = wanted;
    for piece in pieces {
        let (here, later) = left.split_at(piece.len().min(left.len()));
        if !same(&piece[..here.len()], here, case) {
            return false;
        }
        left = later;
    }
    left.is_empty()
}

fn ends(pieces: &[&[u8]], wanted: &[u8], case: Case) -> bool {
    let mut left = wanted;
    for piece in pieces.iter().rev() {
        let shared = piece.len().min(left.len());
        let (earlier, here) = left.split_at(left.len() - shared);
        if !same(&piece[piece.len() - shared..], here, case) {
            return false;
        }
        left = earlier;
    }
    left.is_empty()
}

fn around(value: &[u8], text: &[u8], case: Case) -> Truth {
    let literally = value
        .strip_suffix(b"*")
        .is_some_and(|value| ends(&[value], text, case));
    let within = text.is_empty() || value.windows(text.len()).any(|part| same(part, text, case));
    Truth::from(literally).agreed(within.into())
}

/// Text with a `*` for anything anywhere, as namespaces may have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob {
    parts: Box<[Box<str>]>,
}

impl Glob {
    pub(super) fn new(text: &str) -> Self {
        Self {
            parts: text.split('*').map(Into::into).collect(),
        }
    }

    pub(super) fn matches(&self, value: &str) -> bool {
        let [first, middle @ .., last] = &*self.parts else {
            return self.parts.first().is_some_and(|only| **only == *value);
        };
        let Some(mut rest) = value.strip_prefix(&**first) else {
            return false;
        };
        for part in middle {
            match rest.find(&**part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(&**last)
    }
}
