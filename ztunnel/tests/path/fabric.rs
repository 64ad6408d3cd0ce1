//! Pods on one switch, whatever node they are on, with the packet rules that the node agent would write.

use std::net::IpAddr;

use lab::{Place, Switch};
use ztunnel::netns::{Netns, Options};

/// A switch in a place of its own; all pods hang on it.
pub(crate) struct Fabric {
    switch: Switch,
    pods: Vec<(String, Place)>,
    _hub: Place,
}

impl Fabric {
    pub(crate) fn new() -> Self {
        let hub = Place::new("hub").unwrap();
        Self {
            switch: Switch::new(&hub).unwrap(),
            pods: Vec::new(),
            _hub: hub,
        }
    }

    /// A namespace with these addresses (10.77.0.0/16, fd77::/64), and capture rules if it is enrolled.
    pub(crate) fn pod(&mut self, name: &str, ips: &[IpAddr], captured: bool) {
        let pod = Place::new(name).unwrap();
        let port = format!("v{}", self.pods.len());
        self.switch.plug(&port, &pod).unwrap();
        let addresses = ips.iter().map(|ip| {
            let prefix = if ip.is_ipv4() { 16 } else { 64 };
            format!("addr add {ip}/{prefix} dev eth0\n")
        });
        let addresses: String = addresses.collect();
        pod.ip(&format!(
            "link set eth0 up\n{addresses}route add default dev eth0\nroute add ::/0 dev eth0\n"
        ))
        .unwrap();
        if captured {
            pod.nft(RULES).unwrap();
            pod.ip(MARKED_IS_LOCAL).unwrap();
            pod.ip6(MARKED_IS_LOCAL).unwrap();
        }
        self.pods.push((name.to_owned(), pod));
    }

    /// Somebody behind an interface of `pod`, whose connections are captured as the pod's own; the address.
    pub(crate) fn behind(&mut self, name: &str, pod: &str) -> IpAddr {
        let (guest, host) = (Place::new(name).unwrap(), self.place(pod));
        host.cable("vm0", &guest).unwrap();
        host.ip("link set vm0 up\naddr add 192.168.77.1/24 dev vm0\n")
            .unwrap();
        host.nft(REROUTE).unwrap();
        guest
            .ip("link set eth0 up\naddr add 192.168.77.2/24 dev eth0\nroute add default via 192.168.77.1\n")
            .unwrap();
        self.pods.push((name.to_owned(), guest));
        [192, 168, 77, 2].into()
    }

    pub(crate) fn place(&self, name: &str) -> &Place {
        let (_, pod) = self.pods.iter().find(|(pod, _)| pod == name).unwrap();
        pod
    }

    /// The namespace for our proxy (marked sockets) or for an app (mark 0).
    pub(crate) fn netns(&self, name: &str, mark: u32) -> Netns {
        let options = Options {
            mark,
            keepalive: None,
            user_timeout: None,
            reuse_port: false,
            ipv6: true,
        };
        Netns::new(self.place(name).open().unwrap().into(), options).unwrap()
    }
}

const MARKED_IS_LOCAL: &str =
    "rule add fwmark 0x111/0xfff pref 32764 lookup 100\nroute add local default dev lo table 100\n";

/// The in-pod rules of docs/wire.md, "Marks and rules in a pod", without DNS and probes.
const RULES: &str = "
table inet t {
  chain mangle-pre { type filter hook prerouting priority mangle
    meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
  }
  chain mangle-out { type route hook output priority mangle
    ct mark & 0xfff == 0x111 meta mark set ct mark
  }
  chain nat-pre { type nat hook prerouting priority dstnat
    fib daddr type local ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
    fib daddr type local ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
  }
  chain nat-out { type nat hook output priority -100
    meta mark & 0xfff == 0x111 meta l4proto tcp accept
    oifname lo ip daddr != 127.0.0.1 accept
    oifname lo ip6 daddr != ::1 accept
    meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 redirect to :15001
    meta l4proto tcp ip6 daddr != ::1 meta mark & 0xfff != 0x539 redirect to :15001
  }
}";

/// What `istio.io/reroute-virtual-interfaces: vm0` adds to them; before the others, as there.
const REROUTE: &str = "
table inet behind {
  chain nat-pre { type nat hook prerouting priority -110
    iifname vm0 meta l4proto tcp redirect to :15001
  }
}";
