//! ztunnel is replaced on every node, and connections that are open go on. Loud: each is alone on the cluster.

use anyhow::{Context as _, Result, ensure};
use http::Method;
use kube::ResourceExt;
use serde_json::Value;

use super::{
    policy::STRICT,
    workloads::{PSQL, ordinary_servers},
};
use crate::{
    inside,
    mesh::Part,
    place::Place,
    pod::{Pod, Running},
    run::Test,
    wait::eventually,
};

/// Times that every node's ztunnel is replaced: what was handed over once must be as good as what was not.
const TIMES: usize = 2;

/// Connections of every kind that were opened once: across nodes, on one node, out of the mesh.
struct Open {
    shop: Place,
    phone: Pod,
    /// Ten numbers a second, there and back.
    held: Vec<(&'static str, Running)>,
    /// Bursts of known bytes, there and back.
    bulks: Vec<(&'static str, Running)>,
    /// Which session answers, and how many times it has: two words a line.
    sessions: Vec<(&'static str, Running)>,
    /// New connections and kept ones.
    loads: Vec<(&'static str, Running)>,
}

impl Open {
    async fn make(test: &Test) -> Result<Self> {
        let shop = test.ambient("shop").await?;
        // No connection passes for one of the mesh that is none.
        shop.apply(STRICT).await?;
        shop.server("far").on(test.node(0)).start().await?;
        shop.server("near").on(test.node(1)).start().await?;
        let outside = test.plain("outside").await?;
        let outside = outside.server("web").on(test.node(0)).start().await?;
        ordinary_servers(&shop, test.node(0)).await?;
        let phone = shop.client("phone").on(test.node(1)).start().await?;
        for name in ["far", "near"] {
            phone.reaches(&format!("http://{name}/")).await?;
        }
        phone
            .reaches(&format!("http://{}/", outside.at(8080)))
            .await?;
        eventually("postgres makes a sequence", || async {
            let line = format!("{PSQL} -c 'create sequence if not exists n'");
            phone.sh(&line).await?.success()
        })
        .await?;
        eventually("redis answers", || async {
            phone.sh("redis-cli -h redis ping").await?.success()
        })
        .await?;
        let query = "select pg_backend_pid(), nextval('n');";
        let commands = "client id\nincr n";
        Ok(Self {
            held: vec![
                ("across nodes", phone.holds("far:9000").await?),
                ("on one node", phone.holds("near:9000").await?),
                ("out of the mesh", phone.holds(&outside.at(9000)).await?),
            ],
            bulks: vec![
                ("across nodes", phone.pours("far:9000").await?),
                ("on one node", phone.pours("near:9000").await?),
            ],
            sessions: vec![
                ("postgres", phone.session(PSQL, query).await?),
                (
                    "redis",
                    phone.session("redis-cli -h redis", commands).await?,
                ),
            ],
            loads: vec![
                ("across nodes", phone.load("http://far/", &[]).await?),
                ("on one node", phone.load("http://near/", &[]).await?),
            ],
            shop,
            phone,
        })
    }

    /// Every one of them ends now, by its own client, and nothing was missing until then.
    async fn not_one_was_cut(self, test: &Test) -> Result<()> {
        for (ways, running) in self.loads {
            let tally = running.tally().await?;
            test.note(format!("HTTP {ways}: {tally}")).await;
            ensure!(tally.failures() == 0, "HTTP {ways}: {tally}");
        }
        for (server, running) in self.sessions {
            let answers = one_session(&running.words().await.context(server)?).context(server)?;
            test.note(format!("{server}: {answers} answers, one session"))
                .await;
        }
        for (way, running) in self.bulks {
            let bytes = running.still_held().await.context(way)?;
            test.note(format!("bulk {way}: {} MiB each way", bytes >> 20))
                .await;
        }
        for (way, running) in self.held {
            let numbers = running.still_held().await.context(way)?;
            test.note(format!("numbers {way}: {numbers}")).await;
            if way == "across nodes" {
                reported_once_and_whole(test, &self.shop, 8 * numbers).await?;
            }
        }
        Ok(())
    }
}

/// Answers were counted one by one, and by one session: nothing was asked twice, and nobody was asked who had just arrived.
fn one_session(said: &str) -> Result<usize> {
    let words: Vec<&str> = said.split(['|', '\n']).filter(|w| !w.is_empty()).collect();
    let answers = words.chunks(2);
    for (index, answer) in answers.enumerate() {
        let in_turn = answer.first() == words.first()
            && answer.get(1).and_then(|number| number.parse().ok()) == Some(index + 1);
        ensure!(in_turn, "answer {} of {}: {answer:?}", index + 1, words[0]);
    }
    ensure!(!words.is_empty(), "no answers");
    Ok(words.len() / 2)
}

/// The last of the ztunnels that had it writes the line, one, over all of its life.
async fn reported_once_and_whole(test: &Test, shop: &Place, bytes: u64) -> Result<()> {
    let mine = |record: &lab::AccessRecord| {
        record.inbound()
            && record.field("src.identity") == shop.identity("phone")
            && record.number("bytes_sent") == bytes
            && record.number("bytes_recv") == bytes
    };
    let node = &test.node(0).name;
    let what = format!("a connection with {bytes} bytes each way");
    test.mesh().reported(node, test.began, &what, &mine).await?;
    let records = test.mesh().access(node, test.began).await?;
    let lines = records.iter().filter(|record| mine(record)).count();
    ensure!(lines == 1, "{lines} lines of {what}");
    Ok(())
}

/// Nobody drains any more: whoever is not cut by now has gone on with a successor.
async fn elders_are_gone(test: &Test) -> Result<()> {
    let count = test.cluster.workers().len() + 1;
    eventually("the old ztunnels are gone", || async {
        let pods = test.mesh().pods(Part::Ztunnel).await?;
        ensure!(pods.len() == count, "{} pods", pods.len());
        Ok(())
    })
    .await
}

/// What the ztunnels of both workers say of what they have taken over.
async fn taken_over(test: &Test) -> Result<()> {
    for node in test.cluster.workers() {
        let name = test.mesh().pod_on(Part::Ztunnel, &node.name).await?;
        let name = name.name_any();
        let line = eventually(&format!("{name} has taken over"), || async {
            let log = test.mesh().log(&name, None).await?;
            let line = log
                .lines()
                .find_map(|line| line.split_once("hand-over: taken over"));
            line.map(|(_, fields)| fields.trim().to_owned())
                .context("it has not said so")
        })
        .await?;
        test.note(format!("taken over on {}: {line}", node.name))
            .await;
    }
    Ok(())
}

/// What a DaemonSet's roll-out does, twice: not one connection is cut, and no new one fails.
pub(super) async fn open_connections_outlive_two_roll_outs_of_ztunnel(test: &Test) -> Result<()> {
    let open = Open::make(test).await?;
    for _ in 0..TIMES {
        test.mesh().restart(Part::Ztunnel).await?;
        elders_are_gone(test).await?;
        taken_over(test).await?;
    }
    open.not_one_was_cut(test).await
}

/// An operator chooses the other engine and goes back. What `own` carries is handed to either; no new connection fails at any time.
pub(super) async fn the_engine_is_changed_and_changed_back_under_load(test: &Test) -> Result<()> {
    let open = Open::make(test).await?;
    for engine in ["h2", "own"] {
        let chosen = [("AMBIT_ENGINE", Some(engine))];
        test.mesh().environment(Part::Ztunnel, &chosen).await?;
        elders_are_gone(test).await?;
        taken_over(test).await?;
        for node in test.cluster.workers() {
            let pod = test.mesh().pod_on(Part::Ztunnel, &node.name).await?;
            let (client, name) = (&test.cluster.client, pod.name_any());
            let dump = inside::ztunnel(client, &name, Method::GET, "/config_dump").await?;
            let dump: Value = serde_json::from_str(&dump)?;
            ensure!(dump["config"]["engine"] == engine, "{}", dump["config"]);
        }
        open.phone.reaches("http://far/").await?;
    }
    open.not_one_was_cut(test).await
}
