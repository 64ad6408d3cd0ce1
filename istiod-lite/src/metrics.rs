//! What the control plane counts, under the names that Istio's dashboards and alerts ask for.
//!
//! One struct, made once, shared by everything that counts. Most of Istio's counters have no `_total` at
//! the end, which OpenMetrics demands of a counter, so ours are typed `unknown`: the name is what
//! a dashboard asks for, and `rate()` does not look at the type.

mod labels;
mod value;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use api::k8s::objects::Kind;
use ops::metrics::Registry;
use prometheus_client::metrics::family::{Family, MetricConstructor as _};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use value::{BYTES, Expiry, Histograms, SECONDS, SecondsLeft};

pub use labels::{
    Admitted, Failure, LeaseName, NotAdmitted, NotJoined, ObjectEvent, Of, Resource, Trigger,
    Version, Write,
};
pub use value::{Buckets, Count};

/// Every family.
pub struct Metrics {
    /// Proxies connected, by the version they say they are ([`Self::connected_as`]).
    connected: Family<Version, Gauge>,
    /// Versions that have a series of their own.
    versions: Mutex<BTreeSet<String>>,
    /// Responses sent.
    pub pushes: Family<Of, Count>,
    /// Seconds to build one round of responses of a stream.
    pub push_seconds: Histograms<Of>,
    /// Bytes of a response's resources.
    pub response_bytes: Histograms<Of>,
    /// Seconds from a change to the moment a stream took its responses up.
    pub convergence_seconds: Histogram,
    /// Seconds a change waited for others.
    pub debounce_seconds: Histogram,
    /// Seconds to work out what a batch of changes means for the mesh.
    pub recompute_seconds: Histogram,
    /// Rounds of pushes.
    pub push_triggers: Family<Trigger, Count>,
    /// NACKs.
    pub rejects: Family<Of, Count>,
    /// Streams that ended through a fault of ours.
    pub internal_errors: Count,
    /// Answers to responses that were no longer the latest.
    pub expired_nonces: Family<Of, Count>,
    /// Services known.
    pub services: Gauge,
    /// Changes of objects that say what runs where.
    pub registry_events: Family<ObjectEvent, Count>,
    /// Changes of objects that say how it shall be.
    pub config_events: Family<ObjectEvent, Count>,
    /// CSRs that came.
    pub csrs: Count,
    /// CSRs that were signed.
    pub issued: Count,
    /// Callers nobody knows, or that may not speak for whom they tried to.
    pub authentication_failures: Count,
    /// CSRs that are none.
    pub csr_parse_errors: Count,
    /// Identities that are none.
    pub identity_errors: Count,
    /// CSRs that could not be signed.
    pub sign_errors: Family<Failure, Count>,
    /// Writes into the cluster.
    pub writes: Family<Write, Count>,
    /// 1 for each Lease that this replica leads by.
    pub leading: Family<LeaseName, Gauge>,
    /// 1 while the signer that should be used cannot be, and the last good one is.
    pub signer_refused: Gauge,
    /// Objects the webhook let through.
    pub admitted: Family<Admitted, Count>,
    /// Objects it refused.
    pub not_admitted: Family<NotAdmitted, Count>,
    /// Pods that the injecting webhook was asked about.
    pub injections_asked: Count,
    /// Those that were given a proxy.
    pub injected: Count,
    /// Those that stayed as they were.
    pub injections_left: Count,
    /// Those that must not be made.
    pub injections_refused: Count,
    /// Machines that joined by a token.
    pub machines_joined: Count,
    /// Machines that were refused.
    pub machines_refused: Family<NotJoined, Count>,
    root_expiry: Expiry,
    signer_expiry: Expiry,
}

