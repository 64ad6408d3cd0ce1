//! Autobahn's WebSocket suite (PyPI `autobahntestsuite`, Python 2.7) through a waypoint, and beside it: each of its cases
//! must end as it ends without one. `AUTOBAHN=path of wstest cargo test --workspace --test waypoint autobahn -- --ignored`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Pod;
use serde_json::{Value, json};

use crate::app::{One, get};
use crate::shop::{Shop, in_shop};

/// How a case ended: the messages, and the connection.
type Ends = BTreeMap<String, [String; 2]>;

#[test]
#[ignore = "needs Autobahn's wstest: AUTOBAHN=path"]
fn every_case_of_autobahn_ends_as_it_does_without_a_waypoint() {
    in_shop(|shop| {
        let app = shop.lab.pod("shop/testee").node(0).start()?;
        a_server_is_tested(shop, &app).context("wstest in front, its server behind")?;
        a_client_is_tested(shop, &app).context("wstest behind, its client in front")
    });
}

fn a_server_is_tested(shop: &Shop<'_>, app: &Pod) -> Result<()> {
    let echo = wstest(app, &["-m", "testeeserver", "-w", "ws://0.0.0.0:9001"])?.spawn("testee")?;
    app.until_listening(&echo, 9001)?;
    let through = reachable(shop, "shop/testee", 9001)?;
    let straight = fuzz(app, "straight", SocketAddr::from(([127, 0, 0, 1], 9001)))?;
    let through = fuzz(&shop.client, "through", through)?;
    same(&straight, &through)
}

/// Runs the suite against a server.
fn fuzz(pod: &Pod, name: &str, at: SocketAddr) -> Result<Ends> {
    let spec = json!({
        "outdir": name, "cases": CASES, "exclude-cases": [], "exclude-agent-cases": {},
        "servers": [{ "agent": "it", "url": format!("ws://{at}"), "options": { "version": 18 } }],
    });
    let file = pod.dir().join(format!("{name}.json"));
    fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    let ran = wstest(pod, &["-m", "fuzzingclient", "-s", &file])?
        .within(LONG)
        .run()?;
    ran.success()?;
    ends(pod, name)
}

fn a_client_is_tested(shop: &Shop<'_>, app: &Pod) -> Result<()> {
    let mut all = Vec::new();
    for (name, port) in [("beside", 9002), ("behind", 9003)] {
        let spec = json!({
            "url": format!("ws://0.0.0.0:{port}"), "outdir": name,
            "options": { "failByDrop": false }, "cases": CASES, "exclude-cases": [], "exclude-agent-cases": {},
        });
        let file = app.dir().join(format!("{name}.json"));
        fs::write(&file, spec.to_string())?;
        let file = file.to_string_lossy().into_owned();
        let server = wstest(app, &["-m", "fuzzingserver", "-s", &file])?.spawn(name)?;
        app.until_listening(&server, port)?;
        let (pod, at) = match name {
            "beside" => (app, SocketAddr::from(([127, 0, 0, 1], port))),
            _ => (&shop.client, reachable(shop, "shop/fuzzing", port)?),
        };
        let url = format!("ws://{at}");
        let ran = wstest(pod, &["-m", "testeeclient", "-w", &url])?
            .within(LONG)
            .run()?;
        ran.success()?;
        all.push(ends(app, name)?);
        // It has a page on port 8080 as well, which the next one wants.
        server.kill();
    }
    same(&all[0], &all[1])
}

/// A service for a port of the app, when the waypoint serves it.
fn reachable(shop: &Shop<'_>, name: &str, port: u16) -> Result<SocketAddr> {
    let service = shop
        .lab
        .service_for(name, ("app", "testee"), &[("http", port, port)])?;
    let at = service.at(port);
    shop.until("the waypoint to serve it", |shop| {
        shop.runtime.block_on(async {
            let asked = async {
                let mut one = One::to(&shop.client, at).await?;
                let mut page = get("/");
                page.headers_mut().insert("host", at.to_string().parse()?);
                one.ask(page).await
            };
            // It has a page for people.
            asked.await.is_ok_and(|heard| heard.status == 200)
        })
    })?;
    Ok(at)
}

fn wstest(pod: &Pod, words: &[&str]) -> Result<lab::PodCommand> {
    let program = std::env::var("AUTOBAHN").context("AUTOBAHN names wstest")?;
    let mut command = pod.command([&*program].into_iter().chain(words.iter().copied()))?;
    // Where its packages are, if not in the usual place.
    for name in ["PYTHONUSERBASE", "PYTHONPATH"] {
        if let Ok(value) = std::env::var(name) {
            command = command.env(name, &value);
        }
    }
    Ok(command.env("HOME", &pod.dir().to_string_lossy()))
}

fn ends(pod: &Pod, name: &str) -> Result<Ends> {
    let file = pod.dir().join(name).join("index.json");
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let report: Value = serde_json::from_str(&text)?;
    let agents = report.as_object().context("agents")?;
    let cases = agents
        .values()
        .next()
        .and_then(Value::as_object)
        .context("cases")?;
    let end = |case: &Value, name: &str| case[name].as_str().unwrap_or_default().to_owned();
    let ends = cases.iter().map(|(number, case)| {
        let ended = [end(case, "behavior"), end(case, "behaviorClose")];
        (number.clone(), ended)
    });
    Ok(ends.collect())
}

fn same(straight: &Ends, through: &Ends) -> Result<()> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for [messages, _] in through.values() {
        *counts.entry(messages).or_default() += 1;
    }
    eprintln!("{} cases: {counts:?}", through.len());
    let differ: Vec<_> = straight
        .iter()
        .filter(|(case, ended)| through.get(*case) != Some(*ended))
        .map(|(case, ended)| format!("{case}: {:?} and not {ended:?}", through.get(case)))
        .collect();
    ensure!(straight.len() >= 240, "only {} cases", straight.len());
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    let failed = through
        .iter()
        .filter(|(_, [messages, _])| messages == "FAILED");
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), "{failed:?}");
    Ok(())
}

/// All but those that measure the endpoints' compression, a thousand messages each: of 12 and 13 there is one of each kind.
const CASES: &[&str] = &[
    "1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.1.1", "12.2.1", "13.1.1",
    "13.3.1", "13.5.1",
];
const LONG: Duration = Duration::from_secs(1200);
