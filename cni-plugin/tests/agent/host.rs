//! The agent's `install` and `uninstall`, as an operator or an init container calls them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::net::Running;
use crate::support::{eventually, output};

const BEFORE: &str = include_str!("../../testdata/conflist-before.json");

fn command(dir: &Path, verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambit-cni-agent"));
    command
        .arg(verb)
        .arg("--cni-bin-dir")
        .arg(dir.join("bin"))
        .arg("--cni-conf-dir")
        .arg(dir.join("net.d"))
        .stdout(Stdio::null());
    command
}

fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "net.d"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("net.d/10-podnet.conflist"), BEFORE).unwrap();
    dir
}

fn is_chained(dir: &Path) -> bool {
    let text = fs::read_to_string(dir.join("net.d/10-podnet.conflist")).unwrap();
    text.contains("\"type\": \"istio-cni\"")
}

#[test]
fn the_plugin_beside_the_agent_is_installed_and_runs() {
    let host = host();
    assert!(
        output(&mut command(host.path(), "install"))
            .status
            .success()
    );
    assert!(is_chained(host.path()));
    let installed = host.path().join("bin/istio-cni");
    let version = output(
        Command::new(installed)
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::null()),
    );
    assert!(
        String::from_utf8(version.stdout)
            .unwrap()
            .contains("supportedVersions")
    );
    assert!(
        output(&mut command(host.path(), "uninstall"))
            .status
            .success()
    );
    assert!(!is_chained(host.path()));
}

#[test]
fn a_watcher_repairs_what_another_installer_overwrites() {
    let host = host();
    let watcher = command(host.path(), "install")
        .arg("--watch")
        .spawn()
        .unwrap();
    let mut watcher = Running(watcher);
    eventually("it is installed", || is_chained(host.path()));
    for _ in 0..2 {
        let new = host.path().join("net.d/.new");
        fs::write(&new, BEFORE).unwrap();
        fs::rename(&new, host.path().join("net.d/10-podnet.conflist")).unwrap();
        eventually("the configuration is repaired", || is_chained(host.path()));
        fs::remove_file(host.path().join("bin/istio-cni")).unwrap();
        eventually("the binary is repaired", || {
            host.path().join("bin/istio-cni").exists()
        });
    }
    assert!(watcher.0.try_wait().unwrap().is_none());
}

#[test]
fn a_host_without_a_network_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::create_dir(dir.path().join("net.d")).unwrap();
    let refused = output(&mut command(dir.path(), "install"));
    assert!(!refused.status.success());
    let log = String::from_utf8(refused.stdout).unwrap();
    assert!(log.contains("install the cluster's network first"), "{log}");
}

#[test]
fn a_directory_that_is_not_there_is_one_line_with_its_setting() {
    for (missing, setting) in [("bin", "CNI_BIN_DIR"), ("net.d", "CNI_CONF_DIR")] {
        let host = host();
        fs::rename(host.path().join(missing), host.path().join("elsewhere")).unwrap();
        let refused = output(&mut command(host.path(), "install"));
        assert!(!refused.status.success());
        let log = String::from_utf8([refused.stdout, refused.stderr].concat()).unwrap();
        let path = host.path().join(missing);
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(
            log.contains(setting) && log.contains(path.to_str().unwrap()),
            "{log}"
        );
    }
}
