//! The way to the control plane is cut every second, in a mesh of ten thousand workloads.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Result, ensure};
use lab::{Lab, wait};

use crate::support::{
    calls::{calls_more, while_calling},
    in_lab,
};

const WORKLOADS: usize = 10_000;
/// Endpoints of one ServiceEntry.
const EACH: usize = 100;
const FLAPS: usize = 10;
const SETTLED: Duration = Duration::from_secs(120);

/// ServiceEntries whose endpoints are workloads to every proxy, and nothing else.
fn crowd() -> String {
    let mut text = String::new();
    for entry in 0..WORKLOADS / EACH {
        let _ = writeln!(
            text,
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: crowd-{entry}, namespace: shop}}\nspec:\n  \
             hosts: [crowd-{entry}.example.net]\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  resolution: STATIC\n  endpoints:"
        );
        for endpoint in 0..EACH {
            let _ = writeln!(text, "  - address: 172.24.{entry}.{endpoint}");
        }
    }
    text
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Of discovery, so far.
    bytes: f64,
    terminations: f64,
    memory: f64,
}

impl Seen {
    fn of(lab: &Lab, node: usize) -> Result<Self> {
        let metrics = lab.metrics(node)?;
        Ok(Self {
            bytes: metrics.sum("istio_xds_message_bytes_total", &[]),
            terminations: metrics.sum("istio_xds_connection_terminations_total", &[]),
            memory: metrics.sum("process_resident_memory_bytes", &[]),
        })
    }

    fn all(lab: &Lab) -> Result<Vec<Self>> {
        let nodes = lab.nodes().iter();
        nodes.map(|node| Self::of(lab, node.index())).collect()
    }
}

fn workloads(lab: &Lab, node: usize) -> Result<usize> {
    let dump = lab.node(node).config_dump()?;
    Ok(dump["workloads"].as_array().map_or(0, Vec::len))
}

/// Waits until something new has reached everybody: nobody is without discovery then, and can be cut off.
fn all_are_told(lab: &Lab, number: usize) -> Result<()> {
    let host = format!("news-{number}.example.net");
    let news = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: news, namespace: shop}}\nspec:\n  \
         hosts: [{host}]\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  resolution: STATIC\n  \
         endpoints: [{{address: 172.25.0.1}}]\n"
    );
    lab.apply_yaml("news", &news)?;
    lab.until_all_dumps(&host, |dump| {
        let mut services = dump["services"].as_array().into_iter().flatten();
        services.any(|it| it["hostname"] == host.as_str())
    })
}

/// Waits until everybody has come back, and then until discovery has been cut once more at every node.
fn flap(lab: &Lab, number: usize, how: impl Fn() -> Result<()>) -> Result<()> {
    all_are_told(lab, number)?;
    let before = Seen::all(lab)?;
    how()?;
    wait::until("the cut to be noticed", SETTLED, || {
        let now = Seen::all(lab)?;
        let cut = now.iter().zip(&before);
        let all = cut
            .into_iter()
            .all(|(now, then)| now.terminations > then.terminations);
        Ok(if all {
            wait::Probe::Ready(())
        } else {
            wait::Probe::NotYet(format!("{before:?}, now {now:?}"))
        })
    })?;
    // As often as once a second.
    #[allow(clippy::disallowed_methods)] // no runtime in this test
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

#[test]
#[allow(clippy::print_stdout)] // figures for whoever reads the report
fn a_control_plane_that_flaps_every_second_loses_no_connection_and_tells_ten_thousand_workloads_once()
 {
    in_lab(Lab::builder(), |lab| {
        while_calling(lab, |ways| {
            lab.apply_yaml("crowd", &crowd())?;
            for node in lab.nodes() {
                wait::until("every workload", SETTLED, || {
                    let known = workloads(lab, node.index())?;
                    Ok(if known > WORKLOADS {
                        wait::Probe::Ready(())
                    } else {
                        wait::Probe::NotYet(format!("{known}"))
                    })
                })?;
            }
            calls_more(ways)?;
            let told = Seen::all(lab)?;

            // Connections are cut, as a load balancer in between would cut them.
            let cut = || {
                lab.nodes().iter().try_for_each(|node| {
                    let ways = ["ss", "-K", "dport", "=", ":15012"];
                    node.ztunnel_pod()?.exec(ways)?.success().map(drop)
                })
            };
            (0..FLAPS).try_for_each(|number| flap(lab, number, cut))?;
            let cut = Seen::all(lab)?;

            // And it dies itself.
            for number in FLAPS..FLAPS + 3 {
                flap(lab, number, || lab.control_plane()?.kill())?;
                lab.control_plane()?.start()?;
            }
            calls_more(ways)?;
            // Whoever comes late is told of, so everybody is up to date.
            lab.pod("shop/late")
                .node(1)
                .service_account("late")
                .start()?;
            for (node, ((told, cut), end)) in told.iter().zip(&cut).zip(Seen::all(lab)?).enumerate()
            {
                println!("node {node}: {told:?}, after {FLAPS} cuts {cut:?}, at the end {end:?}");
                ensure!(
                    end.bytes - told.bytes < told.bytes / 4.0,
                    "what is known was told again: {told:?}, {cut:?}, {end:?}"
                );
                // What one resumption needs for a moment, allocators keep; what each left behind would be more every time.
                ensure!(
                    end.memory - cut.memory < f64::from(32 << 20),
                    "memory grows: {told:?}, {cut:?}, {end:?}"
                );
                ensure!(workloads(lab, node)? > WORKLOADS);
            }
            Ok(())
        })
    });
}
