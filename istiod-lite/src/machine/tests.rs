use super::*;
use crate::token::{AUDIENCE, Request};
use crate::write::fake::Fake;

/// A book that can be closed and opened again.
struct Book(tempfile::TempDir);

const HOME: [u8; 4] = [10, 0, 0, 9];

impl Book {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> Store {
        Store::directory(self.0.path())
    }

    /// As after a restart.
    fn open(&self) -> Arc<Machines> {
        let metrics = Metrics::register(&mut ops::metrics::Registry::new("pilot", "test"));
        let absence = Duration::from_secs(3600);
        Machines::new(self.store(), "cluster.local".into(), absence, metrics)
    }

    fn tokens(&self) -> Tokens {
        Tokens::open(self.0.path()).unwrap()
    }

    fn token(&self, join: &Join) -> String {
        self.tokens()
            .issue_join(join, Duration::from_secs(60))
            .unwrap()
    }
}

fn join() -> Join {
    Join {
        namespace: "shop".into(),
        name: "vm-1".into(),
        service_account: "db".into(),
        group: None,
        addresses: vec![HOME.into()],
        translated: false,
    }
}

fn from(address: [u8; 4]) -> Connection {
    Connection {
        peer: Some(address.into()),
        shown: None,
    }
}

fn shown(key: &str) -> Shown {
    shown_as("vm-1", key)
}

fn shown_as(name: &str, key: &str) -> Shown {
    Shown {
        machine: MachineName {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            name: name.into(),
        },
        key: key.into(),
        not_after: SystemTime::now() + Duration::from_secs(60),
    }
}

fn reason<T>(outcome: Result<T, Refused>) -> &'static str {
    outcome.map_or_else(|error| error.reason(), |_| "none")
}

#[tokio::test]
async fn a_token_is_good_for_the_first_key_alone_also_after_a_restart() {
    let book = Book::new();
    let token = book.token(&join());
    let machine = book
        .open()
        .join(&token, "k1", "", &from(HOME))
        .await
        .unwrap();
    assert_eq!(machine.reference(), "shop/vm-1");
    let again = book
        .open()
        .join(&token, "k1", "", &from(HOME))
        .await
        .unwrap();
    assert_eq!(again, machine, "its answer may have been lost");
    let thief = book.open().join(&token, "k2", "", &from(HOME)).await;
    assert_eq!(reason(thief), "token_used");
    let (machines, home) = (book.open(), from(HOME));
    let known = machines.known("shop/vm-1", &shown("k1"), &home).await;
    assert_eq!(known.unwrap(), machine, "the thief changed nothing");
}

#[tokio::test]
async fn two_that_come_at_once_with_one_token_do_not_both_join() {
    let book = Book::new();
    let token = book.token(&join());
    // As of two processes over the same state.
    let (one, other) = (book.open(), book.open());
    let (home, home_too) = (from(HOME), from(HOME));
    let outcomes = tokio::join!(
        one.join(&token, "k1", "", &home),
        other.join(&token, "k2", "", &home_too)
    );
    let mut reasons = [reason(outcomes.0), reason(outcomes.1)];
    reasons.sort_unstable();
    assert_eq!(reasons, ["none", "token_used"]);
}

