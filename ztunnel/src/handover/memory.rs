//! A connection's state on its way: in memory that has no name and that only the two processes have.
//!
//! Whoever writes it fixes its size, so that what was measured is what is read. Both overwrite it as soon as they have no use
//! for it: it holds keys. What is read is copied out first and believed from the copy, which nobody else can change.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::uio::{pread, pwrite};

/// Memory with a state in it; overwritten when dropped.
#[derive(Debug)]
pub(super) struct Memory {
    fd: OwnedFd,
    size: u64,
}

/// So that it can neither be cut under a reader nor grow.
const SIZE: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

impl Memory {
    /// An account, and behind it a connection's frozen part.
    pub(super) fn of(account: &[u8], frozen: &[u8]) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut memory = Self {
            fd: memfd_create(c"ambit-handover", flags)?,
            size: 0,
        };
        let length = u32::try_from(account.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        for part in [&length.to_be_bytes(), account, frozen] {
            memory.write(part)?;
        }
        fcntl(&memory.fd, FcntlArg::F_ADD_SEALS(SIZE))?;
        Ok(memory)
    }

    /// What another process wrote, which is `size` bytes.
    pub(super) fn received(fd: OwnedFd, size: u64) -> io::Result<Self> {
        let seals = SealFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
        let measured = u64::try_from(fstat(&fd)?.st_size).unwrap_or(u64::MAX);
        match seals.contains(SIZE) && measured == size {
            true => Ok(Self { fd, size }),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Copies out the account and the frozen part.
    pub(super) fn read(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let length = self.part(0, 4)?;
        let length = u32::from_be_bytes(length.try_into().map_err(|_| io::ErrorKind::InvalidData)?);
        let frozen = 4 + u64::from(length);
        let rest = self.size.checked_sub(frozen);
        let rest = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((self.part(4, length.into())?, self.part(frozen, rest)?))
    }

    /// Never grown, so that no copy is left behind.
    fn part(&self, at: u64, length: u64) -> io::Result<Vec<u8>> {
        if at + length > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut part = vec![0; length as usize];
        let mut have = 0;
        while have < part.len() {
            match pread(&self.fd, &mut part[have..], (at + have as u64) as i64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => have += n,
            }
        }
        Ok(part)
    }

    fn write(&mut self, mut part: &[u8]) -> io::Result<()> {
        while !part.is_empty() {
            let n = pwrite(&self.fd, part, self.size as i64)?;
            self.size += n as u64;
            part = &part[n..];
        }
        Ok(())
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut at = 0;
        while at < self.size {
            let n = (self.size - at).min(ZEROS.len() as u64) as usize;
            match pwrite(&self.fd, &ZEROS[..n], at as i64) {
                Ok(n @ 1..) => at += n as u64,
                // Nothing can be done, and it goes with the last who has it.
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(memory: &Memory) -> OwnedFd {
        memory.as_fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn what_was_written_is_read_and_then_it_is_gone() {
        let frozen: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let memory = Memory::of(b"account", &frozen).unwrap();
        let theirs = Memory::received(other(&memory), memory.size()).unwrap();
        assert_eq!(theirs.read().unwrap(), (b"account".to_vec(), frozen));
        drop(theirs);
        let (account, frozen) = (
            memory.part(4, 7).unwrap(),
            memory.part(11, 200_000).unwrap(),
        );
        assert!(account.iter().chain(&frozen).all(|byte| *byte == 0));
    }

    #[test]
    fn another_size_or_one_that_can_change_is_refused() {
        let memory = Memory::of(b"a", b"b").unwrap();
        assert!(Memory::received(other(&memory), memory.size() + 1).is_err());
        nix::unistd::ftruncate(&memory.fd, 0).unwrap_err();
        let loose = memfd_create(c"loose", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(Memory::received(loose, 0).is_err());
        assert!(Memory::received(tempfile::tempfile().unwrap().into(), 0).is_err());
    }

    #[test]
    fn an_account_that_claims_more_than_there_is_is_refused() {
        let memory = Memory::of(b"a", b"b").unwrap();
        pwrite(&memory.fd, &u32::MAX.to_be_bytes(), 0).unwrap();
        assert!(memory.read().is_err());
    }
}
