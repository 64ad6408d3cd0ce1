//! The version of a resource, as its server says it: kept for 100,000 of them.

use std::fmt;

/// An opaque text; the usual one, a 64-bit hash in hexadecimal, takes no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    Empty,
    Hash(u64),
    #[allow(clippy::box_collection)] // rare, and the enum stays at 16 bytes for 100,000 of them
    Text(Box<String>),
}

impl Version {
    /// Of its text, in bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Hash(hash) => digits(*hash),
            Self::Text(text) => text.len(),
        }
    }
}

/// How many a number has in hexadecimal.
fn digits(number: u64) -> usize {
    number.checked_ilog(16).unwrap_or(0) as usize + 1
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        match u64::from_str_radix(text, 16) {
            _ if text.is_empty() => Self::Empty,
            // As it would be written again: no sign, no leading zero, no capital.
            Ok(hash)
                if digits(hash) == text.len()
                    && !text.bytes().any(|digit| digit.is_ascii_uppercase()) =>
            {
                Self::Hash(hash)
            }
            _ => Self::Text(Box::new(text.to_owned())),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => Ok(()),
            Self::Hash(hash) => write!(f, "{hash:x}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_comes_back_as_it_was() {
        for text in [
            "",
            "0",
            "5e135347fd3eafb",
            "00ff",
            "FF",
            "+1",
            "2026-11-20T20:53:38Z/229",
            "ffffffffffffffff",
        ] {
            assert_eq!(Version::from(text).to_string(), text);
            assert_eq!(Version::from(text).len(), text.len(), "{text}");
        }
        assert_eq!(size_of::<Version>(), 16);
    }
}
