//! The registry behind `/metrics`: every process registers its families once, at the start.

use std::fmt;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::text;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// A registry that already carries what every component of the mesh reports about itself.
#[derive(Debug)]
pub struct Registry(prometheus_client::registry::Registry);

impl Registry {
    /// A registry with `istio_build{component,tag}`, by which Istio's tools tell versions apart.
    pub fn new(component: &'static str, version: &'static str) -> Self {
        let mut registry = prometheus_client::registry::Registry::default();
        let build: Family<[(&str, &str); 2], Gauge<i64, AtomicI64>> = Family::default();
        build
            .get_or_create(&[("component", component), ("tag", version)])
            .set(1);
        registry.register("istio_build", "Istio component build info", build);
        Self(registry)
    }

    /// The registry itself, for registering families.
    pub fn families(&mut self) -> &mut prometheus_client::registry::Registry {
        &mut self.0
    }

    /// Everything in OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.0)?;
        Ok(out)
    }
}

/// The media type of [`Registry::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_line_is_istios() {
        let text = Registry::new("ztunnel", "unknown").text().unwrap();
        let golden = include_str!("../testdata/metrics-server-node.txt");
        for line in golden.lines().filter(|line| line.contains("istio_build")) {
            assert!(
                text.lines().any(|ours| ours == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
