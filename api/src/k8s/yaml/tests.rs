//! Documents, lines and reasons.

use super::{Parsed, documents, parse};
use crate::k8s::objects::{Kind, Object, ObjectKey};

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: alpha}}\nspec:\n{spec}\n"
    )
}

fn peer(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: alpha}}\nspec:\n{spec}\n"
    )
}

fn entry(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: p, namespace: alpha}}\nspec:\n{spec}\n"
    )
}

fn workload(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: p, namespace: alpha}}\nspec:\n{spec}\n"
    )
}

/// Line and reason of every fault of `text`.
fn faults(text: &str) -> Vec<(usize, String)> {
    parse(text)
        .into_iter()
        .filter_map(|parsed| match parsed {
            Parsed::Fault { line, reason, .. } => Some((line, reason)),
            _ => None,
        })
        .collect()
}

#[test]
fn documents_are_split_at_markers_and_know_their_line() {
    let text = "# only a comment\n---\na: 1\n--- # a marker too\nb: |\n  ---\n  text\n---\n\n# nothing\n---\nc: --- \n...\n";
    let lines: Vec<(usize, &str)> = documents(text)
        .map(|document| (document.line, document.text))
        .collect();
    assert_eq!(
        lines,
        [
            (2, "---\na: 1\n"),
            (4, "--- # a marker too\nb: |\n  ---\n  text\n"),
            (11, "---\nc: --- \n...\n")
        ]
    );
}

#[test]
fn one_bad_document_spoils_no_other() {
    let good = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n";
    let parsed = parse(&format!("{good}---\n]\n---\n{good}"));
    assert_eq!(parsed.len(), 3);
    assert!(matches!(parsed[0], Parsed::Object { line: 1, .. }));
    assert!(
        matches!(
            parsed[1],
            Parsed::Fault {
                line: 5,
                object: None,
                ..
            }
        ),
        "{:?}",
        parsed[1]
    );
    assert!(matches!(parsed[2], Parsed::Object { line: 6, .. }));
}

#[test]
fn unknown_kinds_and_versions_are_ignored() {
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("v2", "Pod"),
        ("serving.knative.dev/v1", "Service"),
        ("gateway.networking.k8s.io/v1", "UDPRoute"),
    ] {
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{anything: goes}}\n"
        );
        assert_eq!(
            parse(&text),
            [Parsed::Ignored {
                kind: format!("{version}/{kind}")
            }]
        );
    }
}

#[test]
fn an_object_without_a_namespace_is_in_default_and_a_cluster_object_in_none() {
    let text = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: a}\n";
    let keys: Vec<ObjectKey> = parse(text)
        .into_iter()
        .filter_map(|parsed| match parsed {
            Parsed::Object { object, .. } => Some(object.key()),
            _ => None,
        })
        .collect();
    assert_eq!(
        keys,
        [
            ObjectKey::new(Kind::ServiceAccount, "default", "a"),
            ObjectKey::new(Kind::Node, "", "a")
        ]
    );
}

#[test]
fn a_list_is_its_items() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: NO}\n";
    let parsed = parse(text);
    assert!(
        matches!(
            &parsed[0],
            Parsed::Object {
                object: Object::ServiceAccount(_),
                line: 4
            }
        ),
        "{:?}",
        parsed[0]
    );
    assert!(
        matches!(&parsed[1], Parsed::Fault { line: 7, .. }),
        "{:?}",
        parsed[1]
    );
}

#[test]
fn json_is_read_like_yaml() {
    let text = "{\n \"apiVersion\": \"v1\",\n \"kind\": \"Pod\",\n \"metadata\": {\"name\": \"a\"},\n \"spec\": {\"containers\": 7}\n}\n";
    assert_eq!(
        faults(text)
            .iter()
            .map(|(line, _)| *line)
            .collect::<Vec<_>>(),
        [5]
    );
}

#[test]
fn port_numbers_as_keys_need_no_quotes() {
    let text = peer(
        "  selector: {matchLabels: {app: a}}\n  portLevelMtls:\n    8080: {mode: STRICT}\n    '8081': {mode: DISABLE}",
    );
    let parsed = parse(&text);
    let Parsed::Object {
        object: Object::PeerAuthentication(policy),
        ..
    } = &parsed[0]
    else {
        panic!("{parsed:?}")
    };
    assert_eq!(
        policy.spec.port_level_mtls.keys().collect::<Vec<_>>(),
        ["8080", "8081"]
    );
}

