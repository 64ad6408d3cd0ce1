//! Of reviews: who calls, remembered and asked for.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::UserInfo;

use super::*;

fn status(username: &str, audiences: &[&str], extra: &[(&str, &str)]) -> TokenReviewStatus {
    let extra = extra
        .iter()
        .map(|(key, value)| ((*key).into(), vec![(*value).into()]));
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(audiences.iter().map(|it| (*it).into()).collect()),
        error: None,
        user: Some(UserInfo {
            username: Some(username.into()),
            extra: Some(BTreeMap::from_iter(extra)),
            ..UserInfo::default()
        }),
    }
}

#[test]
fn an_answer_says_whose_token_it_is_or_why_not() {
    let ours = ["istio-ca".to_owned(), "other".to_owned()];
    let client = "system:serviceaccount:alpha:client";
    let bound = [(POD_NAME, "client-0"), (POD_UID, "u1")];
    let pod = |pod: Option<(&str, &str)>| {
        Ok(Proven {
            namespace: "alpha".into(),
            service_account: "client".into(),
            pod: pod.map(|(name, uid)| Named {
                name: name.into(),
                uid: uid.into(),
            }),
        })
    };
    let cases = [
        (
            status(client, &["istio-ca"], &bound),
            pod(Some(("client-0", "u1"))),
        ),
        (
            status(client, &["x", "other"], &bound),
            pod(Some(("client-0", "u1"))),
        ),
        (status(client, &["istio-ca"], &[]), pod(None)),
        // A name alone could be of any pod that ever had it.
        (status(client, &["istio-ca"], &bound[..1]), pod(None)),
        (
            status(client, &["api"], &bound),
            Err(Refused::Audience(vec!["api".into()])),
        ),
        (status(client, &[], &bound), Err(Refused::Audience(vec![]))),
        (
            status("system:node:n1", &["istio-ca"], &[]),
            Err(Refused::Subject("system:node:n1".into())),
        ),
        (
            status("", &["istio-ca"], &[]),
            Err(Refused::Subject("".into())),
        ),
        (
            TokenReviewStatus {
                authenticated: Some(false),
                ..status(client, &["istio-ca"], &bound)
            },
            Err(Refused::NotAuthenticated("not authenticated".into())),
        ),
        (
            TokenReviewStatus {
                error: Some("expired".into()),
                ..TokenReviewStatus::default()
            },
            Err(Refused::NotAuthenticated("expired".into())),
        ),
    ];
    for (status, expected) in cases {
        assert_eq!(read(status.clone(), &ours), expected, "{status:?}");
    }
}

#[test]
fn a_subject_has_exactly_two_names_after_its_prefix() {
    let cases = [
        (
            "system:serviceaccount:alpha:client",
            Some(("alpha", "client")),
        ),
        ("system:serviceaccount:alpha", None),
        ("system:serviceaccount:alpha:client:x", None),
        ("system:serviceaccount::client", None),
        ("system:serviceaccount:alpha:", None),
        ("system:node:n1", None),
        ("", None),
    ];
    for (subject, expected) in cases {
        assert_eq!(account_of(subject), expected, "{subject:?}");
    }
}

#[test]
fn only_what_can_be_a_token_is_asked_about() {
    for (token, expected) in [
        ("a.b.c", true),
        ("eyJhbGciOi.eyJ-_9.c2ln", true),
        ("a.b", false),
        ("a.b.c.d", false),
        ("a..c", false),
        ("a.b.", false),
        ("a.b.c d", false),
        ("", false),
    ] {
        assert_eq!(is_jwt(token), expected, "{token:?}");
    }
}

const GOOD: &str = "good.to.ken";