#[tokio::test]
async fn tokens_that_expired_or_are_none_of_ours_or_for_another_purpose_join_nobody() {
    let (book, other) = (Book::new(), Book::new());
    let machines = book.open();
    let over = book.tokens().issue_join(&join(), Duration::ZERO).unwrap();
    let account = Request {
        namespace: "shop".into(),
        service_account: "db".into(),
        lifetime: Duration::from_secs(60),
        audience: AUDIENCE.into(),
        ..Request::default()
    };
    let account = book.tokens().issue(&account).unwrap();
    for (token, expected) in [
        (over, "token_expired"),
        (other.token(&join()), "token_invalid"),
        (account, "token_invalid"),
    ] {
        let refused = machines.join(&token, "k1", "", &from(HOME)).await;
        assert_eq!(reason(refused), expected);
    }
    assert!(book.store().list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_machine_joins_and_comes_back_from_its_own_address_alone() {
    let book = Book::new();
    let machines = book.open();
    let token = book.token(&join());
    let elsewhere = machines.join(&token, "k1", "", &from([10, 0, 0, 66])).await;
    assert_eq!(reason(elsewhere), "address");
    machines.join(&token, "k1", "", &from(HOME)).await.unwrap();
    let stolen = machines
        .known("shop/vm-1", &shown("k1"), &from([10, 0, 0, 66]))
        .await;
    assert_eq!(reason(stolen), "address");
    // Without an address in the token it is where it joined from.
    let any = Join {
        name: "vm-2".into(),
        addresses: Vec::new(),
        ..join()
    };
    let any = book.token(&any);
    let machine = machines.join(&any, "k3", "", &from([10, 0, 0, 7])).await;
    assert_eq!(machine.unwrap().address, IpAddr::from([10, 0, 0, 7]));
    // One that has several is at any of them, and its workload at the first.
    let two = Join {
        name: "vm-4".into(),
        addresses: vec![HOME.into(), [10, 0, 0, 10].into()],
        ..join()
    };
    let two = book.token(&two);
    let machine = machines.join(&two, "k5", "", &from([10, 0, 0, 10])).await;
    assert_eq!(machine.unwrap().address, IpAddr::from(HOME));
    let back = machines
        .known("shop/vm-4", &shown_as("vm-4", "k5"), &from([10, 0, 0, 10]))
        .await;
    assert_eq!(reason(back), "none");
    // Behind something that translates addresses it is at its own all the same.
    let behind = Join {
        name: "vm-3".into(),
        translated: true,
        ..join()
    };
    let behind = book.token(&behind);
    let machine = machines
        .join(&behind, "k4", "", &from([192, 0, 2, 1]))
        .await;
    assert_eq!(machine.unwrap().address, IpAddr::from(HOME));
}

#[tokio::test]
async fn only_its_own_key_and_identity_and_name_make_it_known_and_only_for_so_long() {
    let book = Book::new();
    let machines = book.open();
    let token = book.token(&join());
    machines.join(&token, "k1", "", &from(HOME)).await.unwrap();
    let ask = async |workload: &str, shown: Shown| {
        reason(machines.known(workload, &shown, &from(HOME)).await)
    };
    assert_eq!(ask("shop/vm-1", shown("k1")).await, "none");
    assert_eq!(ask("shop/vm-1", shown("k2")).await, "key");
    assert_eq!(ask("", shown("k1")).await, "none", "it need not say");
    assert_eq!(ask("shop/vm-2", shown("k1")).await, "lies");
    assert_eq!(ask("", shown_as("vm-2", "k1")).await, "unknown");
    // No name leads out of the book's folder.
    for odd in ["..", "../../token-key", "", "VM-1", "-"] {
        assert_eq!(ask("", shown_as(odd, "k1")).await, "store", "{odd:?}");
    }
    let mut other = shown("k1");
    other.machine.trust_domain = "other.mesh".into();
    assert_eq!(ask("shop/vm-1", other).await, "trust_domain");
    let ended = |ago| Shown {
        not_after: SystemTime::now() - Duration::from_secs(ago),
        ..shown("k1")
    };
    assert_eq!(ask("shop/vm-1", ended(600)).await, "none");
    assert_eq!(ask("shop/vm-1", ended(2 * 3600)).await, "away");
}

#[tokio::test]
async fn who_was_taken_out_does_not_come_back_by_the_old_token_and_old_tokens_displace_nobody() {
    let book = Book::new();
    let machines = book.open();
    let (lost, token) = (book.token(&join()), book.token(&join()));
    machines.join(&token, "k1", "", &from(HOME)).await.unwrap();
    // Found in a mailbox, made before the machine joined.
    let found = machines.join(&lost, "k2", "", &from(HOME)).await;
    assert_eq!(reason(found), "token_outdated");
    let unused = book.token(&join());
    assert!(remove(&book.store(), "shop", "vm-1").await.unwrap());
    let gone = machines.known("shop/vm-1", &shown("k1"), &from(HOME)).await;
    assert_eq!(reason(gone), "unknown");
    let back = machines.join(&token, "k1", "", &from(HOME)).await;
    assert_eq!(reason(back), "token_outdated");
    let other = machines.join(&unused, "k3", "", &from(HOME)).await;
    assert_eq!(reason(other), "token_outdated");
    assert!(!remove(&book.store(), "shop", "vm-1").await.unwrap());
    assert!(book.store().list().await.unwrap().is_empty());
}

#[tokio::test]
async fn who_joins_under_another_name_than_that_of_its_token_does_not_and_the_token_is_not_used_up()
{
    let book = Book::new();
    let machines = book.open();
    let token = book.token(&join());
    let home = from(HOME);
    let other = machines.join(&token, "k1", "shop/web-0", &home).await;
    assert_eq!(reason(other), "lies");
    let own = machines.join(&token, "k1", "shop/vm-1", &home).await;
    assert_eq!(reason(own), "none");
}

#[tokio::test]
async fn in_a_cluster_all_replicas_keep_one_book_and_one_key() {
    let fake = Fake::new();
    let store = || Store::cluster(fake.client(), "istio-system");
    let replica = || {
        let metrics = Metrics::register(&mut ops::metrics::Registry::new("pilot", "test"));
        let absence = Duration::from_secs(3600);
        Machines::new(store(), "cluster.local".into(), absence, metrics)
    };
    let token = async |join: &Join| {
        let tokens = store().tokens().await.unwrap();
        tokens.issue_join(join, Duration::from_secs(60)).unwrap()
    };
    let (one, other) = (replica(), replica());
    let (first, home) = (token(&join()).await, from(HOME));
    let outcomes = tokio::join!(
        one.join(&first, "k1", "", &home),
        other.join(&first, "k2", "", &home)
    );
    let won = match &outcomes {
        (Ok(_), Err(_)) => "k1",
        (Err(_), Ok(_)) => "k2",
        both => panic!("{both:?}"),
    };
    for replica in [&one, &other, &replica()] {
        let known = replica.known("shop/vm-1", &shown(won), &home).await;
        assert_eq!(reason(known), "none");
        let again = replica.join(&first, "k3", "", &home).await;
        assert_eq!(reason(again), "token_used");
    }
    assert_eq!(store().list().await.unwrap().len(), 1);
    assert!(remove(&store(), "shop", "vm-1").await.unwrap());
    let gone = replica().known("shop/vm-1", &shown(won), &home).await;
    assert_eq!(reason(gone), "unknown");
    // Who cannot be asked has not said yes.
    let second = token(&Join {
        name: "vm-2".into(),
        ..join()
    })
    .await;
    fake.refuse(|method, _| (*method == http::Method::PUT).then_some(500));
    let refused = one.join(&second, "k4", "", &home).await;
    assert_eq!(reason(refused), "store");
    fake.refuse_nothing();
    let joined = one.join(&second, "k4", "", &home).await;
    assert_eq!(reason(joined), "none");
}

#[test]
fn what_a_machine_says_of_itself_is_compared() {
    let machine = Machine {
        join: join(),
        address: HOME.into(),
        key: "k1".into(),
        token: String::new(),
        joined: 0,
        ended: None,
    };
    assert!(machine.says("name", "", "vm-1").is_ok(), "it need not say");
    assert!(machine.says("name", "vm-1", "vm-1").is_ok());
    assert_eq!(reason(machine.says("name", "vm-2", "vm-1")), "lies");
}

#[test]
fn join_tokens_are_told_from_others_before_they_are_judged() {
    let book = Book::new();
    assert!(Machines::is_for_joining(&book.token(&join())));
    for other in ["", "a.b.c", "a", "..", "Bearer x.e30.y"] {
        assert!(!Machines::is_for_joining(other), "{other:?}");
    }
}

#[tokio::test]
async fn a_book_that_could_not_be_written_costs_no_token() {
    let book = Book::new();
    let token = book.token(&join());
    // Something is in the way of the folder of machines: the token is claimed by then.
    let way = book.0.path().join("machines");
    std::fs::write(&way, "in the way").unwrap();
    let failed = book.open().join(&token, "k1", "", &from(HOME)).await;
    assert_eq!(reason(failed), "store");
    std::fs::remove_file(&way).unwrap();
    let thief = book.open().join(&token, "k2", "", &from(HOME)).await;
    assert_eq!(
        reason(thief),
        "token_used",
        "it is the first key's all the same"
    );
    let again = book.open().join(&token, "k1", "", &from(HOME)).await;
    assert_eq!(reason(again), "none");
    let known = book.open().known("", &shown("k1"), &from(HOME)).await;
    assert_eq!(reason(known), "none");
}

#[tokio::test]
async fn in_a_cluster_a_token_and_who_joined_by_it_are_one_change() {
    let fake = Fake::new();
    let store = || Store::cluster(fake.client(), "istio-system");
    let metrics = Metrics::register(&mut ops::metrics::Registry::new("pilot", "test"));
    let machines = Machines::new(store(), "cluster.local".into(), Duration::ZERO, metrics);
    let tokens = store().tokens().await.unwrap();
    let token = || tokens.issue_join(&join(), Duration::from_secs(60)).unwrap();
    let (first, second) = (token(), token());
    let joined = machines.join(&first, "k1", "", &from(HOME)).await;
    assert_eq!(reason(joined), "none");
    let secret = fake
        .object("secrets", "istio-system", "istio-machines")
        .unwrap();
    let count = |of: &str| {
        let keys = secret["data"].as_object().unwrap().keys();
        keys.filter(|key| key.starts_with(of)).count()
    };
    assert_eq!((count("join-tokens."), count("machines.")), (1, 1));
    fake.writes();
    let outdated = machines.join(&second, "k2", "", &from(HOME)).await;
    assert_eq!(reason(outdated), "token_outdated");
    assert_eq!(fake.writes().len(), 0, "who is refused writes nothing");
}

#[tokio::test]
async fn a_full_book_lets_nobody_in_until_who_was_taken_out_of_it_is_forgotten() {
    let fake = Fake::new();
    let store = || Store::cluster(fake.client(), "istio-system");
    let metrics = Metrics::register(&mut ops::metrics::Registry::new("pilot", "test"));
    let machines = Machines::new(store(), "cluster.local".into(), Duration::ZERO, metrics);
    let tokens = store().tokens().await.unwrap();
    let token = |name: &str| {
        let name = name.to_owned();
        let join = Join { name, ..join() };
        tokens.issue_join(&join, Duration::from_secs(60)).unwrap()
    };
    let home = from(HOME);
    let first = machines.join(&token("vm-1"), "k1", "", &home).await;
    // What two thousand others would take.
    let others = Machine {
        join: Join {
            name: "others".into(),
            ..join()
        },
        address: HOME.into(),
        key: "k".repeat(900 << 10),
        token: "t".into(),
        joined: 0,
        ended: None,
    };
    store().put(&others).await.unwrap();
    assert_eq!(reason(first), "none");
    let second = token("vm-2");
    let refused = machines.join(&second, "k2", "", &home).await;
    assert_eq!(reason(refused), "store");
    for name in ["vm-1", "others"] {
        assert!(remove(&store(), "shop", name).await.unwrap(), "{name}");
    }
    let known = machines.known("shop/vm-1", &shown("k1"), &home).await;
    assert_eq!(reason(known), "unknown");
    // Tokens from before are good yet, and must not bring anybody back.
    let refused = machines.join(&second, "k2", "", &home).await;
    assert_eq!(reason(refused), "store");
    let long_ago = now_in_millis() - 9 * 24 * 3600 * 1000;
    let ended = Some(long_ago);
    store().put(&Machine { ended, ..others }).await.unwrap();
    let joined = machines.join(&second, "k2", "", &home).await;
    assert_eq!(reason(joined), "none");
    let secret = fake.object("secrets", "istio-system", "istio-machines");
    let secret = secret.unwrap();
    let kept = secret["data"].as_object().unwrap().keys();
    let kept: Vec<_> = kept.filter(|key| key.starts_with("machines.")).collect();
    assert_eq!(kept, ["machines.shop.vm-1", "machines.shop.vm-2"]);
}
