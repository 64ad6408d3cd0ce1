//! The fuzz targets for rules (`fuzz/`) on bytes that are nearly right, so that they compile and hold on any toolchain.

#[path = "../../../../fuzz/src/routes.rs"]
#[allow(unreachable_pub)] // a crate's there
mod routes;

use std::{fs, path::Path};

use api::waypoint as wire;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

type Target = fn(&[u8]);

/// Each target by the name of its file.
const TARGETS: &[(&str, Target)] = &[("request", routes::request), ("resource", routes::resource)];

const PIECES: [&str; 28] = [
    "/", "a", "b", "c", "d", "A", ".", "..", "%2f", "%2E", "%61", "%", ";", "?", "&", "=", "#",
    "\\", "*", "\u{e9}", "%c3%a9", "//", "x", "%00", "http://h", ":80", "@", "%25",
];
const HEADERS: [&str; 9] = [
    "host: web.shop",
    "host: WEB.shop:80",
    "host: [::1]:80",
    "grpc-timeout: 1S",
    "grpc-timeout: 99999999H",
    "cookie: s=AQAAAAAAAAAAAAAAAAAAAAAAAAAA; s=x",
    "cookie: s=",
    "x-forwarded-for: 1.2.3.4, ::1, x",
    "content-type: application/grpc",
];

fn head() -> impl Strategy<Value = Vec<u8>> {
    let target = vec(prop::sample::select(PIECES.to_vec()), 1..12);
    let headers = vec(prop::sample::select(HEADERS.to_vec()), 0..4);
    let method = prop::sample::select(vec!["GET", "OPTIONS", "CONNECT"]);
    (method, any::<bool>(), target, headers).prop_map(|(method, slash, target, headers)| {
        let slash = if slash { "/" } else { "" };
        let lines = headers.iter().map(|header| format!("\n{header}"));
        let lines: String = lines.collect();
        format!("{method} {slash}{}{lines}", target.concat()).into_bytes()
    })
}

/// A resource that is a route, some of its bytes changed.
fn resource() -> impl Strategy<Value = Vec<u8>> {
    let route = wire::Route {
        hostnames: vec!["*.example.org".into()],
        matches: vec![super::wire::expression("/a/.*|/")],
        retry: Some(wire::Retry {
            attempts: 3,
            reset: true,
            ..wire::Retry::default()
        }),
        filters: vec![wire::Filter {
            filter: Some(wire::filter::Filter::Redirect(wire::Redirect {
                hostname: "example.org".into(),
                ..wire::Redirect::default()
            })),
        }],
        ..wire::Route::default()
    };
    let whole = wire::Resource {
        key: "httproute/shop/web/0".into(),
        origin: None,
        kind: Some(wire::resource::Kind::Route(route)),
    };
    let bytes = whole.encode_to_vec();
    let changes = vec((0..bytes.len(), any::<u8>()), 0..4);
    changes.prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_target_finds_anything_in_random_bytes(
        data in prop_oneof![head(), resource(), vec(any::<u8>(), 0..200)],
    ) {
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
    let files = fs::read_dir(folder.join("fuzz_targets/routes")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    let expected = TARGETS.iter().map(|(name, _)| format!("{name}.rs"));
    assert_eq!(names, expected.collect::<Vec<_>>());
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    for (name, _) in TARGETS {
        let text = read(&format!("fuzz_targets/routes/{name}.rs"));
        let line = format!("libfuzzer_sys::fuzz_target!(|data: &[u8]| routes::{name}(data));");
        assert!(text.ends_with(&format!("\n{line}\n")), "{name}");
        let built = format!("name = \"{name}\"\npath = \"fuzz_targets/routes/{name}.rs\"\n");
        assert!(manifest.contains(&built), "{name} is not built");
        assert!(readme.contains(&format!("\n| `{name}` | ")), "{name}");
    }
}
