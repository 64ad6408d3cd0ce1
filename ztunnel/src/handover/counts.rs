//! What became of connections that were to change hands, counted: a tunnel once, with all its streams.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of this process; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts(Family<Labels, Counter>);

/// What became of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// It went from here to the successor.
    Given,
    /// It was offered and came back; it may be offered again.
    Kept,
    /// It came from the elder and goes on here.
    Taken,
    /// The elder offered it, and it stays there, for now.
    Refused,
    /// It came from the elder and could not be gone on with: it is cut.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

impl Counts {
    pub(super) fn count(&self, outcome: Outcome) {
        self.0.get_or_create(&Labels { outcome }).inc();
    }

    /// Registers `ambit_handovers`, of which each outcome is there from the beginning.
    pub(super) fn register(&self, registry: &mut Registry) {
        for outcome in Outcome::ALL {
            drop(self.0.get_or_create(&Labels { outcome }));
        }
        registry.register(
            "ambit_handovers",
            "Connections that changed hands, or were to, when this process succeeded another or was succeeded; a tunnel counts once",
            self.0.clone(),
        );
    }
}

impl Outcome {
    const ALL: [Self; 5] = [
        Self::Given,
        Self::Kept,
        Self::Taken,
        Self::Refused,
        Self::Lost,
    ];
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, out: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let name = match self {
            Self::Given => "given",
            Self::Kept => "kept",
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::Lost => "lost",
        };
        name.encode(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_shown_before_it_happens() {
        let (counts, mut registry) = (Counts::default(), ops::metrics::Registry::new("z", "1"));
        counts.register(registry.families());
        counts.count(Outcome::Given);
        let text = registry.text().unwrap();
        for (name, count) in [
            ("given", 1),
            ("kept", 0),
            ("taken", 0),
            ("refused", 0),
            ("lost", 0),
        ] {
            let line = format!("ambit_handovers_total{{outcome=\"{name}\"}} {count}");
            assert!(
                text.lines().any(|printed| printed == line),
                "{line}: {text}"
            );
        }
    }
}
