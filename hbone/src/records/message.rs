//! Handshake messages after the handshake (RFC 8446, 4.6): tickets and key updates, split over records
//! or packed into one. The content of records enters; what was said leaves.

use super::{RecordError, Side};

/// Longest message taken, in bytes. Tickets of servers that put the session into them hold our
/// certificate chain; a mesh's is a tenth of this.
const LONGEST: usize = 16 << 10;
/// Length of a message's head: type and length.
const HEAD: usize = 4;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// A KeyUpdate message.
pub(super) fn key_update(request_peer: bool) -> [u8; HEAD + 1] {
    [KEY_UPDATE, 0, 0, 1, u8::from(request_peer)]
}

/// What one record said.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The peer's key changes with the next record; true when it asks for the same from us.
    pub(super) update: Option<bool>,
    /// The content of tickets.
    pub(super) tickets: Vec<Vec<u8>>,
}

/// Puts messages together.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// The beginning of a message whose end has not come; nearly always empty.
    partial: Vec<u8>,
}

impl Messages {
    /// Goes on with the beginning of a message.
    pub(super) fn resume(side: Side, partial: &[u8]) -> Result<Self, RecordError> {
        let mut messages = Self::default();
        if !partial.is_empty() {
            let said = messages.take(side, partial)?;
            if said.update.is_some() || !said.tickets.is_empty() {
                return Err(RecordError::Malformed("beginning of a message"));
            }
        }
        Ok(messages)
    }

    /// No message is waiting for its end.
    pub(super) fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    pub(super) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Takes the content of one record.
    pub(super) fn take(&mut self, side: Side, content: &[u8]) -> Result<Said, RecordError> {
        if content.is_empty() {
            return Err(RecordError::Malformed("handshake record"));
        }
        let mut bytes = std::mem::take(&mut self.partial);
        bytes.extend_from_slice(content);
        let mut said = Said::default();
        let mut rest = bytes.as_slice();
        while let Some(message) = first(side, rest)? {
            rest = message.behind;
            match message.kind {
                KEY_UPDATE if !rest.is_empty() => return Err(RecordError::Misplaced),
                KEY_UPDATE => said.update = Some(requested(message.body)?),
                _ => said.tickets.push(message.body.to_vec()),
            }
        }
        self.partial = rest.to_vec();
        Ok(said)
    }
}

/// One message and what stands behind it.
struct Message<'a> {
    kind: u8,
    body: &'a [u8],
    behind: &'a [u8],
}

/// The first message, if all of it is there. What is no message for `side`, or too long for one, is
/// refused as soon as it shows.
fn first(side: Side, bytes: &[u8]) -> Result<Option<Message<'_>>, RecordError> {
    match (bytes.first(), side) {
        (None, _) => return Ok(None),
        (Some(&KEY_UPDATE), _) | (Some(&NEW_SESSION_TICKET), Side::Client) => {}
        (Some(&number), _) => {
            return Err(RecordError::Unexpected {
                what: "the message",
                number,
            });
        }
    }
    let Some((&[kind, a, b, c], body)) = bytes.split_first_chunk::<HEAD>() else {
        return Ok(None);
    };
    // 24 bits always fit.
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > LONGEST {
        return Err(RecordError::Message(length));
    }
    if kind == KEY_UPDATE && length != 1 {
        return Err(RecordError::Malformed("key update"));
    }
    Ok(body
        .split_at_checked(length)
        .map(|(body, behind)| Message { kind, body, behind }))
}

fn requested(body: &[u8]) -> Result<bool, RecordError> {
    match body {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(RecordError::Request(*other)),
        _ => Err(RecordError::Malformed("key update")),
    }
}
