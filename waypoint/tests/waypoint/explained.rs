//! `ambit explain`, `connections` and `top`, asked of real proxies at both ends: what is said must be what a connection
//! then meets.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Netns, Pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::app::{App, One};
use super::shop::{Shop, in_shop};

#[test]
fn what_is_explained_is_what_a_connection_then_meets() {
    in_shop(|shop| {
        let asking = Asking::of(shop)?;
        let world = World::of(shop)?;
        for case in world.cases() {
            if let Some(yaml) = &case.yaml {
                shop.lab.apply_yaml("case", yaml)?;
            }
            case.hold(shop, &asking)
                .with_context(|| case.name.to_owned())?;
            if case.yaml.is_some() {
                shop.lab.delete_yaml("case")?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_not_known_is_said_and_what_is_open_is_listed_at_both_ends() {
    in_shop(|shop| {
        let asking = Asking::of(shop)?;
        an_end_is_missing(shop, &asking).context("an end that does not answer")?;
        listed(shop, &asking).context("connections")?;
        summed(shop, &asking).context("top")?;
        for (line, words) in [
            (
                &["explain", "shop/nobody", "web.shop"][..],
                "no workload shop/nobody",
            ),
            (
                &["explain", "shop/client", "nowhere.shop:1"],
                "nowhere.shop",
            ),
            (&["explain", "shop/client", "shop/client"], "say the port"),
        ] {
            let ran = asking.run(line)?;
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            ensure!(
                ran.status.code() == Some(2) && said.contains(words),
                "{line:?}: {said}"
            );
        }
        Ok(())
    });
}

/// Who else there is in the shop.
struct World<'a> {
    shop: &'a Shop<'a>,
    outsider: Pod,
    shut: Pod,
    outside: SocketAddr,
    store: SocketAddr,
    sick: SocketAddr,
    _served: Vec<App>,
}

/// A question, and what is to come of it.
struct Case<'a> {
    name: &'a str,
    yaml: Option<String>,
    source: &'a Pod,
    asked: String,
    at: SocketAddr,
    verdict: &'a str,
    decided_at: &'a str,
    flag: Option<&'a str>,
    because: &'a str,
    /// In what would have to change.
    change: &'a str,
}

impl<'a> World<'a> {
    fn of(shop: &'a Shop<'a>) -> Result<Self> {
        let lab = shop.lab;
        lab.namespace("old").plain()?;
        let outsider = lab.pod("old/outsider").node(1).start()?;
        lab.namespace("depot").ambient()?;
        let shut = lab
            .pod("depot/shut")
            .node(1)
            .label("ambit.io/egress", "refuse")
            .start()?;
        let mut served = Vec::new();
        for (name, ready) in [("store", true), ("sick", false)] {
            let pod = lab.pod(&format!("depot/{name}")).node(0).label("app", name);
            let pod = if ready { pod } else { pod.unready() };
            served.push(App::start(&shop.runtime, &pod.start()?, 8080)?);
        }
        let store = lab.service("depot/store", &[(80, 8080)])?.at(80);
        let sick = lab.service("depot/sick", &[(80, 8080)])?.at(80);
        let outside = SocketAddr::new(lab.outside_addresses()[0], 9000);
        let listener = lab
            .outside()
            .within(move || TcpListener::bind(("0.0.0.0", 9000)))??;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        });
        Ok(Self {
            shop,
            outsider,
            shut,
            outside,
            store,
            sick,
            _served: served,
        })
    }

    fn cases(&self) -> Vec<Case<'_>> {
        let (client, app) = (&self.shop.client, &self.shop.apps[0]);
        let direct = Case {
            name: "a pod by its address",
            yaml: None,
            source: client,
            asked: format!("{}:8080", app.ip()),
            at: app.at(8080),
            verdict: "allowed",
            decided_at: "destination",
            flag: None,
            because: "no ALLOW policy applies",
            change: "DENY policy",
        };
        let of_pods = |action: &str, account: &str| {
            Some(format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ namespace: shop, name: guard }}\nspec:\n  \
                 selector: {{ matchLabels: {{ app: web }} }}\n  action: {action}\n  rules:\n  - from: [{{ source: {{ principals: ['cluster.local/ns/shop/sa/{account}'] }} }}]\n"
            ))
        };
        let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { namespace: shop, name: strict }\n\
                      spec: { mtls: { mode: STRICT } }\n";
        let at_waypoint = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { namespace: shop, name: closed }\nspec:\n  \
                           targetRefs: [{ group: '', kind: Service, name: web }]\n  action: DENY\n  rules: [{ to: [{ operation: { methods: [GET] } }] }]\n";
        vec![
            Case { ..direct.copy() },
            Case {
                name: "a pod by its name",
                asked: format!("shop/{}:8080", app.name()),
                ..direct.copy()
            },
            Case {
                name: "denied by a DENY policy",
                yaml: of_pods("DENY", "client"),
                verdict: "refused",
                flag: Some("DENY"),
                because: "explicitly denied by: shop/guard",
                change: "AuthorizationPolicy shop/guard must not match any more; it does by source.principals",
                ..direct.copy()
            },
            Case {
                name: "a DENY policy for somebody else",
                yaml: of_pods("DENY", "other"),
                ..direct.copy()
            },
            Case {
                name: "allowed by an ALLOW policy",
                yaml: of_pods("ALLOW", "client"),
                because: "allowed by shop/guard",
                change: "AuthorizationPolicy shop/guard must not match any more",
                ..direct.copy()
            },
            Case {
                name: "denied for want of an ALLOW policy",
                yaml: of_pods("ALLOW", "other"),
                verdict: "refused",
                flag: Some("DENY"),
                because: "allow policies exist, but none allowed",
                change: "the ALLOW policy must match, which lacks: AuthorizationPolicy shop/guard: source.principals",
                ..direct.copy()
            },
            Case {
                name: "plain text, where it is taken",
                source: &self.outsider,
                ..direct.copy()
            },
            Case {
                name: "plain text, where it is not",
                yaml: Some(strict.into()),
                source: &self.outsider,
                verdict: "refused",
                flag: Some("DENY"),
                because: "explicitly denied by",
                change: "the caller must come through the mesh",
                ..direct.copy()
            },
            Case {
                name: "STRICT, for who comes through the mesh",
                yaml: Some(strict.into()),
                ..direct.copy()
            },
            Case {
                name: "a service without a waypoint",
                asked: "store.depot".into(),
                at: self.store,
                ..direct.copy()
            },
            Case {
                name: "a service none of whose endpoints is ready",
                asked: "sick.depot:80".into(),
                at: self.sick,
                verdict: "refused",
                decided_at: "source",
                flag: Some("CONNECT"),
                because: "no healthy upstream",
                change: "readiness of the Service's pods",
                ..direct.copy()
            },
            Case {
                name: "a port that the service does not offer",
                asked: "store.depot:81".into(),
                at: SocketAddr::new(self.store.ip(), 81),
                verdict: "refused",
                decided_at: "source",
                flag: Some("CONNECT"),
                because: "the service has no port 81",
                change: "spec.ports of the Service",
                ..direct.copy()
            },
            Case {
                name: "who is unknown, where that passes",
                asked: self.outside.to_string(),
                at: self.outside,
                decided_at: "source",
                because: "the mesh knows nobody there, and lets it pass",
                change: "",
                ..direct.copy()
            },
            Case {
                name: "who is unknown, where that is refused",
                source: &self.shut,
                asked: self.outside.to_string(),
                at: self.outside,
                verdict: "refused",
                decided_at: "source",
                flag: Some("EGRESS"),
                because: "egress refused by the workload's own label ambit.io/egress",
                change: "a ServiceEntry",
                ..direct.copy()
            },
            Case {
                name: "through a waypoint",
                asked: "web:80".into(),
                at: self.shop.at(80),
                ..direct.copy()
            },
            Case {
                name: "STRICT, through a waypoint",
                yaml: Some(strict.into()),
                asked: "web.shop:80".into(),
                at: self.shop.at(80),
                ..direct.copy()
            },
            Case {
                name: "through a waypoint that the pods let in",
                yaml: of_pods("ALLOW", "way"),
                asked: "shop/web:80".into(),
                at: self.shop.at(80),
                because: "allowed by shop/guard",
                change: "AuthorizationPolicy shop/guard must not match any more",
                ..direct.copy()
            },
            Case {
                name: "refused by the waypoint",
                yaml: Some(at_waypoint.into()),
                asked: "web.shop:80".into(),
                at: self.shop.at(80),
                verdict: "refused",
                decided_at: "waypoint",
                because: "the waypoint answers 403",
                change: "the waypoint's AuthorizationPolicy",
                ..direct.copy()
            },
            Case {
                name: "through a waypoint that the pods do not let in",
                yaml: of_pods("ALLOW", "client"),
                asked: "web.shop:80".into(),
                at: self.shop.at(80),
                verdict: "refused",
                flag: Some("DENY"),
                because: "allow policies exist, but none allowed",
                change: "source.principals",
                ..direct.copy()
            },
        ]
    }
}

