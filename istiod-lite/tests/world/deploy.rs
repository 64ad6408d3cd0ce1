//! What is made of a Gateway so that its waypoint runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::k8s::objects::Gateway;
use istiod_lite::deploy::{Chart, Mesh, Note, Notes, Order, Parameters, Pattern, Role, laid, made};
use proptest::prelude::*;
use serde_json::{Value, json};

fn order(gateway: Value) -> Order {
    let gateway: Gateway = serde_json::from_value(gateway).unwrap();
    Order::read(&gateway)
}

fn gateway() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": "shop", "uid": "u-1"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    })
}

fn pattern(chart: Value) -> Pattern {
    let chart: Chart = chart.to_string().parse().unwrap();
    Pattern {
        chart: Chart {
            image: "registry.example/mesh/waypoint@sha256:0".into(),
            ..chart
        },
        mesh: Mesh {
            namespace: "istio-system".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            cluster: "Kubernetes".into(),
            domain: "cluster.local".into(),
            revision: "default".into(),
        },
    }
}

fn wishes(data: &[(&str, &str)]) -> Parameters {
    read(data).unwrap()
}

fn read(data: &[(&str, &str)]) -> Result<Parameters, String> {
    let data = data
        .iter()
        .map(|(key, text)| ((*key).into(), (*text).into()));
    Parameters::read(&BTreeMap::from_iter(data))
}

/// Compares with `testdata/deploy/NAME.yaml`; `AMBIT_GOLDEN=write` writes it anew, to be read before it is committed.
fn golden(name: &str, order: &Order, pattern: &Pattern, wishes: &[Parameters]) {
    let pieces = made(order, pattern, wishes).unwrap();
    let texts = pieces.iter();
    let texts = texts.map(|it| serde_saphyr::to_string(&it.object).unwrap());
    let text = texts.collect::<Vec<_>>().join("---\n");
    let file: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/deploy/{name}.yaml"));
    if std::env::var("AMBIT_GOLDEN").is_ok_and(|it| it == "write") {
        std::fs::write(&file, &text).unwrap();
    }
    let wanted = std::fs::read_to_string(&file).unwrap();
    assert!(
        text == wanted,
        "{} differs; it is now\n{text}",
        file.display()
    );
}

fn piece(order: &Order, pattern: &Pattern, wishes: &[Parameters], kind: &str) -> Option<Value> {
    let pieces = made(order, pattern, wishes).unwrap();
    let mut of_kind = pieces.into_iter().filter(|it| it.kind.name() == kind);
    of_kind.next().map(|it| it.object)
}

#[test]
fn a_plain_gateway_is_a_waypoint_of_two_pods_with_all_that_belongs_to_it() {
    golden("plain", &order(gateway()), &pattern(json!({})), &[]);
}

#[test]
fn the_gateway_of_a_network_is_made_as_a_waypoint_is_but_for_others_to_reach() {
    let mut gateway = gateway();
    gateway["spec"]["gatewayClassName"] = "istio-east-west".into();
    let order = order(gateway).of_role(Role::EastWest);
    let pattern = pattern(json!({"network": "one"}));
    let deployment = piece(&order, &pattern, &[], "Deployment").unwrap();
    let pod = &deployment["spec"]["template"];
    assert_eq!(
        pod["spec"]["containers"][0]["args"],
        json!(["proxy", "east-west"])
    );
    for labels in [
        &deployment["metadata"]["labels"],
        &pod["metadata"]["labels"],
    ] {
        assert_eq!(
            labels["gateway.istio.io/managed"],
            "istio.io-eastwest-controller"
        );
    }
    let service = piece(&order, &pattern, &[], "Service").unwrap();
    assert_eq!(service["spec"]["type"], "LoadBalancer");
    let ports = service["spec"]["ports"].as_array().unwrap();
    assert!(ports.iter().any(|port| port["port"] == 15008));
}

