//! A pod: programs run in it, requests made from it.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::{
    Api, ResourceExt,
    api::{AttachParams, AttachedProcess, DeleteParams},
    runtime::conditions,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    time::timeout,
};

use crate::{
    cluster::Cluster,
    load::Tally,
    wait::{PATIENCE, eventually, until},
};

/// A running pod.
#[derive(Clone)]
pub struct Pod {
    cluster: Cluster,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its address of the first family.
    pub ip: String,
    /// All its addresses.
    pub ips: Vec<String>,
    uid: String,
}

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Whether its status was 0.
    pub success: bool,
    /// Standard output.
    pub out: String,
    /// Standard error, and why it ended where it did not end well.
    pub err: String,
}

impl Said {
    /// Its output, if it ended well.
    pub fn success(self) -> Result<String> {
        ensure!(self.success, "{}{}", self.out, self.err);
        Ok(self.out)
    }
}

/// What the test server says of a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// The pod that answered.
    pub pod: String,
    /// The address it was asked from.
    pub from: String,
}

impl Pod {
    /// A pod that has been started: waits until it is ready.
    pub async fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        let api: Api<PodObject> = Api::namespaced(cluster.client.clone(), namespace);
        let pod = until(&api, name, "ready", is_ready)
            .await?
            .context("it was deleted")?;
        Self::of(cluster, &pod)
    }

    /// A pod from its object.
    pub fn of(cluster: &Cluster, pod: &PodObject) -> Result<Self> {
        let status = pod.status.clone().unwrap_or_default();
        let ips: Vec<String> = status
            .pod_ips
            .unwrap_or_default()
            .into_iter()
            .map(|ip| ip.ip)
            .collect();
        Ok(Self {
            cluster: cluster.clone(),
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            node: pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_default(),
            ip: ips
                .first()
                .cloned()
                .with_context(|| format!("pod {} has no address", pod.name_any()))?,
            ips,
            uid: pod.uid().unwrap_or_default(),
        })
    }

    /// As the API server has it.
    pub async fn object(&self) -> Result<PodObject> {
        Ok(self.api().get(&self.name).await?)
    }

    /// Waits until its network is captured by the mesh: what the node agent says of it.
    pub async fn enrolled(&self) -> Result<()> {
        until(
            &self.api(),
            &self.name,
            "enrolled (annotation ambient.istio.io/redirection)",
            |pod: Option<&PodObject>| {
                pod.is_some_and(|pod| {
                    pod.annotations()
                        .get(api::k8s::labels::REDIRECTION)
                        .is_some_and(|state| state == "enabled")
                })
            },
        )
        .await?;
        Ok(())
    }

    /// Waits until the mesh has let go of it.
    pub async fn left_the_mesh(&self) -> Result<()> {
        until(
            &self.api(),
            &self.name,
            "out of the mesh (annotation ambient.istio.io/redirection)",
            |pod: Option<&PodObject>| {
                pod.is_some_and(|pod| {
                    pod.annotations()
                        .get(api::k8s::labels::REDIRECTION)
                        .is_none_or(|state| state != "enabled")
                })
            },
        )
        .await?;
        Ok(())
    }

    /// Runs a program in it to its end.
    pub async fn exec<S: Into<String>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Said> {
        let command: Vec<String> = command.into_iter().map(Into::into).collect();
        let what = format!("{} in {}/{}", command.join(" "), self.namespace, self.name);
        let mut process = self.start(command, false).await?;
        let (mut out, mut err) = (String::new(), String::new());
        let status = process.take_status();
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let (mut stdout, mut stderr) = (stdout.context("no stdout")?, stderr.context("no stderr")?);
        tokio::try_join!(
            stdout.read_to_string(&mut out),
            stderr.read_to_string(&mut err)
        )
        .context(what.clone())?;
        let status = status
            .context("no status")?
            .await
            .with_context(|| format!("{what} ended without a status"))?;
        let success = status.status.as_deref() == Some("Success");
        if !success {
            err += &format!(" [{what}: {}]", status.message.unwrap_or_default());
        }
        Ok(Said { success, out, err })
    }

    /// Runs a line of shell.
    pub async fn sh(&self, line: &str) -> Result<Said> {
        self.exec(["sh", "-c", line]).await
    }

    async fn start(&self, command: Vec<String>, stdin: bool) -> Result<AttachedProcess> {
        let parameters = AttachParams::default()
            .stdin(stdin)
            .max_stdout_buf_size(1 << 20);
        self.api()
            .exec(&self.name, command, &parameters)
            .await
            .with_context(|| format!("exec in {}/{}", self.namespace, self.name))
    }

    /// One HTTP request with curl on a connection of its own.
    pub async fn get(&self, url: &str) -> Result<Said> {
        self.exec([
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "5",
            url,
        ])
        .await
    }

    /// One HTTP request to a server of ours, and who answered.
    pub async fn asks(&self, url: &str) -> Result<Answer> {
        let text = self.get(url).await?.success()?;
        serde_json::from_str(&text).with_context(|| format!("{url} answered {text}"))
    }

    /// Waits until requests are answered, three times in a row: news of a change reaches one proxy before another.
    pub async fn reaches(&self, url: &str) -> Result<Answer> {
        eventually(&format!("{} reaches {url}", self.name), || async {
            for _ in 0..2 {
                self.asks(url).await?;
            }
            self.asks(url).await
        })
        .await
    }

    /// Waits until requests are refused, three times in a row, and not for lack of time.
    pub async fn is_refused(&self, url: &str) -> Result<()> {
        eventually(&format!("{} is refused at {url}", self.name), || async {
            for _ in 0..3 {
                let said = self.get(url).await?;
                ensure!(!said.success, "answered: {}", said.out);
                ensure!(!said.err.contains("timed out"), "timed out instead");
            }
            Ok(())
        })
        .await
    }

    /// Starts traffic from here, `--fresh 20 --kept 5` when no other arguments are given; returns at the first answer.
    pub async fn load(&self, url: &str, arguments: &[&str]) -> Result<Running> {
        self.run(&[&["load", url], arguments].concat()).await
    }

    /// Opens one connection to an echo and keeps it busy; returns when it is open.
    pub async fn holds(&self, to: &str) -> Result<Running> {
        self.run(&["hold", to]).await
    }

    /// Opens one connection to an echo with a bulk both ways, every byte of it compared; returns when it is open.
    pub async fn pours(&self, to: &str) -> Result<Running> {
        self.run(&["pour", to]).await
    }

    /// Starts `client`, a line of bash, which gets the line `each` on its standard input five times a second, until it is told to
    /// end; returns at its first answer.
    pub async fn session(&self, client: &str, each: &str) -> Result<Running> {
        let script = format!(
            "set -o pipefail; while read -rt 0.2; [ $? -gt 128 ]; do echo \"$EACH\"; done | {client}"
        );
        let each = format!("EACH={each}");
        self.begin(&["env", &each, "bash", "-c", &script]).await
    }

    /// Starts a program of ours.
    async fn run(&self, arguments: &[&str]) -> Result<Running> {
        self.begin(&[&["/opt/e2e/app"], arguments].concat()).await
    }

    /// Starts a program and waits for its first line: what follows must find it at work.
    async fn begin(&self, command: &[&str]) -> Result<Running> {
        let what = format!("{} in {}/{}", command.join(" "), self.namespace, self.name);
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let mut running = Running::new(self.start(command, true).await?)?;
        let first = running.out.read_line(&mut running.said);
        let count = timeout(PATIENCE, first)
            .await
            .with_context(|| format!("{what}: nothing in {} s", PATIENCE.as_secs()))??;
        if count == 0 {
            running.end().await.context(what.clone())?;
            bail!("{what} ended at once");
        }
        Ok(running)
    }

    /// Deletes it and waits until it is gone.
    pub async fn delete(&self) -> Result<()> {
        self.api()
            .delete(&self.name, &DeleteParams::default())
            .await?;
        until(
            &self.api(),
            &self.name,
            "gone",
            conditions::is_deleted(&self.uid),
        )
        .await?;
        Ok(())
    }

    /// Its object's interface.
    pub fn api(&self) -> Api<PodObject> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace)
    }

    /// An address of it with a port, IPv6 in brackets.
    pub fn at(&self, port: u16) -> String {
        if self.ip.contains(':') {
            format!("[{}]:{port}", self.ip)
        } else {
            format!("{}:{port}", self.ip)
        }
    }
}

