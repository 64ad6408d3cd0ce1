//! What becomes of pods: each is injected, the patch is applied to it as an API server would, and the result looked at.

use proptest::prelude::*;

use super::*;

/// With the chart's defaults.
pub(crate) fn injector() -> Injector {
    Injector {
        chart: Chart::default(),
        images: Images {
            proxy: "registry.example/mesh/ztunnel:1".to_owned(),
            capture: "registry.example/mesh/cni:1".to_owned(),
        },
        mesh: Mesh {
            namespace: "istio-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            cluster: "Kubernetes".to_owned(),
            domain: "cluster.local".to_owned(),
            revision: "default".to_owned(),
        },
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "web-5d8-", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {
            "serviceAccountName": "web",
            "containers": [{"name": "web", "image": "web:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

/// A plain pod with `value` at `pointer`, whose parents are made.
fn with(pointer: &str, value: Value) -> Value {
    let mut pod = pod();
    let mut place = &mut pod;
    for part in pointer.split('/').skip(1) {
        place = &mut place[part.replace("~1", "/")];
    }
    *place = value;
    pod
}

/// RFC 6902, as far as it is used.
fn applied(old: &Value, patch: &[Value]) -> Value {
    let mut new = old.clone();
    for operation in patch {
        assert_eq!(operation["op"], "add");
        let path = operation["path"].as_str().unwrap();
        let (parent, name) = path.rsplit_once('/').unwrap();
        let name = name.replace("~1", "/").replace("~0", "~");
        let parent = new.pointer_mut(parent).expect("a parent that is there");
        let parent = parent.as_object_mut().expect("a member of a map");
        parent.insert(name, operation["value"].clone());
    }
    new
}

/// The pod that comes out of it, by way of the patch, and what is warned of.
fn injected_by(injector: &Injector, old: &Value) -> (Value, Vec<String>) {
    match injector.inject(old).unwrap() {
        Injected::Changed { pod, warnings } => {
            let patch = patch(old, &pod);
            assert_eq!(applied(old, &patch), pod);
            (pod, warnings)
        }
        Injected::Left(why) => panic!("left as it is: {why}"),
    }
}

fn injected(old: &Value) -> Value {
    injected_by(&injector(), old).0
}

fn left_alone(pod: &Value) -> Left {
    match injector().inject(pod).unwrap() {
        Injected::Left(why) => why,
        Injected::Changed { pod, .. } => panic!("changed: {pod}"),
    }
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let names = items(pod, list).map(|it| it["name"].as_str().unwrap().to_owned());
    names.collect()
}

fn arguments(pod: &Value) -> Vec<String> {
    let arguments = pod["spec"]["initContainers"][0]["args"].as_array().unwrap();
    let texts = arguments.iter().map(|it| it.as_str().unwrap().to_owned());
    texts.collect()
}

fn variable<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let variables = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
    variables.iter().find(|it| it["name"] == name)
}

fn told(pod: &Value, name: &str) -> String {
    let value = variable(pod, name).map(|it| it["value"].as_str().unwrap());
    value.unwrap_or_default().to_owned()
}

#[test]
fn rules_come_first_then_the_proxy_then_what_the_pod_has() {
    let mut before = pod();
    before["spec"]["initContainers"] = json!([{"name": "migrate", "image": "m"}]);
    let after = injected(&before);
    assert_eq!(
        names(&after, "initContainers"),
        ["istio-init", "istio-proxy", "migrate"]
    );
    assert_eq!(
        names(&after, "volumes"),
        ["data", "istiod-ca-cert", "istio-ca-crl", "istio-token"]
    );
    assert_eq!(after["spec"]["containers"], before["spec"]["containers"]);
    let [rules, proxy] = [0, 1].map(|it| &after["spec"]["initContainers"][it]);
    assert_eq!(rules["image"], "registry.example/mesh/cni:1");
    assert_eq!(
        arguments(&after),
        ["capture", "up", "--exempt-inbound-ports=15020,15021"]
    );
    assert_eq!(rules["restartPolicy"], Value::Null, "it ends");
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["image"], "registry.example/mesh/ztunnel:1");
    assert_eq!(proxy["startupProbe"]["httpGet"]["port"], 15021);
    assert_eq!(told(&after, "PROXY_MODE"), "dedicated");
    let workload = "$(POD_NAMESPACE)/$(POD_NAME)/$(SERVICE_ACCOUNT)";
    assert_eq!(told(&after, "PROXY_WORKLOAD_INFO"), workload);
    assert_eq!(
        told(&after, "XDS_ADDRESS"),
        "https://istiod.istio-system.svc:15012"
    );
    // Only names that stand before are put in by kubelet.
    let variables = proxy["env"].as_array().unwrap();
    let place = |name: &str| variables.iter().position(|it| it["name"] == name).unwrap();
    for name in ["POD_NAMESPACE", "POD_NAME", "SERVICE_ACCOUNT"] {
        assert!(place(name) < place("PROXY_WORKLOAD_INFO"), "{name}");
    }
    let token = &after["spec"]["volumes"][3]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "istio-ca");
    let annotations = &after["metadata"]["annotations"];
    assert_eq!(annotations["ambient.istio.io/redirection"], "enabled");
    let status = annotations["sidecar.istio.io/status"].as_str().unwrap();
    let status: Value = serde_json::from_str(status).unwrap();
    assert_eq!(
        status["initContainers"],
        json!(["istio-init", "istio-proxy"])
    );
}

#[test]
fn the_proxy_is_told_all_names_of_its_mesh_while_there_are_several() {
    let mut injector = injector();
    let told = |injector: &Injector| told(&injected_by(injector, &pod()).0, "AMBIT_TRUST_DOMAINS");
    assert_eq!(told(&injector), "");
    injector.mesh.trust_domain_aliases = vec!["old.org".to_owned()];
    assert_eq!(told(&injector), "cluster.local,old.org");
}

#[test]
fn only_the_container_that_ends_may_change_the_network() {
    let after = injected(&pod());
    let added = |index: usize| {
        let context = &after["spec"]["initContainers"][index]["securityContext"];
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        // A pod that says otherwise for all its containers does not mean these.
        assert_eq!(context["runAsNonRoot"], false);
        context["capabilities"]["add"].clone()
    };
    assert_eq!(added(0), json!(["NET_ADMIN"]));
    assert_eq!(added(1), json!(["NET_RAW"]));
    let mut old_kernel = injector();
    old_kernel.chart.net_admin = true;
    let (after, _) = injected_by(&old_kernel, &pod());
    let context = &after["spec"]["initContainers"][1]["securityContext"];
    assert_eq!(
        context["capabilities"]["add"],
        json!(["NET_ADMIN", "NET_RAW"])
    );
}

#[test]
fn who_is_not_meant_stays_as_they_are() {
    let label = |name: &str, value: &str| {
        let name = name.replace('/', "~1");
        with(&format!("/metadata/labels/{name}"), value.into())
    };
    let annotation = |name: &str, value: &str| {
        let name = name.replace('/', "~1");
        with(&format!("/metadata/annotations/{name}"), value.into())
    };
    let cases = [
        (label("istio.io/dataplane-mode", "ambient"), Left::Ambient),
        (label("istio.io/dataplane-mode", "none"), Left::OptedOut),
        (label("sidecar.istio.io/inject", "false"), Left::OptedOut),
        (
            annotation("sidecar.istio.io/inject", "false"),
            Left::OptedOut,
        ),
        (annotation("sidecar.istio.io/status", "{}"), Left::Sidecar),
        (with("/spec/hostNetwork", true.into()), Left::HostNetwork),
        (with("/spec/os", json!({"name": "windows"})), Left::NotLinux),
    ];
    for (pod, why) in cases {
        assert_eq!(left_alone(&pod), why);
    }
    for meant in [
        label("istio.io/dataplane-mode", "dedicated"),
        label("sidecar.istio.io/inject", "true"),
        with("/spec/hostNetwork", false.into()),
        with("/spec/os", json!({"name": "linux"})),
        with("/metadata/labels", Value::Null),
    ] {
        injected(&meant);
    }
}

#[test]
fn a_pod_that_istio_has_given_a_sidecar_is_left_alone_probes_and_all() {
    let mut theirs = with(
        "/metadata/annotations/sidecar.istio.io~1status",
        "{}".into(),
    );
    theirs["spec"]["initContainers"] = json!([{"name": "istio-init"}, {"name": "istio-proxy", "restartPolicy": "Always", "env": [{"name": "ISTIO_META_NODE"}]}]);
    theirs["spec"]["containers"][0]["livenessProbe"] =
        json!({"httpGet": {"path": "/app-health/web/livez", "port": 15020}});
    assert_eq!(left_alone(&theirs), Left::Sidecar);
}

#[test]
fn who_asks_by_name_for_what_cannot_be_had_is_refused_and_a_namespaces_wish_passes_by() {
    let mut host = with("/spec/hostNetwork", true.into());
    assert!(left_alone(&host).surprises());
    host["metadata"]["labels"]["istio.io/dataplane-mode"] = "dedicated".into();
    let refused = injector().inject(&host).unwrap_err();
    assert_eq!(refused, Refused::Contradiction(Left::HostNetwork));
    assert!(
        refused.to_string().contains("the node's network"),
        "{refused}"
    );
}

#[test]
fn nothing_of_ours_takes_the_name_of_something_else() {
    for (list, value) in [
        ("containers", json!([{"name": "istio-proxy"}])),
        ("initContainers", json!([{"name": "istio-init"}])),
        ("volumes", json!([{"name": "istio-token", "emptyDir": {}}])),
    ] {
        let pod = with(&format!("/spec/{list}"), value);
        let refused = injector().inject(&pod).unwrap_err();
        assert!(
            matches!(refused, Refused::Taken { list: found, .. } if found == list),
            "{refused}"
        );
    }
}

#[test]
fn annotations_about_capture_are_read_as_in_ambient_mode() {
    let annotated = |annotations: Value| with("/metadata/annotations", annotations);
    let all = injected(&annotated(json!({
        "traffic.sidecar.istio.io/excludeInboundPorts": "9090, 9091,",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "5432",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.0.0.0/8,192.0.2.7",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "172.16.0.0/12",
        "ambient.istio.io/bypass-inbound-capture": "true",
        "ambient.istio.io/dns-capture": "false",
    })));
    assert_eq!(
        arguments(&all)[2..],
        [
            "--exempt-inbound-ports=15020,15021,9090,9091",
            "--exempt-outbound-ports=5432",
            "--exempt-outbound-ranges=10.0.0.0/8,192.0.2.7/32",
            "--only-outbound-ranges=172.16.0.0/12",
            "--inbound=false",
            "--dns=false",
        ]
    );
    assert_eq!(told(&all, "ISTIO_META_DNS_CAPTURE"), "false");
    let everything = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    assert_eq!(
        arguments(&injected(&annotated(json!({ everything: "*" })))).len(),
        3
    );
    let nothing = injected(&annotated(json!({ everything: "" })));
    assert_eq!(arguments(&nothing)[3], "--only-outbound-ranges=");
    for (name, wrong) in [
        ("traffic.sidecar.istio.io/excludeInboundPorts", "http"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "0"),
        (
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            "10.0.0.0/33",
        ),
        (everything, "10.0.0.0/8 --dns=false"),
        ("istio.io/reroute-virtual-interfaces", "eth1"),
    ] {
        let refused = injector()
            .inject(&annotated(json!({ name: wrong })))
            .unwrap_err();
        let begins = format!("annotation {name}: ");
        assert!(refused.to_string().starts_with(&begins), "{refused}");
    }
    let mut strict = injector();
    strict.chart.capture_exclusions = false;
    let wished = annotated(json!({
        "traffic.sidecar.istio.io/excludeInboundPorts": "1",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "nonsense",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
    }));
    let (pod, _) = injected_by(&strict, &wished);
    assert_eq!(arguments(&pod)[2..], ["--exempt-inbound-ports=15020,15021"]);
}

#[test]
fn what_of_sidecars_has_no_effect_is_warned_of_and_all_is_captured_all_the_same() {
    let wished = with(
        "/metadata/annotations",
        json!({"traffic.sidecar.istio.io/includeInboundPorts": "8080", "traffic.sidecar.istio.io/includeOutboundPorts": ""}),
    );
    let (pod, warnings) = injected_by(&injector(), &wished);
    assert_eq!(arguments(&pod)[2..], ["--exempt-inbound-ports=15020,15021"]);
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}")
    };
    assert!(
        warning.contains("includeInboundPorts has no effect")
            && warning.contains("excludeInboundPorts"),
        "{warning}"
    );
}

