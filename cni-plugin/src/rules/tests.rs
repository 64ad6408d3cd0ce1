//! The scripts, to the letter, and the two promises that hold for every setting.

use proptest::prelude::*;

use super::*;

fn plain() -> Capture {
    Capture {
        v4: true,
        v6: false,
        dns: false,
        udp: false,
        inbound: true,
        interfaces: Vec::new(),
        exempt: Exempt::default(),
        probes: Probes::default(),
    }
}

#[test]
fn a_plain_pod() {
    insta::assert_snapshot!(plain().install(), @r#"
table inet istio-ambient-nat
delete table inet istio-ambient-nat
table inet istio-ambient-nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump istio-prerouting
	}
	chain output {
		type nat hook output priority -100; policy accept;
		jump istio-output
	}
	chain istio-prerouting {
		meta l4proto tcp ip saddr 169.254.7.127 counter accept
		ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15006
	}
	chain istio-output {
		meta l4proto tcp ip daddr 169.254.7.127 counter accept
		meta l4proto tcp meta mark & 0xfff == 0x111 counter accept
		oifname "lo" ip daddr != 127.0.0.1 counter accept
		meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001
	}
}
table inet istio-ambient-mangle
delete table inet istio-ambient-mangle
table inet istio-ambient-mangle {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		jump istio-prerouting
	}
	chain output {
		type route hook output priority mangle; policy accept;
		jump istio-output
	}
	chain istio-prerouting {
		meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111
		iifname != "lo" ip saddr != 169.254.7.127 ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn jump ambit-guard
	}
	chain istio-output {
		ct mark & 0xfff == 0x111 counter meta mark set ct mark
	}
	chain ambit-guard {
		ct status dnat counter return
		ct state new ct status ! confirmed counter return
		counter reject with tcp reset
	}
}
table inet istio-ambient-raw
delete table inet istio-ambient-raw
"#);
}

#[test]
fn a_dual_stack_pod_with_dns() {
    let capture = Capture {
        v6: true,
        dns: true,
        ..plain()
    };
    insta::assert_snapshot!(capture.install(), @r#"
table inet istio-ambient-nat
delete table inet istio-ambient-nat
table inet istio-ambient-nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump istio-prerouting
	}
	chain output {
		type nat hook output priority -100; policy accept;
		jump istio-output
	}
	chain istio-prerouting {
		meta l4proto tcp ip saddr 169.254.7.127 counter accept
		meta l4proto tcp ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff counter accept
		ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15006
		ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15006
	}
	chain istio-output {
		meta l4proto tcp ip daddr 169.254.7.127 counter accept
		meta l4proto tcp ip6 daddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff counter accept
		oifname != "lo" meta mark & 0xfff != 0x539 udp dport 53 counter redirect to :15053
		ip daddr != 127.0.0.1 tcp dport 53 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15053
		ip6 daddr != ::1 tcp dport 53 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15053
		meta l4proto tcp meta mark & 0xfff == 0x111 counter accept
		oifname "lo" ip daddr != 127.0.0.1 counter accept
		oifname "lo" ip6 daddr != ::1 counter accept
		meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001
		meta l4proto tcp ip6 daddr != ::1 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001
	}
}
table inet istio-ambient-mangle
delete table inet istio-ambient-mangle
table inet istio-ambient-mangle {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		jump istio-prerouting
	}
	chain output {
		type route hook output priority mangle; policy accept;
		jump istio-output
	}
	chain istio-prerouting {
		meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111
		iifname != "lo" ip saddr != 169.254.7.127 ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn jump ambit-guard
		iifname != "lo" ip6 saddr != fd16:9254:7127:1337:ffff:ffff:ffff:ffff ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn jump ambit-guard
	}
	chain istio-output {
		ct mark & 0xfff == 0x111 counter meta mark set ct mark
	}
	chain ambit-guard {
		ct status dnat counter return
		ct state new ct status ! confirmed counter return
		counter reject with tcp reset
	}
}
table inet istio-ambient-raw
delete table inet istio-ambient-raw
table inet istio-ambient-raw {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		jump istio-prerouting
	}
	chain output {
		type filter hook output priority raw; policy accept;
		jump istio-output
	}
	chain istio-prerouting {
		udp sport 53 meta mark & 0xfff != 0x539 counter ct zone set 1
	}
	chain istio-output {
		udp dport 53 meta mark & 0xfff == 0x539 counter ct zone set 1
	}
}
"#);
}

