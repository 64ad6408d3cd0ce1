//! What is shown, chapter by chapter. Each chapter proves its claim or ends the demo.
//!
//! 2. traffic: who talks to whom, as whom, how       3. the wire: what a listener reads
//! 4. an AuthorizationPolicy                          5. STRICT
//! 6. egress                                          7. a machine that is no pod
//! 8. the counters                                    9. to 17. layer 7 ([`super::layer7`])
//! 18. the summary

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{AccessLog, AccessRecord, Lab, Pod};

use super::{
    cast::{Cast, MARKER},
    flow::{Flow, Way},
    layer7,
    screen::{Screen, Tone, bytes},
};

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: kiosk-keep-out
  namespace: shop
spec:
  selector:
    matchLabels:
      app: cache
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/kiosk]
";

const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: shop
spec:
  mtls:
    mode: STRICT
";

const CLOSED: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels:
    ambit.io/egress: refuse
";

const TILLS: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata:
  name: till
  namespace: shop
spec:
  metadata:
    labels: {app: till}
  template:
    serviceAccount: till
";

/// The demo in its order.
pub(super) struct Tour<'a> {
    lab: &'a Lab,
    cast: &'a Cast,
    screen: &'a Screen,
    logs: Vec<AccessLog>,
    /// (claim, how it was seen)
    proven: Vec<(&'static str, String)>,
}

impl<'a> Tour<'a> {
    pub(super) fn new(lab: &'a Lab, cast: &'a Cast, screen: &'a Screen) -> Result<Self> {
        let logs = lab
            .nodes()
            .iter()
            .map(|node| Ok(node.access_log()?.from_now()))
            .collect::<Result<_>>()?;
        Ok(Self {
            lab,
            cast,
            screen,
            logs,
            proven: Vec::new(),
        })
    }

    pub(super) fn run(mut self) -> Result<()> {
        self.traffic().context("traffic")?;
        self.wire().context("the capture")?;
        self.policy().context("the AuthorizationPolicy")?;
        self.strict().context("STRICT")?;
        self.egress().context("egress")?;
        self.machine().context("the machine")?;
        self.counters().context("the counters")?;
        let seen = layer7::show(self.lab, self.cast, *self.screen);
        self.proven.extend(seen.context("layer 7")?);
        self.summary();
        Ok(())
    }

    fn traffic(&mut self) -> Result<()> {
        self.screen.chapter(
            2,
            "They talk; nobody changed a program, a port or an address",
        );
        Flow::header(*self.screen);
        let cast = self.cast;
        type Act<'a> = (&'a str, Box<dyn Fn() -> Result<()> + 'a>, Option<Way>);
        let acts: [Act<'_>; 7] = [
            (
                "mobile fetches a page from web, node to node",
                Box::new(|| cast.page(&cast.mobile, "web.shop")),
                Some(Way::Tunnelled),
            ),
            (
                "kiosk fetches it too, from the same node",
                Box::new(|| cast.page(&cast.kiosk, "web.shop")),
                Some(Way::Joined),
            ),
            (
                "checkout counts in redis, node to node",
                Box::new(|| cast.count(&cast.checkout).map(drop)),
                Some(Way::Tunnelled),
            ),
            (
                "kiosk counts too, same node",
                Box::new(|| cast.count(&cast.kiosk).map(drop)),
                Some(Way::Joined),
            ),
            (
                "checkout orders in postgres, same node",
                Box::new(|| cast.order(&cast.checkout)),
                Some(Way::Joined),
            ),
            (
                "batch, outside of the mesh, fetches a page",
                Box::new(|| cast.page(&cast.legacy, &cast.web.at(8080).to_string())),
                Some(Way::Plain),
            ),
            (
                "checkout calls a host outside of the mesh",
                Box::new(|| cast.call_out(&cast.checkout)),
                Some(Way::Plain),
            ),
        ];
        let mut ways: Vec<Way> = Vec::new();
        for (what, act, way) in acts {
            self.seen_by(what, act.as_ref(), way)?;
            ways.extend(way);
        }
        let count = |way| ways.iter().filter(|w| **w == way).count();
        self.proven.push((
            "pods on two nodes talk through mutual TLS",
            format!("{} kinds of connection tunnelled", count(Way::Tunnelled)),
        ));
        self.proven.push((
            "pods on one node are joined in process",
            format!(
                "{} kinds of connection, same identities",
                count(Way::Joined)
            ),
        ));
        self.proven.push((
            "what is not in the mesh goes on as before",
            format!("{} kinds of connection left plain", count(Way::Plain)),
        ));
        Ok(())
    }

    /// Acts, then waits for the access log to tell of it.
    fn seen(&mut self, what: &str, act: &dyn Fn() -> Result<()>) -> Result<()> {
        self.seen_by(what, act, None)
    }

