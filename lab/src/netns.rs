//! Network namespaces by name, and doing something inside of one.
//!
//! A thread of its own goes into the namespace, works, hands back what it made (a socket stays where it was
//! made) and ends. It never comes back out, so nothing else can run in the wrong namespace by accident. Programs
//! enter between fork and exec ([`enter`]).

use std::{
    fs,
    fs::File,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
};

use crate::{
    enter::{self, Entry},
    run::{self, PATIENCE, Ran},
};

/// Where iproute2 and container runtimes keep named namespaces.
const DIRECTORY: &str = "/var/run/netns";

/// A named network namespace. Dropping it changes nothing: its lab or [`Place`](crate::Place) removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback up.
    pub(crate) fn create(name: &str) -> Result<Self> {
        run::run(Command::new("ip").args(["netns", "add", name]))?;
        let made = Self {
            name: name.to_owned(),
        };
        // Duplicate address detection would keep every new IPv6 address unusable for a second or two.
        made.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        made.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        made.window_that_does_not_pace()?;
        // Container runtimes have every bridge of the machine ask the firewall for each frame once more.
        for family in ["iptables", "ip6tables", "arptables"] {
            made.sysctl_if_it_can(&format!("net/bridge/bridge-nf-call-{family}"), "0")?;
        }
        made.ip("link set lo up\n")?;
        Ok(made)
    }

    /// Its name under `/var/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path a container runtime would hand to a CNI plugin.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// A descriptor of it, which keeps it alive whatever becomes of its name.
    pub fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("network namespace {}", self.name))
    }

    /// What tells it from every other namespace while both exist.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.open()?.metadata()?.ino())
    }

    /// Runs `work` on a thread inside this namespace.
    ///
    /// ```no_run
    /// # fn main() -> anyhow::Result<()> {
    /// # let lab = lab::Lab::builder().start()?;
    /// let listener = lab.node(0).netns().within(|| std::net::TcpListener::bind("0.0.0.0:80"))??;
    /// # Ok(())
    /// # }
    /// ```
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open()?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok::<_, Errno>(work())
            });
            inside
                .join()
                .map_err(|_| anyhow!("the work inside {} panicked", self.name))?
                .with_context(|| format!("entering {}", self.name))
        })
    }

    /// Runs a program inside to its end; a failure of the program is in the answer, not an error.
    pub fn exec<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<Ran> {
        let mut words = words.into_iter();
        let program = words.next().context("a command has at least its program")?;
        let mut command = Command::new(program);
        command.args(words);
        self.run(command, b"", PATIENCE)
    }

    /// [`Netns::exec`] of any command with an input (less than a pipe holds), killed after `within`, which is an error.
    pub fn run(&self, mut command: Command, input: &[u8], within: Duration) -> Result<Ran> {
        self.entry()?.prepare(&mut command);
        run::run_entered(command, input, within)
    }

    /// Starts a program inside. It ends when somebody kills it, with this process, or with the namespace.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        self.entry()?.prepare(&mut command);
        enter::spawn(command)
    }

    /// The way inside for a program.
    pub(crate) fn entry(&self) -> Result<Entry> {
        Ok(Entry::default().netns(self.open()?))
    }

    /// Sets a per-namespace kernel setting, e.g. `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.within(|| fs::write(&path, value))?
            .with_context(|| format!("{key}={value} in {}", self.name))
    }

    /// Congestion control by window alone, as Linux has it unless told otherwise. The machine's own choice would go over to new
    /// namespaces, and one that paces (BBR) sends small packets by a timer even where there is nothing to spare.
    fn window_that_does_not_pace(&self) -> Result<()> {
        let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control")?;
        let allowed: Vec<&str> = allowed.split_whitespace().collect();
        let choice = ["cubic", "reno"]
            .into_iter()
            .find(|it| allowed.contains(it));
        choice.map_or(Ok(()), |choice| {
            self.sysctl("net/ipv4/tcp_congestion_control", choice)
        })
    }

    /// [`Netns::sysctl`] of what a kernel need not have: another one is left as it is.
    fn sysctl_if_it_can(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.within(|| match fs::write(&path, value) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        })?
        .with_context(|| format!("{key}={value} in {}", self.name))
    }

    /// Runs a batch of `ip` commands, one a line, inside this namespace; the first that fails ends it.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.ip_batch(&[], batch)
    }

    /// [`Netns::ip`] for what iproute2 takes for IPv4 unless told otherwise: rules above all.
    pub fn ip6(&self, batch: &str) -> Result<()> {
        self.ip_batch(&["-6"], batch)
    }

    fn ip_batch(&self, family: &[&str], batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(family).args(["-n", &self.name, "-batch", "-"]);
        run::run_with_input(&mut command, batch.as_bytes())
            .with_context(|| format!("ip in {}:\n{batch}", self.name))?;
        Ok(())
    }

    /// Loads an nft script: all of it or nothing.
    pub fn nft(&self, script: &str) -> Result<()> {
        let mut command = Command::new("nft");
        command.args(["-f", "-"]);
        let loaded = self.run(command, script.as_bytes(), PATIENCE)?.success();
        loaded.with_context(|| format!("nft in {}:\n{script}", self.name))?;
        Ok(())
    }

    /// A cable from interface `port` in here to `eth0` in `other`; both ends are still down.
    pub fn cable(&self, port: &str, other: &Self) -> Result<()> {
        self.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\n",
            other.name
        ))
    }

    /// Whether something listens on TCP `port` on any address in here.
    pub fn listens_on(&self, port: u16) -> Result<bool> {
        let tables = self.within(|| {
            ["tcp", "tcp6"].map(|t| fs::read_to_string(format!("/proc/thread-self/net/{t}")))
        })?;
        Ok(tables
            .into_iter()
            .flatten()
            .any(|table| table.lines().skip(1).any(|line| is_listener(line, port))))
    }

    /// The processes that live in here.
    pub(crate) fn processes(&self) -> Vec<i32> {
        match fs::metadata(self.path()) {
            Ok(meta) => processes_in(meta.ino()),
            Err(_) => Vec::new(),
        }
    }

    /// Takes the name away; the kernel ends the namespace with its last user. A missing one is fine.
    pub(crate) fn delete(&self) -> Result<()> {
        match umount2(&self.path(), MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("unmounting {}", self.path().display()));
            }
        }
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.path().display()))
            }
            _ => Ok(()),
        }
    }

    /// All namespaces whose name starts with `prefix`.
    pub(crate) fn named(prefix: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(DIRECTORY) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .map(|name| Self { name })
            .collect()
    }
}

/// A row of `/proc/net/tcp`: `sl local_address rem_address st …`, state 0A is LISTEN.
fn is_listener(row: &str, port: u16) -> bool {
    let mut columns = row.split_ascii_whitespace().skip(1);
    let (Some(local), Some(_), Some(state)) = (columns.next(), columns.next(), columns.next())
    else {
        return false;
    };
    state == "0A" && local.ends_with(&format!(":{port:04X}"))
}

fn processes_in(inode: u64) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection_on_the_same_port() {
        let listen =
            "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let open =
            "   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000 0 0 1 1";
        assert!(is_listener(listen, 8080));
        assert!(!is_listener(listen, 80));
        assert!(!is_listener(open, 8080));
        assert!(!is_listener("", 8080));
    }
}
