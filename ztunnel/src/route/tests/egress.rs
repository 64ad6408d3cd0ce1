//! Destinations that the mesh does not know.

use super::*;

/// What a client with this setting gets at places outside of the mesh, and inside of it.
#[test]
fn who_is_unknown_is_reached_logged_or_refused_as_the_callers_setting_says_and_who_is_known_always()
{
    use api::egress::egress::Mode;
    let asked_with = |mode: Option<Mode>, to: &str| {
        let mesh = snapshot(|mesh| {
            let mut client = pod("client", &["10.0.0.1", "fd00::1"]);
            client.extensions = mode
                .into_iter()
                .map(|mode| egress(mode, "the mesh"))
                .collect();
            mesh.set_workload(client);
            mesh.set_workload(pod("web", &["10.0.0.2"]));
            let mut on_node = pod("proxy", &["192.0.2.1"]);
            on_node.network_mode = wire::NetworkMode::HostNetwork.into();
            mesh.set_workload(on_node);
            let mut named = service(
                "named.example",
                &["10.1.0.4", "198.51.100.0/24"],
                &[(443, 443)],
            );
            named.load_balancing = Some(wire::LoadBalancing {
                mode: wire::load_balancing::Mode::Passthrough.into(),
                ..Default::default()
            });
            mesh.set_service(named);
        });
        say(ask(&mesh, to, &[]))
    };
    let outside = [
        "203.0.113.9:443",
        "[2001:db8::9]:443",
        "169.254.169.254:80",
        "192.0.2.2:443",
    ];
    for to in outside {
        for allowing in [None, Some(Mode::Allow)] {
            assert_eq!(asked_with(allowing, to), format!("plain Address({to})"));
        }
        let logged = format!("plain Address({to}) logged by the mesh");
        assert_eq!(asked_with(Some(Mode::Log), to), logged);
        let refused = asked_with(Some(Mode::Refuse), to);
        let expected =
            format!("refused: egress refused by the mesh: the mesh knows nobody at {to} (");
        assert!(refused.starts_with(&expected), "{refused}");
    }
    let inside = [
        ("10.0.0.2:80", "tunnel 10.0.0.2:15008 to 10.0.0.2:80 by web"),
        (
            "10.1.0.4:443",
            "plain Address(10.1.0.4:443) of named.example",
        ),
        (
            "198.51.100.7:443",
            "plain Address(198.51.100.7:443) of named.example",
        ),
        // A node, for itself and for whoever has no address but its own; the pod itself; who answers its questions.
        ("192.0.2.1:10250", "plain Address(192.0.2.1:10250)"),
        ("127.0.0.2:80", "plain Address(127.0.0.2:80)"),
        ("192.0.2.53:53", "plain Address(192.0.2.53:53)"),
    ];
    for mode in [Mode::Allow, Mode::Log, Mode::Refuse] {
        for (to, expected) in inside {
            assert_eq!(asked_with(Some(mode), to), expected, "{mode:?}");
        }
    }
    // What is on the list is so with its ports, and a resolver is asked for names only.
    for to in ["198.51.100.7:22", "192.0.2.53:443"] {
        let refused = asked_with(Some(Mode::Refuse), to);
        assert!(refused.starts_with("refused: "), "{to}: {refused}");
    }
    let why = Refused::Egress {
        destination: "203.0.113.9:443".parse().unwrap(),
        by: "".into(),
    };
    assert_eq!(
        crate::report::Failure::flag(&why),
        crate::traffic::Flag::Egress
    );
}
