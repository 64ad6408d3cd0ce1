//! The two worlds an agent can live in: a Kubernetes cluster, or a directory of YAML. Here they differ; what is
//! made here hides it from everyone else.

use std::sync::Arc;

use api::k8s::dir::Directory;
use tokio_util::sync::CancellationToken;

use super::cluster::{self, Daemonset};
use super::config::Config;
use super::installer::Installer;
use super::jobs::Tools;
use super::mark::Marker;
use super::source::{Kubernetes, Source};
use super::{Signs, StartError, host, kubelet, netns, nft, processes, zds};

/// Where this agent learns of its world.
pub(super) struct World {
    pub(super) source: Source,
    /// On Kubernetes only.
    pub(super) home: Option<Home>,
}

/// What keeps the agent on its node, and decides how it goes.
pub(super) struct Home {
    pub(super) daemonset: Daemonset,
    pub(super) installer: Installer,
}

/// The source and what acts: the same on Kubernetes and beside a directory.
pub(super) async fn connect(
    config: Config,
    signs: &Signs,
    stop: &CancellationToken,
) -> Result<(World, Arc<Tools>), StartError> {
    let mut not_pods = netns::NotPods::look(None);
    let (world, marker) = match &config.config_dir {
        Some(root) => {
            let directory = Directory::open(root).map_err(|error| StartError::Path {
                path: root.clone(),
                error,
            })?;
            let world = World {
                source: Source::Directory {
                    directory: Box::new(directory),
                    node: config.node_name.clone(),
                },
                home: None,
            };
            (world, Marker::Directory(root.clone()))
        }
        None => {
            if config.switch_to_host_netns {
                not_pods = netns::NotPods::look(Some(&config.proc()));
            }
            let client = cluster::connect().await.map_err(StartError::Kubernetes)?;
            let reach = signs.readiness.gate("kubernetes");
            let kubernetes = Kubernetes::watch(client.clone(), &config.node_name, reach);
            let namespace = &config.site.pod_namespace;
            let world = World {
                source: Source::Kubernetes(Box::new(kubernetes)),
                home: Some(Home {
                    daemonset: Daemonset::watch(client.clone(), namespace, &config.daemonset),
                    installer: Installer::new(&config, signs),
                }),
            };
            (world, Marker::Kubernetes(client))
        }
    };
    let not_pods = not_pods.map_err(|error| StartError::Node(error.to_string()))?;
    let nft = nft::Nft::new(config.nft.clone());
    let kernel = host::Kernel {
        nft: nft.clone(),
        netns: not_pods
            .node()
            .filter(|_| config.switch_to_host_netns)
            .cloned(),
        proc: config.proc(),
        probes: config.probes(),
        v6: config.ipv6,
    };
    let sign = kubelet::watch(&config, stop.clone());
    let tools = Tools {
        host: host::Host::start(kernel, sign, stop.clone()),
        ztunnels: zds::Ztunnels::new(signs.metrics.ztunnels.clone()),
        nft,
        marker,
        finder: processes::Finder::new(config.proc(), not_pods.clone()),
        not_pods,
        config,
    };
    Ok((world, Arc::new(tools)))
}
