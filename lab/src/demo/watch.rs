//! The live view: clients go on, a table of who talks to whom is drawn again every second, until Ctrl-C.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::{AccessLog, Lab};

use super::{
    LEAVING,
    cast::Cast,
    flow::{Flow, Way},
    screen::{Screen, Tone, bytes},
};

/// The live view takes the whole terminal; the summary above it wants to be read first.
const TO_READ: Duration = Duration::from_secs(6);
const BETWEEN_CALLS: Duration = Duration::from_millis(400);
/// The median is taken over this many last connections.
const REMEMBERED: usize = 50;

/// One line of the table.
#[derive(Debug, Default)]
struct Edge {
    connections: u64,
    refused: u64,
    sent: u64,
    received: u64,
    milliseconds: VecDeque<u64>,
    last_error: String,
}

impl Edge {
    fn add(&mut self, flow: &Flow) {
        self.connections += 1;
        self.sent += flow.sent;
        self.received += flow.received;
        if !flow.error.is_empty() {
            self.refused += 1;
            self.last_error.clone_from(&flow.error);
        }
        self.milliseconds.push_back(flow.milliseconds);
        if self.milliseconds.len() > REMEMBERED {
            self.milliseconds.pop_front();
        }
    }

    fn median(&self) -> u64 {
        let mut sorted: Vec<u64> = self.milliseconds.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }
}

type Table = BTreeMap<(String, String, Way), Edge>;

/// Runs until the signal's thread ends the process.
pub(super) fn live(lab: &Lab, cast: &Cast, screen: &Screen) -> Result<()> {
    if screen.live() {
        screen.step("the live view follows; Ctrl-C ends it and removes everything");
        nap(TO_READ);
    }
    let started = Instant::now();
    let mut logs = lab
        .nodes()
        .iter()
        .map(|node| Ok(node.access_log()?.from_now()))
        .collect::<Result<Vec<_>>>()?;
    let mut table = Table::new();
    thread::scope(|scope| {
        let acts: [Arc<dyn Fn() + Send + Sync + '_>; 5] = [
            Arc::new(|| drop(cast.page(&cast.mobile, "web.shop"))),
            Arc::new(|| drop(cast.page(&cast.kiosk, "web.shop"))),
            Arc::new(|| drop(cast.count(&cast.checkout))),
            Arc::new(|| drop(cast.order(&cast.checkout))),
            Arc::new(|| drop(cast.page(&cast.legacy, &cast.web.at(8080).to_string()))),
        ];
        for act in acts {
            scope.spawn(move || {
                loop {
                    act();
                    nap(BETWEEN_CALLS);
                }
            });
        }
        let every = Duration::from_secs(if screen.live() { 1 } else { 5 });
        loop {
            nap(every);
            for flow in logs
                .iter_mut()
                .flat_map(AccessLog::fresh)
                .filter_map(|record| Flow::of(&record))
            {
                table
                    .entry((flow.from.clone(), flow.to.clone(), flow.way))
                    .or_default()
                    .add(&flow);
            }
            draw(lab, *screen, &table, started.elapsed());
        }
    })
}

fn draw(lab: &Lab, screen: Screen, table: &Table, since: Duration) {
    if LEAVING.load(std::sync::atomic::Ordering::SeqCst) {
        return;
    }
    let mut lines = vec![
        screen.paint(
            Tone::Strong,
            &format!("Ambit, live for {} s", since.as_secs()),
        ),
        format!(
            "   put YAML into {}/config/applied/ and watch; Ctrl-C removes everything",
            lab.dir().display()
        ),
        String::new(),
    ];
    let names = [
        "FROM",
        "TO",
        "HOW",
        "CONNECTIONS",
        "PER SECOND",
        "SENT",
        "RECEIVED",
        "MEDIAN",
        "REFUSED",
    ];
    lines.push(
        screen.compose(
            &WIDTHS
                .into_iter()
                .zip(names)
                .map(|(width, name)| (width, Tone::Faint, name))
                .collect::<Vec<_>>(),
        ),
    );
    for ((from, to, way), edge) in table {
        let rate = format!("{:.1}", edge.connections as f64 / since.as_secs_f64());
        let refused = edge.refused.to_string();
        let texts = [
            (Tone::Plain, from.as_str()),
            (Tone::Plain, to),
            (
                if *way == Way::Plain {
                    Tone::Notable
                } else {
                    Tone::Good
                },
                way.text(),
            ),
            (Tone::Plain, &edge.connections.to_string()),
            (Tone::Plain, &rate),
            (Tone::Plain, &bytes(edge.sent)),
            (Tone::Plain, &bytes(edge.received)),
            (Tone::Plain, &format!("{} ms", edge.median())),
            (
                if edge.refused > 0 {
                    Tone::Bad
                } else {
                    Tone::Faint
                },
                &refused,
            ),
        ];
        lines.push(
            screen.compose(
                &WIDTHS
                    .into_iter()
                    .zip(texts)
                    .map(|(width, (tone, text))| (width, tone, text))
                    .collect::<Vec<_>>(),
            ),
        );
        if !edge.last_error.is_empty() {
            lines.push(screen.compose(&[
                (2, Tone::Bad, "✗"),
                (0, Tone::Bad, edge.last_error.as_str()),
            ]));
        }
    }
    if screen.live() {
        screen.redraw(&lines);
    } else {
        lines.iter().for_each(|line| screen.note(line));
    }
}

const WIDTHS: [usize; 9] = [15, 23, 17, 11, 10, 9, 9, 7, 7];

/// The demo has no runtime; a pause between calls is all that is wanted.
#[allow(clippy::disallowed_methods)]
fn nap(time: Duration) {
    thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_remembers_the_last_error_and_the_median_of_late() {
        let mut edge = Edge::default();
        let mut flow = Flow {
            from: String::new(),
            to: String::new(),
            way: Way::Plain,
            identity: String::new(),
            sent: 1,
            received: 2,
            milliseconds: 1_000,
            error: "denied".into(),
        };
        edge.add(&flow);
        flow.error.clear();
        for milliseconds in 0..REMEMBERED as u64 {
            flow.milliseconds = milliseconds;
            edge.add(&flow);
        }
        assert_eq!(
            (edge.connections, edge.refused, edge.last_error.as_str()),
            (51, 1, "denied")
        );
        assert_eq!(edge.median(), 25, "the slow first one is forgotten");
    }
}
