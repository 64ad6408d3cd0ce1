use proptest::prelude::*;

use super::*;

type Fields = Vec<(String, String)>;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, DecodeError> {
    let mut fields = Vec::new();
    decoder.decode(block, |name, value| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fields.push((text(name), text(value)));
    })?;
    Ok(fields)
}

fn fields(list: &[(&str, &str)]) -> Fields {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    list.iter().map(own).collect()
}

/// RFC 7541, C.3 and C.4: three requests with a table, plain and coded.
#[test]
fn the_requests_of_the_rfc_are_read_with_their_table() {
    let first = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ];
    let second = [&first[..], &[("cache-control", "no-cache")]].concat();
    let plain = [b"\x82\x86\x84\x41\x0f".as_slice(), b"www.example.com"].concat();
    let coded = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff".to_vec();
    for (one, two) in [
        (plain, &b"\x82\x86\x84\xbe\x58\x08no-cache"[..]),
        (
            coded,
            &b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf"[..],
        ),
    ] {
        let mut decoder = Decoder::default();
        assert_eq!(decode(&mut decoder, &one), Ok(fields(&first)));
        assert_eq!(decode(&mut decoder, two), Ok(fields(&second)));
    }
}

#[test]
fn after_the_acknowledgement_nothing_is_remembered() {
    let remembered = b"\x40\x01a\x01b";
    let reference = b"\xbe";
    let mut decoder = Decoder::default();
    assert_eq!(decode(&mut decoder, remembered), Ok(fields(&[("a", "b")])));
    assert_eq!(decode(&mut decoder, reference), Ok(fields(&[("a", "b")])));
    decoder.acknowledged();
    assert_eq!(decode(&mut decoder, b"\x20"), Ok(vec![]));
    assert_eq!(decode(&mut decoder, reference), Err(DecodeError::Index));
    assert_eq!(decode(&mut decoder, remembered), Ok(fields(&[("a", "b")])));
    assert_eq!(decode(&mut decoder, reference), Err(DecodeError::Index));

    // An encoder that does not say that it complies has to comply.
    let mut decoder = Decoder::default();
    decode(&mut decoder, remembered).unwrap();
    decoder.acknowledged();
    assert_eq!(decode(&mut decoder, reference), Err(DecodeError::Index));
}

#[test]
fn broken_blocks_are_refused_with_the_reason() {
    for (block, why) in [
        (&b"\x80"[..], DecodeError::Index),             // index 0
        (b"\xbe", DecodeError::Index),                  // nothing remembered
        (b"\xff\x80\x80\x80\x01", DecodeError::Number), // four more bytes
        (b"\xff\xff\xff\xff\xff\xff\xff", DecodeError::Number),
        (b"\xff\xff", DecodeError::Truncated),
        (b"\x00", DecodeError::Truncated),
        (b"\x00\x05a", DecodeError::Truncated),
        (b"\x00\x01a", DecodeError::Truncated),
        (b"\x00\x01a\x05b", DecodeError::Truncated),
        (b"\x00\x01a\x81\xff", DecodeError::Code),
        (b"\x7e\x01a", DecodeError::Index),
        (b"\x3f\xe2\x1f", DecodeError::TableSize), // 4097
        (b"\x82\x20", DecodeError::TableSize),     // not at the beginning
    ] {
        assert_eq!(
            decode(&mut Decoder::default(), block),
            Err(why),
            "{block:x?}"
        );
    }
    let mut decoder = Decoder::default();
    decoder.acknowledged();
    assert_eq!(decode(&mut decoder, b"\x21"), Err(DecodeError::TableSize));
    assert_eq!(decode(&mut decoder, b""), Ok(vec![]));
}

/// Two bytes have a name of 4,000 copied, and the one before it thrown away.
#[test]
fn a_block_that_fills_the_table_again_and_again_is_refused() {
    let again = |times: usize| {
        let mut block = vec![0x40];
        put_string(&mut block, &[b'n'; 4000]);
        put_string(&mut block, b"");
        block.extend(b"\x7e\x00".repeat(times));
        block
    };
    let read = decode(&mut Decoder::default(), &again(20));
    assert_eq!(read.unwrap().len(), 21);
    let read = decode(&mut Decoder::default(), &again(60_000));
    assert_eq!(read, Err(DecodeError::Churn));
    // Each block counts by itself.
    let mut decoder = Decoder::default();
    assert!((0..10).all(|_| decode(&mut decoder, &again(20)).is_ok()));
    // Where nothing is kept there is nothing to count.
    let mut decoder = Decoder::default();
    decoder.acknowledged();
    let many = b"\x40\x01a\x01b".repeat(10_000);
    assert_eq!(decode(&mut decoder, &many).unwrap().len(), 10_000);
}

#[test]
fn the_entry_that_lends_its_name_may_make_room_for_the_new_one() {
    let mut decoder = Decoder::default();
    let mut block = b"\x3f\x03\x40".to_vec(); // table of 34
    put_string(&mut block, b"a");
    put_string(&mut block, b"1");
    block.push(0x7e); // name of entry 62
    put_string(&mut block, b"2");
    block.push(0xbe);
    let expected = fields(&[("a", "1"), ("a", "2"), ("a", "2")]);
    assert_eq!(decode(&mut decoder, &block), Ok(expected));
}

#[test]
fn a_status_is_read_as_it_was_written() {
    for status in [200, 204, 206, 304, 400, 401, 404, 431, 500, 503, 599] {
        let mut block = Vec::new();
        put_status(&mut block, status);
        let expected = fields(&[(":status", &status.to_string())]);
        assert_eq!(decode(&mut Decoder::default(), &block), Ok(expected));
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(list in prop::collection::vec(("[a-z-]{1,300}", "[ -~]{0,300}"), 0..8)) {
        let mut block = Vec::new();
        for (name, value) in &list {
            put(&mut block, name, value.as_bytes());
        }
        prop_assert_eq!(decode(&mut Decoder::default(), &block), Ok(list));
    }

    #[test]
    fn coded_strings_are_read_like_plain_ones(name in "[a-z-]{1,20}", value: Vec<u8>) {
        let coded = huffman::tests::encode(&value);
        let mut block = vec![0, name.len() as u8];
        block.extend_from_slice(name.as_bytes());
        let at = block.len();
        put_string(&mut block, &coded);
        block[at] |= 0x80;
        let mut seen = None;
        Decoder::default().decode(&block, |n, v| seen = Some((n.to_vec(), v.to_vec()))).unwrap();
        prop_assert_eq!(seen, Some((name.into_bytes(), value)));
    }

    #[test]
    fn no_block_panics_or_outgrows_the_table(blocks: Vec<Vec<u8>>, acknowledged: bool) {
        let mut decoder = Decoder::default();
        if acknowledged {
            decoder.acknowledged();
        }
        for block in blocks {
            if decode(&mut decoder, &block).is_err() {
                break;
            }
        }
    }
}
