//! One direction as bytes, so that another process can go on with it.
//!
//! ```text
//!  version 1 | direction 1 | suite 1 | note 1 | sequence 8 | secret 32 or 48 | beginning of a message
//! ```
//!
//! The bytes hold the traffic secret: whoever has them can read and forge this direction.

use std::fmt;

use super::{
    RecordError,
    secret::{Suite, wipe},
};

/// Of the layout; a process that finds another hands nothing over.
const VERSION: u8 = 1;
/// Bytes before the secret.
const FIXED: usize = 12;

/// Why a direction cannot be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Another version wrote it.
    #[error("the state is of version {0}, ours is {VERSION}")]
    Version(u8),
    /// Bytes are missing, or there are too many.
    #[error("the state is cut off or has a surplus")]
    Length,
    /// A direction or a suite that does not exist.
    #[error("the state is none of a record layer")]
    Unknown,
    /// It is of the other direction.
    #[error("the state is of the other direction")]
    Direction,
    /// What it holds makes no sense.
    #[error(transparent)]
    Record(RecordError),
}

/// One direction as bytes, overwritten when dropped.
pub struct State(Vec<u8>);

impl State {
    pub(super) fn of(parts: &Parts<'_>) -> Self {
        // Never grown, so that no copy is left behind.
        let mut bytes = Vec::with_capacity(FIXED + parts.secret.len() + parts.message.len());
        let (direction, suite) = (parts.direction as u8, suite_number(parts.suite));
        bytes.extend_from_slice(&[VERSION, direction, suite, parts.note]);
        bytes.extend_from_slice(&parts.sequence.to_be_bytes());
        bytes.extend_from_slice(parts.secret);
        bytes.extend_from_slice(parts.message);
        Self(bytes)
    }
}

impl AsRef<[u8]> for State {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for State {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({} bytes)", self.0.len())
    }
}

/// Which direction of which side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Out = 1,
    InOfClient = 2,
    InOfServer = 3,
}

/// What the bytes say.
pub(super) struct Parts<'a> {
    pub(super) direction: Direction,
    pub(super) suite: Suite,
    /// Out: an answer is owed. In: records without data in a row, and 128 when another key was asked for.
    pub(super) note: u8,
    pub(super) sequence: u64,
    pub(super) secret: &'a [u8],
    pub(super) message: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, StateError> {
        if let Some(&version) = bytes.first()
            && version != VERSION
        {
            return Err(StateError::Version(version));
        }
        let Some((&[_, direction, suite, note], rest)) = bytes.split_first_chunk() else {
            return Err(StateError::Length);
        };
        let (&sequence, rest) = rest.split_first_chunk().ok_or(StateError::Length)?;
        let direction = match direction {
            1 => Direction::Out,
            2 => Direction::InOfClient,
            3 => Direction::InOfServer,
            _ => return Err(StateError::Unknown),
        };
        let suite = match suite {
            1 => Suite::Aes128Gcm,
            2 => Suite::Aes256Gcm,
            _ => return Err(StateError::Unknown),
        };
        let secret = rest.split_at_checked(suite.secret_len());
        let (secret, message) = secret.ok_or(StateError::Length)?;
        if direction == Direction::Out && !message.is_empty() {
            return Err(StateError::Length);
        }
        Ok(Self {
            direction,
            suite,
            note,
            sequence: u64::from_be_bytes(sequence),
            secret,
            message,
        })
    }
}

fn suite_number(suite: Suite) -> u8 {
    match suite {
        Suite::Aes128Gcm => 1,
        Suite::Aes256Gcm => 2,
    }
}
