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
    /// The only addresses (CIDR) that this machine reaches through the mesh; the others it reaches past it. Empty: none. Not said:
    /// all are reached through it.
    #[arg(
        long,
        env = "AMBIT_ONLY_OUTBOUND_RANGES",
        value_delimiter = ',',
        value_parser = range
    )]
    only_outbound_ranges: Option<Vec<Range>>,
    /// Whether what others open to this machine is captured; off for what is an entrance to the mesh itself.
    #[arg(long, env = "AMBIT_CAPTURE_INBOUND", default_value_t = true, action = clap::ArgAction::Set)]
    inbound: bool,
    /// Whether UDP goes through the proxy too. The mesh must be told the same: label ambit.io/udp=enabled of the machine's
    /// WorkloadEntry or of the pod itself. DHCP is left alone; what the kernel sends for an overlay (VXLAN, WireGuard) is
    /// not, unless its port is exempt.
    #[arg(long, env = "AMBIT_UDP_CAPTURE", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true")]
    udp: bool,
    /// Whether names are asked of the proxy.
    #[arg(long, env = "AMBIT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    dns: bool,
}

/// What is between two commas: an empty list is written as an empty text.
type Range = Option<IpNet>;

fn range(text: &str) -> Result<Range, ipnet::AddrParseError> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some),
    }
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
        let only = self.only_outbound_ranges.as_ref();
        let only = only.map(|ranges| ranges.iter());
        let mut exempt = Exempt {
            outbound_ports: self.exempt_outbound_ports.clone(),
            outbound_ranges: self.exempt_outbound_ranges.clone(),
            outbound_but: only.map(|ranges| ranges.flatten().copied().collect()),
            inbound_ports: inbound.collect::<Result<_, _>>()?,
        };
        if self.udp {
            exempt.outbound_ports.extend(DHCP_SERVERS);
            exempt.inbound_ports.extend(DHCP_CLIENTS);
        }
        Ok(Capture {
            v4: true,
            v6: has_ipv6(),
            dns: self.dns,
            udp: self.udp,
            inbound: self.inbound,
            interfaces: Vec::new(),
            exempt,
            probes: NOBODY,
        })
    }
}

/// Whether this namespace has IPv6 at all.
fn has_ipv6() -> bool {
    fs::read_to_string("/proc/thread-self/net/if_inet6").is_ok_and(|all| !all.is_empty())
}

/// A machine whose lease cannot be renewed loses its address, and everybody with it.
const DHCP_SERVERS: [u16; 2] = [67, 547];
const DHCP_CLIENTS: [u16; 2] = [68, 546];

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
    fn what_a_pods_annotations_may_say_can_be_said_here() {
        let leaves = |script: &str| script.contains("redirect to :15001");
        let enters = |script: &str| script.contains("redirect to :15006");
        let plain = script(&[]).unwrap();
        assert!(leaves(&plain) && enters(&plain), "{plain}");
        let only = script(&["--only-outbound-ranges=10.96.0.0/12,fd00::/8"]).unwrap();
        assert!(only.contains("ip daddr 10.96.0.0/12"), "{only}");
        assert!(enters(&only), "{only}");
        let nothing = script(&["--only-outbound-ranges="]).unwrap();
        assert!(!leaves(&nothing) && enters(&nothing), "{nothing}");
        let entrance = script(&["--inbound=false"]).unwrap();
        assert!(leaves(&entrance) && !enters(&entrance), "{entrance}");
        let wrong = ["own", "--only-outbound-ranges=10.0.0.0/8;drop"];
        assert!(Line::try_parse_from(wrong).is_err());
    }

    #[test]
    fn datagrams_are_captured_where_that_is_said_and_a_lease_is_renewed_all_the_same() {
        let plain = script(&[]).unwrap();
        assert!(!plain.contains("tproxy"), "{plain}");
        for said in [&["--udp"][..], &["--udp=true"]] {
            let udp = script(said).unwrap();
            for to in ["127.0.0.1:15001", "127.0.0.1:15006"] {
                assert!(udp.contains(&format!("tproxy ip to {to}")), "{udp}");
            }
            let turned = udp.find("udp dport != 53 fib daddr type unicast");
            for port in DHCP_SERVERS {
                let exempt = udp.find(&format!("\t\tudp dport {port} counter return"));
                assert!(exempt.is_some() && exempt < turned, "{udp}");
            }
            let taken = udp.find("fib daddr type local");
            for port in DHCP_CLIENTS {
                let exempt = udp.find(&format!("nfproto ipv4 udp dport {port} counter return"));
                assert!(exempt.is_some() && exempt < taken, "{udp}");
            }
        }
        assert!(!script(&["--udp=false"]).unwrap().contains("tproxy"));
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
