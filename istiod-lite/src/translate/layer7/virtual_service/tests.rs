//! What users write, and what waypoints are told of it.

use serde_json::{Value, json};
use wire::filter::Filter as One;
use wire::path_change::Change;
use wire::string_match::Match as Text;

use super::*;

/// The routes of an `http` list.
fn made(http: Value) -> Routes {
    let spec = serde_json::from_value(json!({"hosts": ["web"], "http": http}));
    of(&spec.expect("a spec"))
}

fn of(spec: &VirtualServiceSpec) -> Routes {
    let find = |host: &str| {
        let ports = match host {
            "web.shop.svc.cluster.local" => vec![80],
            "two.shop.svc.cluster.local" => vec![80, 90],
            _ => return None,
        };
        Some(Found {
            namespace: "shop".to_owned(),
            ports,
        })
    };
    let having = |labels: &Labels, namespace: Option<&str>| {
        let (label, value) = labels.first_key_value().expect("a label");
        match label.as_str() {
            "many" => vec![String::new(); 10_001],
            "nobody" => Vec::new(),
            _ => vec![format!("{label}={value} in {}", namespace.unwrap_or("all"))],
        }
    };
    let parents = [wire::ServiceRef {
        namespace: "shop".to_owned(),
        hostname: "web.shop.svc.cluster.local".to_owned(),
        port: 0,
    }];
    let place = Place {
        namespace: "shop",
        domain: "cluster.local",
        parents: &parents,
        find: &find,
        having: &having,
    };
    routes(spec, &place)
}

/// The filters of the only route of an entry that sends to web beside what is given.
fn filters(mut entry: Value) -> Vec<One> {
    if entry["redirect"].is_null() && entry["directResponse"].is_null() {
        entry["route"] = json!([{"destination": {"host": "web"}}]);
    }
    let mut made = made(json!([entry]));
    let route = made.http.remove(0).route;
    let filters = route.filters.into_iter();
    filters.filter_map(|it| it.filter).collect()
}

#[test]
fn a_request_must_be_like_what_is_written_and_absent_values_are_asked_for_as_such() {
    let made = made(json!([{"match": [{
        "uri": {"prefix": "/a"}, "ignoreUriCase": true, "method": {"exact": "GET"}, "port": 80,
        "headers": {"x-there": {}, "x-re": {"regex": "a.*"}}, "withoutHeaders": {"x-not": {}, "x-other": {"exact": "1"}},
        "queryParams": {"q": {"exact": "1"}}, "sourceNamespace": "b", "sourceLabels": {"app": "x"},
        "authority": {"exact": "web"}, "scheme": {"exact": "https"},
    }], "route": [{"destination": {"host": "web"}}]}]));
    let it = &made.http[0].route.matches[0];
    let path = it.path.as_ref().expect("a path");
    assert_eq!(
        path.r#match,
        Some(wire::path_match::Match::TextPrefix("/a".to_owned()))
    );
    assert!(path.ignore_case);
    let regex = json!([{"match": [{"uri": {"regex": "/a.*"}, "ignoreUriCase": true}], "route": [{"destination": {"host": "web"}}]}]);
    let regex = self::made(regex).http.remove(0).route.matches.remove(0);
    assert!(!regex.path.expect("a path").ignore_case);
    let values: Vec<_> = it
        .headers
        .iter()
        .filter_map(|it| {
            Some((
                it.name.as_str(),
                it.value.as_ref()?.r#match.clone()?,
                it.value.as_ref()?.invert,
            ))
        })
        .collect();
    assert_eq!(
        values,
        [
            ("x-re", Text::Regex("a.*".to_owned()), false),
            ("x-there", Text::Present(true), false),
            ("x-not", Text::Present(true), true),
            ("x-other", Text::Exact("1".to_owned()), true),
        ]
    );
    assert_eq!(
        (it.port, it.source_namespaces.as_slice()),
        (80, &["b".to_owned()][..])
    );
    let clients = it.source_workloads.as_ref().expect("clients");
    assert_eq!(clients.uids, ["app=x in b"]);
}

