//! `docs/wire.md` against the tree: each field of discovery has its row, each row its test, and what is named is there. Also
//! the tests that `docs/faults.md` names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../../../docs/wire.md");
const FAULTS: &str = include_str!("../../../docs/faults.md");
const PROTOS: [&str; 2] = [
    include_str!("../../../api/proto/workload.proto"),
    include_str!("../../../api/proto/authorization.proto"),
];

/// How the page calls the places of tests.
const SUITES: [(&str, &[&str]); 12] = [
    ("cni-plugin", &["cni-plugin/src", "cni-plugin/tests/agent"]),
    ("frame", &["ztunnel/tests/frame"]),
    ("hbone", &["hbone/tests", "hbone/src"]),
    ("istiod-lite", &["istiod-lite/src"]),
    ("lab", &["lab/tests"]),
    ("mesh", &["mesh/tests/behaviour", "mesh/src"]),
    ("ops", &["ops/src"]),
    ("path", &["ztunnel/tests/path"]),
    ("pure", &["waypoint/tests/pure"]),
    ("served", &["istiod-lite/tests/served"]),
    ("world", &["istiod-lite/tests/world"]),
    ("ztunnel", &["ztunnel/src"]),
];

#[test]
fn every_test_that_the_page_names_is_there_and_runs() {
    let mut wrong = Vec::new();
    let named: BTreeSet<_> = PAGE
        .lines()
        .flat_map(quoted)
        .filter_map(test_name)
        .collect();
    assert!(named.len() > 100, "only {} were found", named.len());
    let mut read = BTreeMap::new();
    for (place, name) in named {
        let (suite, rest) = place.split_once('/').unwrap_or((place, ""));
        let Some((_, folders)) = SUITES.iter().find(|(called, _)| *called == suite) else {
            wrong.push(format!("{place}::{name}: {suite} is no suite"));
            continue;
        };
        let tests: &mut Vec<String> = read.entry(place).or_insert_with(|| {
            let of = |folder: &&str| tests_of(folder, rest);
            folders.iter().flat_map(of).collect()
        });
        let is_meant = |test: &&String| match name.strip_suffix('…') {
            Some(beginning) => test.starts_with(beginning),
            None => *test == name,
        };
        let found = tests.iter().filter(is_meant).count();
        if found != 1 {
            wrong.push(format!("{place}::{name}: there are {found}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_field_of_discovery_has_a_row_that_names_a_test() {
    let names_a_test = |rest: &str| quoted(rest).any(|it| test_name(it).is_some());
    let rows = PAGE.lines().filter_map(row);
    let tested = rows.filter(|(_, rest)| names_a_test(rest));
    let told = tested.flat_map(|(first, _)| quoted(first).filter(|it| is_field(it)));
    let told: BTreeSet<String> = told.map(str::to_owned).collect();
    let fields: BTreeSet<String> = PROTOS.into_iter().flat_map(fields).collect();
    let missing: Vec<_> = fields.difference(&told).collect();
    assert!(missing.is_empty(), "no row with a test: {missing:#?}");
    let unknown: Vec<_> = told.difference(&fields).collect();
    assert!(unknown.is_empty(), "no such field: {unknown:#?}");
}

/// There a test is named by its first words, behind the place of its suite.
#[test]
fn every_test_that_the_page_of_faults_names_is_there() {
    let all = SUITES.iter().flat_map(|(_, folders)| folders.iter());
    let all: Vec<String> = all.flat_map(|folder| tests_of(folder, "")).collect();
    let names = FAULTS.lines().flat_map(quoted);
    let is_name = |it: &&str| !it.contains(' ') && it.contains('_');
    let names = names.filter_map(|it| it.strip_suffix('…'));
    let names: Vec<_> = names.filter(is_name).collect();
    assert!(names.len() > 10, "{names:?}");
    let is_there = |name: &&str| all.iter().any(|test| test.starts_with(name));
    let missing: Vec<_> = names.into_iter().filter(|it| !is_there(it)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_recorded_scenario_that_the_page_names_is_there() {
    let recorded = root().join("istiod-lite/testdata");
    for named in PAGE.lines().flat_map(quoted) {
        let Some((folder, number)) = named.split_once('/') else {
            continue;
        };
        if !folder.starts_with("wds") {
            continue;
        }
        let beginning = format!("{number}-");
        let mut entries = fs::read_dir(recorded.join(folder)).unwrap();
        let is_there = entries.any(|entry| {
            let name = entry.unwrap().file_name();
            name.to_string_lossy().starts_with(&beginning)
        });
        assert!(is_there, "{named}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What stands between backticks in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The first cell of a row of a table, and the others.
fn row(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("| ")?.split_once(" | ")
}

/// `suite/file::name_of_a_test`, the name cut off by `…` if it is long.
fn test_name(quoted: &str) -> Option<(&str, &str)> {
    let (place, name) = quoted.split_once("::")?;
    let is_name = |text: &str, more: &[char]| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(&c);
        text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(allowed)
    };
    (is_name(place, &['_', '-', '/']) && is_name(name, &['_', '…'])).then_some((place, name))
}

/// `Message.field`
fn is_field(quoted: &str) -> bool {
    let Some((message, field)) = quoted.split_once('.') else {
        return false;
    };
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    message.starts_with(|c: char| c.is_ascii_uppercase()) && is_word(message) && is_word(field)
}

/// The fields of all messages of a file, as `Message.field`.
fn fields(proto: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut around: Vec<(&str, &str)> = Vec::new();
    for line in proto.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some(kind @ ("message" | "enum" | "oneof")), Some(name)) => around.push((kind, name)),
            (Some("}"), _) => {
                around.pop();
            }
            (Some("syntax"), _) | (None, _) => {}
            _ => {
                let is_enum = around.last().is_some_and(|(kind, _)| *kind == "enum");
                let message = around.iter().rev().find(|(kind, _)| *kind == "message");
                let (Some((_, message)), Some((field, _)), false) =
                    (message, line.split_once(" = "), is_enum)
                else {
                    continue;
                };
                let name = field.split_whitespace().last().unwrap();
                found.push(format!("{message}.{name}"));
            }
        }
    }
    found
}

/// The tests, but for ignored ones, of `folder/rest.rs` and of what lies in `folder/rest`.
fn tests_of(folder: &str, rest: &str) -> Vec<String> {
    let folder = root().join(folder);
    let (mut files, mut folders) = (Vec::new(), vec![folder.join(rest)]);
    if !rest.is_empty() {
        files.push(folder.join(format!("{rest}.rs")));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    let is_rust = |path: &&PathBuf| path.extension().is_some_and(|it| it == "rs");
    let texts = files.iter().filter(is_rust).map(fs::read_to_string);
    texts.flatten().flat_map(|text| tests_in(&text)).collect()
}

fn tests_in(text: &str) -> Vec<String> {
    let (mut found, mut is_test, mut is_ignored) = (Vec::new(), false, false);
    for line in text.lines().map(str::trim) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        is_ignored |= line.starts_with("#[ignore");
        let function = line.strip_prefix("async ").unwrap_or(line);
        let Some(function) = function.strip_prefix("fn ") else {
            continue;
        };
        let name = function.split(['(', '<']).next().unwrap_or_default();
        if is_test && !is_ignored {
            found.push(name.to_owned());
        }
        (is_test, is_ignored) = (false, false);
    }
    found
}
