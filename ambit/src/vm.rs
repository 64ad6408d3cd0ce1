//! `ambit vm …`: `istiod-lite vm …` inside a pod of the control plane.
//!
//! Tokens by which machines join are signed by the control plane's own key, which never leaves it, and no port of its answers
//! who asks for one: whoever may run a program in its pods may, by the rights of the cluster.

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, ListParams};
use tokio::io::AsyncReadExt as _;

use crate::cluster::Access;
use crate::parts::Part;
use crate::{Outcome, output};

/// What is asked of the control plane.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Vm {
    /// `token --namespace shop --service-account db --name db-1`, `list`, `remove shop/db-1`; `--help` has all of it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

impl Vm {
    pub(crate) async fn run(self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        let pods: Api<Pod> = Api::namespaced(client, &access.system);
        let selector = ListParams::default().labels(Part::Istiod.selector());
        let all = pods.list(&selector).await;
        let all = all.with_context(|| format!("pods of {}", access.system))?;
        let ready = all.items.iter().find(|pod| is_ready(pod));
        let name = ready.and_then(|pod| pod.metadata.name.as_deref());
        let name = name.with_context(|| {
            format!("no pod of the control plane is ready in {}", access.system)
        })?;
        let words = ["/usr/local/bin/istiod-lite", "vm"]
            .into_iter()
            .map(str::to_owned);
        let command: Vec<String> = words.chain(self.words).collect();
        let streams = AttachParams::default().stdout(true).stderr(true);
        let mut process = pods
            .exec(name, command, &streams)
            .await
            .with_context(|| format!("running istiod-lite in pod {name}"))?;
        let (mut found, mut said) = (String::new(), String::new());
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let status = process.take_status();
        tokio::try_join!(
            async {
                match stdout {
                    Some(mut stdout) => stdout.read_to_string(&mut found).await,
                    None => Ok(0),
                }
            },
            async {
                match stderr {
                    Some(mut stderr) => stderr.read_to_string(&mut said).await,
                    None => Ok(0),
                }
            },
        )
        .with_context(|| format!("what istiod-lite said in pod {name}"))?;
        said.lines().for_each(output::say);
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        if status.and_then(|status| status.status).as_deref() != Some("Success") {
            bail!("istiod-lite vm did not do it");
        }
        output::text(&found)?;
        Ok(Outcome::Well)
    }
}

/// Whether it counts as ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter()
            .any(|it| it.type_ == "Ready" && it.status == "True")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        vm: Vm,
    }

    #[test]
    fn every_word_is_the_control_planes_to_read() {
        let line = [
            "vm",
            "token",
            "--namespace",
            "shop",
            "--ttl",
            "5m",
            "--help",
        ];
        let vm = Line::try_parse_from(line).unwrap().vm;
        assert_eq!(vm.words, line[1..]);
    }
}
