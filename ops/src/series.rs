//! Series of metrics that stay bounded, whoever comes and goes.
//!
//! * beyond so many, new label sets fall together in few ([`Labels::overflow`]), and that is counted
//! * a series that nobody has used for a while and whose labels name somebody who is gone expires ([`Table::sweep`]); when
//!   it comes again it starts from zero, as after a restart
//! * whoever holds a series uses it, and so does whoever gets it
//!
//! Numbers are counted by relaxed atomics in what is held; the table is locked to find or to make a series, never while one
//! counts or while they are printed.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// What tells one series from another.
pub trait Labels: Eq + Hash {
    /// One of few label sets that stand for all for which there is no room.
    fn overflow(&self) -> Self;
}

/// Labels that are left out, as whoever pays for the series wants it: what nothing else tells apart is one series.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Without(Vec<&'static str>);

impl Without {
    /// Names, with commas between them.
    ///
    /// # Errors
    /// When one of them is no label, or none that can be left out.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let known = |name: &str| {
            let known = LABELS.into_iter().find(|known| *known == name);
            known.ok_or_else(|| {
                format!(
                    "{name:?} is no label that can be left out; those are {}",
                    LABELS.join(", ")
                )
            })
        };
        names.map(known).collect::<Result<_, _>>().map(Self)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this one is.
    pub fn has(&self, label: &str) -> bool {
        self.0.contains(&label)
    }

    /// Whether none of these is left.
    pub fn has_all(&self, labels: &[&str]) -> bool {
        labels.iter().all(|label| self.has(label))
    }
}

/// What can be left out: labels of Istio's metrics by which a service or a workload is told from another.
const LABELS: [&str; 25] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_region",
    "source_zone",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_region",
    "destination_zone",
    "connection_security_policy",
    "hostname",
];

/// How many series there may be, and how long one stays.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Series, beside those that stand for the rest.
    pub most: usize,
    /// How long one stays that nobody uses, after somebody whom it names is gone.
    pub expiry: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            most: MOST,
            expiry: EXPIRY,
        }
    }
}

/// By their labels.
type All<L, M> = HashMap<Arc<L>, Arc<Series<L, M>>>;

/// All series of a family, or of several that have the same labels.
#[derive(Debug)]
pub struct Table<L, M> {
    all: RwLock<All<L, M>>,
    bounds: Bounds,
    begun: Instant,
    merged: AtomicU64,
    expired: AtomicU64,
}

/// The numbers of one label set.
#[derive(Debug)]
pub struct Series<L, M> {
    labels: Arc<L>,
    /// Apart from who holds the series: those who only print them do not.
    numbers: Arc<M>,
    /// Since the last sweep.
    used: AtomicBool,
    /// In milliseconds since the table began.
    idle_since: AtomicU64,
}

/// How it stands with the bounds of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Series there are.
    pub series: usize,
    /// How often there was no room for one, and it was counted among the rest.
    pub merged: u64,
    /// Those that have expired.
    pub expired: u64,
}

impl<L, M> Series<L, M> {
    /// What tells it from others.
    pub fn labels(&self) -> &L {
        &self.labels
    }

    /// The same labels and numbers, without being it.
    fn to_print(&self) -> Self {
        Self {
            labels: self.labels.clone(),
            numbers: self.numbers.clone(),
            used: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
        }
    }
}

impl<L, M> Deref for Series<L, M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.numbers
    }
}

