//! The fuzz targets for requests (`fuzz/`) on random bytes, so that they compile and hold on any toolchain.

#[path = "../../../fuzz/src/access.rs"]
#[allow(unreachable_pub)] // a crate's there
mod access;

use std::{fs, path::Path};

use proptest::prelude::*;

/// What means something in paths, hosts, tokens and policies, more often than chance would have it.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("/"),
        Just("."),
        Just(".."),
        Just("%2e"),
        Just("%2F"),
        Just("%5c"),
        Just("%3B"),
        Just(";"),
        Just("\\"),
        Just("*"),
        Just("{*}"),
        Just("{**}"),
        Just("a"),
        Just("A"),
        Just("admin"),
        Just("\n"),
        Just("\n/"),
        Just("\t"),
        Just("a.b:80"),
        Just(","),
        Just("eyJhbGciOiJFUzI1NiJ9"),
        Just("eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIn0"),
        Just("cluster.local/ns/app/sa/client"),
        Just("app"),
        Just("%"),
        Just("é"),
    ];
    let words = prop::collection::vec(word, 0..30).prop_map(|words| words.concat().into_bytes());
    prop_oneof![3 => words, 1 => prop::collection::vec(any::<u8>(), 0..100)]
}

type Target = fn(&[u8]);

/// Each target by the name of its file.
const TARGETS: &[(&str, Target)] = &[
    ("path", access::path),
    ("policy", access::policy),
    ("token", access::token),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_target_finds_anything_in_random_bytes(data in bytes(), slash in any::<bool>()) {
        let data = if slash { [b"/", &data[..]].concat() } else { data };
        for (_, target) in TARGETS {
            target(&data);
        }
    }
}

#[test]
fn every_target_is_built_described_and_run_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    let files = fs::read_dir(folder.join("fuzz_targets/access")).unwrap();
    let mut found: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let expected: Vec<String> = TARGETS
        .iter()
        .map(|(name, _)| format!("{name}.rs"))
        .collect();
    assert_eq!(found, expected);
    for (name, _) in TARGETS {
        let text = read(&format!("fuzz_targets/access/{name}.rs"));
        let call = format!("libfuzzer_sys::fuzz_target!(|data: &[u8]| access::{name}(data));");
        assert!(text.contains(&call), "{name}");
        let built =
            format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/access/{name}.rs\"\n");
        assert!(manifest.contains(&built), "{name} is not built");
        assert!(
            readme.contains(&format!("\n| `{name}` | ")),
            "{name} is not described"
        );
    }
}
