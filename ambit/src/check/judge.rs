//! What the facts mean for a mesh. Pure.

use super::facts::{Facts, NodeFacts};
use super::idle::{Annotated, Found};
use super::{Item, State};
use crate::network_policy::in_the_way;

/// Oldest Kubernetes whose API this mesh uses.
const OLDEST: (u32, u32) = (1, 32);
/// Oldest kernel: SYN-only redirects need nf_tables with its NAT expressions for both families in
/// one table (`inet` NAT, 5.2), and the guard beside them answers with a reset before anything is routed, which is allowed
/// from 5.9 on (`reject` in `prerouting`). An older one refuses the rules of every pod.
const OLDEST_KERNEL: (u32, u32) = (5, 9);
/// From here on connections that a closing listener has not taken yet go to its successor
/// (`tcp_migrate_req`).
const MIGRATES: (u32, u32) = (5, 14);

/// All items, the good ones too: a check that prints nothing has perhaps looked at nothing.
pub(super) fn items(facts: &Facts) -> Vec<Item> {
    let mut items = vec![version(facts), rights(facts)];
    items.extend(meshes(facts));
    items.extend(nodes(&facts.nodes));
    items.extend(plugins(facts));
    items.extend(policies(facts));
    items.push(gateway_api(facts));
    items.extend(facts.idle.iter().map(without_effect));
    items.extend(facts.annotated.iter().map(annotated));
    items
}

fn good(found: impl Into<String>) -> Item {
    Item {
        state: State::Good,
        found: found.into(),
        remedy: String::new(),
    }
}

fn doubt(found: impl Into<String>, remedy: impl Into<String>) -> Item {
    Item {
        state: State::Doubt,
        found: found.into(),
        remedy: remedy.into(),
    }
}

fn bad(found: impl Into<String>, remedy: impl Into<String>) -> Item {
    Item {
        state: State::Bad,
        found: found.into(),
        remedy: remedy.into(),
    }
}

fn version(facts: &Facts) -> Item {
    let found = format!("Kubernetes {}.{}", facts.version.0, facts.version.1);
    if facts.version < OLDEST {
        return bad(
            found,
            format!("at least {}.{} is needed", OLDEST.0, OLDEST.1),
        );
    }
    good(found)
}

fn rights(facts: &Facts) -> Item {
    if facts.forbidden.is_empty() {
        return good("rights to install");
    }
    bad(
        format!("no right to {}", facts.forbidden.join(", ")),
        "installing needs cluster-admin",
    )
}

fn meshes(facts: &Facts) -> Vec<Item> {
    if facts.ours {
        return vec![good("this mesh is installed; ambit status tells how it is")];
    }
    if facts.other_meshes.is_empty() {
        return vec![good("no other mesh")];
    }
    let remedy = "two meshes would both capture traffic: remove the other first";
    facts
        .other_meshes
        .iter()
        .map(|seen| bad(format!("another mesh: {seen}"), remedy))
        .collect()
}

