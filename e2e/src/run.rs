//! The runner: one test after another, dumps of what failed.
//!
//! 1. quiet tests, which disturb nobody, a few at a time
//! 2. loud tests, which restart parts of the mesh, alone; after one that failed the mesh is put back
//! 3. what failed, once more, each alone: only what fails twice fails the run
//! 4. a test that fails leaves what can be known in `target/e2e/<test>/`

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt, stream};
use k8s_openapi::{api::core::v1::Namespace, jiff::Timestamp};
use kube::{Api, ResourceExt};
use tokio::sync::Mutex;

use crate::{
    cluster::Cluster,
    mesh::{Mesh, Part},
    node::Node,
    place::Place,
    whole::{self, Turn},
};

/// A test, as a list has it.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its sentence.
    pub name: &'static str,
    /// Whether it must be alone on the cluster.
    pub loud: bool,
    /// How long it may take.
    pub limit: Duration,
    /// How to run it.
    pub body: Body,
}

/// What a test does.
pub type Body = for<'a> fn(&'a Test) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// How long a test may take that does not say it.
pub const LIMIT: Duration = Duration::from_secs(420);

/// More failures than this are no chance: they are not tried again.
const CHANCE: usize = 12;

/// A test that is running.
pub struct Test {
    /// The cluster.
    pub cluster: Cluster,
    /// When it began.
    pub began: Timestamp,
    number: u64,
    places: Mutex<Vec<Place>>,
    notes: Mutex<Vec<String>>,
}

impl Test {
    /// A namespace in the mesh. Its name carries the test's number: no two tests meet.
    pub async fn ambient(&self, name: &str) -> Result<Place> {
        self.place(name, true).await
    }

    /// A namespace outside the mesh.
    pub async fn plain(&self, name: &str) -> Result<Place> {
        self.place(name, false).await
    }

    /// A namespace in the mesh of exactly this name, for what names it. One that is on its way out is waited for.
    pub async fn exactly(&self, name: &str) -> Result<Place> {
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        let gone = |namespace: Option<&Namespace>| {
            namespace.is_none_or(|it| it.metadata.deletion_timestamp.is_none())
        };
        crate::wait::until(&api, name, "gone", gone).await?;
        let place = Place::make(&self.cluster, name.to_owned(), true).await?;
        self.places.lock().await.push(place.clone());
        Ok(place)
    }

    async fn place(&self, name: &str, ambient: bool) -> Result<Place> {
        let place = Place::make(&self.cluster, format!("{name}-{}", self.number), ambient).await?;
        self.places.lock().await.push(place.clone());
        Ok(place)
    }

    /// A worker, by number.
    pub fn node(&self, index: usize) -> &Node {
        self.cluster.worker(index)
    }

    /// The mesh.
    pub fn mesh(&self) -> Mesh {
        self.cluster.mesh()
    }

    /// A figure for the report.
    pub async fn note(&self, text: impl Into<String>) {
        self.notes.lock().await.push(text.into());
    }
}

/// How a test ended.
pub struct Outcome {
    /// Its sentence.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Figures it left.
    pub notes: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Why it failed before.
    pub first: Option<String>,
}

impl Outcome {
    /// Whether it counts as a failure of the run.
    pub fn failed(&self) -> bool {
        self.error.is_some()
    }
}

/// What a run gave.
pub struct Ended {
    /// Of each test that ran.
    pub outcomes: Vec<Outcome>,
    /// Loud tests for which no time was left.
    pub left_out: Vec<&'static str>,
}

/// Runs all, `together` quiet ones at a time, and once more what failed. After `until` no loud one is begun for the first time.
pub async fn all(
    cluster: &Cluster,
    cases: &[Case],
    together: usize,
    until: Option<Timestamp>,
) -> Result<Ended> {
    let turn = Turn::open()?;
    turn.shared().await?;
    let (loud, quiet): (Vec<Case>, Vec<Case>) = cases.iter().partition(|case| case.loud);
    let one = |case: Case| async move {
        let outcome = run(cluster.clone(), case, Attempt::First).await;
        tell(&outcome, Attempt::First);
        (case, outcome)
    };
    let mut ended: Vec<(Case, Outcome)> = stream::iter(quiet)
        .map(one)
        .buffer_unordered(together)
        .collect()
        .await;
    if !loud.is_empty() {
        turn.alone().await?;
    }
    let mut left_out = Vec::new();
    for case in loud {
        if until.is_some_and(|until| Timestamp::now() > until) {
            left_out.push(case.name);
            continue;
        }
        let (case, outcome) = one(case).await;
        leave_whole(cluster, &case, &outcome).await;
        ended.push((case, outcome));
    }
    let failures = ended.iter().filter(|(_, outcome)| outcome.failed()).count();
    if failures > CHANCE {
        eprintln!("{failures} tests failed: too many for chance, none is tried again");
        for (_, outcome) in ended.iter().filter(|(_, outcome)| outcome.failed()) {
            tell(outcome, Attempt::Second);
        }
    } else if failures > 0 {
        turn.alone().await?;
        try_again(cluster, &mut ended).await;
    }
    Ok(Ended {
        outcomes: ended.into_iter().map(|(_, outcome)| outcome).collect(),
        left_out,
    })
}