#[test]
fn what_kubelet_asks_goes_by_way_of_the_proxy_with_its_own_rhythm() {
    let mut before = pod();
    before["spec"]["containers"] = json!([
        {"name": "web", "ports": [{"name": "http", "containerPort": 8080}],
         "livenessProbe": {"httpGet": {"path": "/live", "port": "http", "httpHeaders": [{"name": "A", "value": "b"}]},
             "periodSeconds": 3, "timeoutSeconds": 2},
         "readinessProbe": {"tcpSocket": {"port": 9000}},
         "startupProbe": {"exec": {"command": ["true"]}}},
        {"name": "health", "livenessProbe": {"grpc": {"port": 9001, "service": "s"}, "periodSeconds": 7}},
        {"name": "other", "livenessProbe": {"httpGet": {"port": 80, "host": "192.0.2.1"}},
         "readinessProbe": {"httpGet": {"port": 8443, "scheme": "HTTPS"}},
         "startupProbe": {"httpGet": {"port": "nowhere"}},
         "lifecycle": {"preStop": {"httpGet": {"port": 80}}, "postStart": {"exec": {"command": ["true"]}}}},
    ]);
    before["spec"]["initContainers"] = json!([
        {"name": "log", "restartPolicy": "Always", "readinessProbe": {"httpGet": {"path": "/r", "port": 24224}}},
    ]);
    let (after, warnings) = injected_by(&injector(), &before);
    let web = &after["spec"]["containers"][0];
    assert_eq!(
        web["livenessProbe"],
        json!({"httpGet": {"path": "/app-health/web/livez", "port": 15021, "scheme": "HTTP"},
            "periodSeconds": 3, "timeoutSeconds": 2})
    );
    assert_eq!(
        web["readinessProbe"],
        json!({"httpGet": {"path": "/app-health/web/readyz", "port": 15021, "scheme": "HTTP"}})
    );
    assert_eq!(
        web["startupProbe"],
        before["spec"]["containers"][0]["startupProbe"]
    );
    assert_eq!(
        after["spec"]["containers"][1]["livenessProbe"],
        json!({"httpGet": {"path": "/app-health/health/livez", "port": 15021, "scheme": "HTTP"}, "periodSeconds": 7})
    );
    assert_eq!(
        after["spec"]["containers"][2],
        before["spec"]["containers"][2]
    );
    let asked: Value = serde_json::from_str(&told(&after, "ISTIO_KUBE_APP_PROBERS")).unwrap();
    assert_eq!(
        asked,
        json!({
            "/app-health/web/livez": {"httpGet": {"path": "/live", "port": 8080,
                "httpHeaders": [{"name": "A", "value": "b"}]}, "timeoutSeconds": 2},
            "/app-health/web/readyz": {"tcpSocket": {"port": 9000}, "timeoutSeconds": 1},
            "/app-health/health/livez": {"grpc": {"port": 9001, "service": "s"}, "timeoutSeconds": 1},
            "/app-health/log/readyz": {"httpGet": {"path": "/r", "port": 24224}, "timeoutSeconds": 1},
        })
    );
    let warned = |text: &str| warnings.iter().any(|it| it.contains(text));
    for text in [
        "of another host",
        "over TLS",
        "without a number",
        "lifecycle.preStop",
    ] {
        assert!(warned(text), "{text}: {warnings:?}");
    }
    assert_eq!(warnings.len(), 4, "{warnings:?}");
}