    /// [`Tour::seen`], on that way if one is said: what was there before may be told of late.
    fn seen_by(
        &mut self,
        what: &str,
        act: &dyn Fn() -> Result<()>,
        way: Option<Way>,
    ) -> Result<()> {
        self.fresh();
        act().with_context(|| what.to_owned())?;
        let mut flows: Vec<Flow> = Vec::new();
        let by = way.map_or_else(String::new, |way| format!(", {}", way.text()));
        lab::wait::until(
            &format!("the access log to tell: {what}{by}"),
            Duration::from_secs(60),
            || {
                flows.extend(self.fresh().iter().filter_map(Flow::of));
                let told = flows
                    .iter()
                    .any(|flow| way.is_none_or(|way| flow.way == way));
                Ok(if told {
                    lab::wait::Probe::Ready(())
                } else {
                    lab::wait::Probe::NotYet(format!("it tells {flows:#?}"))
                })
            },
        )?;
        flows.iter().for_each(|flow| flow.print(*self.screen));
        Ok(())
    }

    fn fresh(&mut self) -> Vec<AccessRecord> {
        self.logs.iter_mut().flat_map(AccessLog::fresh).collect()
    }

    fn wire(&mut self) -> Result<()> {
        self.screen
            .chapter(3, "What a listener on node-0's link can read");
        self.screen.step(&format!(
            "the page holds the words {MARKER:?}; tcpdump records the link while it is fetched"
        ));
        let (cast, lab, screen) = (self.cast, self.lab, self.screen);
        let plain = {
            let capture = lab.capture(0)?;
            cast.page(&cast.legacy, &cast.web.at(8080).to_string())?;
            capture.stop()?
        };
        let meshed = {
            let capture = lab.capture(0)?;
            cast.page(&cast.mobile, "web.shop")?;
            capture.stop()?
        };
        let answer = |found: bool| {
            if found {
                (Tone::Bad, "readable")
            } else {
                (Tone::Good, "not readable")
            }
        };
        for (who, seen) in [
            ("batch (not in the mesh)", &plain),
            ("mobile (in the mesh)", &meshed),
        ] {
            let (tone, text) = answer(seen.shows(MARKER));
            screen.row(&[
                (26, Tone::Plain, who),
                (12, Tone::Plain, &bytes(seen.size() as u64)),
                (14, tone, text),
                (0, Tone::Faint, &seen.file.display().to_string()),
            ]);
        }
        ensure!(
            plain.shows(MARKER),
            "the capture misses even what was sent in the clear, so it proves nothing"
        );
        ensure!(
            !meshed.shows(MARKER) && !meshed.shows("GET /"),
            "payload of a meshed connection is readable in {}",
            meshed.file.display()
        );
        let tunnelled = meshed.count("tcp port 15008")?;
        ensure!(
            tunnelled > 0,
            "no packet on port 15008: the page did not pass this link"
        );
        self.proven.push((
            "no payload byte can be read on the wire",
            format!("{tunnelled} tunnel packets searched; the same page without the mesh is found"),
        ));
        Ok(())
    }

    fn policy(&mut self) -> Result<()> {
        self.screen
            .chapter(4, "A policy: kiosk may no longer use the cache");
        self.screen.quote(DENY);
        let cast = self.cast;
        let applied = Instant::now();
        self.lab.apply_yaml("kiosk-keep-out", DENY)?;
        self.lab.until_policy("shop/kiosk-keep-out", true)?;
        self.screen.step(&format!(
            "in force on both nodes after {} ms",
            applied.elapsed().as_millis()
        ));
        let refusal = self.refusal("the cache's refusal of kiosk", INBOUND, &|| {
            cast.count(&cast.kiosk).map(drop)
        })?;
        ensure!(
            refusal.error().contains("shop/kiosk-keep-out"),
            "the refusal does not name the policy: {refusal:?}"
        );
        cast.count(&cast.checkout)
            .context("checkout must still be allowed")?;
        self.screen
            .done("kiosk is refused by name, checkout goes on counting");
        self.proven.push((
            "a denial names its policy",
            "kiosk → cache: shop/kiosk-keep-out".into(),
        ));
        self.lab.delete_yaml("kiosk-keep-out")?;
        self.lab.until_policy("shop/kiosk-keep-out", false)?;
        cast.count(&cast.kiosk)
            .context("kiosk must be allowed again")?;
        self.screen.done("policy removed, kiosk counts again");
        Ok(())
    }

