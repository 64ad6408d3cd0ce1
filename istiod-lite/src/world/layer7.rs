//! Policies of layer 7: for which waypoints they are, where there, and what is said of them.
//!
//! | file | |
//! |---|---|
//! | `table` | what is kept of them, and who must be made anew when they change |
//! | `attach` | where a policy is attached |
//! | `credentials` | Secrets and ConfigMaps that policies name |
//! | `providers` | who is asked |
//! | `hosts` | VirtualServices |
//! | `towards` | what is done towards a service: DestinationRules and others |

mod attach;
mod credentials;
mod hosts;
mod providers;
mod table;
mod towards;

use std::collections::BTreeSet;

use api::k8s::limits::LimitSpec;
use api::k8s::objects::{Kind, ObjectKey};
use api::k8s::processors::ExternalProcessorSpec;
use api::waypoint as wire;
use wire::resource::Kind as Told;

use super::{Output, World};
use crate::status::{self, Condition, Desired};
use crate::translate::layer7::{Layer7, Spec, authentication, limit, processor, telemetry};
use crate::translate::resource::Resource;

pub(super) use attach::Attached;
pub(super) use credentials::is_credential;
pub(super) use table::Table;

impl World {
    pub(super) fn build_layer7(&self, key: &ObjectKey) -> Option<Output> {
        let policy = self.objects.layer7.get(key)?;
        match &*policy.spec {
            Spec::Authentication(spec) => {
                let (namespace, domain) = (&policy.key.namespace, &self.cluster.domain);
                let find = |host: &str| self.found_host(host, namespace);
                let made = authentication::authentication(spec, &find, domain);
                Some(self.authentication(policy, made))
            }
            Spec::Closed(_) if matches!(key.kind, Kind::RateLimitPolicy | Kind::QuotaPolicy) => {
                Some(self.closed_limit(policy))
            }
            Spec::Closed(why) if key.kind == Kind::ExternalProcessor => {
                Some(self.closed_processor(policy, why))
            }
            Spec::Closed(why) => {
                let invalid = why.clone();
                let closed = wire::Authentication {
                    invalid,
                    ..wire::Authentication::default()
                };
                Some(self.authentication(policy, closed))
            }
            Spec::Telemetry(spec) => Some(self.telemetry(policy, telemetry::telemetry(spec))),
            Spec::RateLimit(spec) => Some(self.limits(policy, spec, false)),
            Spec::Quota(spec) => Some(self.limits(policy, spec, true)),
            Spec::Processor(spec) => Some(self.processor(policy, spec)),
            Spec::Virtual(spec) => Some(self.virtual_service(policy, spec)),
            // They are told with the services they are for.
            Spec::Destination(_) | Spec::BackendTls(_) | Spec::BackendTraffic(_) => {
                Some(self.backend_policy(policy))
            }
        }
    }

    fn authentication(&self, policy: &Layer7, made: wire::Authentication) -> Output {
        let mut faults = Vec::new();
        if !made.invalid.is_empty() {
            faults.push(format!(
                "{}; until it is mended requests that carry a token are refused",
                made.invalid
            ));
        }
        let attached = self.attached(&policy.targets);
        let resources = attached.into_iter().map(|(gateway, targets)| {
            let told = Told::Authentication(wire::Authentication {
                targets,
                ..made.clone()
            });
            Resource::waypoint(&gateway, &policy.resource("", 0, told))
        });
        Output {
            resources: resources.collect(),
            status: Some(self.said_of_attached(policy, &faults)),
            ..Output::default()
        }
    }

    /// One that is attached to nothing is for its namespace's waypoints; in the root namespace for all.
    fn telemetry(&self, policy: &Layer7, made: (wire::Telemetry, Vec<String>)) -> Output {
        let (made, mut faults) = made;
        let Spec::Telemetry(spec) = &*policy.spec else {
            return Output::default();
        };
        faults.extend(telemetry::providers(spec).filter_map(|it| self.no_report(it)));
        let root = *policy.key.namespace == *self.settings.root_namespace;
        let (attached, rank) = match (policy.targets.is_empty(), root) {
            (false, _) => (self.attached(&policy.targets), 2),
            (true, _) if spec.selector.is_some() => (Attached::new(), 2),
            (true, true) => (self.everything_in(""), 0),
            (true, false) => (self.everything_in(&policy.key.namespace), 1),
        };
        let resources = attached.into_iter().map(|(gateway, targets)| {
            let told = Told::Telemetry(wire::Telemetry {
                targets,
                rank,
                ..made.clone()
            });
            Resource::waypoint(&gateway, &policy.resource("", 0, told))
        });
        let resources = resources.collect();
        let for_all = policy.targets.is_empty() && spec.selector.is_none();
        let status = match for_all {
            false => Some(self.said_of_attached(policy, &faults)),
            // Who follows it comes and goes; what nobody can follow is said all the same.
            true => (!faults.is_empty()).then(|| said_of_all(policy, &faults)),
        };
        Output {
            resources,
            remarks: faults,
            status,
            ..Output::default()
        }
    }

