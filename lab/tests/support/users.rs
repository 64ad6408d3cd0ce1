//! Connections that are used all the time while something changes, and whose every byte is checked.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::wait;

use super::{SOON, round_trip};

/// On a machine that does much else: a connection that does not move for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// Times that each is used before it counts as going on.
const MORE: usize = 3;

/// Connections that are used all the time, until [`Users::done`].
pub(crate) struct Users {
    stop: Arc<AtomicBool>,
    all: Vec<User>,
}

struct User {
    what: String,
    turns: Arc<AtomicUsize>,
    thread: JoinHandle<Result<u64>>,
}

impl Users {
    pub(crate) fn new() -> Self {
        Self {
            stop: Arc::default(),
            all: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        what: String,
        stream: TcpStream,
        work: impl FnOnce(TcpStream, &AtomicBool, &AtomicUsize) -> Result<u64> + Send + 'static,
    ) {
        let (stop, turns) = (self.stop.clone(), Arc::new(AtomicUsize::new(0)));
        let (name, counting) = (what.clone(), turns.clone());
        let thread = thread::spawn(move || work(stream, &stop, &counting).with_context(|| name));
        self.all.push(User {
            what,
            turns,
            thread,
        });
    }

    /// Waits until each of them has been used some more times.
    pub(crate) fn go_on(&self) -> Result<()> {
        let wanted: Vec<usize> = self
            .all
            .iter()
            .map(|user| user.turns.load(SeqCst) + MORE)
            .collect();
        let users = || self.all.iter().zip(&wanted);
        let stuck = || users().filter(|(user, wanted)| user.turns.load(SeqCst) < **wanted);
        let waited = wait::until_true("each connection to be used", PATIENCE, || {
            stuck().next().is_none() || self.all.iter().any(|user| user.thread.is_finished())
        });
        waited.with_context(|| {
            format!(
                "stuck: {:?}",
                stuck().map(|(user, _)| &user.what).collect::<Vec<_>>()
            )
        })?;
        let ended = self.all.iter().filter(|user| user.thread.is_finished());
        let ended: Vec<&str> = ended.map(|user| user.what.as_str()).collect();
        ensure!(ended.is_empty(), "ended: {ended:?}");
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Lets go of those whose connection was cut, and waits until each other has been used some more times. To be cut is all
    /// that may happen: other bytes than were sent, or silence, is an error. How many were cut.
    ///
    /// What lies in buffers is still used when the connection is cut already: such a one is found the next time.
    pub(crate) fn survive(&mut self) -> Result<usize> {
        let wanted: Vec<usize> = self
            .all
            .iter()
            .map(|user| user.turns.load(SeqCst) + MORE)
            .collect();
        let stuck = || {
            let users = self.all.iter().zip(&wanted);
            users
                .filter(|(user, wanted)| {
                    user.turns.load(SeqCst) < **wanted && !user.thread.is_finished()
                })
                .map(|(user, _)| user.what.as_str())
                .collect::<Vec<_>>()
        };
        let waited = wait::until_true("each to be used or cut", PATIENCE, || stuck().is_empty());
        waited.with_context(|| format!("stuck: {:?}", stuck()))?;
        let all = std::mem::take(&mut self.all);
        let (ended, going): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|user| user.thread.is_finished());
        self.all = going;
        let cut = ended.len();
        for user in ended {
            ensure!(user.was_cut()?, "it ended in order");
        }
        Ok(cut)
    }

    /// Ends all in order; how many could not be, because they were cut.
    pub(crate) fn done_or_cut(self) -> Result<usize> {
        self.stop.store(true, SeqCst);
        let cut = self.all.into_iter().map(User::was_cut);
        let cut = cut.collect::<Result<Vec<_>>>()?;
        Ok(cut.into_iter().filter(|cut| *cut).count())
    }

    /// Ends all in order and says how many bytes each client sent.
    pub(crate) fn done(self) -> Result<Vec<u64>> {
        self.stop.store(true, SeqCst);
        let joined = self.all.into_iter().map(|user| {
            user.thread
                .join()
                .map_err(|_| anyhow!("a thread panicked"))?
        });
        let outcomes: Vec<Result<u64>> = joined.collect();
        let lost: Vec<String> = outcomes
            .iter()
            .filter_map(|outcome| outcome.as_ref().err().map(|why| format!("{why:#}")))
            .collect();
        ensure!(
            lost.is_empty(),
            "{} connections lost: {lost:#?}",
            lost.len()
        );
        outcomes.into_iter().collect()
    }
}

impl User {
    /// Whether its connection ended before its time; otherwise it was good to the end.
    fn was_cut(self) -> Result<bool> {
        match self.thread.join().map_err(|_| anyhow!("it panicked"))? {
            Ok(_) => Ok(false),
            Err(why) if is_cut(&why) => Ok(true),
            Err(why) => Err(why),
        }
    }
}

/// The connection ended before its time, and whoever used it has heard so.
fn is_cut(why: &anyhow::Error) -> bool {
    let mut io = why.chain().filter_map(|cause| cause.downcast_ref());
    io.any(|io: &std::io::Error| {
        matches!(
            io.kind(),
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                // What the end of a direction is told that was reset before.
                | ErrorKind::NotConnected
                | ErrorKind::UnexpectedEof
        )
    })
}

/// One round trip after the other.
pub(crate) fn chat(mut stream: TcpStream, stop: &AtomicBool, turns: &AtomicUsize) -> Result<u64> {
    stream.set_read_timeout(Some(SOON))?;
    let mut sent = 0;
    while !stop.load(SeqCst) {
        let text = format!("message after {sent} bytes");
        round_trip(&mut stream, &text)?;
        sent += text.len() as u64;
        turns.fetch_add(1, SeqCst);
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "a surplus");
    Ok(sent)
}

/// As fast as it goes in both directions; each byte is known by its place.
pub(crate) fn bulk(stream: TcpStream, stop: &AtomicBool, turns: &AtomicUsize) -> Result<u64> {
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    let at = |place: u64| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !stop.load(SeqCst) {
                let piece: Vec<u8> = (sent..sent + 8192).map(at).collect();
                (&stream)
                    .write_all(&piece)
                    .with_context(|| format!("sending after {sent}"))?;
                sent += 8192;
            }
            stream.shutdown(Shutdown::Write)?;
            Ok(sent)
        });
        let (mut received, mut piece) = (0, [0; 16 << 10]);
        let outcome = loop {
            match (&stream).read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    let wrong = (received..)
                        .zip(&piece[..n])
                        .find(|(place, byte)| at(*place) != **byte);
                    if let Some((place, _)) = wrong {
                        break Err(anyhow!("byte {place} is another"));
                    }
                    received += n as u64;
                    turns.fetch_add(1, SeqCst);
                }
                Err(error) => {
                    break Err(anyhow!(error).context(format!("receiving after {received}")));
                }
            }
        };
        if outcome.is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let sent = sending.join().unwrap();
        outcome?;
        let sent = sent?;
        if received < sent {
            let early = std::io::Error::from(ErrorKind::UnexpectedEof);
            return Err(anyhow!(early).context(format!("{received} of {sent} bytes")));
        }
        ensure!(received == sent, "{received} bytes of {sent}");
        Ok(sent)
    })
}
