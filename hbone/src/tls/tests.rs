//! Two sides that meet again: when they may go on with what was proven before, and when not.
//!
//! Each side is either of the two engines, in every combination.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{client::ClientSessionMemoryCache, crypto::aws_lc_rs::Ticketer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};

use super::{
    fixture::{CLIENT, Ca, Clock, HOUR, MINUTE, SERVER, identity},
    *,
};
use crate::records::{ContentType, Opened, Sealer};

const ELSE: &str = "spiffe://cluster.local/ns/default/sa/else";
const ENGINES: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

type Outcome = Result<Session, TlsError>;

fn address(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::from(([10, 0, 0, 1], port)))
}

/// One side after its handshake.
enum Side<T> {
    Stock(Box<Stream<T>>),
    Own(Box<Established>, T),
}

impl<T: AsyncRead + AsyncWrite + Unpin> Side<T> {
    /// A byte, behind which no ticket comes.
    async fn say(&mut self) {
        match self {
            Self::Stock(stream) => {
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
            }
            Self::Own(ours, io) => io.write_all(&sealed(&mut ours.sealer)).await.unwrap(),
        }
    }

    async fn hear(&mut self) {
        match self {
            Self::Stock(stream) => assert_eq!(stream.read_u8().await.unwrap(), b'x'),
            Self::Own(ours, io) => loop {
                let used = match ours.opener.next(&mut ours.unread).unwrap() {
                    Opened::Incomplete { .. } => {
                        assert_ne!(io.read_buf(&mut ours.unread).await.unwrap(), 0);
                        0
                    }
                    Opened::Data { .. } => return,
                    Opened::Nothing { used } | Opened::Ticket { used, .. } => used,
                    other => panic!("{other:?}"),
                };
                ours.unread.drain(..used);
            },
        }
    }
}

fn sealed(sealer: &mut Sealer) -> Vec<u8> {
    let mut out = Vec::new();
    let start = sealer.begin(&mut out);
    out.push(b'x');
    sealer.finish(&mut out, start, ContentType::Data).unwrap();
    out
}

async fn accept<T>(ours: &Credentials, own: bool, mut io: T) -> Result<(Side<T>, Session), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    if own {
        let mut established = ours.accept_own(&mut io).await?;
        last_flight(&mut established, &mut io).await?;
        let session = established.session.clone();
        return Ok((Side::Own(Box::new(established), io), session));
    }
    let (stream, session) = ours.accept(io).await.map_err(|(error, _)| error)?;
    Ok((Side::Stock(Box::new(stream)), session))
}

async fn connect<T>(
    ours: &Credentials,
    own: bool,
    mut io: T,
    expected: Expected<'_>,
) -> Result<(Side<T>, Session), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    if own {
        let mut established = ours.connect_own(&mut io, expected).await?;
        last_flight(&mut established, &mut io).await?;
        let session = established.session.clone();
        return Ok((Side::Own(Box::new(established), io), session));
    }
    let (stream, session) = ours.connect(io, expected).await?;
    Ok((Side::Stock(Box::new(stream)), session))
}

/// Sends what the engine would send with its first record.
async fn last_flight<T: AsyncWrite + Unpin>(
    ours: &mut Established,
    io: &mut T,
) -> Result<(), TlsError> {
    let sent = io.write_all(&mem::take(&mut ours.unsent)).await;
    sent.map_err(|error| TlsError::Io(error.kind()))
}

/// A client and a server, and how they find each other.
struct Pair<'a> {
    client: &'a Credentials,
    server: &'a Credentials,
    own: [bool; 2],
    expected: Vec<Identity>,
    address: Option<SocketAddr>,
}

impl<'a> Pair<'a> {
    fn new(client: &'a Credentials, server: &'a Credentials, own: [bool; 2]) -> Self {
        Self {
            client,
            server,
            own,
            expected: vec![identity(SERVER)],
            address: address(15008),
        }
    }

