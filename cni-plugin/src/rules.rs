//! Pure: what is captured in a pod → nft scripts, each of which the kernel takes whole or not at all.
//!
//! * [`Capture::install`]: the redirects and marks of docs/wire.md, "Marks and rules in a pod". Loading it
//!   again, or over other settings, replaces what was there.
//! * [`release`]: takes the redirects out and leaves the marks, which bring the replies of running
//!   connections back to ztunnel.
//! * [`remove`]: nothing of ours is left.
//!
//! Table and chain names are Istio's, so that its agent and tools recognise them. Where the rules
//! differ on purpose (`testdata/DEVIATIONS.md`):
//!
//! **Redirects match only a connection's first SYN.** A flow that began before the pod was enrolled
//! is new to conntrack in mid-stream; redirected there it would be reset, left alone it goes on.
//!
//! **And therefore the guard.** A packet without SYN that nobody awaits makes conntrack remember its
//! addresses and ports as "not redirected", until the kernel's RST makes it forget. A SYN that slips in
//! between would reach the application around ztunnel and its policies. So a SYN that should
//! be redirected must either open an entry of its own or belong to a redirected one; any
//! other is answered with a reset.
//!
//! **UDP, where the pod wants it** (label `ambit.io/udp`): what it sends is turned around to lo by the mark that brings
//! replies back, and given to ztunnel's sockets there without its addresses being changed (TPROXY: a socket of UDP cannot
//! be asked where a datagram was going before address translation). What comes to it in the clear is given to ztunnel too.
//!
//! **Only the pod's own address families.**
//!
//! **What annotations exempt** is neither redirected nor guarded: Istio's sidecars have that, its ambient mode not.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// What is captured in a pod, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The pod has IPv4 addresses.
    pub v4: bool,
    /// The pod has IPv6 addresses.
    pub v6: bool,
    /// DNS queries go to ztunnel.
    pub dns: bool,
    /// UDP goes to ztunnel, both ways.
    pub udp: bool,
    /// Inbound connections go to ztunnel; `false` for pods that are an ingress themselves.
    pub inbound: bool,
    /// Interfaces inside the pod behind which something else lives (virtual machines, nested
    /// containers) whose connections count as the pod's own.
    pub interfaces: Vec<Interface>,
    /// What is left alone all the same.
    pub exempt: Exempt,
    /// Where the kubelet's probes seem to come from.
    pub probes: Probes,
}

/// TCP connections that are not captured. DNS is a matter of its own ([`Capture::dns`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    /// Those that the pod opens to these ports.
    pub outbound_ports: Vec<u16>,
    /// Those that it opens to these addresses.
    pub outbound_ranges: Vec<IpNet>,
    /// Where it is said: those that it opens to any but these addresses.
    pub outbound_but: Option<Vec<IpNet>>,
    /// Those that others open to these ports of it.
    pub inbound_ports: Vec<u16>,
}

/// The addresses that stand for the kubelet inside pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes {
    /// In IPv4.
    pub v4: Ipv4Addr,
    /// In IPv6.
    pub v6: Ipv6Addr,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            v4: Ipv4Addr::new(169, 254, 7, 127),
            v6: Ipv6Addr::new(
                0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
            ),
        }
    }
}

/// The name of a network interface, safe to stand in a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface(String);

/// A text that cannot be the name of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be the name of a network interface")]
pub struct NotAnInterface(String);

impl FromStr for Interface {
    type Err = NotAnInterface;

    fn from_str(name: &str) -> Result<Self, NotAnInterface> {
        // The kernel allows more, but quotes and `*` mean something to nft.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
        if (1..16).contains(&name.len()) && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(NotAnInterface(name.to_owned()))
        }
    }
}

