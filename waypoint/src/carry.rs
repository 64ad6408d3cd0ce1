//! Bytes of services that do not speak HTTP.
//!
//! 1. whether we stand in front of what it is for                      ([`Fronts`](crate::compiled::Fronts))
//!    and whether the client may                                      ([`crate::authorize`]), also by whoever must be asked
//!    and whether somebody must be shown what passes here, who is shown requests only ([`Service::must_see`])
//! 2. which rule is for it, by the server's name if it is TLS         ([`crate::route`])
//! 3. an endpoint, once a connection; another where one cannot be had  ([`Aim`], [`reach`])
//! 4. copy both ways until both have ended, or until policies change and one of them denies it, or until it turns out to be
//!    HTTP, which was not seen in time                              ([`hides`])
//!
//! Where the protocol is declared, the client is told when there is nobody ([`refusable`]); where it had to be listened
//! to, it has been told already that there is a tunnel ([`accepted`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hbone::{Counters, OpenError, Request, ResponseHeaders, Status, Tunnel};
use mesh::service::AppProtocol;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::arrive::{Arrived, To};
use crate::authorize::{Connection, Denied, Verdict};
use crate::call::{Aim, Held, Shot, random};
use crate::compiled::{Config, Service};
use crate::limit::{Connections, Permit};
use crate::report::{Flag, TcpReport};
use crate::request::{Refused, about_connection, lead};
use crate::route::Picked;
use crate::upstream::{Failed, Inside, Stream};

/// Whom a connection asks for, if it is TLS.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerName<'n> {
    /// It, if it is known.
    pub name: Option<&'n str>,
    /// There may be one that nobody could read: who says nothing for a while, or says it in another way, is not let through as
    /// somebody who asks for nobody.
    pub unread: bool,
}

/// A connection whose CONNECT has not been answered.
pub async fn refusable(arrived: &Arc<Arrived>, request: Request) {
    let mut report = begun(arrived);
    let mut agreed = Agreed::new();
    let named = ServerName::default();
    match open(arrived, named, &mut agreed, &mut report).await {
        Ok((endpoint, each, _held)) => {
            let Ok(client) = request.accept(ResponseHeaders::default()) else {
                return report.flag(Flag::DownstreamClosed);
            };
            let client = client.into_io().into();
            let (by, never) = ((named, &*agreed), CancellationToken::new());
            carried(arrived, by, client, (endpoint, each), never, &mut report).await;
        }
        Err(why) => {
            refused(&why, &mut report);
            request.refuse(match why {
                Refused::Denied { .. } | Refused::Unpermitted { .. } => Status::Denied,
                _ => Status::Unavailable,
            });
        }
    }
}

/// A connection that has its tunnel; `late`: it turns out to carry requests. Dropped, it is reset.
pub async fn accepted(
    arrived: &Arc<Arrived>,
    client: Stream,
    named: ServerName<'_>,
    late: CancellationToken,
) {
    let mut report = begun(arrived);
    let mut agreed = Agreed::new();
    match open(arrived, named, &mut agreed, &mut report).await {
        Ok((endpoint, each, _held)) => {
            let by = (named, &*agreed);
            carried(arrived, by, client, (endpoint, each), late, &mut report).await;
        }
        Err(why) => refused(&why, &mut report),
    }
}

/// A client has ended after half a preface of HTTP/2, where HTTP is declared. Its tunnel is reset.
pub fn broken(arrived: &Arrived) {
    let mut report = begun(arrived);
    let config = arrived.proxy.state.load_full();
    report.told(&service(&config, arrived).telemetry);
    report.flag(Flag::DownstreamProtocolError);
    report.detail("half a preface of HTTP/2, and no more");
}

/// Whether something is said of requests there that would not be done where they are carried as bytes. Policies are none of
/// it: they decide about bytes themselves.
pub fn hides(arrived: &Arrived) -> bool {
    let config = arrived.proxy.state.load_full();
    let service = service(&config, arrived);
    service.is_about_requests(arrived.to.port(), arrived.client.namespace())
}

