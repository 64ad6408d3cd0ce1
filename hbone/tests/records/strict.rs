//! Records and messages as no honest peer makes them, sealed by hand with the keys of RFC 8448, 3.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use hbone::records::{
    ContentType, HEAD, MOST, Opened, Opener, RecordError, Sealer, Secret, Side, Suite, TAIL,
};

use crate::stock::{Heard, bytes, hear};

/// Secrets of client and server, and of the server what is derived from its secret.
const CLIENT: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
const SERVER: &str = "a11af9f05531f856ad47116b45a9503282 04b4f44bfb6b3a4b4f1f3fcb631643";
const SERVER_KEY: &str = "9f02283b6c9c07efc26bb9f2ac92e356";
const SERVER_IV: &str = "cf782b88dd83549aadf1e984";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn secret(text: &str) -> Secret {
    Secret::new(Suite::Aes128Gcm, &hex(text)).unwrap()
}

/// Opens what the server sends, as its client or as if it were a client.
fn opener(side: Side) -> Opener {
    Opener::new(side, secret(SERVER), 0).unwrap()
}

/// Seals anything at all.
struct Forger {
    key: LessSafeKey,
    sequence: u64,
}

impl Forger {
    fn new() -> Self {
        let key = UnboundKey::new(&AES_128_GCM, &hex(SERVER_KEY)).unwrap();
        Self {
            key: LessSafeKey::new(key),
            sequence: 0,
        }
    }

    /// A record whose inside is given with type and padding.
    fn record(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut nonce: [u8; 12] = hex(SERVER_IV).try_into().unwrap();
        for (byte, n) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= n;
        }
        self.sequence += 1;
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let head = [23, 3, 3, length[0], length[1]];
        let mut sealed = inner.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(head),
                &mut sealed,
            )
            .unwrap();
        [&head[..], &sealed].concat()
    }

    fn data(&mut self, data: &[u8]) -> Vec<u8> {
        self.record(&[data, &[23]].concat())
    }

    fn message(&mut self, message: &[u8]) -> Vec<u8> {
        self.record(&[message, &[22]].concat())
    }
}

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

