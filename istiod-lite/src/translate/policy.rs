//! AuthorizationPolicies: who is meant, what ztunnels enforce of it, and what they say they do not; and what waypoints
//! enforce where one is attached. Their rules
//! are read in `rules`.

mod rules;

use std::sync::Arc;

use api::k8s::aim::Aim;
use api::k8s::istio::{Action, AuthorizationPolicy, TargetRef};
use api::k8s::labels;
use api::k8s::objects::{Kind, ObjectKey, ObjectMeta};
use api::security::{self, Authorization, Group, Scope};
use api::waypoint as wire;

use rules::groups;

use super::trust::TrustDomains;
use super::{Labels, layer7, value};

/// What matters of an AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The workloads that must name it; none if it applies without being named.
    pub selector: Option<Labels>,
    /// The resource; none for a policy that ztunnels do not enforce.
    pub authorization: Option<Authorization>,
    /// What of it ztunnels do not enforce, and why.
    pub remarks: Vec<String>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// What ztunnels make of it.
    pub layer4: Layer4,
    /// What it is attached to.
    pub targets: Vec<Target>,
    /// What waypoints are told of it, but for its targets; none of a policy that is attached to nothing.
    pub attached: Option<wire::Resource>,
}

/// What ztunnels make of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer4 {
    /// They enforce all of it.
    Whole,
    /// They enforce what does not need HTTP.
    Partly,
    /// They enforce nothing of it.
    Not,
    /// It is not for them.
    Elsewhere,
    /// It cannot be read; in its place they deny everything to those it is about.
    Closed,
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As written: kind, and namespace/name.
    pub shown: String,
    /// The object; none if it is none that a policy can be attached to.
    pub object: Option<ObjectKey>,
}

/// How policies are read, the same in the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: String,
    /// Whether dry-run policies are sent.
    pub dry_run_is_sent: bool,
    /// Ours, under all its names.
    pub trust_domains: TrustDomains,
}

impl Policy {
    /// Translates a policy.
    pub fn read(policy: &AuthorizationPolicy, reading: &Reading) -> Self {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or("default");
        let spec = &policy.spec;
        let targets: Vec<Target> = spec
            .target_ref
            .iter()
            .chain(&spec.target_refs)
            .map(|target| Target::read(target, namespace, &reading.root_namespace))
            .collect();
        let selector = policy
            .spec
            .selector
            .as_ref()
            .map(|selector| selector.match_labels.clone());
        let mut remarks = Vec::new();
        let authorization = authorization(policy, reading, &mut remarks);
        let layer4 = match (&authorization, remarks.is_empty()) {
            _ if !targets.is_empty() => Layer4::Elsewhere,
            (None, _) => Layer4::Not,
            (Some(_), false) => Layer4::Partly,
            (Some(_), true) => Layer4::Whole,
        };
        Self {
            namespace: namespace.into(),
            selector,
            authorization,
            remarks,
            generation: policy.metadata.generation,
            layer4,
            attached: attached(policy, namespace, targets.is_empty()),
            targets,
        }
    }

    /// What stands in the place of a policy that cannot be read: nobody speaks to those it is about.
    /// None if it would keep nobody from speaking, were it good.
    pub fn closed(key: &ObjectKey, aim: &Aim, why: &str, reading: &Reading) -> Option<Self> {
        let selector = match aim {
            Aim::Attached(_) | Aim::Somewhere => return Self::closed_there(key, aim, why, reading),
            Aim::Selected(labels) => Some(labels.clone()),
            Aim::All => None,
            Aim::Nobody => return None,
        };
        let about = about(selector.as_ref(), &key.namespace, reading);
        Some(Self {
            namespace: key.namespace.clone(),
            authorization: Some(Authorization {
                name: key.name.to_string(),
                namespace: key.namespace.to_string(),
                scope: scope(selector.is_some(), &key.namespace, reading).into(),
                action: security::Action::Deny.into(),
                groups: vec![Group::default()],
                ..Authorization::default()
            }),
            selector,
            remarks: vec![format!(
                "until it is mended it denies all traffic to {about}"
            )],
            generation: None,
            layer4: Layer4::Closed,
            targets: Vec::new(),
            attached: None,
        })
    }

    /// The same of one that is attached to something.
    fn closed_there(key: &ObjectKey, aim: &Aim, why: &str, reading: &Reading) -> Option<Self> {
        let targets = layer7::aimed_at(key, aim, reading);
        let shown: Vec<&str> = targets.iter().map(|it| it.shown.as_str()).collect();
        if shown.is_empty() {
            return None;
        }
        let told = wire::resource::Kind::Authorization(layer7::authorization::closed(why));
        Some(Self {
            namespace: key.namespace.clone(),
            selector: None,
            authorization: None,
            remarks: vec![format!(
                "until it is mended it denies all requests to {}",
                shown.join(", ")
            )],
            generation: None,
            layer4: Layer4::Closed,
            attached: Some(layer7::resource(key, 0, "", 0, told)),
            targets,
        })
    }

