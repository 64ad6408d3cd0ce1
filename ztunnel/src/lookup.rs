//! A name enters, an address leaves: destinations that the mesh knows by name alone (ServiceEntry with DNS endpoints).
//!
//! The system's resolver is asked (`getaddrinfo`), which blocks a thread for as long as its servers keep silent. So:
//! at most [`AT_ONCE`] names are being asked for at any time, each once, however many wait for it, and whoever waits is told
//! after [`PATIENCE`]. A lookup that nobody waits for any more keeps its place until the resolver gives up: the place is the
//! thread. A pod that calls the same name again and again, whose servers are silent, has one place and not all of its node's.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use crate::netns::unmapped;

/// Threads that lookups may hold; tokio has 512 of them, and others need some.
const AT_ONCE: usize = 64;
/// As long as the system's resolver waits for its first server by default.
const PATIENCE: Duration = Duration::from_secs(5);

static LOOKUPS: Lookups = Lookups::new(AT_ONCE);

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("name {0} could not be resolved: {1}")]
    Failed(Arc<str>, Arc<io::Error>),
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
    // Others who wait for the same name may want another port.
    let ask = |name: &str| Ok((name, 0_u16).to_socket_addrs()?.collect());
    let mut found = within(&LOOKUPS, PATIENCE, name, ask).await?;
    found.iter_mut().for_each(|address| address.set_port(port));
    choose(found, v4).ok_or_else(|| LookupError::NoAddress(name.clone()))
}

