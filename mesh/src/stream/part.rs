//! A part of a response, its resources still encoded.
//!
//! What `cut.rs` made enters. The texts and contents of resources leave as slices of it; the few
//! other fields are decoded the usual way.

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::cut::MORE;
use crate::wire::{Cursor, Unusual};

/// Some of the resources of a response, and those of its other fields that stood between them.
#[derive(Debug, Default)]
pub struct Part {
    /// Its resources.
    pub(crate) resources: Vec<Found>,
    /// Everything else that was in it.
    pub(crate) rest: DeltaDiscoveryResponse,
    /// Others follow before the response is whole.
    pub(crate) more: bool,
    /// On the wire, decoded from gRPC.
    pub(crate) bytes: usize,
}

/// A resource in its envelope. Texts have been checked.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: Text,
    pub(crate) version: Text,
    /// Other names by which it can be asked for; told on demand only.
    pub(crate) aliases: Vec<Text>,
    /// Its type and its encoding.
    pub(crate) content: Option<(Text, Bytes)>,
}

/// UTF-8 in a slice of something larger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text(Bytes);

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // Checked when it was made; what is not text reads as none.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Text {
    fn of(whole: &Bytes, text: &str) -> Self {
        Self(whole.slice_ref(text.as_bytes()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Part {
    /// Reads an encoded response, or a part of one.
    fn read(encoded: &Bytes) -> Result<Self, prost::DecodeError> {
        Self::slices(encoded).or_else(|_| {
            // A rare encoding of something good, or nothing good at all.
            DeltaDiscoveryResponse::decode(encoded.clone()).map(Self::from)
        })
    }

    fn slices(encoded: &Bytes) -> Result<Self, Unusual> {
        let mut part = Self {
            bytes: encoded.len(),
            ..Self::default()
        };
        let mut others = Vec::new();
        let mut cursor = Cursor::new(encoded);
        loop {
            let start = encoded.len() - cursor.left();
            let Some((number, content)) = cursor.field()? else {
                break;
            };
            if number == RESOURCES {
                part.resources
                    .push(Found::slices(encoded, content.bytes()?)?);
            } else {
                others.extend_from_slice(&encoded[start..encoded.len() - cursor.left()]);
            }
        }
        part.rest = DeltaDiscoveryResponse::decode(&*others).map_err(|_| Unusual)?;
        Ok(part)
    }
}

impl From<DeltaDiscoveryResponse> for Part {
    fn from(mut whole: DeltaDiscoveryResponse) -> Self {
        let bytes = whole.encoded_len();
        let resources = std::mem::take(&mut whole.resources).into_iter();
        Self {
            resources: resources
                .map(|resource| Found {
                    name: resource.name.into(),
                    version: resource.version.into(),
                    aliases: resource.aliases.into_iter().map(Text::from).collect(),
                    content: resource
                        .resource
                        .map(|any| (any.type_url.into(), any.value.into())),
                })
                .collect(),
            rest: whole,
            more: false,
            bytes,
        }
    }
}

impl Found {
    fn slices(whole: &Bytes, encoded: &[u8]) -> Result<Self, Unusual> {
        let mut found = Self {
            name: Text::default(),
            version: Text::default(),
            aliases: Vec::new(),
            content: None,
        };
        let mut cursor = Cursor::new(encoded);
        while let Some((number, content)) = cursor.field()? {
            match number {
                VERSION => found.version = Text::of(whole, content.text()?),
                // Twice, they would be merged.
                RESOURCE if found.content.is_some() => return Err(Unusual),
                RESOURCE => found.content = Some(envelope(whole, content.bytes()?)?),
                NAME => found.name = Text::of(whole, content.text()?),
                ALIASES => found.aliases.push(Text::of(whole, content.text()?)),
                _ => {}
            }
        }
        Ok(found)
    }
}

fn envelope(whole: &Bytes, encoded: &[u8]) -> Result<(Text, Bytes), Unusual> {
    let mut any = <(Text, Bytes)>::default();
    let mut cursor = Cursor::new(encoded);
    while let Some((number, content)) = cursor.field()? {
        match number {
            TYPE_URL => any.0 = Text::of(whole, content.text()?),
            VALUE => any.1 = whole.slice_ref(content.bytes()?),
            _ => {}
        }
    }
    Ok(any)
}

/// Requests as everywhere, responses in parts.
#[derive(Debug, Default)]
pub(super) struct PartCodec;

impl Codec for PartCodec {
    type Encode = DeltaDiscoveryRequest;
    type Decode = Part;
    type Encoder = ProstEncoder<DeltaDiscoveryRequest>;
    type Decoder = PartDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        PartDecoder
    }
}

/// Reads what `cut.rs` marked.
#[derive(Debug)]
pub(super) struct PartDecoder;

impl Decoder for PartDecoder {
    type Item = Part;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Part>, Status> {
        let mut encoded = from.copy_to_bytes(from.remaining());
        let mark = encoded.try_get_u8();
        let mark = mark.map_err(|_| Status::internal("a part of a message without its mark"))?;
        let mut part = Part::read(&encoded).map_err(|error| Status::internal(error.to_string()))?;
        part.more = mark == MORE;
        Ok(Some(part))
    }
}

// Fields of DeltaDiscoveryResponse, Resource, and Any.
const RESOURCES: u32 = 2;
const VERSION: u32 = 1;
const RESOURCE: u32 = 2;
const NAME: u32 = 3;
const ALIASES: u32 = 4;
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

#[cfg(test)]
mod tests {
    use api::discovery::Resource;
    use proptest::prelude::*;

    use super::*;

    fn resource() -> impl Strategy<Value = Resource> {
        let content = (any::<String>(), any::<Vec<u8>>())
            .prop_map(|(type_url, value)| prost_types::Any { type_url, value });
        (
            any::<String>(),
            any::<String>(),
            proptest::option::of(content),
            prop::collection::vec(any::<String>(), 0..2),
        )
            .prop_map(|(name, version, resource, aliases)| Resource {
                name,
                version,
                resource,
                aliases,
            })
    }

    fn response() -> impl Strategy<Value = DeltaDiscoveryResponse> {
        (
            prop::collection::vec(resource(), 0..4),
            any::<[String; 3]>(),
            prop::collection::vec(any::<String>(), 0..3),
        )
            .prop_map(
                |(resources, [nonce, type_url, system], removed_resources)| {
                    DeltaDiscoveryResponse {
                        system_version_info: system,
                        resources,
                        type_url,
                        nonce,
                        removed_resources,
                    }
                },
            )
    }

    fn shown(part: Part) -> String {
        format!("{:?} {:?}", part.resources, part.rest)
    }

    proptest! {
        /// Whatever the bytes: the same content as from the generated decoder, or the same refusal.
        #[test]
        fn slices_say_what_the_generated_decoder_says(
            response in response(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            end in any::<prop::sample::Index>(),
            cut in prop::bool::weighted(0.2),
        ) {
            let mut encoded = response.encode_to_vec();
            if !encoded.is_empty() {
                for (at, byte) in changes {
                    let at = at.index(encoded.len());
                    encoded[at] = byte;
                }
                if cut {
                    encoded.truncate(end.index(encoded.len()));
                }
            }
            let encoded = Bytes::from(encoded);
            let expected = DeltaDiscoveryResponse::decode(encoded.clone()).map(|whole| shown(whole.into()));
            let found = Part::read(&encoded);
            prop_assert_eq!(found.as_ref().is_ok(), expected.is_ok());
            if let (Ok(found), Ok(expected)) = (found, expected) {
                prop_assert_eq!(found.bytes, encoded.len());
                prop_assert_eq!(shown(found), expected);
            }
        }
    }
}