    /// Acts, which must fail, and shows how one side reported it.
    fn refusal(
        &mut self,
        what: &str,
        side: &str,
        act: &dyn Fn() -> Result<()>,
    ) -> Result<AccessRecord> {
        self.fresh();
        ensure!(act().is_err(), "{what}: it was not refused");
        let mut refused = None;
        lab::wait::until_true(what, Duration::from_secs(60), || {
            refused = self
                .fresh()
                .into_iter()
                .find(|record| record.field("direction") == side && !record.error().is_empty());
            refused.is_some()
        })?;
        let refused = refused.context("just found")?;
        let who = match refused.field("src.identity") {
            "" => format!("{} (no identity)", refused.field("src.addr")),
            identity => identity.to_owned(),
        };
        self.screen.row(&[
            (0, Tone::Bad, "✗"),
            (0, Tone::Plain, &who),
            (0, Tone::Bad, refused.error()),
        ]);
        Ok(refused)
    }

    fn strict(&mut self) -> Result<()> {
        self.screen
            .chapter(5, "STRICT: who cannot prove an identity stays outside");
        self.screen.quote(STRICT);
        let cast = self.cast;
        let at = cast.web.at(8080).to_string();
        cast.page(&cast.legacy, &at)
            .context("before, batch must get its page")?;
        self.lab.apply_yaml("strict", STRICT)?;
        self.lab.until_all_dumps("that web demands mTLS", |dump| {
            names_a_policy(dump, &cast.web)
        })?;
        self.refusal("web's refusal of batch", INBOUND, &|| {
            cast.page(&cast.legacy, &at)
        })?;
        self.seen("mobile, in the mesh", &|| {
            cast.page(&cast.mobile, "web.shop")
        })?;
        self.screen.done("batch is refused, mobile gets its page");
        self.proven.push((
            "under STRICT plain text is refused",
            "old/batch → shop/web".into(),
        ));
        self.lab.delete_yaml("strict")?;
        self.lab
            .until_all_dumps("that web no longer demands mTLS", |dump| {
                !names_a_policy(dump, &cast.web)
            })?;
        Ok(())
    }