/// As an expression a proxy would refuse it, and answer with 500 whatever else the entry is for.
#[test]
fn a_star_in_the_place_of_an_expression_asks_for_presence() {
    let star = || json!({"regex": "*"});
    let made = made(json!([{"match": [{
        "headers": {"x-there": star()}, "withoutHeaders": {"x-not": star()}, "queryParams": {"q": star()},
    }], "route": [{"destination": {"host": "web"}}]}]));
    let it = &made.http[0].route.matches[0];
    let all = it.headers.iter().chain(&it.query);
    let all = all.map(|it| (it.name.as_str(), it.value.clone()));
    let present = |invert| {
        Some(wire::StringMatch {
            r#match: Some(Text::Present(true)),
            invert,
            ..wire::StringMatch::default()
        })
    };
    assert_eq!(
        all.collect::<Vec<_>>(),
        [
            ("x-there", present(false)),
            ("x-not", present(true)),
            ("q", present(false)),
        ]
    );
}

#[test]
fn who_asks_for_labels_of_too_many_clients_fails_rather_than_takes_what_is_not_its_own() {
    let made = made(json!([
        {"match": [{"sourceLabels": {"many": "yes"}}], "route": [{"destination": {"host": "web"}}]},
        {"match": [{"sourceLabels": {"nobody": "x"}}], "route": [{"destination": {"host": "web"}}]},
    ]));
    let first = made.http[0].route.filters.first();
    assert!(matches!(
        first.and_then(|it| it.filter.as_ref()),
        Some(One::Unknown(_))
    ));
    assert!(made.remarks.len() == 1 && made.remarks[0].starts_with("http[0]: sourceLabels"));
    // Nobody is not everybody.
    let nobody = &made.http[1].route.matches[0].source_workloads;
    assert_eq!(nobody.as_ref().map(|it| it.uids.len()), Some(0));
    assert!(made.http[1].route.filters.is_empty());
}

#[test]
fn a_prefix_is_rewritten_in_its_place_and_anything_else_whole() {
    let made = made(json!([{
        "match": [{"uri": {"prefix": "/old"}}, {"uri": {"exact": "/one"}}, {"uri": {"prefix": "/older"}}],
        "rewrite": {"uri": "/new", "authority": "other"}, "route": [{"destination": {"host": "web"}}],
    }]));
    let lines: Vec<_> = made
        .http
        .iter()
        .map(|it| {
            (
                it.rule.as_str(),
                it.index,
                it.route.matches.len(),
                it.route.filters[0].filter.clone(),
            )
        })
        .collect();
    let rewrite = |change| {
        Some(One::Rewrite(wire::Rewrite {
            hostname: "other".to_owned(),
            path: Some(wire::PathChange {
                change: Some(change),
            }),
        }))
    };
    assert_eq!(
        lines,
        [
            ("0", 0, 2, rewrite(Change::Prefix("/new".to_owned()))),
            ("0.1", 0, 1, rewrite(Change::Full("/new".to_owned()))),
        ]
    );
}

#[test]
fn what_is_done_has_a_sidecars_order_and_meaning() {
    let all = filters(json!({
        "corsPolicy": {"allowOrigins": [{"exact": "*"}, {"regex": "h.*"}], "allowCredentials": true, "maxAge": "24h", "unmatchedPreflights": "IGNORE"},
        "fault": {"delay": {"fixedDelay": "5s", "percentage": {"value": 0.1}}, "abort": {"grpcStatus": "UNAVAILABLE"}},
        "headers": {"request": {"set": {"Host": "h", "a": "1"}, "remove": ["b"]}, "response": {"add": {"c": "2"}}},
        "mirror": {"host": "two", "port": {"number": 90}}, "mirrorPercentage": {"value": 25.0},
    }));
    let [
        One::Cors(cors),
        One::Fault(fault),
        One::Rewrite(host),
        One::RequestHeaders(request),
        One::ResponseHeaders(response),
        One::Mirror(mirror),
    ] = all.as_slice()
    else {
        unreachable!("{all:?}")
    };
    assert!(cors.any_origin && cors.credentials && !cors.forward_unmatched);
    assert_eq!((cors.origins.len(), cors.max_age_seconds), (1, 86_400));
    let share = |it: &Option<wire::Fraction>| it.map(|it| (it.numerator, it.denominator));
    assert_eq!(
        (fault.delay, share(&fault.delayed)),
        (5_000, Some((1_000, 1_000_000)))
    );
    assert_eq!(
        (fault.grpc_status, share(&fault.aborted)),
        (Some(14), Some((0, 100)))
    );
    assert_eq!(host.hostname, "h");
    assert_eq!(
        (request.set.len(), request.remove.as_slice()),
        (1, &["b".to_owned()][..])
    );
    assert_eq!(response.add[0].value, "2");
    assert_eq!(share(&mirror.fraction), Some((250_000, 1_000_000)));
}

