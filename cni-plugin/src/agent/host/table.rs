//! Pure: the node's nft script.
//!
//! * table `istio-ambient-nat`, with Istio's names: the enrolled pods' addresses, and the source address of the
//!   kubelet's connections to them
//! * recognised by its cgroup: the kernel tells a socket's group only in `output`, but a source is changed in
//!   `postrouting`; a set of connections, seconds old, carries the news from one to the other. (A mark
//!   would do as well, but the bits of marks belong to everyone on a node.)
//! * table `ambit-probes`: a packet that *arrives* with the probes' source address is a forgery

use std::fmt::Write;
use std::net::IpAddr;

use super::Pods;
use crate::agent::kubelet::Cgroup;
use crate::agent::pod::Uid;
use crate::rules::Probes;

/// What the node's rules depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    pub(super) pods: &'a Pods,
    pub(super) kubelet: Kubelet<'a>,
    pub(super) probes: Probes,
    pub(super) v6: bool,
    /// Whether the kernel's set becomes this one; otherwise it gains what it lacks.
    pub(super) complete: bool,
}

/// By what its connections are known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kubelet<'a> {
    Cgroup(&'a Cgroup),
    User(u32),
}

struct Family {
    suffix: &'static str,
    kind: &'static str,
    keyword: &'static str,
    probe: IpAddr,
}

impl Table<'_> {
    pub(super) fn script(&self) -> String {
        let families = self.families();
        let mut script = if self.complete {
            absent()
        } else {
            // Only the chains are emptied: the pods in the sets stay.
            let hooks = [OUTPUT, POSTROUTING, PREROUTING];
            let tables = [PROBES, PROBES, FORGERIES];
            let chains = ["output", "postrouting", "prerouting"];
            let mut script = String::new();
            for ((table, chain), hook) in tables.iter().zip(chains).zip(hooks) {
                let _ = writeln!(
                    script,
                    "table inet {table} {{\n\tchain {chain} {{\n\t\t{hook}\n\t}}\n}}"
                );
                let _ = writeln!(script, "flush chain inet {table} {chain}");
            }
            script
        };
        let _ = writeln!(script, "table inet {PROBES} {{");
        for family in &families {
            self.set(&mut script, family);
        }
        if let Kubelet::Cgroup(cgroup) = self.kubelet {
            for family in &families {
                flows(&mut script, family);
            }
            let recognised = families.iter().flat_map(|family| {
                std::iter::once(unrecognise(family)).chain(recognise(family, cgroup))
            });
            chain(&mut script, "output", OUTPUT, recognised);
        }
        let sources = families.iter().map(|family| self.source(family));
        chain(&mut script, "postrouting", POSTROUTING, sources);
        let _ = writeln!(script, "}}\ntable inet {FORGERIES} {{");
        let forgeries = families
            .iter()
            .map(|family| format!("{} saddr {} counter drop", family.keyword, family.probe));
        chain(&mut script, "prerouting", PREROUTING, forgeries);
        let _ = writeln!(script, "}}");
        script
    }

    fn families(&self) -> Vec<Family> {
        let v4 = Family {
            suffix: "v4",
            kind: "ipv4_addr",
            keyword: "ip",
            probe: self.probes.v4.into(),
        };
        let v6 = Family {
            suffix: "v6",
            kind: "ipv6_addr",
            keyword: "ip6",
            probe: self.probes.v6.into(),
        };
        let mut families = vec![v4];
        families.extend(self.v6.then_some(v6));
        families
    }

    fn set(&self, script: &mut String, family: &Family) {
        let Family { suffix, kind, .. } = family;
        let _ = writeln!(
            script,
            "\tset istio-inpod-probes-{suffix} {{\n\t\ttype {kind}"
        );
        let _ = writeln!(
            script,
            "\t\tcomment \"UUID of the pods that are part of ambient mesh\""
        );
        let of_family = |ip: &IpAddr| ip.is_ipv4() == family.probe.is_ipv4();
        let members: Vec<_> = self
            .pods
            .iter()
            .filter(|(ip, _)| of_family(ip))
            .map(|(ip, uid)| format!("{ip} comment \"{}\"", plain(uid)))
            .collect();
        if !members.is_empty() {
            let _ = writeln!(script, "\t\telements = {{ {} }}", members.join(", "));
        }
        let _ = writeln!(script, "\t}}");
    }

    fn source(&self, family: &Family) -> String {
        let Family {
            suffix,
            keyword,
            probe,
            ..
        } = family;
        let whose = match self.kubelet {
            Kubelet::User(uid) => format!(
                "meta l4proto tcp meta skuid {uid} {keyword} daddr @istio-inpod-probes-{suffix}"
            ),
            Kubelet::Cgroup(_) => format!("{} @ambit-kubelet-{suffix}", flow(keyword)),
        };
        format!("{whose} counter snat {keyword} to {probe}")
    }
}

