//! A hand-over that goes wrong, at each of its steps: either side stands still, is killed, speaks another version or tells
//! nonsense. What can be kept is kept, nothing is carried twice, and a ztunnel that nobody can be handed to drains.

use std::{
    fs,
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Process, wait};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
        socket::{
            AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept,
            bind, connect, listen, recv, sendmsg, socket,
        },
    },
    unistd::Pid,
};

use crate::{
    support::{SOON, in_lab, users::Users},
    ways::{Silent, Ways, own, successor},
};

/// Asks the elder to stop while its successor does nothing, and waits until all of `silent` is offered and not decided.
fn until_all_is_offered(old: &Process, new: &Process, silent: &Silent) -> Result<()> {
    stand_still(new)?;
    old.signal(Signal::SIGTERM)?;
    wait::until_true("the offers", SOON, || offered(old.pid()) == silent.len())
}

/// The signal is heard by one thread, in its own time; the others go on until it has told them.
fn stand_still(process: &Process) -> Result<()> {
    process.signal(Signal::SIGSTOP)?;
    let tasks = format!("/proc/{}/task", process.pid());
    wait::until_true("every thread to stop", SOON, || {
        fs::read_dir(&tasks).is_ok_and(|mut tasks| {
            tasks.all(|task| {
                let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
                // Behind the name, which ends with the last bracket.
                stat.is_ok_and(|stat| {
                    stat.rsplit(") ")
                        .next()
                        .is_some_and(|rest| rest.starts_with('T'))
                })
            })
        })
    })
}

/// States of connections that it holds for others to read.
fn offered(pid: i32) -> usize {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    let states = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    states
        .filter(|to| to.to_string_lossy().contains("memfd:ambit-handover"))
        .count()
}

#[test]
fn a_successor_that_stands_still_gets_nothing_until_it_moves_again() {
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        let mut silent = ways.silent()?;
        let mut users = Users::new();
        ways.use_all(&mut users)?;
        users.go_on()?;
        let old = lab.surge_ztunnel(0)?;
        let new = successor(lab)?;
        stand_still(&new)?;
        old.signal(Signal::SIGTERM)?;
        wait::until_true("the elder to take all back", SOON, || {
            old.log().contains("the successor is lost")
        })?;
        users.go_on()?;
        silent.are_whole("still with the elder")?;
        new.signal(Signal::SIGCONT)?;
        // It finds that what it was offered is no longer to be had, and registers anew.
        old.wait(SOON).context("it still has connections")?;
        users.go_on()?;
        silent.are_whole("with the successor")?;
        users.done().map(drop)
    });
}

#[test]
fn what_an_elder_had_offered_when_it_was_killed_goes_on_with_the_successor() {
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        let mut silent = ways.silent()?;
        let old = lab.surge_ztunnel(0)?;
        let new = successor(lab)?;
        until_all_is_offered(&old, &new, &silent)?;
        old.kill();
        new.signal(Signal::SIGCONT)?;
        silent.are_whole("the elder is no more")
    });
}

#[test]
fn what_a_successor_was_offered_when_it_was_killed_goes_on_with_the_elder_until_the_next_one_comes()
{
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        let mut silent = ways.silent()?;
        let old = lab.surge_ztunnel(0)?;
        let new = successor(lab)?;
        until_all_is_offered(&old, &new, &silent)?;
        new.kill();
        silent.are_whole("the successor is no more")?;
        ensure!(old.running(), "it left");
        lab.surge_ztunnel(0)?;
        old.wait(SOON).context("it still has connections")?;
        silent.are_whole("with the next successor")
    });
}

#[test]
fn who_speaks_another_version_is_handed_nothing_and_does_not_stand_in_the_way() {
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        let mut silent = ways.silent()?;
        let old = successor(lab)?;
        let stranger = knock(&door(lab))?;
        say(&stranger, &hello(9, 1), &[])?;
        let answer = hear(&stranger)?;
        ensure!(answer[..9] == hello(1, 1)[..9], "no hello: {answer:?}");
        old.signal(Signal::SIGTERM)?;
        silent.are_whole("it drains")?;
        ensure!(old.running(), "it left");
        lab.surge_ztunnel(0)?;
        old.wait(SOON).context("it still has connections")?;
        silent.are_whole("with one that it understands")
    });
}

