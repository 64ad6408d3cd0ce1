//! Secrets and ConfigMaps are told to the waypoints whose policies name them, as far as they need them.

use std::sync::LazyLock;

use api::k8s::objects::Kind;

use super::{Told, World, gone, policy, said, service, set, told, world};

/// Certificate and key, in PEM.
static PAIR: LazyLock<(String, String)> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
    (
        parameters.self_signed(&key).unwrap().pem(),
        key.serialize_pem(),
    )
});

fn object(kind: &str, namespace: &str, name: &str, fields: &[(&str, &str)]) -> String {
    let place = match kind {
        "Secret" => "stringData",
        _ => "data",
    };
    let mut text = format!(
        "apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{place}:\n"
    );
    for (field, value) in fields {
        let lines = value.lines().map(|line| format!("    {line}\n"));
        text += &format!("  {field}: |\n{}", lines.collect::<String>());
    }
    text + "---\n"
}

fn secret(namespace: &str) -> String {
    let (certificate, key) = &*PAIR;
    let fields = [
        ("ca.crt", certificate.as_str()),
        ("tls.crt", certificate),
        ("tls.key", key),
    ];
    object("Secret", namespace, "c", &fields)
}

fn rule(mode: &str) -> String {
    let spec =
        format!("{{host: web, trafficPolicy: {{tls: {{mode: {mode}, credentialName: c}}}}}}");
    policy("DestinationRule", "networking.istio.io/v1", "a", "r", &spec)
}

/// Names of what holds key material, and whether a key is in it.
fn secrets(world: &World) -> Vec<(String, bool)> {
    let all = told(world).into_iter();
    let secrets = all.filter_map(|(name, it)| match it {
        Told::Secret(it) => Some((name, !it.key.is_empty())),
        _ => None,
    });
    secrets.collect()
}

#[test]
fn a_secret_is_told_where_a_rule_that_names_it_holds_and_its_key_where_one_is_needed() {
    let mut world = world();
    set(&mut world, &(secret("a") + &secret("b")));
    assert_eq!(secrets(&world), [], "nobody names them");
    assert!(world.wanted_credentials().is_empty());
    set(&mut world, &rule("SIMPLE"));
    let name = "a/wp/secret/a/c".to_owned();
    assert_eq!(secrets(&world), [(name.clone(), false)]);
    assert_eq!(world.wanted_credentials().len(), 1);
    set(&mut world, &rule("MUTUAL"));
    assert_eq!(secrets(&world), [(name.clone(), true)]);
    // The service is behind another waypoint.
    let elsewhere = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: b";
    set(&mut world, &service("a", "web", elsewhere));
    assert_eq!(secrets(&world), [("b/wp/secret/a/c".to_owned(), true)]);
    set(
        &mut world,
        &service("a", "web", "istio.io/use-waypoint: wp"),
    );
    assert_eq!(secrets(&world), [(name, true)]);
    gone(&mut world, Kind::DestinationRule, "a", "r");
    assert_eq!(secrets(&world), []);
    assert!(world.wanted_credentials().is_empty());
}

#[test]
fn a_key_is_taken_back_when_its_service_goes() {
    let mut world = world();
    set(&mut world, &(secret("a") + &rule("MUTUAL")));
    let told = [("a/wp/secret/a/c".to_owned(), true)];
    assert_eq!(secrets(&world), told);
    gone(&mut world, Kind::Service, "a", "web");
    assert_eq!(secrets(&world), [], "nothing is sent there any more");
    set(
        &mut world,
        &service("a", "web", "istio.io/use-waypoint: wp"),
    );
    assert_eq!(secrets(&world), told);
    // An entry that has another host.
    let entry = |host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: a, labels: {{istio.io/use-waypoint: wp}}}}\nspec: {{hosts: [{host}], resolution: DNS, ports: [{{number: 443, name: tls, protocol: TLS}}]}}\n---\n"
        )
    };
    let spec = "{host: one.example, trafficPolicy: {tls: {mode: MUTUAL, credentialName: c}}}";
    let rule = policy("DestinationRule", "networking.istio.io/v1", "a", "r", spec);
    set(&mut world, &(rule + &entry("one.example")));
    assert_eq!(secrets(&world), told);
    set(&mut world, &entry("other.example"));
    assert_eq!(secrets(&world), []);
}