/// The script after which nothing of ours is left on the node.
pub(super) fn absent() -> String {
    [PROBES, FORGERIES]
        .iter()
        .map(|table| format!("table inet {table}\ndelete table inet {table}\n"))
        .collect()
}

/// Scripts of which one fails where a table is missing. In one script nft finds only the last.
pub(super) fn listed() -> [String; 2] {
    [PROBES, FORGERIES].map(|table| format!("list table inet {table}\n"))
}

/// The connections that the kubelet has just begun.
fn flows(script: &mut String, family: &Family) {
    let Family { suffix, kind, .. } = family;
    let _ = writeln!(
        script,
        "\tset ambit-kubelet-{suffix} {{\n\t\ttype {kind} . {kind} . inet_service . inet_service\n\t\tsize 65535\n\t\tflags dynamic,timeout\n\t\ttimeout 10s\n\t}}"
    );
}

/// A connection with the addresses and ports of an earlier one of the kubelet's is not the kubelet's for that.
fn unrecognise(family: &Family) -> String {
    let Family {
        suffix, keyword, ..
    } = family;
    format!(
        "{keyword} daddr @istio-inpod-probes-{suffix} {SYN} delete @ambit-kubelet-{suffix} {{ {} }}",
        flow(keyword)
    )
}

/// Older kernels count a group's depth from the root of all, newer ones from the root that nft
/// sees; a node that is a container does not know how far that is. A group has one number, so asking at
/// every depth that may be meant finds no other.
fn recognise<'a>(family: &'a Family, cgroup: &'a Cgroup) -> impl Iterator<Item = String> + 'a {
    let Family {
        suffix, keyword, ..
    } = family;
    let depth = cgroup
        .path
        .split('/')
        .filter(|part| !part.is_empty())
        .count();
    (depth..=depth + cgroup.hidden).map(move |level| {
        format!(
            "{keyword} daddr @istio-inpod-probes-{suffix} {SYN} socket cgroupv2 level {level} \"{}\" counter update @ambit-kubelet-{suffix} {{ {} }}",
            cgroup.path,
            flow(keyword)
        )
    })
}

fn flow(keyword: &str) -> String {
    format!("{keyword} saddr . {keyword} daddr . tcp sport . tcp dport")
}

fn chain(script: &mut String, name: &str, hook: &str, rules: impl Iterator<Item = String>) {
    let _ = writeln!(script, "\tchain {name} {{\n\t\t{hook}");
    for rule in rules {
        let _ = writeln!(script, "\t\t{rule}");
    }
    let _ = writeln!(script, "\t}}");
}

/// A uid comes from a file a user wrote; in a script it is a quoted text of at most 128 bytes.
fn plain(uid: &Uid) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '/') {
            c
        } else {
            '_'
        }
    };
    uid.as_str().chars().take(100).map(safe).collect()
}

