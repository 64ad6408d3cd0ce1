//! The index by scope prefix must choose what a plain reading of the rules chooses, and as often.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::workload as wire;
use api::workload::load_balancing::{HealthPolicy, Mode, Scope};
use mesh::{
    Client, Locality, Mesh, Network, NoEndpoint, Standing, Update, candidates, pick, pick_but,
    pick_waypoint, waypoint_candidates,
};
use proptest::prelude::*;

const PORT: u16 = 80;

/// An endpoint, in small worlds so that much is equal.
#[derive(Debug, Clone)]
struct Model {
    values: [u8; 6], // region, zone, subzone, node, cluster, network
    healthy: bool,
    capacity: Option<u32>,
    own_target: Option<u32>,
    v4: bool,
    v6: bool,
    gateway: bool,
    hostname: bool,
    application_tunnel: bool,
}

#[derive(Debug, Clone)]
struct Question {
    endpoints: Vec<Model>,
    client: [u8; 6],
    scopes: Vec<usize>,
    mode: Mode,
    health: HealthPolicy,
    families: i32,
    service_target: u32,
    has_port: bool,
    ipv6: bool,
    waypoint: bool,
}

fn model() -> impl Strategy<Value = Model> {
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.8),
        any::<bool>(),
        prop::bool::weighted(0.3),
    );
    (
        prop::array::uniform6(0..2u8),
        prop::bool::weighted(0.8),
        prop_oneof![3 => Just(None), 1 => (0..4u32).prop_map(Some)],
        prop_oneof![
            Just(None),
            Just(Some(0)),
            Just(Some(8080)),
            Just(Some(9090))
        ],
        flags,
        any::<bool>(),
    )
        .prop_map(
            |(
                values,
                healthy,
                capacity,
                own_target,
                (v6, v4, gateway, hostname),
                application_tunnel,
            )| Model {
                values,
                healthy,
                capacity,
                own_target,
                v4,
                v6,
                gateway,
                hostname: hostname && !v4 && !v6,
                application_tunnel,
            },
        )
}

fn question() -> impl Strategy<Value = Question> {
    let mode = prop_oneof![1 => Just(Mode::UnspecifiedMode), 2 => Just(Mode::Strict), 4 => Just(Mode::Failover), 1 => Just(Mode::Passthrough)];
    let scopes = prop_oneof![
        prop::collection::vec(0..6usize, 0..5),
        prop::collection::vec(0..5usize, 0..4).prop_map(|mut rest| {
            rest.insert(0, 5);
            rest
        }),
    ];
    (
        prop::collection::vec(model(), 0..14),
        prop::array::uniform6(0..2u8),
        scopes,
        mode,
        prop_oneof![3 => Just(HealthPolicy::OnlyHealthy), 1 => Just(HealthPolicy::AllowAll)],
        0..4i32,
        prop_oneof![Just(0u32), Just(8080u32)],
        prop::bool::weighted(0.9),
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(
                endpoints,
                client,
                scopes,
                mode,
                health,
                families,
                service_target,
                has_port,
                ipv6,
                waypoint,
            )| Question {
                endpoints,
                client,
                scopes,
                mode,
                health,
                families,
                service_target,
                has_port,
                ipv6,
                waypoint,
            },
        )
}

// ---------------------------------------------------------------- the plain reading

impl Question {
    fn accepts(&self, v6: bool) -> bool {
        match self.families {
            1 => !v6,
            2 => v6,
            _ => true,
        }
    }

    fn target(&self, endpoint: &Model) -> Option<u16> {
        let own = endpoint.own_target.filter(|target| *target != 0);
        let service = Some(self.service_target).filter(|target| *target != 0 && self.has_port);
        let tunnel = (self.waypoint && endpoint.application_tunnel).then_some(u32::from(PORT));
        own.or(service).or(tunnel).map(|port| port as u16)
    }

