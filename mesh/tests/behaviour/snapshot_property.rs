//! Whatever was set, changed and removed, in whatever order and in whatever portions: lookups
//! answer as a plain list of the resources would.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::{security, workload as wire};
use mesh::{Mesh, Network, Snapshot, Update};
use proptest::prelude::*;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const HOSTS: [&str; 3] = ["web", "Web", "db"];
const NETWORKS: [&str; 2] = ["", "n2"];

#[derive(Debug, Clone, PartialEq)]
enum Resource {
    Workload(Box<wire::Workload>),
    Service(Box<wire::Service>),
    Policy(security::Authorization),
}

#[derive(Debug, Clone)]
enum Step {
    Set(Resource),
    Remove(usize),
}

fn of<T: Copy + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(values)
}

fn ip() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0..4u8).prop_map(|last| vec![10, 0, 0, last]),
        (0..3u8).prop_map(|last| {
            let mut v6 = vec![0xfd; 15];
            v6.push(last);
            v6
        }),
    ]
}

fn workload() -> impl Strategy<Value = Resource> {
    let called = prop::option::weighted(0.3, of(&HOSTS));
    let who = (0..6u8, of(&NAMESPACES), of(&NETWORKS), called);
    let flags = (any::<bool>(), 0..3i32, prop::bool::weighted(0.2));
    let services = prop::collection::btree_map((of(&NAMESPACES), of(&HOSTS)), 0..2u32, 0..3);
    let policies = prop::collection::vec((of(&NAMESPACES), 0..3u8), 0..3);
    (
        who,
        flags,
        prop::collection::vec(ip(), 0..3),
        services,
        policies,
        any::<bool>(),
    )
        .prop_map(
            |(
                (uid, namespace, network, called),
                (healthy, tunnel, host_network),
                ips,
                services,
                policies,
                same_pod,
            )| {
                Resource::Workload(Box::new(wire::Workload {
                    uid: match uid {
                        0..3 => format!("uid-{uid}"),
                        _ => format!("c//Pod/{namespace}/{uid}"),
                    },
                    name: if same_pod {
                        "pod".to_owned()
                    } else {
                        format!("pod-{uid}")
                    },
                    namespace: namespace.to_owned(),
                    network: network.to_owned(),
                    hostname: called.unwrap_or_default().to_owned(),
                    node: format!("node-{}", uid % 2),
                    addresses: ips.into_iter().map(Into::into).collect(),
                    status: i32::from(!healthy),
                    tunnel_protocol: tunnel,
                    network_mode: i32::from(host_network),
                    services: services
                        .into_iter()
                        .map(|((namespace, host), target)| {
                            let port = wire::Port {
                                service_port: 80,
                                target_port: target,
                                app_protocol: 0,
                            };
                            (
                                format!("{namespace}/{host}"),
                                wire::PortList { ports: vec![port] },
                            )
                        })
                        .collect(),
                    authorization_policies: policies
                        .into_iter()
                        .map(|(ns, n)| format!("{ns}/p{n}"))
                        .collect(),
                    ..Default::default()
                }))
            },
        )
}

fn service() -> impl Strategy<Value = Resource> {
    let vip = (
        of(&NETWORKS),
        ip(),
        prop_oneof![2 => Just(None), 1 => Just(Some(32)), 2 => (28..32u32).prop_map(Some)],
    );
    let scopes = prop::collection::vec(1..7i32, 0..3);
    (
        of(&NAMESPACES),
        of(&HOSTS),
        prop::collection::vec(vip, 0..3),
        any::<(bool, bool, bool)>(),
        scopes,
        0..4i32,
    )
        .prop_map(
            |(namespace, host, vips, (canonical, private, all), scopes, mode)| {
                let vip =
                    |(network, ip, length): (&str, Vec<u8>, Option<u32>)| wire::NetworkAddress {
                        network: network.to_owned(),
                        address: ip.into(),
                        length,
                    };
                Resource::Service(Box::new(wire::Service {
                    namespace: namespace.to_owned(),
                    hostname: host.to_owned(),
                    addresses: vips.into_iter().map(vip).collect(),
                    canonical,
                    visibility: i32::from(private),
                    load_balancing: Some(wire::LoadBalancing {
                        routing_preference: scopes,
                        mode,
                        health_policy: i32::from(all),
                    }),
                    ..Default::default()
                }))
            },
        )
}

