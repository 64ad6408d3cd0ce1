//! Where a workload is, for locality-aware choice of endpoints.

use api::k8s::labels;
use api::k8s::objects::Node;
use api::workload::Locality;

use super::Labels;

/// Of the pods of a node.
pub fn of_node(node: &Node) -> Option<Locality> {
    let none = Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let of = |label: &str| labels.get(label).cloned().unwrap_or_default();
    known(Locality {
        region: of(labels::REGION),
        zone: of(labels::ZONE),
        subzone: of(labels::SUBZONE),
    })
}

/// Of a WorkloadEntry, which writes it `region/zone/subzone`, the later parts optional.
pub fn of_text(text: &str) -> Option<Locality> {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    known(Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    })
}

fn known(locality: Locality) -> Option<Locality> {
    (locality != Locality::default()).then_some(locality)
}

#[cfg(test)]
mod tests {
    use api::workload::Locality;

    use super::of_text;

    #[test]
    fn a_text_names_region_zone_and_subzone() {
        let locality = |region: &str, zone: &str, subzone: &str| Locality {
            region: region.into(),
            zone: zone.into(),
            subzone: subzone.into(),
        };
        for (text, expected) in [
            ("", None),
            ("r", Some(locality("r", "", ""))),
            ("r/z", Some(locality("r", "z", ""))),
            ("r/z/s", Some(locality("r", "z", "s"))),
            ("r/z/s/t", Some(locality("r", "z", "s/t"))),
        ] {
            assert_eq!(of_text(text), expected, "{text}");
        }
    }
}
