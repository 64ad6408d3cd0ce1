//! A connection that was dialled joins the pool of whoever goes on with it: tunnels are opened on it as if it had been
//! dialled there, for the same source and the same destination, until the same end.

use std::{
    io,
    net::SocketAddr,
    ops::Range,
    slice,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hbone::{
    Certificates, CertificatesConfig, Destination, Engine, HalfEnd, Limits, OpenError, Pool,
    PoolConfig, PoolStats, Revocations, TlsError, Tunnel, TunnelError,
    handover::{Kind, Taken, ThawError, Thawed},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    common::{self, Ca, Signing, client_of, identity},
    world::{Decision, LONG, World, decide, sent},
};

/// A pool of another process: nothing is in it.
fn pool(config: PoolConfig) -> Arc<Pool> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 9));
    common::client(&Arc::new(Ca::new()), anywhere, config).pool
}

/// A tunnel on what there is already.
async fn open(pool: &Pool, destination: &Destination) -> Result<Tunnel, OpenError> {
    let nobody_dials = |_| async { Err::<TcpStream, _>(io::Error::other("nobody dials here")) };
    pool.open(destination, nobody_dials, common::to("10.0.0.1:80"))
        .await
}

fn is_dialling(opened: Result<Tunnel, OpenError>) -> bool {
    matches!(opened, Err(OpenError::Dial { .. }))
}

async fn speak(tunnel: &mut Tunnel, app: &mut TcpStream) {
    tunnel.send("there".into()).await.unwrap();
    app.read_exact(&mut [0; 5]).await.unwrap();
    app.write_all(b"back").await.unwrap();
    assert_eq!(tunnel.recv().await.unwrap().unwrap(), "back");
}

fn stats(connections: usize, streams: usize) -> PoolStats {
    PoolStats {
        destinations: connections,
        connections,
        streams,
    }
}

#[tokio::test]
async fn tunnels_are_opened_on_it_by_one_owner_after_another() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    let (destination, mut pools) = (
        world.client.destination.clone(),
        vec![world.client.pool.clone()],
    );
    for n in 1..4 {
        let next = pool(PoolConfig::default());
        world.near.join(&next);
        assert!(world.near.becomes(Decision::Hand).await);
        common::eventually("it is in the next pool alone", || {
            let now = pools.iter().map(|pool| pool.stats());
            now.eq(pools.iter().map(|_| stats(0, 0))) && next.stats() == stats(1, 1)
        })
        .await;
        let mut tunnel = open(&next, &destination).await.unwrap();
        assert_eq!(tunnel.stream(), 1 + 2 * n, "on the same connection");
        assert_eq!(next.stats(), stats(1, 2));
        let mut app = world.apps.recv().await.unwrap();
        speak(&mut tunnel, &mut app).await;
        drop((tunnel, app));
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        // Until then it would be waited for: nobody copies it.
        common::eventually("the new one has gone", || next.stats() == stats(1, 1)).await;
        pools.push(next);
    }
    drop((near, far));
    let last = pools.pop().unwrap();
    common::eventually("no tunnel is open", || last.stats() == stats(1, 0)).await;
    open(&last, &destination).await.unwrap();
}

#[tokio::test]
async fn it_is_for_nobody_else() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (_near, _far) = world.tunnel().await;
    let next = pool(PoolConfig::default());
    world.near.join(&next);
    assert!(world.near.becomes(Decision::Hand).await);
    common::eventually("it is in the pool", || next.stats() == stats(1, 1)).await;
    let ours = world.client.destination.clone();
    for other in [
        Destination {
            source: identity("other"),
            ..ours.clone()
        },
        Destination {
            source_ip: [127, 0, 0, 2].into(),
            ..ours.clone()
        },
        Destination {
            expected: vec![identity("other"), identity("server")],
            ..ours.clone()
        },
        Destination {
            address: SocketAddr::from(([127, 0, 0, 1], 9)),
            ..ours.clone()
        },
    ] {
        // The other pool's authority signs everything.
        assert!(is_dialling(open(&next, &other).await), "{other:?}");
    }
}

#[tokio::test]
async fn it_goes_when_its_source_does_and_its_tunnels_go_on() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    let (next, destination) = (
        pool(PoolConfig::default()),
        world.client.destination.clone(),
    );
    world.near.join(&next);
    assert!(world.near.becomes(Decision::Hand).await);
    common::eventually("it is in the pool", || next.stats() == stats(1, 1)).await;
    next.close_source(&destination.source, destination.source_ip);
    assert_eq!(next.stats(), stats(0, 0));
    assert!(is_dialling(open(&next, &destination).await));
    near.write_all(b"x").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
    drop((near, far));
    let (near, far) = (world.near.clone(), world.far.clone());
    common::eventually("it ends with its last", || {
        (near.over(), far.over()) == (1, 1)
    })
    .await;
}

