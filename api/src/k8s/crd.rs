//! The definitions (CRDs) of Istio's kinds that this mesh reads, and of ours, as an API server wants them.
//!
//! Enters: the types of [`super::istio`] and [`super::limits`]. Leaves: one CustomResourceDefinition a kind, and its text.
//!
//! 1. the shape comes from the types                                          ([`schema`])
//! 2. limits, and rules that are evaluated when an object is written          ([`rules`])
//! 3. fields nobody knows are kept, for `check` to refuse: an API server would drop them without a
//!    word, and a policy without one of its fields is another policy          ([`schema`])
//! 4. names, versions and columns are Istio's, so that tools and YAML work unchanged ([`definition`])

mod rules;
mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps as Props,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::istio::destination_rule::DestinationRuleSpec;
use super::istio::request_authentication::RequestAuthenticationSpec;
use super::istio::telemetry::TelemetrySpec;
use super::istio::virtual_service::VirtualServiceSpec;
use super::istio::workload_group::WorkloadGroupSpec;
use super::istio::{
    AuthorizationPolicySpec, PeerAuthenticationSpec, ServiceEntrySpec, WorkloadEntrySpec,
};
use super::limits::LimitSpec;
use super::objects::Kind;
use super::processors::ExternalProcessorSpec;

/// The kinds that have a definition here, in the order in which they are printed.
pub const KINDS: [Kind; 12] = [
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::WorkloadGroup,
    Kind::RequestAuthentication,
    Kind::DestinationRule,
    Kind::VirtualService,
    Kind::Telemetry,
    Kind::RateLimitPolicy,
    Kind::QuotaPolicy,
    Kind::ExternalProcessor,
];

/// A definition cannot be made: a rule names a field that no type has, or a type has a shape that
/// an API server does not take. A mistake of ours, which a test finds.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// In [`rules`].
    #[error("{kind}: no field {path:?} for the rule or limit {what:?}")]
    NoField {
        /// The kind.
        kind: Kind,
        /// Where.
        path: &'static str,
        /// What is asked for there.
        what: &'static str,
    },
    /// Not a kind of [`KINDS`].
    #[error("{0} is not one of Istio's kinds")]
    NotOurs(Kind),
    /// The type's schema.
    #[error("{0}: {1}")]
    Shape(Kind, serde_json::Error),
    /// The text.
    #[error("{0}: {1}")]
    Text(Kind, String),
}

/// The definition of a kind of [`KINDS`].
pub fn definition(kind: Kind) -> Result<CustomResourceDefinition, DefinitionError> {
    let names = names(kind).ok_or(DefinitionError::NotOurs(kind))?;
    let spec = closed(kind)?;
    let spec_is_needed = matches!(
        kind,
        Kind::ServiceEntry | Kind::WorkloadEntry | Kind::WorkloadGroup
    );
    let schema = schema::object(schema::open(spec), spec_is_needed);
    let schema: Props =
        serde_json::from_value(schema).map_err(|why| DefinitionError::Shape(kind, why))?;
    let versions = names
        .versions
        .iter()
        .enumerate()
        .map(|(position, version)| {
            // Fields do not differ between the versions, so nothing is ever converted.
            CustomResourceDefinitionVersion {
                name: (*version).to_owned(),
                served: true,
                storage: position == 0,
                additional_printer_columns: Some(columns(kind)),
                schema: Some(CustomResourceValidation {
                    open_api_v3_schema: Some(Props::clone(&schema)),
                }),
                subresources: Some(CustomResourceSubresources {
                    status: Some(CustomResourceSubresourceStatus(Value::Object(
                        serde_json::Map::new(),
                    ))),
                    scale: None,
                }),
                ..CustomResourceDefinitionVersion::default()
            }
        });
    Ok(CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", names.plural, names.group)),
            ..ObjectMeta::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: names.group.into(),
            names: CustomResourceDefinitionNames {
                categories: Some(vec![
                    "istio-io".into(),
                    format!(
                        "{}-istio-io",
                        names.group.split('.').next().unwrap_or_default()
                    ),
                ]),
                kind: kind.name().into(),
                list_kind: Some(format!("{}List", kind.name())),
                plural: names.plural.into(),
                short_names: Some(names.short.iter().map(|name| (*name).into()).collect()),
                singular: Some(kind.name().to_ascii_lowercase()),
            },
            scope: "Namespaced".into(),
            versions: versions.collect(),
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    })
}

/// The name of a kind of [`KINDS`] in paths and rights.
pub fn plural(kind: Kind) -> Option<&'static str> {
    names(kind).map(|names| names.plural)
}

/// The file of a kind: its name, and its text.
pub fn file(kind: Kind) -> Result<(String, String), DefinitionError> {
    let definition = definition(kind)?;
    let yaml = serde_saphyr::to_string(&definition)
        .map_err(|why| DefinitionError::Text(kind, why.to_string()))?;
    let name = definition.metadata.name.unwrap_or_default();
    Ok((format!("{name}.yaml"), format!("{HEAD}{yaml}")))
}

