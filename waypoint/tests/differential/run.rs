//! The same rules in a waypoint and in a stock Envoy, the same requests to both: what differs is explained, or a fault.
//!
//! 1. rules are generated, for many services, as HTTPRoutes and VirtualServices      (`rules`), AuthorizationPolicies
//!    (`policies`), weights and mirrors                                              (`splits`)
//! 2. written for the mesh (`ours`), and as Istio gives them to an Envoy             (`envoy`)
//! 3. requests are generated that are nearly right                                   (`asks`)
//! 4. each is asked of both, byte for byte or over HTTP/2 (`talk`), with the same apps behind (`echo`)
//! 5. status, headers, app, and what the app was sent must be equal                  (`compare`); where chance decides,
//!    what many requests come to
//!
//! `PEER_ENVOY=path cargo test --workspace --test waypoint differential -- --ignored`; `DIFFERENTIAL_SEED`, `DIFFERENTIAL_REQUESTS`
//! (of each service) ask for others.

mod asks;
mod compare;
mod draw;
mod echo;
mod envoy;
mod ours;
mod policies;
mod rules;
mod splits;
mod talk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{Pod, Service};

use self::asks::Ask;
use self::compare::{ALIKE, Seen, Told, is_unclear};
use self::draw::Draw;
use self::echo::Kept;
use self::envoy::Front;
use self::policies::Guarded;
use self::rules::{APPS, Kind, Ruled};
use self::splits::{Came, Split};
use self::talk::Talk;
use crate::shop::{Shop, in_shop};