#[tokio::test]
async fn it_goes_when_it_is_not_used() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let apps = world.tunnel().await;
    let next = pool(PoolConfig {
        release: Duration::from_millis(200),
        ..PoolConfig::default()
    });
    world.near.join(&next);
    assert!(world.near.becomes(Decision::Hand).await);
    common::eventually("it is in the pool", || next.stats() == stats(1, 1)).await;
    drop(apps);
    let far = world.far.clone();
    common::eventually("it has gone, in order", || {
        next.stats() == stats(0, 0) && far.over() == 1
    })
    .await;
}

#[tokio::test]
async fn it_takes_no_tunnels_after_the_end_of_the_certificate_it_was_made_with() {
    let ca = Arc::new(Ca::new());
    let signing = Signing {
        lifetime: Duration::from_secs(8),
        ..Signing::new(&ca)
    };
    let lifetime = signing.lifetime;
    let mut world = World::of(&ca, signing).await;
    let (mut near, mut far) = world.tunnel().await;
    // It was signed before that.
    let end = SystemTime::now() + lifetime;
    let (next, destination) = (
        pool(PoolConfig::default()),
        world.client.destination.clone(),
    );
    world.near.join(&next);
    assert!(world.near.becomes(Decision::Hand).await);
    let left = end.duration_since(SystemTime::now()).unwrap_or_default();
    // Certificates end at whole seconds.
    tokio::time::sleep(left + Duration::from_secs(1)).await;
    assert!(is_dialling(open(&next, &destination).await));
    near.write_all(b"x").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
}

/// Whoever is on a list now may have been let in under another one, by a process that is no more.
#[tokio::test]
async fn where_certificates_are_revoked_nobody_opens_a_tunnel_on_what_was_proven_to_another() {
    let lists = Arc::<Revocations>::default();
    let list = Ca::new().revoking(&[]);
    lists.replace(list.as_bytes()).unwrap();

    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    let keeping = CertificatesConfig {
        revocations: lists.clone(),
        ..CertificatesConfig::default()
    };
    let certificates = Certificates::new(Signing::new(&Arc::new(Ca::new())), keeping);
    let next = Pool::new(certificates, PoolConfig::default());
    world.near.join(&next);
    assert!(world.near.becomes(Decision::Hand).await);
    let destination = world.client.destination.clone();
    assert!(is_dialling(open(&next, &destination).await));
    near.write_all(b"x").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x', "what is open goes on");

    // The other end asks the peer to come again, also when the first list comes after it was taken over.
    for after in [false, true] {
        let later = match after {
            true => Arc::<Revocations>::default(),
            false => lists.clone(),
        };
        let mut world = World::new(Engine::Own, Engine::Own).await;
        let (mut near, mut far) = world.tunnel().await;
        let frozen = world.far.freezer().freeze(LONG).await.unwrap();
        decide(frozen, Decision::Hand, |taken| {
            let Ok(Thawed::Accepted(mut connection, tunnels)) = taken.thaw(&Limits::default())
            else {
                panic!("a connection that was accepted");
            };
            connection.mind(&later);
            world.far.run(Thawed::Accepted(connection, tunnels));
        });
        if after {
            drop(world.tunnel().await);
            later.replace(list.as_bytes()).unwrap();
        }
        let mut refused = false;
        // One or another may be under way.
        for _ in 0..1000 {
            near.write_all(b"x").await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), b'x', "what is open goes on");
            // It has been told to go, and there is nobody else to ask.
            refused = is_dialling(world.client.open().await);
            if refused {
                break;
            }
        }
        assert!(refused, "after: {after}");
    }
}

/// Where in the state of a connection it is said what its peer has shown, and the peer's certificate.
fn shown(bytes: &[u8]) -> (Range<usize>, CertificateDer<'static>) {
    let string = |at: &mut usize| {
        let head = bytes[*at..*at + 4].try_into().unwrap();
        let from = *at + 4;
        *at = from + u32::from_be_bytes(head) as usize;
        from..*at
    };
    let count = |at: &mut usize| {
        *at += 4;
        u32::from_be_bytes(bytes[*at - 4..*at].try_into().unwrap())
    };
    let mut at = 2;
    for _ in 0..3 {
        string(&mut at);
    }
    at += 1;
    let from = at;
    at += 1 + 8;
    let chain: Vec<_> = (0..count(&mut at)).map(|_| string(&mut at)).collect();
    for _ in 0..count(&mut at) {
        for _ in 0..2 {
            string(&mut at);
        }
        at += 1;
        if bytes[at - 1] == 1 {
            string(&mut at);
        }
    }
    let leaf = CertificateDer::from(bytes[chain[0].clone()].to_vec());
    (from..at, leaf)
}

