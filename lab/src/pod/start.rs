//! How a pod comes to be: its object, its sandbox through the CNI chain, its status, its files.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};

use super::{Inner, Pod, split};
use crate::{cni::Sandbox, conflist::Attached, lab::Shared, netns::Netns, objects::PodObject};

/// A pod to be.
#[derive(Debug)]
#[must_use = "a pod starts with `start`"]
pub struct PodBuilder {
    lab: Arc<Shared>,
    /// `namespace/name`, checked at the start.
    reference: String,
    node: usize,
    account: String,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    ready: bool,
    settle: bool,
}

impl PodBuilder {
    pub(crate) fn new(lab: Arc<Shared>, reference: &str) -> Self {
        Self {
            lab,
            reference: reference.into(),
            node: 0,
            account: "default".into(),
            labels: Vec::new(),
            annotations: Vec::new(),
            ready: true,
            settle: true,
        }
    }

    /// The node it is bound to; 0 if not said.
    pub fn node(mut self, node: usize) -> Self {
        self.node = node;
        self
    }

    /// Its service account; `default` if not said.
    pub fn service_account(mut self, name: &str) -> Self {
        self.account = name.into();
        self
    }

    /// A label more. `app` is the pod's name if not said.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// An annotation more.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.into(), value.into()));
        self
    }

    /// Its status never says Ready.
    pub fn unready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// Do not wait until every node's ztunnel knows the pod: for labs in which something is down on purpose.
    pub fn without_waiting(mut self) -> Self {
        self.settle = false;
        self
    }

    /// Makes it: object, sandbox, status, and the mesh's knowledge of it.
    pub fn start(self) -> Result<Pod> {
        let what = format!("pod {}", self.reference);
        let settle = self.settle;
        let pod = self.attach().with_context(|| what.clone())?;
        pod.lab()?.adopt(&pod);
        if settle {
            pod.lab()?.until_known(&pod).with_context(|| what)?;
        }
        Ok(pod)
    }

    fn attach(self) -> Result<Pod> {
        let (namespace, name) = split(&self.reference)?;
        let node = self.lab.node(self.node)?;
        let number = self.lab.next_pod();
        let uid = format!(
            "{number:08x}-{:04x}-4000-8000-{number:012x}",
            std::process::id() & 0xffff
        );
        let mut object = PodObject::new(namespace, name, &uid, &self.account, node.name());
        self.labels
            .iter()
            .for_each(|(key, value)| object.label(key, value));
        if object.labelled("app").is_none() {
            object.label("app", name);
        }
        self.annotations
            .iter()
            .for_each(|(key, value)| object.annotate(key, value));
        self.lab.account(namespace, &self.account)?;
        self.lab.objects.set(object.value())?;

        let netns = Netns::create(&self.lab.plan.netns(&format!("{namespace}.{name}.{number}")))?;
        let sandbox = Sandbox {
            netns: &netns,
            namespace,
            name,
            uid: &uid,
        };
        node.show_sandbox(number, &uid, &netns)?;
        let attached = match node.chain.add(sandbox).and_then(Attached::parse) {
            Ok(attached) => attached,
            // The kubelet would try again for ever; a lab tells.
            Err(error) => {
                node.hide_sandbox(number)?;
                netns.delete()?;
                self.lab.objects.remove(object.value())?;
                return Err(error);
            }
        };
        object.running(&attached.addresses, node.addresses(), self.ready);
        self.lab.objects.set(object.value())?;

        let dir = self
            .lab
            .dir()
            .join(format!("pods/{namespace}/{name}.{number}"));
        let files = Files::write(
            &dir,
            namespace,
            name,
            self.lab.name_server(),
            &attached.addresses,
        )?;
        Ok(Pod {
            shared: Arc::new(Inner {
                lab: Arc::downgrade(&self.lab),
                namespace: namespace.into(),
                name: name.into(),
                account: self.account,
                node: self.node,
                uid,
                number,
                netns,
                dir,
                files,
                attached,
                object: Mutex::new(object),
                processes: Mutex::new(Vec::new()),
            }),
        })
    }
}

/// The files every container gets from its kubelet.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    pub(super) nsswitch: PathBuf,
}

impl Files {
    fn write(
        dir: &Path,
        namespace: &str,
        name: &str,
        name_server: IpAddr,
        addresses: &[IpAddr],
    ) -> Result<Self> {
        let etc = dir.join("etc");
        fs::create_dir_all(&etc)?;
        let files = Self {
            resolv_conf: etc.join("resolv.conf"),
            hosts: etc.join("hosts"),
            nsswitch: etc.join("nsswitch.conf"),
        };
        fs::write(&files.resolv_conf, resolv_conf(namespace, name_server))?;
        let own: String = addresses
            .iter()
            .map(|ip| format!("{ip}\t{name}\n"))
            .collect();
        fs::write(
            &files.hosts,
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{own}"),
        )?;
        fs::write(
            &files.nsswitch,
            "passwd: files\ngroup: files\nhosts: files dns\n",
        )?;
        Ok(files)
    }
}

fn resolv_conf(namespace: &str, name_server: IpAddr) -> String {
    format!(
        "nameserver {name_server}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_resolves_names_of_its_own_namespace_first() {
        let text = resolv_conf("shop", "10.90.0.2".parse().unwrap());
        assert!(text.contains(
            "nameserver 10.90.0.2\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n"
        ));
    }
}
