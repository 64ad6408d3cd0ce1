//! Answers HTTP on the doors of a process. Listeners and routes enter; the loop ends when told to.
//!
//! Small and stubborn: a bounded number of connections, a deadline for request heads, and errors
//! of `accept` (no file descriptors left) never end the loop.
//!
//! Doors are open to the whole cluster, and kubelet comes by the same ones: whoever it finds silent it restarts, or sends
//! nobody to. So nobody is kept waiting behind others. Where all places are taken, who has most gives one back (`Callers`).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Binds `address`. The unspecified IPv6 address also takes IPv4, and falls back to IPv4 alone on
/// a host without IPv6.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if no_ipv6(&error) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Binds `port` on 127.0.0.1 and, where there is one, on `[::1]`: doors that change things are for
/// callers inside the pod only.
pub async fn bind_localhost(port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?];
    let port = listeners[0].local_addr()?.port();
    match TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
        Ok(listener) => listeners.push(listener),
        Err(error) if no_ipv6(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// Serves `routes` on `listener` until `stop` is cancelled.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let callers = Arc::new(Mutex::new(Callers::default()));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (number, sent_away) = lock(&callers).take(peer.ip().to_canonical());
        let (routes, stop, callers) = (routes.clone(), stop.clone(), callers.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sent_away.cancelled() => {}
                () = connection(stream, routes) => {}
            }
            lock(&callers).all.remove(&number);
        });
    }
}

/// Who is being answered, in the order in which they came.
#[derive(Debug, Default)]
struct Callers {
    next: u64,
    all: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

impl Callers {
    /// One more: its number, and what sends it away when another needs its place.
    fn take(&mut self, who: IpAddr) -> (u64, CancellationToken) {
        if self.all.len() >= CONNECTIONS {
            self.make_room();
        }
        let (number, sent_away) = (self.next, CancellationToken::new());
        self.next += 1;
        self.all.insert(number, (who, sent_away.clone()));
        (number, sent_away)
    }

    /// Sends away whoever came first of those from where most come. Who asks a short question and goes is never among them for
    /// long enough.
    fn make_room(&mut self) {
        let mut from: HashMap<IpAddr, usize> = HashMap::new();
        for (who, _) in self.all.values() {
            *from.entry(*who).or_default() += 1;
        }
        let most = from.values().copied().max().unwrap_or_default();
        let mut in_order = self.all.iter();
        let first = in_order.find(|(_, (who, _))| from.get(who) == Some(&most));
        let first = first.map(|(number, _)| *number);
        if let Some((_, sent_away)) = first.and_then(|number| self.all.remove(&number)) {
            sent_away.cancel();
        }
    }
}

fn lock(callers: &Mutex<Callers>) -> MutexGuard<'_, Callers> {
    callers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connection(stream: TcpStream, routes: Router) {
    let service = TowerToHyperService::new(routes);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a door's connection ended early");
    }
}

/// Scrapers, probes and people: a handful. More is a mistake or an attack.
const CONNECTIONS: usize = 64;
/// A caller that is silent this long gives its slot back; probes and scrapers send at once.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    use super::*;
    use crate::admin;
    use crate::ready::Readiness;

    #[tokio::test]
    async fn who_keeps_every_place_taken_keeps_nobody_out() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let routes = admin::readiness(Readiness::new());
        let routes = routes.route("/wait", get(std::future::pending::<()>));
        let server = tokio::spawn(serve(listener, routes, stop.clone()));

        let mut waiting = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            let mut caller = TcpStream::connect(address).await.unwrap();
            // One that was sent away already need not take it.
            let asked = caller.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n");
            let _ = asked.await;
            waiting.push(caller);
        }
        for from in ["127.0.0.2:0", "127.0.0.1:0"] {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(from.parse().unwrap()).unwrap();
            let answered = async {
                let mut caller = socket.connect(address).await.unwrap();
                let question =
                    b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
                caller.write_all(question).await.unwrap();
                let mut answer = String::new();
                caller.read_to_string(&mut answer).await.unwrap();
                answer
            };
            let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
            let answer = answered.unwrap_or_else(|_| panic!("no answer for {from}"));
            assert!(answer.ends_with("\r\n\r\nready\n"), "{answer}");
        }
        stop.cancel();
        server.await.unwrap();
    }

    #[test]
    fn whoever_has_most_places_gives_the_oldest_of_them_back() {
        let mut callers = Callers::default();
        let [many, few] = [1, 2].map(|last| IpAddr::from([10_u8, 0, 0, last]));
        let kept = callers.take(few).1;
        let taken: Vec<_> = (1..CONNECTIONS).map(|_| callers.take(many).1).collect();
        assert!(!taken.iter().any(CancellationToken::is_cancelled));
        for more in [few, many] {
            callers.take(more);
        }
        let sent_away = taken.iter().take_while(|it| it.is_cancelled()).count();
        let all = taken.iter().filter(|it| it.is_cancelled()).count();
        assert_eq!((sent_away, all, kept.is_cancelled()), (2, 2, false));
        assert_eq!(callers.all.len(), CONNECTIONS);
    }

    #[tokio::test]
    async fn silent_callers_do_not_keep_others_out() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
            admin::readiness(Readiness::new()),
            stop.clone(),
        ));

        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS - 1 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller
            .write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let answered = caller.read_to_string(&mut answer);
        let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
        answered.expect("no answer").unwrap();
        assert!(
            answer.starts_with(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n"
            ),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nready\n"), "{answer}");
        stop.cancel();
        server.await.unwrap();
    }
}
