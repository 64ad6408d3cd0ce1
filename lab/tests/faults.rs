//! What breaks, and what must not break with it.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, wait};
use nix::sys::signal::Signal;
use support::{Pair, SOON, Server, ends, in_lab, refused, round_trip, talk, talk_soon};

#[test]
fn without_the_control_plane_traffic_goes_on_and_known_identities_connect() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab
            .pod("shop/near")
            .node(0)
            .service_account("near")
            .start()?;
        let mut open = talk(&pair.client, pair.at(), "before")?;
        lab.control_plane()?.kill()?;
        round_trip(&mut open, "during")?;
        for client in [&pair.client, &near] {
            talk(client, pair.at(), "a new connection")?;
        }
        lab.control_plane()?.start()?;
        round_trip(&mut open, "after")?;
        // It is taken up again: what is new reaches the nodes.
        lab.pod("shop/late")
            .node(1)
            .service_account("late")
            .start()?;
        Ok(())
    });
}

#[test]
fn without_the_control_plane_a_new_identity_waits_and_then_gets_a_clear_error() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let server = lab.pod("shop/web").start()?;
        let _echo = Server::echo(&server, 8080)?;
        lab.control_plane()?.kill()?;
        // Either its sandbox is refused (the kubelet tries again), or it starts and its connections are refused.
        let began = Instant::now();
        let log = lab.access_log(0)?.from_now();
        match lab
            .pod("shop/newcomer")
            .service_account("newcomer")
            .without_waiting()
            .start()
        {
            Err(error) => {
                let text = format!("{error:#}");
                ensure!(
                    text.contains("newcomer") && text.contains("istio-cni"),
                    "{text}"
                );
            }
            Ok(newcomer) => {
                refused(&newcomer, server.at(8080))?;
                log.find("the reason", |r| !r.error().is_empty())?;
            }
        }
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "that took {:?}",
            began.elapsed()
        );
        lab.control_plane()?.start()?;
        let newcomer = lab.pod("shop/second").service_account("newcomer").start()?;
        talk_soon(&newcomer, server.at(8080))
    });
}

#[test]
fn pods_recover_when_ztunnel_dies_or_restarts() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        for node in [0, 1] {
            let ztunnel = lab.node(node).ztunnel()?;
            ztunnel.restart()?;
            talk_soon(&pair.client, pair.at())?;
            talk_soon(&near, pair.at())?;
            ztunnel.kill()?;
            // Meshed pods fail closed while their proxy is away.
            let victim = if node == 0 { &near } else { &pair.client };
            refused(victim, pair.at())?;
            ztunnel.start()?;
            talk_soon(&pair.client, pair.at())?;
            talk_soon(&near, pair.at())?;
        }
        Ok(())
    });
}

#[test]
fn the_node_agent_may_die_and_return_without_a_pod_noticing() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let mut open = talk(&pair.client, pair.at(), "before")?;
        for node in [0, 1] {
            lab.node(node).agent()?.kill()?;
        }
        round_trip(&mut open, "during")?;
        talk(&pair.client, pair.at(), "a new one")?;
        // A pod that should be in the mesh may not start outside of it.
        let error = lab
            .pod("shop/early")
            .node(0)
            .without_waiting()
            .start()
            .unwrap_err();
        ensure!(format!("{error:#}").contains("istio-cni"), "{error:#}");
        for node in [0, 1] {
            lab.node(node).agent()?.start()?;
            lab.node(node).ztunnel()?.until_ready()?;
        }
        round_trip(&mut open, "after")?;
        talk(&pair.client, pair.at(), "a new one")?;
        let late = lab.pod("shop/late").node(0).start()?;
        talk_soon(&late, pair.at())
    });
}

#[test]
fn agent_and_ztunnel_together_come_back_to_the_pods_they_had() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        talk(&pair.client, pair.at(), "before")?;
        let node = lab.node(0);
        node.ztunnel()?.kill()?;
        node.agent()?.kill()?;
        node.agent()?.start()?;
        node.ztunnel()?.start()?;
        talk_soon(&pair.client, pair.at())?;
        ensure!(
            pair.server.enrolled()?,
            "{:?}",
            pair.server.mirrored_status()?
        );
        Ok(())
    });
}