const SYN: &str = "tcp flags & (fin|syn|rst|ack) == syn";
const PROBES: &str = "istio-ambient-nat";
const FORGERIES: &str = "ambit-probes";
const OUTPUT: &str = "type filter hook output priority filter; policy accept;";
const POSTROUTING: &str = "type nat hook postrouting priority srcnat; policy accept;";
const PREROUTING: &str = "type filter hook prerouting priority raw; policy accept;";

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(list: &[(&str, &str)]) -> Pods {
        let pod = |(ip, uid): &(&str, &str)| (ip.parse().unwrap(), Uid::new(uid));
        list.iter().map(pod).collect()
    }

    fn table<'a>(pods: &'a Pods, kubelet: Kubelet<'a>) -> Table<'a> {
        Table {
            pods,
            kubelet,
            probes: Probes::default(),
            v6: true,
            complete: true,
        }
    }

    #[test]
    fn the_table_lists_pods_by_family() {
        let pods = pods(&[
            ("10.30.0.1", "u-1"),
            ("fd00:30::2", "u-2"),
            ("10.30.0.2", "u\"; flush ruleset"),
        ]);
        insta::assert_snapshot!(table(&pods, Kubelet::User(0)).script(), @r#"
table inet istio-ambient-nat
delete table inet istio-ambient-nat
table inet ambit-probes
delete table inet ambit-probes
table inet istio-ambient-nat {
	set istio-inpod-probes-v4 {
		type ipv4_addr
		comment "UUID of the pods that are part of ambient mesh"
		elements = { 10.30.0.1 comment "u-1", 10.30.0.2 comment "u___flush_ruleset" }
	}
	set istio-inpod-probes-v6 {
		type ipv6_addr
		comment "UUID of the pods that are part of ambient mesh"
		elements = { fd00:30::2 comment "u-2" }
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta l4proto tcp meta skuid 0 ip daddr @istio-inpod-probes-v4 counter snat ip to 169.254.7.127
		meta l4proto tcp meta skuid 0 ip6 daddr @istio-inpod-probes-v6 counter snat ip6 to fd16:9254:7127:1337:ffff:ffff:ffff:ffff
	}
}
table inet ambit-probes {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		ip saddr 169.254.7.127 counter drop
		ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff counter drop
	}
}
"#);
    }

    #[test]
    fn a_kubelet_known_by_its_cgroup_is_recognised_where_the_kernel_can_tell() {
        let cgroup = Cgroup::example("system.slice/kubelet.service", 1);
        let mut table = table(&Pods::new(), Kubelet::Cgroup(&cgroup)).script();
        table = table.lines().skip(4).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(table, @r#"
table inet istio-ambient-nat {
	set istio-inpod-probes-v4 {
		type ipv4_addr
		comment "UUID of the pods that are part of ambient mesh"
	}
	set istio-inpod-probes-v6 {
		type ipv6_addr
		comment "UUID of the pods that are part of ambient mesh"
	}
	set ambit-kubelet-v4 {
		type ipv4_addr . ipv4_addr . inet_service . inet_service
		size 65535
		flags dynamic,timeout
		timeout 10s
	}
	set ambit-kubelet-v6 {
		type ipv6_addr . ipv6_addr . inet_service . inet_service
		size 65535
		flags dynamic,timeout
		timeout 10s
	}
	chain output {
		type filter hook output priority filter; policy accept;
		ip daddr @istio-inpod-probes-v4 tcp flags & (fin|syn|rst|ack) == syn delete @ambit-kubelet-v4 { ip saddr . ip daddr . tcp sport . tcp dport }
		ip daddr @istio-inpod-probes-v4 tcp flags & (fin|syn|rst|ack) == syn socket cgroupv2 level 2 "system.slice/kubelet.service" counter update @ambit-kubelet-v4 { ip saddr . ip daddr . tcp sport . tcp dport }
		ip daddr @istio-inpod-probes-v4 tcp flags & (fin|syn|rst|ack) == syn socket cgroupv2 level 3 "system.slice/kubelet.service" counter update @ambit-kubelet-v4 { ip saddr . ip daddr . tcp sport . tcp dport }
		ip6 daddr @istio-inpod-probes-v6 tcp flags & (fin|syn|rst|ack) == syn delete @ambit-kubelet-v6 { ip6 saddr . ip6 daddr . tcp sport . tcp dport }
		ip6 daddr @istio-inpod-probes-v6 tcp flags & (fin|syn|rst|ack) == syn socket cgroupv2 level 2 "system.slice/kubelet.service" counter update @ambit-kubelet-v6 { ip6 saddr . ip6 daddr . tcp sport . tcp dport }
		ip6 daddr @istio-inpod-probes-v6 tcp flags & (fin|syn|rst|ack) == syn socket cgroupv2 level 3 "system.slice/kubelet.service" counter update @ambit-kubelet-v6 { ip6 saddr . ip6 daddr . tcp sport . tcp dport }
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr . ip daddr . tcp sport . tcp dport @ambit-kubelet-v4 counter snat ip to 169.254.7.127
		ip6 saddr . ip6 daddr . tcp sport . tcp dport @ambit-kubelet-v6 counter snat ip6 to fd16:9254:7127:1337:ffff:ffff:ffff:ffff
	}
}
table inet ambit-probes {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		ip saddr 169.254.7.127 counter drop
		ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff counter drop
	}
}
"#);
    }

    #[test]
    fn an_incomplete_table_takes_nothing_away_but_old_rules() {
        let (pods, cgroup) = (pods(&[("10.30.0.1", "u-1")]), Cgroup::example("k", 0));
        for kubelet in [Kubelet::User(0), Kubelet::Cgroup(&cgroup)] {
            let mut table = table(&pods, kubelet);
            table.complete = false;
            let script = table.script();
            assert!(
                !script.contains("delete table") && !script.contains("flush set"),
                "{script}"
            );
            assert_eq!(script.matches("flush chain").count(), 3, "{script}");
        }
    }

    #[test]
    fn without_ipv6_there_is_nothing_for_it() {
        let pods = pods(&[("fd00:30::2", "u")]);
        let mut table = table(&pods, Kubelet::User(0));
        table.v6 = false;
        let script = table.script();
        assert!(
            !script.contains("ip6") && !script.contains("fd00"),
            "{script}"
        );
    }
}
