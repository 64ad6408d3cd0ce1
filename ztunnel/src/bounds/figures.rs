//! What `/metrics` says of the bounds.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{Bounds, Kind};

impl Collector for Bounds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let node = &*self.0;
        let most = node.most;
        let levels: [(&str, u64, u64); 4] = [
            (
                "connections",
                node.connections.now() as u64,
                most.connections as u64,
            ),
            (
                "handshakes",
                node.handshakes.now() as u64,
                most.handshakes as u64,
            ),
            (
                "descriptors",
                node.descriptor.load(Relaxed),
                most.descriptors,
            ),
            ("memory", node.memory.load(Relaxed), most.memory),
        ];
        let mut family = encoder.encode_descriptor(
            "ambit_limit_used",
            "How much there is of what is bounded; descriptors and memory when last looked at, memory in bytes",
            None,
            MetricType::Gauge,
        )?;
        for (what, now, _) in levels {
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            family
                .encode_family(&[("what", what)])?
                .encode_gauge(&now)?;
        }
        let mut family = encoder.encode_descriptor(
            "ambit_limit",
            "How much there may be before new connections are refused",
            None,
            MetricType::Gauge,
        )?;
        let of_one = most.connections_of_one as u64;
        let bounds = levels.map(|(what, _, most)| (what, most));
        for (what, most) in bounds
            .into_iter()
            .chain([("connections_of_workload", of_one)])
        {
            // None, where memory has no bound.
            if let Ok(most) = i64::try_from(most) {
                family
                    .encode_family(&[("what", what)])?
                    .encode_gauge(&most)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "ambit_overload_refused",
            "Connections, tunnels and handshakes that there was no room for",
            None,
            MetricType::Counter,
        )?;
        for (kind, count) in Kind::ALL.iter().zip(&node.refused) {
            family
                .encode_family(&[("what", kind.label())])?
                .encode_counter::<NoLabelSet, u64, u64>(&count.load(Relaxed), None)?;
        }
        Ok(())
    }
}
