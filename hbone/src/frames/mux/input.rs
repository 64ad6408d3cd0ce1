//! Bytes become frames.
//!
//! 1. the preface (server), then heads                        ([`Mux::read`])
//! 2. DATA is handed on as it comes, in pieces of any size    ([`Mux::data_begins`], [`Mux::data_goes_on`])
//! 3. all other frames are small: whole, they go to `control` or `headers`; in one piece from the very
//!    bytes that came in, otherwise put together first        ([`Mux::frame`])
//! 4. what nobody wants is passed over
//!
//! What a frame may be is checked when its head is known, before a byte of it is kept.

mod state;

use std::time::Instant;

use super::{
    Code, Event, HEAD, Head, Mux, PREFACE, StreamId, Taken, UNDECLARED, Violation, flag, head, is,
    kind,
};

/// Entries of SETTINGS in one frame; six are defined.
const SETTINGS_MOST: u32 = 64 * 6;
/// Of GOAWAY only the beginning means something to a program.
const GOAWAY_MOST: u32 = 8;

/// Where in the byte stream we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// This many bytes of the preface have come.
    Preface(usize),
    /// At, or inside, a head.
    Head,
    /// Before the byte that says how much of a DATA frame is padding.
    Padding(Head),
    /// Inside a DATA frame.
    Data(Data),
    /// Inside a frame that is wanted whole, of which `keep` bytes are enough.
    Whole { head: Head, keep: u32 },
    /// This many bytes mean nothing.
    Skip(u32),
}

/// What is left of a DATA frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Data {
    stream: StreamId,
    left: u32,
    padding: u32,
    end: bool,
}

/// What has come of a frame that is not whole yet.
#[derive(Debug)]
pub(super) struct Input {
    phase: Phase,
    head: [u8; HEAD],
    have: usize,
    /// Bytes of a `Whole` frame that came in pieces.
    partial: Vec<u8>,
    /// A header block that goes on in the next frame.
    pub(super) block: Option<Box<super::headers::Block>>,
}

impl Input {
    pub(super) fn new(preface: bool) -> Self {
        Self {
            phase: if preface {
                Phase::Preface(0)
            } else {
                Phase::Head
            },
            head: [0; HEAD],
            have: 0,
            partial: Vec::new(),
            block: None,
        }
    }
}

/// Bytes that were used, and what they meant.
type Step = Result<(usize, Option<Event>), Violation>;

impl Mux {
    pub(super) fn read(&mut self, plain: &[u8], now: Instant) -> Result<Taken, Violation> {
        let mut used = 0;
        while used < plain.len() {
            let rest = &plain[used..];
            let (n, event) = match self.input.phase {
                Phase::Preface(have) => self.preface(have, rest)?,
                Phase::Head => self.head(rest, now)?,
                Phase::Padding(head) => (1, self.data_begins(head, Some(rest[0]), now)?),
                Phase::Data(data) => self.data_goes_on(data, used, rest),
                Phase::Whole { head, keep } => self.whole(head, keep, rest, now)?,
                Phase::Skip(left) => (self.skip(left, rest), None),
            };
            used += n;
            if event.is_some() {
                return Ok(Taken { used, event });
            }
        }
        Ok(Taken { used, event: None })
    }

    fn preface(&mut self, have: usize, rest: &[u8]) -> Step {
        let n = rest.len().min(PREFACE.len() - have);
        if rest[..n] != PREFACE[have..have + n] {
            return Err(Violation {
                code: Code::PROTOCOL_ERROR,
                refusal: super::Refusal::Preface,
                what: "no HTTP/2 preface",
            });
        }
        self.input.phase = match have + n {
            24 => Phase::Head,
            have => Phase::Preface(have),
        };
        Ok((n, None))
    }

    fn head(&mut self, rest: &[u8], now: Instant) -> Step {
        let have = self.input.have;
        let n = rest.len().min(HEAD - have);
        self.input.head[have..have + n].copy_from_slice(&rest[..n]);
        self.input.have += n;
        if self.input.have < HEAD {
            return Ok((n, None));
        }
        self.input.have = 0;
        let head = Head::parse(&self.input.head);
        Ok((n, self.begins(head, now)?))
    }

    /// A frame begins.
    fn begins(&mut self, head: Head, now: Instant) -> Result<Option<Event>, Violation> {
        self.admit(head)?;
        if head.kind == kind::DATA {
            if !head.has(flag::PADDED) {
                return self.data_begins(head, None, now);
            }
            if head.length == 0 {
                return Err(too_short());
            }
            self.input.phase = Phase::Padding(head);
            return Ok(None);
        }
        let Some(keep) = self.wanted(head)? else {
            self.abuse.idle(now)?;
            self.input.phase = skip_or_head(head.length);
            return Ok(None);
        };
        if keep == 0 {
            self.input.phase = skip_or_head(head.length);
            return self.frame(head, &[], now);
        }
        self.input.phase = Phase::Whole { head, keep };
        Ok(None)
    }