const SERVICES: [(Kind, usize); 2] = [(Kind::HttpRoute, 36), (Kind::VirtualService, 24)];
/// Services with policies.
const GUARDED: usize = 40;
/// Services with weights and mirrors.
const SPLIT: usize = 12;
/// So often is a request asked again that time has decided.
const TIMES: usize = 3;

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn differential_a_waypoint_answers_as_an_envoy_does() {
    in_shop(|shop| {
        let mut draw = Draw::new(number("DIFFERENTIAL_SEED", 1)?);
        let requests = number("DIFFERENTIAL_REQUESTS", 100)?;
        let kinds = SERVICES
            .iter()
            .flat_map(|&(kind, count)| std::iter::repeat_n(kind, count));
        let services: Vec<Ruled> = kinds
            .enumerate()
            .map(|(number, kind)| rules::service(number, kind, &mut draw))
            .collect();
        let fronts: Vec<Front> = services.iter().map(Front::of_rules).collect();
        let pair = Pair::open(shop, &fronts)?;
        let mut found = Found::default();
        for (number, ruled) in services.iter().enumerate() {
            let mut both = pair.talks(number, compare::plainly);
            for request in 0..requests {
                let mut ask = Ask::generate(ruled, &mut draw);
                // Every third over HTTP/2.
                ask.http2 = request % 3 == 2 && talk::can_be_framed(&ask);
                let key = format!("{number}-{request}");
                both.ask(&ask, &key, &mut found)
                    .with_context(|| format!("{}: {ask:?}", ruled.name))?;
            }
        }
        found.judge(&fronts)
    });
}

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn differential_a_policy_allows_and_denies_as_rbac_does() {
    in_shop(|shop| {
        let mut draw = Draw::new(number("DIFFERENTIAL_SEED", 1)?);
        let requests = number("DIFFERENTIAL_REQUESTS", 100)?;
        let services: Vec<Guarded> = (0..GUARDED)
            .map(|number| policies::service(number, &mut draw))
            .collect();
        let fronts: Vec<Front> = services.iter().map(Guarded::front).collect();
        let pair = Pair::open(shop, &fronts)?;
        let mut found = Found::default();
        for (number, guarded) in services.iter().enumerate() {
            let mut both = pair.talks(number, compare::plainly_for_policies);
            for request in 0..requests {
                let mut ask = guarded.ask(&mut draw);
                ask.http2 = request % 3 == 2 && talk::can_be_framed(&ask);
                let key = format!("{number}-{request}");
                both.ask(&ask, &key, &mut found)
                    .with_context(|| format!("{}: {ask:?}", guarded.name))?;
            }
        }
        let denied = found.statuses.get(&403).copied().unwrap_or_default();
        ensure!(
            found.asked / 10 < denied && denied < found.asked / 10 * 9,
            "{denied} of {} were denied: that compares little",
            found.asked
        );
        found.judge(&fronts)
    });
}

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn differential_shares_and_copies_come_to_the_same() {
    in_shop(|shop| {
        let mut draw = Draw::new(number("DIFFERENTIAL_SEED", 1)?);
        let requests = number("DIFFERENTIAL_REQUESTS", 100)?;
        let services: Vec<Split> = (0..SPLIT)
            .map(|number| splits::service(number, &mut draw))
            .collect();
        let fronts: Vec<Front> = services.iter().map(Split::front).collect();
        let pair = Pair::open(shop, &fronts)?;
        let (mut asked, mut copies) = (0, 0);
        for (number, split) in services.iter().enumerate() {
            let mut both = pair.talks(number, compare::plainly);
            let (mut envoy, mut ours) = (Came::default(), Came::default());
            for request in 0..requests {
                let mut ask = Ask {
                    method: draw.one(&["POST", "PUT", "GET"]).into(),
                    target: format!("{}?q=1", rules::joined(&mut draw)),
                    host: format!("{}.shop", split.name),
                    headers: vec![
                        ("x-keep".into(), "1".into()),
                        ("x-b".into(), "two words".into()),
                    ],
                    body: String::new(),
                    http2: request % 3 == 2,
                };
                if ask.method != "GET" {
                    // More than one piece, and less than what a copy may be behind.
                    ask.body = "a body ".repeat(draw.one(&[0, 1, 30, 3000, 9000]));
                }
                let key = format!("{number}-{request}");
                let copied = pair.shared(split, &mut both, &ask, &key, [&mut envoy, &mut ours]);
                copied.with_context(|| format!("{split:?}: {} {}", ask.method, ask.target))?;
            }
            split.judge("Envoy", &envoy)?;
            split.judge("ours", &ours)?;
            asked += ours.asked;
            copies += ours.copies;
        }
        eprintln!("{asked} requests to {SPLIT} services; {copies} copies, each with its body");
        Ok(())
    });
}

fn number(name: &str, default: u64) -> Result<u64> {
    let said = std::env::var(name).ok();
    Ok(said.map_or(Ok(default), |said| said.parse())?)
}

/// Both, with the same behind them.
struct Pair<'a> {
    shop: &'a Shop<'a>,
    outside: Pod,
    fronts: Vec<Service>,
    kept: Vec<Kept>,
}

impl<'a> Pair<'a> {
    fn open(shop: &'a Shop<'_>, all: &[Front]) -> Result<Self> {
        let lab = shop.lab;
        let (mut apps, mut kept) = (Vec::new(), Vec::new());
        for number in 0..APPS {
            let name = ours::app(number);
            let pod = lab.pod(&format!("shop/{name}")).node(0).start()?;
            kept.push(echo::serve(&name, pod.listen(8080)?));
            lab.service_of(&format!("shop/{name}"), &[("http", 80, 8080)])?;
            apps.push(pod.at(8080));
        }
        let apps: [SocketAddr; APPS] = apps.try_into().ok().context("all apps")?;
        let mut fronts = Vec::new();
        for front in all {
            let name = format!("shop/{}", front.name);
            fronts.push(lab.service_for(&name, ("app", "b0"), &[("http", 80, 8080)])?);
        }
        lab.namespace("plain").plain()?;
        let outside = lab.pod("plain/envoy").node(1).without_waiting().start()?;
        let config = envoy::config(all, &apps);
        fs::write(outside.dir().join("envoy.json"), config.to_string())?;
        let program = std::env::var("PEER_ENVOY").context("PEER_ENVOY names Envoy's binary")?;
        let words = [
            &*program,
            "-c",
            "envoy.json",
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "warn",
        ];
        let running = outside.spawn("envoy", words)?;
        outside.until_listening(&running, envoy::FIRST_PORT)?;
        let yaml = all.iter().flat_map(|front| front.objects.iter().cloned());
        let yaml: Vec<String> = yaml.collect();
        lab.apply_yaml("rules", &yaml.join("\n---\n"))?;
        shop.until("all objects to be known", |shop| {
            let known = known(shop);
            eprintln!("{} of {} objects are known", known.len(), yaml.len());
            known.len() == yaml.len()
        })?;
        Ok(Self {
            shop,
            outside,
            fronts,
            kept,
        })
    }

