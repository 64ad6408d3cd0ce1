//! gRPC with messages of a MiB, as fast as they go: what a GB costs the waypoint.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use hbone::TunnelIo;
use http::{HeaderMap, Request, Response};
use tokio::task::JoinSet;

use super::{
    Sample,
    scene::{Scene, Subject},
};
use crate::{
    load::Measured,
    table::{Plan, Spread},
};

/// What is streamed.
#[derive(Clone, Copy)]
struct Task {
    name: &'static str,
    path: &'static str,
    streams: usize,
}

const TASKS: [Task; 4] = [
    Task {
        name: "waypoint, gRPC down, 1",
        path: DOWN,
        streams: 1,
    },
    Task {
        name: "waypoint, gRPC down, 8",
        path: DOWN,
        streams: 8,
    },
    Task {
        name: "waypoint, gRPC up, 1",
        path: UP,
        streams: 1,
    },
    Task {
        name: "waypoint, gRPC up, 8",
        path: UP,
        streams: 8,
    },
];

/// Methods of the app: its answers, or its requests, are streams without an end.
const DOWN: &str = "/bench/Down";
const UP: &str = "/bench/Up";
const MESSAGE: usize = 1 << 20;
/// Of both ends: it is the waypoint's windows that are measured.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// For what has come to an end to be told so.
const PATIENCE: Duration = Duration::from_secs(10);
/// How an HTTP/2 connection begins.
pub(super) const PREFACE: &[u8] = b"PRI ";

pub(super) fn rows() -> impl Iterator<Item = &'static str> {
    TASKS.iter().map(|task| task.name)
}

/// Every subject in turn, round by round.
#[allow(clippy::print_stdout)] // the table
pub(super) fn run(scene: &Scene, plan: &Plan<'_>) -> Result<()> {
    for task in TASKS.iter().filter(|task| plan.wants(task.name)) {
        let subjects = scene.subjects()?;
        let mut runs: Vec<(&Subject, Vec<Sample>)> =
            subjects.iter().map(|it| (it, Vec::new())).collect();
        for round in 0..=plan.rounds {
            for (subject, samples) in &mut runs {
                let time = if round == 0 { plan.time / 4 } else { plan.time };
                let sample = measure(scene, subject, *task, time);
                let sample = sample.with_context(|| format!("{}, {}", task.name, subject.name))?;
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        show(task.name, &runs);
    }
    Ok(())
}

fn measure(scene: &Scene, subject: &Subject, task: Task, time: Duration) -> Result<Sample> {
    scene.runtime.block_on(async {
        let (tunnel, _pool) = scene.asker.tunnel(&subject.hop).await?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake::<_, Bytes>(tunnel).await?;
        let connection = tokio::spawn(connection);
        let before = subject.cpu()?;
        let (began, mut set) = (Instant::now(), JoinSet::new());
        for _ in 0..task.streams {
            let ends = began + time;
            set.spawn(one(sender.clone(), task.path, ends));
        }
        let mut units = 0;
        while let Some(done) = set.join_next().await {
            units += done??;
        }
        let measured = Measured {
            units,
            seconds: began.elapsed().as_secs_f64(),
            ..Measured::default()
        };
        let cpu = subject.cpu()? - before;
        drop(sender);
        connection.abort();
        Ok(Sample { measured, cpu })
    })
}

/// Bytes of one stream.
async fn one(sender: SendRequest<Bytes>, path: &str, ends: Instant) -> Result<u64> {
    let request = Request::post(format!("http://server.bench{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut sender = sender.ready().await?;
    let (answer, mut send) = sender.send_request(request, path == DOWN)?;
    if path == DOWN {
        let answer = answer.await?;
        ensure!(answer.status() == 200, "answered {}", answer.status());
        return received(answer.into_body(), Some(ends)).await;
    }
    let (message, mut sent) = (message(), 0);
    while Instant::now() < ends {
        put(&mut send, &message).await?;
        sent += message.len() as u64;
    }
    send.send_data(Bytes::new(), true)?;
    // What is on its way when time is up counts, and so does the time it takes.
    let answer = tokio::time::timeout(PATIENCE, answer).await.context(UP)??;
    ensure!(answer.status() == 200, "answered {}", answer.status());
    received(answer.into_body(), None).await?;
    Ok(sent)
}

/// Reads to the end, or until then.
async fn received(mut body: RecvStream, ends: Option<Instant>) -> Result<u64> {
    let mut total = 0;
    while ends.is_none_or(|ends| Instant::now() < ends) {
        let Some(piece) = body.data().await else {
            break;
        };
        let length = piece?.len();
        body.flow_control().release_capacity(length)?;
        total += length as u64;
    }
    Ok(total)
}

async fn put(stream: &mut SendStream<Bytes>, message: &Bytes) -> Result<()> {
    let mut rest = message.clone();
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let room = poll_fn(|context| stream.poll_capacity(context)).await;
        let room = room.context("the stream has ended")??;
        stream.send_data(rest.split_to(room.min(rest.len())), false)?;
    }
    Ok(())
}

/// One message, as gRPC has it: not compressed, its length, itself.
fn message() -> Bytes {
    let mut message = vec![7; 5 + MESSAGE];
    message[0] = 0;
    message[1..5].copy_from_slice(&(MESSAGE as u32).to_be_bytes());
    message.into()
}

/// The app's part: `begun` has been read of it already.
pub(super) async fn serve(begun: Vec<u8>, io: TunnelIo) -> Result<()> {
    let (read, write) = tokio::io::split(io);
    let read = tokio::io::AsyncReadExt::chain(std::io::Cursor::new(begun), read);
    let io = tokio::io::join(read, write);
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let mut connection = builder.handshake::<_, Bytes>(io).await?;
    while let Some(request) = connection.accept().await {
        let (request, mut answer) = request?;
        tokio::spawn(async move {
            let is_down = request.uri().path() == DOWN;
            let head = Response::builder().header("content-type", "application/grpc");
            let mut stream = answer.send_response(head.body(())?, false)?;
            if is_down {
                let message = message();
                // Until the client goes away.
                while put(&mut stream, &message).await.is_ok() {}
                return anyhow::Ok(());
            }
            received(request.into_body(), None).await?;
            let mut end = HeaderMap::new();
            end.insert("grpc-status", "0".parse()?);
            stream.send_trailers(end)?;
            Ok(())
        });
    }
    Ok(())
}

#[allow(clippy::print_stdout)] // the table
fn show(name: &str, runs: &[(&Subject, Vec<Sample>)]) {
    let each = |sample: &Sample| sample.cpu * 1e9 / (sample.measured.units as f64).max(1.0);
    let cpu = |samples: &[Sample]| Spread::of(samples.iter().map(each));
    let peer = runs.iter().find(|(subject, _)| subject.name == "peer");
    let peer = peer.map(|(_, samples)| cpu(samples).median);
    for (subject, samples) in runs {
        let rate = |it: &Sample| it.measured.units as f64 * 8.0 / 1e9 / it.measured.seconds;
        let cpu = cpu(samples);
        let ratio = match peer {
            Some(peer) if subject.process.is_some() => format!("{:.2}", cpu.median / peer),
            _ => "-".to_owned(),
        };
        println!(
            "{name:<24} {:<12} {:>22} Gb/s {:>9} {:>9} {:>21} s/GB {ratio:>8}",
            subject.name,
            Spread::of(samples.iter().map(rate)).show(2),
            "-",
            "-",
            cpu.show(2),
        );
    }
}