#[test]
fn a_host_that_is_added_stands_in_the_place_of_the_requests_own() {
    for headers in [
        json!({"set": {"Host": "h"}, "add": {"a": "1"}}),
        json!({"add": {"Host": "h", "a": "1"}}),
        json!({"add": {":authority": "h", "a": "1"}}),
        json!({"set": {"host": "h"}, "add": {"Host": "other", "a": "1"}}),
    ] {
        let all = filters(json!({"headers": {"request": headers.clone()}}));
        let [One::Rewrite(host), One::RequestHeaders(change)] = all.as_slice() else {
            panic!("{headers}: {all:?}")
        };
        assert_eq!(host.hostname, "h", "{headers}");
        let added: Vec<_> = change.add.iter().map(|it| it.name.as_str()).collect();
        assert_eq!((change.set.len(), added), (0, vec!["a"]), "{headers}");
    }
}

#[test]
fn redirects_and_answers_are_told_as_written() {
    let redirect = |entry: Value| match filters(json!({"redirect": entry})).remove(0) {
        One::Redirect(it) => it,
        other => unreachable!("{other:?}"),
    };
    let it = redirect(json!({"authority": "new.example:8443", "uri": "/x"}));
    assert_eq!(
        (it.hostname.as_str(), it.port, it.status),
        ("new.example", 8443, 301)
    );
    // To another host by its scheme's own port; 0 is the one that was asked at, or that of the scheme that is named.
    for (entry, port) in [
        (json!({"authority": "new.example"}), 80),
        (json!({"authority": "new.example", "uri": "/x"}), 80),
        (json!({"authority": "new.example", "port": 8080}), 8080),
        (
            json!({"authority": "new.example", "derivePort": "FROM_REQUEST_PORT"}),
            0,
        ),
        (json!({"authority": "new.example", "scheme": "https"}), 0),
        (json!({"uri": "/x"}), 0),
    ] {
        assert_eq!(redirect(entry.clone()).port, port, "{entry}");
    }
    let it = redirect(json!({"uri": "%PREFIX()%/y", "redirectCode": 308, "scheme": "https"}));
    assert_eq!((it.status, it.scheme.as_str()), (308, "https"));
    assert_eq!(
        it.path.and_then(|it| it.change),
        Some(Change::Prefix("/y".to_owned()))
    );
    let one =
        filters(json!({"directResponse": {"status": 503, "body": {"bytes": "aGk="}}})).remove(0);
    assert!(matches!(one, One::DirectResponse(it) if it.status == 503 && it.body == b"hi"));
}

#[test]
fn retries_are_read_word_by_word_and_default_to_what_istio_does() {
    let retry = |retries: Value| {
        let entry = json!([{"route": [{"destination": {"host": "web"}}], "retries": retries}]);
        let mut made = made(entry);
        (made.http.remove(0).route.retry, made.remarks)
    };
    let (unsaid, _) = retry(Value::Null);
    let unsaid = unsaid.expect("retries");
    assert_eq!(
        (unsaid.attempts, unsaid.codes, unsaid.grpc_codes),
        (2, vec![], vec![14, 1])
    );
    assert!(unsaid.connect_failure && unsaid.refused_stream && !unsaid.reset);
    assert_eq!(retry(json!({"attempts": 0})).0, None);
    let (all, remarks) = retry(
        json!({"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx, 429,resource-exhausted, envoy-ratelimited"}),
    );
    let all = all.expect("retries");
    assert!(all.server_error && all.gateway_error && all.reset);
    assert_eq!(
        (all.codes, all.grpc_codes, all.try_timeout),
        (vec![429], vec![8], 2_000)
    );
    assert!(
        remarks.len() == 1 && remarks[0].contains("envoy-ratelimited"),
        "{remarks:?}"
    );
}

#[test]
fn a_reset_is_no_answer_at_all_and_one_before_the_request_is_what_no_app_has_seen() {
    let of = |on: &str| {
        let entry = json!([{"route": [{"destination": {"host": "web"}}], "retries": {"attempts": 1, "retryOn": on}}]);
        let mut made = made(entry);
        assert_eq!(made.remarks, [""; 0]);
        let it = made.http.remove(0).route.retry.expect("retries");
        (it.connect_failure, it.refused_stream, it.reset)
    };
    assert_eq!(of("connect-failure"), (true, false, false));
    assert_eq!(of("reset"), (true, false, true));
    assert_eq!(of("reset-before-request"), (true, true, false));
    assert_eq!(of("reset-before-request,reset"), (true, true, true));
}