#[test]
fn an_ingress_pod_with_a_virtual_machine() {
    let capture = Capture {
        inbound: false,
        interfaces: vec!["eth1".parse().unwrap()],
        ..plain()
    };
    insta::assert_snapshot!(capture.install(), @r#"
table inet istio-ambient-nat
delete table inet istio-ambient-nat
table inet istio-ambient-nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump istio-prerouting
	}
	chain output {
		type nat hook output priority -100; policy accept;
		jump istio-output
	}
	chain istio-prerouting {
		iifname "eth1" meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001
		iifname "eth1" meta l4proto tcp counter return
	}
	chain istio-output {
		meta l4proto tcp ip daddr 169.254.7.127 counter accept
		meta l4proto tcp meta mark & 0xfff == 0x111 counter accept
		oifname "lo" ip daddr != 127.0.0.1 counter accept
		meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001
	}
}
table inet istio-ambient-mangle
delete table inet istio-ambient-mangle
table inet istio-ambient-mangle {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		jump istio-prerouting
	}
	chain output {
		type route hook output priority mangle; policy accept;
		jump istio-output
	}
	chain istio-prerouting {
		meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111
	}
	chain istio-output {
		ct mark & 0xfff == 0x111 counter meta mark set ct mark
	}
	chain ambit-guard {
		ct status dnat counter return
		ct state new ct status ! confirmed counter return
		counter reject with tcp reset
	}
}
table inet istio-ambient-raw
delete table inet istio-ambient-raw
"#);
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The rules of a chain, those with these words.
fn chain<'a>(script: &'a str, table: &str, chain: &str, words: &str) -> Vec<&'a str> {
    let (_, rest) = script
        .split_once(&format!("table inet {table} {{"))
        .unwrap();
    let (_, rest) = rest.split_once(&format!("\tchain {chain} {{\n")).unwrap();
    let (rules, _) = rest.split_once("\t}").unwrap();
    let rules = rules.lines().map(str::trim);
    rules.filter(|rule| rule.contains(words)).collect()
}

#[test]
fn what_is_exempt_passes_before_what_is_redirected_in_either_direction_and_is_not_guarded() {
    let capture = Capture {
        v6: true,
        interfaces: vec!["eth1".parse().unwrap()],
        exempt: Exempt {
            outbound_ports: vec![443],
            outbound_ranges: nets(&["10.9.8.7/8", "fd00::/8", "0.0.0.0/0"]),
            outbound_but: None,
            inbound_ports: vec![9090],
        },
        ..plain()
    };
    let script = capture.install();
    let out = [
        "meta l4proto tcp tcp dport 443 counter accept",
        "meta l4proto tcp ip daddr 10.0.0.0/8 counter accept",
        "meta l4proto tcp ip6 daddr fd00::/8 counter accept",
        "meta l4proto tcp meta nfproto ipv4 counter accept",
        "meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001",
        "meta l4proto tcp ip6 daddr != ::1 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001",
    ];
    let rules = chain(&script, NAT, "istio-output", "meta l4proto tcp");
    assert!(rules.ends_with(&out), "{script}");
    let rules = chain(&script, NAT, "istio-prerouting", "eth1");
    let through = [
        "iifname \"eth1\" meta l4proto tcp tcp dport 443 counter return",
        "iifname \"eth1\" meta l4proto tcp ip daddr 10.0.0.0/8 counter return",
        "iifname \"eth1\" meta l4proto tcp ip6 daddr fd00::/8 counter return",
        "iifname \"eth1\" meta l4proto tcp meta nfproto ipv4 counter return",
        "iifname \"eth1\" meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001",
        "iifname \"eth1\" meta l4proto tcp counter return",
    ];
    assert_eq!(rules, through);
    let rules = chain(&script, NAT, "istio-prerouting", "");
    let place = |words: &str| rules.iter().position(|rule| rule.contains(words)).unwrap();
    assert!(place("tcp dport 9090 counter accept") < place("redirect to :15006"));
    let rules = chain(&script, MANGLE, "istio-prerouting", "");
    let place = |words: &str| rules.iter().position(|rule| rule.contains(words)).unwrap();
    assert!(place(MARK_REPLIES) < place("tcp dport 9090 counter return"));
    assert!(place("tcp dport 9090 counter return") < place("jump ambit-guard"));
    assert!(place("eth1") < place("jump ambit-guard"));
    let rules = chain(&script, MANGLE, "istio-prerouting", "eth1");
    assert_eq!(rules, through[..4], "what passes by an interface, too");
}

