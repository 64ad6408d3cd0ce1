//! The way to the cluster: kubeconfig, context, and one line when there is none.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use api::k8s::server::Way;
use clap::Args;
use kube::{Client, Config};

/// Which cluster, and where in it the mesh lives.
#[derive(Debug, Clone, Args)]
pub(crate) struct Access {
    /// Kubeconfig file; by default `KUBECONFIG`, `~/.kube/config`, or the pod's own account.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; by default its current one.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the control plane.
    #[arg(
        long = "istio-namespace",
        global = true,
        default_value = "istio-system",
        value_name = "NAMESPACE"
    )]
    pub(crate) system: String,
}

impl Access {
    /// A client of a cluster that answers.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let config = self.config().await?;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).context("the kubeconfig cannot be used")?;
        match client.apiserver_version().await {
            Ok(_) => Ok(client),
            Err(kube::Error::Api(refusal)) if refusal.code == 401 => Err(anyhow!(
                "the API server at {server} does not know these credentials (401): renew them, as kubectl would ask you to"
            )),
            Err(error) => Err(anyhow!(
                "no answer from the API server at {server}: {}; is the context right (kubectl config current-context)?",
                innermost(&error)
            )),
        }
    }

    async fn config(&self) -> anyhow::Result<Config> {
        if let Some(path) = &self.kubeconfig {
            let config = Way::File(path.clone(), self.context.clone()).config().await;
            return config.map_err(|why| anyhow!("kubeconfig {}: {why}", path.display()));
        }
        if self.context.is_some() {
            let config = Way::User(self.context.clone()).config().await;
            return config.map_err(|why| anyhow!("kubeconfig: {why}"));
        }
        Config::infer().await.map_err(|error| {
            anyhow!("no cluster to speak to: {error}; give --kubeconfig FILE or set KUBECONFIG")
        })
    }
}

/// The cause at the end of the chain: what the operating system or the server said.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Whether the API server has no such object, or no such kind.
pub(crate) fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refusal) if refusal.code == 404)
}