#[test]
fn what_cannot_be_understood_fails_its_requests_and_is_said() {
    for (entry, said) in [
        (
            json!({"fault": {"abort": {"grpcStatus": "NO_SUCH"}}, "route": [{"destination": {"host": "web"}}]}),
            "NO_SUCH",
        ),
        (json!({"delegate": {"name": "x"}}), "delegate"),
        (json!({"directResponse": {"status": 99}}), "99"),
    ] {
        let made = made(json!([entry]));
        let fails = made.http[0]
            .route
            .filters
            .iter()
            .any(|it| matches!(it.filter, Some(One::Unknown(_))));
        assert!(
            fails && made.remarks.iter().any(|it| it.contains(said)),
            "{made:?}"
        );
    }
    let made = made(
        json!([{"timeout": "0s", "route": [{"destination": {"host": "nobody"}, "weight": 1}, {"destination": {"host": "two"}, "weight": 3}]}]),
    );
    let route = &made.http[0].route;
    assert!(route.timeouts.is_some_and(|it| it.no_request_limit));
    let to: Vec<_> = route
        .backends
        .iter()
        .map(|it| {
            (
                it.weight,
                matches!(it.to, Some(wire::backend::To::Service(_))),
            )
        })
        .collect();
    assert_eq!(to, [(1, false), (3, true)]);
}

#[test]
fn entries_that_are_for_gateways_alone_are_left_out() {
    let made = made(json!([
        {"match": [{"gateways": ["edge"]}], "route": [{"destination": {"host": "web"}}]},
        {"match": [{"gateways": ["edge"]}, {"uri": {"exact": "/"}}], "route": [{"destination": {"host": "web"}}]},
    ]));
    assert_eq!(made.http.len(), 1);
    assert_eq!(
        (made.http[0].index, made.http[0].route.matches.len()),
        (1, 1)
    );
}

#[test]
fn streams_are_told_apart_by_port_name_and_namespace_and_by_nothing_a_waypoint_does_not_see() {
    let spec = serde_json::from_value(json!({"hosts": ["web"],
        "tls": [{"match": [{"sniHosts": ["a.example"], "port": 443}], "route": [{"destination": {"host": "web"}}]}],
        "tcp": [{"match": [{"port": 70, "sourceNamespace": "b"}, {"sourceLabels": {"a": "b"}}, {"sourceSubnet": "10.0.0.0/8"}], "route": [{"destination": {"host": "two", "port": {"number": 90}}}]}]}));
    let made = of(&spec.expect("a spec"));
    let lines: Vec<_> = made
        .tcp
        .iter()
        .map(|it| {
            (
                it.rule.as_str(),
                it.route.sni.len(),
                it.route.source_namespaces.len(),
                it.route.source_workloads.as_ref().map(|it| &it.uids[..]),
            )
        })
        .collect();
    let labelled = ["a=b in all".to_owned()];
    let expected = [
        ("tls0.0", 1, 0, None),
        ("tcp0.0", 0, 1, None),
        ("tcp0.1", 0, 0, Some(&labelled[..])),
    ];
    assert_eq!(lines, expected);
    assert!(
        made.remarks.len() == 1 && made.remarks[0].contains("sourceSubnet"),
        "{:?}",
        made.remarks
    );
}

#[test]
fn what_has_no_effect_is_said_and_the_rest_stays() {
    let made = made(json!([{
        "match": [{"uri": {"prefix": "/"}, "statPrefix": "x"}],
        "fault": {"delay": {"fixedDelay": "1s", "exponentialDelay": "1s"}, "abort": {"httpStatus": 503, "http2Error": "x"}},
        "redirect": {"scheme": "https", "derivePort": "FROM_REQUEST_PORT"},
        "retries": {"attempts": 1, "retryRemoteLocalities": true, "retryIgnorePreviousHosts": false},
    }]));
    for word in [
        "retryRemoteLocalities",
        "retryIgnorePreviousHosts",
        "statPrefix",
        "exponentialDelay",
        "http2Error",
        "FROM_REQUEST_PORT",
    ] {
        let said = made.remarks.iter().filter(|it| it.contains(word)).count();
        assert_eq!(said, 1, "{word}: {:?}", made.remarks);
    }
    let derived = |scheme: &str| {
        let redirect = json!({"scheme": scheme, "derivePort": "FROM_PROTOCOL_DEFAULT"});
        match filters(json!({"redirect": redirect})).remove(0) {
            One::Redirect(it) => it.port,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((derived("https"), derived("http")), (443, 80));
}
