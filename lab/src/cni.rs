//! A chain of CNI plugins, called as a container runtime calls it.
//!
//! ADD runs the plugins in order, each fed the result of the one before; CHECK and DEL (in reverse) get the last
//! result. The plugins run in the node's namespace, where a runtime runs.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    netns::Netns,
    run::{self, PATIENCE},
};

/// Where distributions and installers put plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The plugins of one node.
#[derive(Debug)]
pub struct Chain {
    node: Netns,
    name: String,
    version: String,
    plugins: Vec<Value>,
    path: String,
}

/// A pod's side of a call.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox<'a> {
    /// What the plugins set up.
    pub netns: &'a Netns,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub name: &'a str,
    /// The pod's uid, also the sandbox's container id.
    pub uid: &'a str,
}

/// A plugin failed.
#[derive(Debug)]
pub struct Refusal {
    what: String,
    /// The error object it printed, if it did as the specification says.
    pub said: Option<Value>,
    rest: String,
}

impl Chain {
    /// The chain that the configuration list `conflist` describes. Plugins are looked for in `bin`, then where
    /// distributions and installers put them.
    pub fn new(node: &Netns, bin: &Path, conflist: &Value) -> Result<Self> {
        let text = |key: &str| {
            let value = conflist[key].as_str().map(str::to_owned);
            value.with_context(|| format!("a configuration list without {key}"))
        };
        let plugins = conflist["plugins"].as_array();
        let path = std::iter::once(bin).chain(PLUGINS.map(Path::new));
        Ok(Self {
            node: node.clone(),
            name: text("name")?,
            version: text("cniVersion")?,
            plugins: plugins
                .cloned()
                .context("a configuration list without plugins")?,
            path: path
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
                .join(":"),
        })
    }

    /// Sets the sandbox's network up; the last plugin's result. When a plugin fails, it and those before it are
    /// undone, as a runtime would.
    pub fn add(&self, sandbox: Sandbox<'_>) -> Result<Value> {
        let mut result = None;
        for (done, plugin) in self.plugins.iter().enumerate() {
            match self.call("ADD", plugin, Some(sandbox), result.as_ref()) {
                Ok(said) => result = Some(said.context("ADD prints a result")?),
                Err(error) => {
                    for undo in self.plugins[..=done].iter().rev() {
                        let _ = self.call("DEL", undo, Some(sandbox), result.as_ref());
                    }
                    return Err(error);
                }
            }
        }
        result.context("an empty plugin chain")
    }

    /// Asks whether the network is still as ADD left it.
    pub fn check(&self, sandbox: Sandbox<'_>, result: &Value) -> Result<()> {
        self.plugins
            .iter()
            .try_for_each(|plugin| self.silent("CHECK", plugin, sandbox, Some(result)))
    }

    /// Takes the sandbox's network down again; `result` is what ADD gave, if it came that far.
    pub fn del(&self, sandbox: Sandbox<'_>, result: Option<&Value>) -> Result<()> {
        self.plugins
            .iter()
            .rev()
            .try_for_each(|plugin| self.silent("DEL", plugin, sandbox, result))
    }

    /// Asks the chain's last plugin something that is about no sandbox (STATUS, GC, VERSION): what it printed.
    pub fn ask(&self, verb: &str) -> Result<Option<Value>> {
        let plugin = self.plugins.last().context("an empty plugin chain")?;
        self.call(verb, plugin, None, None)
    }

    /// A verb to which success has nothing to say.
    fn silent(
        &self,
        verb: &str,
        plugin: &Value,
        sandbox: Sandbox<'_>,
        result: Option<&Value>,
    ) -> Result<()> {
        let said = self.call(verb, plugin, Some(sandbox), result)?;
        ensure!(said.is_none(), "{verb} of {}: {said:?}", plugin["type"]);
        Ok(())
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        sandbox: Option<Sandbox<'_>>,
        previous: Option<&Value>,
    ) -> Result<Option<Value>> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.clone().into();
        config["name"] = self.name.clone().into();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().unwrap_or_default();
        let mut command = Command::new(self.find(kind)?);
        command
            .env_clear()
            .env("PATH", run::SEARCH_PATH)
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", &self.path);
        if let Some(sandbox) = sandbox {
            sandbox.describe(&mut command);
        }
        let ran = self
            .node
            .run(command, &serde_json::to_vec(&config)?, PATIENCE)?;
        if ran.succeeded() {
            let said = (!ran.stdout.is_empty()).then(|| serde_json::from_str(&ran.stdout));
            return said
                .transpose()
                .with_context(|| format!("what {kind} printed"));
        }
        let what = sandbox.map_or_else(String::new, |s| format!(" for {}/{}", s.namespace, s.name));
        Err(Refusal::new(
            format!("CNI plugin {kind}, {verb}{what}"),
            &ran.stdout,
            &ran.stderr,
        )
        .into())
    }

    fn find(&self, kind: &str) -> Result<PathBuf> {
        let mut places = self
            .path
            .split(':')
            .map(|place| Path::new(place).join(kind));
        places.find(|path| path.exists()).with_context(|| {
            format!(
                "no CNI plugin {kind} in {} (Debian, Ubuntu: containernetworking-plugins)",
                self.path
            )
        })
    }
}

impl Sandbox<'_> {
    fn describe(&self, command: &mut Command) {
        let Self {
            netns,
            namespace,
            name,
            uid,
        } = self;
        command
            .env("CNI_CONTAINERID", uid)
            .env("CNI_NETNS", netns.path())
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={uid};K8S_POD_UID={uid}"
                ),
            );
    }
}

impl Refusal {
    fn new(what: String, stdout: &str, stderr: &str) -> Self {
        let said = serde_json::from_str(stdout).ok();
        let rest = match &said {
            Some(_) => stderr.to_owned(),
            None => format!("{stdout}{stderr}"),
        };
        Self { what, said, rest }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, said, rest } = self;
        write!(f, "{what}: ")?;
        if let Some(said) = said {
            let text = |key: &str| said[key].as_str().unwrap_or_default();
            let (msg, details) = (text("msg"), text("details"));
            write!(f, "{msg} {details} (code {}) ", said["code"])?;
        }
        f.write_str(rest)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugins_error_is_told_in_one_line() {
        let said = |stdout| Refusal::new("plugin x".into(), stdout, "").to_string();
        assert_eq!(
            said(r#"{"code":11,"msg":"busy","details":"try later"}"#),
            "plugin x: busy try later (code 11) "
        );
        assert_eq!(said("not json"), "plugin x: not json");
    }
}