impl Capture {
    /// The script that makes this capture, whatever was there before.
    pub fn install(&self) -> String {
        let mut script = String::new();
        table(
            &mut script,
            NAT,
            &[
                base("prerouting", "type nat hook prerouting priority dstnat"),
                base("output", "type nat hook output priority -100"),
                Chain::new("istio-prerouting", self.nat_prerouting()),
                Chain::new("istio-output", self.nat_output()),
            ],
        );
        table(
            &mut script,
            MANGLE,
            &[
                base("prerouting", "type filter hook prerouting priority mangle"),
                base("output", "type route hook output priority mangle"),
                Chain::new("istio-prerouting", self.mangle_prerouting()),
                Chain::new("istio-output", self.mangle_output()),
                Chain::new("ambit-guard", guard()),
            ],
        );
        if self.dns {
            table(
                &mut script,
                RAW,
                &[
                    base("prerouting", "type filter hook prerouting priority raw"),
                    base("output", "type filter hook output priority raw"),
                    Chain::new(
                        "istio-prerouting",
                        vec![format!("udp sport 53 {NOT_ZTUNNEL} counter ct zone set 1")],
                    ),
                    Chain::new(
                        "istio-output",
                        vec![
                            "udp dport 53 meta mark & 0xfff == 0x539 counter ct zone set 1"
                                .to_owned(),
                        ],
                    ),
                ],
            );
        } else {
            delete(&mut script, RAW);
        }
        script
    }

    fn nat_prerouting(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for Interface(name) in &self.interfaces {
            let from = format!("iifname \"{name}\" meta l4proto tcp");
            let let_go = self.let_go();
            rules.extend(let_go.map(|to| format!("{from} {to} counter return")));
            let captured: Vec<String> = match self.exempt.outbound_but {
                Some(_) => self.families().flat_map(|ip| self.captured(&ip)).collect(),
                None => vec![String::new()],
            };
            let redirect = |to| format!("{from} {to}{SYN} counter redirect to :15001");
            rules.extend(captured.into_iter().map(redirect));
            rules.push(format!("{from} counter return"));
        }
        if self.inbound {
            rules.extend(self.families().map(|ip| {
                format!(
                    "meta l4proto tcp {} saddr {} counter accept",
                    ip.keyword, ip.probe
                )
            }));
            let exempt = self.exempt.inbound_ports.iter();
            rules.extend(exempt.map(|port| format!("tcp dport {port} counter accept")));
            rules.extend(
                self.families()
                    .map(|ip| format!("{} {SYN} counter redirect to :15006", ip.inbound())),
            );
        }
        rules
    }

    fn nat_output(&self) -> Vec<String> {
        let mut rules: Vec<String> = self
            .families()
            .map(|ip| {
                format!(
                    "meta l4proto tcp {} daddr {} counter accept",
                    ip.keyword, ip.probe
                )
            })
            .collect();
        if self.dns {
            rules.push(format!(
                "oifname != \"lo\" {NOT_ZTUNNEL} udp dport 53 counter redirect to :15053"
            ));
            rules.extend(self.families().map(|ip| {
                format!(
                    "{} tcp dport 53 {NOT_ZTUNNEL} {SYN} counter redirect to :15053",
                    ip.not_loopback()
                )
            }));
        }
        rules.push("meta l4proto tcp meta mark & 0xfff == 0x111 counter accept".to_owned());
        rules.extend(
            self.families()
                .map(|ip| format!("oifname \"lo\" {} counter accept", ip.not_loopback())),
        );
        let let_go = self.let_go();
        rules.extend(let_go.map(|to| format!("meta l4proto tcp {to} counter accept")));
        for ip in self.families() {
            rules.extend(self.captured(&ip).into_iter().map(|to| {
                format!(
                    "meta l4proto tcp {} {to}{NOT_ZTUNNEL} {SYN} counter redirect to :15001",
                    ip.not_loopback()
                )
            }));
        }
        rules
    }

    /// Where the pod's own connections go that are not captured, as conditions of rules for TCP.
    fn let_go(&self) -> impl Iterator<Item = String> {
        let ports = self.exempt.outbound_ports.iter();
        let ports = ports.map(|port| format!("tcp dport {port}"));
        let ranges = self.exempt.outbound_ranges.iter();
        let ranges = ranges.filter_map(move |range| {
            let family = self.families().find(|ip| ip.has(range))?;
            Some(family.to(range))
        });
        ports.chain(ranges)
    }

    /// Where those go that are, in one family, each with a space behind it: nothing for wherever.
    fn captured(&self, ip: &Family) -> Vec<String> {
        let Some(but) = &self.exempt.outbound_but else {
            return vec![String::new()];
        };
        let ranges = but.iter().filter(|range| ip.has(range));
        ranges.map(|range| ip.to(range) + " ").collect()
    }

