//! Threads go into pods' namespaces and come back; sockets stay there.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::socket::sockopt::TcpCongestion;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use ztunnel::config::{Config, ports};
use ztunnel::netns::{From, Netns, NetnsId, Options, original_destination, unmapped};

use crate::place::{HandedOver, REDIRECT, options, place};

fn where_am_i() -> NetnsId {
    NetnsId::of(
        std::fs::File::open("/proc/thread-self/ns/net")
            .unwrap()
            .as_fd(),
    )
    .unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn threads_come_home_even_from_a_panic() {
    let place = place();
    let (home, netns) = (where_am_i(), place.netns());
    assert_ne!(netns.id(), home);
    assert_eq!(netns.enter(where_am_i).unwrap(), netns.id());
    assert_eq!(where_am_i(), home);
    let panicked = catch_unwind(AssertUnwindSafe(|| netns.enter(|| panic!("inside"))));
    assert!(panicked.is_err());
    assert_eq!(where_am_i(), home);
}

#[test]
fn threads_do_not_drag_each_other_along() {
    let (one, two) = (place(), place());
    let home = where_am_i();
    let threads = [one.netns(), two.netns()].map(|netns| {
        std::thread::spawn(move || {
            for _ in 0..2000 {
                assert_eq!(netns.enter(where_am_i).unwrap(), netns.id());
                assert_eq!(where_am_i(), home);
            }
        })
    });
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

/// Where the machine's kernel has no BBR, nothing can be set that would have to be undone.
#[tokio::test]
async fn an_apps_own_connections_are_not_paced_where_the_nodes_are() {
    let place = place();
    let key = "net/ipv4/tcp_congestion_control";
    let paced = place.sysctl(key, "bbr").is_ok();
    let netns = place.netns();
    let control = |listener: &tokio::net::TcpListener| {
        let control = nix::sys::socket::getsockopt(listener, TcpCongestion).unwrap();
        control.into_string().unwrap()
    };
    let of_apps = netns.listen(ports::OUTBOUND).unwrap();
    let of_tunnels = netns.listen(ports::INBOUND).unwrap();
    let (app, tunnel) = (control(&of_apps), control(&of_tunnels));
    if paced {
        assert_eq!((app.as_str(), tunnel.as_str()), ("reno", "bbr"));
    } else {
        assert_eq!(app, tunnel, "left as the operator has it");
    }
}

/// Not a limit, only a number to look at: `cargo test -- --nocapture`.
#[test]
fn what_a_visit_costs() {
    let place = place();
    let netns = place.netns();
    const ROUNDS: u32 = 20_000;
    let started = Instant::now();
    for _ in 0..ROUNDS {
        netns.enter(|| ()).unwrap();
    }
    let visit = started.elapsed() / ROUNDS;
    let started = Instant::now();
    for _ in 0..ROUNDS {
        drop(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    }
    println!(
        "in and out of a namespace {visit:?}; a bound socket for comparison {:?}",
        started.elapsed() / ROUNDS
    );
}

/// What Istio's ask by default, and by the variables that are Istio's.
#[tokio::test]
async fn sockets_of_either_end_ask_whether_the_other_lives_as_the_operator_says() {
    let place = place();
    let seldom = ["--keepalive-time", "20s", "--keepalive-interval", "5s"];
    let seldom = [&seldom[..], &["--keepalive-retries", "3"]].concat();
    let told = [&seldom[..], &["--user-timeout", "true"]].concat();
    for (flags, asks, gives_up) in [
        (&[][..], Some((180, 180, 9)), None),
        (&seldom[..], Some((20, 5, 3)), None),
        (&told[..], Some((20, 5, 3)), Some(20 + 5 * 3)),
        (
            &["--keepalive", "false", "--user-timeout", "true"],
            None,
            None,
        ),
    ] {
        let config = Config::try_parse_from([&["ztunnel"], flags].concat()).unwrap();
        let netns = Netns::new(place.fd(), Options::of(&config)).unwrap();
        let listener = netns.listen(15001).unwrap();
        let to = address("127.0.0.1:15001");
        let client = netns.connect(From::Any, to).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        for socket in [&client, &server] {
            let socket = SockRef::from(socket);
            let seconds = |duration: std::io::Result<Duration>| duration.unwrap().as_secs();
            let set = socket.keepalive().unwrap().then(|| {
                (
                    seconds(socket.tcp_keepalive_time()),
                    seconds(socket.tcp_keepalive_interval()),
                    socket.tcp_keepalive_retries().unwrap(),
                )
            });
            assert_eq!(set, asks, "{flags:?}");
            let patience = socket.tcp_user_timeout().unwrap();
            let patience = patience.filter(|it| !it.is_zero());
            assert_eq!(patience.map(|it| it.as_secs()), gives_up, "{flags:?}");
        }
    }
}

#[test]
fn something_that_is_no_namespace_is_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let netns = Netns::new(null.into(), options()).unwrap();
    let home = where_am_i();
    assert!(netns.enter(|| ()).is_err());
    assert_eq!(where_am_i(), home);
}

#[tokio::test]
async fn listeners_take_both_families_and_hand_down_the_mark() {
    let place = place();
    let netns = place.netns();
    let listener = netns.listen(15001).unwrap();
    for to in ["127.0.0.1:15001", "[::1]:15001"] {
        let client = netns.connect(From::Any, address(to)).await.unwrap();
        let (server, peer) = listener.accept().await.unwrap();
        assert_eq!(unmapped(peer), client.local_addr().unwrap());
        assert_eq!(SockRef::from(&client).mark().unwrap(), 0x539);
        assert_eq!(
            SockRef::from(&server).mark().unwrap(),
            0x539,
            "an accepted socket inherits the mark"
        );
        assert!(server.nodelay().unwrap());
        assert_eq!(
            original_destination(&server).unwrap(),
            address(to),
            "nobody redirected it"
        );
    }
    // The same port at home is another port.
    assert!(TcpStream::connect("127.0.0.1:15001").await.is_err());
}

#[tokio::test]
async fn a_namespace_without_ipv6_is_served_on_ipv4() {
    let place = place();
    place.sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    for ipv6 in [true, false] {
        let netns = Netns::new(place.fd(), Options { ipv6, ..options() }).unwrap();
        let listener = netns.listen(15008).unwrap();
        netns
            .connect(From::Any, address("127.0.0.1:15008"))
            .await
            .unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert!(unmapped(peer).is_ipv4());
    }
}

#[tokio::test]
async fn two_processes_may_listen_on_one_port() {
    let place = place();
    let (old, new) = (place.netns(), place.netns());
    let _old = old.listen(15006).unwrap();
    new.listen(15006).unwrap();
    let alone = Netns::new(
        place.fd(),
        Options {
            reuse_port: false,
            ..options()
        },
    )
    .unwrap();
    assert!(alone.listen(15006).is_err());
}

/// Addresses to be captured at, and routes for packets to any other.
const ADDRESSES: &str = "addr add 10.1.2.3/32 dev lo\naddr add fd00::3/128 dev lo nodad\n\
    route add default dev lo\nroute add ::/0 dev lo\n";

#[tokio::test]
async fn redirected_connections_know_where_they_were_going() {
    let place = place();
    place.nft(REDIRECT).unwrap();
    place.ip(ADDRESSES).unwrap();
    let netns = place.netns();
    let listener = netns.listen(15001).unwrap();
    for to in ["10.9.8.7:80", "[fd00::99]:80"] {
        // An application's socket: no mark.
        let plain = Netns::new(
            place.fd(),
            Options {
                mark: 0,
                ..options()
            },
        )
        .unwrap();
        let _client = plain.connect(From::Any, address(to)).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert_eq!(original_destination(&server).unwrap(), address(to));
    }
}

/// `IP_BIND_ADDRESS_NO_PORT`: with a port range of 8, 64 connections from one address to 8 destinations.
#[tokio::test]
async fn a_bound_address_does_not_use_up_ports() {
    let place = place();
    place
        .sysctl("net/ipv4/ip_local_port_range", "40000 40007")
        .unwrap();
    let netns = Arc::new(place.netns());
    let mut open = Vec::new();
    for port in 9000..9008 {
        let listener = netns
            .listen_on(address(&format!("127.0.0.1:{port}")))
            .unwrap();
        for _ in 0..8 {
            let to = listener.local_addr().unwrap();
            open.push((
                netns
                    .connect(From::Own("127.0.0.2".parse().unwrap()), to)
                    .await
                    .unwrap(),
                listener.accept().await.unwrap(),
            ));
        }
    }
    assert_eq!(open.len(), 64);
}

const MARKED_IS_LOCAL: &str =
    "rule add fwmark 0x111/0xfff lookup 100\nroute add local default dev lo table 100\n";

const MARK: &str = "table inet m {
  chain pre { type filter hook prerouting priority mangle
    meta mark & 0xfff == 0x539 ct mark set 0x111
  }
  chain out { type route hook output priority mangle
    ct mark & 0xfff == 0x111 meta mark set ct mark
  }
}";

#[tokio::test]
async fn an_application_can_be_shown_a_foreign_client() {
    let place = place();
    // Replies to an address that is not here come back by the pod's rules: mark → local.
    place.ip(MARKED_IS_LOCAL).unwrap();
    place.ip6(MARKED_IS_LOCAL).unwrap();
    for interface in ["all", "lo"] {
        let key = format!("net/ipv4/conf/{interface}/rp_filter");
        place.sysctl(&key, "0").unwrap();
    }
    place.nft(MARK).unwrap();
    place.ip(ADDRESSES).unwrap();
    let netns = place.netns();
    let plain = Netns::new(
        place.fd(),
        Options {
            mark: 0,
            ..options()
        },
    )
    .unwrap();
    for (client, application) in [
        ("192.0.2.7", "10.1.2.3:9000"),
        ("2001:db8::7", "[fd00::3]:9000"),
    ] {
        let listener = plain.listen_on(address(application)).unwrap();
        let mut us = netns
            .connect(From::Foreign(client.parse().unwrap()), address(application))
            .await
            .unwrap();
        let (mut app, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip().to_string(), client);
        assert!(
            peer.port() < 32768,
            "no port that a client's kernel chooses"
        );
        app.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        us.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
    }
}
