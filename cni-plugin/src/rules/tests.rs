use proptest::prelude::*;

use super::*;

fn plain() -> Capture {
    Capture {
        v4: true,
        v6: false,
        dns: false,
        inbound: true,
        interfaces: Vec::new(),
        probes: Probes::default(),
    }
}

#[test]
fn a_plain_pod() {
    insta::assert_snapshot!(plain().install());
}

#[test]
fn a_dual_stack_pod_with_dns() {
    let capture = Capture {
        v6: true,
        dns: true,
        ..plain()
    };
    insta::assert_snapshot!(capture.install());
}

#[test]
fn an_ingress_pod_with_a_virtual_machine() {
    let capture = Capture {
        inbound: false,
        interfaces: vec!["eth1".parse().unwrap()],
        ..plain()
    };
    insta::assert_snapshot!(capture.install());
}

#[test]
fn letting_go_and_removing() {
    insta::assert_snapshot!(release() + "---\n" + &remove());
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

proptest! {
    /// Whatever the settings: every redirect of TCP is of first packets only, and ztunnel's own
    /// sockets are never sent back to ztunnel.
    #[test]
    fn no_setting_breaks_the_two_promises(v4: bool, v6: bool, dns: bool, inbound: bool, names in proptest::collection::vec("[a-z0-9]{1,15}", 0..3)) {
        let interfaces: Vec<Interface> = names.iter().map(|name| name.parse().unwrap()).collect();
        let script = Capture { v4, v6, dns, inbound, interfaces, probes: Probes::default() }.install();
        for rule in script.lines().filter(|line| line.contains("redirect")) {
            prop_assert!(rule.contains(SYN) || rule.contains("udp dport 53"), "{rule}");
            prop_assert!(rule.contains(NOT_ZTUNNEL) || rule.contains("iifname"), "{rule}");
        }
        prop_assert_eq!(script.contains("jump ambit-guard"), inbound && (v4 || v6));
    }
}
