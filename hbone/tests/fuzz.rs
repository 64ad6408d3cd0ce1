//! The fuzz targets (`fuzz/`) on random bytes, so that they compile and hold on any toolchain.

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub)] // a crate there, a module here
mod targets;

use proptest::prelude::*;

/// Bytes that are more often what counts in heads than chance would have it.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => 0u8..10, 1 => any::<u8>()];
    let frame = (
        0u8..24,
        0u8..11,
        any::<u8>(),
        0u8..8,
        prop::collection::vec(byte.clone(), 24),
    )
        .prop_map(|(length, kind, flags, stream, payload)| {
            let head = [0, 0, length, kind, flags & 0x2d, 0, 0, 0, stream];
            [&head[..], &payload[..length.into()]].concat()
        });
    let frames = prop::collection::vec(frame, 0..12);
    prop_oneof![
        prop::collection::vec(byte, 0..300),
        (any::<[u8; 2]>(), frames)
            .prop_map(|(first, frames)| [&first[..], &frames.concat()].concat()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_target_finds_anything_in_random_bytes(data in bytes()) {
        targets::records(&data);
        targets::frames(&data);
        targets::hpack(&data);
        targets::connect(&data);
        targets::state(&data);
    }
}
