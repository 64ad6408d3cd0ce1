//! A resource as it goes to proxies: encoded once, always to the same bytes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::objects::ObjectKey;
use api::security::Authorization;
use api::workload::{NetworkAddress, PortList, Service, Workload};
use bytes::{Buf, BufMut, Bytes};
use mesh::names::host_name;
use prost::Message;
use prost::encoding::{self, WireType};

/// A resource, encoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its xDS name.
    pub name: Arc<str>,
    /// The encoded `istio.workload.Address`, `istio.security.Authorization` or
    /// `ambit.waypoint.v1.Resource`. Map entries are in
    /// the order of their keys, so equal content is equal bytes.
    pub encoded: Bytes,
    /// Other names by which proxies ask for it: `network/ip`, or `network/ip/length`; a service by its host alone as well.
    pub aliases: Arc<[String]>,
}

impl Resource {
    /// Of a workload.
    pub fn workload(mut workload: Workload) -> Self {
        let name = workload.uid.as_str().into();
        // Also those of one that is on its node's network: who asks for a node's address learns that it is one.
        let own = workload.addresses.iter();
        let aliases = own
            .filter_map(|address| alias(&workload.network, address, None))
            .collect();
        let services: BTreeMap<String, PortList> =
            std::mem::take(&mut workload.services).into_iter().collect();
        let mut body = workload.encode_to_vec();
        encoding::btree_map::encode(
            encoding::string::encode,
            encoding::string::encoded_len,
            encoding::message::encode,
            encoding::message::encoded_len,
            WORKLOAD_SERVICES,
            &services,
            &mut body,
        );
        Self {
            name,
            encoded: within(ADDRESS_WORKLOAD, &body),
            aliases,
        }
    }

    /// Of a service.
    pub fn service(service: &Service) -> Self {
        let aliases = service.addresses.iter().filter_map(
            |NetworkAddress {
                 network,
                 address,
                 length,
             }| alias(network, address, *length),
        );
        Self {
            name: format!("{}/{}", service.namespace, service.hostname).into(),
            aliases: aliases.chain([host_name(&service.hostname)]).collect(),
            encoded: within(ADDRESS_SERVICE, &service.encode_to_vec()),
        }
    }

    /// What a waypoint is told beyond services and workloads. Its name is [`waypoint_name`].
    pub fn waypoint(gateway: &ObjectKey, resource: &api::waypoint::Resource) -> Self {
        Self {
            name: waypoint_name(gateway, &resource.key),
            encoded: resource.encode_to_vec().into(),
            aliases: Arc::new([]),
        }
    }

    /// The same for several waypoints; they share the body.
    pub fn waypoints<'a>(
        gateways: impl IntoIterator<Item = &'a ObjectKey>,
        resource: &api::waypoint::Resource,
    ) -> Vec<Self> {
        let encoded: Bytes = resource.encode_to_vec().into();
        let of = |gateway: &ObjectKey| Self {
            name: waypoint_name(gateway, &resource.key),
            encoded: encoded.clone(),
            aliases: Arc::new([]),
        };
        gateways.into_iter().map(of).collect()
    }

    /// Of a policy.
    pub fn authorization(policy: &Authorization) -> Self {
        Self {
            name: format!("{}/{}", policy.namespace, policy.name).into(),
            encoded: policy.encode_to_vec().into(),
            aliases: Arc::new([]),
        }
    }
}

/// The xDS name of a waypoint's resource: in front of its key the Gateway that it is for, so that what
/// one waypoint is sent is a range of an ordered map.
pub fn waypoint_name(gateway: &ObjectKey, key: &str) -> Arc<str> {
    format!("{}/{}/{key}", gateway.namespace, gateway.name).into()
}

/// Field numbers of the wire: prost has no map with an order for one field alone.
const ADDRESS_WORKLOAD: u32 = 1;
const ADDRESS_SERVICE: u32 = 2;
const WORKLOAD_SERVICES: u32 = 22;

/// An `Address` around an encoded message.
fn within(field: u32, body: &[u8]) -> Bytes {
    let mut whole = Vec::with_capacity(body.len() + 8);
    encoding::encode_key(field, WireType::LengthDelimited, &mut whole);
    encoding::encode_varint(body.len() as u64, &mut whole);
    whole.put_slice(body);
    whole.into()
}

fn alias(network: &str, mut address: &[u8], length: Option<u32>) -> Option<String> {
    let ip: IpAddr = match address.remaining() {
        4 => address.get_u32().to_be_bytes().into(),
        16 => address.get_u128().to_be_bytes().into(),
        _ => return None,
    };
    Some(match length {
        Some(length) => format!("{network}/{ip}/{length}"),
        None => format!("{network}/{ip}"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use api::workload::{Address, PortList, Service, Workload, address::Type};
    use proptest::prelude::*;
    use prost::Message;

    use super::Resource;

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same_and_always_has_the_same_bytes(names in proptest::collection::btree_set("[a-z]{0,5}", 0..12)) {
            let services = |names: &mut dyn Iterator<Item = &String>| -> HashMap<String, PortList> {
                names.map(|name| (name.clone(), PortList::default())).collect()
            };
            let workload = |services| Workload { uid: "u".into(), name: "n".into(), services, ..Workload::default() };
            let forward = workload(services(&mut names.iter()));
            let backward = workload(services(&mut names.iter().rev()));
            let encoded = Resource::workload(forward.clone()).encoded;
            prop_assert_eq!(&encoded, &Resource::workload(backward).encoded);
            let decoded = Address::decode(encoded).expect("our own encoding");
            prop_assert_eq!(decoded.r#type, Some(Type::Workload(forward)));
        }
    }

    #[test]
    fn a_service_decodes_to_the_same() {
        let service = Service {
            namespace: "a".into(),
            hostname: "b".into(),
            canonical: true,
            ..Service::default()
        };
        let resource = Resource::service(&service);
        assert_eq!(&*resource.name, "a/b");
        assert_eq!(
            Address::decode(resource.encoded)
                .expect("our own encoding")
                .r#type,
            Some(Type::Service(service))
        );
    }
}
