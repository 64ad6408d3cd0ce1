//! The registry behind `/metrics`: every process registers its families once, at the start.
//!
//! What has few series is printed whole, then told. What has many is printed as it is told (`streamed.rs`), and its collectors
//! hold no lock while they print: they copy out what they show.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::text;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// A registry that already carries what every component of the mesh reports about itself.
#[derive(Debug)]
pub struct Registry {
    families: prometheus_client::registry::Registry,
    large: prometheus_client::registry::Registry,
}

impl Registry {
    /// A registry with `istio_build{component,tag}`, by which Istio's tools tell versions apart.
    pub fn new(component: &'static str, version: &'static str) -> Self {
        let mut registry = prometheus_client::registry::Registry::default();
        let build: Family<[(&str, &str); 2], Gauge<i64, AtomicI64>> = Family::default();
        build
            .get_or_create(&[("component", component), ("tag", version)])
            .set(1);
        registry.register("istio_build", "Istio component build info", build);
        Self {
            families: registry,
            large: prometheus_client::registry::Registry::default(),
        }
    }

    /// The registry itself, for registering families.
    pub fn families(&mut self) -> &mut prometheus_client::registry::Registry {
        &mut self.families
    }

    /// For collectors of many series. They must hold no lock while they print: whoever reads may be slow.
    pub fn large(&mut self) -> &mut prometheus_client::registry::Registry {
        &mut self.large
    }

    /// Everything in OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode_registry(&mut out, &self.families)?;
        text::encode_registry(&mut out, &self.large)?;
        text::encode_eof(&mut out)?;
        Ok(out)
    }

    /// The same, told piece by piece.
    ///
    /// # Errors
    /// Those of `out`; what has been told by then lacks its end, by which a scraper knows.
    pub fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut few = String::new();
        text::encode_registry(&mut few, &self.families).map_err(io::Error::other)?;
        out.write_all(few.as_bytes())?;
        drop(few);
        let mut out = Printed {
            out,
            error: io::ErrorKind::Other.into(),
        };
        let printed = text::encode_registry(&mut out, &self.large);
        let printed = printed.and_then(|()| text::encode_eof(&mut out));
        printed.map_err(|fmt::Error| out.error)
    }
}

/// Text that goes to where bytes go.
struct Printed<'a> {
    out: &'a mut dyn io::Write,
    /// Why it goes no further.
    error: io::Error,
}

impl fmt::Write for Printed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let written = self.out.write_all(text.as_bytes());
        written.map_err(|error| {
            self.error = error;
            fmt::Error
        })
    }
}

/// The media type of [`Registry::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::counter::ConstCounter;

    use super::*;

    /// So many families.
    #[derive(Debug)]
    struct Many(u32);

    impl Collector for Many {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            (0..self.0).try_for_each(|number| {
                let counter = ConstCounter::new(u64::from(number));
                let name = format!("many_{number}");
                counter.encode(encoder.encode_descriptor(
                    &name,
                    "x",
                    None,
                    counter.metric_type(),
                )?)
            })
        }
    }

    /// Takes so many bytes, and how many came at a time at most.
    struct Narrow {
        left: usize,
        longest: usize,
        taken: Vec<u8>,
    }

    impl io::Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.left = self
                .left
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::BrokenPipe)?;
            self.longest = self.longest.max(bytes.len());
            self.taken.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_told_piece_by_piece_is_the_whole_text_and_a_caller_that_goes_ends_it() {
        let mut registry = Registry::new("ztunnel", "unknown");
        registry.large().register_collector(Box::new(Many(10_000)));
        let whole = registry.text().unwrap();
        assert!(whole.contains("istio_build") && whole.ends_with("# EOF\n"));
        let mut narrow = Narrow {
            left: whole.len(),
            longest: 0,
            taken: Vec::new(),
        };
        registry.write(&mut narrow).unwrap();
        assert_eq!(narrow.taken, whole.as_bytes());
        assert!(narrow.longest < 1000, "{} bytes at once", narrow.longest);

        let mut gone = Narrow {
            left: whole.len() / 2,
            longest: 0,
            taken: Vec::new(),
        };
        let error = registry.write(&mut gone).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(gone.taken.len() <= whole.len() / 2);
    }

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