fn begun(arrived: &Arrived) -> TcpReport {
    let reports = &arrived.proxy.reports;
    let mut report = reports.connection(&arrived.caller, Instant::now());
    report.meant(arrived.to.address());
    if let Some(service) = arrived.to.service() {
        report.service(service, arrived.to.port());
    }
    report
}

fn refused(why: &Refused, report: &mut TcpReport) {
    report.flag(match why {
        Refused::Failed(_) => Flag::UpstreamConnectFailure,
        Refused::Denied { .. } | Refused::Unpermitted { .. } => Flag::Unauthorized,
        Refused::Unshown(_) => Flag::DownstreamProtocolError,
        Refused::Full => Flag::UpstreamOverflow,
        Refused::NoRoute | Refused::NotOurs | Refused::Broken(_) => Flag::NoRoute,
        _ => Flag::NoHealthyUpstream,
    });
    if matches!(why, Refused::Failed(failed) if failed.is_revocation()) {
        report.flag(Flag::CertificateRevoked);
    }
    report.detail(why.to_string());
}

/// The other half.
enum Endpoint {
    Tunnel(Tunnel),
    Stream(Stream),
}

/// Keys of providers who were asked about a connection, and agreed to it.
type Agreed = Vec<Arc<str>>;

async fn open(
    arrived: &Arc<Arrived>,
    named: ServerName<'_>,
    agreed: &mut Agreed,
    report: &mut TcpReport,
) -> Result<(Endpoint, Option<Connections>, Held), Refused> {
    let config = arrived.proxy.state.load_full();
    let service = service(&config, arrived);
    report.told(&service.telemetry);
    report.named(named.name);
    let judged = judge(&config, service, arrived, named, agreed);
    note(service, arrived, named, &judged);
    let unasked = judged.map_err(|unfit| unfit.noted(report))?;
    if !unasked.is_empty() {
        Box::pin(ask(arrived, &config, unasked, agreed, report)).await?;
        let judged = judge(&config, service, arrived, named, agreed);
        note(service, arrived, named, &judged);
        judged.map_err(|unfit| unfit.noted(report))?;
    }
    let (to, subset) = route(service, arrived, named.name, report)?;
    let mut aim = Aim::at(arrived, &config, to, &subset)?;
    aim.by_client();
    if let Some(name) = named.name {
        aim.named(name);
    }
    let room = aim.enter_alone()?;
    let (endpoint, held) = reach(arrived, &mut aim, room, report).await?;
    report.opened();
    Ok((endpoint, aim.each(), held))
}

/// Connects to an endpoint, or to another one: nothing has been said yet that anybody could miss.
async fn reach(
    arrived: &Arrived,
    aim: &mut Aim<'_>,
    room: Option<Permit>,
    report: &mut TcpReport,
) -> Result<(Endpoint, Held), Refused> {
    let upstreams = &arrived.proxy.upstreams;
    let who = |shot: &Shot| Some(shot.way.workload.as_ref()?.uid.clone());
    let mut tried: Vec<Option<Arc<str>>> = Vec::new();
    let mut failed: Option<Failed> = None;
    loop {
        let shot = match (aim.choose(), failed.take()) {
            (Ok(shot), Some(before)) if tried.contains(&who(&shot)) => return Err(before.into()),
            (Ok(shot), _) => shot,
            (Err(_), Some(before)) => return Err(before.into()),
            (Err(why), None) => return Err(why),
        };
        let way = &shot.way;
        if let (Some(workload), Some(address)) = (&way.workload, way.known_address()) {
            report.tried(workload, address, way.identity()?.as_ref());
        }
        let opened = if way.is_tunnel() && way.is_bare() {
            upstreams.tunnel(way).await.map(Endpoint::Tunnel)
        } else {
            let opened = upstreams.open(way, Inside::Bytes).await;
            opened.map(Endpoint::Stream)
        };
        let why = match opened {
            Ok(endpoint) => return Ok((endpoint, shot.held(room, None))),
            Err(why) => why,
        };
        tried.push(who(&shot));
        // Who says that it may not be means it for all of them.
        let stands = matches!(why, Failed::Tunnel(OpenError::Refused(400..500)));
        if stands || !why.is_connect() || tried.len() == TRIES {
            return Err(why.into());
        }
        failed = Some(why);
    }
}

