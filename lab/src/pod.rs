//! A pod: an object in the directory, a sandbox made through the CNI chain, programs inside.
//!
//! The order is the kubelet's: the object exists, bound to a node and without an address; the sandbox gets its
//! network; the object's status follows. The other way round at the end.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    cni::{Attached, Sandbox},
    component::bare,
    enter::Entry,
    lab::Shared,
    netns::Netns,
    node::Node,
    objects::PodObject,
    process::Process,
    run::{self, Ran},
    wait::Probe,
};

/// For commands that should answer at once, on a busy machine.
const COMMAND: Duration = Duration::from_secs(30);
const LISTEN: Duration = Duration::from_secs(20);

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
        if !object.labelled("app") {
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
        let attached = match node.chain.add(sandbox) {
            Ok(attached) => attached,
            // The kubelet would try again for ever; a lab tells.
            Err(error) => {
                netns.delete()?;
                self.lab.objects.remove(object.value())?;
                return Err(error);
            }
        };
        object.running(&attached.addresses, node.addresses(), self.ready);
        self.lab.objects.set(object.value())?;

        let dir = self
            .lab
            .dir
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
        Ok(PodCommand {
            pod: self.clone(),
            command,
            user: None,
            input: Vec::new(),
            within: COMMAND,
        })
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

    /// Changes whether its status says Ready.
    pub fn set_ready(&self, ready: bool) -> Result<()> {
        let lab = self.lab()?;
        let mut object = self.object();
        object.running(self.addresses(), lab.node(self.node())?.addresses(), ready);
        lab.objects.set(object.value())
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
        lab.node(self.node())?.chain.del(
            Sandbox {
                netns,
                namespace,
                name,
                uid,
            },
            attached,
        )?;
        netns.delete()?;
        lab.objects.remove(object.value())
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

    /// The way into the pod for a program.
    pub(crate) fn entry(&self) -> Result<Entry> {
        let files = &self.shared.files;
        Entry::default()
            .netns(self.netns().open()?)
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

/// A command to be run in a pod.
#[derive(Debug)]
#[must_use = "a command runs with `run` or `spawn`"]
pub struct PodCommand {
    pod: Pod,
    command: Command,
    user: Option<String>,
    input: Vec<u8>,
    within: Duration,
}

impl PodCommand {
    /// Runs it as another user than root.
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.into());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// What it reads from stdin (less than a pipe holds).
    pub fn input(mut self, input: &str) -> Self {
        self.input = input.into();
        self
    }

    /// After this it is killed, which is an error; 30 s if not said.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = deadline;
        self
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Result<Ran> {
        self.enter()?;
        run::run_entered(self.command, &self.input, self.within)
            .with_context(|| format!("in pod {}", self.pod.name()))
    }

    /// Starts it in the background, its output in `<name>.log` of the pod's directory.
    pub fn spawn(mut self, name: &str) -> Result<Process> {
        self.enter()?;
        let log = self.pod.dir().join(format!("{name}.log"));
        let process = Process::start(self.command, &log)
            .with_context(|| format!("in pod {}", self.pod.name()))?;
        self.pod
            .shared
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(process.clone());
        Ok(process)
    }

    fn enter(&mut self) -> Result<()> {
        let mut entry = self.pod.entry()?;
        if let Some(user) = &self.user {
            entry = entry.user(user)?;
        }
        entry.prepare(&mut self.command);
        Ok(())
    }
}

/// The files every container gets from its kubelet.
#[derive(Debug)]
struct Files {
    resolv_conf: PathBuf,
    hosts: PathBuf,
    nsswitch: PathBuf,
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

    #[test]
    fn a_pod_resolves_names_of_its_own_namespace_first() {
        let text = resolv_conf("shop", "10.90.0.2".parse().unwrap());
        assert!(text.contains(
            "nameserver 10.90.0.2\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n"
        ));
    }
}