fn ticket(length: usize) -> Vec<u8> {
    let [.., a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
    [&[4, a, b, c], &bytes(length)[..]].concat()
}

/// What a side makes of records in a row.
fn made_of(side: Side, records: &[Vec<u8>]) -> Result<Heard, RecordError> {
    let mut heard = Heard::default();
    hear(&mut opener(side), &mut records.concat(), &mut heard)?;
    Ok(heard)
}

#[test]
fn the_records_of_rfc_8448_are_made_and_read() {
    let data: Vec<u8> = (0..50).collect();
    let of_client = hex(
        "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab
         3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d
         ea e6 3a ee bb 21 69 49 15 e4",
    );
    let end_of_client =
        hex("17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3");
    let of_server = hex(
        "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b
         36 e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3
         32 54 0d d0 32 e1 67 c2 95 5d",
    );
    let end_of_server =
        hex("17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9");
    // The server's first record was a ticket.
    for (name, first, record, end) in [
        (CLIENT, 0, of_client, end_of_client),
        (SERVER, 1, of_server, end_of_server),
    ] {
        let mut sealer = Sealer::new(secret(name), first).unwrap();
        let mut out = Vec::new();
        let start = sealer.begin(&mut out);
        out.extend_from_slice(&data);
        sealer.finish(&mut out, start, ContentType::Data).unwrap();
        assert_eq!(out, record);
        out.clear();
        sealer.close(&mut out).unwrap();
        assert_eq!(out, end);

        let mut opener = Opener::new(Side::Client, secret(name), first).unwrap();
        let mut heard = Heard::default();
        hear(&mut opener, &mut [record, end].concat(), &mut heard).unwrap();
        assert_eq!((heard.data, heard.closed), (data.clone(), true));
    }
}

#[test]
fn every_altered_byte_is_refused() {
    let record = Forger::new().data(b"pay 1 to Ann");
    for at in 0..record.len() {
        for bit in 0..8 {
            let mut altered = record.clone();
            altered[at] ^= 1 << bit;
            let mut opener = opener(Side::Client);
            if let Ok(Opened::Incomplete { wanted }) = opener.next(&mut altered) {
                // It claims to be longer, and is no better when that much has come.
                assert!(at == 3 || at == 4);
                altered.resize(wanted, 0);
            }
            let error = opener.next(&mut altered).unwrap_err();
            assert!(error.alert().is_some(), "{at} {bit} {error}");
            assert_eq!(opener.next(&mut record.clone()), Err(error), "and for good");
        }
    }
}

#[test]
fn a_record_that_is_repeated_left_out_or_early_is_refused() {
    let mut forger = Forger::new();
    let [one, two, three] = [b"one", b"two", b"thr"].map(|data| forger.data(data));
    for order in [
        [&one, &one, &two],
        [&one, &three, &two],
        [&two, &one, &three],
    ] {
        let records = order.map(Clone::clone);
        assert_eq!(
            made_of(Side::Client, &records).unwrap_err(),
            RecordError::Tag
        );
    }
    let heard = made_of(Side::Client, &[one, two, three]).unwrap();
    assert_eq!(heard.data, b"onetwothr");
}

#[test]
fn a_record_sealed_under_the_key_before_an_update_is_refused() {
    let mut forger = Forger::new();
    let records = [forger.message(&KEY_UPDATE), forger.data(b"late")];
    assert_eq!(
        made_of(Side::Client, &records).unwrap_err(),
        RecordError::Tag
    );
}

#[test]
fn a_record_that_is_cut_off_is_waited_for_and_never_taken() {
    let record = Forger::new().data(b"whole");
    for length in 0..record.len() {
        let mut cut = record[..length].to_vec();
        let wanted = if length < HEAD { HEAD } else { record.len() };
        let opened = opener(Side::Client).next(&mut cut);
        assert_eq!(opened, Ok(Opened::Incomplete { wanted }));
        assert_eq!(cut, record[..length], "and left as it is");
    }
}

#[test]
fn heads_that_no_record_has_are_refused_before_anything_is_waited_for() {
    use RecordError::{Head, TooLong, TooShort};
    for (head, error) in [
        ([20, 3, 3, 0, 1], Head([20, 3, 3])),
        ([21, 3, 3, 0, 2], Head([21, 3, 3])),
        ([22, 3, 3, 0, 40], Head([22, 3, 3])),
        ([23, 3, 1, 0, 40], Head([23, 3, 1])),
        ([23, 3, 4, 0, 40], Head([23, 3, 4])),
        ([23, 3, 3, 0, 16], TooShort(16)),
        ([23, 3, 3, 0, 0], TooShort(0)),
        ([23, 3, 3, 0x41, 1], TooLong(MOST + 257)),
        ([23, 3, 3, 0xff, 0xff], TooLong(65_535)),
    ] {
        assert_eq!(opener(Side::Client).next(&mut head.clone()), Err(error));
    }
    let most = u16::try_from(MOST + 256).unwrap().to_be_bytes();
    let opened = opener(Side::Client).next(&mut [23, 3, 3, most[0], most[1]]);
    let wanted = HEAD + MOST + 256;
    assert_eq!(opened, Ok(Opened::Incomplete { wanted }));
}

#[test]
fn padding_is_taken_off_and_counts_as_content() {
    let mut forger = Forger::new();
    let mut full = bytes(MOST);
    full.push(23);
    let mut padded = b"data\x17".to_vec();
    padded.resize(MOST + 1, 0);
    let records = [
        forger.record(b"a\x17\0\0\0"),
        forger.record(&padded),
        forger.record(&full),
        forger.record(b"\0\0\x17\0"),
    ];
    let heard = made_of(Side::Client, &records).unwrap();
    assert_eq!(heard.data, [b"adata", &full[..MOST], b"\0\0"].concat());

    padded.push(0);
    let record = Forger::new().record(&padded);
    let error = made_of(Side::Client, &[record]).unwrap_err();
    assert_eq!(error, RecordError::TooLong(MOST + 2));
    assert_eq!(error.alert(), Some(22));
    let record = Forger::new().record(&[0; 9]);
    let error = made_of(Side::Client, &[record]).unwrap_err();
    assert_eq!(error, RecordError::NoType);
}

#[test]
fn what_has_no_place_after_the_handshake_is_refused() {
    let message = |number| RecordError::Unexpected {
        what: "the message",
        number,
    };
    let content = |number| RecordError::Unexpected {
        what: "content of type",
        number,
    };
    let malformed = RecordError::Malformed;
    let both = [Side::Client, Side::Server];
    for (sides, inner, error, alert) in [
        (&both[..], b"\x01\x14".to_vec(), content(20), 10),
        (&both, b"xx\x63".to_vec(), content(99), 10),
        (&both, b"\x16".to_vec(), malformed("handshake record"), 50),
        (&both, b"\x15".to_vec(), malformed("alert"), 50),
        (&both, b"\x02\x15".to_vec(), malformed("alert"), 50),
        (&both, b"\x02\x28\0\x15".to_vec(), malformed("alert"), 50),
        // ClientHello (renegotiation), Finished, CertificateRequest
        (&both, b"\x01\0\0\x01\0\x16".to_vec(), message(1), 10),
        (&both, b"\x14\x16".to_vec(), message(20), 10),
        (&both, b"\x0d\0\0\x03\0\0\0\x16".to_vec(), message(13), 10),
        (
            &both,
            b"\x18\0\0\x02\0\0\x16".to_vec(),
            malformed("key update"),
            50,
        ),
        (
            &both,
            b"\x18\0\0\0\x16".to_vec(),
            malformed("key update"),
            50,
        ),
        (
            &both,
            b"\x18\0\0\x01\x02\x16".to_vec(),
            RecordError::Request(2),
            47,
        ),
        (
            &both,
            b"\x18\0\0\x01\0\x18\x16".to_vec(),
            RecordError::Misplaced,
            10,
        ),
        (&both[1..], [ticket(40), vec![22]].concat(), message(4), 10),
        (
            &both[..1],
            b"\x04\0\x40\x01\x16".to_vec(),
            RecordError::Message(16_385),
            50,
        ),
    ] {
        for side in sides {
            let record = Forger::new().record(&inner);
            assert_eq!(made_of(*side, &[record]).unwrap_err(), error, "{inner:?}");
            assert_eq!(error.alert(), Some(alert));
        }
    }
}

#[test]
fn messages_may_be_split_and_packed() {
    let mut forger = Forger::new();
    let long = ticket(16 << 10);
    let (a, b) = long.split_at(3);
    let (b, c) = b.split_at(9_000);
    let records = [
        forger.message(&[ticket(40), ticket(50)].concat()),
        forger.data(b"between"),
        forger.message(a),
        forger.message(b),
        forger.message(&[c, &ticket(60)[..]].concat()),
        forger.message(&KEY_UPDATE[..2]),
        forger.message(&[0, 1]),
        forger.message(&[1]),
    ];
    let heard = made_of(Side::Client, &records).unwrap();
    let lengths: Vec<_> = heard.tickets.iter().map(Vec::len).collect();
    assert_eq!(lengths, [40, 50, 16 << 10, 60]);
    assert_eq!(heard.tickets[2], bytes(16 << 10));
    assert_eq!(
        (heard.data.as_slice(), heard.updates),
        (&b"between"[..], vec![true])
    );
}

#[test]
fn a_split_message_must_not_be_interrupted() {
    for between in [b"data\x17".to_vec(), b"\x17".to_vec()] {
        let mut forger = Forger::new();
        let records = [forger.message(&[4, 0]), forger.record(&between)];
        let error = made_of(Side::Client, &records).unwrap_err();
        assert_eq!(error, RecordError::Interrupted, "{between:?}");
    }
}

#[test]
fn the_beginning_of_a_message_is_part_of_the_state() {
    let mut forger = Forger::new();
    let whole = ticket(100);
    let mut opener = opener(Side::Client);
    let mut heard = Heard::default();
    for part in [&whole[..2], &whole[2..70], &whole[70..]] {
        hear(&mut opener, &mut forger.message(part), &mut heard).unwrap();
        let state = opener.into_state().unwrap();
        opener = Opener::from_state(state.as_ref()).unwrap();
    }
    assert_eq!(heard.tickets, [bytes(100)]);
}

#[test]
fn a_state_with_more_idle_records_than_may_be_is_refused() {
    let state = opener(Side::Client).into_state().unwrap();
    for (note, sound) in [(0, true), (32, true), (33, false), (0x80, false)] {
        let mut bytes = state.as_ref().to_vec();
        bytes[3] = note;
        assert_eq!(Opener::from_state(&bytes).is_ok(), sound, "{note}");
    }
}

#[test]
fn an_opener_that_has_ended_gives_no_state() {
    let mut ended = opener(Side::Client);
    ended
        .next(&mut Forger::new().record(b"\x01\0\x15"))
        .unwrap();
    assert!(ended.into_state().is_none());
    let mut broken = opener(Side::Client);
    broken.next(&mut [0; HEAD]).unwrap_err();
    assert!(broken.into_state().is_none());
}

#[test]
fn records_without_data_are_bounded_in_a_row() {
    let idle: [fn(&mut Forger) -> Vec<u8>; 3] = [
        |forger| forger.data(b""),
        |forger| forger.message(&ticket(40)),
        |forger| forger.record(b"\x01\x5a\x15"),
    ];
    for make in idle {
        let mut forger = Forger::new();
        let mut records: Vec<_> = (0..32).map(|_| make(&mut forger)).collect();
        records.push(forger.data(b"x"));
        records.extend((0..32).map(|_| make(&mut forger)));
        assert!(made_of(Side::Client, &records).is_ok());
        records.push(make(&mut forger));
        let error = made_of(Side::Client, &records).unwrap_err();
        assert_eq!(error, RecordError::Idle);
    }
}

#[test]
fn key_updates_without_data_are_bounded_in_a_row() {
    let mut sealer = Sealer::new(secret(SERVER), 0).unwrap();
    let (mut out, mut heard) = (Vec::new(), Heard::default());
    let mut opener = opener(Side::Client);
    (0..32).for_each(|_| sealer.update(&mut out, true).unwrap());
    hear(&mut opener, &mut out, &mut heard).unwrap();
    assert_eq!(heard.updates, [true; 32]);
    out.clear();
    sealer.update(&mut out, true).unwrap();
    let error = hear(&mut opener, &mut out, &mut heard).unwrap_err();
    assert_eq!(error, RecordError::Idle);
}

#[test]
fn numbers_that_are_used_up_are_an_error_in_both_directions() {
    let mut last = Sealer::new(secret(SERVER), u64::MAX).unwrap();
    let mut out = b"before".to_vec();
    let start = last.begin(&mut out);
    out.extend(b"data");
    let error = last.finish(&mut out, start, ContentType::Data).unwrap_err();
    assert_eq!(
        (error, out.as_slice()),
        (RecordError::Exhausted, &b"before"[..])
    );
    let mut last = Opener::new(Side::Client, secret(SERVER), u64::MAX).unwrap();
    let error = last.next(&mut Forger::new().data(b"x")).unwrap_err();
    assert_eq!(error, RecordError::Exhausted);
}

#[test]
fn a_sealer_adds_what_it_says() {
    let mut sealer = Sealer::new(secret(SERVER), 0).unwrap();
    let mut out = Vec::new();
    let start = sealer.begin(&mut out);
    assert_eq!((start, out.len()), (0, HEAD));
    out.extend(bytes(MOST));
    sealer.finish(&mut out, start, ContentType::Data).unwrap();
    assert_eq!(out.len(), HEAD + MOST + TAIL);
    let start = sealer.begin(&mut out);
    assert_eq!(
        start,
        HEAD + MOST + TAIL,
        "records stand one behind another"
    );
}
