//! The keeper's process: signals and a worker's words enter; workers are started, and it ends as the last of them did.
//!
//! 1. signals become a descriptor                                     ([`keep`])
//! 2. a worker is started, its stdin our socket                       (`start`)
//! 3. it is given what is held, and says what to hold                 (`Worker::talk`)
//! 4. signals are passed on, children are reaped                      (`Keep::heed`)
//! 5. the worker has ended: its last words, then the next one or our own end   (`Keep::bury`, `patience`)

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{get_thp_disable, set_name, set_thp_disable};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use ops::time::Micros;

use super::KEPT;
use super::patience::{Death, End, Next, Patience};
use super::shelf::Shelf;
use super::words::{COMPLETE, head, send};
use crate::agent::packet::receive;

/// Those that ask a worker for its end, which it knows how to come to. All others are as without a keeper: process 1 of
/// a container does not feel them.
const STOP: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Is the keeper of a worker with these arguments, until there is nothing to keep; the status to end with.
///
/// # Errors
/// When the system gives no descriptor to begin with.
pub fn keep(arguments: Vec<OsString>) -> io::Result<i32> {
    let slim = slim();
    // Not the worker's name: who kills the worker by name must not take the keeper along.
    set_name(c"ztunnel-keeper")?;
    ops::process::allow_all_fds();
    let mut wanted: SigSet = STOP.into_iter().collect();
    wanted.add(Signal::SIGCHLD);
    wanted.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let mut keep = Keep {
        arguments,
        signals: SignalFd::with_flags(&wanted, flags)?,
        shelf: Shelf::default(),
        patience: Patience::default(),
        worker: None,
        start_at: Some(Instant::now()),
        deaths: 0,
        asked: false,
        slim,
    };
    loop {
        if let Some(status) = keep.turn()? {
            return Ok(status);
        }
    }
}

struct Keep {
    arguments: Vec<OsString>,
    signals: SignalFd,
    shelf: Shelf,
    patience: Patience,
    worker: Option<Worker>,
    /// When the next worker is due, while there is none.
    start_at: Option<Instant>,
    deaths: u32,
    /// A signal to stop has come.
    asked: bool,
    /// We have renounced large pages.
    slim: bool,
}

struct Worker {
    pid: Pid,
    /// `None` once it has closed its end.
    socket: Option<OwnedFd>,
    /// How much of the shelf it has been given; `None`: all, and it knows.
    given: Option<usize>,
    since: Instant,
}

impl Keep {
    /// Waits for something and deals with it; the status to end with, when that was the end.
    fn turn(&mut self) -> io::Result<Option<i32>> {
        if self.start_at.is_some_and(|at| at <= Instant::now()) {
            self.start_at = None;
            // Large pages are not for us, but for the worker, which inherits what we have while it is started.
            let _ = self.slim.then(|| set_thp_disable(false));
            let started = start(&self.arguments, self.deaths);
            let _ = self.slim.then(|| set_thp_disable(true));
            match started {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => {
                    say(&format_args!("cannot start a worker: {error}"));
                    return Ok(self.next(End::Status(1), Duration::ZERO));
                }
            }
        }
        self.wait()?;
        if let Some(worker) = &mut self.worker {
            worker.talk(&mut self.shelf);
        }
        self.heed()
    }