impl<'a> Case<'a> {
    fn copy(&self) -> Case<'a> {
        Case {
            yaml: self.yaml.clone(),
            asked: self.asked.clone(),
            ..*self
        }
    }

    /// Once its objects are known everywhere, what is said and what happens are both what is expected.
    fn hold(&self, shop: &Shop<'_>, asking: &Asking) -> Result<()> {
        let last = RefCell::new(String::new());
        let held = shop.until(
            "what is said and what happens to be what is expected",
            |shop| {
                let source = format!("{}/{}", self.source.namespace(), self.source.name());
                let said = asking.explain(&source, &self.asked);
                let met = self.met(shop);
                let fits = said.as_ref().is_ok_and(|said| self.is(said)) && met == self.verdict;
                *last.borrow_mut() = format!("met: {met}, said: {said:#?}");
                fits
            },
        );
        held.with_context(|| last.into_inner())
    }

    fn is(&self, said: &Value) -> bool {
        said["verdict"] == self.verdict
            && said["decidedAt"] == self.decided_at
            && said["flag"].as_str() == self.flag
            && said["hint"].is_null() == self.flag.is_none()
            && said["because"]
                .as_str()
                .unwrap_or_default()
                .contains(self.because)
            && said["toChange"].to_string().contains(self.change)
    }

    /// A real request.
    fn met(&self, shop: &Shop<'_>) -> &'static str {
        let answered = shop.runtime.block_on(async {
            let mut one = One::to(self.source, self.at).await?;
            anyhow::Ok(one.get("/").await?.status)
        });
        match answered {
            Ok(200) => "allowed",
            _ => "refused",
        }
    }
}

