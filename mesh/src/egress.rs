//! What becomes of a workload's connections to where nobody is known: an address outside of the mesh that no service names.
//!
//! It travels in an extension of the workload (docs/wire.md "Egress"); what of that cannot be read refuses them.

use std::sync::Arc;

use api::EGRESS_EXTENSION;
use api::egress::egress::Mode;
use api::workload as wire;

use crate::names::Interner;
use crate::wire::{Content, Cursor, Unusual};

/// What becomes of connections to who is unknown, and who says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Egress {
    /// What.
    pub mode: EgressMode,
    /// Which setting says so, in words; empty where none does.
    pub set_by: Arc<str>,
}

/// What becomes of connections to who is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EgressMode {
    /// They pass.
    #[default]
    Allow,
    /// They pass, and are told of.
    Log,
    /// They are refused.
    Refuse,
}

/// The same before it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct BriefEgress<'a> {
    mode: EgressMode,
    set_by: &'a str,
}

impl<'a> BriefEgress<'a> {
    /// Of decoded extensions: the last that is about it.
    pub(crate) fn of(extensions: &'a [wire::Extension]) -> Self {
        let found = extensions.iter().rfind(|it| it.name == EGRESS_EXTENSION);
        found.map_or_else(Self::default, |found| {
            let config = found.config.as_ref();
            Self::of_config(config.map_or(&[][..], |config| &config.value[..]))
        })
    }

    /// Of an encoded extension; none if it is about something else.
    pub(crate) fn read(extension: &'a [u8]) -> Result<Option<Self>, Unusual> {
        let (mut name, mut config) = ("", None);
        let mut cursor = Cursor::new(extension);
        while let Some((number, content)) = cursor.field()? {
            match number {
                1 => name = content.text()?,
                // One that comes twice is merged, which is left to the generated decoder.
                2 if config.is_some() => return Err(Unusual),
                2 => config = Some(value(content)?),
                _ => {}
            }
        }
        let about_it = name == EGRESS_EXTENSION;
        Ok(about_it.then(|| Self::of_config(config.unwrap_or_default())))
    }

    /// What its sender meant to restrict stays restricted, whether we understand how or not.
    fn of_config(config: &'a [u8]) -> Self {
        Self::understood(config).unwrap_or(Self {
            mode: EgressMode::Refuse,
            set_by: UNREADABLE,
        })
    }

    fn understood(config: &'a [u8]) -> Result<Self, Unusual> {
        let (mut mode, mut set_by) = (0, "");
        let mut cursor = Cursor::new(config);
        while let Some((number, content)) = cursor.field()? {
            match number {
                1 => mode = content.number()? as i32, // as protobuf has it
                2 => set_by = content.text()?,
                _ => {}
            }
        }
        let mode = match Mode::try_from(mode) {
            Ok(Mode::Allow) => EgressMode::Allow,
            Ok(Mode::Log) => EgressMode::Log,
            Ok(Mode::Refuse) | Err(_) => EgressMode::Refuse,
        };
        Ok(Self { mode, set_by })
    }

    pub(crate) fn keep(self, names: &mut Interner) -> Egress {
        Egress {
            mode: self.mode,
            set_by: names.text(self.set_by),
        }
    }

    /// Whether what is kept says the same.
    pub(crate) fn is(&self, held: &Egress) -> bool {
        self.mode == held.mode && *self.set_by == *held.set_by
    }
}

/// The value of a `google.protobuf.Any`.
fn value(content: Content<'_>) -> Result<&[u8], Unusual> {
    let mut value = &[][..];
    let mut cursor = Cursor::new(content.bytes()?);
    while let Some((number, content)) = cursor.field()? {
        match number {
            1 => {
                content.text()?;
            }
            2 => value = content.bytes()?,
            _ => {}
        }
    }
    Ok(value)
}

/// Who says what cannot be read.
const UNREADABLE: &str = "a setting that this proxy cannot read";

#[cfg(test)]
mod tests {
    use api::egress as said;
    use prost::Message;
    use prost_types::Any;

    use super::*;

    fn extension(name: &str, value: Vec<u8>) -> wire::Extension {
        wire::Extension {
            name: name.into(),
            config: Some(Any {
                type_url: api::EGRESS_TYPE.into(),
                value,
            }),
        }
    }

    fn says(mode: i32, set_by: &str) -> Vec<u8> {
        let set_by = set_by.to_owned();
        said::Egress { mode, set_by }.encode_to_vec()
    }

    /// Both ways lead to it.
    fn read(extension: &wire::Extension) -> Option<(EgressMode, String)> {
        let encoded = extension.encode_to_vec();
        let short = BriefEgress::read(&encoded).unwrap();
        let long = BriefEgress::of(std::slice::from_ref(extension));
        assert_eq!(short.unwrap_or_default(), long);
        short.map(|it| (it.mode, it.set_by.to_owned()))
    }

    #[test]
    fn what_is_said_is_read_and_what_cannot_be_read_refuses() {
        for (mode, expected) in [
            (0, EgressMode::Allow),
            (1, EgressMode::Log),
            (2, EgressMode::Refuse),
            (3, EgressMode::Refuse),
            (-1, EgressMode::Refuse),
        ] {
            let found = read(&extension(EGRESS_EXTENSION, says(mode, "the mesh")));
            assert_eq!(found, Some((expected, "the mesh".to_owned())), "{mode}");
        }
        let broken = read(&extension(EGRESS_EXTENSION, vec![0x0a, 0xff]));
        let unreadable = Some((EgressMode::Refuse, UNREADABLE.to_owned()));
        assert_eq!(broken, unreadable);
        let text = read(&extension(EGRESS_EXTENSION, vec![0x12, 0x01, 0xff]));
        assert_eq!(text, unreadable, "no text");
    }

    #[test]
    fn extensions_about_something_else_say_nothing_of_it() {
        assert_eq!(read(&extension("else", says(2, "x"))), None);
        let both = [
            extension(EGRESS_EXTENSION, says(2, "first")),
            extension("else", says(1, "x")),
            extension(EGRESS_EXTENSION, says(1, "last")),
        ];
        let found = BriefEgress::of(&both);
        assert_eq!((found.mode, found.set_by), (EgressMode::Log, "last"));
        assert_eq!(BriefEgress::of(&[]), BriefEgress::default());
    }
}