    fn egress(&mut self) -> Result<()> {
        self.screen.chapter(
            6,
            "Egress: nobody of shop may call whom the mesh does not know",
        );
        self.screen.quote(CLOSED);
        let (cast, lab) = (self.cast, self.lab);
        lab.namespace("shop")
            .labelled(&[("ambit.io/egress", "refuse")])?;
        lab.until_all_dumps("that checkout may not call out", |dump| {
            may_not_call_out(dump, &cast.checkout)
        })?;
        let refusal = self.refusal("the refusal of checkout", "outbound", &|| {
            cast.call_out(&cast.checkout)
        })?;
        let why = "egress refused by label ambit.io/egress of namespace shop";
        ensure!(
            refusal.error().contains(why),
            "the refusal does not name the setting: {refusal:?}"
        );
        self.seen("checkout counts in redis as before", &|| {
            cast.count(&cast.checkout).map(drop)
        })?;
        let addresses = lab.outside_addresses();
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let known = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: far-away\n  namespace: shop\n\
             spec:\n  hosts: [{}]\n  addresses: {addresses:?}\n  ports:\n  - {{number: 80, name: http}}\n  resolution: NONE\n",
            lab::OUTSIDE_NAMES[0]
        );
        self.screen.quote(&known);
        lab.apply_yaml("far-away", &known)?;
        lab.until_all_dumps("the ServiceEntry", |dump| {
            let services = dump["services"].as_array().into_iter().flatten();
            let mut hosts = services.map(|service| &service["hostname"]);
            hosts.any(|host| *host == lab::OUTSIDE_NAMES[0])
        })?;
        self.seen("checkout calls the host that is on the list", &|| {
            cast.call_out(&cast.checkout)
        })?;
        self.screen
            .done("who is on the list is reached, everybody else refused before a byte leaves");
        self.proven.push((
            "egress is refused with its reason",
            "checkout → outside: label ambit.io/egress of namespace shop".into(),
        ));
        lab.delete_yaml("far-away")?;
        lab.namespace("shop").ambient()?;
        lab.until_all_dumps("that checkout may call out", |dump| {
            !may_not_call_out(dump, &cast.checkout)
        })
    }

    fn machine(&mut self) -> Result<()> {
        self.screen.chapter(
            7,
            "A machine that is no pod joins by a token that is good once",
        );
        self.screen.quote(TILLS);
        let lab = self.lab;
        lab.apply_yaml("tills", TILLS)?;
        let machine = lab.machine("shop/till-1", "till")?;
        let addresses = machine.addresses();
        let words = ["token", "--namespace", "shop", "--service-account", "till"];
        let rest = [
            "--group",
            "till",
            "--name",
            "till-1",
            "--address",
            &addresses,
        ];
        let token = lab.vm(&[words.as_slice(), &rest].concat())?;
        let begun = Instant::now();
        machine.give_token(&token)?;
        machine.proxy().start()?;
        lab.until_all_dumps("the machine", |dump| {
            let workloads = dump["workloads"].as_array().into_iter().flatten();
            workloads.into_iter().any(|it| it["name"] == "till-1")
        })?;
        self.screen.step(&format!(
            "till-1 at {} has joined as {} after {} ms",
            machine.ip(),
            machine.identity(),
            begun.elapsed().as_millis()
        ));
        self.logs.push(machine.access_log());
        self.seen("till-1 fetches the page from web", &|| {
            let page = machine.exec(["curl", "-sS", "--max-time", "50", "http://web.shop/"])?;
            ensure!(page.success()?.contains(MARKER), "another page came");
            Ok(())
        })?;
        let thief = lab.machine("shop/till-1", "till")?;
        thief.give_token(&token)?;
        thief.proxy().launch()?;
        let log = lab.control_plane()?.log_path().to_owned();
        let mut refusal = None;
        lab::wait::until_true("the refusal of a thief", Duration::from_secs(60), || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let found = said
                .lines()
                .find(|line| line.contains("a machine is refused"));
            refusal = found.map(str::to_owned);
            refusal.is_some()
        })?;
        thief.proxy().kill()?;
        let refusal = refusal.context("just found")?;
        let why = refusal.split("error=").nth(1).unwrap_or(&refusal);
        self.screen.row(&[
            (0, Tone::Bad, "✗"),
            (
                0,
                Tone::Plain,
                &format!("the same token, from {}", thief.ip()),
            ),
            (0, Tone::Bad, why),
        ]);
        self.screen
            .done("the machine is a member of the mesh, whoever found its token is not");
        self.proven.push((
            "a machine joins, and its token is good once",
            format!("till-1 → web as {}", machine.identity()),
        ));
        machine.proxy().terminate(Duration::from_secs(30))?;
        self.logs.pop();
        lab.delete_yaml("tills")
    }

    fn counters(&mut self) -> Result<()> {
        self.screen.chapter(
            8,
            "Counted, with Istio's metric names (port 15020 of each ztunnel)",
        );
        let widths = [8, 26, 12, 12, 12, 10];
        let row = |tone, cells: [&str; 6]| {
            let cells: Vec<_> = widths
                .into_iter()
                .zip(cells)
                .map(|(width, text)| (width, tone, text))
                .collect();
            self.screen.row(&cells);
        };
        row(
            Tone::Faint,
            [
                "NODE",
                "CONNECTIONS OPENED",
                "mutual_tls",
                "plain",
                "sent",
                "received",
            ],
        );
        let mut counted = 0.0;
        for node in self.lab.nodes() {
            let metrics = node.metrics()?;
            let opened = |policy| {
                metrics.sum(
                    "istio_tcp_connections_opened_total",
                    &[("connection_security_policy", policy)],
                )
            };
            let (secured, all) = (
                opened("mutual_tls"),
                metrics.sum("istio_tcp_connections_opened_total", &[]),
            );
            let moved = |name| bytes(metrics.sum(name, &[]) as u64);
            let [all_text, secured_text, plain] =
                [all, secured, all - secured].map(|n| format!("{n:.0}"));
            row(
                Tone::Plain,
                [
                    node.name(),
                    &all_text,
                    &secured_text,
                    &plain,
                    &moved("istio_tcp_sent_bytes_total"),
                    &moved("istio_tcp_received_bytes_total"),
                ],
            );
            ensure!(
                secured > 0.0,
                "{} counted no secured connection",
                node.name()
            );
            counted += all;
        }
        self.proven.push((
            "every connection is counted at both ends",
            format!("{counted:.0} reports in istio_tcp_connections_opened_total"),
        ));
        Ok(())
    }

    fn summary(&self) {
        self.screen.chapter(18, "Seen");
        for (claim, how) in &self.proven {
            self.screen.row(&[
                (0, Tone::Good, "✓"),
                (46, Tone::Plain, claim),
                (0, Tone::Faint, how),
            ]);
        }
        let versions = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        self.screen.step(&format!("on Linux {}", versions.trim()));
    }
}

/// The side that a connection comes to, as its line calls it.
const INBOUND: &str = "inbound";

/// Whether any policy is attached to the pod in a ztunnel's view of it.
fn names_a_policy(dump: &serde_json::Value, pod: &Pod) -> bool {
    let policies = seen_as(dump, pod).and_then(|it| it["authorizationPolicies"].as_array());
    policies.is_some_and(|all| !all.is_empty())
}

/// Whether a ztunnel refuses the pod whom nobody knows.
fn may_not_call_out(dump: &serde_json::Value, pod: &Pod) -> bool {
    seen_as(dump, pod).is_some_and(|it| it["egress"]["mode"] == "Refuse")
}

/// The pod in a ztunnel's view.
fn seen_as<'a>(dump: &'a serde_json::Value, pod: &Pod) -> Option<&'a serde_json::Value> {
    let mut workloads = dump["workloads"].as_array()?.iter();
    workloads.find(|workload| workload["name"] == pod.name())
}