/// A first packet that was lost on its way comes once more, and what was let go is in no redirect that the guard would know it by.
#[test]
fn what_comes_by_an_interface_is_guarded_only_where_it_is_redirected() {
    let capture = Capture {
        interfaces: vec!["eth1".parse().unwrap()],
        exempt: Exempt {
            outbound_ports: vec![443],
            outbound_but: Some(nets(&["10.0.0.0/8", "fd00::/8"])),
            ..Exempt::default()
        },
        ..plain()
    };
    let script = capture.install();
    let rules = chain(&script, MANGLE, "istio-prerouting", "iifname");
    let by_interface = [
        "iifname \"eth1\" meta l4proto tcp tcp dport 443 counter return",
        "iifname \"eth1\" meta l4proto tcp ip daddr 10.0.0.0/8 tcp flags & (fin|syn|rst|ack) == syn jump ambit-guard",
        "iifname \"eth1\" meta l4proto tcp counter return",
    ];
    assert!(rules.starts_with(&by_interface), "{script}");
    assert_eq!(rules.len(), 4, "and then all others: {script}");
}

#[test]
fn where_only_some_addresses_are_captured_the_rest_is_left_alone() {
    let redirected = |but: &[&str]| {
        let capture = Capture {
            exempt: Exempt {
                outbound_but: Some(nets(but)),
                ..Exempt::default()
            },
            interfaces: vec!["eth1".parse().unwrap()],
            ..plain()
        };
        let script = capture.install();
        let rules = script.lines().map(str::trim);
        let rules = rules.filter(|rule| rule.contains("redirect to :15001"));
        rules.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(redirected(&[]), [""; 0]);
    let some = [
        "iifname \"eth1\" meta l4proto tcp ip daddr 10.0.0.0/8 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001",
        "meta l4proto tcp ip daddr != 127.0.0.1 ip daddr 10.0.0.0/8 meta mark & 0xfff != 0x539 tcp flags & (fin|syn|rst|ack) == syn counter redirect to :15001",
    ];
    assert_eq!(redirected(&["10.0.0.0/8", "fd00::/8"]), some);
}

#[test]
fn a_pod_whose_udp_is_carried() {
    let capture = Capture {
        v6: true,
        udp: true,
        exempt: Exempt {
            outbound_ports: vec![443],
            outbound_ranges: nets(&["10.0.0.0/8"]),
            outbound_but: None,
            inbound_ports: vec![9090],
        },
        ..plain()
    };
    let script = capture.install();
    let udp = |rule: &&str| rule.contains("udp");
    let rules: Vec<&str> = script.lines().map(str::trim).filter(udp).collect();
    assert_eq!(
        rules,
        [
            "meta l4proto udp meta mark & 0x1fff == 0x1539 counter return",
            "iifname \"lo\" meta nfproto ipv4 meta l4proto udp meta mark & 0x1fff == 0x1111 counter tproxy ip to 127.0.0.1:15001",
            "meta nfproto ipv4 udp dport 9090 counter return",
            "iifname != \"lo\" meta nfproto ipv4 meta l4proto udp fib daddr type local ct direction original meta mark & 0xfff != 0x539 counter tproxy ip to 127.0.0.1:15006",
            "iifname \"lo\" meta nfproto ipv6 meta l4proto udp meta mark & 0x1fff == 0x1111 counter tproxy ip6 to [::1]:15001",
            "meta nfproto ipv6 udp dport 9090 counter return",
            "iifname != \"lo\" meta nfproto ipv6 meta l4proto udp fib daddr type local ct direction original meta mark & 0xfff != 0x539 counter tproxy ip6 to [::1]:15006",
            "udp dport 443 counter return",
            "meta l4proto udp ip daddr 10.0.0.0/8 counter return",
            "oifname != \"lo\" meta nfproto ipv4 meta l4proto udp udp dport != 53 fib daddr type unicast ct direction original meta mark & 0xfff != 0x539 counter meta mark set meta mark & 0xffffe000 | 0x1111",
            "oifname != \"lo\" meta nfproto ipv6 meta l4proto udp udp dport != 53 fib daddr type unicast ct direction original meta mark & 0xfff != 0x539 counter meta mark set meta mark & 0xffffe000 | 0x1111",
        ]
    );
    let ingress = Capture {
        inbound: false,
        ..capture
    };
    assert!(!ingress.install().contains("15006"));
}

#[test]
fn letting_go_and_removing() {
    insta::assert_snapshot!(release() + "---\n" + &remove(), @r#"
table inet istio-ambient-nat {
	chain istio-prerouting {
	}
}
flush chain inet istio-ambient-nat istio-prerouting
table inet istio-ambient-nat {
	chain istio-output {
	}
}
flush chain inet istio-ambient-nat istio-output
table inet istio-ambient-mangle {
	chain istio-prerouting {
	}
}
flush chain inet istio-ambient-mangle istio-prerouting
table inet istio-ambient-mangle {
	chain istio-output {
	}
}
flush chain inet istio-ambient-mangle istio-output
add rule inet istio-ambient-mangle istio-prerouting meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111
add rule inet istio-ambient-mangle istio-output ct mark & 0xfff == 0x111 counter meta mark set ct mark
---
table inet istio-ambient-nat
delete table inet istio-ambient-nat
table inet istio-ambient-mangle
delete table inet istio-ambient-mangle
table inet istio-ambient-raw
delete table inet istio-ambient-raw
"#);
}

#[test]
fn a_pod_of_one_family_has_no_rule_of_the_other() {
    for (v4, v6, foreign) in [
        (true, false, ["ip6 ", "::1"]),
        (false, true, ["ip ", "127.0.0.1"]),
    ] {
        let script = Capture {
            v4,
            v6,
            dns: true,
            udp: true,
            ..plain()
        }
        .install();
        for text in foreign {
            assert!(!script.contains(text), "{text:?} in {script}");
        }
    }
}

#[test]
fn only_names_of_interfaces_get_into_a_script() {
    for good in ["eth0", "veth-1.2", "br_x", "a@b", "123456789012345"] {
        assert!(good.parse::<Interface>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "1234567890123456",
        "eth*",
        "e h",
        "e\"",
        "e;flush ruleset",
        "é",
        "a/b",
        "a\n",
    ] {
        assert!(bad.parse::<Interface>().is_err(), "{bad:?}");
    }
}

fn exempt() -> impl Strategy<Value = Exempt> {
    let ports = || proptest::collection::vec(any::<u16>(), 0..3);
    let ranges = || {
        let v4 =
            (any::<Ipv4Addr>(), 0..=32u8).prop_map(|(ip, length)| IpNet::new(ip.into(), length));
        let v6 =
            (any::<Ipv6Addr>(), 0..=128u8).prop_map(|(ip, length)| IpNet::new(ip.into(), length));
        proptest::collection::vec(prop_oneof![v4, v6].prop_map(Result::unwrap), 0..3)
    };
    let outbound = (ports(), ranges(), proptest::option::of(ranges()));
    (outbound, ports()).prop_map(
        |((outbound_ports, outbound_ranges, outbound_but), inbound_ports)| Exempt {
            outbound_ports,
            outbound_ranges,
            outbound_but,
            inbound_ports,
        },
    )
}

proptest! {
    /// Whatever the settings: every redirect of TCP is of first packets only, and ztunnel's own
    /// sockets are never sent back to ztunnel.
    #[test]
    fn no_setting_breaks_the_two_promises(
        v4: bool,
        v6: bool,
        dns: bool,
        udp: bool,
        inbound: bool,
        names in proptest::collection::vec("[a-z0-9]{1,15}", 0..3),
        exempt in exempt(),
    ) {
        let interfaces: Vec<Interface> = names.iter().map(|name| name.parse().unwrap()).collect();
        let script = Capture { v4, v6, dns, udp, inbound, interfaces, exempt, probes: Probes::default() }.install();
        for rule in script.lines().filter(|line| line.contains("redirect")) {
            prop_assert!(rule.contains(SYN) || rule.contains("udp dport 53"), "{rule}");
            prop_assert!(rule.contains(NOT_ZTUNNEL) || rule.contains("iifname"), "{rule}");
        }
        prop_assert_eq!(script.contains("jump ambit-guard"), inbound && (v4 || v6));
    }
}
