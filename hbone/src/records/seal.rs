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
    /// The peer asked for a key update that has not been sent.
    owed: bool,
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
            owed: false,
        })
    }

    /// Changes the key after so many records, if that is sooner than [`Suite::RECORDS`].
    #[must_use]
    pub fn renewed_after(mut self, records: u64) -> Self {
        self.records = records.clamp(1, Suite::RECORDS);
        self
    }

    /// Leaves room for a record's head and says where the record starts. An answer that is owed
    /// ([`Sealer::answer`]) goes before it, and so does the end of a key that has nothing left ([`Sealer::before_update`]).
    #[must_use]
    pub fn begin(&mut self, out: &mut Vec<u8>) -> usize {
        if self.before_update() == 0 {
            // If it fails, `finish` does: no record goes out under the old key.
            let _ = self.update(out, false);
        }
        room(out)
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
        if self.owed {
            out.truncate(start);
            return Err(RecordError::Crypto);
        }
        self.seal(out, start, kind)?;
        if self.sequence >= self.records {
            // A record that cannot be followed by its key update does not go out either.
            self.update(out, false)
                .inspect_err(|_| out.truncate(start))?;
        }
        Ok(())
    }

    /// How many records may be sealed before a key update has to be: [`Sealer::update`]. None, when one
    /// is owed.
    pub fn before_update(&self) -> u64 {
        match self.owed {
            true => 0,
            false => self.records.saturating_sub(self.sequence),
        }
    }

    /// Seals data where it stands: between [`HEAD`] bytes of room and [`TAIL`] bytes of room. It writes no
    /// key update, and fails when one has to be ([`Sealer::before_update`]).
    ///
    /// # Errors
    /// [`RecordError::Surplus`], [`RecordError::Crypto`]. Nothing of the record may leave then.
    pub fn data_in_place(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        let length = record.len().checked_sub(HEAD + TAIL);
        let length = length.filter(|n| *n <= MOST);
        let length = length.ok_or(RecordError::Surplus(record.len()))?;
        if self.before_update() == 0 {
            return Err(RecordError::Crypto);
        }
        let head = head(length + TAIL);
        record[..HEAD].copy_from_slice(&head);
        let (text, tag) = record[HEAD..].split_at_mut(length + 1);
        text[length] = ContentType::Data as u8;
        let sealed = self.key.seal(self.sequence, head, text)?;
        tag.copy_from_slice(sealed.as_ref());
        self.sequence += 1; // at most `records`
        Ok(())
    }

    /// Notes that the peer asked for a key update ([`super::Opened::Update`]): it goes before the next
    /// record, and once however often it was asked for (RFC 8446, 4.6.3). A peer that asks and does
    /// not read makes us hold nothing.
    pub fn answer(&mut self) {
        self.owed = true;
    }

    /// Says that the key changes, under the old one, and goes on with the next. With `request_peer`
    /// the peer is asked to do the same.
    ///
    /// # Errors
    /// [`RecordError::Crypto`]; nothing has changed then.
    pub fn update(&mut self, out: &mut Vec<u8>, request_peer: bool) -> Result<(), RecordError> {
        let next = self.secret.next()?;
        let key = Key::of(&next)?;
        let start = room(out);
        out.extend_from_slice(&message::key_update(request_peer));
        self.seal(out, start, ContentType::Handshake)?;
        (self.secret, self.key, self.sequence) = (next, key, 0);
        self.owed = false;
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
        let start = room(out);
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
        self.state()
    }

    /// What [`Sealer::into_state`] gives, of one that nobody uses any more, or again only if nobody else
    /// goes on with what is written here.
    pub(crate) fn state(&self) -> State {
        State::of(&Parts {
            direction: Direction::Out,
            suite: self.secret.suite(),
            note: u8::from(self.owed),
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
        let mut sealer = Self::new(secret, parts.sequence).map_err(StateError::Record)?;
        sealer.owed = match parts.note {
            0 => false,
            1 => true,
            _ => return Err(StateError::Unknown),
        };
        Ok(sealer)
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

/// Room for a record's head at the end of the output, and where it is.
fn room(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    start
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("secret", &self.secret)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(records: u64) -> Sealer {
        let secret = Secret::new(Suite::Aes128Gcm, &[7; 32]).unwrap();
        Sealer::new(secret, 0).unwrap().renewed_after(records)
    }

    #[test]
    fn a_record_sealed_where_it_stands_is_the_same_as_one_that_was_put_together() {
        let (mut one, mut other) = (sealer(Suite::RECORDS), sealer(Suite::RECORDS));
        for length in [0, 1, 64, MOST] {
            let text = vec![length as u8; length];
            let mut out = Vec::new();
            let start = one.begin(&mut out);
            out.extend_from_slice(&text);
            one.finish(&mut out, start, ContentType::Data).unwrap();
            let mut record = vec![0xff; HEAD + length + TAIL];
            record[HEAD..HEAD + length].copy_from_slice(&text);
            other.data_in_place(&mut record).unwrap();
            assert!(record == out, "{length} bytes");
        }
    }

    #[test]
    fn no_record_is_sealed_in_place_where_a_key_update_has_to_be() {
        let mut sealer = sealer(2);
        let mut record = [0; HEAD + 3 + TAIL];
        for left in [2, 1] {
            assert_eq!(sealer.before_update(), left);
            sealer.data_in_place(&mut record).unwrap();
        }
        assert_eq!(sealer.before_update(), 0);
        sealer.data_in_place(&mut record).unwrap_err();
        sealer.update(&mut Vec::new(), false).unwrap();
        assert_eq!(sealer.before_update(), 2, "another key");
        for _ in 0..2 {
            sealer.data_in_place(&mut record).unwrap();
        }
        let mut out = Vec::new();
        let start = sealer.begin(&mut out);
        assert!(start > 0, "the update goes before any other record");
        sealer.finish(&mut out, start, ContentType::Data).unwrap();
        assert_eq!(sealer.before_update(), 1);
        sealer.answer();
        assert_eq!(sealer.before_update(), 0, "an update is owed");
        sealer.data_in_place(&mut record).unwrap_err();
    }

    #[test]
    fn what_is_no_record_is_not_sealed() {
        let mut sealer = sealer(2);
        for length in [0, HEAD + TAIL - 1, HEAD + MOST + 1 + TAIL] {
            let mut record = vec![0; length];
            let refused = sealer.data_in_place(&mut record);
            assert!(matches!(refused, Err(RecordError::Surplus(_))), "{length}");
        }
    }
}