fn policy() -> impl Strategy<Value = Resource> {
    (of(&NAMESPACES), 0..3u8, 0..3i32).prop_map(|(namespace, name, scope)| {
        Resource::Policy(security::Authorization {
            namespace: namespace.to_owned(),
            name: format!("p{name}"),
            scope,
            ..Default::default()
        })
    })
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let resource = prop_oneof![4 => workload(), 3 => service(), 1 => policy()];
    let step =
        prop_oneof![3 => resource.prop_map(Step::Set), 1 => any::<usize>().prop_map(Step::Remove)];
    prop::collection::vec(prop::collection::vec(step, 1..4), 0..25)
}

/// The plain list.
#[derive(Default)]
struct Plain {
    workloads: BTreeMap<String, wire::Workload>,
    services: BTreeMap<String, wire::Service>,
    policies: BTreeMap<String, security::Authorization>,
}

impl Plain {
    /// Takes the steps, and the same as an update. One name at most once per update, for removals
    /// come last there.
    fn take(&mut self, steps: Vec<Step>) -> Update {
        let mut update = Update::default();
        let mut touched = Vec::new();
        for step in steps {
            let name = match &step {
                Step::Set(Resource::Workload(workload)) => workload.uid.clone(),
                Step::Set(Resource::Service(service)) => {
                    format!("{}/{}", service.namespace, service.hostname)
                }
                Step::Set(Resource::Policy(policy)) => {
                    format!("{}/{}", policy.namespace, policy.name)
                }
                Step::Remove(at) => {
                    let known: Vec<_> = self
                        .workloads
                        .keys()
                        .chain(self.services.keys())
                        .chain(self.policies.keys())
                        .collect();
                    known
                        .get(at % (known.len() + 1))
                        .map_or("unknown/name".to_owned(), |name| (*name).clone())
                }
            };
            if touched.contains(&name) {
                continue;
            }
            match step {
                Step::Set(Resource::Workload(workload)) => {
                    update.set_workload((*workload).clone());
                    self.workloads.insert(name.clone(), *workload);
                }
                Step::Set(Resource::Service(service)) => {
                    update.set_service((*service).clone());
                    self.services.insert(name.clone(), *service);
                }
                Step::Set(Resource::Policy(policy)) => {
                    update.set_policy(policy.clone());
                    self.policies.insert(name.clone(), policy);
                }
                Step::Remove(_) => {
                    self.workloads.remove(&name);
                    self.services.remove(&name);
                    self.policies.remove(&name);
                    update.addresses.removed.push((&*name).into());
                    update.authorizations.removed.push((&*name).into());
                }
            }
            touched.push(name);
        }
        update
    }

    fn holder(&self, network: &str, ip: IpAddr) -> Option<&str> {
        let claims = self.workloads.values().filter(|workload| {
            workload.network == network
                && workload.network_mode == 0
                && workload.addresses.iter().any(|held| address(held) == ip)
        });
        let best = claims.min_by_key(|workload| {
            (
                !workload.uid.contains("//Pod/"),
                workload.status != 0,
                workload.tunnel_protocol != 1,
                &workload.uid,
            )
        });
        best.map(|workload| &*workload.uid)
    }

    fn is_node(&self, network: &str, ip: IpAddr) -> bool {
        self.workloads.values().any(|workload| {
            workload.network == network
                && workload.network_mode == 1
                && workload.addresses.iter().any(|held| address(held) == ip)
        })
    }

