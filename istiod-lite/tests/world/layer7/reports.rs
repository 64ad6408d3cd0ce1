//! Telemetry objects and the mesh's own words on reports: what waypoints are told, and what the author hears.

use api::k8s::objects::{Kind, ObjectKey};
use api::waypoint as wire;
use istiod_lite::world::{Reports, Settings, World};
use wire::resource::Kind as Told;

use super::{names, policy, said, service, set, told, waypoint};

fn world(reports: Reports) -> World {
    let providers = serde_json::json!([
        {"name": "otel", "opentelemetry": {"service": "otel.b.svc.cluster.local", "port": 4317}},
        {"name": "cloud", "datadog": {}},
    ]);
    World::new(Settings {
        providers: serde_json::from_value(providers).unwrap(),
        reports,
        ..Settings::default()
    })
}

fn telemetry(spec: &str) -> String {
    let target = "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}";
    let spec = format!("{{targetRefs: [{target}], {spec}}}");
    policy("Telemetry", "telemetry.istio.io/v1", "a", "t", &spec)
}

#[test]
fn who_gets_reports_must_be_known_to_the_mesh() {
    let mut world = world(Reports::default());
    let spans = telemetry("tracing: [{providers: [{name: otel}]}]");
    set(&mut world, &(waypoint("a", "wp") + &spans));
    let (status, reason, message) = said(&world, Kind::Telemetry, "a", "t");
    assert_eq!((status, reason.as_str()), (false, "Invalid"), "{message}");
    assert!(message.contains("no service has the host"), "{message}");
    assert_eq!(names(&world), ["a/wp/telemetry/a/t"]);
    // Whoever has said it hears that the collector has come.
    set(&mut world, &service("b", "otel", ""));
    assert!(said(&world, Kind::Telemetry, "a", "t").0);
    assert_eq!(names(&world), ["a/wp/provider/otel", "a/wp/telemetry/a/t"]);
    for (spec, text) in [
        (
            "tracing: [{providers: [{name: nobody}]}]",
            "no extension provider nobody",
        ),
        (
            "accessLogging: [{providers: [{name: cloud}]}]",
            "datadog is not supported",
        ),
        (
            "accessLogging: [{filter: {expression: 'response.cod == 1'}}]",
            "response.cod is not known",
        ),
        (
            "metrics: [{overrides: [{tagOverrides: {le: {value: '1'}}}]}]",
            "no name of a label",
        ),
    ] {
        set(&mut world, &telemetry(spec));
        let (status, _, message) = said(&world, Kind::Telemetry, "a", "t");
        assert!(!status && message.contains(text), "{spec}: {message}");
    }
    set(
        &mut world,
        &telemetry("accessLogging: [{providers: [{name: envoy}]}]"),
    );
    assert!(said(&world, Kind::Telemetry, "a", "t").0);
}

#[test]
fn what_of_reports_for_all_has_no_effect_is_said_too() {
    let mut world = world(Reports::default());
    let of = |namespace: &str, spec: &str| {
        let spec = format!("{{{spec}}}");
        policy("Telemetry", "telemetry.istio.io/v1", namespace, "t", &spec)
    };
    set(&mut world, &waypoint("a", "wp"));
    let bad = "accessLogging: [{filter: {expression: 'response.cod == 1'}}]";
    for namespace in ["a", "istio-system"] {
        set(&mut world, &of(namespace, bad));
        let (status, reason, message) = said(&world, Kind::Telemetry, namespace, "t");
        assert_eq!((status, reason.as_str()), (false, "Invalid"), "{message}");
        assert!(message.contains("response.cod is not known"), "{message}");
        // Mended, it has nothing to say.
        set(
            &mut world,
            &of(namespace, "accessLogging: [{disabled: true}]"),
        );
        let key = ObjectKey::new(Kind::Telemetry, namespace, "t");
        let left = world.status(&key).map(|it| it.conditions.len());
        assert_eq!(left, Some(0));
    }
    let selected = "selector: {matchLabels: {app: web}}, accessLogging: [{disabled: true}]";
    set(&mut world, &of("a", selected));
    let (status, reason, _) = said(&world, Kind::Telemetry, "a", "t");
    assert_eq!((status, reason.as_str()), (false, "UnsupportedValue"));
}

#[test]
fn what_the_mesh_says_of_reports_is_told_to_every_waypoint() {
    let mut world = world(Reports {
        format: "%PROTOCOL%\n".to_owned(),
        tracing: vec!["otel".to_owned()],
        ..Reports::default()
    });
    set(&mut world, &waypoint("a", "wp"));
    assert_eq!(
        names(&world),
        ["a/wp/provider/envoy", "a/wp/telemetry/defaults"]
    );
    let mut told = told(&world);
    let Some(Told::Telemetry(it)) = told.remove("a/wp/telemetry/defaults") else {
        panic!("nothing is said of reports")
    };
    assert!(it.defaults && it.access_log.is_none());
    assert_eq!(it.tracing.unwrap().providers, ["provider/otel"]);
    let Some(Told::Provider(it)) = told.remove("a/wp/provider/envoy") else {
        panic!("no log of its own")
    };
    let Some(wire::provider::Kind::LogFile(it)) = it.kind else {
        panic!("{it:?}")
    };
    assert_eq!(it.format, "%PROTOCOL%\n");
}
