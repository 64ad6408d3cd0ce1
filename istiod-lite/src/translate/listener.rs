//! Listeners of Gateways: what they take, and from which namespaces.

use api::k8s::objects::gateways::{
    GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as Allowed,
    GatewayListenersAllowedRoutesNamespacesSelector as LabelSelector,
};

use super::Labels;
use super::selector::Selector;

/// Port and protocol of a listener that takes tunnels.
pub const HBONE: (u16, &str) = (15008, "HBONE");

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: i32,
    /// Its protocol.
    pub protocol: String,
    /// From which namespaces it may be used.
    pub from: From,
}

/// From which namespaces a listener may be used, beside its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// None.
    #[default]
    Same,
    /// All.
    All,
    /// Those with these labels.
    Selector(Selector),
}

impl Listener {
    /// Keeps what matters.
    pub fn read(listener: &GatewayListeners) -> Self {
        let namespaces = listener
            .allowed_routes
            .as_ref()
            .and_then(|it| it.namespaces.as_ref());
        let from = match namespaces.and_then(|it| it.from.as_ref()) {
            Some(Allowed::All) => From::All,
            Some(Allowed::Selector) => namespaces
                .and_then(|it| it.selector.as_ref())
                .map_or(From::Same, |said| From::Selector(selector(said))),
            Some(Allowed::Same) | None => From::Same,
        };
        Self {
            name: listener.name.clone(),
            port: listener.port,
            protocol: listener.protocol.clone(),
            from,
        }
    }
}

impl From {
    /// Whether a namespace with these labels may use it.
    pub fn admits(&self, namespace: &Labels) -> bool {
        match self {
            Self::Same => false,
            Self::All => true,
            Self::Selector(selector) => selector.selects(namespace),
        }
    }
}

fn selector(said: &LabelSelector) -> Selector {
    let expressions = said.match_expressions.iter().flatten();
    let expressions = expressions.map(|it| {
        let values = it.values.clone().unwrap_or_default();
        (it.key.clone(), it.operator.clone(), values)
    });
    Selector::new(said.match_labels.clone().unwrap_or_default(), expressions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_lets_in_the_namespaces_it_selects() {
        let team = |value: &str| Labels::from([("team".to_owned(), value.to_owned())]);
        let from = |json: serde_json::Value| {
            let mut whole = serde_json::json!({"name": "mesh", "port": 15008, "protocol": "HBONE"});
            whole["allowedRoutes"] = json;
            Listener::read(&serde_json::from_value(whole).expect("a listener")).from
        };
        let expression = |operator: &str, values: &[&str]| {
            serde_json::json!({"namespaces": {"from": "Selector", "selector": {"matchExpressions": [
                {"key": "team", "operator": operator, "values": values}]}}})
        };
        for (routes, expected) in [
            (serde_json::json!({}), [false, false, false]),
            (
                serde_json::json!({"namespaces": {"from": "Same"}}),
                [false, false, false],
            ),
            (
                serde_json::json!({"namespaces": {"from": "All"}}),
                [true, true, true],
            ),
            (
                serde_json::json!({"namespaces": {"from": "Selector"}}),
                [false, false, false],
            ),
            (
                serde_json::json!({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "x"}}}}),
                [true, false, false],
            ),
            (expression("In", &["x"]), [true, false, false]),
            (expression("NotIn", &["x"]), [false, true, true]),
            (expression("Exists", &[]), [true, true, false]),
            (expression("DoesNotExist", &[]), [false, false, true]),
            (expression("Near", &["x"]), [false, false, false]),
        ] {
            let found =
                [team("x"), team("y"), Labels::new()].map(|it| from(routes.clone()).admits(&it));
            assert_eq!(found, expected, "{routes}");
        }
    }
}
