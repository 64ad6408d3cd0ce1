//! What `/etc/resolv.conf` says that concerns us.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Upstream resolvers and search domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolv {
    /// In the order of the file.
    pub servers: Vec<SocketAddr>,
    /// In the order of the file, lower case, no trailing dot.
    pub search: Vec<String>,
}

impl Resolv {
    /// Reads the file; one that cannot be read names nobody, and the log says so.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "no upstream resolvers; names outside the mesh cannot be answered");
            String::new()
        });
        Self::parse(&text)
    }

    /// Pure: reads the text of a `resolv.conf`; lines that make no sense are skipped, as libc does.
    pub fn parse(text: &str) -> Self {
        let mut resolv = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolv.servers.extend(words.next().and_then(server)),
                // The last of them counts.
                Some("search" | "domain") => {
                    resolv.search = words
                        .map(domain)
                        .filter(|domain| !domain.is_empty())
                        .collect()
                }
                _ => {}
            }
        }
        resolv
    }
}

fn server(word: &str) -> Option<SocketAddr> {
    // A zone (`fe80::1%eth0`) names an interface of our namespace, not of the pod's.
    word.parse::<IpAddr>()
        .ok()
        .map(|ip| SocketAddr::new(ip, 53))
}

fn domain(word: &str) -> String {
    word.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_file_is_understood() {
        let text = "search Istio-System.svc.cluster.local svc.cluster.local. cluster.local # kubelet\n\
                    nameserver 10.96.0.10\n; old\nnameserver fd00::a\nnameserver nonsense\nnameserver\noptions ndots:5\n";
        let resolv = Resolv::parse(text);
        assert_eq!(
            resolv.servers,
            [
                "10.96.0.10:53".parse().unwrap(),
                "[fd00::a]:53".parse().unwrap()
            ]
        );
        assert_eq!(
            resolv.search,
            [
                "istio-system.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local"
            ]
        );
        assert_eq!(Resolv::parse(""), Resolv::default());
    }
}