fn service<'c>(config: &'c Config, arrived: &Arrived) -> &'c Arc<Service> {
    match arrived.to.service() {
        Some(service) => config.service(&service.key()),
        None => config.other(),
    }
}

/// Asks who must be asked.
async fn ask(
    arrived: &Arc<Arrived>,
    config: &Config,
    unasked: Agreed,
    agreed: &mut Agreed,
    report: &mut TcpReport,
) -> Result<(), Refused> {
    for provider in unasked {
        match about_connection(arrived, config, &provider).await {
            Ok(None) => {}
            Ok(Some(why)) => report.detail(why),
            Err(refused) => {
                report.denied(provider);
                return Err(refused);
            }
        }
        agreed.push(provider);
    }
    Ok(())
}

/// A connection that may not be.
struct Unfit {
    /// The object that says so.
    policy: Option<Arc<str>>,
    why: Refused,
}

impl Unfit {
    fn noted(self, report: &mut TcpReport) -> Refused {
        if let Some(policy) = self.policy {
            report.denied(policy);
        }
        self.why
    }
}

/// Whether the connection may be; who must be asked about it yet, beside those who have agreed.
fn judge(
    config: &Config,
    service: &Service,
    arrived: &Arrived,
    named: ServerName<'_>,
    agreed: &[Arc<str>],
) -> Result<Agreed, Unfit> {
    let denied = |policy, why| {
        Err(Unfit {
            policy,
            why: Refused::Denied(why),
        })
    };
    if arrived.to.front(&config.fronts).is_none() {
        return Err(Unfit {
            policy: None,
            why: Refused::NotOurs,
        });
    }
    let connection = seen(arrived, named);
    match service.policies.judge_connection(&connection, agreed) {
        Verdict::Allow { .. } => shown(service, arrived).map(|()| Agreed::new()),
        Verdict::Deny(by) => denied(Some(policy(&by)), by.to_string()),
        Verdict::Ask(providers) => Ok(providers.into_iter().map(Arc::from).collect()),
    }
}

/// A connection, as policies see it.
fn seen<'c>(arrived: &'c Arrived, named: ServerName<'c>) -> Connection<'c> {
    Connection {
        client: &arrived.client,
        destination: arrived.to.address(),
        port: arrived.to.port(),
        sni: named.name,
        unread: named.unread,
    }
}

/// What policies for the log say of it, once nobody is to be asked any more.
fn note(
    service: &Service,
    arrived: &Arrived,
    named: ServerName<'_>,
    judged: &Result<Agreed, Unfit>,
) {
    let asks = judged.as_ref().is_ok_and(|unasked| !unasked.is_empty());
    if !service.notes || asks {
        return;
    }
    for note in service.policies.notes_of_connection(&seen(arrived, named)) {
        tracing::info!(
            policy = note.policy, action = ?note.action, dry_run = note.dry_run, rule = note.rule,
            client = %arrived.client.address, port = arrived.to.port(), "policy: noted"
        );
    }
}