#[test]
fn a_pod_deleted_in_mid_connection_ends_that_connection_only() {
    in_lab(
        Lab::builder().ztunnel_env("CONNECTION_TERMINATION_DEADLINE", "3s"),
        |lab| {
            let pair = Pair::start(lab)?;
            let doomed = lab
                .pod("shop/doomed")
                .node(0)
                .service_account("doomed")
                .start()?;
            let doomed_echo = Server::echo(&doomed, 8080)?;
            let mut kept = talk(&pair.client, pair.at(), "kept")?;
            let cut = talk(&pair.client, doomed.at(8080), "cut")?;
            let leaving = lab.pod("shop/leaving").node(1).start()?;
            let cut_too = talk(&leaving, pair.at(), "cut too")?;
            // The kubelet kills the programs first; ours live in this process.
            drop(doomed_echo);
            doomed.delete()?;
            ends(cut, SOON)?;
            leaving.delete()?;
            drop(cut_too);
            round_trip(&mut kept, "still here")?;
            talk(&pair.client, pair.at(), "and new ones too")?;
            for node in [0, 1] {
                wait::until(&format!("node {node} to forget the pods"), SOON, || {
                    let dump = lab.node(node).config_dump()?.to_string();
                    Ok(if dump.contains("doomed") || dump.contains("leaving") {
                        wait::Probe::NotYet("they are in its dump".into())
                    } else {
                        wait::Probe::Ready(())
                    })
                })?;
            }
            Ok(())
        },
    );
}

#[test]
fn an_unenrolled_pod_is_as_if_it_had_never_been_in_the_mesh() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.namespace("old").plain()?;
        // Everything it shows is what a pod shows that never was in the mesh and runs the same server.
        let untouched = lab.pod("old/untouched").node(0).start()?;
        let _same = Server::echo(&untouched, 8080)?;
        let _same_too = Server::echo(&pair.client, 8080)?;
        talk(&pair.client, pair.at(), "in the mesh")?;
        lab.namespace("shop").plain()?;
        for pod in [&pair.server, &pair.client] {
            wait::until(
                &format!("{} to leave the mesh", pod.name()),
                Duration::from_secs(60),
                || {
                    let traces = traces(pod)?;
                    Ok(if traces == self::traces(&untouched)? && !pod.enrolled()? {
                        wait::Probe::Ready(())
                    } else {
                        wait::Probe::NotYet(format!("{traces}\n{:?}", pod.mirrored_status()?))
                    })
                },
            )?;
        }
        let capture = lab.capture(0)?;
        talk(&pair.client, pair.at(), "in-the-clear-again")?;
        let seen = capture.stop()?;
        ensure!(seen.shows("in-the-clear-again"));
        ensure!(seen.count("tcp port 15008")? == 0);
        Ok(())
    });
}

/// Everything enrolment may leave in a pod's namespace.
fn traces(pod: &Pod) -> Result<String> {
    let commands = [
        "nft list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip route show table 100",
        "ip -6 route show table 100",
        "ss -Hltn",
    ];
    commands
        .iter()
        .map(|command| {
            Ok(format!(
                "{command}:\n{}",
                pod.exec(["sh", "-c", command])?.stdout
            ))
        })
        .collect()
}

#[test]
fn a_running_pod_is_enrolled_without_cutting_what_it_does() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").plain()?;
        let server = lab.pod("shop/web").node(0).start()?;
        let client = lab.pod("shop/client").node(1).start()?;
        let _echo = Server::echo(&server, 8080)?;
        let mut open = talk(&client, server.at(8080), "before there was a mesh")?;
        lab.namespace("shop").ambient()?;
        for pod in [&server, &client] {
            wait::until_true(&format!("{} to be enrolled", pod.name()), SOON, || {
                pod.enrolled().is_ok_and(|yes| yes)
            })?;
        }
        lab.until_all_dumps("both as HBONE", |dump| {
            let workloads = dump["workloads"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            workloads
                .iter()
                .filter(|w| w["namespace"] == "shop" && w["protocol"] == "HBONE")
                .count()
                == 2
        })?;
        let capture = lab.capture(0)?;
        round_trip(&mut open, "the old connection goes on")?;
        talk(&client, server.at(8080), "the-new-one-is-encrypted")?;
        let seen = capture.stop()?;
        ensure!(
            seen.shows("the old connection goes on") && !seen.shows("the-new-one-is-encrypted")
        );
        Ok(())
    });
}

