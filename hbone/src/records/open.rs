//! Records arrive.
//!
//! 1. the head: type, version, length, before anything is waited for
//! 2. the tag, and with it the record's number: nothing altered, repeated, left out or reordered
//! 3. the type behind the padding
//! 4. data is handed on where it stands; everything else is dealt with here (`message`)
//!
//! After the first error or the peer's `close_notify` nothing more is opened.

use std::{fmt, ops::Range};

use super::{
    CLOSE_NOTIFY, ContentType, HEAD, MOST, MOST_SEALED, RecordError, Side, TAIL, USER_CANCELED,
    VERSION, head,
    message::Messages,
    secret::{Key, Secret, Suite},
    state::{Direction, Parts, State, StateError},
};

/// Records without data that a peer may send in a row. Tickets come two or four at a time, key
/// updates alone; each costs us as much as a record of data.
const IDLE: u8 = 32;
/// In a state, beside how many they were: the peer was asked for another key.
const ASKED: u8 = 0x80;

/// What stood at the front of the bytes. `used` bytes of them are done with.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// No whole record yet: it takes at least `wanted` bytes.
    Incomplete {
        /// Bytes from the front of the input, not from its end.
        wanted: usize,
    },
    /// Data, never empty.
    Data {
        /// Length of the record.
        used: usize,
        /// Where in the input the data stands now.
        plain: Range<usize>,
    },
    /// The peer has changed its key; ours for this direction has followed.
    Update {
        /// Length of the record.
        used: usize,
        /// The peer asks for the same from us: [`super::Sealer::answer`].
        answer: bool,
    },
    /// Tickets for later handshakes. Those packed into one record with a key update are lost.
    Ticket {
        /// Length of the record.
        used: usize,
        /// The content of each NewSessionTicket, without its head.
        tickets: Vec<Vec<u8>>,
    },
    /// Nothing for anybody: an empty record, or a part of a message.
    Nothing {
        /// Length of the record.
        used: usize,
    },
    /// The peer will send nothing more (`close_notify`). What stands behind it is to be ignored.
    Closed,
}

/// Is given the content of each ticket, without its head.
pub type TicketReader = Box<dyn FnMut(&[u8]) + Send>;

/// Opens the records of one direction.
pub struct Opener {
    side: Side,
    secret: Secret,
    key: Key,
    /// The number of the next record.
    sequence: u64,
    /// Records under one key before the peer is asked for another.
    records: u64,
    /// The peer was asked for another key.
    asked: bool,
    /// Records without data since the last with.
    idle: u8,
    messages: Messages,
    /// Until data comes: servers send their tickets before.
    tickets: Option<TicketReader>,
    /// How it ended, if it has.
    end: Option<Result<(), RecordError>>,
}

impl Opener {
    /// Goes on with the record `sequence` under `secret`; `side` is ours.
    ///
    /// # Errors
    /// [`RecordError::Crypto`].
    pub fn new(side: Side, secret: Secret, sequence: u64) -> Result<Self, RecordError> {
        Ok(Self {
            side,
            key: Key::of(&secret)?,
            secret,
            sequence,
            records: Suite::RECORDS,
            asked: false,
            idle: 0,
            messages: Messages::default(),
            tickets: None,
            end: None,
        })
    }

    /// Shows `reader` the tickets that come before the first data, beside giving them in [`Opened::Ticket`].
    /// It is not part of the state that can be given up.
    #[must_use]
    pub fn with_tickets(mut self, reader: TicketReader) -> Self {
        self.tickets = Some(reader);
        self
    }

    /// Is due for another key after so many records, if that is sooner than [`Suite::RECORDS`].
    #[must_use]
    pub fn renewed_after(mut self, records: u64) -> Self {
        self.records = records.clamp(1, Suite::RECORDS);
        self
    }

    /// Opens the record at the front of the bytes in place, if it is all there.
    ///
    /// # Errors
    /// What the peer did wrong; the same again whenever asked again. Tell it
    /// [`RecordError::alert`] and hang up.
    pub fn next(&mut self, input: &mut [u8]) -> Result<Opened, RecordError> {
        if let Some(end) = self.end {
            return end.map(|()| Opened::Closed);
        }
        let opened = self.open(input);
        match &opened {
            Err(error) => self.end = Some(Err(*error)),
            Ok(Opened::Closed) => self.end = Some(Ok(())),
            Ok(_) => {}
        }
        opened
    }

    /// True once for a key with which the peer has sealed as much as it should: ask it for another
    /// with [`super::Sealer::update`]`(out, true)`. Not every TLS library changes keys by itself.
    pub fn due(&mut self) -> bool {
        let due = !self.asked && self.sequence >= self.records;
        self.asked |= due;
        due
    }

    /// Gives up this direction, so that another may go on with it. None when it has ended.
    #[must_use]
    pub fn into_state(self) -> Option<State> {
        self.state()
    }

