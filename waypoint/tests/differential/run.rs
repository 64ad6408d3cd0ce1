//! The same rules in a waypoint and in a stock Envoy, the same requests to both: what differs is explained, or a fault.
//!
//! 1. rules are generated, for many services, as HTTPRoutes and VirtualServices      (`rules`)
//! 2. written for the mesh (`ours`), and as Istio gives them to an Envoy             (`envoy`)
//! 3. requests are generated that are nearly right                                   (`asks`)
//! 4. each is asked of both, byte for byte (`talk`), with the same apps behind       (`echo`)
//! 5. status, headers, app, and what the app was sent must be equal                  (`compare`)
//!
//! `PEER_ENVOY=path cargo test --workspace --test waypoint differential -- --ignored`; `DIFFERENTIAL_SEED`, `DIFFERENTIAL_REQUESTS`
//! (of each service) ask for others.

mod asks;
mod compare;
mod draw;
mod echo;
mod envoy;
mod ours;
mod rules;
mod talk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{Pod, Service};

use self::asks::Ask;
use self::compare::{ALIKE, Told, is_unclear, plainly};
use self::draw::Draw;
use self::rules::{APPS, Kind, Ruled};
use self::talk::Talk;
use crate::shop::{Shop, in_shop};

const SERVICES: [(Kind, usize); 2] = [(Kind::HttpRoute, 36), (Kind::VirtualService, 24)];

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn differential_a_waypoint_answers_as_an_envoy_does() {
    in_shop(|shop| {
        let number = |name: &str, default: u64| {
            let said = std::env::var(name).ok();
            said.map_or(Ok(default), |said| said.parse())
        };
        let mut draw = Draw::new(number("DIFFERENTIAL_SEED", 1)?);
        let requests = number("DIFFERENTIAL_REQUESTS", 100)?;
        let kinds = SERVICES
            .iter()
            .flat_map(|&(kind, count)| std::iter::repeat_n(kind, count));
        let services: Vec<Ruled> = kinds
            .enumerate()
            .map(|(number, kind)| rules::service(number, kind, &mut draw))
            .collect();
        let pair = Pair::open(shop, &services)?;
        let mut found = Found::default();
        for (number, ruled) in services.iter().enumerate() {
            let mut both = pair.talks(number);
            for request in 0..requests {
                let ask = Ask::generate(ruled, &mut draw);
                let key = format!("{number}-{request}");
                both.ask(&ask, &key, &mut found)
                    .with_context(|| format!("{}: {ask:?}", ruled.name))?;
            }
        }
        found.judge(&services)
    });
}

/// Both, with the same behind them.
struct Pair<'a> {
    client: &'a Pod,
    outside: Pod,
    fronts: Vec<Service>,
}

impl<'a> Pair<'a> {
    fn open(shop: &'a Shop<'_>, services: &[Ruled]) -> Result<Self> {
        let lab = shop.lab;
        let mut apps = Vec::new();
        for number in 0..APPS {
            let name = ours::app(number);
            let pod = lab.pod(&format!("shop/{name}")).node(0).start()?;
            echo::serve(&name, pod.listen(8080)?);
            lab.service_of(&format!("shop/{name}"), &[("http", 80, 8080)])?;
            apps.push(pod.at(8080));
        }
        let apps: [SocketAddr; APPS] = apps.try_into().ok().context("all apps")?;
        let mut fronts = Vec::new();
        for ruled in services {
            let name = format!("shop/{}", ruled.name);
            fronts.push(lab.service_for(&name, ("app", "b0"), &[("http", 80, 8080)])?);
        }
        lab.namespace("plain").plain()?;
        let outside = lab.pod("plain/envoy").node(1).without_waiting().start()?;
        let config = envoy::config(services, &apps);
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
        let yaml: Vec<String> = services.iter().flat_map(ours::objects).collect();
        lab.apply_yaml("rules", &yaml.join("\n---\n"))?;
        let written: usize = services.iter().map(|one| one.objects.len()).sum();
        shop.until("all objects to be known", |shop| {
            let known = known(shop);
            eprintln!("{} of {written} objects are known", known.len());
            known.len() == written
        })?;
        Ok(Self {
            client: &shop.client,
            outside,
            fronts,
        })
    }

    fn talks(&self, number: usize) -> Both<'_> {
        let port = envoy::FIRST_PORT + number as u16;
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        Both {
            envoy: Talk::new(&self.outside, at),
            ours: Talk::new(self.client, self.fronts[number].at(80)),
        }
    }
}

/// Routes that the waypoint has rules of.
fn known(shop: &Shop<'_>) -> BTreeSet<String> {
    let dump = shop.waypoint.pod().config_dump().unwrap_or_default();
    let keys = dump["resources"].as_array().into_iter().flatten();
    let keys = keys.filter_map(|one| one["key"].as_str());
    let routes = keys.filter_map(|key| {
        let (object, _) = key.rsplit_once('/')?;
        let kinds = ["httproute/", "virtualservice/"];
        kinds
            .iter()
            .any(|kind| object.starts_with(kind))
            .then(|| object.to_owned())
    });
    routes.collect()
}

struct Both<'a> {
    envoy: Talk<'a>,
    ours: Talk<'a>,
}

impl Both<'_> {
    fn ask(&mut self, ask: &Ask, key: &str, found: &mut Found) -> Result<()> {
        let (envoy, ours) = self.told(ask, key)?;
        found.asked += 1;
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
        if let Some((plain, mut why)) = plainly(ask) {
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

    fn judge(&self, services: &[Ruled]) -> Result<()> {
        let rules: usize = services
            .iter()
            .flat_map(|one| &one.objects)
            .map(Vec::len)
            .sum();
        eprintln!(
            "{} requests to {} services of {rules} rules: {} equal; explained: {:?}; Envoy's statuses: {:?}",
            self.asked,
            services.len(),
            self.equal,
            self.explained,
            self.statuses
        );
        let shown = self
            .unexplained
            .iter()
            .take(usize::MAX)
            .cloned()
            .collect::<Vec<_>>();
        let count = self.unexplained.len();
        let rules = services
            .iter()
            .map(|one| format!("{}: {:?}", one.name, one.objects));
        let rules = rules.collect::<Vec<_>>().join("\n");
        ensure!(count == 0, "{count} differ:\n{}\n{rules}", shown.join("\n"));
        Ok(())
    }
}
