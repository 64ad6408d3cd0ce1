//! What the process uses: file descriptors, memory, CPU, and how busy its runtime is.
//! Read from `/proc/self` and the runtime at each scrape; nothing is kept.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::RuntimeMetrics;

use crate::log::LogHandle;
use crate::metrics::Registry;

/// Takes as many file descriptors as it may have. Each connection takes two; the soft limit is a habit from the time of select(2).
pub fn allow_all_fds() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Registers the process's own metrics. `runtimes` are those that carry the load; their workers are numbered through.
pub fn register(registry: &mut Registry, runtimes: Vec<RuntimeMetrics>, log: Option<LogHandle>) {
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    registry.families().register_collector(Box::new(Process {
        runtimes,
        log,
        started,
    }));
}

#[derive(Debug)]
struct Process {
    runtimes: Vec<RuntimeMetrics>,
    log: Option<LogHandle>,
    /// Seconds since the Unix epoch.
    started: f64,
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.gauge(
            "process_open_fds",
            "Number of open file descriptors",
            open_fds(),
        )?;
        out.gauge(
            "process_max_fds",
            "Maximum number of file descriptors",
            max_fds(),
        )?;
        out.gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            resident_bytes(),
        )?;
        out.gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds",
            self.started,
        )?;
        out.counter(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            cpu_seconds(),
        )?;
        if let Some(log) = &self.log {
            out.counter(
                "ambit_log_lines_dropped",
                "Log lines dropped because stdout was not read fast enough",
                log.dropped() as f64,
            )?;
        }
        self.runtime(&mut out)
    }
}

impl Process {
    fn runtime(&self, out: &mut Out<'_>) -> fmt::Result {
        let count = |of: fn(&RuntimeMetrics) -> usize| {
            i64::try_from(self.runtimes.iter().map(of).sum::<usize>()).unwrap_or(i64::MAX)
        };
        out.gauge(
            "tokio_num_workers",
            "the number of worker threads used by the runtime",
            count(RuntimeMetrics::num_workers),
        )?;
        out.gauge(
            "tokio_global_queue_depth",
            "the number of tasks currently scheduled in the runtime's global queue",
            count(RuntimeMetrics::global_queue_depth),
        )?;
        out.gauge(
            "tokio_num_alive_tasks",
            "the number of alive tasks in the runtime",
            count(RuntimeMetrics::num_alive_tasks),
        )?;
        let workers = self
            .runtimes
            .iter()
            .flat_map(|runtime| (0..runtime.num_workers()).map(move |worker| (runtime, worker)));
        out.by_worker(
            "tokio_worker_total_busy_duration_seconds",
            "the amount of time worker threads have been busy",
            workers
                .clone()
                .map(|(runtime, worker)| runtime.worker_total_busy_duration(worker).as_secs_f64()),
        )?;
        out.by_worker(
            "tokio_worker_park_count",
            "the total number of times the given worker thread has parked",
            workers
                .clone()
                .map(|(runtime, worker)| runtime.worker_park_count(worker) as f64),
        )?;
        out.by_worker(
            "tokio_worker_park_unpark_count",
            "the total number of times the given worker thread has parked and unparked",
            workers.map(|(runtime, worker)| runtime.worker_park_unpark_count(worker) as f64),
        )
    }
}

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge<N>(&mut self, name: &str, help: &str, value: N) -> fmt::Result
    where
        ConstGauge<N>: EncodeMetric,
    {
        let gauge = ConstGauge::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, gauge.metric_type())?;
        gauge.encode(encoder)
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, counter.metric_type())?;
        counter.encode(encoder)
    }

    fn by_worker(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = f64>,
    ) -> fmt::Result {
        let metric_type = ConstCounter::new(0.0).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, metric_type)?;
        for (worker, value) in values.enumerate() {
            let labels = [("worker", worker.to_string())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn open_fds() -> i64 {
    // One of the entries is the directory being read.
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1) as i64)
}

fn max_fds() -> i64 {
    getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(0, |(soft, _)| i64::try_from(soft).unwrap_or(i64::MAX))
}

fn resident_bytes() -> i64 {
    crate::memory::resident().map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

fn cpu_seconds() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let seconds =
            |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scrape_sees_this_process() {
        let mut registry = Registry::new("test", "unknown");
        register(
            &mut registry,
            vec![tokio::runtime::Handle::current().metrics()],
            None,
        );
        let text = registry.text().unwrap();
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} is missing in\n{text}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert_eq!(value("tokio_num_workers"), 1.0);
    }

    /// Names, types and help of everything Istio's ztunnel says about its process.
    #[tokio::test]
    async fn golden_process_families_are_all_there() {
        let mut registry = Registry::new("ztunnel", "unknown");
        register(
            &mut registry,
            vec![tokio::runtime::Handle::current().metrics()],
            None,
        );
        let text = registry.text().unwrap();
        let golden = include_str!("../testdata/metrics-server-node.txt");
        let ours = |line: &&str| {
            line.starts_with('#') && (line.contains("process_") || line.contains("tokio_"))
        };
        for line in golden.lines().filter(ours) {
            assert!(
                text.lines().any(|ours| ours == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
