//! Puts the plugin onto the host: the binary into the directory of CNI plugins, our entry into the
//! configuration the runtime uses.
//!
//! * chained (the default): our entry becomes the last of the runtime's configuration, which is the
//!   first file of its directory in alphabetical order. A single-plugin `.conf` becomes a `.conflist`.
//! * owned: the runtime's configuration is copied into a file of ours that comes first, so that the
//!   network's own installer cannot drop us by writing its file again.
//!
//! [`chained`] and [`unchained`] are pure; [`Install::apply`] changes only what is not as it should
//! be, so running it again is the repair, and [`Install::watch`] does that whenever a file changes.

mod metrics;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Map, Value, json};

use crate::agent::Selector;

pub use metrics::Metrics;

/// Where things go.
#[derive(Clone, Debug, clap::Args)]
pub struct Install {
    /// The runtime's directory of plugins.
    #[arg(long, env = "CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// The runtime's directory of configurations.
    #[arg(long, env = "CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// The configuration to join. Default: the first in the directory.
    #[arg(long, env = "CNI_CONF_NAME")]
    pub cni_conf_name: Option<String>,
    /// Keep a configuration of our own that comes before the runtime's.
    #[arg(long, env = "ISTIO_OWNED_CNI_CONFIG")]
    pub owned: bool,
    /// Its name.
    #[arg(
        long,
        env = "ISTIO_OWNED_CNI_CONF_FILENAME",
        default_value = "02-istio-cni.conflist"
    )]
    pub owned_name: String,
    /// The plugin to install. Default: `ambit-cni` beside this program.
    #[arg(long)]
    pub plugin: Option<PathBuf>,
    /// Where the agent's sockets are, for the plugin.
    #[arg(long, env = "CNI_RUN_DIR", default_value = "/var/run/istio-cni")]
    pub cni_run_dir: PathBuf,
    /// Namespaces the plugin lets pass without asking.
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exclude_namespaces: Vec<String>,
    /// The agent's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub pod_namespace: String,
    /// Level from which the plugin's lines are logged.
    #[arg(long, env = "PLUGIN_LOG_LEVEL", default_value = "info")]
    pub plugin_log_level: String,
}

/// Why the plugin could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No network is configured yet.
    #[error("{0} holds no *.conf or *.conflist: install the cluster's network first")]
    NoNetwork(PathBuf),
    /// A configuration that is none.
    #[error("{path}: {reason}")]
    Configuration {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The configuration with our entry as its last plugin; there is never more than one of it.
///
/// # Errors
/// What is wrong with the configuration.
pub fn chained(configuration: Value, entry: Value) -> Result<Value, &'static str> {
    let Value::Object(configuration) = configuration else {
        return Err("not a JSON object");
    };
    let mut list = if configuration.contains_key("plugins") {
        configuration
    } else if configuration.contains_key("type") {
        wrapped(configuration)
    } else {
        return Err("neither a list of plugins nor a plugin");
    };
    let plugins = list
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or("plugins is not a list")?;
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.is_empty() {
        return Err("no plugin that makes an interface");
    }
    plugins.push(entry);
    Ok(Value::Object(list))
}

/// The configuration without our entry.
pub fn unchained(mut configuration: Value) -> Value {
    if let Some(plugins) = configuration
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
    {
        plugins.retain(|plugin| !is_ours(plugin));
    }
    configuration
}

/// A single plugin's configuration as a list of one.
fn wrapped(mut plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    let version = plugin
        .remove("cniVersion")
        .unwrap_or_else(|| "0.3.1".into());
    list.insert("cniVersion".into(), version);
    list.insert(
        "name".into(),
        plugin
            .remove("name")
            .unwrap_or_else(|| "k8s-pod-network".into()),
    );
    list.insert("plugins".into(), Value::Array(vec![Value::Object(plugin)]));
    list
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == TYPE
}

/// The file a runtime uses: the first by name that is not `ours`.
fn primary<'a>(names: impl Iterator<Item = &'a str>, ours: &str) -> Option<&'a str> {
    names
        .filter(|name| *name != ours && (name.ends_with(".conf") || name.ends_with(".conflist")))
        .min()
}

impl Install {
    /// Our entry in the configuration; its keys and values are Istio's.
    pub fn entry(&self) -> Value {
        json!({
            "type": TYPE,
            "name": TYPE,
            "plugin_log_level": self.plugin_log_level,
            "cni_agent_run_dir": self.cni_run_dir,
            "ambient_enabled": true,
            "enablement_selectors": Selector::defaults(),
            "enable_ambient_detection_retry": false,
            "exclude_namespaces": self.exclude_namespaces,
            "native_nftables": true,
            "pod_namespace": self.pod_namespace,
            "dns": {},
            "ipam": {},
        })
    }

