//! The runner: one test after another, dumps of what failed.
//!
//! 1. quiet tests, which disturb nobody, a few at a time
//! 2. loud tests, which restart parts of the mesh, alone
//! 3. a test that fails leaves what can be known in `target/e2e/<test>/`

use std::{
    fs,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::Mutex;

use crate::{
    cluster::Cluster,
    mesh::{Mesh, Part},
    node::Node,
    place::Place,
};

/// A test, as a list has it.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its sentence.
    pub name: &'static str,
    /// Whether it must be alone on the cluster.
    pub loud: bool,
    /// How to run it.
    pub body: Body,
}

/// What a test does.
pub type Body = for<'a> fn(&'a Test) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// How long one test may take.
const LIMIT: Duration = Duration::from_secs(420);

/// A test that is running.
pub struct Test {
    /// The cluster.
    pub cluster: Cluster,
    /// When it began.
    pub began: Timestamp,
    number: u32,
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
}

/// Runs all, `together` quiet ones at a time.
pub async fn all(cluster: &Cluster, cases: &[Case], together: usize) -> Vec<Outcome> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let started = u32::try_from(Timestamp::now().as_second() % 100_000).unwrap_or_default() * 100;
    let one = |case: Case| async move {
        let number = started + NUMBER.fetch_add(1, Relaxed);
        let outcome = run(cluster.clone(), case, number).await;
        tell(&outcome);
        outcome
    };
    let (loud, quiet): (Vec<Case>, Vec<Case>) = cases.iter().partition(|case| case.loud);
    let mut outcomes: Vec<Outcome> = stream::iter(quiet)
        .map(one)
        .buffer_unordered(together)
        .collect()
        .await;
    for case in loud {
        outcomes.push(one(case).await);
    }
    outcomes
}

async fn run(cluster: Cluster, case: Case, number: u32) -> Outcome {
    let test = Arc::new(Test {
        cluster,
        began: Timestamp::now(),
        number,
        places: Mutex::default(),
        notes: Mutex::default(),
    });
    let began = Instant::now();
    // A task of its own: a test that panics has failed, and the next one begins.
    let body = test.clone();
    let task = tokio::spawn(async move { tokio::time::timeout(LIMIT, (case.body)(&body)).await });
    let result = match task.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow::anyhow!("not finished after {} s", LIMIT.as_secs())),
        Err(panicked) => Err(anyhow::anyhow!("{panicked}")),
    };
    let result = match result {
        Ok(()) => test.mesh().no_panic_since(test.began).await,
        Err(error) => Err(error),
    };
    let error = result.err().map(|error| said(&error));
    if let Some(error) = &error
        && let Err(problem) = dump(&test, case.name, error).await
    {
        eprintln!("no dump of {}: {problem:#}", case.name);
    }
    for place in test.places.lock().await.iter() {
        let _ = place.leave().await;
    }
    if case.loud
        && let Err(problem) = test.mesh().well().await
    {
        eprintln!("the mesh is not well after {}: {problem:#}", case.name);
    }
    let notes = std::mem::take(&mut *test.notes.lock().await);
    Outcome {
        name: case.name,
        took: began.elapsed(),
        notes,
        error,
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
fn tell(outcome: &Outcome) {
    let verdict = if outcome.error.is_some() {
        "FAILED"
    } else {
        "ok"
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

/// What can be known about a failure: logs of the mesh and events since the test began, its namespaces' pods.
async fn dump(test: &Test, name: &str, error: &str) -> Result<()> {
    let folder = PathBuf::from("target/e2e").join(name.replace("::", "-"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
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
