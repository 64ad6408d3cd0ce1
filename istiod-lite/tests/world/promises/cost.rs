//! What a change costs, counted.

use istiod_lite::world::{Settings, World};

use super::set;

fn pod(number: usize, app: usize, ready: bool) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{number}\n  namespace: ns-{}\n  labels: {{app: app-{app}, tier: web}}\n\
         spec: {{nodeName: node-{}, containers: [{{name: app}}]}}\n\
         status: {{phase: Running, podIP: 10.{}.{}.1, conditions: [{{type: Ready, status: '{}'}}]}}\n---\n",
        number % 10,
        number % 50,
        number / 256,
        number % 256,
        if ready { "True" } else { "False" }
    )
}

fn service(namespace: usize, app: usize, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: app-{app}, namespace: ns-{namespace}}}\n\
         spec: {{clusterIP: 10.250.{namespace}.{app}, selector: {{app: app-{app}}}, ports: [{{port: {port}}}]}}\n---\n"
    )
}

/// What one change costs in a mesh of 10,000 pods in 10 namespaces on 50 nodes, 100 to a service.
#[test]
fn a_change_costs_what_depends_on_it() {
    const PODS: usize = 10_000;
    let app = |number: usize| number / 10 % 10;
    let mut world = World::new(Settings::default());
    let mut text: String = (0..PODS)
        .map(|number| pod(number, app(number), true))
        .collect();
    for namespace in 0..10 {
        text.extend((0..10).map(|app| service(namespace, app, 80)));
    }
    let everything = set(&mut world, &text);
    assert_eq!(everything.addresses.len(), PODS + 100);
    assert!(
        world.recomputed() <= (PODS + 100) as u64,
        "nothing was made twice: {}",
        world.recomputed()
    );

    // (what, text, things made anew, resources changed)
    let policy = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let peer = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let steps = [
        ("a pod becomes unready", pod(4711, app(4711), false), 1, 1),
        ("a pod is written again", pod(4711, app(4711), false), 0, 0),
        ("a pod comes", pod(PODS, 0, true), 1, 1),
        ("a service gets another port", service(3, 4, 81), 101, 101),
        ("a node gets a zone", "apiVersion: v1\nkind: Node\nmetadata: {name: node-7, labels: {topology.kubernetes.io/zone: z}}\n".into(), 200, 200),
        ("a policy for a whole namespace", policy("ns-1", "{action: DENY}"), 1, 1),
        ("a policy for an application", policy("ns-2", "{selector: {matchLabels: {app: app-5, tier: web}}}"), 101, 101),
        ("the mesh's own policy", policy("istio-system", "{action: DENY}"), 1, 1),
        ("strictness for an application", peer("ns-5", "{selector: {matchLabels: {app: app-1}}, mtls: {mode: STRICT}}"), 102, 101),
        ("strictness for a namespace", peer("ns-4", "{mtls: {mode: STRICT}}"), 1002, 1000),
        ("a namespace's services are near", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-6, annotations: {networking.istio.io/traffic-distribution: PreferClose}}\n".into(), 1010, 10),
        ("a namespace gets a label nobody asks for", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-7, labels: {team: x}}\n".into(), 0, 0),
        ("a namespace names a waypoint", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-7, labels: {istio.io/use-waypoint: wp}}\n".into(), 1010, 1010),
        ("another namespace does", "apiVersion: v1\nkind: Namespace\nmetadata: {name: empty, labels: {istio.io/use-waypoint: wp}}\n".into(), 0, 0),
    ];
    for (what, text, made, changed) in steps {
        let before = world.recomputed();
        let names = set(&mut world, &text);
        assert_eq!(world.recomputed() - before, made, "{what}");
        assert_eq!(
            names.addresses.len() + names.authorizations.len(),
            changed,
            "{what}"
        );
    }
}
