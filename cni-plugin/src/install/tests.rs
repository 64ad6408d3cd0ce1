//! The installer in directories of its own: what it writes, what it repairs, what it leaves alone.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::*;

fn golden(name: &str) -> Value {
    let text = match name {
        "before" => include_str!("../../testdata/conflist-before.json"),
        _ => include_str!("../../testdata/conflist-after.json"),
    };
    serde_json::from_str(text).unwrap()
}

fn install(dir: &Path) -> Install {
    for name in ["bin", "net.d"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::write(dir.join("ambit-cni"), "the plugin").unwrap();
    Install {
        site: Site {
            cni_run_dir: "/var/run/istio-cni".into(),
            exclude_namespaces: vec!["kube-system".into()],
            pod_namespace: "istio-system".into(),
            enablement_selector: None,
            host_root: "/".into(),
        },
        files: Files {
            cni_bin_dir: Some(dir.join("bin")),
            cni_conf_dir: Some(dir.join("net.d")),
            cni_conf_name: None,
            chained: true,
            owned: false,
            owned_name: "02-istio-cni.conflist".into(),
            plugin: Some(dir.join("ambit-cni")),
            plugin_log_level: "info".into(),
        },
    }
}

fn with(dir: &Path, change: impl FnOnce(&mut Files)) -> Install {
    let mut install = install(dir);
    change(&mut install.files);
    install
}

#[test]
fn the_golden_conflist_gets_the_golden_entry() {
    let dir = tempfile::tempdir().unwrap();
    let mut entry = install(dir.path()).entry();
    // The golden run had iptables; its nftables runs differ in this one value.
    assert_eq!(entry["native_nftables"], true);
    entry["native_nftables"] = false.into();
    let after = chained(golden("before"), entry.clone()).unwrap();
    assert_eq!(after, golden("after"));
    assert_eq!(
        chained(after.clone(), entry).unwrap(),
        golden("after"),
        "once more changes nothing"
    );
    assert_eq!(unchained(after), golden("before"));
}

#[test]
fn a_single_plugin_becomes_a_list() {
    let conf = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "mtu": 1500 });
    let list = chained(conf, json!({ "type": TYPE })).unwrap();
    assert_eq!(
        list,
        json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{ "type": "bridge", "mtu": 1500 }, { "type": TYPE }] })
    );
    let bare = chained(json!({ "type": "bridge" }), json!({ "type": TYPE })).unwrap();
    assert_eq!(bare["cniVersion"], "0.3.1");
}

