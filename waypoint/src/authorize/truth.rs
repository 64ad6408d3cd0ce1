//! Yes, no, or nobody knows.
//!
//! A condition about something that a proxy cannot see (a header on a TCP connection), or that two readers of the
//! same request would answer differently, is neither. Kleene's logic carries that through "and", "or" and "not"; at
//! the end an ALLOW needs a yes, and a DENY only the lack of a no.

use serde::Serialize;

/// Whether a condition holds. Ordered: `min` is "and", `max` is "or".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Truth {
    /// It does not.
    No,
    /// It cannot be decided.
    Undecidable,
    /// It does.
    Yes,
}

impl Truth {
    /// Its contrary; what cannot be decided stays so.
    #[must_use]
    pub fn contrary(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Undecidable => Self::Undecidable,
            Self::Yes => Self::No,
        }
    }

    /// Two readings of the same: where they differ, nobody knows.
    #[must_use]
    pub fn agreed(self, other: Self) -> Self {
        if self == other {
            self
        } else {
            Self::Undecidable
        }
    }

    /// What at least one of them says; No for none.
    pub fn any(truths: impl IntoIterator<Item = Self>) -> Self {
        let mut most = Self::No;
        for truth in truths {
            most = most.max(truth);
            if most == Self::Yes {
                break;
            }
        }
        most
    }

    /// What all of them say; Yes for none.
    pub fn all(truths: impl IntoIterator<Item = Self>) -> Self {
        let mut least = Self::Yes;
        for truth in truths {
            least = least.min(truth);
            if least == Self::No {
                break;
            }
        }
        least
    }
}

impl From<bool> for Truth {
    fn from(known: bool) -> Self {
        if known { Self::Yes } else { Self::No }
    }
}