#[test]
fn the_chart_and_the_gateway_say_how_a_waypoint_is_made() {
    let mut gateway = gateway();
    gateway["metadata"]["annotations"] = json!({
        "gateway.istio.io/name-override": "door",
        "gateway.istio.io/service-account": "porter",
        "networking.istio.io/service-type": "LoadBalancer",
    });
    gateway["spec"]["listeners"][0]["name"] = "tunnels.in".into();
    gateway["spec"]["infrastructure"] = json!({
        "labels": {"team": "shop", "gateway.istio.io/managed": "me", "istio.io/dataplane-mode": "ambient"},
        "annotations": {"cost": "low"},
    });
    let chart = json!({
        "replicas": 3,
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        "nodeSelector": {"pool": "mesh"},
        "tolerations": [{"key": "mesh", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
        "priorityClassName": "mesh",
        "terminationGracePeriodSeconds": 60,
        "podDisruptionBudget": {"enabled": true, "maxUnavailable": "25%"},
        "autoscaling": {"enabled": true, "minReplicas": 3, "maxReplicas": 9, "targetCPU": 70},
        "podAnnotations": {"note": "from the chart"},
        "podLabels": {"tier": "mesh"},
        "env": {"RUST_LOG": "debug", "LIMIT": 7},
        "network": "north",
    });
    golden("wished", &order(gateway), &pattern(chart), &[]);
}

#[test]
fn parameters_are_laid_over_what_is_rendered_those_of_the_class_first() {
    let class = wishes(&[
        (
            "deployment",
            "spec: {replicas: 5, template: {spec: {priorityClassName: low}}}",
        ),
        ("podDisruptionBudget", "null"),
    ]);
    let own = wishes(&[
        (
            "deployment",
            r#"
metadata: {annotations: {who: me}}
spec:
  replicas: 4
  template:
    spec:
      containers:
      - name: istio-proxy
        image: registry.example/patched
        env:
        - {name: RUST_LOG, value: trace}
        - {name: EXTRA, value: "1"}
        - {name: LOG_FORMAT, $patch: delete}
        resources: {limits: {memory: 1Gi}}
        volumeMounts: [{name: more, mountPath: /more}]
        startupProbe: null
      - {name: beside, image: registry.example/beside}
      volumes: [{name: more, emptyDir: {}}]
      topologySpreadConstraints: [{$patch: replace}]
"#,
        ),
        (
            "service",
            "metadata: {labels: {seen: 'yes'}}\nspec: {ports: [{port: 15021, name: ready}], internalTrafficPolicy: Local}",
        ),
        ("serviceAccount", "metadata: {annotations: {iam: role}}"),
    ]);
    golden(
        "parameters",
        &order(gateway()),
        &pattern(json!({})),
        &[class, own],
    );
}

#[test]
fn a_waypoint_is_told_all_names_of_its_mesh_while_there_are_several() {
    let mut pattern = pattern(json!({}));
    let told = |pattern: &Pattern| {
        let deployment = piece(&order(gateway()), pattern, &[], "Deployment").unwrap();
        let variables = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
        let variables = variables.as_array().unwrap().iter();
        let mut names = variables.filter(|it| it["name"] == "AMBIT_TRUST_DOMAINS");
        names.next().map(|it| it["value"].clone())
    };
    assert_eq!(told(&pattern), None);
    pattern.mesh.trust_domain_aliases = vec!["old.org".into()];
    assert_eq!(told(&pattern), Some(json!("cluster.local,old.org")));
}

#[test]
fn an_autoscaler_that_is_asked_for_says_alone_how_many_pods_there_are() {
    let (order, pattern) = (order(gateway()), pattern(json!({})));
    let scaled = wishes(&[("horizontalPodAutoscaler", "spec: {maxReplicas: 12}")]);
    let deployment = piece(
        &order,
        &pattern,
        std::slice::from_ref(&scaled),
        "Deployment",
    )
    .unwrap();
    assert!(
        deployment.pointer("/spec/replicas").is_none(),
        "{deployment}"
    );
    let scaler = piece(&order, &pattern, &[scaled], "HorizontalPodAutoscaler").unwrap();
    assert_eq!(scaler["spec"]["maxReplicas"], 12);
    assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], "waypoint");
    // Who says it all the same is taken at their word, also that nobody of us shall say it.
    let both = wishes(&[
        ("horizontalPodAutoscaler", "{}"),
        ("deployment", "spec: {replicas: 3}"),
    ]);
    let deployment = piece(&order, &pattern, &[both], "Deployment").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 3);
    let theirs = wishes(&[("deployment", "spec: {replicas: null}")]);
    let deployment = piece(&order, &pattern, &[theirs], "Deployment").unwrap();
    assert!(
        deployment.pointer("/spec/replicas").is_none(),
        "{deployment}"
    );
}

