//! One connection as the demo tells it. Pure: access log records in, lines out.

use lab::AccessRecord;

use super::screen::{Screen, Tone, bytes};

/// How a connection travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Way {
    /// From one ztunnel to the other, encrypted.
    Tunnelled,
    /// Both pods on one node: handed over inside one ztunnel.
    Joined,
    /// As the program sent it.
    Plain,
}

impl Way {
    pub(super) fn text(self) -> &'static str {
        match self {
            Way::Tunnelled => "tunnelled (mTLS)",
            Way::Joined => "joined in process",
            Way::Plain => "plain",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Way::Tunnelled | Way::Joined => Tone::Good,
            Way::Plain => Tone::Notable,
        }
    }
}

/// A finished connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) way: Way,
    /// The proven identity of the client, without the trust domain; empty when nothing is proven.
    pub(super) identity: String,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) milliseconds: u64,
    pub(super) error: String,
}

impl Flow {
    /// Reads a record. Each connection gives one flow: tunnelled and joined ones are told by the client's side,
    /// what arrives plain by the server's. Refusals are told where they are decided.
    pub(super) fn of(record: &AccessRecord) -> Option<Self> {
        let way = way(record);
        let arrives_plain =
            record.inbound() && way == Way::Plain && !record.field("dst.workload").is_empty();
        if !record.outbound() && !arrives_plain {
            return None;
        }
        // Each end counts from its own side; the line is told from the client's.
        let (sent, received) = if record.outbound() {
            ("bytes_sent", "bytes_recv")
        } else {
            ("bytes_recv", "bytes_sent")
        };
        Some(Self {
            from: name(record, "src.namespace", "src.workload")
                .unwrap_or_else(|| host(record.field("src.addr")).to_owned()),
            to: destination(record),
            way,
            // Plain bytes carry no proof, whatever the client's own proxy knows of it.
            identity: if way == Way::Plain {
                String::new()
            } else {
                identity(record)
            },
            sent: record.number(sent),
            received: record.number(received),
            milliseconds: record
                .field("duration")
                .trim_end_matches("ms")
                .parse()
                .unwrap_or(0),
            error: record.error().to_owned(),
        })
    }

    pub(super) fn header(screen: Screen) {
        let names = [
            "FROM",
            "TO",
            "HOW",
            "PROVEN IDENTITY",
            "SENT",
            "RECEIVED",
            "TOOK",
        ];
        let cells: Vec<_> = WIDTHS
            .into_iter()
            .zip(names)
            .map(|(width, name)| (width, Tone::Faint, name))
            .collect();
        screen.row(&cells);
    }

    pub(super) fn print(&self, screen: Screen) {
        let identity = if self.identity.is_empty() {
            "none"
        } else {
            &self.identity
        };
        let [from, to, way, id, sent, received, took] = WIDTHS;
        screen.row(&[
            (from, Tone::Plain, &self.from),
            (to, Tone::Plain, &self.to),
            (way, self.way.tone(), self.way.text()),
            (
                id,
                if self.identity.is_empty() {
                    Tone::Notable
                } else {
                    Tone::Accent
                },
                identity,
            ),
            (sent, Tone::Plain, &bytes(self.sent)),
            (received, Tone::Plain, &bytes(self.received)),
            (took, Tone::Plain, &format!("{} ms", self.milliseconds)),
        ]);
        if !self.error.is_empty() {
            screen.row(&[(2, Tone::Bad, "✗"), (0, Tone::Bad, &self.error)]);
        }
    }
}

const WIDTHS: [usize; 7] = [15, 23, 17, 21, 8, 8, 8];

fn way(record: &AccessRecord) -> Way {
    if record.field("path") == "in-process" {
        Way::Joined
    } else if !record.field("dst.hbone_addr").is_empty() {
        Way::Tunnelled
    } else {
        Way::Plain
    }
}

fn identity(record: &AccessRecord) -> String {
    record
        .field("src.identity")
        .trim_start_matches("spiffe://cluster.local/")
        .to_owned()
}

fn destination(record: &AccessRecord) -> String {
    let pod = name(record, "dst.namespace", "dst.workload");
    match (short_service(record.field("dst.service")), pod) {
        (Some(service), Some(pod)) => format!("{service} = {pod}"),
        (None, Some(pod)) => pod,
        (Some(service), None) => service,
        (None, None) => record.field("dst.addr").to_owned(),
    }
}

/// `web.shop.svc.cluster.local` → `web.shop`
fn short_service(host: &str) -> Option<String> {
    (!host.is_empty()).then(|| host.trim_end_matches(".svc.cluster.local").to_owned())
}

fn name(record: &AccessRecord, namespace: &str, name: &str) -> Option<String> {
    let (namespace, name) = (record.field(namespace), record.field(name));
    (!name.is_empty()).then(|| format!("{namespace}/{name}"))
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(fields: &str) -> Option<Flow> {
        Flow::of(
            &AccessRecord::parse(&format!("t\tinfo\taccess\tconnection complete\t{fields}"))
                .unwrap(),
        )
    }

    const TUNNELLED: &str = "src.addr=10.244.1.2:1 src.workload=\"mobile\" src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/mobile\" \
        dst.addr=10.244.0.2:15008 dst.hbone_addr=10.244.0.2:8080 dst.service=\"web.shop.svc.cluster.local\" dst.workload=\"web\" \
        dst.namespace=\"shop\" bytes_sent=80 bytes_recv=1200 duration=\"12ms\"";

    #[test]
    fn a_tunnelled_connection_is_told_once_by_its_clients_side() {
        let told = flow(&format!("{TUNNELLED} direction=\"outbound\"")).unwrap();
        assert_eq!(
            (told.from.as_str(), told.to.as_str(), told.way),
            ("shop/mobile", "web.shop = shop/web", Way::Tunnelled)
        );
        assert_eq!(
            (told.identity.as_str(), told.received, told.milliseconds),
            ("ns/shop/sa/mobile", 1200, 12)
        );
        assert_eq!(flow(&format!("{TUNNELLED} direction=\"inbound\"")), None);
    }

    #[test]
    fn a_joined_connection_is_not_taken_for_a_tunnelled_one() {
        let told = flow(&format!(
            "{TUNNELLED} path=\"in-process\" direction=\"outbound\""
        ))
        .unwrap();
        assert_eq!(told.way, Way::Joined);
    }

    #[test]
    fn what_arrives_plain_is_told_by_the_servers_side_without_an_identity() {
        let told = flow("src.addr=10.244.1.9:1 dst.addr=10.244.0.2:8080 dst.workload=\"web\" dst.namespace=\"shop\" bytes_sent=622 bytes_recv=89 direction=\"inbound\"").unwrap();
        assert_eq!(
            (
                told.from.as_str(),
                told.to.as_str(),
                told.way,
                told.identity.as_str()
            ),
            ("10.244.1.9", "shop/web", Way::Plain, "")
        );
    }

    #[test]
    fn a_destination_nobody_knows_is_told_by_its_address() {
        let told =
            flow("src.addr=10.244.1.9:1 dst.addr=10.90.0.3:80 direction=\"outbound\"").unwrap();
        assert_eq!((told.to.as_str(), told.way), ("10.90.0.3:80", Way::Plain));
    }
}