    fn wait(&self) -> io::Result<()> {
        let timeout = self.start_at.map_or(PollTimeout::NONE, |at| {
            // Rounded up: not due yet, and not waited for any more, would be a busy loop.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let worker = self.worker.as_ref();
        let socket = worker.and_then(|worker| {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, worker.given.is_some());
            Some(PollFd::new(worker.socket.as_ref()?.as_fd(), events))
        });
        let waited = match socket {
            Some(socket) => poll(&mut [signals, socket], timeout),
            None => poll(&mut [signals], timeout),
        };
        match waited {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Signals: passes on those that ask for the end, reaps children.
    fn heed(&mut self) -> io::Result<Option<i32>> {
        while let Some(signal) = self.signals.read_signal()? {
            let Some(signal) = i32::try_from(signal.ssi_signo)
                .ok()
                .and_then(|number| Signal::try_from(number).ok())
                .filter(|signal| *signal != Signal::SIGCHLD)
            else {
                continue;
            };
            self.asked = true;
            match &self.worker {
                // Not reaped yet, so the pid is still its.
                Some(worker) => drop(kill(worker.pid, signal)),
                None => return Ok(Some(0)),
            }
        }
        // Everything that ends up with process 1 is reaped, not only the worker.
        loop {
            let (pid, end) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, End::Status(status)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, End::Signal(signal)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if self.worker.as_ref().is_some_and(|worker| worker.pid == pid)
                && let Some(status) = self.bury(end)
            {
                return Ok(Some(status));
            }
        }
    }

    /// The worker is no more. Our status, when nobody follows it.
    fn bury(&mut self, end: End) -> Option<i32> {
        let mut worker = self.worker.take()?;
        // What it said last still stands in the socket.
        worker.talk(&mut self.shelf);
        self.next(end, worker.since.elapsed())
    }

    fn next(&mut self, end: End, lived: Duration) -> Option<i32> {
        self.deaths += 1;
        let pods = self.shelf.pods();
        let next = self.patience.after(Death {
            end,
            lived,
            asked: self.asked,
            held: pods > 0,
        });
        match next {
            Next::Exit(status) => {
                if !self.asked && status != 0 {
                    say(&format_args!(
                        "the worker ended ({end}) after {lived:.1?}, and so does its keeper; it held the listeners of {pods} pods"
                    ));
                }
                Some(status)
            }
            Next::Start(pause) => {
                let pause_ms = pause.as_millis();
                say(&format_args!(
                    "the worker ended ({end}) after {lived:.1?}; the listeners of {pods} pods are held for the next one, which is started in {pause_ms} ms"
                ));
                self.start_at = Some(Instant::now() + pause);
                None
            }
        }
    }
}

impl Worker {
    /// Gives what it has not been given, and does as it says, as far as that goes without waiting.
    fn talk(&mut self, shelf: &mut Shelf) {
        let Some(socket) = &self.socket else {
            return;
        };
        while let Some(index) = self.given {
            let sent = match shelf.nth(index) {
                Some(parcel) => send(socket, &parcel.message, &parcel.sockets),
                None => send(socket, &head(COMPLETE, 0), &[]),
            };
            match sent {
                Ok(()) => self.given = shelf.nth(index).map(|_| index + 1),
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                // It is gone, and its signal is on the way.
                Err(_) => self.given = None,
            }
        }
        loop {
            match receive(socket.as_raw_fd()) {
                Ok(packet) if packet.bytes.is_empty() && packet.fds.is_empty() => break,
                Ok(packet) => {
                    if !shelf.take(packet) {
                        say(
                            &"the worker says what makes no sense, or has too much to hold; it is left",
                        );
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.socket = None;
    }
}

/// Starts a worker whose stdin leads to us.
fn start(arguments: &[OsString], deaths: u32) -> io::Result<Worker> {
    let (ours, its) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let child = Command::new("/proc/self/exe")
        .arg0("ztunnel")
        .args(arguments)
        .env(KEPT, format!("{} {deaths}", getpid()))
        .stdin(its)
        // A Ctrl-C at a terminal is for us to pass on: twice would be "at once".
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(Worker {
        pid: Pid::from_raw(pid),
        socket: Some(ours),
        given: Some(0),
        since: Instant::now(),
    })
}

/// Begins once more, without large pages: with them the first bytes that a program allocates cost megabytes. Whether
/// that is so by now, and our doing.
fn slim() -> bool {
    if std::env::var_os(KEPT).is_some_and(|said| said == SLIM) {
        return true;
    }
    if matches!(get_thp_disable(), Ok(false)) && set_thp_disable(true).is_ok() {
        // The same process goes on as a new program; it comes back only when that cannot be, and then does without.
        let arguments = std::env::args_os().skip(1);
        let _ = Command::new("/proc/self/exe")
            .arg0("ztunnel")
            .args(arguments)
            .env(KEPT, SLIM)
            .exec();
        let _ = set_thp_disable(false);
    }
    false
}

/// A line of the log, in the worker's form; dropped when stdout takes none: nobody's pipe may stop the keeper.
fn say(message: &impl Display) {
    let stdout = io::stdout();
    let mut room = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
    if !matches!(poll(&mut room, PollTimeout::ZERO), Ok(1))
        || room[0].revents() != Some(PollFlags::POLLOUT)
    {
        return;
    }
    let now = Micros(SystemTime::now());
    let json = std::env::var_os("LOG_FORMAT").is_some_and(|format| format == "json");
    let line = if json {
        let message = serde_json::Value::from(message.to_string());
        format!(
            "{{\"level\":\"error\",\"time\":\"{now}\",\"scope\":\"ztunnel::keeper\",\"message\":{message}}}\n"
        )
    } else {
        format!("{now}\terror\tztunnel::keeper\t{message}\n")
    };
    // A pipe that has room has it for so short a line as a whole.
    let _ = stdout.lock().write_all(line.as_bytes());
}

/// What [`KEPT`] says to the keeper itself: see [`slim`].
const SLIM: &str = "slim";
