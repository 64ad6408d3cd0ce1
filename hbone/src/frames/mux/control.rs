//! Frames that carry neither bytes nor headers: SETTINGS, PING, GOAWAY, RST_STREAM, WINDOW_UPDATE,
//! PRIORITY. Each is whole and of a possible size when it comes here.

use std::time::Instant;

use super::{
    Code, Event, Head, LAST_CALL, Leaving, Mux, StreamId, Violation, flag, head, is, kind,
};
use crate::frames::settings::LARGEST_WINDOW;

type Outcome = Result<Option<Event>, Violation>;

impl Mux {
    pub(super) fn settings(&mut self, head: Head, payload: &[u8], now: Instant) -> Outcome {
        self.abuse.settings(now)?;
        if head.has(flag::ACK) {
            if self.acknowledged {
                let what = "SETTINGS acknowledged that were not sent";
                return Err(Violation::protocol(Code::PROTOCOL_ERROR, what));
            }
            self.acknowledged = true;
            self.decoder.acknowledged();
            return Ok(Some(Event::SettingsAcknowledged));
        }
        self.greeted = true;
        let before = self.remote.window;
        self.remote.apply(payload, self.client, &mut self.out)?;
        self.resize(before)
    }

    /// The peer's SETTINGS move the send windows of all streams (RFC 9113, 6.9.2).
    fn resize(&mut self, before: u32) -> Outcome {
        let change = i64::from(self.remote.window) - i64::from(before);
        if change == 0 {
            return Ok(None);
        }
        let mut woken = false;
        for stream in self.streams.iter_mut() {
            stream.send = i32::try_from(i64::from(stream.send) + change).map_err(|_| {
                let what = "SETTINGS that make a window too large";
                Violation::protocol(Code::FLOW_CONTROL_ERROR, what)
            })?;
            if stream.is(is::WAITING) && !stream.is(is::QUEUED) && stream.send > 0 {
                stream.state |= is::QUEUED;
                self.queue.push_back(stream.id);
                woken = true;
            }
        }
        Ok(woken.then_some(Event::Capacity {
            stream: StreamId::CONNECTION,
        }))
    }

    pub(super) fn pinged(&mut self, head: Head, payload: &[u8], now: Instant) -> Outcome {
        let mut echo = [0; 8];
        echo.copy_from_slice(payload);
        if !head.has(flag::ACK) {
            self.abuse.ping(now)?;
            let connection = StreamId::CONNECTION;
            head::write(&mut self.out, kind::PING, flag::ACK, connection, payload);
            return Ok(None);
        }
        if echo == LAST_CALL && self.leaving == Leaving::Announced {
            // All requests that were on their way have come.
            self.leaving = Leaving::Said(self.newest);
            head::write_go_away(&mut self.out, self.newest, Code::NO_ERROR);
            return Ok(None);
        }
        self.abuse.ping(now)?;
        Ok(Some(Event::Pong { payload: echo }))
    }

    pub(super) fn told_to_go(&mut self, payload: &[u8], now: Instant) -> Outcome {
        self.abuse.idle(now)?; // two or three are all that a goodbye takes
        let last = StreamId(number(payload) & 0x7fff_ffff);
        let code = Code(number(&payload[4..]));
        // It may only become less.
        let last = self.told.map_or(last, |told| told.min(last));
        self.told = Some(last);
        if self.client {
            self.streams.truncate(last);
        }
        Ok(Some(Event::GoAway { last, code }))
    }

    pub(super) fn reset_by_peer(&mut self, head: Head, payload: &[u8], now: Instant) -> Outcome {
        self.abuse.reset(now)?;
        if self.is_idle(head.stream) {
            let what = "RST_STREAM on a stream that nobody opened";
            return Err(Violation::protocol(Code::PROTOCOL_ERROR, what));
        }
        let Some(stream) = self.streams.remove(head.stream, false) else {
            return Ok(None);
        };
        if !self.client && !stream.is(is::ANSWERED) {
            self.abuse.in_vain(now)?;
        }
        Ok(Some(Event::Reset {
            stream: head.stream,
            code: Code(number(payload)),
            ours: false,
        }))
    }

    pub(super) fn credited(&mut self, head: Head, payload: &[u8], now: Instant) -> Outcome {
        self.abuse.update(now)?;
        let increment = number(payload) & 0x7fff_ffff;
        if head.stream == StreamId::CONNECTION {
            return self.credited_connection(increment);
        }
        if self.is_idle(head.stream) {
            let what = "WINDOW_UPDATE on a stream that nobody opened";
            return Err(Violation::protocol(Code::PROTOCOL_ERROR, what));
        }
        let Some(stream) = self.streams.get_mut(head.stream) else {
            return Ok(None); // it ended while the credit was on its way
        };
        if increment == 0 {
            return self.fail_stream(head.stream, Code::PROTOCOL_ERROR, now);
        }
        let send = i32::try_from(i64::from(stream.send) + i64::from(increment));
        let Ok(send) = send else {
            return self.fail_stream(head.stream, Code::FLOW_CONTROL_ERROR, now);
        };
        stream.send = send;
        if !stream.is(is::WAITING) || send <= 0 {
            return Ok(None);
        }
        if !stream.is(is::QUEUED) {
            stream.state |= is::QUEUED;
            self.enqueue(head.stream);
        }
        Ok(Some(Event::Capacity {
            stream: head.stream,
        }))
    }

    fn credited_connection(&mut self, increment: u32) -> Outcome {
        if increment == 0 {
            let what = "WINDOW_UPDATE of nothing";
            return Err(Violation::protocol(Code::PROTOCOL_ERROR, what));
        }
        self.send += i64::from(increment);
        if self.send > i64::from(LARGEST_WINDOW) {
            let what = "WINDOW_UPDATE beyond the largest window";
            return Err(Violation::protocol(Code::FLOW_CONTROL_ERROR, what));
        }
        self.most_send = self.most_send.max(self.send);
        self.drop_ended();
        Ok((!self.queue.is_empty()).then_some(Event::Capacity {
            stream: StreamId::CONNECTION,
        }))
    }

    pub(super) fn prioritised(&mut self, head: Head, payload: &[u8], now: Instant) -> Outcome {
        self.abuse.idle(now)?;
        if payload.len() != 5 {
            return self.fail_stream(head.stream, Code::FRAME_SIZE_ERROR, now);
        }
        if number(payload) & 0x7fff_ffff == head.stream.0 {
            return self.fail_stream(head.stream, Code::PROTOCOL_ERROR, now);
        }
        Ok(None)
    }

    /// Resets a stream for what the peer did on it. One that nobody has opened cannot be reset: then it
    /// is the connection that ends.
    pub(super) fn fail_stream(&mut self, stream: StreamId, code: Code, now: Instant) -> Outcome {
        self.abuse.in_vain(now)?;
        if self.is_idle(stream) {
            let what = "a mistake on a stream that nobody opened";
            return Err(Violation::protocol(code, what));
        }
        let by_us = self.streams.recent(stream).is_some_and(|r| r.by_us);
        let known = self.streams.remove(stream, true).is_some();
        if !by_us {
            head::write_reset(&mut self.out, stream, code);
        }
        Ok(known.then_some(Event::Reset {
            stream,
            code,
            ours: true,
        }))
    }
}

/// The first four bytes.
fn number(payload: &[u8]) -> u32 {
    match payload {
        [a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
        _ => 0, // sizes were checked
    }
}
