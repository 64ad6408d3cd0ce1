//! Figures of a proxy's discovery stream, under the names that Istio's dashboards ask for.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::metrics::Registry;

/// The discovery stream. Clones share the figures.
#[derive(Debug, Clone, Default)]
pub struct DiscoveryMetrics {
    messages: Family<TypeUrl, Counter>,
    message_bytes: Family<TypeUrl, Counter>,
    terminations: Family<Reason, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeUrl {
    url: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl DiscoveryMetrics {
    /// A response was applied, of a type (its URL) and so many bytes.
    pub fn received(&self, url: &'static str, bytes: usize) {
        let url = TypeUrl { url };
        self.messages.get_or_create(&url).inc();
        let counted = self.message_bytes.get_or_create(&url);
        counted.inc_by(bytes as u64);
    }

    /// The stream ended, as the other end wished or with an error.
    pub fn ended(&self, in_good_order: bool) {
        let reason = if in_good_order { "Complete" } else { "Error" };
        self.terminations.get_or_create(&Reason { reason }).inc();
    }

    /// Enters the families into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let families = registry.families();
        let unstable = |help: &str| format!("{help} (unstable)");
        families.register(
            "istio_xds_message",
            unstable("The total number of discovery responses received"),
            self.messages.clone(),
        );
        families.register(
            "istio_xds_message_bytes",
            unstable("The total number of bytes of discovery responses received"),
            self.message_bytes.clone(),
        );
        families.register(
            "istio_xds_connection_terminations",
            unstable("The total number of ends of the discovery stream"),
            self.terminations.clone(),
        );
    }
}