#[test]
fn parameters_reach_neither_beyond_the_waypoint_nor_out_of_its_sandbox() {
    let (order, pattern) = (order(gateway()), pattern(json!({})));
    let pod = |text: &str| format!("spec: {{template: {{spec: {text}}}}}");
    let container = |text: &str| pod(&format!("{{containers: [{{name: istio-proxy, {text}}}]}}"));
    let cases = [
        (
            "service",
            "metadata: {name: kubernetes}".to_owned(),
            "metadata.name",
        ),
        (
            "service",
            "spec: {externalIPs: [192.0.2.1]}".to_owned(),
            "spec.externalIPs",
        ),
        (
            "deployment",
            "metadata: {namespace: kube-system}".to_owned(),
            "metadata.namespace",
        ),
        (
            "deployment",
            "metadata: {ownerReferences: null}".to_owned(),
            "metadata.ownerReferences",
        ),
        (
            "deployment",
            "metadata: {finalizers: [x]}".to_owned(),
            "metadata.finalizers",
        ),
        ("deployment", "kind: DaemonSet".to_owned(), "kind"),
        (
            "deployment",
            "metadata: {labels: {gateway.istio.io/managed: null}}".to_owned(),
            "label gateway.istio.io/managed",
        ),
        (
            "deployment",
            "spec: {selector: {matchLabels: {a: b}}}".to_owned(),
            "spec.selector",
        ),
        (
            "deployment",
            "spec: {template: {metadata: {labels: {istio.io/dataplane-mode: ambient}}}}".to_owned(),
            "label istio.io/dataplane-mode",
        ),
        (
            "service",
            "spec: {selector: {app: bank}}".to_owned(),
            "spec.selector",
        ),
        (
            "podDisruptionBudget",
            "spec: {selector: {matchLabels: null}}".to_owned(),
            "spec.selector",
        ),
        (
            "horizontalPodAutoscaler",
            "spec: {scaleTargetRef: {name: bank}}".to_owned(),
            "spec.scaleTargetRef",
        ),
        (
            "deployment",
            pod("{serviceAccountName: admin}"),
            "spec.template.spec.serviceAccountName",
        ),
        (
            "deployment",
            pod("{serviceAccount: admin}"),
            "spec.template.spec.serviceAccount",
        ),
        ("deployment", pod("{hostNetwork: true}"), "hostNetwork"),
        ("deployment", pod("{hostPID: true}"), "hostPID"),
        ("deployment", pod("{hostIPC: 'yes'}"), "hostIPC"),
        (
            "deployment",
            pod("{volumes: [{name: x, hostPath: {path: /}}]}"),
            "hostPath",
        ),
        (
            "deployment",
            container("securityContext: {privileged: true}"),
            "privileged",
        ),
        (
            "deployment",
            container("securityContext: {allowPrivilegeEscalation: true}"),
            "allowPrivilegeEscalation",
        ),
        (
            "deployment",
            container("securityContext: {capabilities: {add: [NET_ADMIN]}}"),
            "capabilities.add",
        ),
        (
            "deployment",
            container("ports: [{containerPort: 80, hostPort: 80}]"),
            "hostPort",
        ),
        (
            "deployment",
            pod("{initContainers: [{name: x, securityContext: {privileged: true}}]}"),
            "privileged",
        ),
    ];
    for (key, text, field) in cases {
        let refused = made(&order, &pattern, &[wishes(&[(key, &text)])]).unwrap_err();
        assert!(
            refused.starts_with(key) && refused.contains(field),
            "{text}: {refused}"
        );
    }
}