/// For the program, which gives up a proxy that is silent sooner.
const PATIENCE: Duration = Duration::from_secs(90);

/// The program, and ways to the admin ports of all proxies.
struct Asking {
    program: PathBuf,
    proxies: Vec<String>,
}

impl Asking {
    fn of(shop: &Shop<'_>) -> Result<Self> {
        let mut proxies = Vec::new();
        for node in shop.lab.nodes() {
            let way = way_to(node.ztunnel_pod()?.netns().clone())?;
            proxies.push(format!("--proxy={}={way}", node.name()));
        }
        let pod = shop.waypoint.pod().pod();
        let way = way_to(pod.netns().clone())?;
        proxies.push(format!("--proxy={}/{}={way}", pod.namespace(), pod.name()));
        let us = std::env::current_exe()?;
        let programs = us.ancestors().nth(2).context("beside the programs")?;
        let program = programs.join("ambit");
        ensure!(program.exists(), "{} is not built", program.display());
        Ok(Self { program, proxies })
    }

    fn run(&self, line: &[&str]) -> Result<Output> {
        let child = Command::new(&self.program)
            .args(line)
            .args(&self.proxies)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pid = i32::try_from(child.id())?;
        let (give, take) = mpsc::sync_channel(1);
        std::thread::spawn(move || give.send(child.wait_with_output()));
        match take.recv_timeout(PATIENCE) {
            Ok(ran) => Ok(ran?),
            Err(_) => {
                // Not waited for by anybody who would know, it is still there.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                bail!("{line:?} has not ended after {PATIENCE:?}")
            }
        }
    }

