//! What breaks a connection or a stream of ours breaks one of the `h2` crate's too, but for a list.

use bytes::Bytes;
use hbone::frames::{HEAD, Head, flag, kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{
    rules::{of_connections, of_streams},
    support::{Frame, PREFACE, acknowledgement, connect, frame, headers, parse, settings},
};

/// What an `h2` server with a tunnel on stream 1 makes of these bytes.
async fn verdict(bytes: &[u8]) -> &'static str {
    let (mut near, far) = tokio::io::duplex(4 << 20);
    let mut builder = h2::server::Builder::new();
    builder.max_frame_size(1 << 20);
    tokio::spawn(async move {
        let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
        let mut kept = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let out = respond.send_response(http::Response::new(()), false);
            kept.push((request, respond, out));
        }
    });
    let hello = [
        PREFACE,
        &settings(&[]),
        &acknowledgement(),
        &headers(1, 0, &connect()),
    ];
    near.write_all(&hello.concat()).await.unwrap();
    let mut said = Vec::new();
    until(&mut near, &mut said, |f| f.head.kind == kind::HEADERS).await;
    near.write_all(bytes).await.unwrap();
    near.write_all(&frame(kind::PING, 0, 0, &[7; 8]))
        .await
        .unwrap();
    let pong = |f: &Frame| f.head.kind == kind::PING && f.head.flags == flag::ACK;
    until(&mut near, &mut said, |f| {
        pong(f) || f.head.kind == kind::GOAWAY
    })
    .await;
    let has = |kind| parse_whole(&said).iter().any(|f| f.head.kind == kind);
    match (has(kind::GOAWAY), has(kind::RST_STREAM)) {
        (true, _) => "connection",
        (false, true) => "stream",
        (false, false) if parse_whole(&said).iter().any(pong) => "nothing",
        (false, false) => "connection",
    }
}

/// Reads until a frame has come, or the end.
async fn until(io: &mut DuplexStream, said: &mut Vec<u8>, wanted: impl Fn(&Frame) -> bool) {
    while !parse_whole(said).iter().any(&wanted) {
        if io.read_buf(said).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// The frames that have come whole.
fn parse_whole(bytes: &[u8]) -> Vec<Frame> {
    let mut whole = 0;
    while let Some(head) = bytes.get(whole..whole + HEAD) {
        let length = Head::parse(head.try_into().unwrap()).length as usize;
        if bytes.len() < whole + HEAD + length {
            break;
        }
        whole += HEAD + length;
    }
    parse(&bytes[..whole])
}

/// Where `h2` lets pass what we do not, or ends a connection for what concerns one stream.
const OTHERWISE: [(&str, &str); 7] = [
    // It reads a megabyte of them; six are defined.
    ("SETTINGS of absurd length", "nothing"),
    // For these RFC 9113 asks no more than the stream's end (6.9, 5.1, 6.3).
    ("credit of nothing", "connection"),
    ("DATA behind the end", "connection"),
    ("an end behind the end", "connection"),
    ("HEADERS behind the end", "connection"),
    // It knows no tunnels; RFC 9113, 8.5 has this as an error.
    ("trailers in a tunnel", "nothing"),
    ("a short PRIORITY", "connection"),
];

#[tokio::test]
async fn h2_and_we_break_over_the_same_things() {
    let ours = [("connection", of_connections()), ("stream", of_streams())];
    let mut differ = Vec::new();
    for (ours, cases) in ours {
        for (what, bytes, _) in cases {
            let theirs = verdict(&bytes).await;
            if theirs != ours {
                differ.push((what, theirs));
            }
        }
    }
    assert_eq!(differ, OTHERWISE);
}