    /// How much is wanted, in one piece, of a frame that is not DATA; none of what is unknown.
    fn wanted(&self, head: Head) -> Result<Option<u32>, Violation> {
        match head.kind {
            kind::SETTINGS if head.length > SETTINGS_MOST => {
                let refusal = super::Refusal::Excess;
                return Err(Violation::flood(refusal, "SETTINGS of absurd length"));
            }
            kind::GOAWAY => return Ok(Some(head.length.min(GOAWAY_MOST))),
            kind::HEADERS | kind::CONTINUATION => self.block_begins(head)?,
            kind::SETTINGS
            | kind::PING
            | kind::RST_STREAM
            | kind::WINDOW_UPDATE
            | kind::PRIORITY => {}
            _ => return Ok(None),
        }
        Ok(Some(head.length))
    }

    /// What is wrong with any frame of this head, here and now (RFC 9113, 3.4, 4.2, 6).
    fn admit(&self, head: Head) -> Result<(), Violation> {
        let wrong = |code, what| Err(Violation::protocol(code, what));
        if head.length > self.settings.frame {
            return wrong(Code::FRAME_SIZE_ERROR, "a frame is too long");
        }
        if !self.greeted && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return wrong(Code::PROTOCOL_ERROR, "the first frame is not SETTINGS");
        }
        if self.input.block.is_some() != (head.kind == kind::CONTINUATION) {
            return wrong(
                Code::PROTOCOL_ERROR,
                "a header block is interrupted, or goes on without a beginning",
            );
        }
        let connection = head.stream == StreamId::CONNECTION;
        let misplaced = match head.kind {
            kind::SETTINGS | kind::PING | kind::GOAWAY => !connection,
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM => connection,
            kind::PUSH_PROMISE => return wrong(Code::PROTOCOL_ERROR, "a PUSH_PROMISE"),
            _ => false,
        };
        if misplaced {
            return wrong(Code::PROTOCOL_ERROR, "a frame on a stream it cannot have");
        }
        // PRIORITY has its length checked later: it concerns only its stream.
        let length = match head.kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE => head.length == 4,
            kind::PING => head.length == 8,
            kind::GOAWAY => head.length >= 8,
            kind::SETTINGS if head.has(flag::ACK) => head.length == 0,
            kind::SETTINGS => head.length.is_multiple_of(6),
            _ => true,
        };
        if !length {
            return wrong(Code::FRAME_SIZE_ERROR, "a frame of a size it cannot have");
        }
        Ok(())
    }

    /// More of a frame that is wanted whole.
    fn whole(&mut self, head: Head, keep: u32, rest: &[u8], now: Instant) -> Step {
        let have = self.input.partial.len();
        let n = rest.len().min(keep as usize - have);
        if have + n < keep as usize {
            self.input.partial.extend_from_slice(&rest[..n]);
            return Ok((n, None));
        }
        self.input.phase = skip_or_head(head.length - keep);
        if have == 0 {
            return Ok((n, self.frame(head, &rest[..n], now)?));
        }
        let mut partial = std::mem::take(&mut self.input.partial);
        partial.extend_from_slice(&rest[..n]);
        Ok((n, self.frame(head, &partial, now)?))
    }

    fn skip(&mut self, left: u32, rest: &[u8]) -> usize {
        let n = rest.len().min(left as usize);
        self.input.phase = skip_or_head(left - n as u32); // n is at most `left`
        n
    }

    /// A whole frame that is not DATA.
    fn frame(
        &mut self,
        head: Head,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        match head.kind {
            kind::HEADERS => self.headers(head, payload, now),
            kind::CONTINUATION => self.continuation(head, payload, now),
            kind::SETTINGS => self.settings(head, payload, now),
            kind::PING => self.pinged(head, payload, now),
            kind::GOAWAY => self.told_to_go(payload, now),
            kind::RST_STREAM => self.reset_by_peer(head, payload, now),
            kind::WINDOW_UPDATE => self.credited(head, payload, now),
            // PRIORITY is all that is left.
            _ => self.prioritised(head, payload, now),
        }
    }

    /// A DATA frame whose padding is known. It is counted as a whole, here and at once.
    fn data_begins(
        &mut self,
        head: Head,
        padding: Option<u8>,
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        // The byte that says how much padding there is counts as padding too.
        let before = u32::from(padding.is_some());
        let padding = u32::from(padding.unwrap_or(0));
        let Some(left) = head.length.checked_sub(before + padding) else {
            return Err(too_short());
        };
        let end = head.has(flag::END_STREAM);
        if left == 0 && !end {
            self.abuse.empty(now)?;
        }
        let fault = self.data_fault(head, left, now)?;
        let kept = if fault.is_none() { left } else { 0 };
        if !self.receive.received(head.length, kept) {
            let what = "more DATA than the connection's window";
            return Err(Violation::protocol(Code::FLOW_CONTROL_ERROR, what));
        }
        self.credit_connection();
        if let Some(fault) = fault {
            self.input.phase = skip_or_head(head.length - before);
            return match fault {
                Fault::Ignore => Ok(None),
                Fault::Reset(code) => self.fail_stream(head.stream, code, now),
            };
        }
        self.owe(head.stream, before + padding);
        if left > 0 {
            self.input.phase = Phase::Data(Data {
                stream: head.stream,
                left,
                padding,
                end,
            });
            return Ok(None);
        }
        self.input.phase = skip_or_head(padding);
        if !end {
            return Ok(None);
        }
        self.ended(head.stream, is::THEIRS_ENDED);
        Ok(Some(Event::Data {
            stream: head.stream,
            range: 0..0,
            end,
        }))
    }

    /// What is wrong with DATA on this stream, and counts it if nothing is.
    fn data_fault(
        &mut self,
        head: Head,
        left: u32,
        now: Instant,
    ) -> Result<Option<Fault>, Violation> {
        let client = self.client;
        let Some(known) = self.streams.get_mut(head.stream) else {
            return self.late_data(head, now).map(Some);
        };
        if known.is(is::THEIRS_ENDED) {
            return Ok(Some(Fault::Reset(Code::STREAM_CLOSED)));
        }
        if client && !known.is(is::ANSWERED) {
            return Ok(Some(Fault::Reset(Code::PROTOCOL_ERROR)));
        }
        let Some(receive) = known.receive.checked_sub(head.length) else {
            return Ok(Some(Fault::Reset(Code::FLOW_CONTROL_ERROR)));
        };
        known.receive = receive;
        if known.declared != UNDECLARED {
            match known.declared.checked_sub(left) {
                Some(declared) if declared == 0 || !head.has(flag::END_STREAM) => {
                    known.declared = declared;
                }
                _ => return Ok(Some(Fault::Reset(Code::PROTOCOL_ERROR))),
            }
        }
        Ok(None)
    }

    /// DATA for a stream that is not open.
    fn late_data(&mut self, head: Head, now: Instant) -> Result<Fault, Violation> {
        if self.is_idle(head.stream) {
            let what = "DATA on a stream that nobody opened";
            return Err(Violation::protocol(Code::PROTOCOL_ERROR, what));
        }
        match self.streams.recent(head.stream) {
            // On its way when we reset the stream: as much as its window allowed, and no more.
            Some(recent) if recent.by_us => match recent.receive.checked_sub(head.length) {
                Some(left) => {
                    recent.receive = left;
                    Ok(Fault::Ignore)
                }
                None => {
                    let what = "more DATA than a stream's window, after its end";
                    Err(Violation::protocol(Code::FLOW_CONTROL_ERROR, what))
                }
            },
            _ => {
                self.abuse.in_vain(now)?;
                head::write_reset(&mut self.out, head.stream, Code::STREAM_CLOSED);
                Ok(Fault::Ignore)
            }
        }
    }

    /// More of a DATA frame. `at`: where `rest` begins in the caller's bytes.
    fn data_goes_on(&mut self, data: Data, at: usize, rest: &[u8]) -> (usize, Option<Event>) {
        let n = rest.len().min(data.left as usize);
        let left = data.left - n as u32; // n is at most `left`
        self.input.phase = match left {
            0 => skip_or_head(data.padding),
            left => Phase::Data(Data { left, ..data }),
        };
        if self.streams.get(data.stream).is_none() {
            // It was reset in mid-frame; nobody will give these bytes back.
            self.receive.read(n);
            self.credit_connection();
            return (n, None);
        }
        let end = data.end && left == 0;
        if end {
            self.ended(data.stream, is::THEIRS_ENDED);
        }
        let event = Event::Data {
            stream: data.stream,
            range: at..at + n,
            end,
        };
        (n, Some(event))
    }

    /// A stream that nobody has opened yet, or can.
    pub(super) fn is_idle(&self, stream: StreamId) -> bool {
        stream > self.newest || stream.0.is_multiple_of(2)
    }
}

/// What becomes of DATA that cannot be taken.
enum Fault {
    Ignore,
    Reset(Code),
}

fn skip_or_head(left: u32) -> Phase {
    match left {
        0 => Phase::Head,
        left => Phase::Skip(left),
    }
}

pub(super) fn too_short() -> Violation {
    Violation::protocol(Code::PROTOCOL_ERROR, "a frame with more padding than room")
}
