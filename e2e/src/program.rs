//! Programs on the machine that the tests run on: `ambit` of this build, `kubectl`, `helm`. All mean the cluster of the tests.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use tokio::{io::AsyncWriteExt, process::Command};

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Ended {
    what: String,
    /// Its exit status.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// The same, if its exit status was this one.
    pub fn with(self, status: i32) -> Result<Self> {
        ensure!(
            self.status == status,
            "{} ended with {} instead of {status}: {}{}",
            self.what,
            self.status,
            self.out,
            self.err
        );
        Ok(self)
    }

    /// The same, if it said this, on either stream.
    pub fn says(self, text: &str) -> Result<Self> {
        ensure!(
            self.out.contains(text) || self.err.contains(text),
            "{} does not say {text:?}: {}{}",
            self.what,
            self.out,
            self.err
        );
        Ok(self)
    }

    /// Its output as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.out)
            .with_context(|| format!("{} said {}{}", self.what, self.out, self.err))
    }
}

/// Runs `ambit` to its end.
pub async fn ambit(arguments: &[&str]) -> Result<Ended> {
    let ours = std::env::current_exe()?.with_file_name("ambit");
    run(ours, arguments, "").await
}

/// Runs `kubectl` to its end, with this text on its standard input.
pub async fn kubectl(arguments: &[&str], input: &str) -> Result<Ended> {
    run("kubectl".into(), arguments, input).await
}

/// Installs the chart as the run has it, or upgrades to that, with what these words of Helm add to it.
pub async fn chart(words: &[&str]) -> Result<()> {
    let chart = "upgrade --install ambit manifests/charts/ambit --namespace istio-system \
        --values target/images/values.yaml --values e2e/values.yaml";
    let chart: Vec<&str> = chart
        .split_whitespace()
        .chain(words.iter().copied())
        .collect();
    run("helm".into(), &chart, "").await?.with(0).map(drop)
}

/// Runs any program to its end.
pub async fn run(program: PathBuf, arguments: &[&str], input: &str) -> Result<Ended> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let what = format!("{name} {}", arguments.join(" "));
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{}", program.display()))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // One that does not want it may have ended already.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.context(what.clone())?;
    Ok(Ended {
        what,
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