    fn talks(&self, number: usize, plainly: Plainly) -> Both<'_> {
        let port = envoy::FIRST_PORT + number as u16;
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let runtime = &self.shop.runtime;
        Both {
            envoy: Talk::new(runtime, &self.outside, at),
            ours: Talk::new(runtime, &self.shop.client, self.fronts[number].at(80)),
            plainly,
        }
    }

    /// Asks both, and waits for the copies; what the apps were sent must be equal, and each copy what its original was.
    fn shared(
        &self,
        split: &Split,
        both: &mut Both<'_>,
        ask: &Ask,
        key: &str,
        came: [&mut Came; 2],
    ) -> Result<()> {
        let heard = [
            both.envoy.ask(ask, &format!("e-{key}")).context("Envoy")?,
            both.ours.ask(ask, &format!("o-{key}")).context("ours")?,
        ];
        let mut saw = Vec::new();
        for ((heard, came), who) in heard.iter().zip(came).zip(["e", "o"]) {
            ensure!(heard.status == 200, "{who}: {heard:?}");
            let said = |name: &str| heard.header(name).unwrap_or_default().to_owned();
            came.asked += 1;
            *came
                .answers
                .entry((said("x-app"), said("x-share")))
                .or_default() += 1;
            let original = Seen::of(&said("x-seen"));
            let copies = || self.kept[splits::MIRROR].of(&format!("{who}-{key}"));
            if split.mirrored == Some(100) {
                self.shop
                    .until("a copy to arrive", |_| !copies().is_empty())?;
            }
            let copies = copies();
            came.copies += copies.len();
            ensure!(copies.len() <= 1, "{who}: {} copies", copies.len());
            for copy in &copies {
                let copy = Seen::of(copy).without_marks_of_copies();
                let body = echo::shown(ask.body.clone().into_bytes());
                ensure!(copy.body.as_bytes() == body, "{who}: {copy:?}");
                ensure!(
                    copy == original.clone().without_marks_of_copies(),
                    "{who}: {copy:?}\n{original:?}"
                );
            }
            let mut told = Told::of(heard);
            told.headers.remove("x-share");
            told.app = None;
            saw.push(told);
        }
        let why = alike(ask, &saw[0], &saw[1]);
        ensure!(why.is_some(), "Envoy {:?}\nours {:?}", saw[0], saw[1]);
        Ok(())
    }
}

/// Objects that the waypoint has something of.
fn known(shop: &Shop<'_>) -> BTreeSet<String> {
    let dump = shop.waypoint.pod().config_dump().unwrap_or_default();
    let keys = dump["resources"].as_array().into_iter().flatten();
    let keys = keys.filter_map(|one| one["key"].as_str());
    let routes = keys.filter_map(|key| {
        if key.starts_with("authorizationpolicy/") {
            return Some(key.to_owned());
        }
        let (object, _) = key.rsplit_once('/')?;
        let kinds = ["httproute/", "virtualservice/"];
        kinds
            .iter()
            .any(|kind| object.starts_with(kind))
            .then(|| object.to_owned())
    });
    routes.collect()
}