fn nodes(nodes: &[NodeFacts]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut kernels: Vec<&str> = Vec::new();
    for node in nodes {
        let name = format!("node {}", node.name);
        if node.system != "linux" {
            items.push(doubt(
                format!("{name} runs {}", node.system),
                "its pods stay outside the mesh",
            ));
            continue;
        }
        if !matches!(node.architecture.as_str(), "amd64" | "arm64") {
            items.push(bad(
                format!("{name} is {}", node.architecture),
                "images are for amd64 and arm64",
            ));
        }
        if !node.ready {
            items.push(doubt(
                format!("{name} is not Ready"),
                "the mesh waits for it",
            ));
        }
        match kernel(&node.kernel) {
            Some(version) if version < OLDEST_KERNEL => items.push(bad(
                format!("{name} runs kernel {}", node.kernel),
                format!("at least {}.{} is needed", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
            )),
            Some(version) if version < MIGRATES => items.push(doubt(
                format!("{name} runs kernel {}", node.kernel),
                "upgrading ztunnel may refuse a few new connections there; kernels from 5.14 on do not",
            )),
            Some(_) => kernels.push(&node.kernel),
            None => items.push(doubt(format!("{name} does not tell its kernel"), "at least 5.9 is needed")),
        }
        if node.runtime.starts_with("docker://") {
            items.push(doubt(
                format!("{name} runs {}", node.runtime),
                "only runtimes that call CNI plugins enrol pods as they start",
            ));
        }
    }
    if nodes.is_empty() {
        items.push(bad("no nodes", "pods need one"));
    }
    kernels.sort_unstable();
    kernels.dedup();
    if !kernels.is_empty() {
        items.push(good(format!("kernels {}", kernels.join(", "))));
    }
    items
}

fn kernel(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn plugins(facts: &Facts) -> Vec<Item> {
    let mut items: Vec<Item> = match facts.plugins.as_slice() {
        [] => vec![doubt(
            "no network plugin known by name",
            "the node agent needs a CNI configuration in /etc/cni/net.d of each node (another place: --cni-conf-dir)",
        )],
        known => vec![good(format!("network plugin {}", known.join(", ")))],
    };
    let Some(cilium) = &facts.cilium else {
        return items;
    };
    let is = |key: &str, value: &str| cilium.get(key).is_some_and(|found| found == value);
    if is("cni-exclusive", "true") || !cilium.contains_key("cni-exclusive") {
        items.push(bad(
            "Cilium removes other plugins from the CNI configuration",
            "set cni.exclusive=false in Cilium's values",
        ));
    }
    if is("enable-bpf-masquerade", "true") {
        items.push(bad(
            "Cilium masquerades in BPF: answers to kubelet's probes do not find back",
            "set bpf.masquerade=false in Cilium's values",
        ));
    }
    if is("kube-proxy-replacement", "true") && !is("bpf-lb-sock-hostns-only", "true") {
        items.push(bad(
            "Cilium replaces kube-proxy inside pods: the mesh would never see service addresses",
            "set socketLB.hostNamespaceOnly=true in Cilium's values",
        ));
    }
    items
}

fn policies(facts: &Facts) -> Vec<Item> {
    let found = in_the_way(&facts.policies);
    if found.is_empty() {
        return vec![good("no NetworkPolicy blocks the tunnel")];
    }
    let remedy = "allow TCP 15008 beside the ports it names, before the namespace is enrolled";
    found
        .iter()
        .map(|policy| doubt(policy.reason(), remedy))
        .collect()
}

fn gateway_api(facts: &Facts) -> Item {
    if facts.gateway_api {
        return good("Gateway API");
    }
    doubt(
        "no Gateway API",
        "only waypoints and gateways need its custom resources; the rest works without",
    )
}

/// Names of objects that are told.
const TOLD: usize = 3;

fn without_effect(found: &Found) -> Item {
    let (count, kind) = (found.objects.len(), found.kind.kind);
    let (group, names) = (found.kind.group, told(&found.objects));
    doubt(
        format!("{count} of {kind} ({group}) without effect: {names}"),
        found.kind.instead,
    )
}

fn annotated(found: &Annotated) -> Item {
    let (count, name) = (found.pods.len(), found.annotation.name);
    let pods = told(&found.pods);
    doubt(
        format!("annotation {name} of {count} pods without effect: {pods}"),
        found.annotation.instead,
    )
}

/// The first names.
fn told(names: &[String]) -> String {
    let first = names.iter().take(TOLD).map(String::as_str);
    let more = (names.len() > TOLD).then_some("…");
    first.chain(more).collect::<Vec<&str>>().join(", ")
}

#[cfg(test)]
mod tests {
    use api::k8s::idle;

    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            name: "n1".into(),
            system: "linux".into(),
            kernel: "6.1.0-28-amd64".into(),
            architecture: "amd64".into(),
            runtime: "containerd://1.7".into(),
            ready: true,
        }
    }

    fn fit() -> Facts {
        Facts {
            version: (1, 34),
            nodes: vec![node()],
            plugins: vec!["kindnet".into()],
            gateway_api: true,
            ..Facts::default()
        }
    }

    #[test]
    fn a_fit_cluster_is_good_in_every_respect() {
        let items = items(&fit());
        assert!(
            items.iter().all(|item| item.state == State::Good),
            "{items:?}"
        );
        assert!(items.len() >= 6);
    }

    #[test]
    fn what_would_have_no_effect_is_told_with_what_would() {
        let objects = ["a/one", "a/two", "b/one", "b/two"].map(String::from);
        let kind = *idle::of("networking.istio.io/v1", "Sidecar").unwrap();
        let spoilt = Facts {
            idle: vec![Found {
                kind,
                objects: objects.into(),
            }],
            ..fit()
        };
        let items = items(&spoilt);
        let item = items.last().unwrap();
        assert_eq!(item.state, State::Doubt);
        assert_eq!(
            item.found,
            "4 of Sidecar (networking.istio.io) without effect: a/one, a/two, b/one, …"
        );
        assert!(item.remedy.contains("ambit.io/egress"), "{item:?}");
    }

    #[test]
    fn annotations_of_sidecars_that_would_have_no_effect_are_told_with_what_is_so_instead() {
        let annotation = idle::IDLE_ANNOTATIONS[0];
        let annotated = |pods: &[&str]| Annotated {
            annotation,
            pods: pods.iter().map(|it| (*it).to_owned()).collect(),
        };
        let spoilt = Facts {
            annotated: vec![annotated(&["a/one", "b/two"])],
            ..fit()
        };
        let items = items(&spoilt);
        let item = items.last().unwrap();
        assert_eq!(item.state, State::Doubt);
        assert_eq!(
            item.found,
            "annotation traffic.sidecar.istio.io/includeInboundPorts of 2 pods without effect: a/one, b/two"
        );
        assert!(
            item.remedy
                .contains("all that comes to the pod is captured")
        );
    }

    #[test]
    fn each_obstacle_is_found_and_comes_with_a_remedy() {
        type Spoil = fn(&mut Facts);
        let cilium = |pairs: &[(&str, &str)]| {
            Some(
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            )
        };
        let cases: [(Spoil, State, &str); 10] = [
            (|f| f.version = (1, 27), State::Bad, "Kubernetes 1.27"),
            (
                |f| f.forbidden = vec!["create namespaces".into()],
                State::Bad,
                "create namespaces",
            ),
            (
                |f| f.other_meshes = vec!["Deployment linkerd/linkerd-destination".into()],
                State::Bad,
                "linkerd",
            ),
            (|f| f.nodes[0].kernel = "4.19.0".into(), State::Bad, "4.19"),
            (|f| f.nodes[0].kernel = "5.8.18".into(), State::Bad, "5.8"),
            (
                |f| f.nodes[0].kernel = "5.10.1".into(),
                State::Doubt,
                "5.10",
            ),
            (
                |f| f.nodes[0].system = "windows".into(),
                State::Doubt,
                "windows",
            ),
            (|f| f.nodes.clear(), State::Bad, "no nodes"),
            (|f| f.plugins.clear(), State::Doubt, "no network plugin"),
            (|f| f.gateway_api = false, State::Doubt, "Gateway API"),
        ];
        for (spoil, state, text) in cases {
            let mut facts = fit();
            spoil(&mut facts);
            let items = items(&facts);
            let found = items.iter().find(|item| item.found.contains(text));
            assert!(
                found.is_some_and(|item| item.state == state && !item.remedy.is_empty()),
                "{text}: {items:?}"
            );
        }
        let mut facts = fit();
        facts.cilium = cilium(&[
            ("cni-exclusive", "false"),
            ("kube-proxy-replacement", "true"),
        ]);
        assert!(
            items(&facts)
                .iter()
                .any(|item| item.state == State::Bad && item.remedy.contains("hostNamespaceOnly"))
        );
        facts.cilium = cilium(&[("cni-exclusive", "false")]);
        assert!(items(&facts).iter().all(|item| item.state == State::Good));
    }

    #[test]
    fn a_kernel_is_known_by_its_first_two_numbers() {
        assert_eq!(kernel("6.18.35-generic"), Some((6, 18)));
        assert_eq!(kernel("5.4"), Some((5, 4)));
        assert_eq!(kernel(""), None);
    }
}