    fn mangle_output(&self) -> Vec<String> {
        let mut rules = vec![RETURN_TO_ZTUNNEL.to_owned()];
        if self.udp {
            // What is answered, and what is not for one host, is not the beginning of anything that could be carried. DNS
            // has rules of its own.
            let ports = self.exempt.outbound_ports.iter();
            rules.extend(ports.map(|port| format!("udp dport {port} counter return")));
            for ip in self.families() {
                let to =
                    |range: &IpNet| format!("meta l4proto udp {} counter return", ip.to(range));
                let ranges = self.exempt.outbound_ranges.iter();
                rules.extend(ranges.filter(|range| ip.has(range)).map(to));
                rules.extend(self.captured(&ip).into_iter().map(|to| {
                    format!(
                        "oifname != \"lo\" meta nfproto {} meta l4proto udp {to}udp dport != 53 fib daddr type unicast ct direction original {NOT_ZTUNNEL} counter meta mark set meta mark & 0xffffe000 | 0x1111",
                        ip.name
                    )
                }));
            }
        }
        rules
    }

    /// Datagrams to the sockets of ztunnel: what is on its way out and was turned around, and what comes from elsewhere. A
    /// socket that is connected, which each flow has, goes before them. What was turned around has a mark of its own: what a
    /// connection's mark brings back, or took along on its way to the app, has nothing to do with these.
    fn udp_prerouting(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for ip in self.families() {
            let (name, keyword, at) = (ip.name, ip.keyword, ip.listener);
            rules.push(format!(
                "iifname \"lo\" meta nfproto {name} meta l4proto udp meta mark & 0x1fff == 0x1111 counter tproxy {keyword} to {at}:15001"
            ));
            if self.inbound {
                let ports = self.exempt.inbound_ports.iter();
                rules
                    .extend(ports.map(|port| {
                        format!("meta nfproto {name} udp dport {port} counter return")
                    }));
                rules.push(format!(
                    "iifname != \"lo\" meta nfproto {name} meta l4proto udp fib daddr type local ct direction original {NOT_ZTUNNEL} counter tproxy {keyword} to {at}:15006"
                ));
            }
        }
        rules
    }

    fn mangle_prerouting(&self) -> Vec<String> {
        let mut rules = Vec::new();
        if self.udp {
            // The app's answers need not be brought back by their connection's mark: they are caught like all that it
            // sends, or, where a datagram was let through as it came, are not for ztunnel.
            rules.push("meta l4proto udp meta mark & 0x1fff == 0x1539 counter return".to_owned());
        }
        rules.push(MARK_REPLIES.to_owned());
        if self.inbound {
            // What nothing redirects needs no guard, which would take a first packet sent twice for an attack.
            let exempt = self.exempt.inbound_ports.iter();
            rules.extend(exempt.map(|port| format!("tcp dport {port} counter return")));
            for Interface(name) in &self.interfaces {
                let from = format!("iifname \"{name}\" meta l4proto tcp");
                let let_go = self.let_go();
                rules.extend(let_go.map(|to| format!("{from} {to} counter return")));
                if self.exempt.outbound_but.is_some() {
                    let captured = self.families().flat_map(|ip| self.captured(&ip));
                    rules.extend(captured.map(|to| format!("{from} {to}{SYN} jump ambit-guard")));
                    rules.push(format!("{from} counter return"));
                }
            }
            rules.extend(self.families().map(|ip| {
                format!(
                    "iifname != \"lo\" {} saddr != {} {} {SYN} jump ambit-guard",
                    ip.keyword,
                    ip.probe,
                    ip.inbound()
                )
            }));
        }
        if self.udp {
            rules.extend(self.udp_prerouting());
        }
        rules
    }

    fn families(&self) -> impl Iterator<Item = Family> {
        let v4 = self.v4.then(|| Family {
            keyword: "ip",
            name: "ipv4",
            loopback: "127.0.0.1",
            listener: "127.0.0.1",
            probe: self.probes.v4.to_string(),
        });
        let v6 = self.v6.then(|| Family {
            keyword: "ip6",
            name: "ipv6",
            loopback: "::1",
            listener: "[::1]",
            probe: self.probes.v6.to_string(),
        });
        v4.into_iter().chain(v6)
    }
}

