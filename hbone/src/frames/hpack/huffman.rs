//! The string code of header compression (RFC 7541, 5.2 and Appendix B).
//!
//! The code is canonical: symbols of the same length have consecutive codes, in order, and longer codes
//! follow shorter ones. So the lengths alone define it, and decoding compares the next 32 bits with one
//! bound per length: four comparisons for the characters that headers are made of. We never encode.

/// Length in bits of each symbol's code; the last is the end of string, which must not be sent.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const LONGEST: usize = 30;
const END: u16 = 256;

/// All there is to decode with.
struct Code {
    /// For each length, the first 32 bits that begin with a longer code.
    bounds: [u64; LONGEST + 1],
    /// For each length, its first code, moved to the left of 32 bits.
    first: [u32; LONGEST + 1],
    /// For each length, where its symbols begin in `symbols`.
    at: [u16; LONGEST + 1],
    /// Symbols in the order of their codes.
    symbols: [u16; 257],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut made = Code {
        bounds: [0; LONGEST + 1],
        first: [0; LONGEST + 1],
        at: [0; LONGEST + 1],
        symbols: [0; 257],
    };
    let (mut next, mut count, mut length) = (0u64, 0, 1);
    while length <= LONGEST {
        made.first[length] = next as u32; // of 2^32 at most its last, which no length begins with
        made.at[length] = count as u16; // at most 257
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                made.symbols[count] = symbol as u16; // at most 256
                count += 1;
                next += 1 << (32 - length);
            }
            symbol += 1;
        }
        made.bounds[length] = next;
        length += 1;
    }
    made
}

/// Appends the decoded string. `None` when it is no code, holds the end of string, or is padded with
/// anything but fewer than eight ones.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut bits, mut have, mut coded) = (0u64, 0u32, coded.iter());
    loop {
        // At least 32 bits, with ones behind the end.
        while have < 32 {
            match coded.next() {
                Some(byte) => {
                    bits |= u64::from(*byte) << (56 - have);
                    have += 8;
                }
                None => break,
            }
        }
        if have == 0 {
            return Some(());
        }
        let padded = bits | (u64::MAX >> have);
        if have < 8 && padded == u64::MAX {
            return Some(());
        }
        let window = padded >> 32;
        let length = (5..=LONGEST).find(|length| window < CODE.bounds[*length])?;
        if length as u32 > have {
            return None; // the string ends inside a code
        }
        let nth = (window as u32 - CODE.first[length]) >> (32 - length);
        let symbol = CODE.symbols[usize::from(CODE.at[length]) + nth as usize];
        if symbol == END {
            return None;
        }
        out.push(symbol as u8); // below 256
        bits <<= length;
        have -= length as u32; // 30 at most
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The other way round, for tests.
    pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let nth = (0..usize::from(*byte))
                .filter(|s| usize::from(LENGTHS[*s]) == length)
                .count() as u64;
            let code = (u64::from(CODE.first[length]) >> (32 - length)) + nth;
            bits.push_str(&format!("{code:0length$b}"));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let byte = |i: usize| u8::from_str_radix(&bits[i..i + 8], 2).unwrap();
        (0..bits.len()).step_by(8).map(byte).collect()
    }

    fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        for (coded, text) in [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x64, 0x02], "302"),
            (&[0xae, 0xc3, 0x77, 0x1a, 0x4b], "private"),
            (&[], ""),
        ] {
            assert_eq!(decoded(coded).as_deref(), Some(text.as_bytes()));
        }
    }

    #[test]
    fn every_code_is_used() {
        assert_eq!(CODE.bounds[LONGEST], 1 << 32, "the code is complete");
    }

    #[test]
    fn bad_padding_and_the_end_of_string_are_refused() {
        for coded in [
            &[0xff][..],               // eight ones are too many
            &[0x07, 0xff],             // '0' then eleven ones
            &[0x00],                   // '0' and zeros that are no whole code
            &[0xff, 0xff, 0xff, 0xff], // the end of string
            &[0xff, 0xff, 0xff],       // its beginning
            &[0xff, 0xff, 0xff, 0xfc], // the end of string, cut to 30 bits and two zeros
        ] {
            assert_eq!(decoded(coded), None, "{coded:x?}");
        }
        assert_eq!(decoded(&[0x07]).as_deref(), Some(&b"0"[..]));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: Vec<u8>) {
            prop_assert_eq!(decoded(&encode(&text)), Some(text));
        }

        #[test]
        fn nothing_panics(coded: Vec<u8>) {
            let _ = decoded(&coded);
        }
    }
}