    /// What each side makes of the other; `late` is run when the first flight has left the client, and
    /// `later` when the server's has reached it.
    async fn meet_with(&self, late: impl FnOnce(), later: impl FnMut() + Unpin) -> [Outcome; 2] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let near = OnRead(near, later);
        let expected = Expected {
            identities: &self.expected,
            address: self.address,
        };
        let accepting = async {
            late();
            accept(self.server, self.own[1], far).await
        };
        let connecting = connect(self.client, self.own[0], near, expected);
        let (client, server) = tokio::join!(connecting, accepting);
        match (client, server) {
            (Ok((mut near, client)), Ok((mut far, server))) => {
                far.say().await;
                near.hear().await;
                [Ok(client), Ok(server)]
            }
            (client, server) => [client.map(|it| it.1), server.map(|it| it.1)],
        }
    }

    async fn meet(&self) -> [Outcome; 2] {
        self.meet_with(|| (), || ()).await
    }

    /// Both are content; whether they went on with an earlier session.
    async fn resumes(&self) -> bool {
        let [client, server] = self.meet().await.map(Result::unwrap);
        assert_eq!(client.resumed, server.resumed);
        assert!(self.expected.contains(&client.peer));
        assert_eq!(server.peer, identity(CLIENT));
        for session in [&client, &server] {
            assert_eq!(session.group, "X25519MLKEM768", "a new key exchange");
        }
        client.resumed
    }
}

/// Calls before each read.
struct OnRead<F>(DuplexStream, F);

impl<F: FnMut() + Unpin> AsyncRead for OnRead<F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.0).poll_read(cx, buf);
        if polled.is_ready() {
            (self.1)();
        }
        polled
    }
}

impl<F: Unpin> AsyncWrite for OnRead<F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn who_meets_again_goes_on_and_knows_who_the_other_is() {
    for own in ENGINES {
        let (ca, clock) = (Ca::new(), Clock::new());
        let client = ca.credentials(CLIENT, 8, &clock);
        let server = ca.credentials(SERVER, 8, &clock);
        let pair = Pair::new(&client, &server, own);
        assert!(!pair.resumes().await, "strangers");
        for round in 0..3 {
            assert!(pair.resumes().await, "{own:?} {round}");
        }
        // The other engine of either side knows the session as well.
        let other = Pair::new(&client, &server, own.map(|own| !own));
        assert!(other.resumes().await);
    }
}

#[tokio::test]
async fn a_session_is_offered_only_to_whom_it_was_made_with() {
    for own in ENGINES {
        let (ca, clock) = (Ca::new(), Clock::new());
        let client = ca.credentials(CLIENT, 8, &clock);
        let server = ca.credentials(SERVER, 8, &clock);
        let pair = || Pair::new(&client, &server, own);
        assert!(!pair().resumes().await);
        let elsewhere = Pair {
            address: address(15009),
            ..pair()
        };
        assert!(!elsewhere.resumes().await, "another address");
        let more = vec![identity(SERVER), identity(ELSE)];
        let wider = Pair {
            expected: more,
            ..pair()
        };
        assert!(!wider.resumes().await, "other expected identities");
        let nowhere = || Pair {
            address: None,
            ..pair()
        };
        assert!(
            !nowhere().resumes().await && !nowhere().resumes().await,
            "no address"
        );
        let renewed = ca.credentials(CLIENT, 8, &clock);
        let renewed = Pair::new(&renewed, &server, own);
        assert!(!renewed.resumes().await, "another certificate");
        assert!(pair().resumes().await, "it was kept for its own");
    }
}

#[tokio::test]
async fn a_certificate_that_was_replaced_takes_its_sessions_with_it() {
    let (ca, clock) = (Ca::new(), Clock::new());
    let client = ca.credentials(CLIENT, 8, &clock);
    let server = ca.credentials(SERVER, 8, &clock);
    let pair = Pair::new(&client, &server, [true, true]);
    assert!(!pair.resumes().await);
    let kept = Arc::downgrade(&client.client(&pair.expected).unwrap());
    let verifier = Arc::downgrade(&client.client(&pair.expected).unwrap().verifier);
    drop(client);
    assert_eq!((kept.strong_count(), verifier.strong_count()), (0, 0));
}