    fn usable(&self, endpoint: &Model) -> bool {
        let address = (endpoint.v4 && self.accepts(false))
            || (endpoint.v6 && self.accepts(true))
            || endpoint.hostname;
        (endpoint.healthy || self.health == HealthPolicy::AllowAll)
            && self.target(endpoint).is_some()
            && (address || (endpoint.gateway && endpoint.values[5] != self.client[5]))
            && endpoint.capacity != Some(0)
    }

    /// `None`: not to be chosen.
    fn rank(&self, endpoint: &Model) -> Option<usize> {
        let same = |scope: &usize| endpoint.values[*scope] == self.client[*scope];
        match self.mode {
            Mode::UnspecifiedMode | Mode::Passthrough => Some(0),
            Mode::Strict => self.scopes.iter().all(same).then_some(0),
            Mode::Failover => {
                let mut rank = 0;
                for (at, scope) in self.scopes.iter().enumerate() {
                    match (same(scope), at == 0 && *scope == 5) {
                        (true, true) => rank += 1 + self.scopes.len() - 1,
                        (true, false) => rank += 1,
                        (false, true) => {}
                        (false, false) => break,
                    }
                }
                Some(rank)
            }
        }
    }

    /// How often each endpoint is chosen: uid → share.
    fn shares(&self) -> BTreeMap<String, u64> {
        if !self.has_port && !self.waypoint {
            return BTreeMap::new();
        }
        let usable = self
            .endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| self.usable(endpoint));
        let ranked: Vec<_> = usable
            .filter_map(|(at, endpoint)| Some((self.rank(endpoint)?, at, endpoint)))
            .collect();
        let best = ranked.iter().map(|(rank, ..)| *rank).max();
        let chosen = ranked.iter().filter(|(rank, ..)| Some(*rank) == best);
        chosen
            .map(|(_, at, endpoint)| (at.to_string(), u64::from(endpoint.capacity.unwrap_or(1))))
            .collect()
    }
}

// ---------------------------------------------------------------- the messages

fn ip(v6: bool, at: usize) -> Vec<u8> {
    if v6 {
        [0xfd; 15].into_iter().chain([at as u8]).collect()
    } else {
        vec![10, 0, 0, at as u8]
    }
}

fn workload(at: usize, model: &Model) -> wire::Workload {
    let text = |at: usize| model.values[at].to_string();
    let own = model.own_target.map(|target| wire::Port {
        service_port: PORT.into(),
        target_port: target,
        app_protocol: 0,
    });
    let gateway = wire::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: Some(wire::gateway_address::Destination::Address(
            wire::NetworkAddress {
                address: vec![10, 9, 9, 9].into(),
                ..Default::default()
            },
        )),
    };
    wire::Workload {
        uid: at.to_string(),
        addresses: [(false, model.v4), (true, model.v6)]
            .into_iter()
            .filter(|(_, has)| *has)
            .map(|(v6, _)| ip(v6, at).into())
            .collect(),
        hostname: if model.hostname {
            "example.com".to_owned()
        } else {
            String::new()
        },
        locality: Some(wire::Locality {
            region: text(0),
            zone: text(1),
            subzone: text(2),
        }),
        node: text(3),
        cluster_id: text(4),
        network: text(5),
        status: i32::from(!model.healthy),
        capacity: model.capacity,
        network_gateway: model.gateway.then_some(gateway),
        application_tunnel: model.application_tunnel.then(Default::default),
        services: [(
            "ns/web".to_owned(),
            wire::PortList {
                ports: own.into_iter().collect(),
            },
        )]
        .into(),
        ..Default::default()
    }
}

