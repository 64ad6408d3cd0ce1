//! Pure: reads protobuf where it lies.
//!
//! A generated decoder makes an owned value of every text, which of 100,000 workloads with twenty
//! texts each are then looked up and thrown away. A [`Cursor`] hands out slices of the encoding.
//! It is strict and short: whoever meets something unusual (a group, a field that ends too early)
//! leaves the whole message to the generated decoder, which knows all rules and says what is wrong.

/// What is left of an encoded message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a>(&'a [u8]);

/// The content of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes.
    Fixed,
}

/// What became of an attempt to skip a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skipped {
    /// It was there as a whole.
    Whole,
    /// It ends behind what is there.
    Short,
    /// It is no field that can be understood.
    Odd,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(encoded: &'a [u8]) -> Self {
        Self(encoded)
    }

    /// Bytes not read yet.
    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    /// The next field; `Ok(None)` at the end.
    pub(crate) fn field(&mut self) -> Result<Option<(u32, Content<'a>)>, Unusual> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = number(tag).ok_or(Unusual)?;
        let content = match tag & 7 {
            VARINT => Content::Varint(self.varint()?),
            LENGTH_DELIMITED => {
                let length = usize::try_from(self.varint()?).map_err(|_| Unusual)?;
                let (content, rest) = self.0.split_at_checked(length).ok_or(Unusual)?;
                self.0 = rest;
                Content::Bytes(content)
            }
            FIXED_64 => self.fixed(8)?,
            FIXED_32 => self.fixed(4)?,
            _ => return Err(Unusual), // groups: not in proto3
        };
        Ok(Some((number, content)))
    }

    /// Goes on to the next field. Unless it was skipped as a whole, where the cursor then stands
    /// means nothing.
    pub(crate) fn skip_field(&mut self) -> Skipped {
        let before = *self;
        match self.field() {
            Ok(Some(_)) => Skipped::Whole,
            Ok(None) => Skipped::Short,
            Err(Unusual) => before.why_not(),
        }
    }

    /// Whether more bytes could make a field of what is no field yet.
    fn why_not(mut self) -> Skipped {
        let tag = match self.varint() {
            Ok(tag) => tag,
            Err(Unusual) if self.0.is_empty() => return Skipped::Short,
            Err(Unusual) => return Skipped::Odd,
        };
        if number(tag).is_none()
            || !matches!(tag & 7, VARINT | LENGTH_DELIMITED | FIXED_64 | FIXED_32)
        {
            return Skipped::Odd;
        }
        match tag & 7 {
            VARINT | LENGTH_DELIMITED => match self.varint() {
                Err(Unusual) if !self.0.is_empty() => Skipped::Odd,
                _ => Skipped::Short,
            },
            _ => Skipped::Short,
        }
    }

    fn fixed(&mut self, length: usize) -> Result<Content<'a>, Unusual> {
        self.0 = self.0.get(length..).ok_or(Unusual)?;
        Ok(Content::Fixed)
    }

    /// Leaves nothing when the encoding ends in the middle of one.
    fn varint(&mut self) -> Result<u64, Unusual> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Unusual)?;
            self.0 = rest;
            if shift == 63 && *byte > 1 {
                return Err(Unusual);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unusual)
    }
}

/// The number of the field that a tag begins.
fn number(tag: u64) -> Option<u32> {
    u32::try_from(tag)
        .ok()
        .map(|tag| tag >> 3)
        .filter(|number| *number > 0)
}

/// Left to the generated decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unusual;

impl<'a> Content<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], Unusual> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed => Err(Unusual),
        }
    }

    pub(crate) fn text(self) -> Result<&'a str, Unusual> {
        str::from_utf8(self.bytes()?).map_err(|_| Unusual)
    }

    pub(crate) fn number(self) -> Result<u64, Unusual> {
        match self {
            Self::Varint(number) => Ok(number),
            Self::Bytes(_) | Self::Fixed => Err(Unusual),
        }
    }
}

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;