async fn within(
    lookups: &'static Lookups,
    patience: Duration,
    name: &Arc<str>,
    ask: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>, LookupError> {
    let mut answer = lookups.join(name, ask);
    let told = tokio::time::timeout(patience, answer.wait_for(Option::is_some)).await;
    let told = told.map(|told| told.map(|told| (*told).clone()));
    match told {
        Ok(Ok(Some(answer))) => answer.map_err(|why| LookupError::Failed(name.clone(), why)),
        // Its runtime has ended.
        Ok(_) => {
            let why = io::Error::other("it was given up");
            Err(LookupError::Failed(name.clone(), Arc::new(why)))
        }
        Err(_) => Err(LookupError::Silent(name.clone(), patience)),
    }
}

/// What the resolver says of a name.
type Answer = Result<Vec<SocketAddr>, Arc<io::Error>>;

/// Names that are being asked for, and who waits for the answers.
type UnderWay = HashMap<Arc<str>, watch::Sender<Option<Answer>>>;

/// Lookups, and how many there may be at a time.
struct Lookups {
    places: Semaphore,
    under_way: LazyLock<Mutex<UnderWay>>,
}

/// One of them. It is listed until this is dropped, and those who wait are told then.
struct Lookup {
    all: &'static Lookups,
    name: Arc<str>,
    listed: bool,
    waiting: watch::Sender<Option<Answer>>,
    answer: Option<Answer>,
}

impl Lookups {
    const fn new(places: usize) -> Self {
        Self {
            places: Semaphore::const_new(places),
            under_way: LazyLock::new(Mutex::default),
        }
    }

    /// The answer to whoever has asked for that name already and is still waiting, or else what `ask` says.
    fn join(
        &'static self,
        name: &Arc<str>,
        ask: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> watch::Receiver<Option<Answer>> {
        let mut under_way = self.lock();
        if let Some(waiting) = under_way.get(name) {
            return waiting.subscribe();
        }
        let (waiting, answer) = watch::channel(None);
        under_way.insert(name.clone(), waiting.clone());
        drop(under_way);
        let mut lookup = Lookup {
            all: self,
            name: name.clone(),
            listed: true,
            waiting,
            answer: None,
        };
        // A task of its own: who asked first may give up first.
        tokio::spawn(async move {
            let Some(place) = lookup.place().await else {
                return;
            };
            let name = lookup.name.clone();
            let asked = tokio::task::spawn_blocking(move || {
                let _place = place;
                ask(&name)
            })
            .await
            .unwrap_or_else(|died| Err(io::Error::other(died)));
            lookup.end(asked.map_err(Arc::new));
        });
        answer
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookup {
    /// A thread to ask on; none when nobody waits any more before there is one.
    async fn place(&mut self) -> Option<SemaphorePermit<'static>> {
        let all = self.all;
        let place = all.places.acquire();
        tokio::pin!(place);
        loop {
            tokio::select! {
                biased;
                () = self.waiting.closed() => {
                    // Whoever joins does so while this is locked.
                    let mut under_way = all.lock();
                    if self.waiting.receiver_count() == 0 {
                        under_way.remove(&self.name);
                        self.listed = false;
                        return None;
                    }
                }
                place = &mut place => return place.ok(),
            }
        }
    }

    fn end(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if self.listed {
            self.all.lock().remove(&self.name);
        }
        if let Some(answer) = self.answer.take() {
            self.waiting.send_replace(Some(answer));
        }
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
        static ONE: Lookups = Lookups::new(1);
        let (let_go, held) = mpsc::channel::<()>();
        let silent = move |_: &str| {
            let _ = held.recv();
            Ok(Vec::new())
        };
        let why = within(&ONE, SHORT, &"db.example".into(), silent).await;
        assert_eq!(
            why.unwrap_err().to_string(),
            "name db.example could not be resolved: no answer within 50ms"
        );
        // The only place is taken: no other name is even asked for.
        let never = |_: &str| -> io::Result<_> { panic!("asked beyond the bound") };
        let why = within(&ONE, SHORT, &"other.example".into(), never).await;
        let why = why.unwrap_err();
        assert!(matches!(why, LookupError::Silent(..)), "{why}");
        // It returns, and its place is free again.
        drop(let_go);
        let answer = vec!["10.0.0.1:80".parse().unwrap()];
        let told = answer.clone();
        let found = within(&ONE, LONG, &"third.example".into(), move |_| Ok(told)).await;
        assert_eq!(found.unwrap(), answer);
        // Who waited for a place in vain is not asked for afterwards.
        assert!(!ONE.lock().contains_key("other.example"));
    }

    #[tokio::test]
    async fn a_name_has_one_place_however_many_wait_for_it() {
        static TWO: Lookups = Lookups::new(2);
        let (let_go, held) = mpsc::channel::<()>();
        let silent = move |_: &str| {
            let _ = held.recv();
            Ok(vec!["10.0.0.1:0".parse().unwrap()])
        };
        let never = |_: &str| -> io::Result<_> { panic!("asked once more") };
        let name: Arc<str> = "silent.example".into();
        let (one, other) = (name.clone(), name.clone());
        let one = tokio::spawn(async move { within(&TWO, LONG, &one, silent).await });
        tokio::task::yield_now().await;
        let other = tokio::spawn(async move { within(&TWO, LONG, &other, never).await });
        tokio::task::yield_now().await;
        let answer = vec!["10.0.0.2:0".parse().unwrap()];
        let told = answer.clone();
        let found = within(&TWO, LONG, &"well.example".into(), move |_| Ok(told)).await;
        assert_eq!(found.unwrap(), answer, "there is a place for others");
        drop(let_go);
        for waited in [one, other] {
            let found = waited.await.unwrap().unwrap();
            assert_eq!(found, ["10.0.0.1:0".parse().unwrap()]);
        }
        // Asked for again later it is asked again.
        let found = within(&TWO, LONG, &name, |_| Ok(Vec::new())).await;
        assert_eq!(found.unwrap(), []);
        assert!(TWO.lock().is_empty());
    }

    #[tokio::test]
    async fn a_name_that_is_refused_is_named() {
        static ONE: Lookups = Lookups::new(1);
        let refused = |_: &str| Err(io::Error::other("no such host"));
        let why = within(&ONE, LONG, &"gone.example".into(), refused).await;
        assert_eq!(
            why.unwrap_err().to_string(),
            "name gone.example could not be resolved: no such host"
        );
    }
}