fn service(question: &Question) -> wire::Service {
    let scope = |at: &usize| {
        [
            Scope::Region,
            Scope::Zone,
            Scope::Subzone,
            Scope::Node,
            Scope::Cluster,
            Scope::Network,
        ][*at]
    };
    let port = wire::Port {
        service_port: PORT.into(),
        target_port: question.service_target,
        app_protocol: 0,
    };
    wire::Service {
        namespace: "ns".to_owned(),
        hostname: "web".to_owned(),
        ports: question.has_port.then_some(port).into_iter().collect(),
        ip_families: question.families,
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: question.scopes.iter().map(|at| scope(at).into()).collect(),
            mode: question.mode.into(),
            health_policy: question.health.into(),
        }),
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_endpoint_is_drawn_as_often_as_the_rules_say(question in question(), service_first in any::<bool>()) {
        let (mesh, mut writer) = Mesh::new();
        let mut update = Update::default();
        if service_first {
            update.set_service(service(&question));
        }
        for (at, endpoint) in question.endpoints.iter().enumerate() {
            update.set_workload(workload(at, endpoint));
        }
        if !service_first {
            update.set_service(service(&question));
        }
        prop_assert_eq!(writer.apply(update), vec![]);

        let text = |at: usize| question.client[at].to_string();
        let network = Network::new(text(5));
        let locality = Locality { region: text(0).into(), zone: text(1).into(), subzone: text(2).into() };
        let client = Client {
            network: &network,
            locality: &locality,
            node: &text(3),
            cluster: &text(4),
            namespace: "ns",
            ipv6: question.ipv6,
        };
        let snapshot = mesh.load();
        let service = snapshot.service("ns", "web").unwrap();
        let choose = if question.waypoint { pick_waypoint } else { pick };
        let shares = question.shares();
        let total: u64 = shares.values().sum();
        if total == 0 {
            let error = choose(&snapshot, service, PORT, &client, 7).unwrap_err();
            prop_assert_eq!(error == NoEndpoint::NoPort(PORT), !question.has_port && !question.waypoint);
            let passes = question.mode == Mode::Passthrough && (question.has_port || question.waypoint);
            prop_assert_eq!(error == NoEndpoint::Passthrough, passes);
        }
        let mut drawn = BTreeMap::new();
        for draw in 0..total {
            let endpoint = choose(&snapshot, service, PORT, &client, draw).unwrap();
            let model = &question.endpoints[endpoint.workload.uid.parse::<usize>().unwrap()];
            prop_assert_eq!(Some(endpoint.target_port), question.target(model));
            prop_assert_eq!(endpoint.address.map(|ip| ip.is_ipv6()), expected_family(&question, model));
            *drawn.entry(endpoint.workload.uid.to_string()).or_insert(0) += 1;
        }
        prop_assert_eq!(&drawn, &shares);

        // Who asks why hears of each endpoint, and that those which are drawn can be.
        let told = match question.waypoint {
            true => waypoint_candidates(&snapshot, service, PORT, &client),
            false => candidates(&snapshot, service, PORT, &client).unwrap_or_default(),
        };
        let asked = question.has_port || question.waypoint;
        prop_assert_eq!(told.len(), if asked { question.endpoints.len() } else { 0 });
        let eligible = told.iter().filter(|it| it.standing == Standing::Eligible);
        let eligible: BTreeSet<String> = eligible.map(|it| it.workload.uid.to_string()).collect();
        prop_assert_eq!(eligible, drawn.into_keys().collect::<BTreeSet<_>>());
        for it in told {
            let model = &question.endpoints[it.workload.uid.parse::<usize>().unwrap()];
            if it.standing == Standing::Unhealthy {
                prop_assert!(!model.healthy);
            }
            if it.standing == Standing::NoCapacity {
                prop_assert_eq!(model.capacity, Some(0));
            }
        }
    }
}

/// The caller's family where the service and the endpoint both have it, else the other one.
fn expected_family(question: &Question, model: &Model) -> Option<bool> {
    let has = |v6: bool| question.accepts(v6) && if v6 { model.v6 } else { model.v4 };
    [question.ipv6, !question.ipv6]
        .into_iter()
        .find(|v6| has(*v6))
}

