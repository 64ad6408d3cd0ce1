//! What is told of a service's requests: Telemetry objects, the nearer ones before those of the mesh.

use std::sync::Arc;

use api::waypoint as wire;
use wire::resource::Kind;

use crate::state::Held;

/// What is told of requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Telemetry {
    /// Whether each has a line in the access log.
    pub logged: bool,
    /// How many of new traces are sampled, in percent; none: nobody traces.
    pub sampling: Option<f64>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            logged: true,
            sampling: None,
        }
    }
}

impl Telemetry {
    /// `all`: everything that is said of a service.
    pub(super) fn compile(all: &[&Arc<Held>]) -> Self {
        let mut found: Vec<(&Held, &wire::Telemetry)> = all
            .iter()
            .filter_map(|held| match &held.resource.kind {
                Some(Kind::Telemetry(telemetry)) => Some((&***held, telemetry)),
                _ => None,
            })
            .collect();
        // Of equals the oldest comes last, and stays.
        found.sort_by_key(|(held, telemetry)| {
            let created = held
                .resource
                .origin
                .as_ref()
                .map_or(0, |origin| origin.created);
            (
                telemetry.rank,
                std::cmp::Reverse((created, held.key.clone())),
            )
        });
        let mut said = Self::default();
        for (_, telemetry) in found {
            if let Some(log) = &telemetry.access_log {
                said.logged = !log.disabled;
            }
            if let Some(tracing) = &telemetry.tracing {
                said.sampling = match tracing.disabled {
                    true => None,
                    false => Some(tracing.sampling.unwrap_or(USUAL)),
                };
            }
        }
        said
    }
}

/// Percent of new traces, where nothing says: Istio's.
const USUAL: f64 = 1.0;
