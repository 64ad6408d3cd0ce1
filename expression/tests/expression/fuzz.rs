//! The fuzz targets for what users write (`fuzz/`) on random bytes, so that they compile and hold on any toolchain.

#[path = "../../../fuzz/src/said.rs"]
#[allow(unreachable_pub)] // a crate's there
mod said;

use proptest::prelude::*;

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..80)) {
        said::expression(&data);
        said::format(&data);
    }

    #[test]
    fn so_are_operators(words in proptest::collection::vec(prop_oneof![
        Just("%"), Just("REQ"), Just("(A?B)"), Just("("), Just(")"), Just(":7"), Just("START_TIME"), Just("%s.%3f"),
        Just("CEL(request.path)"), Just("DURATION"), Just("PROTOCOL"), Just("text"), Just("GRPC_STATUS"), Just("\0"), Just("\u{e4}"),
    ], 0..20)) {
        said::format(words.concat().as_bytes());
    }
}

#[test]
fn every_target_is_built_and_described() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    for name in ["expression", "format"] {
        let path = format!("fuzz_targets/said/{name}.rs");
        assert!(
            read(&path).contains(&format!("said::{name}(data));")),
            "{name}"
        );
        assert!(read("Cargo.toml").contains(&path), "{name} is not built");
        assert!(
            read("README.md").contains(&format!("\n| `{name}` | ")),
            "{name} is not described"
        );
    }
}
