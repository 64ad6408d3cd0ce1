//! A dialled connection's place in a pool: for whom tunnels may be opened on it, and until when.
//!
//! It goes along with the connection, so that the pool of whoever goes on with it has it under the same key.
//!
//! ```text
//!  texts 4 + n x text: peer's address | source's address | source | each one expected
//!  | until 8: seconds of the wall clock
//! ```

use std::{
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    ThawError,
    wire::{Reader, Writer, ensure},
};
use crate::{identity::Identity, pool::Destination};

/// See the file's head.
#[derive(Debug, Clone)]
pub(crate) struct Berth {
    pub(crate) destination: Arc<Destination>,
    /// The end of the certificate that the connection was made with.
    pub(crate) until: SystemTime,
}

impl Berth {
    /// What is written of it, but for its end.
    pub(crate) fn texts(&self) -> Vec<String> {
        let Destination {
            address,
            source_ip,
            source,
            expected,
        } = &*self.destination;
        let first = [
            address.to_string(),
            source_ip.to_string(),
            source.to_string(),
        ];
        let expected = expected.iter().map(Identity::to_string);
        first.into_iter().chain(expected).collect()
    }

    /// Bytes that [`Berth::write`] writes.
    pub(crate) fn size(texts: &[String]) -> usize {
        4 + texts.iter().map(|text| 4 + text.len()).sum::<usize>() + 8
    }

    pub(crate) fn write(&self, out: &mut Writer, texts: &[String]) {
        out.count(texts.len());
        texts.iter().for_each(|text| out.text(text));
        let until = self.until.duration_since(UNIX_EPOCH);
        out.u64(until.unwrap_or_default().as_secs());
    }

    /// Of a connection whose other end has proven to be `peer`.
    pub(crate) fn read(from: &mut Reader<'_>, peer: &Identity) -> Result<Self, ThawError> {
        let expecting = from.u32()?.checked_sub(3);
        let expecting = expecting.ok_or(ThawError::Impossible("a connection to nowhere"))?;
        let (address, source_ip) = (parsed(from)?, parsed(from)?);
        let source = parsed(from)?;
        let mut expected: Vec<Identity> = Vec::new();
        for _ in 0..expecting {
            expected.push(parsed(from)?);
        }
        ensure(expected.is_sorted(), "a key that no pool has")?;
        ensure(expected.contains(peer), "a peer that was not expected")?;
        let until = UNIX_EPOCH.checked_add(Duration::from_secs(from.u64()?));
        Ok(Self {
            destination: Arc::new(Destination {
                address,
                source_ip,
                source,
                expected,
            }),
            until: until.ok_or(ThawError::Impossible("a certificate without an end"))?,
        })
    }
}

fn parsed<T: FromStr>(from: &mut Reader<'_>) -> Result<T, ThawError> {
    let read = from.text()?.parse();
    read.map_err(|_| ThawError::Impossible("a destination that is none"))
}
