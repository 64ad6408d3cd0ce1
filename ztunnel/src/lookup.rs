//! A name enters, an address leaves: destinations that the mesh knows by name alone (ServiceEntry with DNS endpoints).
//!
//! The system's resolver is asked (`getaddrinfo`), which blocks a thread for as long as its servers keep silent. So:
//! at most [`AT_ONCE`] names are being asked for at any time, and whoever waits is told after [`PATIENCE`]. A lookup
//! that nobody waits for any more keeps its place until the resolver gives up: the place is the thread.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::netns::unmapped;

/// Threads that lookups may hold; tokio has 512 of them, and others need some.
const AT_ONCE: usize = 64;
/// As long as the system's resolver waits for its first server by default.
const PATIENCE: Duration = Duration::from_secs(5);

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("name {0} could not be resolved: {1}")]
    Failed(Arc<str>, io::Error),
    #[error("name {0} could not be resolved: no answer within {1:?}")]
    Silent(Arc<str>, Duration),
    #[error("name {0} has no address")]
    NoAddress(Arc<str>),
}

/// An address of `name`, of the wanted family if it has one of it.
pub(crate) async fn lookup(
    name: &Arc<str>,
    port: u16,
    v4: bool,
) -> Result<SocketAddr, LookupError> {
    let ask = move |name: &str| Ok((name, port).to_socket_addrs()?.collect());
    let found = within(&PLACES, PATIENCE, name, ask).await?;
    choose(found, v4).ok_or_else(|| LookupError::NoAddress(name.clone()))
}

async fn within(
    places: &'static Semaphore,
    patience: Duration,
    name: &Arc<str>,
    ask: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>, LookupError> {
    let asking = async {
        let place = places.acquire().await;
        let asked = name.clone();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            ask(&asked)
        })
        .await
        .unwrap_or_else(|died| Err(io::Error::other(died)))
    };
    match tokio::time::timeout(patience, asking).await {
        Ok(answer) => answer.map_err(|why| LookupError::Failed(name.clone(), why)),
        Err(_) => Err(LookupError::Silent(name.clone(), patience)),
    }
}

/// The family the app chose is the one it can be answered in.
fn choose(found: Vec<SocketAddr>, v4: bool) -> Option<SocketAddr> {
    let mut found = found.into_iter().map(unmapped);
    let first = found.next()?;
    if first.is_ipv4() == v4 {
        return Some(first);
    }
    Some(
        found
            .find(|address| address.is_ipv4() == v4)
            .unwrap_or(first),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn the_family_of_the_caller_is_preferred() {
        let all = |text: &[&str]| text.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        for (found, v4, chosen) in [
            (&["10.0.0.1:1", "[fd00::1]:1"][..], true, Some("10.0.0.1:1")),
            (&["10.0.0.1:1", "[fd00::1]:1"], false, Some("[fd00::1]:1")),
            (&["[::ffff:10.0.0.1]:1"], true, Some("10.0.0.1:1")),
            (&["[fd00::1]:1", "[fd00::2]:1"], true, Some("[fd00::1]:1")),
            (&[], true, None),
        ] {
            let chosen = chosen.map(|address| address.parse().unwrap());
            assert_eq!(choose(all(found), v4), chosen, "{found:?} {v4}");
        }
    }

    #[tokio::test]
    async fn a_silent_resolver_is_given_up_by_name_but_keeps_its_place_until_it_returns() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (let_go, held) = mpsc::channel::<()>();
        let name: Arc<str> = "db.example".into();
        let silent = move |_: &str| {
            let _ = held.recv();
            Ok(Vec::new())
        };
        let why = within(&ONE, SHORT, &name, silent).await.unwrap_err();
        assert_eq!(
            why.to_string(),
            "name db.example could not be resolved: no answer within 50ms"
        );
        // The only place is taken: nobody else is even asked.
        let never = |_: &str| -> io::Result<_> { panic!("asked beyond the bound") };
        let why = within(&ONE, SHORT, &name, never).await.unwrap_err();
        assert!(matches!(why, LookupError::Silent(..)), "{why}");
        // It returns, and its place is free again.
        drop(let_go);
        let answer = vec!["10.0.0.1:80".parse().unwrap()];
        let told = answer.clone();
        let found = within(&ONE, LONG, &name, move |_| Ok(told)).await;
        assert_eq!(found.unwrap(), answer);
    }

    #[tokio::test]
    async fn a_name_that_is_refused_is_named() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let refused = |_: &str| Err(io::Error::other("no such host"));
        let why = within(&ONE, LONG, &"gone.example".into(), refused).await;
        assert_eq!(
            why.unwrap_err().to_string(),
            "name gone.example could not be resolved: no such host"
        );
    }
}