#[test]
fn parameters_that_cannot_be_read_are_refused_by_key() {
    let cases = [
        (
            "deployments",
            "spec: {}",
            "key deployments is none of serviceAccount, service",
        ),
        ("deployment", "spec: [", "key deployment is no YAML"),
        ("deployment", "just text", "key deployment holds no object"),
        ("service", "null", "key service holds no object"),
    ];
    for (key, text, said) in cases {
        let error = read(&[(key, text)]).unwrap_err();
        assert!(error.starts_with(said), "{error}");
    }
}

#[test]
fn a_value_of_the_chart_that_nobody_knows_is_refused() {
    let error = r#"{"replica": 3}"#.parse::<Chart>().unwrap_err();
    assert!(error.contains("replica"), "{error}");
}

#[test]
fn a_gateway_with_addresses_of_its_own_is_run_by_somebody_else() {
    let mut theirs = gateway();
    assert!(!order(theirs.clone()).elsewhere);
    theirs["spec"]["addresses"] = json!([{"type": "Hostname", "value": "mine.shop.svc"}]);
    assert!(order(theirs).elsewhere);
}

#[test]
fn what_became_of_a_deployment_is_said_in_the_gateways_status() {
    use api::k8s::objects::{Kind, ObjectKey};
    use istiod_lite::status::{Book, Condition, Desired};

    let condition = |r#type, status| Condition {
        r#type,
        status,
        reason: "Before".into(),
        message: "before".into(),
    };
    let key = ObjectKey::new(Kind::Gateway, "shop", "waypoint");
    let with = |programmed: bool, note: Note| {
        let desired = Desired {
            conditions: vec![
                condition("Accepted", true),
                condition("Programmed", programmed),
            ],
            ..Desired::default()
        };
        let book = Book::from_iter([(key.clone(), std::sync::Arc::new(desired))]);
        let laid = laid(&book, &Notes::from_iter([(key.clone(), note)]));
        let desired = laid.get(&key)?;
        let said =
            |it: &Condition| format!("{}={} {}: {}", it.r#type, it.status, it.reason, it.message);
        Some(
            desired
                .conditions
                .iter()
                .map(said)
                .collect::<Vec<_>>()
                .join(", "),
        )
    };
    assert_eq!(
        with(true, Note::Invalid("no".into())).unwrap(),
        "Accepted=false InvalidParameters: no, Programmed=false Invalid: no"
    );
    assert_eq!(
        with(true, Note::Blocked("no".into())).unwrap(),
        "Accepted=true Before: before, Programmed=false NoResources: no"
    );
    assert_eq!(
        with(false, Note::Pending("0 of 2".into())).unwrap(),
        "Accepted=true Before: before, Programmed=false Pending: 0 of 2"
    );
    // Its clients know its address and will find it there again.
    assert_eq!(
        with(true, Note::Pending("0 of 2".into())).unwrap(),
        "Accepted=true Before: before, Programmed=true Before: before"
    );
    assert_eq!(with(true, Note::Elsewhere), None);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let field = prop_oneof![
            Just("spec"),
            Just("containers"),
            Just("env"),
            Just("name"),
            Just("ports"),
            Just("port"),
            Just("metadata"),
            Just("$patch"),
            Just("volumes"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(field.prop_map(str::to_owned), inner, 0..4)
                .prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever is wished: applying it again changes nothing more.
    #[test]
    fn a_wish_that_was_followed_is_followed_already(before in json_value(), wish in json_value()) {
        let mut once = before;
        istiod_lite::deploy::overlay::lay(&mut once, &wish);
        let mut twice = once.clone();
        istiod_lite::deploy::overlay::lay(&mut twice, &wish);
        // Items without a name are added each time, as in Kubernetes' own patches.
        if !wish.to_string().contains("[") {
            prop_assert_eq!(once, twice);
        }
    }
}