    fn service_at(&self, network: &str, ip: IpAddr, caller: &str) -> Option<String> {
        let length = |service: &wire::Service| {
            let hits = service
                .addresses
                .iter()
                .filter(|vip| vip.network == network)
                .filter_map(|vip| {
                    let whole = if vip.address.len() == 4 { 32 } else { 128 };
                    let length = vip.length.unwrap_or(whole);
                    let net = ipnet::IpNet::new(address(&vip.address), length as u8).unwrap();
                    net.contains(&ip).then_some(length)
                });
            hits.max()
        };
        let visible = self
            .services
            .values()
            .filter(|service| service.visibility == 0 || service.namespace == caller);
        let best = visible.filter_map(|service| {
            let length = length(service)?;
            Some((
                std::cmp::Reverse(length),
                service.namespace != caller,
                !service.canonical,
                name(service),
            ))
        });
        best.min().map(|(.., name)| name)
    }

    fn service_for_host(&self, host: &str, caller: &str) -> Option<String> {
        let named = self
            .services
            .values()
            .filter(|service| service.hostname.eq_ignore_ascii_case(host));
        let visible =
            named.filter(|service| service.visibility == 0 || service.namespace == caller);
        visible
            .map(|service| {
                (
                    service.namespace != caller,
                    !service.canonical,
                    name(service),
                )
            })
            .min()
            .map(|(.., name)| name)
    }
}

fn name(service: &wire::Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
    }
}

