//! The directory, on a real file system with real events.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::{Change, Directory, clear_status, patch_status, read};
use crate::k8s::objects::{Kind, Object, ObjectKey};

const WAIT: Duration = Duration::from_secs(60);

fn account(name: &str) -> String {
    format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: alpha}}\n")
}

fn pod(name: &str, uid: &str, note: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: alpha\n  uid: {uid}\n  annotations: {{note: {note:?}}}\nspec: {{containers: [{{name: app}}]}}\n"
    )
}

fn names(changes: &[Change]) -> Vec<String> {
    let mut names: Vec<String> = changes
        .iter()
        .map(|change| match change {
            Change::Set(object) => format!("+{}", object.key().name),
            Change::Gone(key) => format!("-{}", key.name),
            Change::Invalid(fault) => {
                format!(
                    "!{}:{}",
                    fault.file.file_name().unwrap().to_string_lossy(),
                    fault.line
                )
            }
        })
        .collect();
    names.sort();
    names
}

/// Collects batches until all of `expected` has been seen, and nothing else.
async fn expect(directory: &mut Directory, expected: &[&str]) -> Vec<Change> {
    let mut seen = Vec::new();
    while names(&seen).len() < expected.len() {
        let batch = tokio::time::timeout(WAIT, directory.next()).await;
        seen.extend(batch.unwrap_or_else(|_| panic!("only {:?} of {expected:?}", names(&seen))));
    }
    assert_eq!(names(&seen), expected);
    seen
}

fn annotation<'a>(changes: &'a [Change], name: &str) -> Option<&'a str> {
    changes.iter().find_map(|change| match change {
        Change::Set(Object::Pod(pod)) => pod
            .metadata
            .annotations
            .as_ref()?
            .get(name)
            .map(String::as_str),
        _ => None,
    })
}

/// Puts a file into place as careful writers do.
fn replace(file: &Path, text: &str) {
    let aside = file.with_file_name(".aside");
    fs::write(&aside, text).unwrap();
    fs::rename(&aside, file).unwrap();
}

#[tokio::test]
async fn everything_there_is_comes_first_and_at_once() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("deep/er")).unwrap();
    fs::write(
        root.path().join("a.yaml"),
        format!("{}---\n{}", account("one"), account("two")),
    )
    .unwrap();
    fs::write(root.path().join("deep/er/b.yml"), account("three")).unwrap();
    fs::write(
        root.path().join("c.json"),
        r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"four"}}"#,
    )
    .unwrap();
    fs::write(root.path().join(".hidden.yaml"), account("hidden")).unwrap();
    fs::write(root.path().join("notes.txt"), "not for us").unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    assert_eq!(
        names(&directory.next().await),
        ["+four", "+one", "+three", "+two"]
    );
}

#[tokio::test]
async fn an_empty_directory_gives_an_empty_first_batch() {
    let root = tempfile::tempdir().unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    assert_eq!(
        tokio::time::timeout(WAIT, directory.next()).await.unwrap(),
        []
    );
}

#[tokio::test]
async fn written_renamed_and_deleted_files_are_noticed() {
    let root = tempfile::tempdir().unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    directory.next().await;
    let file = root.path().join("a.yaml");
    fs::write(&file, account("one")).unwrap();
    expect(&mut directory, &["+one"]).await;
    replace(&file, &format!("{}---\n{}", account("one"), account("two")));
    expect(&mut directory, &["+two"]).await;
    fs::rename(&file, root.path().join("b.yaml")).unwrap();
    fs::write(root.path().join("c.yaml"), account("three")).unwrap();
    expect(&mut directory, &["+three"]).await;
    fs::remove_file(root.path().join("b.yaml")).unwrap();
    expect(&mut directory, &["-one", "-two"]).await;
}

