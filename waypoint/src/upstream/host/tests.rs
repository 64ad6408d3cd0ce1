//! Connections of one endpoint, with endpoints that behave in every way.

use std::collections::HashSet;
use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;
use crate::upstream::Carrier;

#[tokio::test(start_paused = true)]
async fn many_who_wait_for_an_endpoint_that_is_silent_wait_as_long_as_one() {
    const SILENCE: Duration = Duration::from_secs(10);
    let host = Host::new(None);
    let silent = || async {
        tokio::time::sleep(SILENCE).await;
        Err::<Shared, _>(Failed::ConnectTimeout(SILENCE))
    };
    let began = Instant::now();
    let all = futures_util::future::join_all((0..50).map(|_| host.placed(silent()))).await;
    assert!(
        all.iter()
            .all(|it| matches!(it, Err(why) if why.is_connect()))
    );
    assert_eq!(began.elapsed(), SILENCE);
    // Who comes later looks for himself.
    assert!(host.placed(silent()).await.is_err());
    assert_eq!(began.elapsed(), 2 * SILENCE);
}

#[tokio::test(start_paused = true)]
async fn all_who_waited_for_a_connection_are_told_the_same_of_it() {
    let host = Host::new(None);
    let revoked = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let why = hbone::OpenError::Tls(hbone::TlsError::Revoked);
        Err::<Shared, _>(Failed::Tunnel(why))
    };
    let all = futures_util::future::join_all((0..3).map(|_| host.placed(revoked()))).await;
    for one in all {
        let Err(why) = one else {
            panic!("there is none");
        };
        assert!(why.is_connect() && why.is_revocation(), "{why}");
        assert_eq!(why.to_string(), "the peer's certificate was revoked");
    }
}

#[tokio::test]
async fn a_connection_carries_no_more_requests_than_its_endpoint_allows() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let never = service_fn(|_: Request<Incoming>| {
            std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
        });
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(2);
        let _ = builder.serve_connection(TokioIo::new(tcp), never).await;
    });
    let host = Host::new(None);
    let tcp = TcpStream::connect(at).await.unwrap();
    let begun = host.placed(begin(Carrier::Tcp(tcp).into(), None)).await;
    let (shared, first) = begun.map_err(|why| why.to_string()).unwrap();
    let known = async {
        while shared.most.load(Relaxed) != 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let known = tokio::time::timeout(Duration::from_secs(60), known).await;
    known.expect("what the endpoint allows");
    let second = host.room();
    assert!(second.is_some());
    assert!(host.room().is_none());
    drop(first);
    assert!(host.room().is_some());
}

#[tokio::test]
async fn a_connection_that_carries_nothing_for_long_is_let_go_of() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let never = service_fn(|_: Request<Incoming>| {
            std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(tcp), never).await;
    });
    let host = Host::new(None);
    let tcp = TcpStream::connect(at).await.unwrap();
    let begun = host.placed(begin(Carrier::Tcp(tcp).into(), None)).await;
    let (shared, place) = begun.map_err(|why| why.to_string()).unwrap();
    drop(shared);
    let later = Instant::now() + FREE_FOR;
    assert!(!host.sweep(later), "it carries a request");
    drop(place);
    assert!(!host.sweep(later), "it did a moment ago");
    assert!(host.sweep(later + FREE_FOR), "nobody uses it");
    let ended = tokio::time::timeout(Duration::from_secs(60), served).await;
    ended.expect("the endpoint sees its end").unwrap();
}

#[tokio::test]
async fn an_endpoint_whose_only_connection_speaks_another_protocol_is_not_forgotten() {
    let limits = api::waypoint::Limits {
        connections: 1,
        ..Default::default()
    };
    let gates = Arc::new(Gates::compile(Some(&limits)));
    let host = Host::new(Some(&gates));
    let bound = host.bound.as_deref().unwrap();
    let admitted = bound.alone.admit(&gates, || None::<()>).await;
    let Ok(Admitted::Make(making)) = admitted else {
        panic!("there is none");
    };
    let (ticket, behind) = making.done();
    drop(behind);
    // It is in nobody's list, and whoever finds another host may have one more.
    let later = Instant::now() + FREE_FOR;
    assert!(!host.sweep(later), "it is open");
    drop(ticket);
    assert!(host.sweep(later), "it has ended");
}

/// Why a request has no answer from an endpoint that says that of its stream, and then nothing more.
async fn unanswered(said: fn(u32) -> Vec<u8>) -> Failed {
    const HEADERS: u8 = 1;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        tcp.write_all(&settings).await.unwrap();
        tcp.read_exact(&mut [0; 24]).await.unwrap();
        let mut head = [0; 9];
        while tcp.read_exact(&mut head).await.is_ok() {
            let [a, b, c, kind, _, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            tcp.read_exact(&mut payload).await.unwrap();
            if kind == HEADERS {
                let said = said(u32::from_be_bytes(stream));
                tcp.write_all(&said).await.unwrap();
                tcp.shutdown().await.unwrap();
            }
        }
    });
    let host = Host::new(None);
    let tcp = TcpStream::connect(at).await.unwrap();
    let begun = host.placed(begin(Carrier::Tcp(tcp).into(), None)).await;
    let (mut shared, _place) = begun.map_err(|why| why.to_string()).unwrap();
    let request = Request::get("http://web/").body(Outgoing::Empty).unwrap();
    let sent = shared.sender.try_send_request(request);
    let sent = tokio::time::timeout(Duration::from_secs(60), sent).await;
    match sent.expect("what has become of it") {
        Ok(_) => panic!("nobody has answered"),
        Err(error) => Failed::shared(error.into_error()),
    }
}

