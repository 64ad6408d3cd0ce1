//! Places: namespaces without a lab around them.
#![allow(clippy::unwrap_used)] // tests

use std::{fs, net::SocketAddr, os::unix::process::ExitStatusExt, process::Command};

use lab::{Place, Switch};

#[test]
fn a_place_ends_with_its_value_and_takes_along_what_runs_inside() {
    let place = Place::new("gone").unwrap();
    let (path, dir) = (place.path(), place.dir().to_owned());
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut sleeps = place.spawn(command).unwrap();
    assert!(path.exists() && dir.exists());
    drop(place);
    assert!(!path.exists() && !dir.exists());
    assert_eq!(sleeps.wait().unwrap().signal(), Some(9));
}

#[test]
fn what_runs_in_one_place_sees_nothing_of_another() {
    let (one, two) = (Place::new("same").unwrap(), Place::new("same").unwrap());
    assert_ne!(one.inode().unwrap(), two.inode().unwrap());
    let listener = one
        .within(|| std::net::TcpListener::bind("127.0.0.1:80"))
        .unwrap()
        .unwrap();
    assert!(one.listens_on(80).unwrap() && !two.listens_on(80).unwrap());
    drop(listener);
    one.nft("table inet only-here {}").unwrap();
    let rules = |place: &Place| place.exec(["nft", "list", "ruleset"]).unwrap().stdout;
    assert!(rules(&one).contains("only-here") && rules(&two).is_empty());
}

#[test]
fn a_script_the_kernel_refuses_is_an_error_that_shows_it() {
    let place = Place::new("refused").unwrap();
    let error = place.nft("table inet t { chain c {").unwrap_err();
    assert!(format!("{error:#}").contains("chain c {"), "{error:#}");
    let error = place.ip("link set nowhere up\n").unwrap_err();
    assert!(format!("{error:#}").contains("nowhere"), "{error:#}");
}

#[test]
fn hosts_on_a_switch_reach_each_other() {
    let [hub, one, two] = ["hub", "one", "two"].map(|role| Place::new(role).unwrap());
    let switch = Switch::new(&hub).unwrap();
    for (n, host) in [(1, &one), (2, &two)] {
        switch.plug(&format!("v{n}"), host).unwrap();
        let up = format!(
            "addr add 10.1.0.{n}/24 dev eth0\naddr add fd01::{n}/64 dev eth0\nlink set eth0 up\n"
        );
        host.ip(&up).unwrap();
    }
    let at: SocketAddr = "[fd01::2]:80".parse().unwrap();
    let listener = two.within(|| std::net::TcpListener::bind(at)).unwrap();
    let reached = one.within(|| std::net::TcpStream::connect(at)).unwrap();
    assert!(listener.is_ok() && reached.is_ok());
    let dirs = fs::read_dir("/sys/class/net").unwrap().flatten();
    let mut names = dirs.map(|dir| dir.file_name().into_string().unwrap());
    assert!(
        !names.any(|name| name == "v1"),
        "the machine's own namespace never sees an interface of ours"
    );
}