    fn json(&self, line: &[&str]) -> Result<Value> {
        let ran = self.run(&[line, &["-o", "json"]].concat())?;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        serde_json::from_slice(&ran.stdout).with_context(|| format!("{line:?}: {said}"))
    }

    /// With the exit status that goes with it.
    fn explain(&self, source: &str, destination: &str) -> Result<Value> {
        let ran = self.run(&["explain", source, destination, "-o", "json"])?;
        let said: Value = serde_json::from_slice(&ran.stdout)
            .with_context(|| String::from_utf8_lossy(&ran.stderr).into_owned())?;
        let expected = i32::from(said["verdict"] != "allowed");
        ensure!(
            ran.status.code() == Some(expected),
            "{:?}: {said}",
            ran.status
        );
        Ok(said)
    }
}

/// What `kubectl port-forward` is on a cluster: a port of this machine that leads to the admin port on a pod's loopback.
fn way_to(inside: Netns) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at = listener.local_addr()?;
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let admin = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
            let far = inside.within(|| TcpStream::connect(admin));
            let (Ok(near), Ok(Ok(far))) = (near, far) else {
                continue;
            };
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
                continue;
            };
            std::thread::spawn(move || passed_on(near, far));
            std::thread::spawn(move || passed_on(far_too, near_too));
        }
    });
    Ok(at)
}

