//! A workload read in brief is the workload that the generated decoder reads.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::names::Interner;
use crate::workload::Workload;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-c]{0,3}", 1 => any::<String>()]
}

fn gateway() -> impl Strategy<Value = wire::GatewayAddress> {
    use wire::gateway_address::Destination;
    let host = (text(), text()).prop_map(|(namespace, hostname)| {
        Destination::Hostname(wire::NamespacedHostname {
            namespace,
            hostname,
        })
    });
    let address =
        (text(), address(), any::<Option<u32>>()).prop_map(|(network, address, length)| {
            Destination::Address(wire::NetworkAddress {
                network,
                address: address.into(),
                length,
            })
        });
    let destination = prop_oneof![
        4 => host.prop_map(Some), 4 => address.prop_map(Some), 1 => Just(None)];
    (destination, port_number()).prop_map(|(destination, hbone_mtls_port)| wire::GatewayAddress {
        destination,
        hbone_mtls_port,
    })
}

fn address() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 4),
        4 => prop::collection::vec(any::<u8>(), 16),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ]
}

fn port_number() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 0..65_536u32, 1 => any::<u32>()]
}

fn number(known: i32) -> impl Strategy<Value = i32> {
    prop_oneof![9 => 0..known, 1 => any::<i32>()]
}

/// Those about egress and UDP, and others; what it says is a message, or any bytes.
fn extension() -> impl Strategy<Value = wire::Extension> {
    let name = prop_oneof![
        Just(api::EGRESS_EXTENSION.to_owned()),
        Just(api::UDP_EXTENSION.to_owned()),
        text()
    ];
    let said = (number(3), text()).prop_map(|(mode, set_by)| {
        let said = api::egress::Egress { mode, set_by };
        said.encode_to_vec()
    });
    let any = prop::collection::vec(any::<u8>(), 0..6);
    let config = (text(), prop_oneof![2 => said, 1 => any])
        .prop_map(|(type_url, value)| prost_types::Any { type_url, value });
    (name, prop::option::of(config)).prop_map(|(name, config)| wire::Extension { name, config })
}

fn workload() -> impl Strategy<Value = wire::Workload> {
    let ports = prop::collection::vec(
        (port_number(), port_number(), number(6)).prop_map(
            |(service_port, target_port, app_protocol)| wire::Port {
                service_port,
                target_port,
                app_protocol,
            },
        ),
        0..3,
    )
    .prop_map(|ports| wire::PortList { ports });
    let key = prop_oneof![8 => "[ab]/[ab]{1,2}", 1 => text()];
    let tunnel = (number(2), port_number())
        .prop_map(|(protocol, port)| wire::ApplicationTunnel { protocol, port });
    let locality = any::<[bool; 3]>().prop_map(|[region, zone, subzone]| wire::Locality {
        region: "r".repeat(region.into()),
        zone: "z".repeat(zone.into()),
        subzone: "s".repeat(subzone.into()),
    });
    let texts = prop::collection::vec(text(), 11);
    let numbers = (number(3), number(4), number(2), number(2), any::<bool>());
    (
        (texts, numbers, prop::collection::vec(address(), 0..3)),
        prop::option::of(gateway()),
        prop::option::of(gateway()),
        prop::collection::hash_map(key, ports, 0..3),
        prop::option::of(tunnel),
        prop::option::of(locality),
        (
            any::<Option<u32>>(),
            prop::collection::vec(text(), 0..3),
            prop::collection::vec(extension(), 0..3),
        ),
    )
        .prop_map(
            |(
                (
                    texts,
                    (tunnel_protocol, workload_type, status, network_mode, native_tunnel),
                    addresses,
                ),
                waypoint,
                network_gateway,
                services,
                application_tunnel,
                locality,
                (capacity, authorization_policies, extensions),
            )| {
                let [
                    uid,
                    name,
                    namespace,
                    network,
                    trust_domain,
                    service_account,
                    node,
                    canonical_name,
                    canonical_revision,
                    workload_name,
                    hostname,
                ] = <[String; 11]>::try_from(texts).unwrap();
                wire::Workload {
                    uid,
                    name,
                    namespace,
                    addresses: addresses.into_iter().map(Into::into).collect(),
                    network,
                    tunnel_protocol,
                    trust_domain,
                    service_account,
                    waypoint,
                    node,
                    canonical_name,
                    canonical_revision,
                    workload_type,
                    cluster_id: workload_name.clone(),
                    workload_name,
                    native_tunnel,
                    authorization_policies,
                    status,
                    network_gateway,
                    hostname,
                    services,
                    application_tunnel,
                    locality,
                    network_mode,
                    extensions,
                    capacity,
                }
            },
        )
}

/// What the generated decoder and the checks of its message make of an encoding.
fn the_long_way(encoded: &[u8], names: &mut Interner) -> Option<Workload> {
    let message = wire::Workload::decode(encoded).ok()?;
    Workload::parse(Arc::from(&*message.uid), &message, names).ok()
}

/// Where it is taken, the short way leads to the same.
fn agrees(encoded: &[u8], must: bool) -> Result<(), TestCaseError> {
    let mut names = Interner::default();
    let long = the_long_way(encoded, &mut names);
    match (Brief::read(encoded), long) {
        (Ok(brief), long) => {
            let short = Workload::keep(Arc::from(brief.uid), brief, &mut names);
            prop_assert_eq!(Some(short), long);
        }
        (Err(Unusual), Some(long)) if must => {
            return Err(TestCaseError::fail(format!("not read: {long:?}")));
        }
        (Err(Unusual), _) => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_usual_workload_is_read_in_brief_and_reads_the_same(message in workload()) {
        agrees(&message.encode_to_vec(), true)?;
    }

    #[test]
    fn what_is_read_in_brief_of_any_bytes_is_what_the_generated_decoder_reads(
        messages in prop::collection::vec(workload(), 1..3),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        // One behind the other, they are merged.
        let mut encoded: Vec<u8> = messages.iter().flat_map(|message| message.encode_to_vec()).collect();
        if !encoded.is_empty() {
            for (at, byte) in changes {
                let at = at.index(encoded.len());
                encoded[at] = byte;
            }
        }
        agrees(&encoded, false)?;
    }

    #[test]
    fn a_name_is_what_was_said_whether_the_uid_ends_in_it_or_not(
        mut message in workload(),
        of_the_uid in any::<bool>(),
    ) {
        if of_the_uid {
            message.uid = format!("c//Pod/ns/{}", message.name);
        }
        if let Some(parsed) = the_long_way(&message.encode_to_vec(), &mut Interner::default()) {
            prop_assert_eq!(parsed.name(), message.name);
            prop_assert_eq!(parsed.hostname().map_or("", |host| host), message.hostname);
        }
    }

    /// Of many workloads, in which texts repeat, no two share what differs.
    #[test]
    fn replicas_share_and_others_do_not(messages in prop::collection::vec(workload(), 0..20)) {
        let mut names = Interner::default();
        for message in &messages {
            let alone = the_long_way(&message.encode_to_vec(), &mut Interner::default());
            prop_assert_eq!(the_long_way(&message.encode_to_vec(), &mut names), alone.clone());
            prop_assert_eq!(the_long_way(&message.encode_to_vec(), &mut names), alone);
        }
    }
}
