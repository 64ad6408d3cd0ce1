//! What a Gateway asks for, as far as it decides how its waypoint is deployed.

use api::k8s::labels;
use api::k8s::objects::{Gateway, GatewayClass};

use crate::translate::listener::{HBONE, Listener};
use crate::translate::{Labels, value};

/// A waypoint that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Namespace of its Gateway, and of all that is made for it.
    pub namespace: String,
    /// Name of its Gateway.
    pub name: String,
    /// Its Gateway's uid: who owns what is made.
    pub uid: String,
    /// Name of its class.
    pub class: String,
    /// What its pods are to do. Its class says so, which is another object's to say ([`Order::of_role`]).
    pub role: Role,
    /// Name of its Service, Deployment, budget and autoscaler.
    pub called: String,
    /// Account of its pods.
    pub account: String,
    /// The control plane that shall look after it; any if none is named.
    pub revision: Option<String>,
    /// Name of the listener that takes tunnels.
    pub listener: String,
    /// `spec.type` of its Service, if it says so; else its role does.
    pub service_type: Option<String>,
    /// Labels for all that is made.
    pub labels: Labels,
    /// Annotations for all that is made.
    pub annotations: Labels,
    /// Where its parameters are.
    pub parameters: Option<Reference>,
    /// It has addresses of its own: somebody else runs it.
    pub elsewhere: bool,
    /// It is being deleted.
    pub going: bool,
}

/// What the proxy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It stands in front of services.
    #[default]
    Waypoint,
    /// It is the gateway of a network.
    EastWest,
}

/// A ConfigMap with parameters, or something else that was named in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Order {
    /// Keeps what matters.
    pub fn read(gateway: &Gateway) -> Self {
        let (metadata, spec) = (&gateway.metadata, &gateway.spec);
        let none = Labels::new();
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        let own_labels = metadata.labels.as_ref().unwrap_or(&none);
        let name = metadata.name.clone().unwrap_or_default();
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let called = |annotation: &str| value(annotations, annotation).unwrap_or(&name).to_owned();
        let made = spec.infrastructure.as_ref();
        let parameters = made.and_then(|made| made.parameters_ref.as_ref());
        let mut listeners = spec.listeners.iter().map(Listener::read);
        let tunnels = listeners
            .find(|it| it.port == i32::from(HBONE.0) && it.protocol == HBONE.1)
            .map_or_else(|| "mesh".to_owned(), |it| it.name);
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            class: spec.gateway_class_name.clone(),
            role: Role::default(),
            called: called(labels::GATEWAY_NAME_OVERRIDE),
            account: called(labels::GATEWAY_SERVICE_ACCOUNT),
            revision: value(own_labels, REVISION).map(str::to_owned),
            listener: tunnels,
            service_type: value(annotations, SERVICE_TYPE).map(str::to_owned),
            labels: made.and_then(|it| it.labels.clone()).unwrap_or_default(),
            annotations: made
                .and_then(|it| it.annotations.clone())
                .unwrap_or_default(),
            parameters: parameters.map(|it| Reference {
                group: it.group.clone(),
                kind: it.kind.clone(),
                namespace: namespace.clone(),
                name: it.name.clone(),
            }),
            elsewhere: spec.addresses.iter().flatten().next().is_some(),
            going: metadata.deletion_timestamp.is_some(),
            namespace,
            name,
        }
    }
}

impl Order {
    /// The same for a proxy that does this.
    pub fn of_role(&self, role: Role) -> Self {
        Self {
            role,
            ..self.clone()
        }
    }
}

impl Reference {
    /// Of a class, for all its Gateways. None if it has none.
    pub fn of_class(class: &GatewayClass) -> Option<Self> {
        let it = class.spec.parameters_ref.as_ref()?;
        Some(Self {
            group: it.group.clone(),
            kind: it.kind.clone(),
            namespace: it.namespace.clone().unwrap_or_default(),
            name: it.name.clone(),
        })
    }

    /// # Errors
    /// What is wrong with it: only ConfigMaps hold parameters.
    pub fn check(&self) -> Result<(), String> {
        if !self.group.is_empty() || self.kind != "ConfigMap" {
            return Err(format!(
                "parametersRef names {} {}.{}; parameters are read from a ConfigMap (group \"\")",
                self.kind, self.name, self.group
            ));
        }
        if self.namespace.is_empty() {
            return Err(format!(
                "parametersRef of the class names ConfigMap {} without its namespace",
                self.name
            ));
        }
        Ok(())
    }
}

/// (L) on Gateway: the control plane that looks after it.
pub(super) const REVISION: &str = "istio.io/rev";
/// (A) on Gateway: type of its Service.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
