//! What is done towards a service: its DestinationRules, and policies of Gateway API, become one policy for each
//! of its ports and subsets that differs from the rest.
//!
//! 1. the rules that hold for a service, as a waypoint's namespace sees it   ([`choose`])
//! 2. rules of the same host add up: the oldest's policy, everybody's subsets ([`Whole::of`])
//! 3. a subset goes before all of the service, field by field; a port's settings inherit nothing ([`Whole::policies`])
//! 4. each field becomes the wire's                                          (`fields`)

pub mod choose;
mod fields;

use std::collections::BTreeSet;

use api::k8s::istio::destination_rule::{
    DestinationRuleSpec, PortTrafficPolicy, Subset, TrafficPolicy,
};
use api::waypoint as wire;

/// Rules of one host and namespace, oldest first, as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Whole<'a> {
    policy: Option<&'a TrafficPolicy>,
    subsets: Vec<&'a Subset>,
}

impl<'a> Whole<'a> {
    /// The oldest policy counts, and of subsets of the same name the oldest.
    pub fn of(rules: impl IntoIterator<Item = &'a DestinationRuleSpec>) -> Self {
        let mut whole = Self::default();
        for rule in rules {
            whole.policy = whole.policy.or(rule.traffic_policy.as_ref());
            for subset in &rule.subsets {
                if !whole.subsets.iter().any(|it| it.name == subset.name) {
                    whole.subsets.push(subset);
                }
            }
        }
        whole
    }

    /// The subsets.
    pub fn subsets(&self) -> impl Iterator<Item = &'a Subset> {
        self.subsets.iter().copied()
    }

    /// For which ports there is something to say: 0 for all that are not named.
    fn ports(&self, subset: Option<&TrafficPolicy>) -> BTreeSet<u32> {
        let settings = |policy: &'a TrafficPolicy| policy.port_level_settings.iter();
        let own = subset.iter().flat_map(|it| &it.port_level_settings);
        let all = self.policy.into_iter().flat_map(settings).chain(own);
        all.filter_map(port).chain([0]).collect()
    }

    /// The policies: port, subset (empty for all of the service), what is done. `namespace` is the rules': its
    /// Secrets are meant.
    pub fn policies(&self, namespace: &str, alike: &Alike<'_>) -> Vec<Policy> {
        let mut all = Vec::new();
        let subsets = self.subsets.iter().map(|it| Some(*it));
        for subset in [None].into_iter().chain(subsets) {
            let over = subset.and_then(|it| it.traffic_policy.as_ref());
            if subset.is_none() && self.policy.is_none() || subset.is_some() && over.is_none() {
                continue;
            }
            for number in self.ports(over) {
                let policy = self.policy(over, number);
                let (policy, faults) = fields::policy(&policy, number != 0, namespace, alike);
                all.push(Policy {
                    port: number,
                    subset: subset.map(|it| it.name.clone()).unwrap_or_default(),
                    policy,
                    faults,
                });
            }
        }
        all
    }

    /// Makes sure that there is a policy for a port: of the whole, and of each subset that has one.
    pub fn fill(
        &self,
        number: u32,
        namespace: &str,
        alike: &Alike<'_>,
        policies: &mut Vec<Policy>,
    ) {
        let own = self.subsets.iter().filter(|it| it.traffic_policy.is_some());
        for subset in [None].into_iter().chain(own.map(|it| Some(*it))) {
            let name = subset.map_or("", |it| it.name.as_str());
            let is_there = |it: &Policy| it.port == number && it.subset == name;
            if policies.iter().any(is_there) {
                continue;
            }
            let over = subset.and_then(|it| it.traffic_policy.as_ref());
            let merged = self.policy(over, number);
            let (policy, faults) = fields::policy(&merged, false, namespace, alike);
            policies.push(Policy {
                port: number,
                subset: name.to_owned(),
                policy,
                faults,
            });
        }
    }

    /// The fields that count for a port: of the port's own settings if there are any, and then no others; else of
    /// the subset, then of the whole.
    fn policy(&self, over: Option<&TrafficPolicy>, number: u32) -> TrafficPolicy {
        let mut merged = TrafficPolicy::default();
        for policy in self.policy.into_iter().chain(over) {
            let take = policy.clone();
            merged.load_balancer = take.load_balancer.or(merged.load_balancer);
            merged.connection_pool = take.connection_pool.or(merged.connection_pool);
            merged.outlier_detection = take.outlier_detection.or(merged.outlier_detection);
            merged.tls = take.tls.or(merged.tls);
            merged.proxy_protocol = take.proxy_protocol.or(merged.proxy_protocol);
            merged.retry_budget = take.retry_budget.or(merged.retry_budget);
            merged.tunnel = take.tunnel.or(merged.tunnel);
            let mut settings = policy.port_level_settings.iter();
            if let Some(own) = settings.find(|it| number != 0 && port(it) == Some(number)) {
                let own = own.clone();
                merged.load_balancer = own.load_balancer;
                merged.connection_pool = own.connection_pool;
                merged.outlier_detection = own.outlier_detection;
                merged.tls = own.tls;
            }
        }
        merged
    }
}

