//! What an expression yields.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::rc::Rc;

use crate::{Fields, Moment};

/// A value.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A number that is not below zero.
    Uint(u64),
    /// A number with a point.
    Double(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// Bytes.
    Bytes(Rc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    /// Nanoseconds since 1970.
    Time(i64),
    /// Several.
    List(Rc<[Value<'a>]>),
    /// Several by name.
    Map(Rc<[(Value<'a>, Value<'a>)]>),
    /// Several by name, of the subject.
    Fields(Fields),
}

impl<'a> Value<'a> {
    /// A text.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    /// Equal, whatever kinds of numbers they are; different kinds are not.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Self::Map(a), Self::Map(b)) => {
                let has = |(key, value): &(Self, Self)| {
                    let mut same = b.iter().filter(|(other, _)| key.equals(other));
                    same.any(|(_, other)| value.equals(other))
                };
                a.len() == b.len() && a.iter().all(has)
            }
            _ => self.compared(other) == Some(Ordering::Equal),
        }
    }

    /// Which is less, where that means something.
    pub(crate) fn compared(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) | (Self::Time(a), Self::Time(b)) => {
                Some(a.cmp(b))
            }
            _ => match (self.whole(), other.whole()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => self.number()?.partial_cmp(&other.number()?),
            },
        }
    }

    fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some((*number).into()),
            Self::Uint(number) => Some((*number).into()),
            _ => None,
        }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Uint(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            _ => None,
        }
    }
}

/// As labels, tags and lines have it; nothing is `-`.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null | Self::Fields(_) => f.write_str("-"),
            Self::Bool(it) => write!(f, "{it}"),
            Self::Int(it) => write!(f, "{it}"),
            Self::Uint(it) => write!(f, "{it}"),
            Self::Double(it) => write!(f, "{it}"),
            Self::Text(it) => f.write_str(it),
            Self::Bytes(it) => f.write_str(&String::from_utf8_lossy(it)),
            Self::Duration(nanos) => write!(f, "{}s", *nanos as f64 / 1e9),
            Self::Time(nanos) => write!(f, "{}", Moment(*nanos)),
            Self::List(all) => {
                f.write_str("[")?;
                for (at, one) in all.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma}{one}")?;
                }
                f.write_str("]")
            }
            Self::Map(all) => {
                f.write_str("{")?;
                for (at, (key, value)) in all.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma}{key}:{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}