#[test]
fn nonsense_from_an_elder_is_refused_and_does_no_harm() {
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        let mut silent = ways.silent()?;
        let real = successor(lab)?;
        let fake = Fake::open(&door(lab))?;
        lab.begin_surge(0)?;
        let channel = fake.registered()?;
        let state = sealed(b"\0\0\0\x04nonsense")?;
        let cases: [(&str, Vec<u8>, Vec<OwnedFd>); 4] = [
            (
                "a state that is cut off",
                offer(0, 12, 0),
                vec![right(1)?, state],
            ),
            (
                "memory of another size",
                offer(1, 99, 0),
                vec![right(1)?, sealed(b"\0\0\0\0")?],
            ),
            (
                "memory that can change",
                offer(2, 0, 0),
                vec![right(1)?, right(1)?],
            ),
            (
                "an account that is none",
                offer(3, 4, 0),
                vec![right(1)?, sealed(b"\0\0\0\0")?],
            ),
        ];
        for (what, words, fds) in cases {
            say(&channel, &words, &fds)?;
            let answer = hear(&channel)?;
            ensure!(answer.first() == Some(&6), "{what}: {answer:?}");
            // Whoever offered may go on with it.
            let mut count = [0; 8];
            ensure!(
                nix::unistd::read(&fds[0], &mut count) == Ok(8),
                "{what}: the right was taken"
            );
        }
        drop(channel);
        for (what, words) in [
            ("too large", offer(4, u64::MAX, 0)),
            ("too many sockets", offer(5, 1, u16::MAX)),
            ("no message", b"\xff\xff".to_vec()),
        ] {
            let channel = fake.registered()?;
            say(&channel, &words, &[])?;
            ensure!(hear(&channel)?.is_empty(), "{what}: it was not hung up on");
        }
        drop(fake);
        lab.node(0).ztunnel()?.until_ready()?;
        real.signal(Signal::SIGTERM)?;
        silent.are_whole("none of them was touched")?;
        // And new ones are served.
        ways.are_open()
    });
}

/// Its keeper had its listeners all the while, so connections come to it, and not to the successor that had taken its door.
#[test]
fn a_worker_that_died_beside_its_successor_is_its_elder_again_and_hands_over() {
    in_lab(own().keeper(true), |lab| {
        let ways = Ways::start(lab)?;
        ways.are_open()?;
        let old = lab.surge_ztunnel(0)?;
        let registered = || old.log().matches("a successor has registered").count();
        // The elder's line may be written a moment after the successor has begun.
        wait::until_true("the successor to be told of", SOON, || registered() == 1)?;
        for died in 1..3 {
            let worker = *old.children()?.first().context("a worker to kill")?;
            kill(Pid::from_raw(worker), Signal::SIGKILL)?;
            wait::until_true("the next worker to be the elder", SOON, || {
                registered() == 1 + died
            })?;
        }
        let mut silent = ways.silent()?;
        old.signal(Signal::SIGTERM)?;
        old.wait(SOON).context("it still has connections")?;
        silent.are_whole("with the successor")?;
        ways.are_open()
    });
}

#[test]
fn a_successor_whose_worker_died_registers_again() {
    in_lab(own().keeper(true), |lab| {
        let ways = Ways::start(lab)?;
        let mut silent = ways.silent()?;
        let old = lab.surge_ztunnel(0)?;
        let registered = || old.log().matches("a successor has registered").count();
        // The elder's line may be written a moment after the successor has begun.
        wait::until_true("the successor to be told of", SOON, || registered() == 1)?;
        let worker = lab.node(0).worker()?.context("a worker to kill")?;
        kill(Pid::from_raw(worker), Signal::SIGKILL)?;
        wait::until_true("the next worker to register", SOON, || registered() == 2)?;
        lab.node(0).ztunnel()?.until_ready()?;
        old.signal(Signal::SIGTERM)?;
        old.wait(SOON).context("it still has connections")?;
        silent.are_whole("with the successor")
    });
}

/// Two upgrades in quick sequence: the elder of the one in the middle still drains what cannot be handed over, and the last one finds
/// nobody who has time for it.
#[test]
fn a_successor_that_is_told_to_stop_before_its_elder_has_gone_hands_over_to_the_next() {
    in_lab(own(), |lab| {
        let ways = Ways::start(lab)?;
        successor(lab)?.kill();
        let fake = Fake::open(&door(lab))?;
        lab.begin_surge(0)?;
        let _elder = fake.registered()?;
        lab.node(0).ztunnel()?.until_ready()?;
        let mut silent = ways.silent()?;
        let middle = lab.surge_ztunnel(0)?;
        middle.signal(Signal::SIGTERM)?;
        middle.wait(SOON).context("it still has connections")?;
        silent.are_whole("with the last one")?;
        ways.are_open()
    });
}

