//! What is on a wire: tcpdump on an interface, and a search through the bytes it saw.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{
    netns::Netns,
    process::Process,
    wait::{self, Probe},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running capture of one interface.
#[derive(Debug)]
pub struct Capture {
    netns: Netns,
    towards: SocketAddr,
    file: PathBuf,
    tcpdump: Process,
}

impl Capture {
    /// Starts to record all that passes `interface` of `netns`; `towards` is any address beyond it.
    pub(crate) fn start(
        netns: &Netns,
        interface: &str,
        towards: SocketAddr,
        file: PathBuf,
    ) -> Result<Self> {
        let mut command = crate::component::bare(Path::new("tcpdump"));
        // Whole packets, written at once, without giving up root: the directory is root's.
        command
            .args([
                "-i",
                interface,
                "-s",
                "0",
                "-U",
                "--immediate-mode",
                "-B",
                "16384",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        netns.entry()?.prepare(&mut command);
        let tcpdump = Process::start(command, &file.with_extension("log"))?;
        tcpdump.until_ready("tcpdump to listen", PATIENCE, || {
            let log = tcpdump.log();
            Ok(if log.contains("listening on") {
                Probe::Ready(())
            } else {
                Probe::NotYet(log)
            })
        })?;
        Ok(Self {
            netns: netns.clone(),
            towards,
            file,
            tcpdump,
        })
    }

    /// Ends the capture once everything sent before this call is in the file.
    pub fn stop(self) -> Result<Captured> {
        let sentinel = format!("end of the capture {}", self.file.display());
        wait::until("the capture's last packet", PATIENCE, || {
            // Packets reach the file in order, so when this one is there all earlier ones are.
            self.netns.within(|| {
                UdpSocket::bind(("0.0.0.0", 0))?.send_to(sentinel.as_bytes(), self.towards)
            })??;
            let seen = contains(&fs::read(&self.file)?, sentinel.as_bytes());
            Ok(if seen {
                Probe::Ready(())
            } else {
                Probe::NotYet(self.tcpdump.tail())
            })
        })?;
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(PATIENCE)?;
        let bytes =
            fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))?;
        Ok(Captured {
            file: self.file.clone(),
            bytes,
        })
    }
}

/// A finished capture.
#[derive(Debug)]
pub struct Captured {
    /// The pcap file.
    pub file: PathBuf,
    bytes: Vec<u8>,
}

impl Captured {
    /// Whether `marker` can be read anywhere in the packets.
    pub fn shows(&self, marker: &str) -> bool {
        contains(&self.bytes, marker.as_bytes())
    }

    /// Size of the file, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// How many packets match a tcpdump filter.
    pub fn count(&self, filter: &str) -> Result<usize> {
        let lines = crate::run::run(
            Command::new("tcpdump")
                .args(["-nn", "-r"])
                .arg(&self.file)
                .arg(filter),
        )?;
        Ok(lines.lines().count())
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}
