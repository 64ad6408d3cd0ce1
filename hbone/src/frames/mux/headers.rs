//! Header blocks become requests, responses and ends.
//!
//! 1. a block may come in several frames: HEADERS, then CONTINUATION and nothing else ([`Block`]); how
//!    long and how many is bounded before a byte of it is kept
//! 2. whole, it is decoded whatever becomes of it, since the decoder's context must stay right
//! 3. what it means depends on the stream: a new one (server), an awaited answer (client), an end

use std::time::Instant;

use super::{
    Code, Event, Head, Leaving, Mux, StreamId, UNDECLARED, Violation, flag, head, hpack, input, is,
};
use crate::{
    frames::fields::{self, Fault},
    limits::Refusal,
};

/// CONTINUATION frames of one block. Of the smallest frames that any peer may be held to, these are 128
/// KiB; shorter ones serve no purpose but to be many.
pub(super) const CONTINUATIONS: u32 = 8;

/// A header block that is not whole yet.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: StreamId,
    pub(super) end: bool,
    /// It depends on itself.
    pub(super) looped: bool,
    pub(super) continuations: u32,
    pub(super) bytes: Vec<u8>,
}

type Outcome = Result<Option<Event>, Violation>;

impl Mux {
    /// Whether a frame of a block may come, by its head.
    pub(super) fn block_begins(&self, head: Head) -> Result<(), Violation> {
        let calm = |what| Err(Violation::flood(Refusal::Excess, what));
        let most = self.longest_block();
        let mut length = u64::from(head.length);
        if let Some(block) = &self.input.block {
            if block.stream != head.stream {
                let what = "a header block goes on elsewhere";
                return Err(Violation::protocol(Code::PROTOCOL_ERROR, what));
            }
            if block.continuations == CONTINUATIONS {
                return calm("a header block in too many pieces");
            }
            length += block.bytes.len() as u64;
        }
        if length > most {
            return calm("a header block without end");
        }
        Ok(())
    }

    /// Twice the list we announced: a list that is a little too large is answered, not cut off.
    pub(super) fn longest_block(&self) -> u64 {
        2 * u64::from(self.settings.header_list)
    }