impl<L: Labels, M: Default> Default for Table<L, M> {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl<L: Labels, M: Default> Table<L, M> {
    /// No series yet.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            all: RwLock::default(),
            bounds,
            begun: Instant::now(),
            merged: AtomicU64::new(0),
            expired: AtomicU64::new(0),
        }
    }

    /// The series of a label set, or the one that stands for it.
    pub fn of(&self, labels: L) -> Arc<Series<L, M>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = all.get(&labels) {
            series.used.store(true, Relaxed);
            return series.clone();
        }
        let full = all.len() >= self.bounds.most;
        drop(all);
        let labels = Arc::new(match full {
            true => {
                self.merged.fetch_add(1, Relaxed);
                labels.overflow()
            }
            false => labels,
        });
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let made = |labels: Arc<L>| {
            Arc::new(Series {
                labels,
                numbers: Arc::default(),
                used: AtomicBool::new(true),
                idle_since: AtomicU64::new(0),
            })
        };
        all.entry(labels.clone())
            .or_insert_with(|| made(labels))
            .clone()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, copied out: a slow reader holds up nobody, and keeps no series that nobody uses.
    pub fn all(&self) -> Vec<Arc<Series<L, M>>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values()
            .map(|series| Arc::new(series.to_print()))
            .collect()
    }

    /// How it stands with its bounds.
    pub fn figures(&self) -> Figures {
        Figures {
            series: self.len(),
            merged: self.merged.load(Relaxed),
            expired: self.expired.load(Relaxed),
        }
    }

    /// Those that nobody has used for as long as one stays. Notes on the way who was used since the last time: to be called
    /// now and then.
    pub fn idle(&self, now: Instant) -> Vec<Arc<L>> {
        let now = self.at(now);
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let idle = all
            .values()
            .filter(|series| !series.is_used(now) && self.is_over(series, now));
        idle.map(|series| series.labels.clone()).collect()
    }

    /// Takes out those of `idle` that still are.
    pub fn expire(&self, idle: &[Arc<L>], now: Instant) {
        if idle.is_empty() {
            return;
        }
        let now = self.at(now);
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        for labels in idle {
            let gone =
                |series: &Arc<Series<L, M>>| !series.is_used(now) && self.is_over(series, now);
            if all.get(labels).is_some_and(gone) {
                all.remove(labels);
            }
        }
        self.expired.fetch_add((before - all.len()) as u64, Relaxed);
    }

    fn at(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.begun);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn is_over(&self, series: &Series<L, M>, now: u64) -> bool {
        let idle = now.saturating_sub(series.idle_since.load(Relaxed));
        u128::from(idle) >= self.bounds.expiry.as_millis()
    }
}

impl<L, M> Series<L, M> {
    /// Whether somebody has it, or got it since this was asked last.
    fn is_used(self: &Arc<Self>, now: u64) -> bool {
        // The table has one.
        let used = self.used.swap(false, Relaxed) || Arc::strong_count(self) > 1;
        if used {
            self.idle_since.store(now, Relaxed);
        }
        used
    }
}

/// The figures of several tables, for a registry: `ambit_metrics_series` and what became of those for which there was no room,
/// by family.
pub struct Bounded(Vec<(&'static str, Figure)>);

type Figure = Box<dyn Fn() -> Figures + Send + Sync>;

impl Bounded {
    /// Of no table.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// And of one more.
    pub fn and(
        mut self,
        family: &'static str,
        figures: impl Fn() -> Figures + Send + Sync + 'static,
    ) -> Self {
        self.0.push((family, Box::new(figures)));
        self
    }
}

impl fmt::Debug for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families = self.0.iter().map(|(family, _)| family);
        f.debug_list().entries(families).finish()
    }
}

impl Collector for Bounded {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all: Vec<_> = self
            .0
            .iter()
            .map(|(family, figures)| (*family, figures()))
            .collect();
        let (name, help) = ("ambit_metrics_series", "Label sets that are counted now");
        let mut shown = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (family, figures) in &all {
            let count = i64::try_from(figures.series).unwrap_or(i64::MAX);
            shown
                .encode_family(&[("family", *family)])?
                .encode_gauge(&count)?;
        }
        let mut counter = |name, help, of: fn(&Figures) -> u64| {
            let mut shown = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (family, figures) in &all {
                shown
                    .encode_family(&[("family", *family)])?
                    .encode_counter::<NoLabelSet, u64, u64>(&of(figures), None)?;
            }
            fmt::Result::Ok(())
        };
        counter(
            "ambit_metrics_series_merged",
            "How often there was no room for one more label set, and it was counted among the rest",
            |figures| figures.merged,
        )?;
        counter(
            "ambit_metrics_series_expired",
            "Label sets that are not counted any more: nobody used them, and somebody they name is gone",
            |figures| figures.expired,
        )
    }
}

