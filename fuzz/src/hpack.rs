//! 1. blocks, each behind its length; a length of 255 stands for the acknowledgement that we keep no table
//! 2. the fields of each, if it is one, are written down anew, and read the same

use hbone::frames::hpack::{Decoder, put};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// See the file's head.
pub fn hpack(mut data: &[u8]) {
    let mut decoder = Decoder::default();
    while let Some((&length, rest)) = data.split_first() {
        if length == 255 {
            decoder.acknowledged();
            data = rest;
            continue;
        }
        let (block, behind) = rest.split_at(rest.len().min(length.into()));
        data = behind;
        let Some(fields) = decode(&mut decoder, block) else {
            return; // the context is lost
        };
        let mut again = Vec::new();
        for (name, value) in &fields {
            if let Ok(name) = std::str::from_utf8(name) {
                put(&mut again, name, value);
            }
        }
        let of_text = |(name, _): &&(Vec<u8>, Vec<u8>)| std::str::from_utf8(name).is_ok();
        let written: Fields = fields.iter().filter(of_text).cloned().collect();
        let read = decode(&mut Decoder::default(), &again);
        assert_eq!(read, Some(written));
    }
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Option<Fields> {
    let mut fields = Fields::new();
    let each = |name: &[u8], value: &[u8]| fields.push((name.to_vec(), value.to_vec()));
    decoder.decode(block, each).ok()?;
    // A field takes a byte at least, and none is longer than a table or a string code can make it.
    let longest = 4096.max(block.len() * 8 / 5);
    assert!(fields.len() <= block.len());
    let sound = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len() <= 2 * longest;
    assert!(fields.iter().all(sound));
    Some(fields)
}