/// The endpoints that have a label as the waypoint's own pods have it, or with that value; by uid, sorted.
pub type Alike<'a> = dyn Fn(&str, Option<&str>) -> Vec<String> + 'a;

/// Whether a rule tells endpoints apart by their labels: subsets, or how near they are.
pub fn tells_apart(rule: &DestinationRuleSpec) -> bool {
    !rule.subsets.is_empty() || priorities(rule).any(fields::asks_who)
}

/// Whether it compares them with those of a waypoint's pods.
pub fn compares(rule: &DestinationRuleSpec) -> bool {
    priorities(rule).any(fields::compares)
}

/// Labels that make endpoints near, wherever it names some.
fn priorities(rule: &DestinationRuleSpec) -> impl Iterator<Item = &str> {
    let subsets = rule.subsets.iter().map(|it| &it.traffic_policy);
    let policies = [&rule.traffic_policy].into_iter().chain(subsets).flatten();
    let balancers = policies.flat_map(|it| {
        let ports = it.port_level_settings.iter().map(|it| &it.load_balancer);
        [&it.load_balancer].into_iter().chain(ports).flatten()
    });
    let settings = balancers.filter_map(|it| it.locality_lb_setting.as_ref());
    settings.flat_map(|it| it.failover_priority.iter().map(String::as_str))
}

/// What of a rule has no effect, and why; each once.
pub fn faults(rule: &DestinationRuleSpec) -> Vec<String> {
    let made = Whole::of([rule]).policies("", &|_, _| Vec::new());
    let mut faults: Vec<String> = made.into_iter().flat_map(|it| it.faults).collect();
    if rule.workload_selector.is_some() {
        faults.push(
            "workloadSelector has no effect: the rule is for all that passes its waypoints, whoever sends it"
                .to_owned(),
        );
    }
    faults.sort_unstable();
    faults.dedup();
    faults
}

fn port(settings: &PortTrafficPolicy) -> Option<u32> {
    let port = settings.port.as_ref()?;
    (port.number != 0).then_some(port.number)
}