/// Where nobody has declared that something else is spoken, bytes that do not look like HTTP to us might be a request
/// to the app.
fn shown(service: &Service, arrived: &Arrived) -> Result<(), Unfit> {
    let watcher = match arrived.to.protocol() {
        AppProtocol::Tcp | AppProtocol::Tls => None,
        _ => {
            let namespace = arrived.client.namespace();
            service.must_see(arrived.to.port(), namespace)
        }
    };
    watcher.map_or(Ok(()), |watcher| {
        Err(Unfit {
            policy: Some(watcher.clone()),
            why: Refused::Unshown(watcher.clone()),
        })
    })
}

/// Ends when what was published meanwhile lets the connection through no more, or not without somebody being asked: an open
/// connection is asked about no more.
async fn denied(arrived: &Arrived, (named, agreed): (ServerName<'_>, &[Arc<str>])) -> Unfit {
    let state = &arrived.proxy.state;
    let mut changed = state.changed();
    // What was published between the judgement and now counts too.
    changed.mark_changed();
    while changed.changed().await.is_ok() {
        // Once for all that is published within a moment, however many connections there are.
        tokio::time::sleep(MOMENT).await;
        changed.mark_unchanged();
        let config = state.load_full();
        match judge(&config, service(&config, arrived), arrived, named, agreed) {
            Ok(unasked) if unasked.is_empty() => {}
            Ok(unasked) => {
                let why = format!("{} would have to be asked about it now", unasked.join(", "));
                return Unfit {
                    policy: unasked.into_iter().next(),
                    why: Refused::Denied(why),
                };
            }
            Err(unfit) => return unfit,
        }
    }
    std::future::pending().await
}

/// The policy that a denial names.
pub(crate) fn policy(denied: &Denied<'_>) -> Arc<str> {
    match denied {
        Denied::Rule(matched) | Denied::Undecidable(matched) => matched.to_string().into(),
        Denied::Unreadable { policy, .. } => Arc::from(*policy),
        Denied::NothingAllows => "no ALLOW policy matches".into(),
    }
}

/// Where a connection leads, and to which subset of it. Where there are rules, what no rule is for goes nowhere.
fn route(
    service: &Service,
    arrived: &Arrived,
    sni: Option<&str>,
    report: &mut TcpReport,
) -> Result<(To, String), Refused> {
    let rules = service.connections(arrived.to.port());
    if !rules.concerns(arrived.client.namespace()) {
        return Ok((arrived.to.clone(), String::new()));
    }
    let rule = rules.find(sni, &arrived.client);
    let rule = rule.ok_or(Refused::NoRoute)?;
    report.routed(rule.name.to_string().into());
    if let Some(why) = &rule.broken {
        return Err(Refused::Broken(why.to_string()));
    }
    match rule.backends.pick(random()) {
        Picked::Backend(backend) => {
            let subset = backend.subset.as_deref().unwrap_or_default();
            Ok((lead(arrived, &backend.service)?, subset.to_owned()))
        }
        Picked::Invalid(why) => Err(Refused::Broken(why.to_owned())),
        Picked::Nothing => Err(Refused::Broken("the rule leads nowhere".to_owned())),
    }
}

/// Until both ends have ended, or a policy ends it.
async fn carried(
    arrived: &Arrived,
    by: (ServerName<'_>, &[Arc<str>]),
    client: Stream,
    (endpoint, each): (Endpoint, Option<Connections>),
    late: CancellationToken,
    report: &mut TcpReport,
) {
    let counters = Arc::new(Counters::default());
    let counting = Counting {
        counters: counters.clone(),
        report,
    };
    let report = &mut *counting.report;
    let unfit = tokio::select! {
        broken = joined(client, endpoint, counters.clone()) => {
            if let Some(why) = broken {
                report.detail(format!("the connection broke: {why}"));
            }
            return;
        }
        unfit = denied(arrived, by) => unfit,
        (flag, why) = over(each, &counters) => {
            report.flag(flag);
            report.detail(format!("the connection was ended: {why}"));
            return;
        }
        () = late.cancelled() => {
            report.flag(Flag::DownstreamProtocolError);
            report.detail("a request, when it was too late to read it as one");
            arrived.proxy.load.refusal("late_request");
            return;
        }
    };
    let why = unfit.noted(report);
    report.detail(format!("the connection was ended: {why}"));
    refused(&why, report);
}

/// Ends when a connection is as old as it may be, or has been silent for as long: why.
async fn over(each: Option<Connections>, counters: &Counters) -> (Flag, String) {
    let said = |limit: fn(Connections) -> Option<Duration>| each.and_then(limit);
    let (age, silent) = (said(|each| each.age), said(|each| each.silent));
    let old = async {
        match age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    };
    let quiet = async {
        match silent {
            Some(silent) => nothing_moved(silent, counters).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = old => (
            Flag::DurationTimeout,
            format!("it is {:?} old (connectionPool.tcp.maxConnectionDuration)", age.unwrap_or_default()),
        ),
        () = quiet => (
            Flag::IdleTimeout,
            format!("nothing came for {:?} (connectionPool.tcp.idleTimeout)", silent.unwrap_or_default()),
        ),
    }
}

/// Ends when nothing has moved for so long, or up to a quarter of it longer.
async fn nothing_moved(limit: Duration, counters: &Counters) {
    let mut moved = counters.moved();
    let mut since = tokio::time::Instant::now();
    while since.elapsed() < limit {
        tokio::time::sleep(limit / 4).await;
        let now = counters.moved();
        if now != moved {
            (moved, since) = (now, tokio::time::Instant::now());
        }
    }
}

/// What was moved is told also where a connection is given up in the middle: when this pod leaves, or what it was for.
struct Counting<'r> {
    counters: Arc<Counters>,
    report: &'r mut TcpReport,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        let (received, sent) = self.counters.moved();
        self.report.moved(sent, received);
    }
}

/// Until both have ended; why, if one of them broke.
async fn joined(client: Stream, endpoint: Endpoint, counters: Arc<Counters>) -> Option<String> {
    match endpoint {
        Endpoint::Tunnel(tunnel) => {
            let ended = hbone::both_ways(client, tunnel, &*counters).await;
            ended.error().map(|end| end.to_string())
        }
        Endpoint::Stream(endpoint) => {
            let copied = copied(client, endpoint, counters).await;
            copied.err().map(|error| error.to_string())
        }
    }
}

async fn copied<C, E>(client: C, mut endpoint: E, counters: Arc<Counters>) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    E: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Metered { client, counters };
    let copied = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await;
    copied.map(|_| ())
}

