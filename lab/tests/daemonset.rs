//! A ztunnel starts here as the container of its DaemonSet does. What that container may do, and where it is looked for.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Netns};
use support::{Pair, in_lab, talk};

/// `NET_ADMIN`, `NET_RAW`, `SYS_ADMIN`.
const CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 21;

#[test]
fn three_capabilities_and_a_file_system_that_cannot_be_written_are_enough() {
    in_lab(Lab::builder().keeper(true), |lab| {
        let pair = Pair::start(lab)?;
        let processes = lab.nodes().iter().flat_map(|node| {
            let keeper = node
                .ztunnel()
                .and_then(|keeper| Ok(keeper.process()?.pid()));
            let worker = || node.worker()?.context("a keeper without a worker");
            [keeper, worker()]
        });
        for pid in processes {
            let pid = pid?;
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim).context("an odd status")
            };
            for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
                ensure!(
                    u64::from_str_radix(field(set)?, 16)? == CAPABILITIES,
                    "{status}"
                );
            }
            ensure!(field("NoNewPrivs:")? == "1", "{status}");
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
            for at in ["/", "/proc/sys"] {
                // The last one mounted at a place is the one that is seen.
                let mount = mounts
                    .lines()
                    .rfind(|line| line.split(' ').nth(4) == Some(at));
                let options = mount.and_then(|line| line.split(' ').nth(5));
                let options = options.with_context(|| format!("nothing at {at}: {mounts}"))?;
                ensure!(
                    options.split(',').any(|option| option == "ro"),
                    "{at}: {options}"
                );
            }
        }
        let near = lab.pod("shop/near").node(0).start()?;
        for client in [&pair.client, &near] {
            talk(client, pair.at(), "as in a cluster")?;
        }
        Ok(())
    });
}

#[test]
fn doors_are_where_probes_scrapers_and_port_forwards_look_for_them() {
    in_lab(Lab::builder(), |lab| {
        let ztunnel = lab.node(0).ztunnel_pod()?;
        let connects = |from: &Netns, to: IpAddr, port| -> Result<bool> {
            from.within(|| TcpStream::connect(SocketAddr::new(to, port)).is_ok())
        };
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let [node, scraper] = [lab.node(0).netns(), lab.node(1).netns()];
        for (own, loopback) in ztunnel.addresses().iter().zip(loopback) {
            ensure!(
                connects(ztunnel.netns(), loopback, 15000)?,
                "admin at {loopback}"
            );
            for from in [node, scraper] {
                ensure!(connects(from, *own, 15020)?, "metrics at {own}");
                ensure!(connects(from, *own, 15021)?, "readiness at {own}");
                ensure!(!connects(from, *own, 15000)?, "admin at {own}");
            }
        }
        Ok(())
    });
}
