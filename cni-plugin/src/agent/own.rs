//! The rules of the network namespace that this process runs in: a machine that is no pod, or a pod that brings its own proxy.
//!
//! The same rules as in any pod ([`crate::rules`]), put there by hand, by an init container or before the proxy's service starts. They stay
//! when the proxy ends, so that what it would carry is refused meanwhile rather than passed by; who wants them gone says so
//! ([`Own::down`]). Both can be done again and again.
//!
//! There is no kubelet here: no source address is let past, that anybody on the machine's network could put on.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::nft::{Nft, NftError};
use super::routes;
use crate::rules::{self, Capture, Exempt, Probes};

/// What is captured, and what is left alone.
#[derive(Debug, Clone, clap::Args)]
pub struct Own {
    /// The nft to use.
    #[arg(long, env = "NFT", default_value = "nft")]
    nft: PathBuf,
    /// Ports of this machine that others reach past the mesh: without its policies, and without its proofs. By default SSH, by which
    /// an operator gets in when nothing else works.
    #[arg(
        long,
        env = "AMBIT_EXEMPT_INBOUND_PORTS",
        default_value = "22",
        value_delimiter = ','
    )]
    exempt_inbound_ports: Vec<String>,
    /// Ports that this machine reaches elsewhere past the mesh.
    #[arg(long, env = "AMBIT_EXEMPT_OUTBOUND_PORTS", value_delimiter = ',')]
    exempt_outbound_ports: Vec<u16>,
    /// Addresses (CIDR) that this machine reaches past the mesh. The control plane need not be among them: the proxy's own
    /// connections are never captured.
    #[arg(long, env = "AMBIT_EXEMPT_OUTBOUND_RANGES", value_delimiter = ',')]
    exempt_outbound_ranges: Vec<IpNet>,
    /// Whether names are asked of the proxy.
    #[arg(long, env = "AMBIT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    dns: bool,
}

/// The rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// Routes for replies.
    #[error("routes: {0}; CAP_NET_ADMIN is needed")]
    Routes(io::Error),
    /// The packet rules.
    #[error("{0}")]
    Rules(String),
    /// A port that is none.
    #[error("{0:?} is no port")]
    Port(String),
}

impl Own {
    /// Puts the rules in place, over earlier ones of ours.
    ///
    /// # Errors
    /// What is missing. Packet rules are loaded all or not at all.
    pub async fn up(&self) -> Result<(), OwnError> {
        let capture = self.capture()?;
        routes::install(capture.v4, capture.v6).map_err(OwnError::Routes)?;
        self.load(capture.install()).await
    }

    /// Takes them away: from now on connections pass in the clear, in both directions.
    ///
    /// # Errors
    /// What could not be taken away.
    pub async fn down(&self) -> Result<(), OwnError> {
        self.load(rules::remove()).await?;
        routes::remove().map_err(OwnError::Routes)
    }

    /// The script that [`Own::up`] loads.
    ///
    /// # Errors
    /// When a port is none.
    pub fn script(&self) -> Result<String, OwnError> {
        Ok(self.capture()?.install())
    }

    async fn load(&self, script: String) -> Result<(), OwnError> {
        let loaded = Nft::new(self.nft.clone()).load(None, script).await;
        loaded.map_err(|error: NftError| OwnError::Rules(error.to_string()))
    }

    fn capture(&self) -> Result<Capture, OwnError> {
        // An empty list is written as an empty text, in a variable.
        let inbound = self.exempt_inbound_ports.iter();
        let inbound = inbound.filter(|port| !port.is_empty()).map(|port| {
            port.parse::<u16>()
                .map_err(|_| OwnError::Port(port.clone()))
        });
        Ok(Capture {
            v4: true,
            v6: has_ipv6(),
            dns: self.dns,
            udp: false,
            inbound: true,
            interfaces: Vec::new(),
            exempt: Exempt {
                outbound_ports: self.exempt_outbound_ports.clone(),
                outbound_ranges: self.exempt_outbound_ranges.clone(),
                outbound_but: None,
                inbound_ports: inbound.collect::<Result<_, _>>()?,
            },
            probes: NOBODY,
        })
    }
}

/// Whether this namespace has IPv6 at all.
fn has_ipv6() -> bool {
    fs::read_to_string("/proc/thread-self/net/if_inet6").is_ok_and(|all| !all.is_empty())
}

/// A loopback address never arrives from outside (the kernel takes it for a Martian), and is not captured anyway.
const NOBODY: Probes = Probes {
    v4: Ipv4Addr::LOCALHOST,
    v6: Ipv6Addr::LOCALHOST,
};

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        own: Own,
    }

    fn script(arguments: &[&str]) -> Result<String, OwnError> {
        let line = Line::try_parse_from([&["own"], arguments].concat()).unwrap();
        line.own.script()
    }

    #[test]
    fn ssh_alone_is_reached_past_the_proxy_unless_said_otherwise() {
        let plain = script(&[]).unwrap();
        assert!(plain.contains("tcp dport 22 counter accept"), "{plain}");
        let others = script(&["--exempt-inbound-ports", "2222,9100"]).unwrap();
        assert!(!others.contains("dport 22 "), "{others}");
        for port in [2222, 9100] {
            assert!(others.contains(&format!("tcp dport {port} counter accept")));
        }
        let none = script(&["--exempt-inbound-ports", ""]).unwrap();
        assert!(!none.contains("dport 22 "), "{none}");
        assert!(matches!(
            script(&["--exempt-inbound-ports", "ssh"]),
            Err(OwnError::Port(_))
        ));
    }

    #[test]
    fn no_address_of_the_network_is_let_past_as_a_kubelet() {
        let script = script(&[]).unwrap();
        assert!(!script.contains("169.254.7.127"), "{script}");
        assert!(!script.contains("fd16:9254"), "{script}");
        assert!(
            script.contains("ip saddr 127.0.0.1 counter accept"),
            "{script}"
        );
    }
}