#[test]
fn a_peer_that_stops_reading_holds_only_its_own_stream() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        // Accepts and never reads; the streams are kept so that they stay open.
        let kept = std::sync::Mutex::new(Vec::new());
        let _deaf = Server::start(&pair.server, 9000, move |stream| {
            kept.lock().unwrap().extend(stream.try_clone())
        })?;
        let before = resident(lab)?;
        let mut stalled = Vec::new();
        for _ in 0..8 {
            let mut stream = pair.client.connect(pair.server.at(9000))?;
            let held = fill(&mut stream)?;
            ensure!(
                held < 64 << 20,
                "{held} bytes went nowhere and were accepted"
            );
            stalled.push(stream);
        }
        // All of them share one tunnel connection with these.
        for _ in 0..20 {
            talk(&pair.client, pair.at(), &"not held back ".repeat(1_000))?;
        }
        let grown = resident(lab)?.saturating_sub(before);
        ensure!(
            grown < 256 << 20,
            "eight stalled streams cost {grown} bytes of the two ztunnels' memory"
        );
        Ok(())
    });
}

/// Writes until nothing more is taken for a second.
fn fill(stream: &mut TcpStream) -> Result<usize> {
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    let block = [0x55; 64 * 1024];
    let mut written = 0;
    loop {
        match stream.write(&block) {
            Ok(n) => written += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(written);
            }
            Err(error) => return Err(error).context("a stalled stream must stay open"),
        }
        if written > 1 << 30 {
            return Ok(written);
        }
    }
}

fn resident(lab: &Lab) -> Result<usize> {
    let of = |node: usize| {
        Ok::<_, anyhow::Error>(lab.metrics(node)?.sum("process_resident_memory_bytes", &[]) as usize)
    };
    Ok(of(0)? + of(1)?)
}

#[test]
fn sigterm_lets_open_connections_finish_until_the_deadline() {
    in_lab(
        Lab::builder().ztunnel_env("CONNECTION_TERMINATION_DEADLINE", "4s"),
        |lab| {
            let pair = Pair::start(lab)?;
            let mut open = talk(&pair.client, pair.at(), "before")?;
            let ztunnel = lab.node(0).ztunnel()?.process()?;
            ztunnel.signal(Signal::SIGTERM)?;
            let asked = Instant::now();
            round_trip(&mut open, "during the drain")?;
            ensure!(ztunnel.running(), "it left although a connection was open");
            ends(open, SOON)?;
            ensure!(
                asked.elapsed() > Duration::from_secs(3),
                "the connection was cut after {:?}",
                asked.elapsed()
            );
            let status = ztunnel.wait(SOON)?;
            ensure!(status.success(), "{status}");
            Ok(())
        },
    );
}

#[test]
fn an_idle_ztunnel_leaves_at_once_when_asked() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        drop(talk(&pair.client, pair.at(), "done")?);
        let ztunnel = lab.node(0).ztunnel()?.process()?;
        let asked = Instant::now();
        let status = ztunnel.terminate(SOON)?;
        ensure!(
            status.success() && asked.elapsed() < Duration::from_secs(15),
            "{status} after {:?}",
            asked.elapsed()
        );
        Ok(())
    });
}

#[test]
fn a_second_ztunnel_takes_over_without_a_refused_connection() {
    in_lab(
        Lab::builder().ztunnel_env("CONNECTION_TERMINATION_DEADLINE", "4s"),
        |lab| {
            let pair = Pair::start(lab)?;
            let mut open = talk(&pair.client, pair.at(), "on the old one")?;
            let (stop, done) = (
                Arc::new(AtomicBool::new(false)),
                Arc::new(AtomicUsize::new(0)),
            );
            let callers = {
                let (client, at, stop, done) =
                    (pair.client.clone(), pair.at(), stop.clone(), done.clone());
                thread::spawn(move || -> Result<()> {
                    while !stop.load(Ordering::SeqCst) {
                        talk(&client, at, "a call in the middle of the change")?;
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            };
            wait::until_true("calls before", SOON, || done.load(Ordering::SeqCst) > 20)?;
            let old = lab.surge_ztunnel(0)?;
            old.signal(Signal::SIGTERM)?;
            round_trip(&mut open, "the old one drains")?;
            let status = old.wait(SOON)?;
            let so_far = done.load(Ordering::SeqCst);
            wait::until_true("calls after", SOON, || {
                done.load(Ordering::SeqCst) > so_far + 20 || callers.is_finished()
            })?;
            stop.store(true, Ordering::SeqCst);
            callers.join().unwrap()?;
            ensure!(status.success(), "{status}");
            Ok(())
        },
    );
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        // What stays (a pooled tunnel connection, allocators' arenas) is there after the first hundred.
        many(&pair.client, pair.at(), 100)?;
        many(&near, pair.at(), 100)?;
        let before = [settled(lab, 0)?, settled(lab, 1)?];
        many(&pair.client, pair.at(), 5_000)?;
        many(&near, pair.at(), 5_000)?;
        for node in [0, 1] {
            wait::until(&format!("node {node} to be as before"), SOON, || {
                let (old, new) = (&before[node], Left::of(lab, node)?);
                // A pooled connection more or less, and its tasks, are no leak; a leak would be thousands.
                let same = new.fds <= old.fds + 10
                    && new.tasks <= old.tasks + 20
                    && new.sockets <= old.sockets;
                Ok(if same {
                    wait::Probe::Ready(())
                } else {
                    wait::Probe::NotYet(format!("before {old:?}, now {new:?}"))
                })
            })?;
            let grown = Left::of(lab, node)?
                .memory
                .saturating_sub(before[node].memory);
            ensure!(grown < 48 << 20, "node {node} kept {grown} bytes of memory");
        }
        Ok(())
    });
}

/// What connections might leave in a ztunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    fds: u64,
    tasks: u64,
    sockets: u64,
    memory: u64,
}