#[tokio::test]
async fn either_side_can_have_certificates_shown_each_time() {
    for own in ENGINES {
        for unwilling in 0..2 {
            let (ca, clock) = (Ca::new(), Clock::new());
            let mut client = ca.credentials(CLIENT, 8, &clock);
            let mut server = ca.credentials(SERVER, 8, &clock);
            assert!(!Pair::new(&client, &server, own).resumes().await);
            [&mut client, &mut server][unwilling].forget_sessions();
            for _ in 0..2 {
                assert!(!Pair::new(&client, &server, own).resumes().await);
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_is_another_by_now_knows_no_session() {
    for own in ENGINES {
        let (ca, clock) = (Ca::new(), Clock::new());
        let client = ca.credentials(CLIENT, 8, &clock);
        let expected = vec![identity(ELSE), identity(SERVER)];
        let server = ca.credentials(SERVER, 8, &clock);
        let pair = |server| Pair {
            expected: expected.clone(),
            ..Pair::new(&client, server, own)
        };
        assert!(!pair(&server).resumes().await);
        let renewed = ca.credentials(SERVER, 8, &clock);
        assert!(!pair(&renewed).resumes().await, "another certificate");
        let other = ca.credentials(ELSE, 8, &clock);
        let [client_says, _] = pair(&other).meet().await.map(Result::unwrap);
        assert_eq!(client_says.peer, identity(ELSE), "who is there now");
        assert!(!client_says.resumed);
        // It trusts other roots now: then it does not trust this client.
        let rooted = Ca::new();
        let badge = ca.credentials(SERVER, 8, &clock).certified;
        let distrustful =
            Credentials::new(badge, rooted.roots(), rooted.verifier(), clock.clone()).unwrap();
        let [_, server_says] = pair(&distrustful).meet().await;
        assert!(
            matches!(server_says, Err(TlsError::UnknownCa(_))),
            "{server_says:?}"
        );
    }
}

#[tokio::test]
async fn a_client_whose_certificate_has_ended_is_refused_whatever_it_offers() {
    for own in ENGINES {
        let (ca, clock, servers) = (Ca::new(), Clock::new(), Clock::new());
        let client = ca.credentials(CLIENT, 1, &clock);
        let server = ca.credentials(SERVER, 8, &servers);
        let pair = Pair::new(&client, &server, own);
        clock.forward(50 * MINUTE);
        servers.forward(50 * MINUTE);
        assert!(!pair.resumes().await && pair.resumes().await);
        // The client's clock stands still.
        servers.forward(10 * MINUTE + 1);
        let [_, server_says] = pair.meet().await;
        assert!(
            matches!(server_says, Err(TlsError::Expired(_))),
            "{server_says:?}"
        );
    }
}

#[tokio::test]
async fn a_server_whose_certificate_has_ended_is_refused_though_it_would_go_on() {
    for own in ENGINES {
        let (ca, clock, servers) = (Ca::new(), Clock::new(), Clock::new());
        let client = ca.credentials(CLIENT, 8, &clock);
        let server = ca.credentials(SERVER, 1, &servers);
        let pair = Pair::new(&client, &server, own);
        clock.forward(50 * MINUTE);
        servers.forward(50 * MINUTE);
        assert!(!pair.resumes().await && pair.resumes().await);
        clock.forward(10 * MINUTE + 1);
        let [client_says, _] = pair.meet().await;
        assert!(
            matches!(client_says, Err(TlsError::Expired(_))),
            "{client_says:?}"
        );
    }
}

/// What rustls resumes is looked at again when the handshake is done.
#[tokio::test]
async fn a_certificate_that_ends_during_the_handshake_is_refused_at_its_end() {
    for own in ENGINES {
        for clients in [true, false] {
            let (ca, clock, servers) = (Ca::new(), Clock::new(), Clock::new());
            let client = ca.credentials(CLIENT, if clients { 8 } else { 1 }, &clock);
            let server = ca.credentials(SERVER, if clients { 1 } else { 8 }, &servers);
            let pair = Pair::new(&client, &server, own);
            clock.forward(50 * MINUTE);
            servers.forward(50 * MINUTE);
            assert!(!pair.resumes().await);
            let much = 10 * MINUTE + 1;
            // The client has offered by then, or the server has taken.
            let refused = if clients {
                let [client_says, _] = pair.meet_with(|| clock.forward(much), || ()).await;
                client_says
            } else {
                let later = || {
                    if servers.seconds() == clock.seconds() {
                        servers.forward(much);
                    }
                };
                let [_, server_says] = pair.meet_with(|| (), later).await;
                server_says
            };
            assert!(
                matches!(refused, Err(TlsError::Expired(_))),
                "{own:?} {clients} {refused:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_hour_after_certificates_were_shown_they_are_shown_again() {
    for own in ENGINES {
        // Either side's clock is enough.
        for moving in [[true, true], [true, false], [false, true]] {
            let (ca, clocks) = (Ca::new(), [Clock::new(), Clock::new()]);
            let client = ca.credentials(CLIENT, 8, &clocks[0]);
            let server = ca.credentials(SERVER, 8, &clocks[1]);
            let pair = Pair::new(&client, &server, own);
            let forward = |minutes: u64| {
                let moving = clocks.iter().zip(moving).filter(|(_, moving)| *moving);
                moving.for_each(|(clock, _)| clock.forward(minutes * MINUTE));
            };
            assert!(!pair.resumes().await);
            forward(30);
            assert!(pair.resumes().await);
            forward(29);
            assert!(pair.resumes().await, "{own:?} {moving:?}");
            forward(1);
            assert!(!pair.resumes().await, "{own:?} {moving:?}");
            forward(59);
            assert!(pair.resumes().await, "another hour");
        }
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_ends_sessions() {
    for own in ENGINES {
        for back in 0..2 {
            let (ca, clocks) = (Ca::new(), [Clock::new(), Clock::new()]);
            let client = ca.credentials(CLIENT, 8, &clocks[0]);
            let server = ca.credentials(SERVER, 8, &clocks[1]);
            let pair = Pair::new(&client, &server, own);
            assert!(!pair.resumes().await);
            clocks[back].back(10);
            assert!(!pair.resumes().await);
            assert!(pair.resumes().await);
        }
    }
}

#[tokio::test]
async fn after_a_handshake_that_failed_the_next_is_a_full_one() {
    for own in ENGINES {
        let (ca, clock) = (Ca::new(), Clock::new());
        let client = ca.credentials(CLIENT, 8, &clock);
        let server = ca.credentials(SERVER, 8, &clock);
        let pair = Pair::new(&client, &server, own);
        // Two connections at once leave two sessions.
        let (first, second) = tokio::join!(pair.resumes(), pair.resumes());
        assert!(!first && !second);
        let (near, far) = tokio::io::duplex(1 << 16);
        drop(far);
        let expected = Expected {
            identities: &pair.expected,
            address: pair.address,
        };
        assert!(connect(&client, own[0], near, expected).await.is_err());
        assert!(!pair.resumes().await);
        assert!(pair.resumes().await);
    }
}

/// Other implementations keep sessions otherwise; here rustls as it comes.
#[tokio::test]
async fn sessions_of_peers_that_are_not_ours_are_gone_on_with() {
    let (ca, clock) = (Ca::new(), Clock::new());
    for own in [false, true] {
        for stateless in [false, true] {
            let ours = ca.credentials(CLIENT, 8, &clock);
            let badge = ca.credentials(SERVER, 8, &clock).certified;
            let mut config =
                Arc::unwrap_or_clone(server_config(&badge, ca.verifier(), clock.clone()).unwrap());
            config.send_tls13_tickets = 2;
            if stateless {
                config.ticketer = Ticketer::new().unwrap();
            } else {
                config.session_storage = rustls::server::ServerSessionMemoryCache::new(64);
            }
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            for resumed in [false, true, true] {
                let (near, far) = tokio::io::duplex(1 << 16);
                let expected = [identity(SERVER)];
                let expected = Expected {
                    identities: &expected,
                    address: address(15008),
                };
                let (near, far) =
                    tokio::join!(connect(&ours, own, near, expected), acceptor.accept(far));
                let (mut near, session) = near.unwrap();
                far.unwrap().write_all(b"x").await.unwrap();
                near.hear().await;
                assert_eq!(session.resumed, resumed, "{own} {stateless}");
            }
        }
        let ours = ca.credentials(SERVER, 8, &clock);
        let theirs = ca.credentials(CLIENT, 8, &clock);
        let client = theirs.client(&[identity(SERVER)]).unwrap();
        let mut config = ClientConfig::clone(&client.config);
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(64)));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        for resumed in [false, true, true] {
            let (near, far) = tokio::io::duplex(1 << 16);
            let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
            let (near, far) =
                tokio::join!(accept(&ours, own, near), connector.connect(nobody, far));
            let ((mut near, session), mut far) = (near.unwrap(), far.unwrap());
            near.say().await;
            assert_eq!(far.read_u8().await.unwrap(), b'x');
            assert_eq!(session.resumed, resumed, "{own}");
        }
    }
}

/// The longest that a session can be gone on with is no longer than a certificate of either side.
#[tokio::test]
async fn sessions_end_with_the_first_certificate_that_ends() {
    for (clients, servers) in [(1, 8), (8, 1)] {
        let (ca, clock) = (Ca::new(), Clock::new());
        let client = ca.credentials(CLIENT, clients, &clock);
        let server = ca.credentials(SERVER, servers, &clock);
        let pair = Pair::new(&client, &server, [true, false]);
        clock.forward(HOUR - 10);
        assert!(!pair.resumes().await);
        clock.forward(10);
        assert!(pair.resumes().await, "the last second");
        clock.forward(1);
        let refused = pair.meet().await.into_iter().find_map(Result::err);
        assert!(matches!(refused, Some(TlsError::Expired(_))), "{refused:?}");
    }
}