#[tokio::test]
async fn folders_may_come_move_and_go() {
    let root = tempfile::tempdir().unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    directory.next().await;
    fs::create_dir_all(root.path().join("x/y")).unwrap();
    fs::write(root.path().join("x/y/a.yaml"), account("one")).unwrap();
    expect(&mut directory, &["+one"]).await;

    fs::rename(root.path().join("x"), root.path().join("z")).unwrap();
    fs::write(root.path().join("z/y/b.yaml"), account("two")).unwrap();
    expect(&mut directory, &["+two"]).await;

    // A new folder under the old name, and the moved one still watched under its new name.
    fs::create_dir_all(root.path().join("x/y")).unwrap();
    fs::write(root.path().join("x/y/a.yaml"), account("three")).unwrap();
    fs::write(root.path().join("z/y/b.yaml"), account("four")).unwrap();
    expect(&mut directory, &["+four", "+three", "-two"]).await;

    let outside = tempfile::tempdir().unwrap();
    fs::rename(root.path().join("z"), outside.path().join("z")).unwrap();
    expect(&mut directory, &["-four", "-one"]).await;
    fs::write(outside.path().join("z/y/b.yaml"), account("five")).unwrap();
    fs::remove_dir_all(root.path().join("x")).unwrap();
    expect(&mut directory, &["-three"]).await;
}

#[tokio::test]
async fn a_fault_names_file_line_object_and_reason_and_keeps_the_last_good_version() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(
        &file,
        format!("{}---\n{}", pod("web", "u", "good"), account("one")),
    )
    .unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    directory.next().await;

    let bad = pod("web", "u", "bad").replace("containers: [{name: app}]", "containers: 7");
    replace(&file, &format!("{}---\n{bad}", account("two")));
    let seen = expect(&mut directory, &["!a.yaml:12", "+two", "-one"]).await;
    let Some(Change::Invalid(fault)) = seen
        .iter()
        .find(|change| matches!(change, Change::Invalid(_)))
    else {
        panic!("no fault")
    };
    assert_eq!(
        fault.object,
        Some(ObjectKey::new(Kind::Pod, "alpha", "web"))
    );
    assert_eq!(fault.file, file);
    assert!(!fault.reason.is_empty());
    assert_eq!(directory.faults(), std::slice::from_ref(fault));

    // Text that is no YAML may have meant anything: nothing goes. Nor does it say that the pod is at
    // fault.
    replace(&file, "apiVersion: v1\nkind: [");
    expect(&mut directory, &["!a.yaml:2", "+web"]).await;

    // Mended: what is not said any more goes, the fault is over.
    replace(&file, &account("three"));
    expect(&mut directory, &["+three", "-two", "-web"]).await;
    assert_eq!(directory.faults(), []);
}

#[tokio::test]
async fn of_an_object_every_fault_that_stands_is_told_and_then_that_it_is_mended() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    let policy = |rules: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name}\nspec:\n  rules:\n{rules}",
            name = "{name: p, namespace: alpha}"
        )
    };
    let rule = |port: &str| format!("  - to: [{{operation: {{ports: ['{port}']}}}}]\n");
    let good = policy(&rule("80"));
    fs::write(&file, &good).unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    expect(&mut directory, &["+p"]).await;

    replace(&file, &policy(&(rule("x") + &rule("y"))));
    expect(&mut directory, &["!a.yaml:6", "!a.yaml:7"]).await;
    replace(&file, &policy(&(rule("80") + &rule("y"))));
    expect(&mut directory, &["!a.yaml:7"]).await;
    // Whoever writes about the object meanwhile does not make it good.
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "alpha", "p");
    patch_status(
        root.path(),
        &key,
        &json!({"metadata": {"labels": {"a": "b"}}}),
    )
    .unwrap();
    expect(&mut directory, &["!a.yaml:7", "+p"]).await;
    replace(&file, &good);
    expect(&mut directory, &["+p"]).await;
    assert_eq!(directory.faults(), []);

    replace(&file, "");
    expect(&mut directory, &["-p"]).await;
    replace(&file, &policy(&rule("x")));
    expect(&mut directory, &["!a.yaml:6"]).await;
    replace(&file, "");
    expect(&mut directory, &["-p"]).await;
}

#[tokio::test]
async fn an_empty_batch_says_that_a_fault_is_over() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), "apiVersion: v1\nkind: [").unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    assert_eq!(names(&directory.next().await), ["!a.yaml:2"]);
    fs::remove_file(root.path().join("a.yaml")).unwrap();
    let batch = tokio::time::timeout(WAIT, directory.next()).await.unwrap();
    assert_eq!((batch, directory.faults()), (vec![], vec![]));
}

