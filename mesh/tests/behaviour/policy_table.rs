//! Every case of the recorded policy table: resources in, verdict out.

use mesh::{Connection, Mesh, SourceIdentity, Update, Verdict, judge};
use serde_json::Value;

use crate::golden::{message, recorded};

/// Where a workload refers to a policy that nobody has sent, the recorded program ignores the
/// reference; here nobody passes until the policy is known (testdata/DEVIATIONS.md, 1).
const DIFFERENT_ON_PURPOSE: [&str; 2] = [
    "reference to an unknown policy",
    "reference to an unknown and a known policy",
];

#[test]
fn every_recorded_case_gets_the_recorded_verdict() {
    let table: Value = serde_json::from_str(&recorded("policy/table.json")).unwrap();
    let cases = table["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 49);
    let mut different = Vec::new();
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let (mesh, mut writer) = Mesh::new();
        assert_eq!(
            writer.apply(update(case, &table["destination"])),
            [],
            "{name}"
        );
        let snapshot = mesh.load();
        let server = snapshot.workload("server").unwrap();
        let mut refusals = Vec::new();
        for attempt in case["attempts"].as_array().unwrap() {
            let principal = attempt["source_identity"]
                .as_str()
                .map(|id| id.strip_prefix("spiffe://").unwrap());
            let connection = Connection {
                source: principal.map(source),
                source_ip: attempt["source_ip"].as_str().unwrap().parse().unwrap(),
                destination_ip: server.addresses[0],
                destination_port: attempt["destination_port"].as_u64().unwrap() as u16,
            };
            let verdict = judge(&snapshot.policies_of(server), &connection);
            match (&verdict, attempt["result"].as_str().unwrap()) {
                (Verdict::Allowed { .. }, "allowed") | (Verdict::Denied { .. }, "denied") => {}
                (Verdict::Undecided { missing }, _) if **missing == *"alpha/nothere" => {
                    different.push(name)
                }
                (_, recorded) => panic!("{name}: {attempt}: {verdict:?}, recorded: {recorded}"),
            }
            if let Verdict::Denied { by } = verdict {
                refusals.push(format!("connection closed due to policy rejection: {by}"));
            }
        }
        refusals.sort();
        refusals.dedup();
        let logged: Vec<String> = serde_json::from_value(
            case.get("inbound_errors_logged")
                .cloned()
                .unwrap_or(Value::Array(vec![])),
        )
        .unwrap();
        if !DIFFERENT_ON_PURPOSE.contains(&name) {
            assert_eq!(refusals, logged, "{name}: the reason is the recorded one");
        }
    }
    different.dedup();
    assert_eq!(different, DIFFERENT_ON_PURPOSE);
}

fn update(case: &Value, destination: &Value) -> Update {
    let mut update = Update::default();
    for policy in case["policies"].as_array().unwrap() {
        update.set_policy(message("istio.security.Authorization", policy.clone()));
    }
    update.set_workload(message(
        "istio.workload.Workload",
        serde_json::json!({
            "uid": "server", "name": "server", "namespace": "alpha", "serviceAccount": "server",
            "addresses": [destination["ip"]],
            "authorizationPolicies": case["workload_authorization_policies"],
        }),
    ));
    update
}

fn source(principal: &str) -> SourceIdentity<'_> {
    let parts: Vec<_> = principal.split('/').collect();
    let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
        panic!("{principal}")
    };
    SourceIdentity {
        trust_domain,
        namespace,
        service_account,
    }
}