/// Each is refused, on the line given (the spec begins on line 5), for the reason given.
#[test]
fn what_an_api_server_would_refuse_is_refused_with_its_line() {
    let table = [
        (policy("  action: FORBID"), 5, "FORBID"),
        (policy("  rulez: []"), 5, "rulez"),
        (policy("  rules:\n  - from:\n    - source:\n        ipBlocks:\n        - 10.0.0.0/8\n        - 10.0.0.0/33"), 10, "10.0.0.0/33"),
        (policy("  rules:\n  - from:\n    - source: {notIpBlocks: [nowhere]}"), 7, "nowhere"),
        (policy("  rules:\n  - from:\n    - source: {}"), 7, "without fields"),
        (policy("  rules:\n  - from: []"), 6, "empty list"),
        (policy("  rules:\n  - from:\n    - source: {principals: []}"), 7, "empty list"),
        (policy("  rules:\n  - from:\n    - source: {principals: ['']}"), 7, "matches nothing"),
        (policy("  rules:\n  - from:\n    - source: {serviceAccounts: [a/b/c]}"), 7, "a/b/c"),
        (policy("  rules:\n  - from:\n    - source: {serviceAccounts: [a], namespaces: [b]}"), 7, "combined"),
        (policy("  rules:\n  - to:\n    - operation:\n        ports: ['80', '99999']"), 8, "99999"),
        (policy("  rules:\n  - to:\n    - operation: {}"), 7, "without fields"),
        (policy("  rules:\n  - when:\n    - key: source.ip\n      values: [10.0.0]"), 8, "10.0.0"),
        (policy("  rules:\n  - when:\n    - key: destination.port\n      notValues: [http]"), 8, "http"),
        (policy("  rules:\n  - when:\n    - key: source.namespace"), 7, "values"),
        (policy("  action: CUSTOM"), 5, "provider"),
        (policy("  provider: {name: x}"), 5, "CUSTOM"),
        (policy("  selector: {matchLabels: {app: a}}\n  targetRefs: [{kind: Service, name: a}]"), 5, "only one"),
        (policy("  selector: {matchLabels: {app: 'a*'}}"), 5, "wildcards"),
        (peer("  mtls: {mode: SOMETIMES}"), 5, "SOMETIMES"),
        (peer("  portLevelMtls:\n    8080: {mode: STRICT}"), 6, "requires a selector"),
        (peer("  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    http: {mode: STRICT}"), 7, "http"),
        (entry("  hosts: []"), 5, "host"),
        (entry("  hosts: ['*']"), 5, "wildcard"),
        (entry("  hosts: [a.b, 'a b']"), 5, "a b"),
        (entry("  hosts: [a.b]\n  resolution: MAGIC"), 6, "MAGIC"),
        (entry("  hosts: [a.b]\n  addresses:\n  - 240.0.0.1\n  - 240.0.0.1/40"), 8, "240.0.0.1/40"),
        (entry("  hosts: [a.b]\n  resolution: DNS\n  addresses: [10.0.0.0/8]"), 7, "CIDR"),
        (entry("  hosts: [a.b]\n  ports:\n  - {number: 0, name: http}"), 7, "0 is not a port"),
        (entry("  hosts: [a.b]\n  ports:\n  - {number: 80, name: a}\n  - {number: 80, name: b}"), 8, "twice"),
        (entry("  hosts: [a.b]\n  ports:\n  - {number: 80, name: a, protocol: CARRIER-PIGEON}"), 7, "CARRIER-PIGEON"),
        (entry("  hosts: [a.b]\n  endpoints:\n  - {address: 192.0.2.1}"), 7, "NONE"),
        (entry("  hosts: [a.b]\n  resolution: STATIC\n  endpoints:\n  - {address: 192.0.2.1}\n  - {address: c.d}"), 9, "c.d"),
        (entry("  hosts: [a.b]\n  resolution: STATIC\n  endpoints: [{address: 192.0.2.1}]\n  workloadSelector: {labels: {a: b}}"), 5, "only one"),
        (entry("  hosts: ['*.a.b']\n  resolution: DNS"), 5, "DYNAMIC_DNS"),
        (entry("  hosts: [a.b]\n  resolution: DNS_ROUND_ROBIN\n  endpoints: [{address: c.d}, {address: e.f}]"), 7, "at most one"),
        (entry("  hosts: [a.b]\n  resolution: STATIC\n  endpoints:\n  - address: 192.0.2.1\n    ports: {http: 80}"), 9, "no port"),
        (workload("  labels: {a: b}"), 5, "address is missing"),
        (workload("  address: 'a b'"), 5, "a b"),
        (workload("  address: 192.0.2.1\n  ports:\n    http: 70000"), 7, "70000"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n".into(), 3, "name is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: ../../etc}\n".into(), 3, "DNS subdomain"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: ../b}\n".into(), 3, "DNS label"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: 10.0.0\n".into(), 7, "10.0.0"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: nine\n".into(), 5, "nine"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: 70000\n".into(), 6, "70000"),
    ];
    for (text, line, word) in &table {
        let found = faults(text);
        assert_eq!(
            found.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [*line],
            "{found:?} for\n{text}"
        );
        assert!(found[0].1.contains(word), "{found:?} for\n{text}");
        assert!(
            !found[0].1.contains('\n') && !found[0].1.contains("line "),
            "{found:?}"
        );
    }
}

/// Each could be taken for a mistake, and is none.
#[test]
fn what_an_api_server_accepts_is_accepted() {
    let table = [
        policy("  {}"),
        policy("  rules: [{}]"),
        policy(
            "  action: DENY\n  rules:\n  - from:\n    - source: {ipBlocks: [10.0.0.1, '2001:db8::/32'], serviceAccounts: [a, b/c]}",
        ),
        policy("  selector: {matchLabels: {}}"),
        policy("  action: CUSTOM\n  provider: {name: x}"),
        peer("  mtls: {}"),
        peer("  mtls: {mode: UNSET}"),
        entry(
            "  hosts: ['*.a.b']\n  resolution: DYNAMIC_DNS\n  ports: [{number: 443, name: tls, protocol: tls}]",
        ),
        entry("  hosts: [a.b]\n  addresses: [198.51.100.0/24, 2001:db8::1]"),
        entry("  hosts: [a_b.c]\n  resolution: STATIC\n  endpoints: [{network: net2}]"),
        entry("  hosts: ['*.a.b']\n  resolution: DNS\n  endpoints: [{address: c.d}]"),
        workload("  network: net2"),
        workload("  address: vm.example.com"),
    ];
    for text in &table {
        assert_eq!(faults(text), [], "{text}");
        assert!(matches!(parse(text)[..], [Parsed::Object { .. }]), "{text}");
    }
}