/// Good is one token; all others are not; `code` is what the API server answers with.
fn reviewer(code: u16) -> (Arc<Reviewer>, Arc<std::sync::atomic::AtomicUsize>) {
    let (client, asked) = super::super::fake::client(move |_, path| {
        assert!(
            path.starts_with("/apis/authentication.k8s.io/v1/tokenreviews"),
            "{path}"
        );
        let status = status("system:serviceaccount:alpha:client", &["istio-ca"], &[]);
        let review = TokenReview {
            status: Some(status),
            ..TokenReview::default()
        };
        match code {
            200 => (201, serde_json::to_value(review).unwrap()),
            201 => (
                201,
                serde_json::json!({"metadata": {}, "spec": {"token": ""},
                "status": {"error": "invalid bearer token"}}),
            ),
            0 => (0, serde_json::Value::Null),
            code => super::super::fake::refusal(code, "tokenreviews is forbidden"),
        }
    });
    let reviewer = Reviewer::new(client, vec!["istio-ca".into()], Health::default());
    (Arc::new(reviewer), asked)
}

fn count(asked: &std::sync::atomic::AtomicUsize) -> usize {
    asked.load(std::sync::atomic::Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn who_asks_with_one_token_at_the_same_time_costs_one_question() {
    let (reviewer, asked) = reviewer(200);
    let storm = (0..500).map(|_| {
        let reviewer = reviewer.clone();
        tokio::spawn(async move { reviewer.review(GOOD).await.unwrap().unwrap() })
    });
    for answer in futures_util::future::join_all(storm).await {
        assert_eq!(answer.unwrap().service_account, "client");
    }
    assert_eq!(count(&asked), 1);
    reviewer.review("an.other.token").await.unwrap().unwrap();
    assert_eq!(count(&asked), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_too_and_what_is_no_token_is_not_asked_about() {
    let (reviewer, asked) = reviewer(201);
    for _ in 0..3 {
        let answer = reviewer.review("not.so.good").await.unwrap();
        assert_eq!(
            answer,
            Err(Refused::NotAuthenticated("invalid bearer token".into()))
        );
    }
    assert_eq!(
        reviewer.review("garbage").await.unwrap(),
        Err(Refused::Form)
    );
    assert_eq!(count(&asked), 1);
}

#[tokio::test(start_paused = true)]
async fn that_nobody_could_say_is_not_remembered_and_says_what_to_look_at() {
    let (unreachable, asked) = reviewer(0);
    for times in 1..=2 {
        let error = unreachable.review(GOOD).await.unwrap_err();
        assert!(
            error.to_string().starts_with("API server unreachable"),
            "{error}"
        );
        assert_eq!(count(&asked), times);
    }
    let (forbidden, _) = reviewer(403);
    let error = forbidden.review(GOOD).await.unwrap_err().to_string();
    assert!(
        error.contains("grant verb create on tokenreviews.authentication.k8s.io"),
        "{error}"
    );
    let health = forbidden.health.lines();
    assert_eq!(health, [error]);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_leaves_the_question_to_the_next() {
    let (reviewer, asked) = reviewer(200);
    let first = reviewer.clone();
    let first = tokio::spawn(async move { first.review(GOOD).await });
    let mut turns = 0;
    while count(&asked) == 0 {
        assert!(turns < 10_000, "nothing is asked");
        turns += 1;
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.is_err());
    assert!(reviewer.review(GOOD).await.unwrap().is_ok());
    assert_eq!(count(&asked), 2);
}

#[tokio::test(start_paused = true)]
async fn those_who_were_good_before_do_not_queue_behind_strangers() {
    let (reviewer, asked) = reviewer(200);
    let proven = hash("proven.to.ken");
    reviewer.good().put(proven, (), Instant::now());
    let all = u32::try_from(AT_ONCE).unwrap();
    let _flood = reviewer.turns.strangers.acquire_many(all).await.unwrap();
    assert!(reviewer.review("proven.to.ken").await.unwrap().is_ok());
    let stranger = tokio::time::timeout(Duration::from_millis(20), reviewer.review(GOOD));
    assert!(stranger.await.is_err());
    assert_eq!(count(&asked), 1);
}
