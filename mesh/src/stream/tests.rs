//! Responses as they come over the wire, cut and read; and the waits between streams.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use api::discovery::{DeltaDiscoveryResponse, Resource};
use http_body::Frame;
use prost::Message;
use tokio_stream::StreamExt;
use tonic::codegen::http::{HeaderMap, StatusCode};
use tonic::{Code, Streaming};

use super::cut::Parts;
use super::part::{Part, PartDecoder};
use super::*;

#[test]
fn the_wait_doubles_to_its_limit_and_starts_anew_after_success() {
    let mut wait = Wait::new(Duration::from_millis(10), Duration::from_secs(15));
    let waits: Vec<_> = (0..13).map(|_| wait.next(u64::MAX).as_millis()).collect();
    assert_eq!(
        waits,
        [
            10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000
        ]
    );
    wait.reset();
    assert_eq!(
        wait.next(0),
        Duration::from_millis(5),
        "half of it is random"
    );
}

/// A body that was written down.
struct Written(VecDeque<Frame<Bytes>>);

impl HttpBody for Written {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// Reads `stream` as the client does; it arrives in pieces, and ends with that status if with any.
fn read(stream: &[u8], status: Option<Code>) -> Streaming<Part> {
    let data = stream
        .chunks(10_000)
        .map(|piece| Frame::data(Bytes::copy_from_slice(piece)));
    let trailers = status.map(|code| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", (code as i32).into());
        Frame::trailers(trailers)
    });
    let body = Parts::of(Written(data.chain(trailers).collect()));
    Streaming::new_response(
        PartDecoder,
        body,
        StatusCode::OK,
        None,
        Some(LARGEST_RESPONSE),
    )
}

fn resource(name: usize) -> Resource {
    Resource {
        name: name.to_string(),
        version: "1".to_owned(),
        resource: Some(prost_types::Any {
            type_url: "t".to_owned(),
            value: vec![7; 300],
        }),
        aliases: Vec::new(),
    }
}

/// A response of so many resources, in gRPC's frame.
fn frame(resources: usize) -> Vec<u8> {
    let response = DeltaDiscoveryResponse {
        type_url: "t".to_owned(),
        nonce: resources.to_string(),
        resources: (0..resources).map(resource).collect(),
        removed_resources: vec!["gone".to_owned()],
        ..Default::default()
    };
    let message = response.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), &message].concat()
}

/// Names of all resources up to the last part of the first response, and how many parts there were.
async fn names(parts: &mut Streaming<Part>) -> Result<(Vec<usize>, usize), Status> {
    let (mut names, mut count) = (Vec::new(), 0);
    loop {
        let part = parts.next().await.unwrap()?;
        count += 1;
        assert!(
            count == 1 || part.resources.len() < 1_000,
            "a part is small"
        );
        for found in &part.resources {
            let (type_url, content) = found.content.as_ref().unwrap();
            assert_eq!((&**type_url, &**content), ("t", &[7; 300][..]));
            names.push(found.name.parse().unwrap());
        }
        if !part.more {
            assert_eq!(part.rest.nonce, names.len().to_string());
            assert_eq!(part.rest.removed_resources, ["gone"]);
            return Ok((names, count));
        }
    }
}

#[tokio::test]
async fn long_and_short_responses_arrive_whole_one_after_the_other() {
    let stream = [frame(2), frame(20_000), frame(0), frame(3)].concat();
    let mut parts = read(&stream, Some(Code::Ok));
    for resources in [2, 20_000, 0, 3] {
        let (names, count) = names(&mut parts).await.unwrap();
        assert!(names.into_iter().eq(0..resources));
        assert_eq!(count > 1, resources == 20_000);
    }
    assert!(parts.next().await.is_none(), "closed in good order");
}

#[tokio::test]
async fn a_stream_that_ends_in_a_response_says_why_or_that_it_should_not() {
    let long = frame(20_000);
    for stream in [
        &long[..],
        &long[..long.len() / 2],
        &frame(2)[..100],
        &long[..3],
    ] {
        let whole = stream.len() == long.len();
        let (mut lost, mut cut) = (read(stream, Some(Code::Unavailable)), read(stream, None));
        if whole {
            names(&mut lost).await.unwrap();
            names(&mut cut).await.unwrap();
            assert_eq!(
                lost.next().await.unwrap().unwrap_err().code(),
                Code::Unavailable
            );
            assert_eq!(cut.next().await.unwrap().unwrap_err().code(), Code::Unknown);
        } else {
            assert_eq!(
                names(&mut lost).await.unwrap_err().code(),
                Code::Unavailable
            );
            let error = names(&mut cut).await.unwrap_err();
            assert_eq!(error.message(), "Unexpected EOF decoding stream.");
        }
    }
}

#[tokio::test]
async fn what_is_no_response_is_refused_as_ever() {
    let compressed = [&[1][..], &frame(1)[1..]].concat();
    let endless = [&[0][..], &u32::MAX.to_be_bytes(), b"abc"].concat();
    let mut odd = frame(20_000);
    let at = odd.len() - 100;
    odd[at..].fill(0xff);
    for (stream, code) in [
        (compressed, Code::Internal),
        (endless, Code::OutOfRange),
        (odd, Code::Internal),
    ] {
        let mut parts = read(&stream, Some(Code::Ok));
        assert_eq!(names(&mut parts).await.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn how_an_application_does_is_told_first_and_whenever_it_changes_and_waits_for_room() {
    let (says, health) = watch::channel(Some("not asked yet".to_owned()));
    let mut health = Some(health);
    health.iter_mut().for_each(watch::Receiver::mark_changed);
    let (requests, mut outgoing) = mpsc::channel(1);
    let first = how_it_does(&mut health, &requests).await.unwrap();
    assert_eq!(
        first.type_url,
        "type.googleapis.com/istio.v1.HealthInformation"
    );
    let error = first.error_detail.as_ref().unwrap();
    assert_eq!((error.code, &*error.message), (500, "not asked yet"));
    requests.send(first).await.unwrap();
    says.send_replace(Some("status 503".to_owned()));
    says.send_replace(None);
    // The server takes nothing: we go on taking what it says.
    let waits = tokio::time::timeout(
        Duration::from_millis(20),
        how_it_does(&mut health, &requests),
    );
    assert!(waits.await.is_err());
    outgoing.recv().await.unwrap();
    let well = how_it_does(&mut health, &requests).await.unwrap();
    assert_eq!(well.error_detail, None, "the last word alone");
    drop(says);
    assert_eq!(how_it_does(&mut health, &requests).await, None);
    assert_eq!(how_it_does(&mut None, &requests).await, None);
}
