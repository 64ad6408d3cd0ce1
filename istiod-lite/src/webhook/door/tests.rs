//! What is answered at the door, without a network.

use std::convert::Infallible;
use std::sync::Arc;

use http_body::Frame;
use http_body_util::{BodyExt as _, Full as Whole, StreamBody};
use ops::metrics::Registry;

use super::*;
use crate::metrics::Metrics;

fn desk() -> Desk {
    desk_with(None)
}

fn desk_with(injector: Option<Injector>) -> Desk {
    let judge = Judge {
        root_namespace: "istio-system".into(),
        dry_run: false,
        exists: Arc::new(|_| None),
        metrics: Metrics::register(&mut Registry::new("pilot", "test")),
    };
    Desk::new(judge, injector)
}

fn post(body: impl Into<Bytes>) -> Request<Whole<Bytes>> {
    Request::post("https://istiod/validate?timeout=5s")
        .body(Whole::new(body.into()))
        .unwrap()
}

async fn answered<B: Body<Data = Bytes> + Unpin>(
    desk: &Desk,
    request: Request<B>,
) -> (StatusCode, String) {
    let peer = ([127, 0, 0, 1], 1).into();
    let response = desk.answer(request, peer).await;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

const REVIEW: &str = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
    "uid": "u", "operation": "CREATE", "name": "p", "namespace": "alpha",
    "kind": {"group": "security.istio.io", "version": "v1", "kind": "PeerAuthentication"},
    "object": {"metadata": {"name": "p", "namespace": "alpha"}, "spec": {"mtls": {"mode": "NEVER"}}}}}"#;

#[tokio::test]
async fn a_review_is_answered_and_nothing_else_is() {
    let desk = desk();
    let (status, text) = answered(&desk, post(REVIEW)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        text.contains("spec.mtls.mode: \\\"NEVER\\\" is not one of"),
        "{text}"
    );

    let get = Request::get("/validate").body(Whole::default()).unwrap();
    assert_eq!(answered(&desk, get).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let elsewhere = Request::post("/").body(Whole::default()).unwrap();
    assert_eq!(answered(&desk, elsewhere).await.0, StatusCode::NOT_FOUND);
    let (status, text) = answered(&desk, post("no JSON")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("AdmissionReview"), "{text}");
}

#[tokio::test]
async fn what_is_no_json_is_sent_away_with_what_it_should_be() {
    let desk = desk();
    for (kind, status) in [
        ("application/json", StatusCode::OK),
        ("Application/JSON; charset=utf-8", StatusCode::OK),
        ("application/yaml", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        let mut request = post(REVIEW);
        let kind = http::HeaderValue::from_static(kind);
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        let (answered, text) = answered(&desk, request).await;
        assert_eq!(answered, status, "{text}");
        assert!(
            status == StatusCode::OK || text.contains("application/json"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn without_an_injector_a_pod_is_not_let_through_as_if_it_had_been_given_a_proxy() {
    let request = Request::post("https://istiod/inject").body(Whole::new(Bytes::from(REVIEW)));
    let (status, text) = answered(&desk(), request.unwrap()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("AMBIT_ZTUNNEL_IMAGE"), "{text}");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_taken_in() {
    let long = vec![b' '; LARGEST + 1];
    let (status, text) = answered(&desk(), post(long)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let never = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    let request = Request::post("/validate")
        .body(StreamBody::new(never))
        .unwrap();
    assert_eq!(
        answered(&desk(), request).await.0,
        StatusCode::REQUEST_TIMEOUT
    );
}

#[tokio::test]
async fn when_all_bodies_together_are_too_much_the_next_is_sent_away() {
    let desk = desk();
    let taken = desk
        .memory
        .clone()
        .try_acquire_many_owned(MEMORY as u32)
        .unwrap();
    assert_eq!(
        answered(&desk, post(REVIEW)).await.0,
        StatusCode::TOO_MANY_REQUESTS
    );
    drop(taken);
    assert_eq!(answered(&desk, post(REVIEW)).await.0, StatusCode::OK);
    assert_eq!(desk.memory.available_permits(), MEMORY, "memory came back");
    assert_eq!(desk.places.available_permits(), PLACES, "places came back");
}

#[tokio::test(start_paused = true)]
async fn who_gets_no_turn_in_time_is_told_to_come_again() {
    let desk = desk();
    let _busy = desk
        .places
        .clone()
        .try_acquire_many_owned(PLACES as u32)
        .unwrap();
    assert_eq!(
        answered(&desk, post(REVIEW)).await.0,
        StatusCode::TOO_MANY_REQUESTS
    );
}
