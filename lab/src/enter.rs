//! Starting a program inside a network namespace, as a pod's container would be.
//!
//! Between fork and exec the child, in this order,
//! 1. becomes the leader of a session of its own  (a Ctrl-C at our terminal is ours to handle, not its)
//! 2. enters the network namespace
//! 3. takes private mount and host name namespaces: binds files over files (`/etc/resolv.conf`) and directories over
//!    directories, sets the host name
//! 4. is confined as a container's security context would have it, or changes to the user asked for
//! 5. asks the kernel to be killed when the thread that started it ends
//!
//! Because of the last step all programs are started by one thread that lives as long as this process:
//! the kernel watches the parent *thread*, and test threads come and go.
#![allow(unsafe_code)] // `CommandExt::pre_exec`: the only way to run the steps above in the child and keep its pid; and `prctl`

use std::{
    ffi::{CStr, CString, OsString},
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::{Child, Command},
    sync::{OnceLock, mpsc},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    errno::Errno,
    libc::{self, c_ulong},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::{set_no_new_privs, set_pdeathsig},
        signal::{SigSet, Signal, killpg},
    },
    unistd::{Gid, Pid, Uid, User, setgid, setgroups, sethostname, setsid, setuid},
};

/// Where and as whom a program starts.
#[derive(Default)]
pub(crate) struct Entry {
    netns: Option<File>,
    /// (what is shown, where it is shown)
    binds: Vec<(CString, CString)>,
    hostname: Option<OsString>,
    user: Option<(Uid, Gid)>,
    /// What is left of root's capabilities, with all outside of what is bound read-only.
    capabilities: Option<&'static [c_ulong]>,
}

impl Entry {
    pub(crate) fn netns(mut self, netns: File) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Shows a file or directory in place of `at`; skipped when this machine has no `at`.
    pub(crate) fn bind(mut self, file: &Path, at: impl AsRef<Path>) -> Result<Self> {
        // Where it is a link (systemd-resolved), the mount must go over the file at its end.
        if let Ok(at) = std::fs::canonicalize(at) {
            let c = |path: &Path| CString::new(path.as_os_str().as_bytes());
            self.binds.push((c(file)?, c(&at)?));
        }
        Ok(self)
    }

    pub(crate) fn hostname(mut self, name: &str) -> Self {
        self.hostname = Some(name.into());
        self
    }

    pub(crate) fn user(mut self, name: &str) -> Result<Self> {
        let user =
            User::from_name(name)?.with_context(|| format!("this machine has no user {name}"))?;
        self.user = Some((user.uid, user.gid));
        Ok(self)
    }

    /// As a container with a read-only root file system and no capabilities but these. Only what is bound, and what
    /// this machine has mounted elsewhere than `/`, can be written to; kernel settings cannot.
    pub(crate) fn confined(mut self, capabilities: &'static [c_ulong]) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// Makes `command` start in here.
    pub(crate) fn prepare(self, command: &mut Command) {
        let enter = move || self.enter();
        // SAFETY: after fork only async-signal-safe work is allowed. `enter` calls system calls with arguments made
        // before the fork, allocates nothing and takes no lock; its errors are plain errno values.
        unsafe { command.pre_exec(enter) };
    }

    fn enter(&self) -> io::Result<()> {
        setsid()?;
        // A blocked signal stays blocked over exec, and we may have blocked some to wait for them ourselves.
        SigSet::empty().thread_set_mask()?;
        if let Some(netns) = &self.netns {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
        }
        if !self.binds.is_empty() || self.capabilities.is_some() {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Slave: our mounts stay ours, while namespaces that are unmounted outside go away in here too.
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_SLAVE,
                None::<&str>,
            )?;
            for (file, at) in &self.binds {
                bind(file, at)?;
            }
        }
        if let Some(name) = &self.hostname {
            unshare(CloneFlags::CLONE_NEWUTS)?;
            sethostname(name)?;
        }
        if let Some(capabilities) = self.capabilities {
            confine(capabilities)?;
        }
        if let Some((uid, gid)) = self.user {
            setgroups(&[gid])?;
            setgid(gid)?;
            setuid(uid)?;
        }
        // Last, because a change of user clears it.
        set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    }
}

fn bind(file: &CStr, at: &CStr) -> nix::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(file), at, None::<&str>, flags, None::<&str>)
}

fn confine(capabilities: &[c_ulong]) -> io::Result<()> {
    bind(c"/proc/sys", c"/proc/sys")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    for at in [c"/proc/sys", c"/"] {
        mount(None::<&CStr>, at, None::<&str>, read_only, None::<&str>)?;
    }
    let others = (0..=LAST_CAPABILITY).filter(|capability| !capabilities.contains(capability));
    for capability in others {
        // SAFETY: takes numbers, touches no memory of ours.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        // A kernel that does not know it yet does not give it either.
        if dropped != 0 && Errno::last() != Errno::EINVAL {
            return Err(Errno::last().into());
        }
    }
    set_no_new_privs()?;
    Ok(())
}

/// Room for some more than kernels have.
const LAST_CAPABILITY: c_ulong = 63;

type Started = io::Result<Child>;

/// Starts `command` from the thread that lives as long as this process.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    static STARTER: OnceLock<mpsc::SyncSender<(Command, mpsc::SyncSender<Started>)>> =
        OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (give, take) = mpsc::sync_channel::<(Command, mpsc::SyncSender<Started>)>(0);
        thread::spawn(move || {
            for (mut command, answer) in take {
                let _ = answer.send(command.spawn());
            }
        });
        give
    });
    let (answer, started) = mpsc::sync_channel(1);
    starter
        .send((command, answer))
        .map_err(|_| anyhow!("the starter thread is gone"))?;
    Ok(started
        .recv()
        .map_err(|_| anyhow!("the starter thread is gone"))??)
}

/// Kills a program and what it started, as far as that stayed in its session's first process group, and reaps it.
pub(crate) fn kill_session(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
