//! What has come of a frame that is not whole yet, as bytes. What may stand there is judged by the rules
//! that let it in.

use super::super::headers::{Block, CONTINUATIONS};
use super::{Data, HEAD, Head, Input, Mux, PREFACE, Phase, StreamId, flag, is, kind};
use crate::frames::state::{Reader, StateError, ensure, put_string, put_u32};

/// What the next byte belongs to.
mod tag {
    pub(super) const PREFACE: u8 = 0;
    pub(super) const HEAD: u8 = 1;
    pub(super) const PADDING: u8 = 2;
    pub(super) const DATA: u8 = 3;
    pub(super) const WHOLE: u8 = 4;
    pub(super) const SKIP: u8 = 5;
}

impl Input {
    pub(in super::super) fn write(&self, to: &mut Vec<u8>) {
        match &self.block {
            None => to.push(0),
            Some(block) => {
                to.push(1);
                put_u32(to, block.stream.0);
                to.extend_from_slice(&[block.end.into(), block.looped.into()]);
                to.push(block.continuations as u8); // at most `CONTINUATIONS`
                put_string(to, &block.bytes);
            }
        }
        match self.phase {
            Phase::Preface(have) => to.extend([tag::PREFACE, have as u8]), // below 24
            Phase::Head => {
                to.extend_from_slice(&[tag::HEAD, self.have as u8]); // below 9
                to.extend_from_slice(&self.head[..self.have]);
            }
            Phase::Padding(head) => {
                to.push(tag::PADDING);
                to.extend_from_slice(&head.bytes());
            }
            Phase::Data(data) => {
                to.push(tag::DATA);
                put_u32(to, data.stream.0);
                put_u32(to, data.left);
                to.extend_from_slice(&[data.padding as u8, data.end.into()]); // it came as a byte
            }
            Phase::Whole { head, keep: _ } => {
                to.push(tag::WHOLE);
                to.extend_from_slice(&head.bytes());
                put_string(to, &self.partial);
            }
            Phase::Skip(left) => {
                to.push(tag::SKIP);
                put_u32(to, left);
            }
        }
    }
}

impl Mux {
    /// When everything else is known.
    pub(in super::super) fn restore_input(
        &mut self,
        from: &mut Reader<'_>,
    ) -> Result<(), StateError> {
        if from.bool()? {
            self.input.block = Some(Box::new(self.restore_block(from)?));
        }
        self.input.phase = match from.u8()? {
            tag::PREFACE => {
                let have = usize::from(from.u8()?);
                let begins = !self.client && !self.greeted && have < PREFACE.len();
                ensure(begins, "a preface that is none")?;
                Phase::Preface(have)
            }
            tag::HEAD => {
                let have = usize::from(from.u8()?);
                ensure(have < HEAD, "a head that is too long")?;
                self.input.head[..have].copy_from_slice(from.bytes(have)?);
                self.input.have = have;
                Phase::Head
            }
            tag::PADDING => {
                let head = self.restore_head(from)?;
                let padded = head.kind == kind::DATA && head.has(flag::PADDED) && head.length > 0;
                ensure(padded, "padding of what has none")?;
                Phase::Padding(head)
            }
            tag::DATA => Phase::Data(self.restore_data(from)?),
            tag::WHOLE => {
                let head = self.restore_head(from)?;
                let keep = self.wanted(head).ok().flatten().unwrap_or(0);
                let partial = from.string()?;
                let missing = partial.len() < keep as usize;
                ensure(missing, "a frame that waits for nothing")?;
                self.input.partial = partial.to_vec();
                Phase::Whole { head, keep }
            }
            tag::SKIP => {
                let left = from.u32()?;
                let inside = self.is_inside_frame() && left > 0 && left <= self.settings.frame;
                ensure(inside, "bytes to be passed over in no frame")?;
                Phase::Skip(left)
            }
            _ => return Err(StateError::Impossible("the next byte belongs to nothing")),
        };
        Ok(())
    }

    fn restore_block(&self, from: &mut Reader<'_>) -> Result<Block, StateError> {
        let block = Block {
            stream: from.stream()?,
            end: from.bool()?,
            looped: from.bool()?,
            continuations: from.u8()?.into(),
            bytes: from.string()?.to_vec(),
        };
        let sound = self.greeted
            && block.stream != StreamId::CONNECTION
            && block.continuations <= CONTINUATIONS
            && block.bytes.len() as u64 <= self.longest_block();
        ensure(sound, "a header block that cannot have begun")?;
        Ok(block)
    }

    /// The head of a frame that may come here and now.
    fn restore_head(&self, from: &mut Reader<'_>) -> Result<Head, StateError> {
        let bytes = from.array()?;
        let head = Head::parse(&bytes);
        // There is one way to write it, in which the reserved bit is not set.
        let sound = head.bytes() == bytes && self.admit(head).is_ok();
        ensure(sound, "inside a frame that may not come")?;
        Ok(head)
    }

    fn restore_data(&self, from: &mut Reader<'_>) -> Result<Data, StateError> {
        let data = Data {
            stream: from.stream()?,
            left: from.u32()?,
            padding: from.u8()?.into(),
            end: from.bool()?,
        };
        let most = self.settings.frame;
        let sound = self.is_inside_frame()
            && !self.is_idle(data.stream)
            && data.stream != StreamId::CONNECTION
            && data.left > 0
            && data.left.checked_add(data.padding).is_some_and(|n| n <= most)
            // They are counted when their frame begins.
            && self.receive.unread() >= data.left.into();
        ensure(sound, "DATA that cannot have begun")?;
        let open = self.streams.get(data.stream).is_none_or(|stream| {
            !stream.is(is::THEIRS_ENDED)
                && (!self.client || stream.is(is::ANSWERED))
                && (!data.end || stream.has_come())
        });
        ensure(open, "DATA on a stream that may have none")?;
        Ok(data)
    }

    /// A frame of any kind but those that bring headers may have begun.
    fn is_inside_frame(&self) -> bool {
        self.greeted && self.input.block.is_none()
    }
}
