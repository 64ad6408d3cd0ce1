//! Why an object was refused, and what is in force instead.

use api::k8s::objects::Kind;

use super::Condition;

/// What is in force in the place of an object that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead<'a> {
    /// Its last good version.
    Earlier,
    /// Nothing.
    Nothing,
    /// What these words say.
    Closed(&'a str),
}

/// Says of an object what is wrong with it, and what is in force instead. None for kinds whose
/// status is others' to write.
pub fn invalid(kind: Kind, reasons: &[String], instead: Instead<'_>) -> Option<Condition> {
    let r#type = match kind {
        Kind::AuthorizationPolicy => "ZtunnelAccepted",
        Kind::RequestAuthentication
        | Kind::Telemetry
        | Kind::RateLimitPolicy
        | Kind::QuotaPolicy
        | Kind::ExternalProcessor => "WaypointAccepted",
        Kind::PeerAuthentication
        | Kind::ServiceEntry
        | Kind::WorkloadEntry
        | Kind::DestinationRule
        | Kind::VirtualService => "ambit.io/Accepted",
        Kind::Gateway | Kind::GatewayClass => "Accepted",
        _ => return None,
    };
    let instead = match instead {
        Instead::Earlier => "the last version without this fault stays in force",
        Instead::Nothing => "nothing of it is in force",
        Instead::Closed(words) => words,
    };
    Some(Condition {
        r#type,
        status: false,
        reason: "Invalid".to_owned(),
        message: format!("{}; {instead}", reasons.join("; ")),
    })
}