/// A client, of whom is counted what he sends and takes.
struct Metered<C> {
    client: C,
    counters: Arc<Counters>,
}

impl<C: AsyncRead + Unpin> AsyncRead for Metered<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.client).poll_read(cx, out);
        let bytes = out.filled().len() - before;
        self.counters.sent.fetch_add(bytes as u64, Relaxed);
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Metered<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.client).poll_write(cx, bytes);
        if let Poll::Ready(Ok(bytes)) = &wrote {
            self.counters.received.fetch_add(*bytes as u64, Relaxed);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}

/// Endpoints that are asked for one connection.
const TRIES: usize = 3;
/// Between what is published and what open connections hear of it.
pub(crate) const MOMENT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_moved_is_counted_as_it_moves_and_not_at_the_end() {
        let (mut client, ours) = tokio::io::duplex(64);
        let (mut app, theirs) = tokio::io::duplex(64);
        let counters = Arc::new(Counters::default());
        let talking = async {
            client.write_all(b"hello").await.unwrap();
            app.read_exact(&mut [0; 5]).await.unwrap();
            app.write_all(b"yes").await.unwrap();
            client.read_exact(&mut [0; 3]).await.unwrap();
        };
        tokio::select! {
            _ = copied(ours, theirs, counters.clone()) => panic!("nobody has ended"),
            () = talking => {}
        }
        assert_eq!(counters.moved(), (5, 3));
    }
}
