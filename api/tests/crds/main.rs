//! The definitions in the chart are those of the types, and refuse what they are to refuse (`admission`).

#![cfg(feature = "k8s")]
#![allow(clippy::unwrap_used)] // a test

mod admission;

use std::path::{Path, PathBuf};

use api::k8s::crd;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/charts/ambit/crds")
}

/// And there are no others. `AMBIT_RENEW=1` writes them instead.
#[test]
fn the_files_of_the_chart_say_what_the_types_say() {
    let renew = std::env::var_os("AMBIT_RENEW").is_some();
    if renew {
        std::fs::create_dir_all(chart()).unwrap();
    }
    for kind in crd::KINDS {
        let (name, text) = crd::file(kind).unwrap();
        let path = chart().join(&name);
        if renew {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "{name} is not what the types say; renew it: {}",
            crd::RENEW
        );
    }
    let mut files: Vec<String> = std::fs::read_dir(chart())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut ours: Vec<String> = crd::KINDS.map(|kind| crd::file(kind).unwrap().0).into();
    ours.sort();
    assert_eq!(files, ours);
}