/// The shape of a kind's `spec`, with its limits, and with every object closed: what may be written
/// at all, for [`super::check`].
pub(super) fn closed(kind: Kind) -> Result<Value, DefinitionError> {
    let mut spec = match kind {
        Kind::AuthorizationPolicy => schema::of::<AuthorizationPolicySpec>(),
        Kind::PeerAuthentication => schema::of::<PeerAuthenticationSpec>(),
        Kind::ServiceEntry => schema::of::<ServiceEntrySpec>(),
        Kind::WorkloadEntry => schema::of::<WorkloadEntrySpec>(),
        Kind::WorkloadGroup => schema::of::<WorkloadGroupSpec>(),
        Kind::RequestAuthentication => schema::of::<RequestAuthenticationSpec>(),
        Kind::DestinationRule => schema::of::<DestinationRuleSpec>(),
        Kind::VirtualService => schema::of::<VirtualServiceSpec>(),
        Kind::Telemetry => schema::of::<TelemetrySpec>(),
        Kind::RateLimitPolicy | Kind::QuotaPolicy => schema::of::<LimitSpec>(),
        Kind::ExternalProcessor => schema::of::<ExternalProcessorSpec>(),
        _ => return Err(DefinitionError::NotOurs(kind)),
    };
    rules::apply(kind, &mut spec)?;
    Ok(spec)
}

struct Names {
    group: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    /// The first is the one that is stored.
    versions: &'static [&'static str],
}

fn names(kind: Kind) -> Option<Names> {
    let security = |plural, short| Names {
        group: "security.istio.io",
        plural,
        short,
        versions: &["v1", "v1beta1"],
    };
    let networking = |plural, short| Names {
        group: "networking.istio.io",
        plural,
        short,
        versions: &["v1", "v1beta1", "v1alpha3"],
    };
    let own = |plural, short| Names {
        group: "ambit.io",
        plural,
        short,
        versions: &["v1alpha1"],
    };
    Some(match kind {
        Kind::AuthorizationPolicy => security("authorizationpolicies", &["ap"]),
        Kind::PeerAuthentication => security("peerauthentications", &["pa"]),
        Kind::ServiceEntry => networking("serviceentries", &["se"]),
        Kind::WorkloadEntry => networking("workloadentries", &["we"]),
        Kind::WorkloadGroup => networking("workloadgroups", &["wg"]),
        Kind::RequestAuthentication => security("requestauthentications", &["ra"]),
        Kind::DestinationRule => networking("destinationrules", &["dr"]),
        Kind::VirtualService => networking("virtualservices", &["vs"]),
        Kind::Telemetry => Names {
            group: "telemetry.istio.io",
            plural: "telemetries",
            short: &["telemetry"],
            versions: &["v1", "v1alpha1"],
        },
        Kind::RateLimitPolicy => own("ratelimitpolicies", &["rlp"]),
        Kind::QuotaPolicy => own("quotapolicies", &[]),
        Kind::ExternalProcessor => own("externalprocessors", &[]),
        _ => return None,
    })
}

fn columns(kind: Kind) -> Vec<CustomResourceColumnDefinition> {
    let own: &[(&str, &str, &str)] = match kind {
        Kind::AuthorizationPolicy => {
            &[("Action", ".spec.action", "What is done with what matches")]
        }
        Kind::PeerAuthentication => {
            &[("Mode", ".spec.mtls.mode", "Whether plain text is accepted")]
        }
        Kind::ServiceEntry => &[
            ("Hosts", ".spec.hosts", "Names of the service"),
            (
                "Location",
                ".spec.location",
                "Inside or outside of the mesh",
            ),
            (
                "Resolution",
                ".spec.resolution",
                "How the endpoints are found",
            ),
        ],
        Kind::WorkloadEntry => &[("Address", ".spec.address", "Where the workload is")],
        Kind::DestinationRule => &[("Host", ".spec.host", "Name of the service")],
        Kind::VirtualService => &[
            ("Gateways", ".spec.gateways", "mesh, or Gateways"),
            ("Hosts", ".spec.hosts", "Names of services"),
        ],
        _ => &[],
    };
    let column =
        |(name, path, about): &(&str, &str, &str), of: &str| CustomResourceColumnDefinition {
            name: (*name).into(),
            json_path: (*path).into(),
            description: Some((*about).into()),
            type_: of.into(),
            ..CustomResourceColumnDefinition::default()
        };
    let age = ("Age", ".metadata.creationTimestamp", "Since when it exists");
    own.iter()
        .map(|own| column(own, "string"))
        .chain([column(&age, "date")])
        .collect()
}

/// How the files are renewed; a test compares them.
pub const RENEW: &str = "AMBIT_RENEW=1 cargo test -p api --features k8s --test crds";

const HEAD: &str = "\
# Made from the types in api/src/k8s/istio.rs and the rules in api/src/k8s/crd/rules.rs; renewed by
# AMBIT_RENEW=1 cargo test -p api --features k8s --test crds
";