#[test]
fn an_elder_at_whose_door_many_wait_is_not_taken_for_nobody() {
    in_lab(own(), |lab| {
        successor(lab)?.kill();
        let door = door(lab);
        let fake = Fake::open(&door)?;
        // One more than its queue was made for: the kernel takes no other.
        let waiting = (0..5).map(|_| knock(&door)).collect::<Result<Vec<_>>>()?;
        lab.begin_surge(0)?;
        lab.node(0).ztunnel()?.until_ready()?;
        for _ in &waiting {
            fake.next()?;
        }
        fake.registered()?;
        Ok(())
    });
}

#[test]
fn the_folder_and_the_socket_are_roots_alone_and_the_last_one_takes_its_name_along() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    in_lab(own(), |lab| {
        let door = door(lab);
        let path = door.parent().context("a folder")?;
        let folder = fs::metadata(path)?;
        ensure!(folder.uid() == 0 && folder.permissions().mode() & 0o777 == 0o700);
        let old = lab.surge_ztunnel(0)?;
        old.signal(Signal::SIGTERM)?;
        old.wait(SOON)?;
        wait::until_true("the successor's own door", SOON, || knock(&door).is_ok())?;
        let last = successor(lab)?;
        last.signal(Signal::SIGTERM)?;
        last.wait(SOON)?;
        ensure!(fs::read_dir(path)?.next().is_none(), "a name is left");
        Ok(())
    });
}

// ---- the words, as another process would write them

fn door(lab: &Lab) -> PathBuf {
    let node = lab.node(0).name().to_owned();
    lab.dir().join(node).join("ztunnel/handover/handover.sock")
}

fn hello(protocol: u16, layout: u16) -> Vec<u8> {
    let [protocol, layout] = [protocol, layout].map(u16::to_be_bytes);
    // Here since the beginning of all time, and not about to leave.
    let since = [0; 9];
    let names = b"\0\x03own\0\x01x";
    [b"\x01ambit-ho", &protocol[..], &layout, &since, names].concat()
}

fn offer(id: u64, state: u64, sockets: u16) -> Vec<u8> {
    [
        &[3][..],
        &id.to_be_bytes(),
        &state.to_be_bytes(),
        &sockets.to_be_bytes(),
    ]
    .concat()
}

fn right(count: u32) -> Result<OwnedFd> {
    Ok(EventFd::from_value_and_flags(count, EfdFlags::EFD_NONBLOCK)?.into())
}

fn sealed(bytes: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create(c"a-state", MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::write(&fd, bytes)?;
    fcntl(
        &fd,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
    )?;
    Ok(fd)
}

fn packets() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

fn knock(door: &Path) -> Result<OwnedFd> {
    let socket = packets()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(door)?)?;
    Ok(socket)
}

fn say(to: &OwnedFd, words: &[u8], fds: &[OwnedFd]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    let words = [IoSlice::new(words)];
    sendmsg::<()>(to.as_raw_fd(), &words, control, MsgFlags::empty(), None)?;
    Ok(())
}

/// What was said; nothing when the other side has gone.
fn hear(from: &OwnedFd) -> Result<Vec<u8>> {
    readable(from)?;
    let mut bytes = vec![0; 1024];
    match recv(from.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
        Ok(n) => bytes.truncate(n),
        Err(Errno::ECONNRESET) => bytes.clear(),
        Err(error) => return Err(error.into()),
    }
    Ok(bytes)
}

fn readable(fd: &OwnedFd) -> Result<()> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(SOON)?;
    ensure!(poll(&mut fds, patience)? == 1, "nobody says anything");
    Ok(())
}

/// Somebody who has the folder's name and is no ztunnel.
struct Fake(OwnedFd, PathBuf);

impl Fake {
    fn open(door: &Path) -> Result<Self> {
        fs::remove_file(door)?;
        let socket = packets()?;
        bind(socket.as_raw_fd(), &UnixAddr::new(door)?)?;
        listen(&socket, Backlog::new(4)?)?;
        Ok(Self(socket, door.to_owned()))
    }

    /// The next one who knocks.
    fn next(&self) -> Result<OwnedFd> {
        use std::os::fd::FromRawFd;
        readable(&self.0)?;
        let fd = accept(self.0.as_raw_fd())?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
        #[allow(unsafe_code)]
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The next one who registers.
    fn registered(&self) -> Result<OwnedFd> {
        let channel = self.next()?;
        let theirs = hear(&channel)?;
        // As it would answer itself.
        say(&channel, &theirs, &[])?;
        Ok(channel)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.1);
    }
}