    /// Makes everything as it should be; returns the files that were not.
    ///
    /// # Errors
    /// The first file that could not be read or written.
    pub fn apply(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut changed = Vec::new();
        // The binary first: a configuration that names a plugin that is not there stops every pod.
        let binary = self.cni_bin_dir.join(TYPE);
        let plugin = self.plugin_path()?;
        let wanted = fs::read(&plugin).map_err(at(&plugin))?;
        if fs::read(&binary).ok().as_ref() != Some(&wanted) {
            replace(&binary, &wanted, 0o755)?;
            changed.push(binary);
        }
        let (source, target) = self.configuration()?;
        let present = read_json(&source)?;
        let bad = |reason| InstallError::Configuration {
            path: source.clone(),
            reason,
        };
        let wanted = chained(present, self.entry()).map_err(bad)?;
        if read_json(&target).ok().as_ref() != Some(&wanted) {
            replace(&target, format!("{wanted:#}\n").as_bytes(), 0o600)?;
            changed.push(target.clone());
        }
        if !self.owned && source != target {
            fs::remove_file(&source).map_err(at(&source))?;
        }
        Ok(changed)
    }

    /// Takes our entry and the binary away again.
    ///
    /// # Errors
    /// The first file that could not be read or written.
    pub fn remove(&self) -> Result<(), InstallError> {
        // The configuration first, for the same reason.
        if self.owned {
            let owned = self.cni_conf_dir.join(&self.owned_name);
            absent(fs::remove_file(&owned)).map_err(at(&owned))?;
        } else {
            let (source, target) = self.configuration()?;
            let present = read_json(&source)?;
            let without = unchained(present.clone());
            if without != present {
                replace(&target, format!("{without:#}\n").as_bytes(), 0o600)?;
            }
        }
        let binary = self.cni_bin_dir.join(TYPE);
        absent(fs::remove_file(&binary)).map_err(at(&binary))
    }

    /// Applies again whenever something in the two directories changes. Returns only on errors of the
    /// watch itself; a network that is being replaced is waited for.
    ///
    /// # Errors
    /// When the directories cannot be watched.
    pub fn watch(
        &self,
        mut report: impl FnMut(Result<Vec<PathBuf>, InstallError>),
    ) -> io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        for directory in [&self.cni_conf_dir, &self.cni_bin_dir] {
            inotify.add_watch(directory, events)?;
        }
        loop {
            report(self.apply());
            inotify.read_events()?;
        }
    }

    fn plugin_path(&self) -> Result<PathBuf, InstallError> {
        match &self.plugin {
            Some(path) => Ok(path.clone()),
            None => {
                let own = std::env::current_exe().map_err(at(Path::new("/proc/self/exe")))?;
                Ok(own.with_file_name("ambit-cni"))
            }
        }
    }

    /// The file to read the network from, and the file to write.
    fn configuration(&self) -> Result<(PathBuf, PathBuf), InstallError> {
        let directory = &self.cni_conf_dir;
        let entries = fs::read_dir(directory).map_err(at(directory))?;
        let names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        let found = primary(names.iter().map(String::as_str), &self.owned_name);
        let name = self.cni_conf_name.as_deref().or(found);
        let source =
            directory.join(name.ok_or_else(|| InstallError::NoNetwork(directory.clone()))?);
        let target = match source.extension() {
            _ if self.owned => directory.join(&self.owned_name),
            Some(extension) if extension == OsStr::new("conf") => source.with_extension("conflist"),
            _ => source.clone(),
        };
        Ok((source, target))
    }
}

fn read_json(path: &Path) -> Result<Value, InstallError> {
    let text = fs::read(path).map_err(at(path))?;
    serde_json::from_slice(&text).map_err(|_| InstallError::Configuration {
        path: path.to_owned(),
        reason: "not JSON",
    })
}

/// Readers see the old file or the new one, never half of it.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    // A leading dot and another ending: no runtime takes it for a configuration or a plugin.
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.new"));
    fs::write(&temporary, content).map_err(at(&temporary))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode)).map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |error| InstallError::File { path, error }
}

/// Its name on the host stays Istio's.
const TYPE: &str = "istio-cni";

#[cfg(test)]
mod tests;