    /// Whose it is.
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// What [`Opener::into_state`] gives, of one that nobody uses meanwhile.
    pub(crate) fn state(&self) -> Option<State> {
        if self.end.is_some() {
            return None;
        }
        Some(State::of(&Parts {
            direction: match self.side {
                Side::Client => Direction::InOfClient,
                Side::Server => Direction::InOfServer,
            },
            suite: self.secret.suite(),
            note: self.idle | if self.asked { ASKED } else { 0 },
            sequence: self.sequence,
            secret: self.secret.bytes(),
            message: self.messages.partial(),
        }))
    }

    /// Goes on where another stopped.
    ///
    /// # Errors
    /// When the bytes are not what [`Opener::into_state`] gave.
    pub fn from_state(bytes: &[u8]) -> Result<Self, StateError> {
        let parts = Parts::read(bytes)?;
        let side = match parts.direction {
            Direction::InOfClient => Side::Client,
            Direction::InOfServer => Side::Server,
            Direction::Out => return Err(StateError::Direction),
        };
        let (idle, asked) = (parts.note & !ASKED, parts.note & ASKED != 0);
        // Nobody asks for another key before one was used.
        if idle > IDLE || (asked && parts.sequence == 0) {
            return Err(StateError::Unknown);
        }
        let secret = Secret::new(parts.suite, parts.secret).map_err(StateError::Record)?;
        Ok(Self {
            idle,
            asked,
            messages: Messages::resume(side, parts.message).map_err(StateError::Record)?,
            ..Self::new(side, secret, parts.sequence).map_err(StateError::Record)?
        })
    }

    fn open(&mut self, input: &mut [u8]) -> Result<Opened, RecordError> {
        let Some(&front) = input.first_chunk::<HEAD>() else {
            return Ok(Opened::Incomplete { wanted: HEAD });
        };
        let used = HEAD + sealed_len(front)?;
        if input.len() < used {
            return Ok(Opened::Incomplete { wanted: used });
        }
        let following = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        let text = self
            .key
            .open(self.sequence, front, &mut input[HEAD..used])?;
        self.sequence = following;

        let inner = &input[HEAD..HEAD + text];
        // The type is the last byte that is not padding.
        let length = inner.iter().rposition(|byte| *byte != 0);
        let length = length.ok_or(RecordError::NoType)?;
        if text > MOST + 1 {
            return Err(RecordError::TooLong(text));
        }
        let kind = inner[length];
        if kind == ContentType::Data as u8 && length > 0 && self.messages.is_empty() {
            self.idle = 0;
            self.tickets = None;
            let plain = HEAD..HEAD + length;
            return Ok(Opened::Data { used, plain });
        }
        self.other(kind, &input[HEAD..HEAD + length], used)
    }

    /// Whatever is not data.
    fn other(&mut self, kind: u8, content: &[u8], used: usize) -> Result<Opened, RecordError> {
        if self.idle >= IDLE {
            return Err(RecordError::Idle);
        }
        self.idle += 1;
        const HANDSHAKE: u8 = ContentType::Handshake as u8;
        const ALERT: u8 = ContentType::Alert as u8;
        const DATA: u8 = ContentType::Data as u8;
        match kind {
            HANDSHAKE => self.handshake(content, used),
            ALERT => match content {
                [_, CLOSE_NOTIFY] => Ok(Opened::Closed),
                [_, USER_CANCELED] => Ok(Opened::Nothing { used }),
                [_, alert] => Err(RecordError::Alert(*alert)),
                _ => Err(RecordError::Malformed("alert")),
            },
            DATA if !self.messages.is_empty() => Err(RecordError::Interrupted),
            DATA => Ok(Opened::Nothing { used }),
            number => Err(RecordError::Unexpected {
                what: "content of type",
                number,
            }),
        }
    }

    fn handshake(&mut self, content: &[u8], used: usize) -> Result<Opened, RecordError> {
        let said = self.messages.take(self.side, content)?;
        if let Some(answer) = said.update {
            let next = self.secret.next()?;
            (self.key, self.secret) = (Key::of(&next)?, next);
            (self.sequence, self.asked) = (0, false);
            return Ok(Opened::Update { used, answer });
        }
        if let Some(reader) = &mut self.tickets {
            said.tickets.iter().for_each(|ticket| reader(ticket));
        }
        Ok(if said.tickets.is_empty() {
            Opened::Nothing { used }
        } else {
            Opened::Ticket {
                used,
                tickets: said.tickets,
            }
        })
    }
}

/// What a head says about the length of what follows it.
fn sealed_len(front: [u8; HEAD]) -> Result<usize, RecordError> {
    let [kind, major, minor, high, low] = front;
    if kind != ContentType::Data as u8 || [major, minor] != VERSION {
        return Err(RecordError::Head([kind, major, minor]));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    debug_assert_eq!(head(length), front);
    match length {
        ..TAIL => Err(RecordError::TooShort(length)),
        TAIL..=MOST_SEALED => Ok(length),
        _ => Err(RecordError::TooLong(length)),
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("side", &self.side)
            .field("secret", &self.secret)
            .field("sequence", &self.sequence)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