/// The same request without what the two read differently.
type Plainly = fn(&Ask) -> Option<(Ask, Vec<&'static str>)>;

struct Both<'a> {
    envoy: Talk<'a>,
    ours: Talk<'a>,
    plainly: Plainly,
}

impl Both<'_> {
    fn ask(&mut self, ask: &Ask, key: &str, found: &mut Found) -> Result<()> {
        let (mut envoy, mut ours) = self.told(ask, key)?;
        for again in 0..TIMES {
            // Where time decides, a busy machine does: it must be seen again.
            let late = ask.is_slow() || envoy.status == 504 || ours.status == 504;
            if !late || alike(ask, &envoy, &ours).is_some() {
                break;
            }
            found.late += 1;
            (envoy, ours) = self.told(ask, &format!("{key}-late{again}"))?;
        }
        found.asked += 1;
        found.framed += usize::from(ask.http2);
        *found.statuses.entry(envoy.status).or_default() += 1;
        if envoy == ours {
            found.equal += 1;
            return Ok(());
        }
        if let Some(why) = alike(ask, &envoy, &ours) {
            found.explain(&why);
            return Ok(());
        }
        if is_unclear(ask, &ours) {
            found.explain(&["an unclear path"]);
            return Ok(());
        }
        // Said without what they read differently, it must be answered alike.
        if let Some((plain, mut why)) = (self.plainly)(ask) {
            let (envoy, ours) = self.told(&plain, &format!("{key}-again"))?;
            if let Some(more) = alike(&plain, &envoy, &ours) {
                why.extend(more);
                found.explain(&why);
                return Ok(());
            }
        }
        let text = format!("{key}: {ask:?}\n  envoy {envoy:?}\n  ours  {ours:?}");
        found.unexplained.push(text);
        Ok(())
    }

    fn told(&mut self, ask: &Ask, key: &str) -> Result<(Told, Told)> {
        let envoy = self.envoy.ask(ask, &format!("e-{key}")).context("Envoy")?;
        let ours = self.ours.ask(ask, &format!("o-{key}")).context("ours")?;
        Ok((Told::of(&envoy), Told::of(&ours)))
    }
}

/// By what two answers are alike; nothing if they are not.
fn alike(ask: &Ask, envoy: &Told, ours: &Told) -> Option<Vec<&'static str>> {
    let (mut envoy, mut ours) = (envoy.clone(), ours.clone());
    let mut why = Vec::new();
    for (name, make) in ALIKE {
        let before = (envoy.clone(), ours.clone());
        make(ask, &mut envoy);
        make(ask, &mut ours);
        if before.0 == before.1 {
            break;
        }
        if (&before.0, &before.1) != (&envoy, &ours) {
            why.push(*name);
        }
    }
    (envoy == ours).then_some(why)
}

#[derive(Default)]
struct Found {
    asked: usize,
    framed: usize,
    late: usize,
    equal: usize,
    statuses: BTreeMap<u16, usize>,
    explained: BTreeMap<&'static str, usize>,
    unexplained: Vec<String>,
}

impl Found {
    fn explain(&mut self, why: &[&'static str]) {
        for why in why {
            *self.explained.entry(why).or_default() += 1;
        }
    }

    fn judge(&self, fronts: &[Front]) -> Result<()> {
        eprintln!(
            "{} requests ({} over HTTP/2, {} asked again for their time) to {} services: {} equal; explained: {:?}; Envoy's statuses: {:?}",
            self.asked,
            self.framed,
            self.late,
            fronts.len(),
            self.equal,
            self.explained,
            self.statuses
        );
        let count = self.unexplained.len();
        let objects = fronts.iter().flat_map(|front| &front.objects);
        let objects: Vec<&str> = objects.map(String::as_str).collect();
        ensure!(
            count == 0,
            "{count} differ:\n{}\n{}",
            self.unexplained.join("\n"),
            objects.join("\n")
        );
        Ok(())
    }
}
