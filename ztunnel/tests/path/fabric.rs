//! Pods made of network namespaces on one bridge, with the packet rules that the node agent would write.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use ztunnel::netns::{Netns, Options};

/// A bridge in a namespace of its own; all pods hang on it, whatever node they are on.
pub(crate) struct Fabric {
    prefix: String,
    names: Vec<String>,
}

impl Fabric {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut fabric = Self {
            prefix: format!("ambit-t-path-{}-{count}", std::process::id()),
            names: Vec::new(),
        };
        let hub = fabric.name("hub");
        shell(&format!(
            "ip netns add {hub}; ip -n {hub} link add br0 type bridge; ip -n {hub} link set br0 up"
        ));
        fabric.names.push(hub);
        fabric
    }

    /// A namespace with these addresses (10.77.0.0/16, fd77::/64), and capture rules if it is enrolled.
    pub(crate) fn pod(&mut self, name: &str, ips: &[IpAddr], captured: bool) {
        let (pod, hub, port) = (self.name(name), self.name("hub"), self.names.len());
        let addresses: String = ips
            .iter()
            .map(|ip| match ip {
                IpAddr::V4(v4) => format!("ip -n {pod} addr add {v4}/16 dev eth0\n"),
                IpAddr::V6(v6) => format!("ip -n {pod} addr add {v6}/64 dev eth0 nodad\n"),
            })
            .collect();
        shell(&format!(
            "ip netns add {pod}
             ip -n {hub} link add v{port} type veth peer name eth0 netns {pod}
             ip -n {hub} link set v{port} master br0 up
             ip -n {pod} link set lo up
             ip -n {pod} link set eth0 up
             {addresses}
             ip -4 -n {pod} route add default dev eth0
             ip -6 -n {pod} route add default dev eth0"
        ));
        if captured {
            shell(&format!(
                "ip netns exec {pod} nft -f - <<'END'\n{RULES}\nEND"
            ));
            shell(&format!(
                "for v in -4 -6; do
                   ip $v -n {pod} rule add fwmark 0x111/0xfff pref 32764 lookup 100
                   ip $v -n {pod} route add local default dev lo table 100
                 done"
            ));
        }
        self.names.push(pod);
    }

    /// The namespace for our proxy (marked sockets) or for an app (mark 0).
    pub(crate) fn netns(&self, name: &str, mark: u32) -> Netns {
        let file = std::fs::File::open(format!("/var/run/netns/{}", self.name(name))).unwrap();
        let options = Options {
            mark,
            keepalive: None,
            user_timeout: None,
            reuse_port: false,
            ipv6: true,
        };
        Netns::new(file.into(), options).unwrap()
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip")
                .args(["netns", "del", name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The in-pod rules of docs/wire.md 1.5.4 without DNS and probes.
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
