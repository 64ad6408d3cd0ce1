//! Connections that are used all the time while something changes, and whose every byte is checked.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::wait;

use super::{SOON, round_trip};

/// Connections that are used all the time, until [`Users::done`].
pub(crate) struct Users {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicUsize>,
    all: Vec<JoinHandle<Result<u64>>>,
}

impl Users {
    pub(crate) fn new() -> Self {
        Self {
            stop: Arc::default(),
            turns: Arc::default(),
            all: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        what: String,
        stream: TcpStream,
        work: impl FnOnce(TcpStream, &AtomicBool, &AtomicUsize) -> Result<u64> + Send + 'static,
    ) {
        let (stop, turns) = (self.stop.clone(), self.turns.clone());
        self.all.push(thread::spawn(move || {
            work(stream, &stop, &turns).with_context(|| what)
        }));
    }

    /// Waits until all have been at work some more times.
    pub(crate) fn go_on(&self) -> Result<()> {
        let before = self.turns.load(SeqCst);
        let enough = before + 20 * self.all.len();
        wait::until_true("the connections to be used", SOON, || {
            self.turns.load(SeqCst) > enough || self.all.iter().any(JoinHandle::is_finished)
        })?;
        let failed = self.all.iter().filter(|user| user.is_finished()).count();
        ensure!(
            failed == 0 || self.stop.load(SeqCst),
            "{failed} connections ended"
        );
        Ok(())
    }

    /// Ends all in order and says how many bytes each client sent.
    pub(crate) fn done(self) -> Result<Vec<u64>> {
        self.stop.store(true, SeqCst);
        let joined = self
            .all
            .into_iter()
            .map(|user| user.join().map_err(|_| anyhow!("a thread panicked"))?);
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
        ensure!(received == sent, "{received} of {sent} bytes");
        Ok(sent)
    })
}