#[test]
fn what_is_missing_is_said_of_the_rule_until_it_is_there() {
    let mut world = world();
    set(&mut world, &rule("MUTUAL"));
    let message = |world: &World| said(world, Kind::DestinationRule, "a", "r").2;
    assert!(message(&world).contains("Secret a/c is not there"));
    let (certificate, _) = &*PAIR;
    set(
        &mut world,
        &object("Secret", "a", "c", &[("ca.crt", certificate)]),
    );
    assert!(message(&world).contains("tls.crt is missing"));
    assert_eq!(secrets(&world), []);
    set(&mut world, &secret("a"));
    assert_eq!(secrets(&world).len(), 1);
    let key = api::k8s::objects::ObjectKey::new(Kind::DestinationRule, "a", "r");
    assert!(world.status(&key).unwrap().conditions.is_empty());
    gone(&mut world, Kind::Secret, "a", "c");
    assert_eq!(secrets(&world), []);
    let key = api::k8s::objects::ObjectKey::new(Kind::Secret, "a", "c");
    assert!(world.status(&key).is_none(), "it is somebody else's");
}

#[test]
fn a_config_map_vouches_for_what_a_policy_of_gateway_api_is_for() {
    let mut world = world();
    let tls = "{targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: x, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}}";
    let group = "gateway.networking.k8s.io/v1";
    set(
        &mut world,
        &policy("BackendTLSPolicy", group, "a", "p", tls),
    );
    let name = "a/wp/backendtlspolicy/a/p/a/web.a.svc.cluster.local:0";
    let made = |world: &World| match told(world).remove(name) {
        Some(Told::BackendPolicy(it)) => it.tls.unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(
        made(&world)
            .invalid
            .contains("ConfigMap a/roots is not there")
    );
    let (certificate, _) = &*PAIR;
    set(
        &mut world,
        &object("ConfigMap", "a", "roots", &[("ca.crt", certificate)]),
    );
    let tls = made(&world);
    assert_eq!(
        (tls.invalid.as_str(), tls.ca.as_str()),
        ("", "configmap/a/roots")
    );
    assert_eq!(
        secrets(&world),
        [("a/wp/configmap/a/roots".to_owned(), false)]
    );
}

#[test]
fn all_who_vouch_for_a_backend_count_as_far_as_they_can_be_had() {
    let mut world = world();
    let refs = ["roots", "more", "gone"]
        .map(|name| format!("{{group: '', kind: ConfigMap, name: {name}}}"))
        .join(", ");
    let tls = format!(
        "{{targetRefs: [{{group: '', kind: Service, name: web}}], validation: {{hostname: x, caCertificateRefs: [{refs}]}}}}"
    );
    let group = "gateway.networking.k8s.io/v1";
    set(
        &mut world,
        &policy("BackendTLSPolicy", group, "a", "p", &tls),
    );
    let made = |world: &World| {
        let name = "a/wp/backendtlspolicy/a/p/a/web.a.svc.cluster.local:0";
        let tls = match told(world).remove(name) {
            Some(Told::BackendPolicy(it)) => it.tls.unwrap(),
            other => panic!("{other:?}"),
        };
        let roots = match told(world).remove(&format!("a/wp/{}", tls.ca)) {
            Some(Told::Secret(it)) => String::from_utf8(it.ca).unwrap(),
            _ => String::new(),
        };
        (tls.invalid, tls.ca, roots.matches("BEGIN CERT").count())
    };
    let conditions = |world: &World| {
        let key = api::k8s::objects::ObjectKey::new(Kind::BackendTlsPolicy, "a", "p");
        let status = world.status(&key).unwrap();
        let all = status.parents[0].conditions.iter();
        all.map(|it| format!("{}={} {}", it.r#type, it.status, it.reason))
            .collect::<Vec<_>>()
    };
    let (nobody, ..) = made(&world);
    assert!(
        nobody.contains("a/roots") && nobody.contains("a/gone"),
        "{nobody}"
    );
    assert_eq!(
        conditions(&world),
        [
            "Accepted=false NoValidCACertificate",
            "ResolvedRefs=false InvalidCACertificateRef"
        ]
    );
    let (certificate, _) = &*PAIR;
    let roots = |name: &str| object("ConfigMap", "a", name, &[("ca.crt", certificate)]);
    set(&mut world, &roots("roots"));
    assert_eq!(made(&world), (String::new(), "configmap/a/roots".into(), 1));
    let partly = [
        "Accepted=true Accepted",
        "ResolvedRefs=false InvalidCACertificateRef",
    ];
    assert_eq!(conditions(&world), partly);
    set(&mut world, &roots("more"));
    let own = "backendtlspolicy/a/p/authorities".to_owned();
    assert_eq!(made(&world), (String::new(), own.clone(), 2));
    set(&mut world, &roots("gone"));
    assert_eq!(made(&world), (String::new(), own, 3));
    assert_eq!(conditions(&world)[1], "ResolvedRefs=true ResolvedRefs");
    gone(&mut world, Kind::ConfigMap, "a", "roots");
    assert_eq!(made(&world).2, 2);
    gone(&mut world, Kind::BackendTlsPolicy, "a", "p");
    assert_eq!(secrets(&world), []);
}

#[test]
fn a_secret_without_roots_has_those_of_its_companion() {
    let mut world = world();
    let (certificate, key) = &*PAIR;
    let pair = [("tls.crt", certificate.as_str()), ("tls.key", key)];
    let own = |more: &[(&str, &str)]| object("Secret", "a", "c", &[&pair, more].concat());
    let companion = object("Secret", "a", "c-cacert", &[("cacert", certificate)]);
    let name = "a/wp/secret/a/c".to_owned();
    let wanted = |world: &World| {
        let all = world.wanted_credentials().into_iter();
        all.map(|it| it.name.to_string()).collect::<Vec<_>>()
    };
    set(&mut world, &rule("MUTUAL"));
    assert_eq!(wanted(&world), ["c", "c-cacert"]);
    set(&mut world, &own(&[]));
    assert_eq!(secrets(&world), [], "nobody vouches for the endpoints");
    set(&mut world, &companion);
    assert_eq!(secrets(&world), [(name.clone(), true)]);
    let rule_key = api::k8s::objects::ObjectKey::new(Kind::DestinationRule, "a", "r");
    assert!(world.status(&rule_key).unwrap().conditions.is_empty());
    gone(&mut world, Kind::Secret, "a", "c-cacert");
    assert_eq!(secrets(&world), []);
    // Its own are looked at first, and then nobody asks for others.
    set(&mut world, &own(&[("ca.crt", certificate)]));
    assert_eq!(wanted(&world), ["c"]);
    assert_eq!(secrets(&world), [(name.clone(), true)]);
    // For SIMPLE the companion alone is enough.
    gone(&mut world, Kind::Secret, "a", "c");
    set(&mut world, &(companion + &rule("SIMPLE")));
    assert_eq!(secrets(&world), [(name, false)]);
    gone(&mut world, Kind::DestinationRule, "a", "r");
    assert_eq!(secrets(&world), []);
    assert!(world.wanted_credentials().is_empty());
}

#[test]
fn a_list_of_who_is_revoked_that_cannot_be_read_keeps_the_roots_back() {
    let mut world = world();
    let (certificate, _) = &*PAIR;
    let fields = [("ca.crt", certificate.as_str()), ("ca.crl", "a list")];
    let text = object("Secret", "a", "c", &fields) + &rule("SIMPLE");
    set(&mut world, &text);
    assert_eq!(secrets(&world), []);
    let said = said(&world, Kind::DestinationRule, "a", "r").2;
    assert!(said.contains("ca.crl"), "{said}");
}

#[test]
fn who_leads_to_a_service_without_leave_gets_none_of_its_keys() {
    let mut world = world();
    let rule = |mode: &str| {
        let spec =
            format!("{{host: far, trafficPolicy: {{tls: {{mode: {mode}, credentialName: c}}}}}}");
        policy("DestinationRule", "networking.istio.io/v1", "c", "r", &spec)
    };
    let far = service("c", "far", "");
    set(&mut world, &(far.clone() + &secret("c") + &rule("MUTUAL")));
    assert_eq!(secrets(&world), [], "nobody sends there");
    // Namespace a has a waypoint of its own, and writes what it likes.
    let http = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: h, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: far, namespace: c, port: 80}]}]}\n---\n";
    set(&mut world, http);
    assert_eq!(secrets(&world), [], "it may not refer there");
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: c}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}\n---\n";
    set(&mut world, grant);
    let whole = [("a/wp/secret/c/c".to_owned(), true)];
    assert_eq!(secrets(&world), whole);
    gone(&mut world, Kind::ReferenceGrant, "c", "g");
    assert_eq!(secrets(&world), [], "no longer");
    gone(&mut world, Kind::HttpRoute, "a", "h");
    let spec = "{hosts: [web], http: [{route: [{destination: {host: far.c.svc.cluster.local}}]}]}";
    let route = policy("VirtualService", "networking.istio.io/v1", "a", "v", spec);
    set(&mut world, &route);
    assert_eq!(secrets(&world), [], "nobody gave it leave");
    // Roots are no secret.
    set(&mut world, &rule("SIMPLE"));
    assert_eq!(secrets(&world), [("a/wp/secret/c/c".to_owned(), false)]);
    set(&mut world, &rule("MUTUAL"));
    let behind = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: a";
    set(&mut world, &service("c", "far", behind));
    assert_eq!(secrets(&world), whole, "its owner chose that waypoint");
    set(&mut world, &far);
    assert_eq!(secrets(&world), []);
    // A key of the waypoint's own namespace is its own.
    let spec =
        "{host: far.c.svc.cluster.local, trafficPolicy: {tls: {mode: MUTUAL, credentialName: c}}}";
    let own = policy("DestinationRule", "networking.istio.io/v1", "a", "r", spec);
    set(&mut world, &(secret("a") + &own));
    assert_eq!(secrets(&world), [("a/wp/secret/a/c".to_owned(), true)]);
}
