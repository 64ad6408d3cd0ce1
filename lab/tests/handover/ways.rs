//! Pods on every way through the mesh, and connections on each.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use lab::{Builder, Lab, Pod, Process};

use crate::support::{
    SOON, Server, round_trip, talk,
    users::{Users, bulk, chat},
    with_engines,
};

/// Far longer than any test: who leaves earlier has handed everything over.
const FOREVER: &str = "600s";

/// A mesh whose ztunnels hand everything over.
pub(crate) fn own() -> Builder {
    let builder = with_engines(Lab::builder(), ["own", "own"]);
    builder.ztunnel_env("CONNECTION_TERMINATION_DEADLINE", FOREVER)
}

/// The ztunnel of node 0 carries all of them, each by itself.
pub(crate) struct Ways {
    _servers: [Server; 2],
    pub(crate) all: Vec<(&'static str, Pod, SocketAddr)>,
}

impl Ways {
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        lab.namespace("shop").ambient()?;
        lab.namespace("out").plain()?;
        let server = lab.pod("shop/web").node(0).service_account("web").start()?;
        let near = lab.pod("shop/near").node(0).start()?;
        let far = lab.pod("shop/far").node(1).start()?;
        let outsider = lab.pod("out/side").node(1).start()?;
        let servers = [Server::echo(&server, 8080)?, Server::echo(&outsider, 8080)?];
        let over_ipv6 = SocketAddr::new(server.ip6()?, 8080);
        let all = vec![
            ("through a tunnel", far.clone(), server.at(8080)),
            ("through a tunnel, IPv6", far, over_ipv6),
            ("within the node", near.clone(), server.at(8080)),
            ("in plain text", outsider.clone(), server.at(8080)),
            ("out of the mesh", near, outsider.at(8080)),
        ];
        Ok(Self {
            _servers: servers,
            all,
        })
    }

    /// A chat and a bulk more on each way.
    pub(crate) fn use_all(&self, users: &mut Users) -> Result<()> {
        for (name, client, to) in &self.all {
            users.add(format!("{name}, chat"), client.connect(*to)?, chat);
            users.add(format!("{name}, bulk"), client.connect(*to)?, bulk);
        }
        Ok(())
    }

    /// One connection on each way that has been used, and is silent from now on.
    pub(crate) fn silent(&self) -> Result<Silent> {
        let open = self.all.iter().map(|(name, client, to)| {
            talk(client, *to, "and then nothing for a long time").map(|stream| (*name, stream))
        });
        open.collect::<Result<_>>().map(Silent)
    }

    /// New connections are served on each way.
    pub(crate) fn are_open(&self) -> Result<()> {
        let mut all = self.all.iter();
        all.try_for_each(|(_, client, to)| talk(client, *to, "is anyone there?").map(drop))
    }
}

/// Connections on which nothing is said.
pub(crate) struct Silent(Vec<(&'static str, TcpStream)>);

impl Silent {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Something is said on each of them.
    pub(crate) fn are_whole(&mut self, when: &str) -> Result<()> {
        self.0.iter_mut().try_for_each(|(name, stream)| {
            stream.set_read_timeout(Some(SOON))?;
            round_trip(stream, when).with_context(|| format!("{name}: {when}"))
        })
    }
}

/// The ztunnel that serves node 0 from now on.
pub(crate) fn successor(lab: &Lab) -> Result<Process> {
    lab.node(0).ztunnel()?.process()
}
