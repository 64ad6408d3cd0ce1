//! A pod: an object in the directory, a sandbox made through the CNI chain, programs inside.
//!
//! The order is the kubelet's: the object exists, bound to a node and without an address; the sandbox gets its
//! network; the object's status follows. The other way round at the end.

mod command;
mod start;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use self::start::Files;
pub use self::{command::PodCommand, start::PodBuilder};
use crate::{
    cni::Sandbox, component::bare, conflist::Attached, enter::Entry, lab::Shared, netns::Netns,
    node::Node, objects::PodObject, process::Process, run::Ran, wait::Probe,
};

/// For commands that should answer at once, on a busy machine.
const COMMAND: Duration = Duration::from_secs(60);
const LISTEN: Duration = Duration::from_secs(60);

/// A running pod. Clones are the same pod; dropping them does not end it, [`Pod::delete`] or its lab does.
#[derive(Debug, Clone)]
pub struct Pod {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lab: Weak<Shared>,
    namespace: String,
    name: String,
    account: String,
    node: usize,
    uid: String,
    number: u32,
    netns: Netns,
    dir: PathBuf,
    files: Files,
    attached: Attached,
    object: Mutex<PodObject>,
    processes: Mutex<Vec<Process>>,
}

impl Pod {
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its Kubernetes uid.
    pub fn uid(&self) -> &str {
        &self.shared.uid
    }

    /// The number of its node.
    pub fn node(&self) -> usize {
        self.shared.node
    }

    /// The identity the mesh gives it.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.shared.namespace, self.shared.account
        )
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.shared.attached.addresses[0]
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Result<IpAddr> {
        let v6 = self
            .shared
            .attached
            .addresses
            .iter()
            .find(|ip| ip.is_ipv6());
        v6.copied()
            .with_context(|| format!("{} has no IPv6 address", self.name()))
    }

    /// All its addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.shared.attached.addresses
    }

    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.shared.netns
    }

    /// A directory for its programs' files; logs are in it too.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Runs a command to its end; a failure of the command is in the answer, not an error.
    pub fn exec<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<Ran> {
        self.command(words)?.run()
    }

    /// Starts a program in the background, its output in `<name>.log`.
    pub fn spawn<'a>(
        &self,
        name: &str,
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Process> {
        self.command(words)?.spawn(name)
    }

    /// A command with more to say: user, environment, input, deadline.
    pub fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<PodCommand> {
        let mut words = words.into_iter();
        let mut command = bare(Path::new(
            words.next().context("a command has at least its program")?,
        ));
        command.args(words).current_dir(self.dir());
        Ok(PodCommand::new(self.clone(), command, COMMAND))
    }

    /// Connects from inside the pod, as its programs would.
    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.connect_within(to, COMMAND)?
            .with_context(|| format!("{} connecting to {to}", self.name()))
    }

    /// [`Pod::connect`] with the connection's own error told apart.
    pub fn connect_within(
        &self,
        to: SocketAddr,
        within: Duration,
    ) -> Result<io::Result<TcpStream>> {
        self.netns().within(|| {
            let stream = TcpStream::connect_timeout(&to, within)?;
            // A test that waits for bytes that never come must end.
            stream.set_read_timeout(Some(within))?;
            stream.set_write_timeout(Some(within))?;
            Ok(stream)
        })
    }

    /// Listens inside the pod on all addresses, both families.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let listener = self.netns().within(|| {
            TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        })?;
        listener.with_context(|| format!("{} listening on {port}", self.name()))
    }

    /// Waits until one of the pod's programs listens on `port`.
    pub fn until_listening(&self, process: &Process, port: u16) -> Result<()> {
        process.until_ready(
            &format!("{} to listen on {port}", self.name()),
            LISTEN,
            || {
                Ok(if self.netns().listens_on(port)? {
                    Probe::Ready(())
                } else {
                    Probe::NotYet("nobody listens".into())
                })
            },
        )
    }

    pub(crate) fn label(&self, key: &str) -> Option<String> {
        self.object().labelled(key).map(str::to_owned)
    }

    /// Sets a label of the running pod.
    pub fn set_label(&self, key: &str, value: &str) -> Result<()> {
        let mut object = self.object();
        object.label(key, value);
        self.lab()?.objects.set(object.value())
    }

    /// The redirection annotation's text that the node agent wrote, if any.
    pub fn mirrored_status(&self) -> Result<Option<String>> {
        Ok(self.lab()?.objects.mirrored(self.object().value()))
    }

    /// Whether the node agent says that the pod is enrolled.
    pub fn enrolled(&self) -> Result<bool> {
        Ok(self
            .mirrored_status()?
            .is_some_and(|text| text.contains("enabled")))
    }

    /// It answers its probes: who began unready is to be sent something.
    pub fn ready(&self) -> Result<()> {
        let mut object = self.object();
        object.ready();
        self.lab()?.objects.set(object.value())
    }

    /// Its deletion has begun: nobody is to send it anything new. Its programs go on.
    pub fn terminating(&self) -> Result<()> {
        let mut object = self.object();
        object.terminating();
        self.lab()?.objects.set(object.value())
    }

    /// Ends it as the kubelet would: marked terminating, programs killed, network taken down, object removed.
    pub fn delete(&self) -> Result<()> {
        let lab = self.lab()?;
        let mut object = self.object();
        object.terminating();
        lab.objects.set(object.value())?;
        self.end_programs();
        let Inner {
            netns,
            namespace,
            name,
            uid,
            attached,
            ..
        } = &*self.shared;
        let (node, sandbox) = (
            lab.node(self.node())?,
            Sandbox {
                netns,
                namespace,
                name,
                uid,
            },
        );
        node.chain.del(sandbox, Some(&attached.result))?;
        node.hide_sandbox(self.shared.number)?;
        netns.delete()?;
        lab.objects.remove(object.value())
    }

    fn adopt(&self, process: Process) {
        let mut processes = self
            .shared
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        processes.push(process);
    }

    /// Kills what was started in it and reaps it.
    pub(crate) fn end_programs(&self) {
        let mut processes = self
            .shared
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        processes.drain(..).for_each(|process| process.kill());
    }

    /// What its programs see as `/etc/resolv.conf`.
    pub(crate) fn resolv_conf(&self) -> &Path {
        &self.shared.files.resolv_conf
    }

    /// The way into the pod for a program.
    pub(crate) fn entry(&self) -> Result<Entry> {
        let files = &self.shared.files;
        self.netns()
            .entry()?
            .hostname(self.name())
            .bind(&files.resolv_conf, "/etc/resolv.conf")?
            .bind(&files.hosts, "/etc/hosts")?
            .bind(&files.nsswitch, "/etc/nsswitch.conf")
    }

    fn object(&self) -> MutexGuard<'_, PodObject> {
        self.shared
            .object
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lab(&self) -> Result<Arc<Shared>> {
        self.shared
            .lab
            .upgrade()
            .ok_or_else(|| anyhow!("the lab is gone"))
    }

    pub(crate) fn home<'a>(&self, lab: &'a Shared) -> Result<&'a Node> {
        lab.node(self.node())
    }
}

/// `namespace/name` taken apart.
pub(crate) fn split(reference: &str) -> Result<(&str, &str)> {
    match reference.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace, name))
        }
        _ => bail!("{reference:?} is not namespace/name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_without_a_namespace_is_refused() {
        assert_eq!(split("shop/web").unwrap(), ("shop", "web"));
        for wrong in ["web", "/web", "shop/", ""] {
            assert!(split(wrong).is_err(), "{wrong:?}");
        }
    }
}