/// The script that takes the redirects out and leaves the marks. The chains that hook into the kernel's
/// address translation stay too: without any of them it would forget running redirects.
pub fn release() -> String {
    let mut script = String::new();
    for (table, chain) in [
        (NAT, "istio-prerouting"),
        (NAT, "istio-output"),
        (MANGLE, "istio-prerouting"),
        (MANGLE, "istio-output"),
    ] {
        let _ = writeln!(
            script,
            "table inet {table} {{\n\tchain {chain} {{\n\t}}\n}}"
        );
        let _ = writeln!(script, "flush chain inet {table} {chain}");
    }
    let _ = writeln!(
        script,
        "add rule inet {MANGLE} istio-prerouting {MARK_REPLIES}\nadd rule inet {MANGLE} istio-output {RETURN_TO_ZTUNNEL}"
    );
    script
}

/// The script after which nothing of ours is left.
pub fn remove() -> String {
    let mut script = String::new();
    for table in [NAT, MANGLE, RAW] {
        delete(&mut script, table);
    }
    script
}

struct Family {
    keyword: &'static str,
    name: &'static str,
    loopback: &'static str,
    /// The same, before a port.
    listener: &'static str,
    probe: String,
}

impl Family {
    fn has(&self, range: &IpNet) -> bool {
        matches!(range, IpNet::V4(_)) == (self.keyword == "ip")
    }

    /// The condition that a packet goes to an address of `range`.
    fn to(&self, range: &IpNet) -> String {
        match range.prefix_len() {
            0 => format!("meta nfproto {}", self.name),
            _ => format!("{} daddr {}", self.keyword, range.trunc()),
        }
    }

    fn not_loopback(&self) -> String {
        format!("{} daddr != {}", self.keyword, self.loopback)
    }

    /// Connections to the application: not ztunnel's own, and not to ztunnel's own port.
    fn inbound(&self) -> String {
        format!("{} tcp dport != 15008 {NOT_ZTUNNEL}", self.not_loopback())
    }
}

struct Chain {
    name: &'static str,
    rules: Vec<String>,
}

impl Chain {
    fn new(name: &'static str, rules: Vec<String>) -> Self {
        Self { name, rules }
    }
}

fn base(name: &'static str, hook: &str) -> Chain {
    Chain::new(
        name,
        vec![
            format!("{hook}; policy accept;"),
            format!("jump istio-{name}"),
        ],
    )
}

fn guard() -> Vec<String> {
    vec![
        "ct status dnat counter return".to_owned(),
        "ct state new ct status ! confirmed counter return".to_owned(),
        "counter reject with tcp reset".to_owned(),
    ]
}

fn table(script: &mut String, name: &str, chains: &[Chain]) {
    delete(script, name);
    let _ = writeln!(script, "table inet {name} {{");
    for chain in chains {
        let _ = writeln!(script, "\tchain {} {{", chain.name);
        for rule in &chain.rules {
            let _ = writeln!(script, "\t\t{rule}");
        }
        let _ = writeln!(script, "\t}}");
    }
    let _ = writeln!(script, "}}");
}

/// Deleting a table that is not there is an error, so it is made first.
fn delete(script: &mut String, table: &str) {
    let _ = writeln!(script, "table inet {table}\ndelete table inet {table}");
}

const NAT: &str = "istio-ambient-nat";
const MANGLE: &str = "istio-ambient-mangle";
const RAW: &str = "istio-ambient-raw";

/// ztunnel marks its own sockets 0x539.
const NOT_ZTUNNEL: &str = "meta mark & 0xfff != 0x539";
const SYN: &str = "tcp flags & (fin|syn|rst|ack) == syn";
/// A connection that ztunnel opens to the application with the client's address as source …
const MARK_REPLIES: &str =
    "meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111";
/// … has its replies marked, and the mark's route (`agent/routes.rs`) brings them back.
const RETURN_TO_ZTUNNEL: &str = "ct mark & 0xfff == 0x111 counter meta mark set ct mark";

#[cfg(test)]
mod tests;
