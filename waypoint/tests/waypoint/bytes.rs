//! Connections that are not HTTP: declared as such, or with a server that speaks first.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Pod;

use super::shop::{Shop, in_shop};

#[test]
fn bytes_of_a_tcp_service_are_carried_with_half_close() {
    in_shop(|shop| {
        for app in &shop.apps {
            let listener = app.listen(7070)?;
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    // The server speaks first, and last.
                    let _ = stream.write_all(b"hello ");
                    let mut all = Vec::new();
                    let _ = stream.read_to_end(&mut all);
                    let _ = stream.write_all(&all);
                }
            });
        }
        let mut stream = shop.client.connect(shop.at(70))?;
        let mut hello = [0; 6];
        stream.read_exact(&mut hello)?;
        ensure!(&hello == b"hello ");
        stream.write_all(&[9; 100_000])?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        ensure!(back == [9; 100_000], "{} bytes", back.len());

        // Nothing is said of this port, and the word may become a request's: it is passed on when nothing follows.
        let guess = shop
            .lab
            .service_for("shop/guess", ("app", "web"), &[("raw", 1, 7070)])?;
        let ask = |shop: &Shop<'_>| -> Result<String> {
            let mut stream = shop.client.connect(guess.at(1))?;
            stream.write_all(b"PING")?;
            let mut hello = [0; 6];
            stream.read_exact(&mut hello)?;
            stream.shutdown(Shutdown::Write)?;
            let mut back = String::new();
            stream.read_to_string(&mut back)?;
            Ok(back)
        };
        shop.until("a word to come back", |shop| {
            ask(shop).is_ok_and(|back| back == "PING")
        })?;
        Ok(())
    });
}

#[test]
fn no_more_connections_reach_a_service_than_its_rule_allows() {
    in_shop(|shop| {
        greet(shop)?;
        let app = ("app", "web");
        let few = shop
            .lab
            .service_for("shop/few", app, &[("tcp", 70, 7070)])?;
        let opened = |shop: &Shop<'_>| open(shop, few.at(70), b"bytes");
        shop.until("it to be served", |shop| opened(shop).is_ok())?;
        let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: few }
spec: { host: few, trafficPolicy: { connectionPool: { tcp: { maxConnections: 1 } } } }
";
        shop.lab.apply_yaml("few", rule)?;
        shop.until("a second one to be one too many", |shop| {
            let first = opened(shop);
            first.is_ok() && opened(shop).is_err()
        })?;
        let log = shop.waypoint.pod().access_log();
        log.find("the one too many", |line| {
            line.field("flags").contains("UO") && line.field("protocol") == "TCP"
        })?;
        shop.until("room for one again", |shop| opened(shop).is_ok())
    });
}

#[test]
fn a_connection_is_noted_by_a_policy_for_the_log() {
    in_shop(|shop| {
        greet(shop)?;
        let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: watched }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: AUDIT
  rules: [{}]
";
        shop.lab.apply_yaml("watched", policy)?;
        let noted = |line: &str| line.contains("policy: noted") && line.contains("shop/watched");
        shop.until("a note", |shop| {
            let opened = open(shop, shop.at(70), b"bytes");
            let log = std::fs::read_to_string(shop.waypoint.pod().component().log_path());
            opened.is_ok() && log.is_ok_and(|log| log.lines().any(noted))
        })
    });
}

#[test]
fn a_route_of_one_namespaces_clients_cuts_off_nobody_else() {
    in_shop(|shop| {
        greet(shop)?;
        shop.lab.namespace("front").ambient()?;
        let caller = shop.lab.pod("front/caller").node(1).start()?;
        let opened = || open_from(&caller, shop.at(70), b"bytes");
        shop.until("it to be served", |_| opened().is_ok())?;
        let route = "
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: { namespace: front, name: web }
spec:
  parentRefs: [{ group: '', kind: Service, namespace: shop, name: web, port: 70 }]
  rules: [{ backendRefs: [{ name: missing, port: 70 }] }]
";
        shop.lab.apply_yaml("front", route)?;
        shop.until("its own clients to be led nowhere", |_| opened().is_err())?;
        open(shop, shop.at(70), b"bytes").context("a client of another namespace")?;
        Ok(())
    });
}

#[test]
fn connections_of_one_client_reach_one_endpoint_where_its_address_decides() {
    in_shop(|shop| {
        for (app, name) in shop.apps.iter().zip([b"one", b"two"]) {
            let listener = app.listen(7070)?;
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(name);
                }
            });
        }
        let ask = || -> Result<String> {
            let mut stream = shop.client.connect(shop.at(70))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut name = String::new();
            stream.read_to_string(&mut name)?;
            ensure!(!name.is_empty(), "nobody has said who he is");
            Ok(name)
        };
        let asked = || (0..12).map(|_| ask()).collect::<Result<BTreeSet<_>>>();
        shop.until("both to be asked", |_| {
            asked().is_ok_and(|names| names.len() == 2)
        })?;
        let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { namespace: shop, name: web }
spec: { host: web, trafficPolicy: { loadBalancer: { consistentHash: { useSourceIp: true } } } }
";
        shop.lab.apply_yaml("sticky", rule)?;
        shop.until("one to be asked, always the same", |_| {
            (0..3).all(|_| asked().is_ok_and(|names| names.len() == 1))
        })
    });
}

/// An echo at port 7070 of all apps that greets first.
fn greet(shop: &Shop<'_>) -> Result<()> {
    for app in &shop.apps {
        let listener = app.listen(7070)?;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    let _ = stream.write_all(b"hello ");
                    let mut bytes = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut bytes) {
                        let _ = stream.write_all(&bytes[..n]);
                    }
                });
            }
        });
    }
    Ok(())
}