    fn limits(&self, policy: &Layer7, spec: &LimitSpec, quota: bool) -> Output {
        let key = &policy.key;
        let made = limit::limits(spec, &key.namespace, &key.name, quota);
        let (made, mut faults) = match made {
            Ok(made) => (made, Vec::new()),
            Err(why) if limit::lets_pass(spec) => {
                (Vec::new(), vec![format!("{why}; nothing is limited by it")])
            }
            Err(why) => (
                vec![limit::closed()],
                vec![format!("{why}; {}", limit::REFUSES)],
            ),
        };
        let unknown = spec.global.as_ref();
        let unknown = unknown.and_then(|it| self.no_provider(&it.provider));
        faults.extend(unknown);
        let mut resources = Vec::new();
        for (gateway, targets) in self.attached(&policy.targets) {
            let mut rules = BTreeSet::new();
            for (index, limit) in (0_u32..).zip(&made) {
                let name = usize::try_from(index)
                    .ok()
                    .and_then(|it| spec.limits.get(it));
                let name = name.map_or("", |it| it.name.as_str());
                let mut rule = if name.is_empty() {
                    index.to_string()
                } else {
                    name.to_owned()
                };
                // Several that are called the same are several: none takes another's place.
                while !rules.insert(rule.clone()) {
                    rule = format!("{rule}.{index}");
                }
                let told = Told::RateLimit(wire::RateLimit {
                    targets: targets.clone(),
                    ..limit.clone()
                });
                resources.push(Resource::waypoint(
                    &gateway,
                    &policy.resource(&rule, index, told),
                ));
            }
        }
        Output {
            resources,
            status: Some(self.said_of_attached(policy, &faults)),
            ..Output::default()
        }
    }

    /// What refuses all requests for what a limit is attached to.
    fn closed_limit(&self, policy: &Layer7) -> Output {
        let attached = self.attached(&policy.targets).into_iter();
        let told = attached.map(|(gateway, targets)| {
            let told = Told::RateLimit(wire::RateLimit {
                targets,
                ..limit::closed()
            });
            Resource::waypoint(&gateway, &policy.resource("0", 0, told))
        });
        Output {
            resources: told.collect(),
            ..Output::default()
        }
    }

    fn closed_processor(&self, policy: &Layer7, why: &str) -> Output {
        let attached = self.attached(&policy.targets).into_iter();
        let told = attached.map(|(gateway, targets)| {
            let told = Told::Processing(wire::Processing {
                targets,
                invalid: why.to_owned(),
                ..wire::Processing::default()
            });
            Resource::waypoint(&gateway, &policy.resource("", 0, told))
        });
        Output {
            resources: told.collect(),
            ..Output::default()
        }
    }

    fn processor(&self, policy: &Layer7, spec: &ExternalProcessorSpec) -> Output {
        let key = &policy.key;
        let (made, fault) = processor::processing(spec, &key.namespace, &self.cluster.domain);
        let mut faults: Vec<String> = fault.into_iter().collect();
        let asked = ObjectKey::new(Kind::Service, &key.namespace, &spec.backend_ref.name);
        if faults.is_empty() && !self.objects.services.contains_key(&asked) {
            faults.push(format!("spec.backendRef: there is no {asked}"));
        }
        let attached = self.attached(&policy.targets).into_iter();
        let resources = attached.map(|(gateway, targets)| {
            let told = Told::Processing(wire::Processing {
                targets,
                ..made.clone()
            });
            Resource::waypoint(&gateway, &policy.resource("", 0, told))
        });
        Output {
            resources: resources.collect(),
            status: Some(self.said_of_attached(policy, &faults)),
            ..Output::default()
        }
    }

    /// Condition `WaypointAccepted`, where something is attached.
    fn said_of_attached(&self, policy: &Layer7, faults: &[String]) -> Desired {
        let condition = if policy.targets.is_empty() {
            Condition {
                r#type: "WaypointAccepted",
                status: false,
                reason: "UnsupportedValue".to_owned(),
                message:
                    "nothing enforces it: it names no targetRefs, and only waypoints read requests"
                        .to_owned(),
            }
        } else {
            status::policy::attached(&self.found(&policy.targets), faults)
        };
        Desired {
            generation: policy.generation,
            conditions: vec![condition],
            ..Desired::default()
        }
    }
}

/// Condition `WaypointAccepted` of what is for all waypoints of a namespace, or of the mesh: what of it has no effect.
fn said_of_all(policy: &Layer7, faults: &[String]) -> Desired {
    Desired {
        generation: policy.generation,
        conditions: vec![Condition {
            r#type: "WaypointAccepted",
            status: false,
            reason: "Invalid".to_owned(),
            message: faults.join("; "),
        }],
        ..Desired::default()
    }
}

/// namespace/name
pub(super) fn shown(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}