fn reset(stream: u32, code: u8) -> Vec<u8> {
    let head = [0, 0, 4, 3, 0];
    [&head[..], &stream.to_be_bytes(), &[0, 0, 0, code]].concat()
}

fn farewell(last: u32) -> Vec<u8> {
    let head = [0, 0, 8, 7, 0, 0, 0, 0, 0];
    [&head[..], &last.to_be_bytes(), &[0; 4]].concat()
}

#[tokio::test]
async fn what_an_endpoint_says_that_it_has_not_begun_it_has_not_seen() {
    type Said = fn(u32) -> Vec<u8>;
    let all: [(&str, bool, Said); 5] = [
        ("refused", true, |stream| reset(stream, 7)),
        ("a farewell to all", true, |_| farewell(0)),
        ("given up", false, |stream| reset(stream, 8)),
        ("a farewell to later ones", false, farewell),
        ("an end", false, |_| Vec::new()),
    ];
    for (what, unseen, said) in all {
        let why = unanswered(said).await;
        assert_eq!(why.is_unseen(), unseen, "{what}: {why}");
        assert!(!why.is_connect(), "{what}: {why}");
    }
}

/// How many were asked for, and how many of them given up.
type Heard = (usize, usize);

/// Answers the first `late` requests when they were given up, each once, and those after them at once.
async fn answer_late(listener: TcpListener, late: usize, heard: watch::Sender<Heard>) {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut preface = [0; 24];
    tcp.read_exact(&mut preface).await.unwrap();
    let settings = |flags| vec![0, 0, 0, SETTINGS, flags, 0, 0, 0, 0];
    tcp.write_all(&settings(0)).await.unwrap();
    let (mut head, mut given_up) = ([0; 9], HashSet::new());
    while tcp.read_exact(&mut head).await.is_ok() {
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if tcp.read_exact(&mut payload).await.is_err() {
            return;
        }
        let number = u32::from_be_bytes(stream);
        // 200, and nothing follows.
        let good = || [&[0, 0, 1, HEADERS, 5][..], &stream, &[0x88]].concat();
        let answer = match kind {
            SETTINGS if flags == 0 => settings(1),
            HEADERS => {
                heard.send_modify(|(asked, _)| *asked += 1);
                if number as usize <= 2 * late {
                    continue;
                }
                good()
            }
            RST_STREAM if given_up.insert(number) => good(),
            _ => continue,
        };
        if tcp.write_all(&answer).await.is_err() {
            return;
        }
        heard.send_modify(|(_, gone)| *gone = given_up.len());
    }
}

#[tokio::test]
async fn answers_to_requests_that_were_given_up_end_no_connection_however_many_come() {
    const AT_ONCE: usize = 100;
    const ROUNDS: usize = 24;
    const PATIENCE: Duration = Duration::from_secs(60);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (heard, mut hearing) = watch::channel((0, 0));
    tokio::spawn(answer_late(listener, ROUNDS * AT_ONCE, heard));
    let host = Host::new(None);
    let tcp = TcpStream::connect(at).await.unwrap();
    let begun = host.placed(begin(Carrier::Tcp(tcp).into(), None)).await;
    let (shared, _place) = begun.map_err(|why| why.to_string()).unwrap();
    let ask = || {
        let mut sender = shared.sender.clone();
        let request = Request::get("http://web.shop/").body(Outgoing::Whole(None));
        async move { sender.send_request(request.unwrap()).await }
    };
    for round in 1..=ROUNDS {
        let all = round * AT_ONCE;
        let mut waiting = JoinSet::new();
        for _ in 0..AT_ONCE {
            waiting.spawn(ask());
        }
        let asked = hearing.wait_for(|(asked, _)| *asked >= all);
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        drop(asked.expect("all are asked for").expect("it is there"));
        waiting.shutdown().await;
        let gone = hearing.wait_for(|(_, gone)| *gone >= all);
        let gone = tokio::time::timeout(PATIENCE, gone).await;
        drop(gone.expect("all are given up").expect("it is there"));
    }
    let answered = tokio::time::timeout(PATIENCE, ask()).await;
    let answer = answered.expect("an answer").expect("a connection");
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_connection_that_takes_no_more_requests_counts_until_it_has_carried_the_last() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let endless = service_fn(|_: Request<Incoming>| async {
            let body = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
            Ok::<_, Infallible>(Response::new(StreamBody::new(body)))
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(tcp), endless).await;
    });
    let limits = api::waypoint::Limits {
        connections: 1,
        requests_per_connection: 1,
        ..Default::default()
    };
    let gates = Arc::new(Gates::compile(Some(&limits)));
    let host = Host::new(Some(&gates));
    let bound = host.bound.as_deref().unwrap();
    let admitted = bound.together.admit(&gates, || None::<()>).await;
    let Ok(Admitted::Make(making)) = admitted else {
        panic!("there is none");
    };
    let (ticket, behind) = making.done();
    drop(behind);
    let tcp = TcpStream::connect(at).await.unwrap();
    let begun = begin(Carrier::Tcp(tcp).into(), Some(ticket)).await;
    let (mut shared, place) = host.keep(begun.map_err(|why| why.to_string()).unwrap());
    let request = Request::get("http://web/").body(Outgoing::Empty).unwrap();
    let answer = shared.sender.send_request(request).await.unwrap();
    drop(shared);
    assert!(host.room().is_none(), "it has carried as many as it may");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(gates.connections.inside(), 1, "its answer has not ended");
    drop((answer, place));
    let ended = async {
        while gates.connections.inside() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
    ended.expect("it is given back");
}
