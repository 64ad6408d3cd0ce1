//! Header compression (RFC 7541), as little of it as tunnels need.
//!
//! Decoding: a block enters, its fields leave one by one as slices of wherever they lie. Everything the
//! RFC has is read, but a table is kept only until the peer has acknowledged that we want none
//! ([`Decoder::acknowledged`]); from then on a reference into it is an error. What one block may cost is
//! bounded by its length: nothing is copied per field but what the string code expands (8/5 at most) and
//! what the table keeps (4,096 octets at most), and all that one block has it keep is bounded too: two bytes can say
//! that a name of 4,000 is to be kept once more.
//!
//! Encoding: fixed indices and plain literals that nobody is asked to remember.

mod huffman;
mod table;

use super::state::{Reader, StateError};
use table::Table;

/// Size of a header table before anybody says otherwise.
pub(super) const FIRST_TABLE: u32 = 4096;

/// What one block may have the table remember, counted as the table does. More than any list that is taken, twice over.
const MOST_REMEMBERED: usize = 128 << 10;

/// Why a block cannot be decoded; the connection's context is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends inside a field.
    #[error("a header block ends inside a field")]
    Truncated,
    /// A number beyond all sense.
    #[error("a header block has a number out of range")]
    Number,
    /// An index that stands for nothing.
    #[error("a header block refers to nothing")]
    Index,
    /// A string that is not in the code.
    #[error("a header block has a string that is no code")]
    Code,
    /// A table size that was not allowed, or not at the beginning.
    #[error("a header block sets a table size it may not")]
    TableSize,
    /// It fills the table again and again.
    #[error("a header block has more remembered than any list holds")]
    Churn,
}

/// What is needed to decode a peer's header blocks.
#[derive(Debug)]
pub struct Decoder {
    /// Empty for good when the peer keeps to our table of size 0.
    table: Table,
    /// The largest size that the peer may set.
    most: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: Table::new(FIRST_TABLE as usize),
            most: FIRST_TABLE as usize,
        }
    }
}

impl Decoder {
    /// The peer has acknowledged that we want no table. Its next block says that it keeps to that; if it
    /// does not say so, which encoders that never used a table forget to do, it is held to it anyway.
    pub fn acknowledged(&mut self) {
        self.most = 0;
        self.table.limit(0);
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.table.write(out);
    }

    /// `acknowledged`: see [`Decoder::acknowledged`].
    pub(super) fn restore(acknowledged: bool, from: &mut Reader<'_>) -> Result<Self, StateError> {
        let most = if acknowledged {
            0
        } else {
            FIRST_TABLE as usize
        };
        Ok(Self {
            table: Table::restore(most, from)?,
            most,
        })
    }

    /// Nothing is remembered, and the size is what it was at first.
    pub(super) fn is_new(&self) -> bool {
        self.table.is_new(FIRST_TABLE as usize)
    }

    /// Decodes one whole block.
    ///
    /// # Errors
    /// When it is not one. Some of its fields may have been told before that was found out.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        let mut rest = block;
        self.sizes(&mut rest)?;
        let (mut scratch, mut remembered) = (Scratch::default(), 0);
        while let Some(first) = rest.first().copied() {
            if first & 0x80 != 0 {
                let index = number(&mut rest, 7)?;
                let (name, value) = self.table.field(index).ok_or(DecodeError::Index)?;
                each(name, value);
                continue;
            }
            let remember = first & 0x40 != 0;
            if !remember && first & 0x20 != 0 {
                return Err(DecodeError::TableSize); // only at the beginning
            }
            let index = number(&mut rest, if remember { 6 } else { 4 })?;
            let name = match index {
                0 => string(&mut rest, &mut scratch.name)?.unwrap_or(&scratch.name),
                index => self.table.field(index).ok_or(DecodeError::Index)?.0,
            };
            let value = string(&mut rest, &mut scratch.value)?.unwrap_or(&scratch.value);
            each(name, value);
            if remember && self.most > 0 {
                remembered += table::cost(name, value);
                if remembered > MOST_REMEMBERED {
                    return Err(DecodeError::Churn);
                }
                // The entry that lends its name may be the one that makes room.
                let name = name.to_vec();
                self.table.remember(&name, value);
            }
        }
        Ok(())
    }

    /// Table sizes, which stand before all fields.
    fn sizes(&mut self, rest: &mut &[u8]) -> Result<(), DecodeError> {
        while rest.first().is_some_and(|first| first & 0xe0 == 0x20) {
            let most = number(rest, 5)?;
            if most > self.most {
                return Err(DecodeError::TableSize);
            }
            self.table.limit(most);
        }
        Ok(())
    }
}

/// Strings that had to be expanded.
#[derive(Default)]
struct Scratch {
    name: Vec<u8>,
    value: Vec<u8>,
}

/// A number whose first bits share their byte with something else (5.1). 2^21 is beyond anything a
/// block can hold.
fn number(rest: &mut &[u8], bits: u8) -> Result<usize, DecodeError> {
    let (first, mut after) = rest.split_first().ok_or(DecodeError::Truncated)?;
    let mask = (1u8 << bits) - 1;
    let mut value = usize::from(first & mask);
    if value == usize::from(mask) {
        let mut shift = 0;
        loop {
            let (byte, more) = after.split_first().ok_or(DecodeError::Truncated)?;
            after = more;
            if shift > 14 {
                return Err(DecodeError::Number);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = after;
    Ok(value)
}

/// A string (5.2): as it lies in the block, or, when nothing is returned, expanded into `scratch`.
fn string<'a>(rest: &mut &'a [u8], scratch: &mut Vec<u8>) -> Result<Option<&'a [u8]>, DecodeError> {
    let coded = rest.first().ok_or(DecodeError::Truncated)? & 0x80 != 0;
    let length = number(rest, 7)?;
    let (bytes, after) = rest
        .split_at_checked(length)
        .ok_or(DecodeError::Truncated)?;
    *rest = after;
    if !coded {
        return Ok(Some(bytes));
    }
    scratch.clear();
    huffman::decode(bytes, scratch).ok_or(DecodeError::Code)?;
    Ok(None)
}

/// `:method: CONNECT`, written down once and for all.
pub(super) const CONNECT: &[u8] = b"\x02\x07CONNECT";
/// Index of the name `:authority`.
pub(super) const AUTHORITY: u8 = 1;
/// Index of the name `:status`.
const STATUS: u8 = 8;
/// We keep to a table of size 0.
pub(super) const NO_TABLE: u8 = 0x20;

/// Appends `:status`.
pub(super) fn put_status(out: &mut Vec<u8>, status: u16) {
    match [200, 204, 206, 304, 400, 404, 500]
        .iter()
        .position(|s| *s == status)
    {
        Some(nth) => out.push(0x80 | (STATUS + nth as u8)), // below 7
        None => put_indexed(out, STATUS, status.to_string().as_bytes()),
    }
}

/// Appends a field whose name has an index below 15.
pub(super) fn put_indexed(out: &mut Vec<u8>, name: u8, value: &[u8]) {
    out.push(name);
    put_string(out, value);
}

/// Appends a field.
pub fn put(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(0);
    put_string(out, name.as_bytes());
    put_string(out, value);
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.len() < 127 {
        out.push(bytes.len() as u8); // below 127
    } else {
        out.push(127);
        let mut rest = bytes.len() - 127;
        while rest >= 128 {
            out.push(rest as u8 | 0x80); // the low seven bits
            rest >>= 7;
        }
        out.push(rest as u8); // below 128
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