#[tokio::test]
async fn of_two_files_with_one_object_the_first_counts_and_the_other_is_a_fault() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), pod("web", "u", "a")).unwrap();
    fs::write(root.path().join("b.yaml"), pod("web", "u", "b")).unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    let seen = directory.next().await;
    assert_eq!(names(&seen), ["!b.yaml:1", "+web"]);
    assert_eq!(annotation(&seen, "note"), Some("a"));
    fs::remove_file(root.path().join("a.yaml")).unwrap();
    let seen = expect(&mut directory, &["+web"]).await;
    assert_eq!(annotation(&seen, "note"), Some("b"));
    assert_eq!(directory.faults(), []);
}

#[tokio::test]
async fn a_status_patch_is_laid_over_its_object_until_cleared() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), pod("web", "u1", "a")).unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    directory.next().await;
    let key = ObjectKey::new(Kind::Pod, "alpha", "web");

    patch_status(root.path(), &key, &json!({"metadata": {"uid": "u1", "annotations": {"x": "1"}}, "status": {"podIP": "10.0.0.1"}})).unwrap();
    let seen = expect(&mut directory, &["+web"]).await;
    assert_eq!(
        (annotation(&seen, "x"), annotation(&seen, "note")),
        (Some("1"), Some("a"))
    );

    patch_status(
        root.path(),
        &key,
        &json!({"metadata": {"annotations": {"y": "2"}}}),
    )
    .unwrap();
    let seen = expect(&mut directory, &["+web"]).await;
    assert_eq!(
        (annotation(&seen, "x"), annotation(&seen, "y")),
        (Some("1"), Some("2"))
    );

    // The object changes under its status, then a successor comes, whom the status does not concern.
    replace(&root.path().join("a.yaml"), &pod("web", "u1", "b"));
    let seen = expect(&mut directory, &["+web"]).await;
    assert_eq!(
        (annotation(&seen, "x"), annotation(&seen, "note")),
        (Some("1"), Some("b"))
    );
    replace(&root.path().join("a.yaml"), &pod("web", "u2", "b"));
    let seen = expect(&mut directory, &["+web"]).await;
    assert_eq!(annotation(&seen, "x"), None);

    replace(&root.path().join("a.yaml"), &pod("web", "u1", "b"));
    expect(&mut directory, &["+web"]).await;
    clear_status(root.path(), &key).unwrap();
    let seen = expect(&mut directory, &["+web"]).await;
    assert_eq!(annotation(&seen, "x"), None);
    clear_status(root.path(), &key).unwrap();
}

#[tokio::test]
async fn a_folder_of_patches_that_goes_takes_them_along() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), pod("web", "u1", "a")).unwrap();
    let key = ObjectKey::new(Kind::Pod, "alpha", "web");
    for folder in [".status/Pod/alpha", ".status/Pod", ".status"] {
        let patch = json!({"metadata": {"annotations": {"x": "1"}}});
        patch_status(root.path(), &key, &patch).unwrap();
        let mut directory = Directory::open(root.path()).unwrap();
        let seen = directory.next().await;
        assert_eq!(annotation(&seen, "x"), Some("1"));
        fs::rename(root.path().join(folder), root.path().join(".away")).unwrap();
        let seen = expect(&mut directory, &["+web"]).await;
        assert_eq!(annotation(&seen, "x"), None, "{folder}");
        fs::remove_dir_all(root.path().join(".away")).unwrap();
    }
}

#[tokio::test]
async fn a_status_patch_that_does_not_fit_is_a_fault_and_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), pod("web", "u1", "a")).unwrap();
    let key = ObjectKey::new(Kind::Pod, "alpha", "web");
    patch_status(root.path(), &key, &json!({"status": {"podIP": 7}})).unwrap();
    let (objects, faults) = read(root.path()).unwrap();
    assert_eq!(objects.len(), 1);
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0].file.ends_with(".status/Pod/alpha/web.yaml"),
        "{faults:?}"
    );
    assert!(patch_status(root.path(), &key, &json!(7)).is_err());
}

#[tokio::test]
async fn a_status_patch_may_come_before_its_object() {
    let root = tempfile::tempdir().unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    directory.next().await;
    patch_status(
        root.path(),
        &ObjectKey::new(Kind::Pod, "alpha", "web"),
        &json!({"metadata": {"annotations": {"x": "1"}}}),
    )
    .unwrap();
    fs::write(root.path().join("a.yaml"), pod("web", "u1", "a")).unwrap();
    let seen = expect(&mut directory, &["+web"]).await;
    assert_eq!(annotation(&seen, "x"), Some("1"));
}

