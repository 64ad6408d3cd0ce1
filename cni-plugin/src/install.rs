//! Puts the plugin onto the host: the binary into the directory of CNI plugins, our entry into the
//! configuration the runtime uses.
//!
//! * chained (the default): our entry becomes the last of the runtime's configuration, which is the
//!   first file of its directory in alphabetical order. A single-plugin `.conf` becomes a `.conflist`.
//! * owned: the runtime's configuration is copied into a file of ours that comes first, so that the
//!   network's own installer cannot drop us by writing its file again. It follows later changes of
//!   the runtime's.
//! * neither: a configuration of only ours, which another plugin (Multus) calls by name.
//!
//! [`chained`] and [`unchained`] are pure; [`Install::apply`] changes only what is not as it should
//! be, so running it again is the repair, and [`watch`](Watch) does that whenever a file changes.
//! [`Install::remove`] leaves everything as it was found.

mod conflist;
mod kubeconfig;
mod metrics;
mod watch;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::site::Site;

use conflist::{TYPE, alone, is_network, primary, wrapped};
pub use conflist::{chained, unchained};
pub use kubeconfig::Kubeconfig;
pub use metrics::Metrics;
pub use watch::Watch;

/// Where the plugin goes.
#[derive(Clone, Debug, clap::Args)]
pub struct Files {
    /// The runtime's directory of plugins. Default: `opt/cni/bin` below the host's root.
    #[arg(long, env = "CNI_BIN_DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The runtime's directory of configurations. Default: `etc/cni/net.d` below the host's root.
    #[arg(long, env = "CNI_CONF_DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The configuration to join. Default: the first in the directory.
    #[arg(long, env = "CNI_CONF_NAME")]
    pub cni_conf_name: Option<String>,
    /// Join the runtime's configuration; `false` writes one of only ours, for Multus.
    #[arg(long, env = "CHAINED_CNI_PLUGIN", default_value_t = true, action = clap::ArgAction::Set)]
    pub chained: bool,
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
    /// Level from which the plugin's lines are logged.
    #[arg(long, env = "PLUGIN_LOG_LEVEL", default_value = "info")]
    pub plugin_log_level: String,
}

/// An installation of the plugin on this host.
#[derive(Clone, Debug, clap::Args)]
pub struct Install {
    /// The node.
    #[command(flatten)]
    pub site: Site,
    /// Where the plugin goes.
    #[command(flatten)]
    pub files: Files,
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
    /// A directory of the runtime does not exist.
    #[error(
        "the directory {path} does not exist: is it where this node's container runtime looks ({setting})?"
    )]
    NoDirectory {
        /// Which.
        path: PathBuf,
        /// The setting that says where it is.
        setting: &'static str,
    },
    /// No network is configured yet.
    #[error(
        "{0} holds no *.conf or *.conflist: install the cluster's network first (CNI_CONF_DIR says where its configuration is)"
    )]
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

