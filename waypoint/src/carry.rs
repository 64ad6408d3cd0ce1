//! Bytes of services that do not speak HTTP.
//!
//! An endpoint is chosen once a connection. Where the protocol is declared, the client is told that there is none
//! ([`refusable`]); where it was guessed, it has been told already that there is a tunnel ([`accepted`]).

use std::sync::Arc;
use std::time::Instant;

use hbone::{Counters, Request, ResponseHeaders, Status, Tunnel};

use crate::arrive::Arrived;
use crate::call::{self, Held};
use crate::report::{Flag, TcpReport};
use crate::request::Refused;
use crate::upstream::Stream;

/// A connection whose CONNECT has not been answered.
pub async fn refusable(arrived: &Arrived, request: Request) {
    let mut report = begun(arrived);
    match open(arrived, &mut report).await {
        Ok((endpoint, _held)) => {
            let Ok(client) = request.accept(ResponseHeaders::default()) else {
                return report.flag(Flag::DownstreamClosed);
            };
            joined(client.into_io().into(), endpoint, &mut report).await;
        }
        Err(why) => {
            refused(&why, &mut report);
            request.refuse(Status::Unavailable);
        }
    }
}

/// A connection that has its tunnel. Dropped, it is reset.
pub async fn accepted(arrived: &Arrived, client: Stream) {
    let mut report = begun(arrived);
    match open(arrived, &mut report).await {
        Ok((endpoint, _held)) => joined(client, endpoint, &mut report).await,
        Err(why) => refused(&why, &mut report),
    }
}

fn begun(arrived: &Arrived) -> TcpReport {
    let mut report = arrived
        .proxy
        .reports
        .connection(&arrived.caller, Instant::now());
    if let Some(service) = arrived.to.service() {
        report.service(service, arrived.to.port());
    }
    report
}

fn refused(why: &Refused, report: &mut TcpReport) {
    report.flag(match why {
        Refused::Failed(_) => Flag::UpstreamConnectFailure,
        _ => Flag::NoHealthyUpstream,
    });
    report.detail(why.to_string());
}

/// The other half.
enum Endpoint {
    Tunnel(Tunnel),
    Stream(Stream),
}

async fn open(arrived: &Arrived, report: &mut TcpReport) -> Result<(Endpoint, Held), Refused> {
    let shot = call::choose(arrived, &arrived.to)?;
    let way = &shot.way;
    if let (Some(workload), Some(address)) = (&way.workload, way.known_address()) {
        report.tried(workload, address, way.identity()?.as_ref());
    }
    let upstreams = &arrived.proxy.upstreams;
    let endpoint = if way.is_tunnel() {
        Endpoint::Tunnel(upstreams.tunnel(way).await?)
    } else {
        Endpoint::Stream(upstreams.open(way).await?)
    };
    report.opened();
    Ok((endpoint, shot.held(None, None)))
}

async fn joined(client: Stream, endpoint: Endpoint, report: &mut TcpReport) {
    match endpoint {
        Endpoint::Tunnel(tunnel) => {
            let counters = Arc::new(Counters::default());
            let ended = hbone::both_ways(client, tunnel, &*counters).await;
            let (received, sent) = counters.moved();
            report.moved(sent, received);
            if let Some(end) = ended.error() {
                report.detail(format!("the connection broke: {end}"));
            }
        }
        Endpoint::Stream(mut endpoint) => {
            let mut client = client;
            match tokio::io::copy_bidirectional(&mut client, &mut endpoint).await {
                Ok((received, sent)) => report.moved(sent, received),
                Err(error) => report.detail(format!("the connection broke: {error}")),
            }
        }
    }
}