#[test]
fn asked_again_nothing_is_put_in_twice_and_what_came_since_is_looked_at() {
    let mut before = pod();
    before["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 9000}});
    let once = injected(&before);
    assert_eq!(left_alone(&once), Left::Sidecar);
    // Another webhook, which came after us.
    let mut changed = once.clone();
    let late = json!({"name": "late", "readinessProbe": {"httpGet": {"path": "/", "port": 7}}});
    changed["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(late);
    let again = injected(&changed);
    assert_eq!(
        names(&again, "initContainers"),
        names(&once, "initContainers")
    );
    assert_eq!(again["spec"]["volumes"], once["spec"]["volumes"]);
    let asked: Value = serde_json::from_str(&told(&again, "ISTIO_KUBE_APP_PROBERS")).unwrap();
    let paths: Vec<_> = asked.as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/app-health/late/readyz", "/app-health/web/readyz"]);
    assert_eq!(left_alone(&again), Left::Sidecar);
}

#[test]
fn the_chart_is_heeded_and_a_name_that_it_does_not_have_is_refused() {
    let chart = r#"{"imagePullPolicy": "Always", "imagePullSecrets": [{"name": "registry"}], "workerThreads": 4,
        "resources": {"limits": {"memory": "64Mi"}}, "env": {"NETWORK": "east", "KEEPALIVE_TIME": "60s"},
        "dnsCapture": false, "prometheusAnnotations": false, "logLevel": "debug", "logFormat": "json"}"#;
    let chart: Chart = chart.parse().unwrap();
    let injector = Injector {
        chart,
        ..injector()
    };
    let mut before = pod();
    before["spec"]["terminationGracePeriodSeconds"] = 90.into();
    before["spec"]["imagePullSecrets"] = json!([{"name": "mine"}]);
    let (after, _) = injected_by(&injector, &before);
    let proxy = &after["spec"]["initContainers"][1];
    assert_eq!(proxy["imagePullPolicy"], "Always");
    assert_eq!(proxy["resources"], json!({"limits": {"memory": "64Mi"}}));
    assert_eq!(
        after["spec"]["imagePullSecrets"],
        json!([{"name": "mine"}, {"name": "registry"}])
    );
    for (name, value) in [
        ("ZTUNNEL_WORKER_THREADS", "4"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "90"),
        ("NETWORK", "east"),
        ("KEEPALIVE_TIME", "60s"),
        ("ISTIO_META_DNS_CAPTURE", "false"),
    ] {
        assert_eq!(told(&after, name), value, "{name}");
    }
    let variables = proxy["env"].as_array().unwrap();
    assert_eq!(
        variables
            .iter()
            .filter(|it| it["name"] == "NETWORK")
            .count(),
        1
    );
    assert_eq!(arguments(&after)[3], "--dns=false");
    assert_eq!(
        after["metadata"]["annotations"]["prometheus.io/scrape"],
        Value::Null
    );
    assert!("{\"resource\": {}}".parse::<Chart>().is_err());
}

#[test]
fn a_pods_own_monitoring_stays_and_a_port_that_is_the_proxys_is_warned_of() {
    let scraped = with("/metadata/annotations/prometheus.io~1port", "9102".into());
    let after = injected(&scraped);
    assert_eq!(
        after["metadata"]["annotations"]["prometheus.io/port"],
        "9102"
    );
    assert_eq!(
        after["metadata"]["annotations"]["prometheus.io/scrape"],
        Value::Null
    );
    let plain = injected(&pod());
    assert_eq!(
        plain["metadata"]["annotations"]["prometheus.io/port"],
        "15020"
    );
    let crowded = with(
        "/spec/containers",
        json!([{"name": "web", "ports": [{"containerPort": 15021}]}]),
    );
    let (_, warnings) = injected_by(&injector(), &crowded);
    assert!(warnings[0].contains("port 15021"), "{warnings:?}");
}

/// Nobody but an API server is expected here, but anybody may ask.
#[test]
fn whatever_shape_it_has_there_is_an_answer() {
    let shapes = [
        json!(null),
        json!(7),
        json!("x"),
        json!([]),
        json!([7]),
        json!({}),
        json!([{}]),
        json!({"x": []}),
    ];
    let places = [
        "/metadata",
        "/metadata/labels",
        "/metadata/annotations",
        "/spec",
        "/spec/containers",
        "/spec/initContainers",
        "/spec/volumes",
        "/spec/imagePullSecrets",
        "/spec/hostNetwork",
        "/spec/os",
        "/spec/terminationGracePeriodSeconds",
    ];
    let mut secrets = injector();
    secrets.chart.image_pull_secrets = vec![json!({"name": "registry"})];
    for shape in &shapes {
        for place in places {
            let pod = with(place, shape.clone());
            if let Ok(Injected::Changed { pod: new, .. }) = secrets.inject(&pod) {
                assert_eq!(applied(&pod, &patch(&pod, &new)), new, "{place} {shape}");
            }
        }
        for probe in ["httpGet", "tcpSocket", "exec", "grpc"] {
            let probe = json!({ probe: shape });
            let container = json!([{"name": shape, "ports": shape, "lifecycle": shape, "livenessProbe": probe, "readinessProbe": shape}]);
            let _ = secrets.inject(&with("/spec/containers", container));
        }
        let _ = secrets.inject(shape);
    }
}

/// JSON of the words that pods are written in, put together by chance.
fn chance() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "web",
        "istio-proxy",
        "istio-init",
        "istio-token",
        "",
        "Always",
        "HTTPS",
        "dedicated",
        "ambient",
        "false",
        "8080,*",
        "10.0.0.0/8",
        r#"{"/app-health/web/livez": {}}"#,
        "ISTIO_KUBE_APP_PROBERS",
        "/app-health/web/livez",
        "linux",
    ]);
    let key = prop::sample::select(vec![
        "metadata",
        "labels",
        "annotations",
        "spec",
        "containers",
        "initContainers",
        "volumes",
        "imagePullSecrets",
        "name",
        "ports",
        "containerPort",
        "livenessProbe",
        "readinessProbe",
        "httpGet",
        "tcpSocket",
        "grpc",
        "exec",
        "port",
        "path",
        "host",
        "scheme",
        "service",
        "env",
        "value",
        "lifecycle",
        "preStop",
        "os",
        "hostNetwork",
        "restartPolicy",
        "timeoutSeconds",
        "istio.io/dataplane-mode",
        "sidecar.istio.io/status",
        "sidecar.istio.io/inject",
        "traffic.sidecar.istio.io/excludeInboundPorts",
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0_i64), Just(8080), Just(15021), Just(70_000), Just(-1)]
            .prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| map
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

proptest! {
    #[test]
    fn the_patch_says_it_all_and_a_second_time_nothing_is_left_to_do(
        metadata in chance(), spec in chance(), containers in prop::collection::vec(chance(), 0..3),
    ) {
        let mut before = json!({"metadata": metadata, "spec": spec});
        if let Some(spec) = before["spec"].as_object_mut() {
            spec.insert("containers".to_owned(), containers.into());
        }
        if let Ok(Injected::Changed { pod: after, .. }) = injector().inject(&before) {
            prop_assert_eq!(&applied(&before, &patch(&before, &after)), &after);
            let again = injector().inject(&after);
            prop_assert_eq!(again, Ok(Injected::Left(Left::Sidecar)), "{}", after);
        }
    }
}