fn check(snapshot: &Snapshot, plain: &Plain) -> Result<(), TestCaseError> {
    let mut uids: Vec<_> = snapshot
        .workloads()
        .map(|workload| workload.uid.to_string())
        .collect();
    uids.sort();
    prop_assert_eq!(uids, plain.workloads.keys().cloned().collect::<Vec<_>>());
    let mut services: Vec<_> = snapshot
        .services()
        .map(|service| service.key().to_string())
        .collect();
    services.sort();
    prop_assert_eq!(services, plain.services.keys().cloned().collect::<Vec<_>>());
    prop_assert_eq!(snapshot.policies().count(), plain.policies.len());

    for bytes in (0..16u8)
        .map(|last| vec![10, 0, 0, last])
        .chain((0..4u8).map(|last| {
            let mut v6 = vec![0xfd; 15];
            v6.push(last);
            v6
        }))
    {
        let ip = address(&bytes);
        for network in NETWORKS {
            let key = Network::new(network);
            let found = snapshot
                .workload_at(&key, ip)
                .map(|workload| &*workload.uid);
            prop_assert_eq!(found, plain.holder(network, ip), "{} {}", network, ip);
            prop_assert_eq!(snapshot.is_node(&key, ip), plain.is_node(network, ip));
            for caller in NAMESPACES {
                let found = snapshot
                    .service_at(&key, ip, caller)
                    .map(|service| service.key().to_string());
                prop_assert_eq!(
                    found,
                    plain.service_at(network, ip, caller),
                    "{} {} {}",
                    network,
                    ip,
                    caller
                );
            }
        }
    }
    for host in HOSTS {
        for namespace in NAMESPACES {
            let named = |workload: &&wire::Workload| {
                workload.namespace == namespace && workload.hostname.eq_ignore_ascii_case(host)
            };
            let expected = plain.workloads.values().filter(named);
            let expected = expected.map(|workload| &*workload.uid).min();
            let found = snapshot.workload_named(namespace, host);
            prop_assert_eq!(found.map(|workload| &*workload.uid), expected);
        }
        for caller in NAMESPACES {
            let found = snapshot
                .service_for_host(host, caller)
                .map(|service| service.key().to_string());
            prop_assert_eq!(found, plain.service_for_host(host, caller));
        }
    }
    for (name, message) in &plain.services {
        let service = snapshot
            .service(&message.namespace, &message.hostname)
            .unwrap();
        let mut found: Vec<_> = snapshot
            .endpoints(service)
            .map(|workload| workload.uid.to_string())
            .collect();
        found.sort();
        let all = message.load_balancing.as_ref().unwrap().health_policy == 1;
        let members = plain
            .workloads
            .values()
            .filter(|workload| workload.services.contains_key(name));
        let expected: Vec<_> = members
            .filter(|workload| all || workload.status == 0)
            .map(|workload| workload.uid.clone())
            .collect();
        prop_assert_eq!(found, expected, "{}", name);
    }
    for workload in plain.workloads.values() {
        let found = snapshot
            .workload_of_pod(
                &workload.namespace,
                &workload.name,
                "default",
                &workload.node,
            )
            .unwrap();
        prop_assert_eq!(&*found.node, &*workload.node);
        let applicable = snapshot.policies_of(snapshot.workload(&workload.uid).unwrap());
        let mut found: Vec<_> = applicable
            .known()
            .map(|policy| policy.key.to_string())
            .collect();
        found.sort();
        let applies = |key: &str, policy: &security::Authorization| match policy.scope {
            0 => true,
            1 if policy.namespace == workload.namespace => true,
            _ => workload
                .authorization_policies
                .iter()
                .any(|named| named == key),
        };
        let expected: Vec<_> = plain
            .policies
            .iter()
            .filter(|(key, policy)| applies(key, policy))
            .map(|(key, _)| key.clone())
            .collect();
        prop_assert_eq!(found, expected);
        let unknown = applicable
            .unknown()
            .all(|name| !plain.policies.contains_key(&**name));
        prop_assert!(unknown);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn lookups_answer_as_a_plain_list_would(portions in steps()) {
        let (mesh, mut writer) = Mesh::new();
        let mut plain = Plain::default();
        let mut before = mesh.load_full();
        let mut at_that_time = Plain::default();
        for (at, steps) in portions.into_iter().enumerate() {
            let update = plain.take(steps);
            prop_assert_eq!(writer.apply(update), vec![]);
            check(&mesh.load(), &plain)?;
            if at == 7 {
                before = mesh.load_full();
                at_that_time = Plain {
                    workloads: plain.workloads.clone(),
                    services: plain.services.clone(),
                    policies: plain.policies.clone(),
                };
            }
        }
        // A snapshot that somebody still holds has not changed.
        check(&before, &at_that_time)?;

        // Nothing is left behind.
        let names: Vec<_> = plain.workloads.keys().chain(plain.services.keys()).chain(plain.policies.keys()).collect();
        let mut update = Update::default();
        update.addresses.removed = names.iter().map(|name| (&***name).into()).collect();
        update.authorizations.removed = update.addresses.removed.clone();
        prop_assert_eq!(writer.apply(update), vec![]);
        prop_assert!(mesh.load().is_empty());
    }
}

#[test]
fn an_address_that_a_pod_has_is_the_pods_whatever_an_entry_says() {
    let (mesh, mut writer) = Mesh::new();
    let (pod, entry) = (
        "Kubernetes//Pod/shop/db-0",
        "Kubernetes/networking.istio.io/WorkloadEntry/aaa/db",
    );
    let at_home = |uid: &str, works: bool| wire::Workload {
        uid: uid.to_owned(),
        name: "db".to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![vec![10, 0, 0, 1].into()],
        status: i32::from(!works),
        tunnel_protocol: i32::from(works),
        ..Default::default()
    };
    let mut update = Update::default();
    update.set_workload(at_home(entry, true));
    update.set_workload(at_home(pod, false));
    assert_eq!(writer.apply(update), vec![]);
    let holder = || {
        let (network, ip) = (Network::new(""), address(&[10, 0, 0, 1]));
        let snapshot = mesh.load();
        let found = snapshot.workload_at(&network, ip);
        found.map(|workload| workload.uid.to_string())
    };
    assert_eq!(holder().as_deref(), Some(pod));
    let mut update = Update::default();
    update.addresses.removed.push(pod.into());
    assert_eq!(writer.apply(update), vec![]);
    assert_eq!(holder().as_deref(), Some(entry), "nobody else has it now");
}