/// A connection on which `bytes` came back.
fn open(shop: &Shop<'_>, to: SocketAddr, bytes: &[u8]) -> Result<TcpStream> {
    open_from(&shop.client, to, bytes)
}

/// The same, of another client's.
fn open_from(client: &Pod, to: SocketAddr, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = client.connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(bytes)?;
    let mut back = vec![0; 6 + bytes.len()];
    stream.read_exact(&mut back)?;
    ensure!(&back[..6] == b"hello " && &back[6..] == bytes);
    Ok(stream)
}

/// What comes of a connection before it ends; it must end.
fn heard(shop: &Shop<'_>, to: SocketAddr, bytes: &[u8], ends: bool) -> Result<Vec<u8>> {
    let mut stream = shop.client.connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // Who is refused may hear of it before he has said it; what he hears tells.
    let _ = stream.write_all(bytes);
    if ends {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut back = Vec::new();
    match stream.read_to_end(&mut back) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(error.into()),
        _ => Ok(back),
    }
}

fn processor(on_failure: &str) -> String {
    format!(
        "
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: shop, name: watch }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: guess }}]
  backendRef: {{ name: web, port: 90 }}
  onFailure: {on_failure}
"
    )
}

#[test]
fn bytes_that_are_not_http_do_not_pass_by_who_must_see_requests() {
    in_shop(|shop| {
        greet(shop)?;
        let ports = [
            ("raw", 1, 7070),
            ("tcp", 2, 7070),
            ("http", 3, 7070),
            ("tls", 4, 7070),
        ];
        let guess = shop.lab.service_for("shop/guess", ("app", "web"), &ports)?;
        // Nothing that looks like the beginning of a request, so that nobody waits for more.
        let word = b"\0bytes";
        shop.until("bytes to pass", |shop| {
            open(shop, guess.at(1), word).is_ok()
        })?;
        let mut early = open(shop, guess.at(1), word)?;
        let mut declared = open(shop, guess.at(2), word)?;

        let log = shop.waypoint.pod().access_log().from_now();
        shop.lab.apply_yaml("watch", &processor("Deny"))?;
        shop.until("bytes to be refused", |shop| {
            heard(shop, guess.at(1), word, true).is_ok_and(|back| back.is_empty())
        })?;
        let back = heard(shop, guess.at(1), word, false)?;
        ensure!(back.is_empty(), "{back:?}");
        // What apps forgive makes no bytes of a request: it is shown to him, who does not answer.
        for bytes in [
            &b"\r\nGET / HTTP/1.1\r\nhost: guess.shop\r\nconnection: close\r\n\r\n"[..],
            b"get / HTTP/1.1\r\nhost: guess.shop\r\nconnection: close\r\n\r\n",
        ] {
            let last = RefCell::new(Vec::new());
            // One that comes so late that nobody listens any more has no answer, and another one has.
            let answered = shop.until("an answer of ours", |shop| {
                let back = heard(shop, guess.at(1), bytes, false).unwrap_or_default();
                let fits = back.starts_with(b"HTTP/1.1 50");
                *last.borrow_mut() = back;
                fits
            });
            answered.with_context(|| format!("{bytes:?}: {last:?}"))?;
        }
        let name = "ExternalProcessor/shop/watch";
        let line = log.find("a refusal", |line| line.field("policy") == name)?;
        ensure!(
            line.field("flags") == "DPE" && line.field("protocol") == "TCP",
            "{line:?}"
        );
        ensure!(
            line.field("detail").contains("appProtocol: tcp"),
            "{line:?}"
        );
        let refused = [
            ("response_flags", "DPE"),
            ("destination_service_name", "guess"),
        ];
        shop.until("refusals to count", |shop| {
            let metrics = shop.waypoint.pod().metrics();
            metrics.is_ok_and(|it| it.sum("istio_tcp_connections_failed_total", &refused) >= 2.0)
        })?;
        // What was open before is ended, and what is declared is nobody's to see.
        early.set_read_timeout(Some(Duration::from_secs(60)))?;
        let ended = early.read(&mut [0; 1]);
        ensure!(!matches!(&ended, Ok(1)), "{ended:?}");
        declared.write_all(b"on")?;
        declared.read_exact(&mut [0; 2])?;
        for port in [2, 4] {
            open(shop, guess.at(port), word)?;
        }

        shop.lab.apply_yaml("watch", &processor("Allow"))?;
        shop.until("bytes to pass again", |shop| {
            open(shop, guess.at(1), word).is_ok()
        })?;
        Ok(())
    });
}

#[test]
fn half_a_preface_is_carried_nowhere_where_http_is_declared() {
    in_shop(|shop| {
        greet(shop)?;
        let ports = [("raw", 1, 7070), ("http", 3, 7070), ("grpc", 5, 7070)];
        let guess = shop.lab.service_for("shop/half", ("app", "web"), &ports)?;
        let half = b"PRI * HT";
        shop.until("half a preface to pass where nothing is declared", |shop| {
            heard(shop, guess.at(1), half, true).is_ok_and(|back| back == b"hello PRI * HT")
        })?;
        let log = shop.waypoint.pod().access_log().from_now();
        for port in [3, 5] {
            let heard = heard(shop, guess.at(port), half, true)?;
            ensure!(heard.is_empty(), "port {port}: {heard:?}");
        }
        let line = log.find("the refusal", |line| line.field("dst.port") == "5")?;
        ensure!(line.field("flags") == "DPE", "{line:?}");
        ensure!(line.field("detail").contains("preface"), "{line:?}");
        Ok(())
    });
}
