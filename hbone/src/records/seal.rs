//! Records leave.
//!
//! 1. [`Sealer::begin`] leaves room for the head at the end of the output
//! 2. the caller appends plaintext, at most [`MOST`] bytes
//! 3. [`Sealer::finish`] seals it where it stands, and changes the key when its time has come

use std::fmt;

use super::{
    CLOSE_NOTIFY, ContentType, HEAD, MOST, RecordError, TAIL, USER_CANCELED, head, message,
    secret::{Key, Secret, Suite},
    state::{Direction, Parts, State, StateError},
};

/// Seals the records of one direction. It cannot be copied: two of them would use the same
/// numbers under the same key, which gives away what was sealed.
pub struct Sealer {
    secret: Secret,
    key: Key,
    /// The number of the next record.
    sequence: u64,
    /// Records under one key.
    records: u64,
}

impl Sealer {
    /// Goes on with the record `sequence` under `secret`.
    ///
    /// # Errors
    /// [`RecordError::Crypto`].
    pub fn new(secret: Secret, sequence: u64) -> Result<Self, RecordError> {
        Ok(Self {
            key: Key::of(&secret)?,
            secret,
            sequence,
            records: Suite::RECORDS,
        })
    }

    /// Changes the key after so many records, if that is sooner than [`Suite::RECORDS`].
    #[must_use]
    pub fn renewed_after(mut self, records: u64) -> Self {
        self.records = records.clamp(1, Suite::RECORDS);
        self
    }

    /// Leaves room for a record's head and says where the record starts.
    #[must_use]
    pub fn begin(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD]);
        start
    }

    /// Makes a record of everything behind the head at `start`: at most [`MOST`] bytes. The output
    /// grows by [`TAIL`], and once in [`Suite::RECORDS`] records by a key update behind the record.
    ///
    /// # Errors
    /// [`RecordError::Surplus`], [`RecordError::Exhausted`], [`RecordError::Crypto`]. The output then ends at `start`, so that no
    /// plaintext can leave.
    pub fn finish(
        &mut self,
        out: &mut Vec<u8>,
        start: usize,
        kind: ContentType,
    ) -> Result<(), RecordError> {
        self.seal(out, start, kind)?;
        if self.sequence >= self.records {
            // A record that cannot be followed by its key update does not go out either.
            self.update(out, false)
                .inspect_err(|_| out.truncate(start))?;
        }
        Ok(())
    }

    /// Says that the key changes, under the old one, and goes on with the next: the answer to
    /// [`super::Opened::Update`]. With `request_peer` the peer is asked to do the same.
    ///
    /// # Errors
    /// [`RecordError::Crypto`]; nothing has changed then.
    pub fn update(&mut self, out: &mut Vec<u8>, request_peer: bool) -> Result<(), RecordError> {
        let next = self.secret.next()?;
        let key = Key::of(&next)?;
        let start = self.begin(out);
        out.extend_from_slice(&message::key_update(request_peer));
        self.seal(out, start, ContentType::Handshake)?;
        (self.secret, self.key, self.sequence) = (next, key, 0);
        Ok(())
    }

    /// Says why the connection ends: [`RecordError::alert`]. Nothing may be sealed after it.
    ///
    /// # Errors
    /// [`RecordError::Crypto`].
    pub fn alert(&mut self, out: &mut Vec<u8>, description: u8) -> Result<(), RecordError> {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = match description {
            CLOSE_NOTIFY | USER_CANCELED => WARNING,
            _ => FATAL,
        };
        let start = self.begin(out);
        out.extend_from_slice(&[level, description]);
        self.seal(out, start, ContentType::Alert)
    }

    /// Says that nothing more will be sent (`close_notify`). Nothing may be sealed after it.
    ///
    /// # Errors
    /// [`RecordError::Crypto`].
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        self.alert(out, CLOSE_NOTIFY)
    }

    /// Gives up this direction, so that another may go on with it.
    #[must_use]
    pub fn into_state(self) -> State {
        State::of(&Parts {
            direction: Direction::Out,
            suite: self.secret.suite(),
            idle: 0,
            sequence: self.sequence,
            secret: self.secret.bytes(),
            message: &[],
        })
    }

    /// Goes on where another stopped.
    ///
    /// # Errors
    /// When the bytes are not what [`Sealer::into_state`] gave.
    pub fn from_state(bytes: &[u8]) -> Result<Self, StateError> {
        let parts = Parts::read(bytes)?;
        if parts.direction != Direction::Out {
            return Err(StateError::Direction);
        }
        let secret = Secret::new(parts.suite, parts.secret).map_err(StateError::Record)?;
        Self::new(secret, parts.sequence).map_err(StateError::Record)
    }

    fn seal(
        &mut self,
        out: &mut Vec<u8>,
        start: usize,
        kind: ContentType,
    ) -> Result<(), RecordError> {
        let sealed = self.try_seal(out, start, kind);
        if sealed.is_err() {
            out.truncate(start);
        }
        sealed
    }

    fn try_seal(
        &mut self,
        out: &mut Vec<u8>,
        start: usize,
        kind: ContentType,
    ) -> Result<(), RecordError> {
        let length = out.len().saturating_sub(start + HEAD);
        if length > MOST || out.len() < start + HEAD {
            return Err(RecordError::Surplus(length));
        }
        let following = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        let head = head(length + TAIL);
        out[start..start + HEAD].copy_from_slice(&head);
        out.push(kind as u8);
        let tag = self
            .key
            .seal(self.sequence, head, &mut out[start + HEAD..])?;
        out.extend_from_slice(tag.as_ref());
        self.sequence = following;
        Ok(())
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("secret", &self.secret)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}