impl Install {
    /// Our entry in the configuration; its keys and values are Istio's.
    pub fn entry(&self) -> Value {
        json!({
            "type": TYPE,
            "name": TYPE,
            "plugin_log_level": self.files.plugin_log_level,
            "cni_agent_run_dir": self.site.cni_run_dir,
            "ambient_enabled": true,
            "enablement_selectors": self.site.selectors(),
            "enable_ambient_detection_retry": false,
            "exclude_namespaces": self.site.excluded().collect::<Vec<_>>(),
            "native_nftables": true,
            "pod_namespace": self.site.pod_namespace,
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
        let binary = self.bin_dir()?.join(TYPE);
        let plugin = self.plugin_path()?;
        let wanted = fs::read(&plugin).map_err(at(&plugin))?;
        if fs::read(&binary).ok().as_ref() != Some(&wanted) || !is_executable(&binary) {
            replace(&binary, &wanted, 0o755)?;
            changed.push(binary);
        }
        let Network { source, target } = self.network()?;
        let wanted = match &source {
            None => alone(self.entry()),
            Some(source) => {
                let bad = |reason| InstallError::Configuration {
                    path: source.clone(),
                    reason,
                };
                chained(read_json(source)?, self.entry()).map_err(bad)?
            }
        };
        if read_json(&target).ok().as_ref() != Some(&wanted) {
            replace(&target, format!("{wanted:#}\n").as_bytes(), 0o600)?;
            changed.push(target.clone());
        }
        if let Some(single) = source.filter(|source| !self.files.owned && *source != target) {
            fs::rename(&single, before(&single)).map_err(at(&single))?;
        }
        // One of our own from a time when that was the setting comes before the runtime's, and nobody would follow it.
        let outdated = self.conf_dir()?.join(&self.files.owned_name);
        if !self.files.owned && outdated != target && outdated.exists() {
            self.unchain(&outdated)?;
            if !outdated.exists() {
                changed.push(outdated);
            }
        }
        Ok(changed)
    }

    /// Leaves the host as it was found: our entry out of every configuration, the files we made gone.
    ///
    /// # Errors
    /// The first file that could not be read or written; the others have been seen to.
    pub fn remove(&self) -> Result<(), InstallError> {
        // The configuration first, as the binary was first when it was installed.
        let configurations = self.unchain_all();
        let binary = self.bin_dir()?.join(TYPE);
        // Should a configuration still name the plugin, then pods start no longer. Better so than
        // that they start with the mesh half there.
        let binary = absent(fs::remove_file(&binary)).map_err(at(&binary));
        configurations.and(binary)
    }

    fn unchain_all(&self) -> Result<(), InstallError> {
        let directory = self.conf_dir()?;
        let mut outcome = Ok(());
        for name in names(&directory)?
            .into_iter()
            .filter(|name| is_network(name))
        {
            outcome = outcome.and(self.unchain(&directory.join(name)));
        }
        outcome
    }

    fn unchain(&self, file: &Path) -> Result<(), InstallError> {
        let Ok(present) = read_json(file) else {
            return Ok(()); // not JSON, so nothing we wrote
        };
        let without = unchained(present.clone());
        if without == present {
            return Ok(());
        }
        let owned = file.file_name() == Some(OsStr::new(&self.files.owned_name));
        let empty = without["plugins"].as_array().is_some_and(Vec::is_empty);
        if owned || empty {
            return absent(fs::remove_file(file)).map_err(at(file));
        }
        let single = file.with_extension("conf");
        let original = read_json(&before(&single)).ok();
        match original.as_ref().and_then(Value::as_object) {
            Some(plugin) if Value::Object(wrapped(plugin.clone())) == without => {
                fs::rename(before(&single), &single).map_err(at(&single))?;
                absent(fs::remove_file(file)).map_err(at(file))
            }
            _ => replace(file, format!("{without:#}\n").as_bytes(), 0o600),
        }
    }

    fn bin_dir(&self) -> Result<PathBuf, InstallError> {
        self.directory(&self.files.cni_bin_dir, "/opt/cni/bin", "CNI_BIN_DIR")
    }

    fn conf_dir(&self) -> Result<PathBuf, InstallError> {
        self.directory(&self.files.cni_conf_dir, "/etc/cni/net.d", "CNI_CONF_DIR")
    }

    fn directory(
        &self,
        given: &Option<PathBuf>,
        default: &str,
        setting: &'static str,
    ) -> Result<PathBuf, InstallError> {
        let path = given.clone().unwrap_or_else(|| self.site.on_host(default));
        if path.is_dir() {
            Ok(path)
        } else {
            Err(InstallError::NoDirectory { path, setting })
        }
    }

    fn plugin_path(&self) -> Result<PathBuf, InstallError> {
        match &self.files.plugin {
            Some(path) => Ok(path.clone()),
            None => {
                let own = std::env::current_exe().map_err(at(Path::new("/proc/self/exe")))?;
                Ok(own.with_file_name("ambit-cni"))
            }
        }
    }

    /// Which file says how the network is made, and which is to be written.
    fn network(&self) -> Result<Network, InstallError> {
        let directory = self.conf_dir()?;
        let given = self
            .files
            .cni_conf_name
            .as_deref()
            .filter(|name| !name.is_empty());
        if !self.files.chained {
            let target = directory.join(given.unwrap_or(ALONE));
            return Ok(Network {
                source: None,
                target,
            });
        }
        let names = names(&directory)?;
        let found = primary(names.iter().map(String::as_str), &self.files.owned_name);
        // A `.conf` that was asked for by name is a `.conflist` by now.
        let given = given.map(|name| match directory.join(name).exists() {
            true => name.to_owned(),
            false => Path::new(name)
                .with_extension("conflist")
                .to_string_lossy()
                .into_owned(),
        });
        let name = given.as_deref().or(found);
        let source = name
            .map(|name| directory.join(name))
            .filter(|path| path.exists());
        let source = source.ok_or(InstallError::NoNetwork(directory.clone()))?;
        let target = match source.extension() {
            _ if self.files.owned => directory.join(&self.files.owned_name),
            Some(extension) if extension == OsStr::new("conf") => source.with_extension("conflist"),
            _ => source.clone(),
        };
        Ok(Network {
            source: Some(source),
            target,
        })
    }
}

struct Network {
    /// The runtime's; `None` where ours stands alone.
    source: Option<PathBuf>,
    target: PathBuf,
}

fn names(directory: &Path) -> Result<Vec<String>, InstallError> {
    let entries = fs::read_dir(directory).map_err(at(directory))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// Where a `.conf` waits for its return while our `.conflist` stands in for it. The leading dot and
/// the ending keep every runtime from taking it for a configuration.
fn before(single: &Path) -> PathBuf {
    let name = single
        .file_name()
        .and_then(OsStr::to_str)
        .unwrap_or_default();
    single.with_file_name(format!(".{name}.before-{TYPE}"))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
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
    let write = || {
        // Never readable by others, not even for a moment: it may hold a token.
        absent(fs::remove_file(&temporary))?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    write().map_err(at(&temporary))?;
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

/// The configuration of only ours.
const ALONE: &str = "YYY-istio-cni.conflist";

#[cfg(test)]
mod tests;