impl Metrics {
    /// Registers every family; those with few labels with zeros, where a dashboard would see gaps.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Arc::new(Self::unregistered());
        for r#type in [Resource::wds, Resource::wads] {
            drop(metrics.pushes.get_or_create(&Of { r#type }));
            drop(metrics.rejects.get_or_create(&Of { r#type }));
        }
        metrics.register_push(registry.families());
        metrics.register_admission(registry.families());
        metrics.register_authority(registry.families());
        metrics
    }

    /// Something happened to an object of `kind`, or to one of which not even that is known.
    pub fn object_event(&self, kind: Option<Kind>, event: &'static str) {
        let family = match kind {
            Some(
                Kind::Pod
                | Kind::Service
                | Kind::EndpointSlice
                | Kind::Node
                | Kind::Namespace
                | Kind::ServiceAccount,
            ) => &self.registry_events,
            _ => &self.config_events,
        };
        let r#type = kind.map_or("unknown", Kind::name);
        family
            .get_or_create(&ObjectEvent { r#type, event })
            .increment();
    }

    /// How many proxies of a version are connected. It is in the proxy's own words, which have no end: what cannot be a version, and
    /// what comes when there are many already, counts as `other`.
    pub fn connected_as(&self, version: &str) -> Gauge {
        let version = match version {
            "" => "unknown",
            version if self.is_one_of_few(version) => version,
            _ => "other",
        };
        let version = Version {
            version: version.into(),
        };
        self.connected.get_or_create_owned(&version)
    }

    fn is_one_of_few(&self, version: &str) -> bool {
        if version.len() > LONGEST_VERSION || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
            return false;
        }
        let mut known = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let room = known.len() < MOST_VERSIONS;
        known.contains(version) || (room && known.insert(version.to_owned()))
    }

    /// When the first root and when the signer end, in seconds since 1970.
    pub fn expiries(&self, (root, signer): (i64, i64)) {
        self.root_expiry.set(root);
        self.signer_expiry.set(signer);
    }

    /// Something was written into the cluster, or could not be.
    pub fn wrote(&self, writer: &'static str, ok: bool) {
        let result = if ok { "success" } else { "failure" };
        self.writes
            .get_or_create(&Write { writer, result })
            .increment();
    }

    fn unregistered() -> Self {
        Self {
            connected: Family::default(),
            versions: Mutex::default(),
            pushes: Family::default(),
            push_seconds: Family::new_with_constructor(Buckets(SECONDS)),
            response_bytes: Family::new_with_constructor(Buckets(BYTES)),
            convergence_seconds: Buckets(SECONDS).new_metric(),
            debounce_seconds: Buckets(SECONDS).new_metric(),
            recompute_seconds: Buckets(SECONDS).new_metric(),
            push_triggers: Family::default(),
            rejects: Family::default(),
            internal_errors: Count::default(),
            expired_nonces: Family::default(),
            services: Gauge::default(),
            registry_events: Family::default(),
            config_events: Family::default(),
            csrs: Count::default(),
            issued: Count::default(),
            authentication_failures: Count::default(),
            csr_parse_errors: Count::default(),
            identity_errors: Count::default(),
            sign_errors: Family::default(),
            writes: Family::default(),
            leading: Family::default(),
            signer_refused: Gauge::default(),
            admitted: Family::default(),
            not_admitted: Family::default(),
            injections_asked: Count::default(),
            injected: Count::default(),
            injections_left: Count::default(),
            injections_refused: Count::default(),
            machines_joined: Count::default(),
            machines_refused: Family::default(),
            root_expiry: Expiry::default(),
            signer_expiry: Expiry::default(),
        }
    }

    fn register_push(&self, to: &mut prometheus_client::registry::Registry) {
        let info: Family<[(&str, &str); 1], Gauge> = Family::default();
        info.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))])
            .set(1);
        to.register("pilot_info", "Version of the control plane", info);
        to.register("pilot_xds", "Proxies connected", self.connected.clone());
        to.register("pilot_xds_pushes", "Responses sent", self.pushes.clone());
        to.register(
            "pilot_xds_push_time",
            "Seconds to build a response",
            self.push_seconds.clone(),
        );
        to.register(
            "pilot_xds_config_size_bytes",
            "Bytes of a response's resources",
            self.response_bytes.clone(),
        );
        to.register(
            "pilot_proxy_convergence_time",
            "Seconds from a change to its push",
            self.convergence_seconds.clone(),
        );
        to.register(
            "pilot_debounce_time",
            "Seconds a change waited for others",
            self.debounce_seconds.clone(),
        );
        to.register(
            "pilot_pushcontext_init_seconds",
            "Seconds to work out what a batch of changes means",
            self.recompute_seconds.clone(),
        );
        to.register(
            "pilot_push_triggers",
            "Rounds of pushes",
            self.push_triggers.clone(),
        );
        to.register("pilot_total_xds_rejects", "NACKs", self.rejects.clone());
        to.register(
            "pilot_total_xds_internal_errors",
            "Streams ended by a fault of ours",
            self.internal_errors.clone(),
        );
        to.register(
            "pilot_xds_expired_nonce",
            "Answers to responses that were no longer the latest",
            self.expired_nonces.clone(),
        );
        to.register("pilot_services", "Services known", self.services.clone());
        to.register(
            "pilot_k8s_reg_events",
            "Changes of Pods, Services and what they stand on",
            self.registry_events.clone(),
        );
        to.register(
            "pilot_k8s_cfg_events",
            "Changes of the mesh's own objects",
            self.config_events.clone(),
        );
    }

    fn register_admission(&self, to: &mut prometheus_client::registry::Registry) {
        to.register(
            "galley_validation_passed",
            "Objects admitted",
            self.admitted.clone(),
        );
        to.register(
            "galley_validation_failed",
            "Objects refused",
            self.not_admitted.clone(),
        );
        to.register(
            "sidecar_injection_requests_total",
            "Pods that ask for a proxy of their own",
            self.injections_asked.clone(),
        );
        to.register(
            "sidecar_injection_success_total",
            "Pods that were given one",
            self.injected.clone(),
        );
        to.register(
            "sidecar_injection_skip_total",
            "Pods that stayed as they were",
            self.injections_left.clone(),
        );
        to.register(
            "sidecar_injection_failure_total",
            "Pods that were refused, for they could not have one",
            self.injections_refused.clone(),
        );
    }

    fn register_authority(&self, to: &mut prometheus_client::registry::Registry) {
        to.register("citadel_server_csr_count", "CSRs", self.csrs.clone());
        to.register(
            "citadel_server_success_cert_issuance_count",
            "Certificates issued",
            self.issued.clone(),
        );
        to.register(
            "citadel_server_authentication_failure_count",
            "Callers refused",
            self.authentication_failures.clone(),
        );
        to.register(
            "citadel_server_csr_parsing_err_count",
            "CSRs that are none",
            self.csr_parse_errors.clone(),
        );
        to.register(
            "citadel_server_id_extraction_err_count",
            "Identities that are none",
            self.identity_errors.clone(),
        );
        to.register(
            "citadel_server_csr_sign_err_count",
            "CSRs that could not be signed",
            self.sign_errors.clone(),
        );
        to.register(
            "ambit_cluster_writes",
            "Writes into the cluster",
            self.writes.clone(),
        );
        to.register(
            "ambit_leader",
            "1 for each Lease this replica leads by",
            self.leading.clone(),
        );
        to.register(
            "ambit_machines_joined",
            "Machines that joined by a token",
            self.machines_joined.clone(),
        );
        to.register(
            "ambit_machines_refused",
            "Machines that were refused, by the reason",
            self.machines_refused.clone(),
        );
        to.register(
            "ambit_ca_signer_refused",
            "1 while a new signer is refused and the last good one stays",
            self.signer_refused.clone(),
        );
        let (root, signer) = (self.root_expiry.clone(), self.signer_expiry.clone());
        to.register(
            "citadel_server_root_cert_expiry_timestamp",
            "End of the root, seconds since 1970",
            root.clone(),
        );
        to.register(
            "citadel_server_root_cert_expiry_seconds",
            "Seconds until the root ends",
            SecondsLeft(root),
        );
        to.register(
            "citadel_server_cert_chain_expiry_timestamp",
            "End of the signer, seconds since 1970",
            signer.clone(),
        );
        to.register(
            "citadel_server_cert_chain_expiry_seconds",
            "Seconds until the signer ends",
            SecondsLeft(signer),
        );
    }
}

const LONGEST_VERSION: usize = 64;
/// More than a mesh has at a time, also while it is upgraded.
const MOST_VERSIONS: usize = 64;

#[cfg(test)]
mod tests;
