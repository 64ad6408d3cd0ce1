//! The metrics.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hbone::{Alert, OpenError, TlsError};
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use ops::series::{Bounds, Without};
use waypoint::report::{Copied, Flag, Flags, Reporter, Reports};
use waypoint::request::Refused;
use waypoint::upstream::Failed;

use super::scene::{Scene, body, data, get, grpc, logged, read, trailers, workload};

fn ok<B>(body: B) -> Response<B> {
    Response::new(body)
}

#[test]
fn a_request_has_istios_labels() {
    let scene = Scene::new();
    read(scene.sent(&get("/")).answer(ok(Full::from("hello"))));
    let series = scene.series("istio_requests_total");
    assert_eq!(series.len(), 1);
    let (labels, count) = &series[0];
    assert_eq!(*count, 1.0);
    let expected = [
        ("reporter", "waypoint"),
        ("source_workload", "front-deployment"),
        ("source_canonical_service", "front"),
        ("source_canonical_revision", "v1"),
        ("source_workload_namespace", "front"),
        ("source_principal", "spiffe://cluster.local/ns/front/sa/app"),
        ("source_app", "front"),
        ("source_version", "v1"),
        ("source_cluster", "Kubernetes"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_namespace", "shop"),
        ("destination_service_name", "web"),
        ("destination_workload", "web-deployment"),
        ("destination_canonical_service", "web"),
        ("destination_canonical_revision", "v1"),
        ("destination_workload_namespace", "shop"),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/shop/sa/web",
        ),
        ("destination_app", "web"),
        ("destination_version", "v1"),
        ("destination_cluster", "Kubernetes"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("grpc_response_status", ""),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
        ("source_region", "unknown"),
        ("source_zone", "unknown"),
        ("destination_region", "unknown"),
        ("destination_zone", "unknown"),
    ];
    for (name, value) in expected {
        assert_eq!(labels.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(labels.len(), expected.len());
}

#[test]
fn what_is_known_of_nobody_is_unknown() {
    let mut scene = Scene::new();
    scene.client.identity = None;
    scene.client.workload = None;
    drop(scene.begin(&get("/")));
    let (labels, _) = &scene.series("istio_requests_total")[0];
    for name in [
        "source_workload",
        "source_principal",
        "destination_workload",
        "connection_security_policy",
    ] {
        assert_eq!(labels[name], "unknown", "{name}");
    }
}

#[test]
fn durations_and_sizes_are_histograms() {
    let scene = Scene::new();
    let mut report = scene.sent(&get("/"));
    let request = report.received(Full::from(vec![b'x'; 30]));
    read(ok(request));
    read(report.answer(ok(Full::from(vec![b'y'; 2_000]))));
    let sum = |name: &str| scene.total(&format!("{name}_sum"));
    assert_eq!(
        (sum("istio_request_bytes"), sum("istio_response_bytes")),
        (30.0, 2_000.0)
    );
    let buckets = scene.series("istio_response_bytes_bucket");
    let at = |le: &str| {
        let found = buckets.iter().find(|(labels, _)| labels["le"] == le);
        found.unwrap().1
    };
    assert_eq!((at("1000.0"), at("2500.0"), at("+Inf")), (0.0, 1.0, 1.0));
    assert_eq!(
        scene.total("istio_request_duration_milliseconds_count"),
        1.0
    );
}

#[test]
fn a_request_counts_once_whatever_becomes_of_it() {
    type Act = fn(&Scene);
    let rows: [(&str, &str, Act); 11] = [
        ("200", "-", |scene| {
            read(scene.sent(&get("/")).answer(ok(Full::from("x"))));
        }),
        ("204", "-", |scene| {
            let mut answer = ok(Full::<Bytes>::default());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            drop(scene.sent(&get("/")).answer(answer)); // a server need not ask a body that has ended
        }),
        ("200", "DC", |scene| {
            drop(
                scene
                    .sent(&get("/"))
                    .answer(ok(Full::<Bytes>::from("never read"))),
            )
        }),
        ("0", "DC", |scene| drop(scene.sent(&get("/")))),
        ("404", "NR", |scene| {
            let mut report = scene.begin(&get("/"));
            report.flag(Flag::NoRoute);
            let mut answer = ok(Full::<Bytes>::default());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            read(report.answer(answer));
        }),
        ("200", "UC", |scene| {
            let broken = futures_util::stream::iter([Ok(data(b"half")), Err("reset")]);
            read(
                scene
                    .sent(&get("/"))
                    .answer(ok(http_body_util::StreamBody::new(broken))),
            );
        }),
        // What was wanted for it does not hide how it ended.
        ("0", "DC,DI", |scene| {
            let mut report = scene.begin(&get("/"));
            report.flag(Flag::DelayInjected);
            drop(report);
        }),
        ("200", "DC,HG", |scene| {
            let mut report = scene.sent(&get("/"));
            report.flag(Flag::Hedged);
            drop(report.answer(ok(Full::<Bytes>::from("never read"))));
        }),
        ("200", "UC,HG", |scene| {
            let mut report = scene.sent(&get("/"));
            report.flag(Flag::Hedged);
            let broken = futures_util::stream::iter([Ok(data(b"half")), Err("reset")]);
            read(report.answer(ok(http_body_util::StreamBody::new(broken))));
        }),
        ("200", "DI", |scene| {
            let mut report = scene.sent(&get("/"));
            report.flag(Flag::DelayInjected);
            read(report.answer(ok(Full::from("x"))));
        }),
        ("503", "UF,URX", |scene| {
            let mut report = scene.sent(&get("/"));
            report.flag(Flag::RetriesExhausted);
            report.flag(Flag::UpstreamConnectFailure);
            let mut answer = ok(Full::<Bytes>::default());
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            read(report.answer(answer));
        }),
    ];
    for (code, flags, act) in rows {
        let scene = Scene::new();
        act(&scene);
        let series = scene.series("istio_requests_total");
        assert_eq!(series.len(), 1, "{code} {flags}");
        let (labels, count) = &series[0];
        assert_eq!(
            (
                &*labels["response_code"],
                &*labels["response_flags"],
                *count
            ),
            (code, flags, 1.0)
        );
    }
}

#[test]
fn grpc_statuses_come_from_trailers_or_from_a_head_alone() {
    let status = |scene: &Scene| {
        let (labels, _) = &scene.series("istio_requests_total")[0];
        (
            labels["request_protocol"].clone(),
            labels["grpc_response_status"].clone(),
        )
    };
    let expect = |status: &str| ("grpc".to_owned(), status.to_owned());

    let scene = Scene::new();
    let frames = vec![data(b"\0\0\0\0\x02ab"), trailers("grpc-status", "0")];
    read(scene.sent(&grpc()).answer(ok(body(frames))));
    assert_eq!(status(&scene), expect("0"));

    let scene = Scene::new();
    let mut answer = ok(Full::<Bytes>::default());
    answer
        .headers_mut()
        .insert("grpc-status", "14".parse().unwrap());
    read(scene.sent(&grpc()).answer(answer));
    assert_eq!(status(&scene), expect("14"));

    for (odd, counted) in [("99999", ""), ("17", "2"), ("x", "")] {
        let scene = Scene::new();
        let mut answer = ok(Full::<Bytes>::default());
        answer
            .headers_mut()
            .insert("grpc-status", odd.parse().unwrap());
        read(scene.sent(&grpc()).answer(answer));
        assert_eq!(
            status(&scene),
            expect(counted),
            "{odd}: no series for each invention"
        );
    }

    let scene = Scene::new();
    read(
        scene
            .sent(&get("/"))
            .answer(ok(body(vec![trailers("grpc-status", "7")]))),
    );
    let (labels, _) = &scene.series("istio_requests_total")[0];
    assert_eq!(
        (
            &*labels["request_protocol"],
            &*labels["grpc_response_status"]
        ),
        ("http", "")
    );
}

#[test]
fn grpc_messages_are_counted_however_they_are_cut() {
    let all = b"\0\0\0\0\x03abc\0\0\0\0\0\x01\0\0\0\x05hello";
    for cut in 1..all.len() {
        let scene = Scene::new();
        let mut report = scene.sent(&grpc());
        let frames = |step: usize| {
            let chunks = all.chunks(step).map(Bytes::from_static);
            body(chunks.map(http_body::Frame::data).collect())
        };
        read(ok(report.received(frames(cut))));
        read(report.answer(ok(frames(all.len() - cut))));
        assert_eq!(scene.total("istio_request_messages_total"), 3.0, "{cut}");
        assert_eq!(scene.total("istio_response_messages_total"), 3.0, "{cut}");
    }
    let scene = Scene::new();
    read(scene.sent(&get("/")).answer(ok(body(vec![data(all)]))));
    assert!(scene.series("istio_response_messages_total").is_empty());
}

#[test]
fn what_a_body_says_of_itself_stays_what_it_was() {
    let scene = Scene::new();
    let mut report = scene.sent(&get("/"));
    let counted = report.received(Full::from("12345"));
    assert_eq!(counted.size_hint().exact(), Some(5));
    let answer = report.answer(ok(Full::from("1234567")));
    assert_eq!(answer.body().size_hint().exact(), Some(7));
    assert!(!answer.body().is_end_stream());
}

#[test]
fn what_strangers_say_of_themselves_makes_only_so_many_series() {
    let mut scene = Scene::new();
    scene.client.workload = None;
    for stranger in 0..3_000 {
        scene.client.said.workload = Some(format!("stranger-{stranger}").into());
        drop(scene.begin(&get("/")));
    }
    assert_eq!(scene.reports.series(), 2_001, "and one for all others");
}

#[test]
fn a_stranger_with_a_long_name_has_none() {
    let mut scene = Scene::new();
    scene.client.workload = None;
    scene.client.said.workload = Some("x".repeat(254).into());
    scene.client.said.service = Some("shop".into());
    scene.client.said.namespace = Some("invented".into());
    drop(scene.begin(&get("/")));
    let (labels, _) = &scene.series("istio_requests_total")[0];
    assert_eq!(labels["source_workload"], "unknown");
    assert_eq!(labels["source_canonical_service"], "shop");
    assert_eq!(labels["source_workload_namespace"], "front");
}

#[test]
fn codes_that_an_app_invents_make_only_so_many_series() {
    let mut scene = Scene::new();
    for pod in 0..12 {
        scene.endpoint = workload(&format!("pod-{pod}"), "shop");
        for code in 100..1_000 {
            let mut answer = ok(Full::<Bytes>::default());
            *answer.status_mut() = StatusCode::from_u16(code).unwrap();
            read(scene.sent(&get("/")).answer(answer));
        }
    }
    let beyond = scene.reports.series() - 10_000;
    assert!(
        (1..=9).contains(&beyond),
        "one for each class of codes: {beyond}"
    );
}

#[test]
fn a_series_that_names_who_is_gone_expires_and_beyond_the_bound_they_fall_together() {
    let bounds = Bounds {
        most: 2,
        expiry: Duration::from_secs(60),
    };
    let reports = Reports::new(Reporter::Waypoint);
    let mut scene = Scene::of(reports.bounded(bounds, Without::default()));
    for pod in ["goes", "other", "third", "fourth"] {
        scene.endpoint = workload(pod, "shop");
        read(scene.sent(&get("/")).answer(ok(Full::<Bytes>::default())));
    }
    let told = |scene: &Scene| {
        let all = scene.series("istio_requests_total").into_iter();
        let mut all: Vec<_> = all
            .map(|(labels, count)| format!("{} {count}", labels["destination_workload"]))
            .collect();
        all.sort();
        all
    };
    let before = told(&scene);
    assert_eq!(before.len(), 3, "{before:?}");
    assert!(before.contains(&"overflow 2".to_owned()), "{before:?}");
    // The mesh knows none of them.
    let (mesh, _writer) = mesh::Mesh::new();
    let begun = Instant::now();
    scene.reports.sweep(&mesh.load(), begun);
    scene.reports.sweep(&mesh.load(), begun);
    assert_eq!(told(&scene), before, "not yet for so long");
    scene
        .reports
        .sweep(&mesh.load(), begun + Duration::from_secs(61));
    assert_eq!(told(&scene), ["overflow 2"]);
}

#[test]
fn labels_that_are_left_out_tell_nothing_apart() {
    let without =
        Without::parse("destination_workload,destination_canonical_service,destination_app");
    let reports = Reports::new(Reporter::Waypoint);
    let mut scene = Scene::of(reports.bounded(Bounds::default(), without.unwrap()));
    for pod in ["one", "two"] {
        scene.endpoint = workload(pod, "shop");
        read(scene.sent(&get("/")).answer(ok(Full::<Bytes>::default())));
    }
    let all = scene.series("istio_requests_total");
    let [(labels, count)] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!(*count, 2.0);
    assert!(
        !labels.contains_key("destination_workload") && labels.contains_key("destination_version")
    );
}

#[test]
fn flags_have_envoys_letters() {
    let flags = [Flag::RetriesExhausted, Flag::UpstreamConnectFailure];
    let flags = flags.into_iter().fold(Flags::default(), Flags::with);
    assert_eq!(flags.to_string(), "UF,URX");
    assert_eq!(Flags::default().to_string(), "-");
    assert!(flags.has(Flag::RetriesExhausted) && !flags.has(Flag::NoRoute));
    for (flag, letters) in [
        (Flag::NoHealthyUpstream, "UH"),
        (Flag::DownstreamClosed, "DC"),
        (Flag::RateLimited, "RL"),
        (Flag::Unauthorized, "UAEX"),
        (Flag::FaultInjected, "FI"),
        (Flag::NameUnresolved, "DF"),
        (Flag::Overloaded, "OM"),
        (Flag::CertificateRevoked, "CERT_REVOKED"),
    ] {
        assert_eq!(Flags::from(flag).to_string(), letters);
    }
    assert!(!Flags::from(Flag::FaultInjected).are_trouble());
    assert!(Flags::from(Flag::UpstreamTimeout).are_trouble());
}

#[test]
fn a_certificate_that_was_revoked_is_said_with_the_word_of_ztunnels_beside_envoys_letters() {
    for (why, flags) in [
        (TlsError::Revoked, "UF,CERT_REVOKED"),
        (
            TlsError::Alert(Alert::CERTIFICATE_REVOKED),
            "UF,CERT_REVOKED",
        ),
        (TlsError::Alert(Alert::UNKNOWN_CA), "UF"),
    ] {
        let scene = Scene::new();
        let mut report = scene.sent(&get("/"));
        let refused = Refused::from(Failed::Tunnel(OpenError::Tls(why)));
        let answer = refused.answer(false, &mut report);
        read(report.answer(answer));
        let (labels, _) = &scene.series("istio_requests_total")[0];
        assert_eq!(labels["response_flags"], flags);
    }
}

/// From many threads at once, nothing is lost.
#[test]
fn counting_at_once_loses_nothing() {
    let scene = Scene::new();
    let caller = scene.caller();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    let (head, ()) = get("/").into_parts();
                    let report = scene.reports.request(&caller, &head, Instant::now());
                    read(report.answer(ok(Full::from("x"))));
                }
            });
        }
    });
    assert_eq!(scene.total("istio_requests_total"), 8_000.0);
    assert_eq!(scene.total("istio_response_bytes_sum"), 8_000.0);
}

