//! The fuzz targets (`fuzz/`) on random bytes, so that they compile and hold on any toolchain.

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub)] // a crate there, a module here
mod targets;

use std::{fs, path::Path};

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

type Target = fn(&[u8]);

/// Each target by the name of its file.
const TARGETS: &[(&str, Target)] = &[
    ("capsules", targets::capsules),
    ("connect", targets::connect),
    ("frames", targets::frames),
    ("handover", targets::handover),
    ("hpack", targets::hpack),
    ("records", targets::records),
    ("state", targets::state),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_target_finds_anything_in_random_bytes(data in bytes()) {
        for (_, target) in TARGETS {
            target(&data);
        }
    }
}

/// What libFuzzer runs is one line around a function that is compiled here: nothing of it is left to rot unseen.
#[test]
fn every_target_is_built_described_and_run_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    let files = fs::read_dir(folder.join("fuzz_targets")).unwrap();
    let mut found: Vec<String> = files
        .map(|file| file.unwrap())
        .filter(|file| file.file_type().unwrap().is_file()) // the waypoint's are in a folder
        .map(|file| file.file_name().into_string().unwrap())
        .collect();
    found.sort();
    let expected: Vec<String> = TARGETS
        .iter()
        .map(|(name, _)| format!("{name}.rs"))
        .collect();
    assert_eq!(found, expected);
    for (name, _) in TARGETS {
        let text = read(&format!("fuzz_targets/{name}.rs"));
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("//!"))
            .collect();
        let call = format!("libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::{name}(data));");
        assert_eq!(code, ["#![no_main]", "", &call], "{name}");
        let built = format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n");
        assert!(manifest.contains(&built), "{name} is not built");
        assert!(
            readme.contains(&format!("\n| `{name}` | ")),
            "{name} is not described"
        );
    }
}
