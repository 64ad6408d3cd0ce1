//! The agent's numbers, under Istio's names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All of them. Clones share the values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) requests: Family<Code, Counter>,
    pub(crate) reconciles: Family<Event, Counter>,
    pub(crate) ztunnels: Gauge,
    pub(crate) enrolled: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Code {
    pub(crate) response_code: u16,
}

/// What was done to a pod, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Event {
    pub(crate) r#type: &'static str,
    pub(crate) result: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "istio_cni_plugin_requests",
            "Requests of the CNI plugin by response code",
            metrics.requests.clone(),
        );
        registry.register(
            "nodeagent_reconcile_events",
            "What was done to pods, by kind and result",
            metrics.reconciles.clone(),
        );
        registry.register(
            "ztunnel_connected",
            "Connections to ztunnel",
            metrics.ztunnels.clone(),
        );
        registry.register(
            "nodeagent_pods_enrolled",
            "Pods of this node in the mesh",
            metrics.enrolled.clone(),
        );
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Under any other name, or with another label, a dashboard shows nothing and an alert is silent.
    #[test]
    fn names_and_labels_are_those_of_istios_agent() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let code = Code { response_code: 500 };
        metrics.requests.get_or_create(&code).inc();
        let event = Event {
            r#type: "add",
            result: "success",
        };
        metrics.reconciles.get_or_create(&event).inc();
        metrics.ztunnels.set(2);
        metrics.enrolled.set(3);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "istio_cni_plugin_requests_total{response_code=\"500\"} 1",
            "nodeagent_reconcile_events_total{type=\"add\",result=\"success\"} 1",
            "ztunnel_connected 2",
            "nodeagent_pods_enrolled 3",
        ] {
            assert!(
                text.lines().any(|printed| printed == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
