//! What an installation that watches says of itself, under Istio's names.
//!
//! Each outcome of [`Watch::apply`](super::Watch::apply) goes in. One that found nothing to do is no
//! installation: it says ready and counts nothing.

use std::path::PathBuf;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Install, InstallError};

/// The numbers. Clones share the values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    ready: Gauge,
    installs: Family<Outcome, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "istio_cni_install_ready",
            "Whether the plugin is on the host as it should be",
            metrics.ready.clone(),
        );
        registry.register(
            "istio_cni_installs",
            "Installations and repairs of the plugin by result",
            metrics.installs.clone(),
        );
        metrics
    }

    /// Takes note of how `install` went.
    pub fn note(&self, install: &Install, applied: &Result<Vec<PathBuf>, InstallError>) {
        self.ready.set(i64::from(applied.is_ok()));
        let result = match applied {
            Ok(changed) if changed.is_empty() => return,
            Ok(_) => "SUCCESS",
            Err(error) if install.concerns_binary(error) => "COPY_BINARIES_FAILURE",
            Err(_) => "CREATE_CNI_CONFIG_FAILURE",
        };
        self.installs.get_or_create(&Outcome { result }).inc();
    }
}

impl Install {
    fn concerns_binary(&self, error: &InstallError) -> bool {
        let InstallError::File { path, .. } = error else {
            return false;
        };
        self.bin_dir().is_ok_and(|bin| path.starts_with(bin))
            || self.plugin_path().is_ok_and(|plugin| *path == plugin)
    }
}