/// One takes a kilobyte or less in the proxy, and many times that where it is scraped and kept.
const MOST: usize = 10_000;
/// Five scrapes a minute apart, and as many rules that look back over five minutes, have seen the last of it.
const EXPIRY: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct Name(String);

    impl Labels for Name {
        fn overflow(&self) -> Self {
            Self("overflow".to_owned())
        }
    }

    fn name(text: &str) -> Name {
        Name(text.to_owned())
    }

    fn table(most: usize) -> Table<Name, AtomicU64> {
        Table::new(Bounds {
            most,
            expiry: Duration::from_secs(60),
        })
    }

    fn shown(table: &Table<Name, AtomicU64>) -> Vec<String> {
        let all = table.all().into_iter();
        let mut all: Vec<_> = all
            .map(|series| format!("{} {}", series.labels().0, series.load(Relaxed)))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn beyond_the_bound_new_label_sets_fall_together_and_old_ones_go_on() {
        let table = table(2);
        for text in ["a", "b", "c", "d", "a", "c"] {
            table.of(name(text)).fetch_add(1, Relaxed);
        }
        assert_eq!(shown(&table), ["a 2", "b 1", "overflow 3"]);
        let figures = Figures {
            series: 3,
            merged: 3,
            expired: 0,
        };
        assert_eq!(table.figures(), figures);
    }

    #[test]
    fn what_nobody_used_for_long_enough_is_idle_and_what_is_held_or_was_got_is_not() {
        let table = table(10);
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        for text in ["idle", "held", "got"] {
            table.of(name(text)).fetch_add(7, Relaxed);
        }
        let held = table.of(name("held"));
        assert_eq!(table.idle(after(30)).len(), 0, "all were used");
        assert_eq!(table.idle(after(61)).len(), 0, "idle for half a minute");
        table.of(name("got"));
        let idle = table.idle(after(91));
        assert_eq!(idle, [Arc::new(name("idle"))]);

        // Got in between, it stays after all.
        let again = table.of(name("idle"));
        table.expire(&idle, after(91));
        assert_eq!(table.len(), 3);
        drop((again, held));
        assert_eq!(
            table.idle(after(120)).len(),
            0,
            "idle begins when it was last seen used"
        );
        let idle = table.idle(after(300));
        assert_eq!(idle.len(), 3);
        table.expire(&idle[..2], after(300));
        assert_eq!((table.len(), table.figures().expired), (1, 2));
    }

    #[test]
    fn whoever_prints_series_for_hours_keeps_none_that_nobody_uses() {
        let table = table(10);
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let held = table.of(name("held"));
        table.of(name("idle")).fetch_add(7, Relaxed);
        let printed = table.all();
        assert_eq!(table.idle(after(30)).len(), 0, "all were used");
        let idle = table.idle(after(91));
        assert_eq!(idle, [Arc::new(name("idle"))]);
        table.expire(&idle, after(91));
        assert_eq!(shown(&table), ["held 0"]);
        held.fetch_add(1, Relaxed);
        let mut sums: Vec<u64> = printed.iter().map(|it| it.load(Relaxed)).collect();
        sums.sort_unstable();
        assert_eq!(sums, [1, 7], "what is printed are the numbers of now");
    }

    #[test]
    fn only_labels_that_can_be_left_out_are() {
        let without = Without::parse("source_principal, destination_principal,").unwrap();
        assert!(without.has_all(&["source_principal", "destination_principal"]));
        assert!(!without.has_all(&["source_principal", "source_app"]) && !without.is_empty());
        assert!(Without::parse("").unwrap().is_empty());
        for bad in ["reporter", "source_workload;source_app", "response_flags"] {
            assert!(Without::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn one_that_comes_again_starts_from_zero_and_finds_room() {
        let table = table(1);
        table.of(name("a")).fetch_add(5, Relaxed);
        let later = Instant::now() + Duration::from_secs(3600);
        let begun = Instant::now();
        assert_eq!(table.idle(begun).len(), 0);
        table.expire(&table.idle(later), later);
        table.of(name("b")).fetch_add(1, Relaxed);
        assert_eq!(shown(&table), ["b 1"]);
        table.of(name("a"));
        assert_eq!(shown(&table), ["b 1", "overflow 0"]);
    }
}
