//! A pair of sockets that is frozen: what its copy holds, as bytes, and gone on with from them.

use std::{io, os::fd::AsFd};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{Direction, TcpPair};
use crate::{
    copy::{Counters, HalfEnd},
    handover::{
        NotFrozen, ThawError,
        wire::{Kind, Reader, Writer, Written, ensure},
    },
};

/// A pair as bytes, and descriptors of its own: the first socket's and the second's.
///
/// ```text
///  moved 8 + 8 | there, back: (read and not written, behind its length | refused 1 | source dead 1 | how it ended)
/// ```
pub(super) fn written(
    sockets: [&TcpStream; 2],
    directions: [&Direction; 2],
    counters: &Counters,
) -> Result<Written, NotFrozen> {
    let duplicate = |socket: &TcpStream| socket.as_fd().try_clone_to_owned();
    let failed = |error: io::Error| NotFrozen::Descriptors(error.kind());
    let descriptors = sockets
        .into_iter()
        .map(duplicate)
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let rests: usize = directions.iter().map(|d| d.rest.len()).sum();
    let mut out = Writer::new(Kind::Pair, 64 + rests);
    let (sent, received) = counters.moved();
    out.u64(sent);
    out.u64(received);
    for direction in directions {
        // What a direction that has ended had left is for nobody.
        let rest = direction.end.is_none().then_some(&direction.rest[..]);
        out.string(rest.unwrap_or_default());
        out.u8(direction.refused.into());
        out.u8(direction.source_dead.into());
        out.half_end(direction.end.as_ref());
    }
    Ok(out.done(descriptors, Vec::new()))
}

/// A pair that somebody has written down.
pub(crate) struct Thawing {
    directions: [Direction; 2],
    moved: (u64, u64),
}

impl Thawing {
    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, ThawError> {
        let moved = (from.u64()?, from.u64()?);
        let directions = [Direction::read(from)?, Direction::read(from)?];
        let over = directions.iter().all(|direction| direction.end.is_some());
        ensure(!over, "both directions have ended")?;
        Ok(Self { directions, moved })
    }

    pub(crate) fn thaw(self, a: TcpStream, b: TcpStream) -> TcpPair {
        TcpPair::going_on(a, b, self.directions, self.moved)
    }
}

impl Direction {
    fn read(from: &mut Reader<'_>) -> Result<Self, ThawError> {
        let mut direction = Self::default();
        direction.rest = Bytes::copy_from_slice(from.string()?);
        direction.refused = from.bool()?;
        direction.source_dead = from.bool()?;
        direction.end = from.half_end()?;
        let possible = match &direction.end {
            None => !direction.refused,
            Some(HalfEnd::Finished) => !direction.refused && direction.rest.is_empty(),
            // Any other failure would have ended both directions.
            Some(HalfEnd::Socket(_)) => direction.refused && direction.rest.is_empty(),
            Some(_) => false,
        };
        ensure(possible, "a direction that ended in another way")?;
        Ok(direction)
    }
}
