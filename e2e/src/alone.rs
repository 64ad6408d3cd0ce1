//! A program in a pod that nobody is connected to: it goes on while the API server, and with it every `exec`, is away.
//!
//! 1. it is started in a session of its own: standard input is a pipe in its pod, what it says goes into files
//! 2. a line into the pipe ends it
//! 3. its status is in a file as soon as it has ended; then what it said is read

use anyhow::{Context as _, Result, ensure};

use crate::{load::Tally, pod::Pod, wait::eventually};

/// `$0` is where its files begin, `$@` what to run. The pipe is opened for both directions: neither end ever waits for the other.
const START: &str = r#"mkfifo "$0.in" && setsid sh -c '"$@" <>"$0.in" >"$0.out" 2>"$0.err"; echo $? >"$0.status"' "$0" "$@" </dev/null >/dev/null 2>&1 &"#;

/// A program that runs by itself.
pub struct Alone {
    pod: Pod,
    files: String,
}

impl Alone {
    /// Starts it; returns when it has said something. `name` is its own within the pod.
    pub async fn start(pod: &Pod, name: &str, command: &[&str]) -> Result<Self> {
        let alone = Self {
            pod: pod.clone(),
            files: format!("/tmp/{name}"),
        };
        let words = [&["sh", "-c", START, &alone.files], command].concat();
        pod.exec(words).await?.success()?;
        let what = format!("{name} in {}/{} says something", pod.namespace, pod.name);
        eventually(&what, || alone.sh("test -s $0.out")).await?;
        Ok(alone)
    }

    /// Traffic from a pod, as [`Pod::load`] makes it.
    pub async fn load(pod: &Pod, url: &str) -> Result<Self> {
        Self::start(pod, "load", &["/opt/e2e/app", "load", url]).await
    }

    /// A connection that is kept busy, as [`Pod::holds`] has it.
    pub async fn holds(pod: &Pod, to: &str) -> Result<Self> {
        Self::start(pod, "hold", &["/opt/e2e/app", "hold", to]).await
    }

    /// Ends it; all that it said. That it had ended before, by itself, is an error.
    pub async fn end(self) -> Result<String> {
        let files = &self.files;
        self.sh("test ! -e $0.status || { cat $0.err; false; }")
            .await
            .with_context(|| format!("{files} ended early"))?;
        self.sh("echo end 1<>$0.in").await?;
        let status = eventually(&format!("{files} has ended"), || self.sh("cat $0.status")).await?;
        let out = self.sh("cat $0.out").await?;
        let err = self.sh("cat $0.err").await?;
        ensure!(status.trim() == "0", "{files} ended with {status}: {err}");
        Ok(out)
    }

    /// Ends a load; what it counted.
    pub async fn tally(self) -> Result<Tally> {
        let out = self.end().await?;
        let last = out.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("load said {last}"))
    }

    async fn sh(&self, line: &str) -> Result<String> {
        self.pod
            .exec(["sh", "-c", line, &self.files])
            .await?
            .success()
    }
}