/// At the end that opened the tunnel and at the one that accepted it; `known`: handed over by a process that hands over what
/// the peer has shown.
#[tokio::test]
async fn a_tunnel_that_was_handed_over_ends_when_its_peer_is_revoked() {
    for (opened, known) in [(true, true), (true, false), (false, true), (false, false)] {
        let (ca, lists) = (Arc::new(Ca::new()), Arc::<Revocations>::default());
        let limits = Limits {
            ping_every: Duration::from_millis(100),
            ..Limits::default()
        };
        let client = |address, config| common::client(&ca, address, config);
        let mut world = World::between(&ca, limits.clone(), Engine::Own, client).await;
        let (mut near, mut far) = world.tunnel().await;
        let judging = CertificatesConfig {
            revocations: lists.clone(),
            ..CertificatesConfig::default()
        };
        let config = PoolConfig {
            ping_every: Duration::from_millis(100),
            ..PoolConfig::default()
        };
        let next = Pool::new(Certificates::new(Signing::new(&ca), judging), config);
        let side = match opened {
            true => world.near.clone(),
            false => world.far.clone(),
        };
        side.join(&next);
        let frozen = side.freezer().freeze(LONG).await.unwrap();
        let (mut bytes, descriptors) = sent(&frozen);
        let (range, leaf) = shown(&bytes);
        if !known {
            bytes.splice(range, [0]);
        }
        let taken = Taken::read(bytes, descriptors).unwrap();
        frozen.forget();
        side.run(match taken.thaw(&limits).unwrap() {
            Thawed::Accepted(mut connection, tunnels) => {
                connection.mind(&lists);
                Thawed::Accepted(connection, tunnels)
            }
            other => other,
        });
        let mut talks = async |times: usize| {
            for _ in 0..times {
                near.write_all(b"x").await.unwrap();
                assert_eq!(far.read_u8().await.unwrap(), b'x');
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        talks(1).await;
        if known {
            // Of another authority.
            lists
                .replace(Ca::new().revoking(slice::from_ref(&leaf)).as_bytes())
                .unwrap();
            talks(5).await;
            // Also when it was frozen meanwhile.
            assert!(side.becomes(Decision::TakeBack).await);
            lists.replace(ca.revoking(&[leaf]).as_bytes()).unwrap();
        } else {
            lists.replace(ca.revoking(&[]).as_bytes()).unwrap();
        }
        let endings = match opened {
            true => &mut world.near_finished,
            false => &mut world.far_finished,
        };
        let ended = tokio::time::timeout(LONG, endings.recv()).await;
        let ended = ended.expect("nobody is told").unwrap().ended;
        let Some(HalfEnd::Tunnel(TunnelError::Disbelieved(why))) = ended.error() else {
            panic!("opened: {opened}, known: {known}: {ended:?}");
        };
        assert_eq!(**why == TlsError::Revoked, known, "{why}");
        let mut byte = [0];
        for app in [&mut near, &mut far] {
            assert!(matches!(app.read(&mut byte).await, Ok(0) | Err(_)));
        }
    }
}

#[tokio::test]
async fn where_it_belongs_is_told_before_it_is_gone_on_with_and_must_fit_the_peer() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (_near, _far) = world.tunnel().await;
    let frozen = world.near.freezer().freeze(LONG).await.unwrap();
    let (bytes, descriptors) = sent(&frozen);
    let taken = Taken::read(bytes.clone(), descriptors).unwrap();
    assert_eq!(taken.destination(), Some(&world.client.destination));
    // The peer's name stands there three times: who it was, what its certificate says, and who it may be.
    let peer = identity("server").to_string();
    let places: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at..].starts_with(peer.as_bytes()))
        .collect();
    let [proven, _shown, expected] = places[..] else {
        panic!("{places:?}")
    };
    for at in [proven, expected] {
        let mut other = bytes.clone();
        other[at + peer.len() - 1] = b'x';
        let refused = Taken::read(other, sent(&frozen).1).unwrap_err();
        let why = ThawError::Impossible("a peer that was not expected");
        assert_eq!(refused, why);
    }
    frozen.take_back();

    let frozen = world.far.freezer().freeze(LONG).await.unwrap();
    let (bytes, descriptors) = sent(&frozen);
    let taken = Taken::read(bytes, descriptors).unwrap();
    assert_eq!((taken.kind(), taken.destination()), (Kind::Accepted, None));
    frozen.take_back();
}

impl World {
    /// Both proxies are certified by `ca`; the near one as `signing` does it.
    async fn of(ca: &Ca, signing: Signing) -> Self {
        let limits = Limits {
            engine: Engine::Own,
            ..Limits::default()
        };
        let client = |address, config| client_of(signing, address, config);
        Self::between(ca, limits, Engine::Own, client).await
    }
}
