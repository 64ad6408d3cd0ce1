//! What is refused when it is read, and what is said of it.

use expression::cel::Expression;
use expression::format::{Format, Template};

#[test]
fn what_nobody_knows_is_refused_where_it_is_read() {
    for (text, said) in [
        ("", "a value is expected"),
        ("response.cod == 1", "response.cod is not known"),
        ("istio_operationId", "istio_operationId is not known"),
        ("request", "request is not known"),
        ("metadata.other.x", "metadata.other.x is not known"),
        ("foo(1)", "foo() is not known"),
        ("size()", "another number of arguments"),
        ("request.path.matches(request.method)", "written out"),
        ("request.path.matches('(')", "pattern"),
        (
            "request.path.matches('((((a{99}){99}){99}){99})')",
            "pattern",
        ),
        ("1 1", "operator is expected"),
        ("1 +", "a value is expected"),
        ("(1", "\")\" is expected"),
        ("'a", "the text has no end"),
        ("'\\q'", "unknown escape"),
        ("a.map(b, 2)", "a is not known"),
        ("[1].map(1, 2)", "variable's name"),
        ("has(1)", "has()"),
        ("duration('x')", "is no duration"),
        ("timestamp('2026')", "is no timestamp"),
        (
            "request.time.getHours('America/New_York')",
            "is no time zone that is known here",
        ),
        ("request.time.getHours('+2:00')", "is no time zone"),
        ("request.time.getHours('+24:00')", "is no time zone"),
        ("request.time.getHours('+02:60')", "is no time zone"),
        ("request.time.getHours('')", "is no time zone"),
        (
            "request.time.getHours('+02:00', 1)",
            "another number of arguments",
        ),
        ("99999999999999999999", "number"),
        ("1 = 1", "operator is expected"),
        ("#", "means nothing here"),
    ] {
        let why = Expression::read(text).unwrap_err().to_string();
        assert!(why.contains(said), "{text}: {why}");
    }
}

#[test]
fn what_is_too_long_or_too_deep_is_refused() {
    let deep = format!("{}1{}", "(".repeat(200), ")".repeat(200));
    let long = format!("{}1", "1+".repeat(600));
    let longer = format!("'{}'", "a".repeat(5_000));
    let negated = format!("{}true", "!".repeat(4_000));
    for text in [deep, long, longer, negated] {
        assert!(Expression::read(&text).is_err(), "{}", &text[..20]);
    }
}

#[test]
fn formats_name_what_they_do_not_understand() {
    for (text, said) in [
        ("%REQ%", "argument"),
        ("%NOBODY%", "%NOBODY% is not known"),
        ("%REQ(X-USER", "has no end"),
        ("%PROTOCOL", "has no end"),
        ("%REQ(A):x%", "is no length"),
        ("%CEL(response.cod)%", "response.cod is not known"),
        ("%START_TIME(%Q)%", "unknown letter"),
        ("100%", "has no end"),
    ] {
        let why = Format::read(text).unwrap_err();
        assert!(why.contains(said), "{text}: {why}");
    }
    let template = serde_json::json!({ "a": { "b": ["%NOBODY%"] } });
    let why = Template::read(&template).unwrap_err();
    assert!(why.contains("a: b: %NOBODY%"), "{why}");
    assert!(Template::read(&"%PROTOCOL%".into()).is_err());
}
