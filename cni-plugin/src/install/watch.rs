//! Keeps an installation as it should be: applies it now, again whenever something in one of its
//! directories changes, and every minute (a directory may have been replaced, and the kubelet
//! exchanges tokens by moving links about).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Install, InstallError, Kubeconfig, Metrics};

/// An installation that is kept.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Binary and configuration.
    pub install: Install,
    /// The kubeconfig, where there is a token to share.
    pub kubeconfig: Option<Kubeconfig>,
    /// How it goes.
    pub metrics: Metrics,
}

impl Watch {
    /// Makes everything as it should be; returns the files that were not.
    ///
    /// # Errors
    /// The first file that could not be read or written.
    pub fn apply(&self) -> Result<Vec<PathBuf>, InstallError> {
        let applied = self.steps();
        self.metrics.note(&self.install, &applied);
        applied
    }

    fn steps(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut changed = Vec::new();
        if let Some(kubeconfig) = &self.kubeconfig
            && kubeconfig.apply()?
        {
            changed.push(kubeconfig.path.clone());
        }
        changed.extend(self.install.apply()?);
        Ok(changed)
    }

    /// Takes everything away again.
    ///
    /// # Errors
    /// The first file that could not be removed; the others have been.
    pub fn remove(&self) -> Result<(), InstallError> {
        let removed = self.install.remove();
        let kubeconfig = self.kubeconfig.iter().map(Kubeconfig::remove);
        kubeconfig.fold(removed, Result::and)
    }

    /// Keeps it (blocking) until `stop` hangs up; each attempt is told to `report`.
    ///
    /// # Errors
    /// When nothing can be waited for.
    pub fn run(
        &self,
        stop: BorrowedFd<'_>,
        report: impl FnMut(Result<Vec<PathBuf>, InstallError>),
    ) -> io::Result<()> {
        self.keep(stop, report, || {
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        })
    }

    /// The same with a watch that the kernel gives, or does not: others of the node may have taken all there are. Then it is
    /// looked after every few seconds, until there is one.
    pub(super) fn keep(
        &self,
        stop: BorrowedFd<'_>,
        mut report: impl FnMut(Result<Vec<PathBuf>, InstallError>),
        watch: impl Fn() -> nix::Result<Inotify>,
    ) -> io::Result<()> {
        let (mut inotify, mut said) = (None, false);
        loop {
            if inotify.is_none() {
                match watch() {
                    Ok(given) => inotify = Some(given),
                    Err(error) if !std::mem::replace(&mut said, true) => tracing::warn!(
                        %error,
                        "the host's directories cannot be watched (fs.inotify.max_user_instances?); looking every {} s",
                        FAILED.as_secs()
                    ),
                    Err(_) => {}
                }
            }
            // Before the look, so that no change falls in between. Watching twice is watching once.
            if let Some(inotify) = &inotify {
                self.directories().for_each(|directory| {
                    // One that is not there yet is found in the next round.
                    let _ = inotify.add_watch(&directory, events());
                });
            }
            let applied = self.apply();
            let is_watched = applied.is_ok() && inotify.is_some();
            let rest = if is_watched { QUIET } else { FAILED };
            report(applied);
            if stopped_within(stop, inotify.as_ref().map(AsFd::as_fd), rest)? {
                return Ok(());
            }
            // Writers of several files get their time, and two who repair against each other theirs.
            if stopped_within(stop, None, SETTLE)? {
                return Ok(());
            }
            while inotify.as_ref().is_some_and(|it| it.read_events().is_ok()) {}
        }
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let install = [self.install.conf_dir(), self.install.bin_dir()];
        let kubeconfig = self.kubeconfig.iter().flat_map(|kubeconfig| {
            let run_dir = kubeconfig.path.parent().map(PathBuf::from);
            run_dir.into_iter().chain([kubeconfig.account.clone()])
        });
        install.into_iter().flatten().chain(kubeconfig)
    }
}

fn events() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
}

/// Waits until `news` has some, `stop` hangs up (then `true`), or the time is over.
fn stopped_within(
    stop: BorrowedFd<'_>,
    news: Option<BorrowedFd<'_>>,
    time: Duration,
) -> io::Result<bool> {
    let time = PollTimeout::try_from(time).map_err(io::Error::other)?;
    let mut fds = vec![PollFd::new(stop, PollFlags::POLLIN)];
    fds.extend(news.map(|news| PollFd::new(news, PollFlags::POLLIN)));
    match poll(&mut fds, time) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
        Err(errno) => Err(errno.into()),
    }
}

const QUIET: Duration = Duration::from_secs(60);
const FAILED: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_millis(50);
