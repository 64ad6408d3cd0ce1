//! Waypoints: which one a service or workload names.

/// What becomes of traffic to whom names a waypoint that is missing or not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unready {
    /// It is refused: the waypoint's policies cannot be applied, so nobody passes without them.
    #[default]
    Refuse,
    /// It passes without the waypoint, as Istio lets it.
    Pass,
}