#[tokio::test]
async fn a_link_swapped_under_its_files_is_noticed() {
    // As kubelet updates a mounted ConfigMap.
    let root = tempfile::tempdir().unwrap();
    for (version, name) in [("..v1", "one"), ("..v2", "two")] {
        fs::create_dir(root.path().join(version)).unwrap();
        fs::write(root.path().join(version).join("a.yaml"), account(name)).unwrap();
    }
    std::os::unix::fs::symlink("..v1", root.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", root.path().join("a.yaml")).unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    assert_eq!(names(&directory.next().await), ["+one"]);
    std::os::unix::fs::symlink("..v2", root.path().join("..next")).unwrap();
    fs::rename(root.path().join("..next"), root.path().join("..data")).unwrap();
    expect(&mut directory, &["+two", "-one"]).await;
}

#[tokio::test]
async fn a_directory_that_is_away_for_a_while_loses_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("config");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), account("one")).unwrap();
    fs::write(root.join("b.yaml"), account("two")).unwrap();
    let mut directory = Directory::open(&root).unwrap();
    directory.next().await;
    fs::rename(&root, parent.path().join("away")).unwrap();
    // Nothing is reported while it is away.
    assert!(
        tokio::time::timeout(Duration::from_millis(700), directory.next())
            .await
            .is_err()
    );
    fs::remove_file(parent.path().join("away/a.yaml")).unwrap();
    fs::rename(parent.path().join("away"), &root).unwrap();
    expect(&mut directory, &["-one"]).await;
    fs::write(root.join("c.yaml"), account("three")).unwrap();
    expect(&mut directory, &["+three"]).await;
}

#[tokio::test]
async fn more_changes_than_the_kernel_remembers_are_all_found() {
    let root = tempfile::tempdir().unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    directory.next().await;
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let files =
        ["x", "y"].map(|name| (root.path().join(name).with_extension("yaml"), account(name)));
    for (file, text) in &files {
        fs::write(file, text).unwrap();
    }
    // Identical events in a row are merged: two files by turns are not.
    for _ in 0..limit / 2 + 10 {
        for (file, _) in &files {
            drop(fs::File::options().append(true).open(file).unwrap());
        }
    }
    fs::write(root.path().join("last.yaml"), account("last")).unwrap();
    expect(&mut directory, &["+last", "+x", "+y"]).await;
}

#[tokio::test]
async fn dropping_the_wait_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    directory.next().await;
    for n in 0..100 {
        let name = format!("n{n}");
        let file = root.path().join(&name).with_extension("yaml");
        fs::write(file, account(&name)).unwrap();
        let change = format!("+{name}");
        // Long enough to read the event, too short for the writers' pause to be over.
        let wait = tokio::time::timeout(Duration::from_millis(5), directory.next());
        match wait.await {
            Err(_) => {
                expect(&mut directory, &[change.as_str()]).await;
                return;
            }
            // Unless the pause has passed before this thread had its turn again.
            Ok(batch) => assert_eq!(names(&batch), [change]),
        }
    }
    panic!("the pause was over each time");
}

#[tokio::test]
async fn an_object_keeps_the_age_it_was_first_seen_with() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(
        &file,
        format!("{}---\n{}", pod("one", "u", "a"), pod("two", "u", "a")),
    )
    .unwrap();
    let mut directory = Directory::open(root.path()).unwrap();
    let age = |changes: &[Change], name: &str| {
        changes
            .iter()
            .find_map(|change| match change {
                Change::Set(object) if &*object.key().name == name => {
                    object.metadata().creation_timestamp.clone()
                }
                _ => None,
            })
            .unwrap()
    };
    let first = directory.next().await;
    assert!(
        age(&first, "one") < age(&first, "two"),
        "document order decides inside a file"
    );
    replace(
        &file,
        &format!("{}---\n{}", pod("two", "u", "a"), pod("one", "u", "b")),
    );
    let second = expect(&mut directory, &["+one"]).await;
    assert_eq!(age(&first, "one"), age(&second, "one"));
}