#[test]
fn a_service_of_ten_thousand_endpoints_uses_all_of_them() {
    let (mesh, mut writer) = Mesh::new();
    let mut update = Update::default();
    let template = Model {
        values: [0; 6],
        healthy: true,
        capacity: None,
        own_target: Some(8080),
        v4: true,
        v6: false,
        gateway: false,
        hostname: false,
        application_tunnel: false,
    };
    for at in 0..10_000usize {
        update.set_workload(wire::Workload {
            addresses: vec![vec![10, 0, (at >> 8) as u8, at as u8].into()],
            ..workload(at, &template)
        });
    }
    let question = Question {
        endpoints: vec![],
        client: [0; 6],
        scopes: vec![5, 0, 1],
        mode: Mode::Failover,
        health: HealthPolicy::OnlyHealthy,
        families: 0,
        service_target: 0,
        has_port: true,
        ipv6: false,
        waypoint: false,
    };
    update.set_service(service(&question));
    assert_eq!(writer.apply(update), []);
    let snapshot = mesh.load();
    let web = snapshot.service("ns", "web").unwrap();
    let first = snapshot.workload("0").unwrap();
    let mut seen = std::collections::HashSet::new();
    for draw in 0..10_000 {
        let endpoint = pick(&snapshot, web, PORT, &Client::of(first, false), draw).unwrap();
        let ip: IpAddr = endpoint.workload.addresses[0];
        assert_eq!(endpoint.address, Some(ip));
        seen.insert(endpoint.workload.uid.clone());
    }
    assert_eq!(seen.len(), 10_000);
}

/// What `pick_but` chooses over many draws when these are avoided, of endpoints 0 to 3 with the caller's zone, 4 to 7 with another.
fn chosen(mode: Mode, capacity: Option<u32>, avoided: &[&str]) -> Vec<String> {
    let (mesh, mut writer) = Mesh::new();
    let mut update = Update::default();
    for at in 0..8 {
        let zone = if at < 4 { 1 } else { 0 };
        let model = Model {
            values: [1, zone, 1, 1, 1, 1],
            healthy: true,
            capacity,
            own_target: Some(8080),
            v4: true,
            v6: false,
            gateway: false,
            hostname: false,
            application_tunnel: false,
        };
        update.set_workload(workload(at, &model));
    }
    update.set_service(service(&Question {
        endpoints: vec![],
        client: [1; 6],
        scopes: vec![0, 1],
        mode,
        health: HealthPolicy::OnlyHealthy,
        families: 0,
        service_target: 0,
        has_port: true,
        ipv6: false,
        waypoint: false,
    }));
    assert_eq!(writer.apply(update), []);
    let snapshot = mesh.load();
    let web = snapshot.service("ns", "web").unwrap();
    let client = Client::of(snapshot.workload("0").unwrap(), false);
    let chosen: BTreeSet<String> = (0..4_000)
        .map(|draw| {
            let avoid = |it: &mesh::Endpoint| avoided.contains(&&*it.workload.uid);
            let endpoint = pick_but(&snapshot, web, PORT, &client, draw, &avoid).unwrap();
            endpoint.workload.uid.to_string()
        })
        .collect();
    chosen.into_iter().collect()
}

#[test]
fn whom_the_caller_avoids_is_chosen_only_where_there_is_nobody_else() {
    let near = ["0", "1", "2", "3"];
    let all = ["0", "1", "2", "3", "4", "5", "6", "7"];
    for capacity in [None, Some(100)] {
        assert_eq!(chosen(Mode::Failover, capacity, &[]), near);
        assert_eq!(chosen(Mode::Failover, capacity, &["1"]), ["0", "2", "3"]);
        assert_eq!(chosen(Mode::Failover, capacity, &["0", "1", "3"]), ["2"]);
        // The next zone before somebody who has just failed, but not where the service forbids it.
        assert_eq!(
            chosen(Mode::Failover, capacity, &near),
            ["4", "5", "6", "7"]
        );
        assert_eq!(chosen(Mode::Strict, capacity, &near), near);
        assert_eq!(
            chosen(Mode::UnspecifiedMode, capacity, &near),
            ["4", "5", "6", "7"]
        );
        // All of them: then it is tried all the same, and by the usual rules.
        assert_eq!(chosen(Mode::Failover, capacity, &all), near);
        assert_eq!(chosen(Mode::UnspecifiedMode, capacity, &all), all);
    }
}
