//! The lab itself, without a mesh: wires, the CNI chain, names, and that nothing is left behind.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, wait};
use support::{in_lab, turn};

fn namespaces_of(id: &str) -> Vec<String> {
    let entries = fs::read_dir("/var/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.contains(id))
        .collect()
}

/// Sends a line from one pod to the other; gives what arrived and from which address it came.
fn say(client: &Pod, server: &Pod, to: SocketAddr) -> Result<(String, SocketAddr)> {
    let listener = server.listen(to.port())?;
    let hears = thread::spawn(move || -> Result<(String, SocketAddr)> {
        let (mut stream, from) = listener.accept()?;
        let mut heard = String::new();
        stream.read_to_string(&mut heard)?;
        Ok((heard, from))
    });
    client.connect(to)?.write_all(b"good day")?;
    hears.join().unwrap()
}

#[test]
fn pods_on_two_nodes_reach_each_other_over_both_families() {
    in_lab(Lab::builder().mesh(false), |lab| {
        lab.namespace("shop").plain()?;
        let web = lab.pod("shop/web").node(0).start()?;
        let client = lab.pod("shop/client").node(1).start()?;
        let near = lab.pod("shop/near").node(0).start()?;
        for client in [&client, &near] {
            for (to, from) in [(web.ip(), client.ip()), (web.ip6()?, client.ip6()?)] {
                let (heard, peer) = say(client, &web, SocketAddr::new(to, 8080))?;
                ensure!(heard == "good day", "{heard}");
                let peer = peer.ip().to_canonical();
                ensure!(peer == from, "the connection came from {peer}, not {from}");
            }
        }
        Ok(())
    });
}

#[test]
fn commands_in_a_pod_see_its_names_and_only_its_network() {
    in_lab(Lab::builder().mesh(false).nodes(1), |lab| {
        let pod = lab.pod("shop/box").start()?;
        ensure!(pod.exec(["hostname"])?.success()?.trim() == "box");
        ensure!(
            pod.exec(["cat", "/etc/resolv.conf"])?
                .success()?
                .contains("search shop.svc.cluster.local")
        );
        ensure!(
            pod.command(["id", "-un"])?
                .user("nobody")
                .run()?
                .success()?
                .trim()
                == "nobody"
        );
        let links = pod.exec(["ip", "-o", "link"])?.success()?;
        ensure!(links.lines().count() == 2, "{links}");
        let ran = pod.exec(["sh", "-c", "echo no >&2; exit 7"])?;
        ensure!(ran.status.code() == Some(7) && ran.stderr == "no\n");
        let late = pod
            .command(["sleep", "600"])?
            .within(Duration::from_millis(100))
            .run();
        ensure!(late.is_err());
        ensure!(
            !fs::read_to_string("/etc/resolv.conf")?.contains("shop.svc"),
            "the machine's own file was changed"
        );
        Ok(())
    });
}

#[test]
fn names_of_the_outside_world_resolve_and_others_do_not_exist() {
    in_lab(Lab::builder().mesh(false).nodes(1), |lab| {
        let pod = lab.pod("shop/box").start()?;
        let outside = lab.outside_addresses();
        for name in lab::OUTSIDE_NAMES {
            let found = pod.exec(["getent", "ahosts", name])?.success()?;
            for address in &outside {
                ensure!(found.contains(&address.to_string()), "{name}: {found}");
            }
        }
        ensure!(
            !pod.exec(["getent", "ahosts", "nowhere.example.net"])?
                .succeeded()
        );
        let listener = lab
            .outside()
            .within(|| std::net::TcpListener::bind(("::", 80)))??;
        pod.connect(SocketAddr::new(outside[0], 80))?;
        listener.accept()?;
        Ok(())
    });
}

#[test]
fn a_deleted_pod_gives_its_address_back_and_takes_its_programs_along() {
    in_lab(Lab::builder().mesh(false).nodes(1), |lab| {
        let pod = lab.pod("shop/box").start()?;
        let sleeper = pod.spawn("sleeper", ["sleep", "1000"])?;
        let leases = || {
            fs::read_dir(lab.dir().join("node-0/ipam/lab")).map(|d| {
                d.flatten()
                    .filter(|e| e.file_name().to_string_lossy().contains("244"))
                    .count()
            })
        };
        ensure!(leases()? == 2);
        ensure!(lab.dir().join("config/pod/shop/box.yaml").exists());
        pod.delete()?;
        ensure!(!sleeper.running());
        ensure!(leases()? == 0);
        ensure!(!lab.dir().join("config/pod/shop/box.yaml").exists());
        ensure!(
            namespaces_of(lab.id())
                .iter()
                .all(|name| !name.contains("box"))
        );
        // And the name is free again.
        lab.pod("shop/box").start()?;
        Ok(())
    });
}

#[test]
fn a_capture_shows_what_passed_a_nodes_link_and_nothing_else() {
    in_lab(Lab::builder().mesh(false), |lab| {
        let web = lab.pod("shop/web").node(0).start()?;
        let client = lab.pod("shop/client").node(1).start()?;
        let capture = lab.capture(0)?;
        say(&client, &web, web.at(8080))?;
        let seen = capture.stop()?;
        ensure!(seen.shows("good day") && !seen.shows("good night"));
        ensure!(seen.count("tcp port 8080")? > 3);
        Ok(())
    });
}

#[test]
fn a_stopped_lab_leaves_nothing() {
    let _turn = turn();
    let lab = Lab::builder().mesh(false).start().unwrap();
    let (id, dir) = (lab.id().to_owned(), lab.dir().to_owned());
    // A program that tries to get away: its own session, parent gone.
    let pod = lab.pod("shop/box").start().unwrap();
    let runaway = pod
        .exec(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"])
        .unwrap()
        .success()
        .unwrap();
    assert!(fs::exists(format!("/proc/{}", runaway.trim())).unwrap());
    assert!(!namespaces_of(&id).is_empty());
    lab.stop().unwrap();
    assert_eq!(namespaces_of(&id), Vec::<String>::new());
    assert!(!dir.exists());
    // Dead, even where this machine's init is slow to bury orphans.
    let stat = fs::read_to_string(format!("/proc/{}/stat", runaway.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z"), "{stat}");
}

#[test]
fn a_killed_owner_leaves_nothing() {
    let _turn = turn();
    let mut owner = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["hold", "--nodes", "1", "--no-mesh"])
        // It holds until this ends, and ours may have ended long ago.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut out = std::io::BufReader::new(owner.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut said).unwrap();
    let id = said.trim().to_owned();
    assert!(!namespaces_of(&id).is_empty(), "{said:?}");
    // While the owner lives, cleaning leaves its lab alone.
    let cleaned = lab::clean(false).unwrap();
    assert!(cleaned.alive.contains(&id), "{cleaned:?}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait::until_true("the reaper to clean up", Duration::from_secs(60), || {
        namespaces_of(&id).is_empty() && !fs::exists(format!("/run/ambit-lab/{id}")).unwrap()
    })
    .unwrap();
}

#[test]
fn what_a_dead_owner_without_a_reaper_left_is_cleaned_by_the_next() -> Result<()> {
    let _turn = turn();
    let id = "lzz000";
    let netns = format!("ambit-{id}-node-0");
    ensure!(
        Command::new("ip")
            .args(["netns", "add", &netns])
            .status()?
            .success()
    );
    fs::create_dir_all(format!("/run/ambit-lab/{id}"))?;
    fs::write(format!("/run/ambit-lab/{id}/owner"), "")?;
    let inside = Command::new("ip")
        .args(["netns", "exec", &netns, "sleep", "1000"])
        .spawn()
        .context("ip netns exec")?;
    let inside = std::sync::Mutex::new(inside);
    wait::until_true("sleep to be inside", Duration::from_secs(20), || {
        Command::new("ip")
            .args(["netns", "pids", &netns])
            .output()
            .is_ok_and(|o| !o.stdout.is_empty())
    })?;
    // Foreign names with the same beginning are not ours to touch.
    let foreign = "ambit-t-lab-foreign";
    // Of a run that was killed.
    let _ = Command::new("ip").args(["netns", "del", foreign]).output();
    ensure!(
        Command::new("ip")
            .args(["netns", "add", foreign])
            .status()?
            .success()
    );
    let cleaned = lab::clean(false)?;
    let foreign_is_there = namespaces_of(foreign).len() == 1;
    Command::new("ip")
        .args(["netns", "del", foreign])
        .status()?;
    ensure!(foreign_is_there);
    ensure!(
        cleaned
            .removed
            .iter()
            .any(|removed| (&*removed.id, removed.namespaces, removed.processes) == (id, 1, 1)),
        "{cleaned:?}"
    );
    ensure!(namespaces_of(id).is_empty() && !fs::exists(format!("/run/ambit-lab/{id}"))?);
    ensure!(!inside.lock().unwrap().wait()?.success(), "it was killed");
    Ok(())
}

#[test]
fn two_labs_at_once_do_not_meet() {
    let _turn = turn();
    let one = Lab::builder().mesh(false).nodes(1).start().unwrap();
    let two = Lab::builder().mesh(false).nodes(1).start().unwrap();
    assert_ne!(one.id(), two.id());
    let pods = [&one, &two].map(|lab| lab.pod("shop/box").start().unwrap());
    assert_eq!(
        pods[0].ip(),
        pods[1].ip(),
        "the same addresses, in different namespaces"
    );
    one.stop().unwrap();
    assert!(pods[1].exec(["true"]).unwrap().succeeded());
    two.stop().unwrap();
}
