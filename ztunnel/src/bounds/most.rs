//! Pure: how much there may be, as the operator says it or as descriptors and memory allow.

use ops::memory;

use crate::config::Config;

/// How much there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub(super) connections: usize,
    pub(super) connections_of_one: usize,
    pub(super) handshakes: usize,
    /// Descriptors that connections may have; those beyond are for other things.
    pub(super) descriptors: u64,
    pub(super) memory: u64,
}

impl Most {
    /// As the operator said, and otherwise as `descriptors` and `memory` of the container allow.
    pub(super) fn of(config: &Config, descriptors: u64, container: Option<u64>) -> Self {
        let reserve = (descriptors / 16).clamp(*RESERVE.start(), *RESERVE.end());
        let descriptors = descriptors.saturating_sub(reserve).max(1);
        let memory = config.max_memory.or(container.map(memory::enough));
        let memory = memory.unwrap_or(u64::MAX);
        let fit = (descriptors / 2).min(memory / BYTES_PER_CONNECTION).max(2);
        let connections = config
            .max_connections
            .unwrap_or_else(|| usize::try_from(fit).unwrap_or(usize::MAX));
        Self {
            connections,
            connections_of_one: config
                .max_connections_per_workload
                .unwrap_or_else(|| half(connections)),
            handshakes: config
                .max_handshakes
                .unwrap_or_else(|| connections.div_ceil(4).min(HANDSHAKES)),
            descriptors,
            memory,
        }
    }
}

/// What one pod may have of it.
pub(super) fn half(most: usize) -> usize {
    most.div_ceil(2)
}

/// What a node's memory is enough for, as far as it can be said beforehand: a connection that is idle takes a third of it.
pub(super) const BYTES_PER_CONNECTION: u64 = 32 << 10;
/// As many as two threads bring to an end within their time.
const HANDSHAKES: usize = 4096;
/// Descriptors for other things than connections of pods.
const RESERVE: std::ops::RangeInclusive<u64> = 16..=4096;
