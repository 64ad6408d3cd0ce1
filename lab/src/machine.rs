//! A machine that is no pod: a host on the fabric with packet rules of its own and a ztunnel that is dedicated to it.
//!
//! It is set up as its operator would: the root certificate, a file for the token, the rules, and the proxy as a service
//! of the machine. Nothing of it is known to the control plane but what the operator and the machine say there.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    access::AccessLog,
    component::{Component, bare},
    control_plane::Site,
    enter::Entry,
    http,
    metrics::Metrics,
    netns::Netns,
    run::{self, Ran},
    wait::Probe,
};

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
/// For commands that should answer at once, on a busy machine.
const COMMAND: Duration = Duration::from_secs(60);

/// A ztunnel that cannot reach its peer says so sooner.
const CONNECT: Duration = Duration::from_secs(30);

/// A machine and its proxy.
#[derive(Debug)]
pub struct Machine {
    namespace: String,
    name: String,
    account: String,
    netns: Netns,
    addresses: Vec<IpAddr>,
    files: Files,
    bin: PathBuf,
    proxy: Component,
}

/// Where a machine stands.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) netns: Netns,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) dir: PathBuf,
    pub(crate) name_server: IpAddr,
}

#[derive(Debug, Clone)]
struct Files {
    dir: PathBuf,
}

impl Files {
    fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    fn root_cert(&self) -> PathBuf {
        self.dir.join("root-cert.pem")
    }

    fn token(&self) -> PathBuf {
        self.dir.join("join-token")
    }

    fn membership(&self) -> PathBuf {
        self.dir.join("membership")
    }
}

impl Machine {
    pub(crate) fn new(
        site: &Site,
        place: Place,
        namespace: &str,
        name: &str,
        account: &str,
    ) -> Result<Self> {
        let Place {
            netns,
            addresses,
            dir,
            name_server,
        } = place;
        fs::create_dir_all(&dir)?;
        let files = Files { dir };
        let search = format!("search {namespace}.svc.cluster.local svc.cluster.local\n");
        fs::write(
            files.resolv_conf(),
            format!("nameserver {name_server}\n{search}"),
        )?;
        fs::copy(site.root_cert(), files.root_cert()).context("the control plane's roots")?;
        let proxy = proxy(
            &site.bin,
            &netns,
            &files,
            &format!("{namespace}/{name}/{account}"),
            &[],
        );
        let machine = Self {
            namespace: namespace.into(),
            name: name.into(),
            account: account.into(),
            netns,
            addresses,
            files,
            bin: site.bin.clone(),
            proxy,
        };
        machine.capture("up")?;
        Ok(machine)
    }

    /// Says more to its proxy from its next start on.
    #[must_use]
    pub fn with_env(mut self, more: &[(&str, &str)]) -> Self {
        let whom = format!("{}/{}/{}", self.namespace, self.name, self.account);
        self.proxy = proxy(&self.bin, &self.netns, &self.files, &whom, more);
        self
    }

    /// The same machine, saying that it is somebody else.
    #[must_use]
    pub fn calling_itself(mut self, whom: &str, more: &[(&str, &str)]) -> Self {
        self.proxy = proxy(&self.bin, &self.netns, &self.files, whom, more);
        self
    }

    /// Its rules: `up` or `down`.
    pub fn capture(&self, verb: &str) -> Result<()> {
        self.capture_with(&[verb])
    }

    /// The same with flags behind the verb.
    pub fn capture_with(&self, words: &[&str]) -> Result<()> {
        let mut command = bare(&self.bin.join("ambit-cni-agent"));
        command.arg("capture").args(words);
        let done = self.netns.run(command, b"", COMMAND)?;
        done.success()
            .with_context(|| format!("packet rules {}", words.join(" ")))?;
        Ok(())
    }

    /// Lays the token where its proxy looks for it.
    pub fn give_token(&self, token: &str) -> Result<()> {
        let (path, fresh) = (self.files.token(), self.files.dir.join("join-token.new"));
        fs::write(&fresh, token.trim())?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(fresh, path).context("the join token")
    }