/// A second attempt, alone, for each that failed. It does not make the first one right: the report names both.
async fn try_again(cluster: &Cluster, ended: &mut [(Case, Outcome)]) {
    if let Some(ailment) = whole::ails(cluster).await {
        mend(cluster, &ailment).await;
    }
    for (case, outcome) in ended.iter_mut().filter(|(_, outcome)| outcome.failed()) {
        let mut second = run(cluster.clone(), *case, Attempt::Second).await;
        second.first = outcome.error.take();
        tell(&second, Attempt::Second);
        leave_whole(cluster, case, &second).await;
        *outcome = second;
    }
}

/// What comes after a loud test finds the mesh as the chart has it.
async fn leave_whole(cluster: &Cluster, case: &Case, outcome: &Outcome) {
    if !case.loud {
        return;
    }
    if outcome.failed() {
        mend(cluster, &format!("{} failed", case.name)).await;
    } else if let Some(ailment) = whole::ails(cluster).await {
        mend(cluster, &format!("after {}: {ailment}", case.name)).await;
    }
}

#[allow(clippy::print_stdout)] // what a person or a machine reads of the run
async fn mend(cluster: &Cluster, why: &str) {
    match whole::mend(cluster).await {
        Ok(done) => println!("     {why}: {done}"),
        Err(error) => println!("     {why}, and the mesh could not be put back: {error:#}"),
    }
}

/// Which time a test runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Second,
}

/// A number that no test of this cluster has had: namespaces take long to go.
fn number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    static STARTED: LazyLock<u64> = LazyLock::new(|| {
        // Two runs that have waited for the same moment begin in the same second.
        let second = u64::try_from(Timestamp::now().as_second() % 100_000).unwrap_or_default();
        (second * PIDS + u64::from(std::process::id())) * 100
    });
    *STARTED + NUMBER.fetch_add(1, Relaxed)
}

/// More than a kernel gives at a time.
const PIDS: u64 = 1 << 22;

async fn run(cluster: Cluster, case: Case, attempt: Attempt) -> Outcome {
    let test = Arc::new(Test {
        cluster,
        began: Timestamp::now(),
        number: number(),
        places: Mutex::default(),
        notes: Mutex::default(),
    });
    let began = Instant::now();
    // A task of its own: a test that panics has failed, and the next one begins.
    let body = test.clone();
    let task =
        tokio::spawn(async move { tokio::time::timeout(case.limit, (case.body)(&body)).await });
    let result = match task.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow::anyhow!(
            "not finished after {} s",
            case.limit.as_secs()
        )),
        Err(panicked) => Err(anyhow::anyhow!("{panicked}")),
    };
    let result = match result {
        Ok(()) => test.mesh().no_panic_since(test.began).await,
        Err(error) => Err(error),
    };
    let error = result.err().map(|error| said(&error));
    if let Some(error) = &error
        && let Err(problem) = dump(&test, &folder(case.name, attempt), error).await
    {
        eprintln!("no dump of {}: {problem:#}", case.name);
    }
    for place in test.places.lock().await.iter() {
        let _ = place.leave().await;
    }
    let notes = std::mem::take(&mut *test.notes.lock().await);
    Outcome {
        name: case.name,
        took: began.elapsed(),
        notes,
        error,
        first: None,
    }
}

/// The causes of an error in one line; of the API server's, its message alone.
fn said(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error
        .chain()
        .map(|cause| match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => status.message.clone(),
            _ => cause.to_string(),
        })
        .take_while(|text| !text.is_empty())
        .collect();
    causes.join(": ")
}

#[allow(clippy::print_stdout)] // what a person or a machine reads of the run
fn tell(outcome: &Outcome, attempt: Attempt) {
    let verdict = match (outcome.failed(), attempt) {
        (false, Attempt::First) => "ok",
        (false, Attempt::Second) => "passed at the second attempt",
        (true, Attempt::First) => "failed at the first attempt",
        (true, Attempt::Second) => "FAILED",
    };
    println!(
        "test {} ({:.1} s) ... {verdict}",
        outcome.name,
        outcome.took.as_secs_f64()
    );
    for note in &outcome.notes {
        println!("     {note}");
    }
    if let Some(error) = &outcome.error {
        println!("     {error}");
    }
}

/// Where it is kept; a second attempt leaves what the first one left.
fn folder(name: &str, attempt: Attempt) -> PathBuf {
    let second = if attempt == Attempt::Second {
        "-again"
    } else {
        ""
    };
    PathBuf::from("target/e2e").join(name.replace("::", "-") + second)
}

/// What can be known about a failure: logs of the mesh and events since the test began, its namespaces' pods.
async fn dump(test: &Test, folder: &Path, error: &str) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::write(folder.join("error"), error)?;
    for part in Part::ALL {
        for pod in test.mesh().pods(part).await? {
            let pod_name = pod.name_any();
            let log = test
                .mesh()
                .log(&pod_name, Some(test.began))
                .await
                .unwrap_or_else(|error| error.to_string());
            let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
            fs::write(
                folder.join(format!("{}-{node}-{pod_name}.log", part.name())),
                log,
            )?;
        }
    }
    for place in test.places.lock().await.iter() {
        let lines = test.cluster.events(&place.name).await?;
        fs::write(
            folder.join(format!("{}-events", place.name)),
            lines.join("\n"),
        )?;
        let pods = test.cluster.pods(&place.name, "").await?;
        fs::write(
            folder.join(format!("{}-pods.json", place.name)),
            serde_json::to_vec_pretty(&pods)?,
        )?;
    }
    Ok(())
}
