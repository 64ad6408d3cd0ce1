//! What is right, but will not do what it looks like: said when it is written, by `kubectl`'s
//! `Warning:`, and nobody is kept from it.
//!
//! What of a policy ztunnels do not enforce is the remark that its status shows, word for word.

use api::k8s::istio::{self, AuthorizationPolicy, Mode, PeerAuthentication, ServiceEntry};
use api::k8s::objects::{Object, ObjectMeta, RequestAuthentication};
use api::k8s::routes::ParentRef;
use api::waypoint::ServiceRef;

use super::Judge;
use crate::translate::layer7::{backend, telemetry};
use crate::translate::policy::{Policy, Reading, Target};
use crate::translate::route::{Route, Spec, translate};
use crate::translate::service_entry::SEEN_BY_ALL;

pub(super) fn of(judge: &Judge, object: &Object) -> Vec<String> {
    match object {
        Object::AuthorizationPolicy(policy) => of_policy(judge, policy),
        Object::PeerAuthentication(policy) => of_peer(judge, policy),
        Object::ServiceEntry(entry) => of_entry(entry),
        Object::HttpRoute(route) => of_route(&route.metadata, Spec::http(route)),
        Object::GrpcRoute(route) => of_route(&route.metadata, Spec::grpc(route)),
        Object::TcpRoute(route) => of_route(&route.metadata, Spec::tcp(route)),
        Object::TlsRoute(route) => of_route(&route.metadata, Spec::tls(route)),
        Object::DestinationRule(rule) => backend::faults(&rule.spec),
        Object::RequestAuthentication(policy) => of_tokens(policy),
        Object::Telemetry(it) => telemetry::telemetry(&it.spec).1,
        _ => Vec::new(),
    }
}

/// Of one for waypoints: what its status will say, as far as it can be seen from the route alone.
fn of_route(metadata: &ObjectMeta, spec: Spec) -> Vec<String> {
    let gateway = |it: &ParentRef| it.kind.as_deref().unwrap_or("Gateway") == "Gateway";
    if spec.parents().iter().all(gateway) {
        return Vec::new();
    }
    let made = translate(&spec, "", &|_| Ok(ServiceRef::default()));
    let unhedged = Route::read(metadata, spec, None)
        .unhedged()
        .map(str::to_owned);
    let unaccepted = made
        .faults
        .iter()
        .map(|fault| format!("this route is not accepted: {fault}"));
    let unsupported = made.unsupported.iter().map(|(_, text)| text.clone());
    unaccepted.chain(unsupported).chain(unhedged).collect()
}

fn of_tokens(policy: &RequestAuthentication) -> Vec<String> {
    let spec = &policy.spec;
    let attached = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    let unread = "nothing enforces it: it names no targetRefs, and only waypoints read requests";
    (!attached).then(|| unread.to_owned()).into_iter().collect()
}

fn of_policy(judge: &Judge, policy: &AuthorizationPolicy) -> Vec<String> {
    let reading = Reading {
        root_namespace: judge.root_namespace.to_string(),
        dry_run_is_sent: judge.dry_run,
        ..Reading::default()
    };
    let read = Policy::read(policy, &reading);
    let mut warnings = read.remarks;
    warnings.extend(
        read.targets
            .iter()
            .filter_map(|target| missing(judge, target)),
    );
    if *read.namespace == *judge.root_namespace && read.targets.is_empty() {
        let whom = match read.selector {
            Some(_) => "workloads with these labels in every namespace",
            None => "every workload of the mesh",
        };
        warnings.push(mesh_wide(&read.namespace, whom));
    }
    let mut prefixed = principals(&policy.spec).filter(|text| text.starts_with(SCHEME));
    if let Some(first) = prefixed.next() {
        let meant = first.trim_start_matches(SCHEME);
        warnings.push(format!(
            "principal {first:?} matches nobody: principals are written without {SCHEME}, as in {meant:?}"
        ));
    }
    warnings
}

/// A target that is not there, or none.
fn missing(judge: &Judge, target: &Target) -> Option<String> {
    let Some(key) = &target.object else {
        return Some(format!(
            "no policy can be attached to {}: a target is a Gateway, a Service or a ServiceEntry of the policy's namespace, with its API group",
            target.shown
        ));
    };
    let gone = (judge.exists)(key) == Some(false);
    gone.then(|| {
        format!(
            "there is no {}: until there is, this policy protects nothing",
            target.shown
        )
    })
}

const SCHEME: &str = "spiffe://";

/// Every text that is compared with the caller's identity.
fn principals(spec: &istio::AuthorizationPolicySpec) -> impl Iterator<Item = &String> {
    spec.rules.iter().flat_map(|rule| {
        let sources = rule.from.iter().map(|from| &from.source);
        let named = sources.flat_map(|it| it.principals.iter().chain(&it.not_principals));
        let conditions = rule.when.iter().filter(|it| it.key == "source.principal");
        named.chain(conditions.flat_map(|it| it.values.iter().chain(&it.not_values)))
    })
}

fn mesh_wide(namespace: &str, whom: &str) -> String {
    format!("{namespace} is the root namespace: this holds for {whom}")
}

fn of_peer(judge: &Judge, policy: &PeerAuthentication) -> Vec<String> {
    let spec = &policy.spec;
    let mut warnings = Vec::new();
    let modes = spec.mtls.iter().chain(spec.port_level_mtls.values());
    if modes.into_iter().any(|it| it.mode == Mode::Disable) {
        warnings.push(
            "DISABLE means PERMISSIVE in ambient mode: plain text is accepted, and so are tunnels"
                .into(),
        );
    }
    let namespace = policy.metadata.namespace.as_deref().unwrap_or("default");
    if namespace == &*judge.root_namespace && spec.selector.is_none() {
        warnings.push(mesh_wide(namespace, "every workload of the mesh"));
    }
    warnings
}

fn of_entry(entry: &ServiceEntry) -> Vec<String> {
    let everywhere = |to: &String| to == "*";
    if entry.spec.export_to.iter().all(everywhere) {
        return Vec::new();
    }
    vec![SEEN_BY_ALL.to_owned()]
}