    pub(super) fn headers(&mut self, head: Head, payload: &[u8], now: Instant) -> Outcome {
        let mut fragment = payload;
        if head.has(flag::PADDED) {
            let (padding, rest) = fragment.split_first().ok_or_else(input::too_short)?;
            let length = rest.len().checked_sub(usize::from(*padding));
            fragment = &rest[..length.ok_or_else(input::too_short)?];
        }
        let mut looped = false;
        if head.has(flag::PRIORITY) {
            let (priority, rest) = fragment
                .split_first_chunk::<5>()
                .ok_or_else(input::too_short)?;
            let [a, b, c, d, _] = *priority;
            looped = u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff == head.stream.0;
            fragment = rest;
        }
        let end = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.block_ends(head.stream, end, looped, fragment, now);
        }
        self.input.block = Some(Box::new(Block {
            stream: head.stream,
            end,
            looped,
            continuations: 0,
            bytes: fragment.to_vec(),
        }));
        Ok(None)
    }

    pub(super) fn continuation(&mut self, head: Head, payload: &[u8], now: Instant) -> Outcome {
        let Some(mut block) = self.input.block.take() else {
            return Ok(None); // `admit` lets no such frame through
        };
        block.continuations += 1;
        block.bytes.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.block_ends(block.stream, block.end, block.looped, &block.bytes, now);
        }
        self.input.block = Some(block);
        Ok(None)
    }

    fn block_ends(
        &mut self,
        stream: StreamId,
        end: bool,
        looped: bool,
        block: &[u8],
        now: Instant,
    ) -> Outcome {
        if let Some(known) = self.streams.get(stream) {
            let ended = known.is(is::THEIRS_ENDED);
            if self.client && !known.is(is::ANSWERED) && !ended && !looped {
                return self.response(stream, end, block, now);
            }
            // RFC 9113, 8.5: nothing of the kind may come in a tunnel.
            let allowed = end && !known.is(is::TUNNEL) && !looped;
            let short = known.declared != UNDECLARED && known.declared > 0;
            let sound = self.trailers(block)?;
            return match (ended, allowed && sound && !short) {
                (true, _) => self.fail_stream(stream, Code::STREAM_CLOSED, now),
                (false, false) => self.fail_stream(stream, Code::PROTOCOL_ERROR, now),
                (false, true) => {
                    self.ended(stream, is::THEIRS_ENDED);
                    Ok(Some(Event::Data {
                        stream,
                        range: 0..0,
                        end: true,
                    }))
                }
            };
        }
        if !self.client && stream > self.newest && !stream.0.is_multiple_of(2) {
            return self.request(stream, end, looped, block, now);
        }
        self.late_headers(stream, block, now)
    }

    /// A block whose fields nobody wants. False when they break a rule.
    fn trailers(&mut self, block: &[u8]) -> Result<bool, Violation> {
        let mut fields = fields::Trailers::new(self.settings.header_list);
        self.decoder
            .decode(block, |name, value| fields.field(name, value))
            .map_err(undecodable)?;
        Ok(fields.finish().is_ok())
    }

    /// HEADERS for a stream that is not open, and cannot be opened so.
    fn late_headers(&mut self, stream: StreamId, block: &[u8], now: Instant) -> Outcome {
        self.trailers(block)?;
        self.abuse.idle(now)?;
        let wrong = |code, what| Err(Violation::protocol(code, what));
        if self.is_idle(stream) {
            return wrong(
                Code::PROTOCOL_ERROR,
                "HEADERS on a stream that the peer cannot open",
            );
        }
        match self.streams.recent(stream) {
            Some(recent) if recent.by_us => Ok(None),
            Some(_) => wrong(Code::STREAM_CLOSED, "HEADERS on a stream that has ended"),
            // A server's answer to what a client gave up on long ago.
            None if self.client => Ok(None),
            None => wrong(Code::PROTOCOL_ERROR, "HEADERS on an older stream"),
        }
    }

    fn request(
        &mut self,
        stream: StreamId,
        end: bool,
        looped: bool,
        block: &[u8],
        now: Instant,
    ) -> Outcome {
        let mut fields = fields::Request::new(self.settings.header_list, self.datagrams);
        self.decoder
            .decode(block, |name, value| fields.field(name, value))
            .map_err(undecodable)?;
        self.newest = stream;
        if let Leaving::Said(_) = self.leaving {
            return self.turn_away(stream, Code::REFUSED_STREAM, None, now);
        }
        if self.streams.len() >= self.settings.streams as usize {
            let kind = Some(Refusal::SurplusStream);
            return self.turn_away(stream, Code::REFUSED_STREAM, kind, now);
        }
        let malformed = Some(Refusal::MalformedStream);
        let read = match looped {
            true => Err(Fault::Malformed("a stream that depends on itself")),
            false => fields.finish(),
        };
        match read {
            // More declared than nothing, and nothing follows.
            Ok((_, Some(declared))) if end && declared > 0 => {
                self.turn_away(stream, Code::PROTOCOL_ERROR, malformed, now)
            }
            Ok((head, declared)) => {
                let tunnel = !matches!(head.method, fields::Method::Other(_));
                let mut state = if tunnel { is::TUNNEL } else { 0 };
                if end {
                    state |= is::THEIRS_ENDED;
                }
                // As large as that is as good as endless.
                let declared =
                    declared.map_or(UNDECLARED, |n| u32::try_from(n).unwrap_or(UNDECLARED));
                self.insert(stream, declared, state);
                Ok(Some(Event::Request { stream, head, end }))
            }
            Err(Fault::Malformed(_)) => {
                self.turn_away(stream, Code::PROTOCOL_ERROR, malformed, now)
            }
            Err(Fault::TooLarge) => {
                let mut answer = self.block();
                hpack::put_status(&mut answer, TOO_LARGE);
                self.put_block(stream, &answer, true);
                self.turn_away(stream, Code::NO_ERROR, malformed, now)
            }
        }
    }

    /// Resets a stream that nobody has heard of, or will.
    fn turn_away(
        &mut self,
        stream: StreamId,
        code: Code,
        kind: Option<Refusal>,
        now: Instant,
    ) -> Outcome {
        self.abuse.in_vain(now)?;
        self.streams
            .remember(stream, self.settings.stream_window, true);
        head::write_reset(&mut self.out, stream, code);
        Ok(kind.map(|kind| Event::Refused { stream, kind }))
    }

    fn response(&mut self, stream: StreamId, end: bool, block: &[u8], now: Instant) -> Outcome {
        let mut fields = fields::Response::new(self.settings.header_list);
        self.decoder
            .decode(block, |name, value| fields.field(name, value))
            .map_err(undecodable)?;
        let head = match fields.finish() {
            Ok(head) if head.status < 200 && !end => {
                self.abuse.idle(now)?; // 1xx: the answer is still to come
                return Ok(None);
            }
            Ok(head) if head.status >= 200 => head,
            _ => return self.fail_stream(stream, Code::PROTOCOL_ERROR, now),
        };
        if let Some(known) = self.streams.get_mut(stream) {
            known.state |= is::ANSWERED;
            if (200..300).contains(&head.status) {
                known.state |= is::TUNNEL;
            }
        }
        if end {
            self.ended(stream, is::THEIRS_ENDED);
        }
        Ok(Some(Event::Response { stream, head, end }))
    }
}

/// 431 Request Header Fields Too Large.
const TOO_LARGE: u16 = 431;

fn undecodable(error: hpack::DecodeError) -> Violation {
    Violation::protocol(
        Code::COMPRESSION_ERROR,
        match error {
            hpack::DecodeError::Truncated => "a header block ends inside a field",
            hpack::DecodeError::Number => "a header block has a number out of range",
            hpack::DecodeError::Index => "a header block refers to nothing",
            hpack::DecodeError::Code => "a header block has a string that is no code",
            hpack::DecodeError::TableSize => "a header block sets a table size it may not",
            hpack::DecodeError::Churn => "a header block has more remembered than any list holds",
        },
    )
}