    /// Takes what another machine was known by, as a thief of its disk would.
    pub fn steal_from(&self, other: &Self) -> Result<()> {
        let (from, to) = (other.files.membership(), self.files.membership());
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Its proxy: not started yet.
    pub fn proxy(&self) -> &Component {
        &self.proxy
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.addresses[0]
    }

    /// All its addresses, IPv4 first, as `istiod-lite vm token --address` wants them.
    pub fn addresses(&self) -> String {
        let all: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        all.join(",")
    }

    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The identity the mesh gives it.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.namespace, self.account
        )
    }

    /// Its files.
    pub fn dir(&self) -> &Path {
        &self.files.dir
    }

    /// Runs a command to its end; a failure of the command is in the answer, not an error.
    pub fn exec<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<Ran> {
        let mut words = words.into_iter();
        let program = words.next().context("a command has at least its program")?;
        let mut command = bare(Path::new(program));
        command.args(words).current_dir(&self.files.dir);
        entry(&self.netns, &self.files)?.prepare(&mut command);
        run::run_entered(command, b"", COMMAND)
    }

    /// Connects from inside.
    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&to, CONNECT);
        let stream = self.netns.within(connect)?;
        let stream = stream.with_context(|| format!("{} → {to}", self.name))?;
        stream.set_read_timeout(Some(CONNECT))?;
        stream.set_write_timeout(Some(CONNECT))?;
        Ok(stream)
    }

    /// Listens inside, on IPv4.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let listener = self
            .netns
            .within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        listener.with_context(|| format!("port {port} of {}", self.name))
    }

    /// Its access log, from its beginning.
    pub fn access_log(&self) -> AccessLog {
        AccessLog::new(self.proxy.log_path().to_owned())
    }

    /// What its proxy says it knows.
    pub fn config_dump(&self) -> Result<Value> {
        serde_json::from_str(&self.ask(ADMIN, "/config_dump")?).context("the config dump")
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.ask(METRICS, "/metrics")?))
    }

    fn ask(&self, port: u16, path: &str) -> Result<String> {
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        http::request(&self.netns, "GET", at, path)?.ok()
    }
}

fn entry(netns: &Netns, files: &Files) -> Result<Entry> {
    netns
        .entry()?
        .bind(&files.resolv_conf(), "/etc/resolv.conf")
}

fn proxy(bin: &Path, netns: &Netns, files: &Files, whom: &str, more: &[(&str, &str)]) -> Component {
    let root = files.root_cert().display().to_string();
    let mut env = vec![
        ("PROXY_MODE".to_owned(), "dedicated".to_owned()),
        ("PROXY_WORKLOAD_INFO".to_owned(), whom.to_owned()),
        (
            "AMBIT_JOIN_TOKEN".to_owned(),
            files.token().display().to_string(),
        ),
        (
            "AMBIT_MEMBERSHIP_DIR".to_owned(),
            files.membership().display().to_string(),
        ),
        ("XDS_ROOT_CA".to_owned(), root),
        ("RUST_LOG".to_owned(), "info".to_owned()),
    ];
    let more = more.iter();
    env.extend(more.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let (binary, inside, own) = (bin.join("ztunnel"), netns.clone(), files.clone());
    let recipe = move || {
        let mut command = bare(&binary);
        command
            .args(["proxy", "ztunnel"])
            .current_dir("/")
            .envs(env.iter().map(|(key, value)| (key, value)));
        entry(&inside, &own)?.prepare(&mut command);
        Ok(command)
    };
    let (netns, at) = (netns.clone(), SocketAddr::from(([127, 0, 0, 1], READINESS)));
    let ready = move || {
        Ok(match http::request(&netns, "GET", at, "/healthz/ready") {
            Ok(answer) if answer.status == 200 => Probe::Ready(()),
            Ok(answer) => Probe::NotYet(format!("it says {}: {}", answer.status, answer.body)),
            Err(error) => Probe::NotYet(format!("{error:#}")),
        })
    };
    let log = files.dir.join("ztunnel.log");
    Component::new(
        &format!("the proxy of {whom}"),
        log,
        Box::new(recipe),
        Box::new(ready),
    )
}