    /// Its xDS name, if it is sent.
    pub fn resource_name(&self) -> Option<String> {
        self.authorization
            .as_ref()
            .map(|it| format!("{}/{}", it.namespace, it.name))
    }
}

impl Target {
    /// Everything in a namespace, or in the mesh: where nobody knows what is meant.
    pub fn anywhere(namespace: &str, root_namespace: &str) -> Self {
        let (shown, name) = if namespace == root_namespace {
            ("all waypoints".to_owned(), "")
        } else {
            (
                format!("every waypoint in namespace {namespace}, and every service in it"),
                namespace,
            )
        };
        Self {
            shown,
            object: Some(ObjectKey::new(Kind::Namespace, "", name)),
        }
    }

    /// Classes are for the whole mesh, so only its own namespace may attach to them.
    pub fn read(target: &TargetRef, namespace: &str, root_namespace: &str) -> Self {
        let elsewhere = target.namespace.as_deref().filter(|it| *it != namespace);
        let kind = match (target.group.as_str(), target.kind.as_str()) {
            _ if elsewhere.is_some() => None,
            ("" | "core", "Service") => Some(Kind::Service),
            ("networking.istio.io", "ServiceEntry") => Some(Kind::ServiceEntry),
            ("gateway.networking.k8s.io", "Gateway") => Some(Kind::Gateway),
            ("gateway.networking.k8s.io", "GatewayClass") if namespace == root_namespace => {
                Some(Kind::GatewayClass)
            }
            _ => None,
        };
        let shown = match target.kind.as_str() {
            "GatewayClass" => format!("GatewayClass {}", target.name),
            kind => format!("{kind} {}/{}", elsewhere.unwrap_or(namespace), target.name),
        };
        Self {
            shown,
            object: kind.map(|kind| ObjectKey::new(kind, namespace, &target.name)),
        }
    }
}

fn authorization(
    policy: &AuthorizationPolicy,
    reading: &Reading,
    remarks: &mut Vec<String>,
) -> Option<Authorization> {
    let spec = &policy.spec;
    let dry_run = is_rehearsal(&policy.metadata);
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    // Policies of waypoints are no business of ztunnels.
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        return None;
    }
    let action = match spec.action {
        Action::Allow => security::Action::Allow,
        Action::Deny => security::Action::Deny,
        Action::Audit | Action::Custom => {
            let action = if spec.action == Action::Audit {
                "AUDIT"
            } else {
                "CUSTOM"
            };
            remarks.push(format!(
                "ztunnel does not support the {action} action: only ALLOW and DENY work at layer 4, attach the policy to a waypoint with targetRefs"
            ));
            return None;
        }
    };
    if dry_run && !reading.dry_run_is_sent {
        remarks.push("dry-run policies are switched off: take annotation istio.io/dry-run away to enforce it, or start the control plane with --dry-run-policies".into());
        return None;
    }
    let scope = scope(spec.selector.is_some(), &namespace, reading);
    Some(Authorization {
        name: policy.metadata.name.clone().unwrap_or_default(),
        groups: groups(&spec.rules, action, &namespace, reading, remarks),
        namespace,
        scope: scope.into(),
        action: action.into(),
        dry_run,
        ..Authorization::default()
    })
}

/// What waypoints are told of a policy that is attached to something, but for what that is.
fn attached(
    policy: &AuthorizationPolicy,
    namespace: &str,
    to_nothing: bool,
) -> Option<wire::Resource> {
    if to_nothing {
        return None;
    }
    let metadata = &policy.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let key = ObjectKey::new(Kind::AuthorizationPolicy, namespace, name);
    let told = layer7::authorization::authorization(&policy.spec, is_rehearsal(metadata));
    let told = wire::resource::Kind::Authorization(told);
    Some(layer7::resource(
        &key,
        layer7::created(metadata),
        "",
        0,
        told,
    ))
}

fn is_rehearsal(metadata: &ObjectMeta) -> bool {
    let none = Labels::new();
    let annotations = metadata.annotations.as_ref().unwrap_or(&none);
    value(annotations, labels::DRY_RUN).is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

/// To whom a policy applies, in words.
fn about(selector: Option<&Labels>, namespace: &str, reading: &Reading) -> String {
    let of = match namespace {
        root if root == reading.root_namespace => "of the mesh".to_owned(),
        namespace => format!("of namespace {namespace}"),
    };
    let labels = selector.into_iter().flatten();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if labels.is_empty() {
        return format!("all workloads {of}");
    }
    format!("workloads {of} with {}", labels.join(","))
}

fn scope(selects: bool, namespace: &str, reading: &Reading) -> Scope {
    match selects {
        true => Scope::WorkloadSelector,
        false if namespace == reading.root_namespace => Scope::Global,
        false => Scope::Namespace,
    }
}
