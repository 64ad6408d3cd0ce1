//! Why an object was refused, and what is in force instead.

use api::k8s::objects::Kind;

use super::Condition;

/// Says of an object what is wrong with it; `known`: an earlier good version of it is in force.
/// None for kinds whose status is others' to write.
pub fn invalid(kind: Kind, reasons: &[String], known: bool) -> Option<Condition> {
    let r#type = match kind {
        Kind::AuthorizationPolicy => "ZtunnelAccepted",
        Kind::PeerAuthentication | Kind::ServiceEntry | Kind::WorkloadEntry => "ambit.io/Accepted",
        Kind::Gateway | Kind::GatewayClass => "Accepted",
        _ => return None,
    };
    let instead = if known {
        "the last version without this fault stays in force"
    } else {
        "nothing of it is in force"
    };
    Some(Condition {
        r#type,
        status: false,
        reason: "Invalid".to_owned(),
        message: format!("{}; {instead}", reasons.join("; ")),
    })
}