fn passed_on(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn an_end_is_missing(shop: &Shop<'_>, asking: &Asking) -> Result<()> {
    let [near, far, way] = &asking.proxies[..] else {
        bail!("two nodes and a waypoint: {:?}", asking.proxies)
    };
    // The client is on the second node, its server on the first.
    let dead = format!("--proxy={}=127.0.0.1:1", shop.lab.node(0).name());
    let asking = |proxies: &[&String]| Asking {
        program: asking.program.clone(),
        proxies: proxies.iter().map(|it| (*it).clone()).collect(),
    };
    let pod = format!("{}:8080", shop.apps[0].ip());
    let unknown = |said: &Value, words: &str| -> Result<()> {
        ensure!(said["verdict"] == "allowed", "{said:#}");
        ensure!(
            said["notKnown"].to_string().contains(words),
            "{words}: {said:#}"
        );
        Ok(())
    };
    let said = asking(&[&dead, far]).explain("shop/client", &pod)?;
    unknown(&said, "Connection refused")?;
    unknown(&said, "was not heard")?;
    let said = asking(&[near]).explain("shop/client", &pod)?;
    unknown(&said, "does not serve the caller's pod")?;
    let said = asking(&[near, far, way]).explain("client", &pod);
    ensure!(
        said.is_err(),
        "namespace default has no such pod: {said:#?}"
    );
    // Without the waypoint nobody can say what it does.
    let ran = asking(&[near, far]).run(&["explain", "shop/client", "web.shop:80"])?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(text.contains("shop/client -> web.shop:80"), "{text}");
    ensure!(
        text.contains("its policies and routes are not known"),
        "{text}"
    );
    // A person is told the same.
    let ran = asking(&[near, far, way]).run(&[
        "explain",
        "shop/client",
        "web.shop:80",
        "--path",
        "/x",
    ])?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    for words in [
        "ALLOWED (decided at the destination)",
        "PATH",
        "its traffic passes waypoint shop/way.shop",
        "IDENTITIES",
        "TO BE REFUSED",
    ] {
        ensure!(text.contains(words), "{words}: {text}");
    }
    Ok(())
}

fn listed(shop: &Shop<'_>, asking: &Asking) -> Result<()> {
    let app = &shop.apps[0];
    let kept = shop.client.connect(app.at(8080))?;
    let through = shop.client.connect(shop.at(80))?;
    let all = |line: &[&str]| -> Result<Vec<Value>> {
        let found = asking.json(&[&["connections"][..], line].concat())?;
        ensure!(found["unreached"] == Value::Array(vec![]), "{found:#}");
        Ok(found["connections"].as_array().cloned().unwrap_or_default())
    };
    let client = format!("spiffe://cluster.local/ns/shop/sa/{}", "client");
    shop.until("both ends of a connection to be listed", |shop| {
        let out = all(&["-n", "shop", "--workload", "client", "--peer", app.name()]);
        let inn = all(&[
            "--workload",
            app.name(),
            "--direction",
            "inbound",
            "--peer",
            "client",
        ]);
        let is = |found: Result<Vec<Value>>, direction: &str| {
            found.is_ok_and(|found| {
                found.iter().any(|it| {
                    it["direction"] == direction
                        && it["source"]["identity"] == client.as_str()
                        && it["source"]["pod"] == shop.client.name()
                        && it["destination"]["pod"] == app.name()
                        && it["carried"] == "tunnel"
                        && it["waypoint"].is_null()
                        && it["ageMs"].is_u64()
                })
            })
        };
        is(out, "outbound") && is(inn, "inbound")
    })?;
    shop.until("the waypoint to be named", |_| {
        let found = all(&["-n", "shop", "--workload", "client", "--service", "web"]);
        found.is_ok_and(|found| {
            found
                .iter()
                .any(|it| it["waypoint"] == "shop/way.shop.svc.cluster.local")
        })
    })?;
    let text = asking.run(&["connections", "--workload", "client", "--limit", "1"])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(
        text.lines().count() == 2 && text.starts_with("DIRECTION"),
        "{text}"
    );
    shop.until("nobody's connections", |_| {
        all(&["--workload", "nobody"]).is_ok_and(|found| found.is_empty())
    })?;
    drop((kept, through));
    // In the log, when it has ended; at the app's end the waypoint keeps what it has opened.
    let way = "shop/way.shop.svc.cluster.local";
    let of_client = shop.lab.access_log(1)?;
    of_client.find("the connection to the waypoint", |line| {
        line.outbound()
            && line.field("waypoint") == way
            && line.field("dst.service") == shop.web.host
    })?;
    let peer = shop.waypoint.pod().pod().name();
    shop.until("the waypoint to be named where it calls", |shop| {
        let answered = shop.runtime.block_on(shop.get("/"));
        let found = all(&["--direction", "inbound", "--peer", peer]);
        answered.is_ok() && found.is_ok_and(|found| found.iter().any(|it| it["waypoint"] == way))
    })?;
    shop.until("what has ended to be listed no more", |_| {
        all(&["--workload", "client"]).is_ok_and(|found| found.is_empty())
    })
}

fn summed(shop: &Shop<'_>, asking: &Asking) -> Result<()> {
    let mut kept = shop.client.connect(shop.apps[0].at(8080))?;
    kept.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    ensure!(kept.read(&mut [0; 4096])? > 0);
    let last = RefCell::new(Value::Null);
    let summed = shop.until("both ends to be counted", |_| {
        let Ok(found) = asking.json(&["top", "--once", "--every", "1", "-n", "shop"]) else {
            return false;
        };
        let rows = || found["workloads"].as_array().into_iter().flatten();
        let out = rows().any(|it| it["workload"] == "client" && it["outbound"].as_u64() >= Some(1));
        let inn = rows().any(|it| it["inbound"].as_u64() >= Some(1));
        *last.borrow_mut() = found;
        out && inn
    });
    summed.with_context(|| format!("{:#}", last.borrow()))?;
    // Not a terminal: once, and in the end.
    let ran = asking.run(&["top", "--every", "1"])?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(
        ran.status.success() && text.starts_with("NAMESPACE"),
        "{text}"
    );
    Ok(())
}