/// A program in a pod that goes on until it is told to end.
pub struct Running {
    process: AttachedProcess,
    out: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    said: String,
}

impl Running {
    fn new(mut process: AttachedProcess) -> Result<Self> {
        let out = process.stdout().context("no stdout")?;
        Ok(Self {
            process,
            out: BufReader::new(Box::new(out)),
            said: String::new(),
        })
    }

    /// Ends it; its last line.
    async fn end(self) -> Result<String> {
        let said = self.words().await?;
        Ok(said.lines().last().unwrap_or_default().to_owned())
    }

    /// Ends it; all that it has said.
    pub async fn words(mut self) -> Result<String> {
        let mut stdin = self.process.stdin().context("no stdin")?;
        // It may have ended already, by what it met; then the status tells.
        let _ = stdin.write_all(b"end\n").await;
        let mut err = String::new();
        self.out.read_to_string(&mut self.said).await?;
        if let Some(mut stderr) = self.process.stderr() {
            stderr.read_to_string(&mut err).await?;
        }
        let status = self.process.take_status().context("no status")?.await;
        let status = status.context("the connection to it was lost")?;
        ensure!(
            status.status.as_deref() == Some("Success"),
            "it ended early: {}",
            err.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        Ok(self.said)
    }

    /// Ends a load; what it counted.
    pub async fn tally(self) -> Result<Tally> {
        let out = self.end().await?;
        serde_json::from_str(&out).with_context(|| format!("load said {out}"))
    }

    /// Ends a connection that is held or poured through, which must still be the same: how many numbers or bytes came back.
    pub async fn still_held(self) -> Result<u64> {
        let out = self.end().await?;
        let count: u64 = out
            .trim()
            .parse()
            .with_context(|| format!("it said {out:?}"))?;
        ensure!(count > 0, "nothing ever came back");
        Ok(count)
    }

    /// Ends a held connection, which must have been broken by the other side; how.
    pub async fn was_broken(self) -> Result<String> {
        match self.end().await {
            Ok(_) => bail!("the connection is still open"),
            Err(error) => {
                let how = error.to_string();
                let broken = ["reset", "closed", "Broken pipe"]
                    .iter()
                    .any(|word| how.contains(word));
                ensure!(broken, "{how}");
                Ok(how)
            }
        }
    }
}

/// Whether a pod is ready.
pub fn is_ready(pod: Option<&PodObject>) -> bool {
    pod.and_then(|pod| pod.status.as_ref())
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
        })
}