#[test]
fn what_is_no_network_is_left_alone() {
    for bad in [
        json!([]),
        json!({}),
        json!({ "plugins": 1 }),
        json!({ "plugins": [] }),
        json!({ "plugins": [{ "type": TYPE }] }),
    ] {
        assert!(
            chained(bad.clone(), json!({ "type": TYPE })).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn the_first_configuration_by_name_is_the_runtimes() {
    let first = |names: &[&'static str]| primary(names.iter().copied(), "02-istio-cni.conflist");
    assert_eq!(
        first(&["20-b.conf", "10-a.conflist", "00-readme"]),
        Some("10-a.conflist")
    );
    assert_eq!(
        first(&["02-istio-cni.conflist", "10-a.conf"]),
        Some("10-a.conf")
    );
    assert_eq!(first(&["02-istio-cni.conflist", ".10-a.conf.new"]), None);
}

#[test]
fn installing_changes_what_must_change_and_repairs_what_was_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let install = install(dir.path());
    assert!(matches!(install.apply(), Err(InstallError::NoNetwork(_))));
    let conflist = dir.path().join("net.d/10-podnet.conflist");
    let binary = dir.path().join("bin/istio-cni");
    fs::write(&conflist, golden("before").to_string()).unwrap();

    assert_eq!(
        install.apply().unwrap(),
        std::slice::from_ref(&conflist),
        "the binary came with the first attempt"
    );
    assert_eq!(
        fs::metadata(&binary).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(read_json(&conflist).unwrap()["plugins"][2]["type"], TYPE);
    assert!(install.apply().unwrap().is_empty());

    fs::write(&conflist, golden("before").to_string()).unwrap();
    fs::write(&binary, "another's").unwrap();
    assert_eq!(install.apply().unwrap(), [binary.clone(), conflist.clone()]);
    assert_eq!(fs::read_to_string(&binary).unwrap(), "the plugin");

    install.remove().unwrap();
    assert_eq!(read_json(&conflist).unwrap(), golden("before"));
    assert!(!binary.exists());
    install.remove().unwrap();
}

#[test]
fn a_conf_is_replaced_by_its_conflist_which_would_come_second() {
    let dir = tempfile::tempdir().unwrap();
    let install = install(dir.path());
    let conf = dir.path().join("net.d/10-net.conf");
    fs::write(
        &conf,
        r#"{"cniVersion":"0.4.0","name":"net","type":"bridge"}"#,
    )
    .unwrap();
    install.apply().unwrap();
    assert!(!conf.exists());
    let list = read_json(&conf.with_extension("conflist")).unwrap();
    assert_eq!(list["plugins"].as_array().unwrap().len(), 2);
    assert!(install.apply().unwrap().is_empty());

    let before =
        fs::read_to_string(dir.path().join("net.d/.10-net.conf.before-istio-cni")).unwrap();
    install.remove().unwrap();
    assert_eq!(fs::read_to_string(&conf).unwrap(), before, "to the byte");
    assert_eq!(fs::read_dir(dir.path().join("net.d")).unwrap().count(), 1);
}

#[test]
fn a_conf_asked_for_by_name_is_found_again_as_a_conflist() {
    let dir = tempfile::tempdir().unwrap();
    let install = with(dir.path(), |files| {
        files.cni_conf_name = Some("10-net.conf".into());
    });
    assert!(matches!(install.apply(), Err(InstallError::NoNetwork(_))));
    let conf = dir.path().join("net.d/10-net.conf");
    fs::write(&conf, r#"{"name":"net","type":"bridge"}"#).unwrap();
    fs::write(dir.path().join("net.d/05-other.conf"), "{}").unwrap();
    install.apply().unwrap();
    assert!(conf.with_extension("conflist").exists());
    assert!(install.apply().unwrap().is_empty());
}

#[test]
fn removal_cleans_every_configuration_that_names_us_and_touches_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (first, install) = (dir.path().join("net.d/10-a.conflist"), install(dir.path()));
    fs::write(&first, golden("before").to_string()).unwrap();
    install.apply().unwrap();
    // The network was replaced by one that comes earlier, and ours went along.
    let earlier = dir.path().join("net.d/05-b.conflist");
    fs::write(&earlier, golden("before").to_string()).unwrap();
    install.apply().unwrap();
    let broken = dir.path().join("net.d/99-broken.conf");
    fs::write(&broken, "{").unwrap();

    install.remove().unwrap();
    for file in [&first, &earlier] {
        assert_eq!(read_json(file).unwrap(), golden("before"), "{file:?}");
    }
    assert_eq!(fs::read_to_string(&broken).unwrap(), "{");
}

#[test]
fn beside_multus_there_is_a_configuration_of_only_ours() {
    let dir = tempfile::tempdir().unwrap();
    let install = with(dir.path(), |files| files.chained = false);
    let alone = dir.path().join("net.d/YYY-istio-cni.conflist");
    assert_eq!(install.apply().unwrap().last(), Some(&alone));
    assert!(install.apply().unwrap().is_empty());
    let list = read_json(&alone).unwrap();
    assert_eq!(list["plugins"][0]["type"], TYPE);
    assert_eq!(list["plugins"][0]["ambit_alone"], true);
    assert_eq!(list["plugins"].as_array().map(Vec::len), Some(1));
    install.remove().unwrap();
    assert!(!alone.exists());
}

#[test]
fn a_directory_that_is_not_there_is_named_with_its_setting() {
    let dir = tempfile::tempdir().unwrap();
    let install = with(dir.path(), |files| {
        files.cni_conf_dir = Some("/nowhere".into());
    });
    let error = install.apply().unwrap_err().to_string();
    assert!(
        error.contains("/nowhere") && error.contains("CNI_CONF_DIR"),
        "{error}"
    );
}

#[test]
fn a_plugin_that_lost_its_rights_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let install = install(dir.path());
    fs::write(
        dir.path().join("net.d/10-a.conflist"),
        golden("before").to_string(),
    )
    .unwrap();
    install.apply().unwrap();
    let binary = dir.path().join("bin/istio-cni");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(install.apply().unwrap(), [binary]);
}

#[test]
fn an_owned_configuration_follows_the_runtimes_and_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let install = with(dir.path(), |files| files.owned = true);
    let conflist = dir.path().join("net.d/10-podnet.conflist");
    let owned = dir.path().join("net.d/02-istio-cni.conflist");
    fs::write(&conflist, golden("before").to_string()).unwrap();
    install.apply().unwrap();
    assert_eq!(read_json(&conflist).unwrap(), golden("before"));
    assert_eq!(read_json(&owned).unwrap()["plugins"][2]["type"], TYPE);

    let mut other = golden("before");
    other["plugins"][0]["mtu"] = 9000.into();
    fs::write(&conflist, other.to_string()).unwrap();
    assert_eq!(install.apply().unwrap(), std::slice::from_ref(&owned));
    assert_eq!(read_json(&owned).unwrap()["plugins"][0]["mtu"], 9000);
    install.remove().unwrap();
    assert!(!owned.exists() && conflist.exists());
}

#[test]
fn who_owns_a_configuration_no_longer_leaves_none_behind() {
    let dir = tempfile::tempdir().unwrap();
    let [conflist, owned] =
        ["10-podnet.conflist", "02-istio-cni.conflist"].map(|it| dir.path().join("net.d").join(it));
    let owning = with(dir.path(), |files| files.owned = true);
    fs::write(&conflist, golden("before").to_string()).unwrap();
    owning.apply().unwrap();
    let chaining = install(dir.path());
    assert_eq!(
        chaining.apply().unwrap(),
        [conflist.clone(), owned.clone()],
        "no moment without the plugin"
    );
    assert!(!owned.exists());
    assert_eq!(read_json(&conflist).unwrap()["plugins"][2]["type"], TYPE);
    // Somebody else's of that name stays.
    fs::write(&owned, golden("before").to_string()).unwrap();
    assert_eq!(chaining.apply().unwrap(), [] as [PathBuf; 0]);
    assert!(owned.exists());
}

#[test]
fn on_a_node_that_has_no_watch_left_it_is_installed_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let watch = Watch {
        install: install(dir.path()),
        kubeconfig: None,
        metrics: Metrics::default(),
    };
    let conflist = dir.path().join("net.d/10-podnet.conflist");
    fs::write(&conflist, golden("before").to_string()).unwrap();
    let (stop, open) = io::pipe().unwrap();
    let (mut open, mut written) = (Some(open), Vec::new());
    let kept = watch.keep(
        stop.as_fd(),
        |applied| {
            written.extend(applied.unwrap());
            drop(open.take()); // it hangs up
        },
        || Err(Errno::EMFILE),
    );
    kept.unwrap();
    assert_eq!(written, [dir.path().join("bin").join(TYPE), conflist]);
}

#[test]
fn the_numbers_say_whether_it_is_in_place_and_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let install = install(dir.path());
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::new(&mut registry);
    let step = |expected: &[&str]| {
        metrics.note(&install, &install.apply());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mut samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        samples.sort_unstable();
        assert_eq!(samples, expected);
    };
    let (plugin, conflist) = (
        dir.path().join("ambit-cni"),
        dir.path().join("net.d/10-podnet.conflist"),
    );
    let [away, there] = ["istio_cni_install_ready 0", "istio_cni_install_ready 1"];
    let no_network = "istio_cni_installs_total{result=\"CREATE_CNI_CONFIG_FAILURE\"} 1";
    let [once, twice] =
        [1, 2].map(|n| format!("istio_cni_installs_total{{result=\"SUCCESS\"}} {n}"));
    step(&[away, no_network]);
    fs::write(&conflist, golden("before").to_string()).unwrap();
    step(&[there, no_network, &once]);
    step(&[there, no_network, &once]);
    fs::write(&conflist, golden("before").to_string()).unwrap();
    step(&[there, no_network, &twice]);
    fs::remove_file(&plugin).unwrap();
    let no_binary = "istio_cni_installs_total{result=\"COPY_BINARIES_FAILURE\"} 1";
    step(&[away, no_binary, no_network, &twice]);
}