#[test]
fn copies_are_counted_and_those_that_are_given_up_are_told_of_once() {
    let scene = Scene::new();
    assert!(!scene.scraped().contains("ambit_mirrored"));
    let lines = logged(|| {
        for copied in [Copied::Answered, Copied::Failed, Copied::Late] {
            scene.reports.mirrored("calm", copied);
        }
        for _ in 0..3 {
            scene.reports.mirrored("slow", Copied::Behind);
        }
        scene.reports.mirrored("slow", Copied::Crowded);
    });
    let told = lines.iter().filter(|line| line.contains("mirror"));
    assert_eq!(told.count(), 1, "{lines:?}");
    assert!(lines[0].contains("service=\"slow\""), "{lines:?}");
    let count = |service: &str, outcome: &str| {
        let all = scene.series("ambit_mirrored_total");
        let found = all
            .into_iter()
            .find(|(labels, _)| labels["service"] == service && labels["outcome"] == outcome);
        found.map(|(_, count)| count)
    };
    assert_eq!(count("slow", "behind"), Some(3.0));
    assert_eq!(count("slow", "crowded"), Some(1.0));
    assert_eq!(count("calm", "late"), Some(1.0));
    assert_eq!(count("calm", "behind"), Some(0.0));
    for number in 0..2_000 {
        scene
            .reports
            .mirrored(&number.to_string(), Copied::Answered);
    }
    assert!(scene.series("ambit_mirrored_total").len() <= 1_001 * 5);
    assert!(count("unknown", "answered") > Some(900.0));
}
