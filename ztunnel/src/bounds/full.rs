//! Why somebody new is refused, in words and as a label.

use crate::hint::Hint;
use crate::report::Failure;
use crate::traffic::Flag;

/// Why somebody new is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error(
        "refused: {0} connections of this pod are open, as many as one may have (AMBIT_MAX_CONNECTIONS_PER_WORKLOAD of ztunnel)"
    )]
    OfOne(usize),
    #[error(
        "refused: {0} connections of this node's pods are open, as many as there may be (AMBIT_MAX_CONNECTIONS of ztunnel)"
    )]
    Connections(usize),
    #[error(
        "refused: {0} handshakes with this pod are under way, as many as with one there may be (half of AMBIT_MAX_HANDSHAKES of ztunnel)"
    )]
    HandshakesOfOne(usize),
    #[error(
        "refused: {0} handshakes are under way at this node, as many as there may be (AMBIT_MAX_HANDSHAKES of ztunnel)"
    )]
    Handshakes(usize),
    #[error(
        "refused: {0} file descriptors of ztunnel are taken, and the rest is reserved (RLIMIT_NOFILE of its container)"
    )]
    Descriptors(u64),
    #[error(
        "refused: ztunnel has {0} bytes of memory, more than it takes on new connections with (AMBIT_MAX_MEMORY, or the container's limit)"
    )]
    Memory(u64),
}

/// The same as a label.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    OfOne,
    Connections,
    HandshakesOfOne,
    Handshakes,
    Descriptors,
    Memory,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::OfOne,
        Self::Connections,
        Self::HandshakesOfOne,
        Self::Handshakes,
        Self::Descriptors,
        Self::Memory,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::OfOne => "connections_of_workload",
            Self::Connections => "connections",
            Self::HandshakesOfOne => "handshakes_of_workload",
            Self::Handshakes => "handshakes",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }
}

impl Full {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::OfOne(_) => Kind::OfOne,
            Self::Connections(_) => Kind::Connections,
            Self::HandshakesOfOne(_) => Kind::HandshakesOfOne,
            Self::Handshakes(_) => Kind::Handshakes,
            Self::Descriptors(_) => Kind::Descriptors,
            Self::Memory(_) => Kind::Memory,
        }
    }
}

impl Failure for Full {
    fn flag(&self) -> Flag {
        Flag::Overload
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::Full)
    }
}