/// What is done towards a port of a service or of a subset.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// 0 for all.
    pub port: u32,
    /// Empty for all of the service.
    pub subset: String,
    /// Without the service, which who knows it fills in.
    pub policy: wire::BackendPolicy,
    /// What of it has no effect, and why.
    pub faults: Vec<String>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use api::k8s::istio::destination_rule::{
        ConnectionPool, LoadBalancer, PortSelector, RetryBudget, SimpleBalancer, TcpPool,
    };

    use super::*;

    fn balanced(simple: SimpleBalancer) -> Option<LoadBalancer> {
        Some(LoadBalancer {
            simple: Some(simple),
            ..LoadBalancer::default()
        })
    }

    fn at_most(connections: u32) -> Option<ConnectionPool> {
        Some(ConnectionPool {
            tcp: Some(TcpPool {
                max_connections: Some(connections),
                ..TcpPool::default()
            }),
            ..ConnectionPool::default()
        })
    }

    fn said(policies: &[Policy]) -> Vec<(u32, &str, i32, u32, bool)> {
        let line = |it: &'_ Policy| {
            let policy = &it.policy;
            (
                it.port,
                policy.load_balancer.as_ref().map_or(-1, |it| it.simple),
                policy.limits.as_ref().map_or(0, |it| it.connections),
                policy.retry_budget.is_some(),
            )
        };
        let lines = policies.iter().map(|it| {
            let (port, simple, connections, budget) = line(it);
            (port, it.subset.as_str(), simple, connections, budget)
        });
        lines.collect()
    }

    #[test]
    fn what_no_waypoint_does_about_connections_is_said() {
        let text = "host: web
trafficPolicy:
  connectionPool:
    tcp: {maxConnections: 3, connectTimeout: 1s, tcpKeepalive: {time: 5s}}
    http: {http2MaxRequests: 9, maxRetries: 1, h2UpgradePolicy: UPGRADE, http1MaxPendingRequests: 1, idleTimeout: soon}
";
        let rule: DestinationRuleSpec = serde_saphyr::from_str(text).expect("a spec");
        let said = faults(&rule);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("connectionPool.tcp.tcpKeepalive has no effect on tunnels"));
        assert!(said[1].starts_with("http.idleTimeout: "), "{said:?}");
    }

    #[test]
    fn a_cookie_is_made_only_where_somebody_says_how_long_it_is_good() {
        use wire::consistent_hash::Key;
        for (ttl, said) in [
            ("", (0, true)),
            (", ttl: 0s", (0, false)),
            (", ttl: 2s", (2_000, false)),
        ] {
            let text = format!(
                "host: web
trafficPolicy:
  loadBalancer: {{consistentHash: {{httpCookie: {{name: JSESSIONID{ttl}}}}}}}
"
            );
            let rule: DestinationRuleSpec = serde_saphyr::from_str(&text).expect("a spec");
            let made = Whole::of([&rule])
                .policies("a", &|_, _| Vec::new())
                .remove(0)
                .policy;
            match made.load_balancer.and_then(|it| it.hash?.key) {
                Some(Key::Cookie(it)) => assert_eq!((it.ttl, it.only_read), said, "{ttl}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_rule_that_is_meant_for_some_clients_is_said_to_be_for_all() {
        let text = "{host: web, workloadSelector: {matchLabels: {app: shop}}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}";
        let rule: DestinationRuleSpec = serde_saphyr::from_str(text).expect("a spec");
        let said = faults(&rule);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("workloadSelector has no effect"));
    }

    #[test]
    fn a_cookie_that_is_hashed_is_told_with_its_attributes() {
        use api::waypoint::consistent_hash::Key;
        let text = "host: web
trafficPolicy:
  loadBalancer:
    consistentHash:
      httpCookie: {name: c, path: /cart, ttl: 90s, attributes: [{name: SameSite, value: Strict}, {name: Secure}]}
";
        let rule: DestinationRuleSpec = serde_saphyr::from_str(text).expect("a spec");
        assert_eq!(faults(&rule), Vec::<String>::new());
        let made = Whole::of([&rule]).policies("a", &|_, _| Vec::new());
        let balancer = made[0].policy.load_balancer.as_ref();
        let key = balancer.and_then(|it| it.hash.as_ref()?.key.clone());
        let attribute = |name: &str, value: &str| wire::Header {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let cookie = wire::HashCookie {
            name: "c".to_owned(),
            path: "/cart".to_owned(),
            ttl: 90_000,
            only_read: false,
            attributes: vec![attribute("SameSite", "Strict"), attribute("Secure", "")],
        };
        assert_eq!(key, Some(Key::Cookie(cookie)));
    }

    #[test]
    fn a_subset_goes_before_the_service_and_a_ports_settings_inherit_nothing() {
        let rule = DestinationRuleSpec {
            traffic_policy: Some(TrafficPolicy {
                load_balancer: balanced(SimpleBalancer::RoundRobin),
                connection_pool: at_most(7),
                retry_budget: Some(RetryBudget::default()),
                port_level_settings: vec![PortTrafficPolicy {
                    port: Some(PortSelector { number: 80 }),
                    load_balancer: balanced(SimpleBalancer::Random),
                    ..PortTrafficPolicy::default()
                }],
                ..TrafficPolicy::default()
            }),
            subsets: vec![
                Subset {
                    name: "v1".to_owned(),
                    traffic_policy: Some(TrafficPolicy {
                        load_balancer: balanced(SimpleBalancer::Passthrough),
                        ..TrafficPolicy::default()
                    }),
                    ..Subset::default()
                },
                Subset {
                    name: "v2".to_owned(),
                    labels: BTreeMap::default(),
                    ..Subset::default()
                },
            ],
            ..DestinationRuleSpec::default()
        };
        let policies = Whole::of([&rule]).policies("a", &|_, _| Vec::new());
        assert_eq!(
            said(&policies),
            [
                (0, "", 1, 7, true),
                (80, "", 3, 0, true),
                (0, "v1", 4, 7, true),
                (80, "v1", 4, 0, true),
            ]
        );
        let port = &policies[1].policy;
        assert!(port.limits.is_some() && port.outliers.is_some() && port.tls.is_some());
    }

    #[test]
    fn rules_of_the_same_host_add_up_and_the_oldest_counts() {
        let rule = |connections: Option<u32>, names: &[&str]| DestinationRuleSpec {
            traffic_policy: connections.map(|it| TrafficPolicy {
                connection_pool: at_most(it),
                ..TrafficPolicy::default()
            }),
            subsets: names
                .iter()
                .map(|name| Subset {
                    name: (*name).to_owned(),
                    ..Subset::default()
                })
                .collect(),
            ..DestinationRuleSpec::default()
        };
        let rules = [
            rule(None, &["a"]),
            rule(Some(1), &["a", "b"]),
            rule(Some(2), &["c"]),
        ];
        let whole = Whole::of(&rules);
        assert_eq!(
            whole
                .subsets()
                .map(|it| it.name.as_str())
                .collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        let policies = whole.policies("a", &|_, _| Vec::new());
        assert_eq!(said(&policies), [(0, "", -1, 1, false)]);
    }

    #[test]
    fn endpoints_are_near_by_any_label_and_by_those_of_places_as_proxies_know_them() {
        let spec = serde_saphyr::from_str(
            "host: web
trafficPolicy:
  loadBalancer:
    localityLbSetting:
      failoverPriority: [topology.istio.io/network, topology.kubernetes.io/zone=b, team, tier=gold, other=]
",
        );
        let rule: DestinationRuleSpec = spec.expect("a spec");
        let alike = |label: &str, value: Option<&str>| vec![format!("{label}={value:?}")];
        let made = Whole::of([&rule]).policies("a", &alike).remove(0).policy;
        let locality = made.load_balancer.and_then(|it| it.locality);
        let all = locality.expect("a setting").priority;
        let said = all.iter().map(|it| {
            let who = it.workloads.iter().flat_map(|it| &it.uids).cloned();
            (it.by().as_str_name(), it.value.clone(), who.collect())
        });
        let said: Vec<(&str, Option<String>, Vec<String>)> = said.collect();
        let who = |text: &str| ("WORKLOADS", None, vec![text.to_owned()]);
        assert_eq!(
            said,
            [
                ("NETWORK", None, vec![]),
                ("ZONE", Some("b".to_owned()), vec![]),
                who("team=None"),
                who("tier=Some(\"gold\")"),
                who("other=Some(\"\")"),
            ]
        );
        assert!(tells_apart(&rule) && compares(&rule));
        assert_eq!(faults(&rule), [""; 0]);
        for (priority, apart) in [("kubernetes.io/hostname", false), ("tier=gold", true)] {
            let text = format!(
                "host: web
trafficPolicy:
  portLevelSettings:
  - port: {{number: 80}}
    loadBalancer: {{localityLbSetting: {{failoverPriority: ['{priority}']}}}}
"
            );
            let rule: DestinationRuleSpec = serde_saphyr::from_str(&text).expect("a spec");
            assert_eq!((tells_apart(&rule), compares(&rule)), (apart, false));
        }
    }
}
