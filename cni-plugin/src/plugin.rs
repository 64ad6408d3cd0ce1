//! The CNI plugin: the last link of the chain a container runtime runs for every pod.
//!
//! Environment and network configuration (stdin) enter; the previous plugin's result leaves on
//! stdout, or the specification's error.
//!
//! 1. which verb, for which pod                    ([`Call`])
//! 2. the network configuration                    (`netconf`)
//! 3. ADD: may this pod be left alone without asking?
//! 4. ADD: ask the agent, wait until it has acted  (`agent_socket`)
//! 5. pass the previous result on
//!
//! The plugin has no API server to ask, so it asks the agent about *every* pod outside the
//! excluded namespaces; for a pod that is not to be in the mesh the agent answers 200 and does
//! nothing. (Istio's plugin reads the pod itself and asks only for those in the mesh; its agent
//! answers 500 to any other. Each side still works with the other's counterpart.)
//!
//! No answer, no pod: if the agent is away the sandbox fails and the kubelet tries again, because
//! a pod that starts outside the mesh is a hole in it. The pods of the mesh itself, the agent's and
//! ztunnel's, are the one exception.

mod agent_socket;
mod failure;
mod log;
mod netconf;

use std::io::{Read, Write};
use std::path::Path;

use crate::cmdadd::CmdAdd;

pub use failure::Failure;
pub(crate) use log::LOG_FILE;
use log::{Level, Log};
use netconf::{NetConf, PrevResult};

/// Versions of the CNI specification this plugin answers to.
pub const SUPPORTED: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// Runs one call. A failure has already been written to `stdout` when it is returned.
///
/// # Errors
/// The failure, for the exit code.
pub fn run(
    env: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    mut stdout: impl Write,
) -> Result<(), Failure> {
    let mut version = SUPPORTED[SUPPORTED.len() - 1].to_owned();
    let answer = respond(&env, stdin, &mut version);
    let (text, outcome) = match answer {
        Ok(text) => (text, Ok(())),
        Err(failure) => (Some(failure.json(&version)), Err(failure)),
    };
    if let Some(text) = text {
        writeln!(stdout, "{text:#}")
            .and_then(|()| stdout.flush())
            .map_err(|error| Failure::Io("stdout", error))?;
    }
    outcome
}

/// What goes to stdout, if anything. `version` becomes the caller's as soon as it is known.
fn respond(
    env: &impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    version: &mut String,
) -> Result<Option<serde_json::Value>, Failure> {
    // A runtime writes the configuration whatever the verb; it must not find the pipe broken.
    let text = netconf::text(stdin)?;
    let call = Call::from_env(env)?;
    if call.verb == Verb::Version {
        return Ok(Some(serde_json::json!({
            "cniVersion": version,
            "supportedVersions": SUPPORTED,
        })));
    }
    let conf: NetConf = serde_json::from_slice(&text)?;
    version.clone_from(&conf.cni_version);
    if !SUPPORTED.contains(&conf.cni_version.as_str()) {
        return Err(Failure::IncompatibleVersion(conf.cni_version));
    }
    match call.verb {
        Verb::Add => add(&call, &conf).map(Some),
        // The agent learns of deletions by watching pods, not from the runtime, so there is
        // nothing to undo or to compare here. STATUS says nothing about the agent on purpose: a
        // node whose network counts as down starts no pod, not even the agent's own.
        Verb::Del | Verb::Check | Verb::Gc | Verb::Status => Ok(None),
        Verb::Version => Ok(None),
    }
}

fn add(call: &Call, conf: &NetConf) -> Result<serde_json::Value, Failure> {
    let nothing = PrevResult::default();
    let previous = match &conf.prev_result {
        Some(previous) => previous,
        // Called by name beside the network (Multus): there is no result to pass on, and the agent
        // reads the addresses in the pod.
        None if conf.alone => &nothing,
        None => return Err(Failure::NotChained),
    };
    let result = previous.in_version(&conf.cni_version);
    let Some(pod) = &call.pod else {
        return Ok(result); // not Kubernetes
    };
    if !conf.ambient_enabled || conf.exclude_namespaces.contains(&pod.namespace) {
        return Ok(result);
    }

    let run_dir = Path::new(&conf.cni_agent_run_dir);
    let mut log = Log::new(&conf.plugin_log_level);
    let event = CmdAdd {
        netns: call.netns.clone(),
        pod_name: pod.name.clone(),
        pod_namespace: pod.namespace.clone(),
        pod_uid: pod.uid.clone(),
        ips: previous.addresses()?,
    };
    let asked = agent_socket::add(run_dir, &event);
    let outcome = match asked {
        Ok(()) => {
            log.line(Level::Info, format_args!("the agent took pod {pod}"));
            Ok(result)
        }
        Err(failure) if failure.agent_is_away() && is_of_the_mesh(pod, conf) => {
            log.line(
                Level::Warn,
                format_args!("pod {pod} is part of the mesh and may start unasked: {failure}"),
            );
            Ok(result)
        }
        Err(failure) => {
            log.line(Level::Error, format_args!("pod {pod}: {failure}"));
            Err(failure)
        }
    };
    log.send(run_dir);
    outcome
}

/// Whether this pod is the node agent or a ztunnel, by which the mesh comes up again and which are
/// never in it. Only the runtime says so, and only for the agent's own namespace: who may make pods
/// there may replace the agent itself. Names are those that their DaemonSets give.
fn is_of_the_mesh(pod: &PodName, conf: &NetConf) -> bool {
    let suffixed = |prefix: &&str| {
        let suffix = pod.name.strip_prefix(*prefix);
        suffix
            .is_some_and(|rest| rest.len() == 5 && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    pod.namespace == conf.pod_namespace && ["istio-cni-node-", "ztunnel-"].iter().any(suffixed)
}

/// One call of a runtime.
#[derive(Debug)]
struct Call {
    verb: Verb,
    netns: String,
    pod: Option<PodName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

#[derive(Debug, PartialEq, Eq)]
struct PodName {
    namespace: String,
    name: String,
    uid: Option<String>,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Call {
    fn from_env(env: &impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let set = |name: &'static str| env(name).filter(|value| !value.is_empty());
        let required = |name: &'static str| set(name).ok_or(Failure::Environment(name));
        let verb = match required("CNI_COMMAND")?.as_str() {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "STATUS" => Verb::Status,
            "GC" => Verb::Gc,
            "VERSION" => Verb::Version,
            other => return Err(Failure::UnknownCommand(other.to_owned())),
        };
        let of_a_container = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
        if of_a_container {
            required("CNI_CONTAINERID")?;
            required("CNI_IFNAME")?;
        }
        if verb != Verb::Version {
            required("CNI_PATH")?;
        }
        let netns = match verb {
            Verb::Add | Verb::Check => required("CNI_NETNS")?,
            _ => String::new(),
        };
        let pod = set("CNI_ARGS").as_deref().and_then(pod_in_args);
        Ok(Self { verb, netns, pod })
    }
}

/// The pod in `K8S_POD_NAMESPACE=…;K8S_POD_NAME=…`; other keys are none of our business.
fn pod_in_args(args: &str) -> Option<PodName> {
    let value = |wanted: &str| {
        args.split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, value)| *key == wanted && !value.is_empty())
            .map(|(_, value)| value.to_owned())
    };
    Some(PodName {
        namespace: value("K8S_POD_NAMESPACE")?,
        name: value("K8S_POD_NAME")?,
        uid: value("K8S_POD_UID"),
    })
}

#[cfg(test)]
mod tests;
