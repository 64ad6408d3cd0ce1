//! Of `waypoint::admin`: requests that somebody describes.

use waypoint::admin::Question;

#[test]
fn a_request_is_described_by_a_query() {
    let question = Question::parse(
        "host=Web.Shop&port=8080&method=POST&path=/a%2Fb%3Fx=1&header=x-user:%20anna&header=X-User:bob\
         &identity=spiffe://cluster.local/ns/front/sa/app&address=10.0.0.1&claims=%7B%22iss%22:%22me%22%7D",
    )
    .unwrap();
    assert_eq!((&*question.host, question.port), ("web.shop", 8080));
    assert_eq!(
        (question.method.as_str(), &*question.path),
        ("POST", "/a/b?x=1")
    );
    let users: Vec<_> = question.headers.get_all("x-user").iter().collect();
    assert_eq!(users, ["anna", "bob"]);
    assert_eq!(question.address, Some([10, 0, 0, 1].into()));
    assert_eq!(question.claims.unwrap()["iss"], "me");
}

#[test]
fn what_is_not_said_is_a_plain_get() {
    let question = Question::parse("host=web").unwrap();
    assert_eq!(
        (question.port, question.method.as_str(), &*question.path),
        (80, "GET", "/")
    );
    assert!(question.headers.is_empty() && question.identity.is_none());
}

/// Else a rule or a policy that has the port in its host would be said to be for nobody.
#[test]
fn a_port_that_is_not_the_usual_one_is_asked_for_as_clients_do() {
    for (query, authority) in [
        ("host=Web.Shop&port=8080", "web.shop:8080"),
        ("host=web.shop&port=80", "web.shop"),
        ("host=web.shop", "web.shop"),
    ] {
        let question = Question::parse(query).unwrap();
        assert_eq!(question.authority(), authority, "{query}");
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    for (query, word) in [
        ("", "host"),
        ("port=80", "host"),
        ("host=a&port=x", "port"),
        ("host=a&path=b", "path"),
        ("host=a&header=novalue", "name:value"),
        ("host=a&header=no%20name:x", "header"),
        ("host=a&header=x:y%0D%0Az", "header"),
        ("host=a&identity=me", "spiffe"),
        ("host=a&address=here", "address"),
        ("host=a&claims=%7B", "JSON"),
        ("host=a&colour=red", "colour"),
        ("host=%zz", "escaped"),
        ("host=%ff", "UTF-8"),
        ("host=a&method=G%20T", "method"),
    ] {
        let why = Question::parse(query).unwrap_err();
        assert!(why.contains(word), "{query}: {why}");
    }
}
