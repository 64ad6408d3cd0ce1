//! What the agent and the installer of the plugin must both know of their node. Environment names are
//! Istio's.

use std::path::{Path, PathBuf};

use crate::agent::Selector;

/// The node, as seen from the process that runs on it or in a pod of it.
#[derive(Clone, Debug, clap::Args)]
pub struct Site {
    /// Where the sockets for the plugin are made; the same path on the host and for this process.
    #[arg(long, env = "CNI_RUN_DIR", default_value = "/var/run/istio-cni")]
    pub cni_run_dir: PathBuf,
    /// Namespaces whose pods are never enrolled; the plugin lets them pass without asking.
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exclude_namespaces: Vec<String>,
    /// The agent's own namespace. While the agent is away, its pods and ztunnel's start all the same.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub pod_namespace: String,
    /// YAML or JSON list of `{podSelector, namespaceSelector}`: which pods are in the mesh. Default:
    /// Istio's, by label `istio.io/dataplane-mode`.
    #[arg(long, env = "AMBIENT_ENABLEMENT_SELECTOR", value_parser = selectors)]
    pub enablement_selector: Option<Selectors>,
    /// Put before the host's paths (`/proc`, network namespaces, the runtime's directories), where the
    /// host's root is mounted elsewhere: `/host` in a pod.
    #[arg(long, env = "HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,
}

/// Wraps the list, which clap would take for several values otherwise.
#[derive(Clone, Debug)]
pub struct Selectors(pub Vec<Selector>);

impl Site {
    pub(crate) fn selectors(&self) -> Vec<Selector> {
        match &self.enablement_selector {
            Some(Selectors(list)) if !list.is_empty() => list.clone(),
            _ => Selector::defaults(),
        }
    }

    /// Excluded namespaces; an empty setting names none.
    pub(crate) fn excluded(&self) -> impl Iterator<Item = &String> {
        self.exclude_namespaces
            .iter()
            .filter(|name| !name.is_empty())
    }

    /// A path as the host knows it, as this process can open it. `/run` and `/var/run` are one
    /// directory on a host, but only the latter is mounted into pods.
    pub(crate) fn on_host(&self, path: &str) -> PathBuf {
        let path = path.trim_start_matches('/');
        if self.host_root == Path::new("/") || !path.starts_with("run/") {
            return self.host_root.join(path);
        }
        self.host_root.join("var").join(path)
    }
}

/// Unset and empty mean the default, which is how an empty value of a chart arrives here.
fn selectors(text: &str) -> Result<Selectors, String> {
    if text.trim().is_empty() {
        return Ok(Selectors(Vec::new()));
    }
    serde_saphyr::from_str(text)
        .map(Selectors)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        site: Site,
    }

    fn site(flags: &[&str]) -> Result<Site, clap::Error> {
        Cli::try_parse_from(["x"].iter().chain(flags)).map(|cli| cli.site)
    }

    fn selector(text: &str) -> String {
        format!("--enablement-selector={text}")
    }

    #[test]
    fn selectors_are_read_from_yaml_and_from_json() {
        let yaml = "- podSelector:\n    matchLabels: {mesh: \"on\"}\n- namespaceSelector:\n    matchExpressions:\n    - {key: team, operator: Exists}\n";
        let json = r#"[{"podSelector":{"matchLabels":{"mesh":"on"}}},{"namespaceSelector":{"matchExpressions":[{"key":"team","operator":"Exists"}]}}]"#;
        let [yaml, json] = [yaml, json].map(|text| site(&[&selector(text)]).unwrap().selectors());
        assert_eq!(yaml.len(), 2);
        assert_eq!(yaml, json);
        for empty in ["", " ", "[]"] {
            let read = site(&[&selector(empty)]).unwrap().selectors();
            assert_eq!(read, Selector::defaults(), "{empty:?}");
        }
        for wrong in [
            "podSelector: x",
            "- podSelectors: {}",
            "[",
            "- podSelector: {matchLabels: [a]}",
        ] {
            assert!(site(&[&selector(wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_of_the_host_are_found_below_its_mounted_root() {
        let cases = [
            ("/", "/var/run/netns/cni-1", "/var/run/netns/cni-1"),
            ("/", "/run/netns/cni-1", "/run/netns/cni-1"),
            ("/host", "/var/run/netns/cni-1", "/host/var/run/netns/cni-1"),
            ("/host", "/run/netns/cni-1", "/host/var/run/netns/cni-1"),
            ("/host", "/proc/7/ns/net", "/host/proc/7/ns/net"),
            ("/host", "/running", "/host/running"),
        ];
        for (root, path, expected) in cases {
            let site = site(&["--host-root", root]).unwrap();
            assert_eq!(site.on_host(path), Path::new(expected), "{root} {path}");
        }
    }

    #[test]
    fn an_empty_list_of_excluded_namespaces_excludes_none() {
        assert_eq!(
            site(&["--exclude-namespaces", ""])
                .unwrap()
                .excluded()
                .count(),
            0
        );
        assert_eq!(
            site(&["--exclude-namespaces", "a,b"])
                .unwrap()
                .excluded()
                .count(),
            2
        );
    }
}