impl Left {
    fn of(lab: &Lab, node: usize) -> Result<Self> {
        let metrics = lab.metrics(node)?;
        let value = |name: &str| -> Result<u64> {
            let found = metrics.select(name, &[]).count();
            ensure!(found > 0, "no metric {name}");
            Ok(metrics.sum(name, &[]) as u64)
        };
        Ok(Self {
            fds: value("process_open_fds")?,
            tasks: value("tokio_num_alive_tasks")?,
            sockets: value("istio_tcp_sockets_open")?,
            memory: value("process_resident_memory_bytes")?,
        })
    }
}

/// The state once no application socket is open any more.
fn settled(lab: &Lab, node: usize) -> Result<Left> {
    wait::until(
        &format!("the sockets of node {node} to close"),
        SOON,
        || {
            let now = Left::of(lab, node)?;
            Ok(if now.sockets == 0 {
                wait::Probe::Ready(now)
            } else {
                wait::Probe::NotYet(format!("{now:?}"))
            })
        },
    )
}

/// Opens, uses and closes connections, eight at a time.
fn many(client: &Pod, to: SocketAddr, connections: usize) -> Result<()> {
    thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                scope.spawn(move || {
                    let mine = connections / 8 + usize::from(caller < connections % 8);
                    client
                        .netns()
                        .within(|| (0..mine).try_for_each(|_| once(to)))?
                })
            })
            .collect();
        callers
            .into_iter()
            .try_for_each(|caller| caller.join().unwrap())
    })
}

fn once(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    round_trip(&mut stream, "short and sweet")
}

#[test]
fn noise_on_the_tunnel_port_is_refused_counted_and_disturbs_nobody() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.namespace("old").plain()?;
        let stranger = lab.pod("old/stranger").node(1).start()?;
        let mut open = talk(&pair.client, pair.at(), "before")?;
        let log = lab.access_log(0)?.from_now();
        let tunnel = pair.server.at(15008);
        // Silence, garbage, and half a handshake, many of each.
        let silent: Vec<_> = (0..50)
            .map(|_| stranger.connect(tunnel))
            .collect::<Result<_>>()?;
        for noise in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
            &[0; 512],
        ] {
            for _ in 0..20 {
                let mut stream = stranger.connect(tunnel)?;
                stream.write_all(noise)?;
                if noise[0] != 0x16 {
                    ends(stream, SOON)?;
                }
            }
        }
        log.find("the refusals", |record| {
            record
                .field("src.addr")
                .starts_with(&stranger.ip().to_string())
                && !record.error().is_empty()
        })?;
        round_trip(&mut open, "still here")?;
        talk(&pair.client, pair.at(), "and new ones too")?;
        // A client without a certificate gets no further than the handshake.
        let at = tunnel.to_string();
        let tls = stranger.exec([
            "timeout", "20", "openssl", "s_client", "-connect", &at, "-alpn", "h2", "-ign_eof",
        ])?;
        ensure!(
            format!("{}{}", tls.stdout, tls.stderr).contains("certificate required"),
            "{tls:?}"
        );
        log.find("the missing certificate", |record| {
            record.error().to_lowercase().contains("certificate")
        })?;
        // Slow ones are not waited for forever: the handshake has a deadline.
        for stream in silent {
            ends(stream, Duration::from_secs(60))?;
        }
        Ok(())
    });
}

#[test]
fn a_node_whose_link_is_cut_and_restored_is_reached_again() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        talk(&pair.client, pair.at(), "before")?;
        lab.unplug(0)?;
        let mut stream = pair.client.connect(pair.at())?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"into the void")?;
        ensure!(
            !matches!(stream.read(&mut [0; 16]), Ok(1..)),
            "the plug was pulled"
        );
        lab.replug(0)?;
        talk_soon(&pair.client, pair.at())
    });
}
