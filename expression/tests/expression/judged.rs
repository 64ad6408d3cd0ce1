//! What expressions yield.

use expression::cel::{Expression, NoValue};
use proptest::prelude::*;

use super::Asked;

fn yields(text: &str) -> Result<String, NoValue> {
    let read = Expression::read(text).unwrap_or_else(|why| panic!("{text}: {why}"));
    read.value(&Asked).map(|value| value.to_string())
}

#[test]
fn expressions_yield_what_the_language_says() {
    for (text, expected) in [
        ("response.code == 404", "true"),
        ("response.code >= 400 && response.code < 500", "true"),
        ("response.code in [200, 404]", "true"),
        ("response.code == 404u", "true"),
        ("response.code < 404.5", "true"),
        (
            "request.method != 'GET' || request.host == \"web.shop\"",
            "true",
        ),
        ("!(request.method == 'GET')", "false"),
        ("request.headers['x-user']", "anna"),
        ("request.headers['X-User']", "anna"),
        ("request.headers.server == 'x' || true", "true"),
        ("'x-user' in request.headers", "true"),
        ("'x-other' in request.headers", "false"),
        ("has(request.headers.cookie)", "false"),
        ("has(request.headers['x-user'])", "true"),
        ("has(response.code)", "true"),
        (
            "metadata.filter_metadata['com.example.scan']['verdict'] == 'clean'",
            "true",
        ),
        (
            "metadata.filter_metadata['com.example.scan'].from.ip",
            "10.0.0.9",
        ),
        (
            "metadata.filter_metadata['com.example.scan'].tries > 2",
            "true",
        ),
        (
            "has(metadata.filter_metadata['com.example.scan'].nothing)",
            "false",
        ),
        ("'other' in metadata.filter_metadata", "false"),
        ("has(request.referer) ? request.referer : 'none'", "none"),
        ("request.duration > duration('10ms')", "true"),
        ("request.duration < duration(\"0.01s\")", "false"),
        ("request.time > timestamp('2026-01-01T00:00:00Z')", "true"),
        ("request.time + duration('1h') > request.time", "true"),
        ("string(response.code) + ':' + request.method", "404:GET"),
        ("request.url_path.startsWith('/ca')", "true"),
        ("request.url_path.matches('^/c.rt$')", "true"),
        ("matches(request.url_path, 'x')", "false"),
        ("request.url_path.size() == 5 && size('äöü') == 3", "true"),
        ("source.address.split('.')[1]", "0"),
        ("request.path.substring(1, 5)", "cart"),
        ("request.path.replace('cart', 'c').indexOf('?')", "2"),
        (
            "request.method.lowerAscii() + request.method.lowerAscii().upperAscii()",
            "getGET",
        ),
        ("['a', 'b'].join('-')", "a-b"),
        ("[1, 2, 3].filter(n, n > 1).map(n, n * 2)", "[4,6]"),
        (
            "[1, 2, 3].all(n, n > 0) && ![1, 2].exists(n, n > 2)",
            "true",
        ),
        ("[1, 2].exists_one(n, n == 2)", "true"),
        ("{'a': 1, 'b': [2]}['b'][0]", "2"),
        ("{'a': 1}.a", "1"),
        ("{'a': 1} == {'a': 1.0}", "true"),
        ("-5 + 3 * 2 - 8 / 3 % 2", "1"),
        ("1 - 1 - 1", "-1"),
        ("--1 == 1 && !!true", "true"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("0x1F + 1", "32"),
        ("2.5e3", "2500"),
        ("r'\\d' + '\\u00e4\\n\\'' == '\\\\dä\\n\\''", "true"),
        ("b'\\xff' == b'\\377'", "true"),
        ("'''a'b''' + \"\"\"c\"\"\"", "a'bc"),
        ("true ? (false ? 1 : 2) : 3", "2"),
        ("int('7') + int(7.9) + int(uint(1))", "15"),
        ("double('0.5') + double(1)", "1.5"),
        ("bool('true') && connection.mtls", "true"),
        ("null == null && null != 1", "true"),
        ("'a' == 1", "false"),
        ("filter_state.downstream_peer.namespace", "shop"),
        ("filter_state['downstream_peer']['namespace']", "shop"),
        ("request.duration.getMilliseconds()", "12"),
        // 2026-11-21, a Saturday, 21:00:00.25.
        ("request.time.getFullYear()", "2026"),
        ("request.time.getMonth()", "10"),
        ("request.time.getDate()", "21"),
        ("request.time.getDayOfMonth()", "20"),
        ("request.time.getDayOfWeek()", "6"),
        ("request.time.getDayOfYear()", "324"),
        ("request.time.getHours()", "21"),
        ("request.time.getMilliseconds()", "250"),
        ("request.time.getHours('UTC')", "21"),
        ("request.time.getHours('+02:00')", "23"),
        ("request.time.getHours('02:00')", "23"),
        ("request.time.getHours('-08:00')", "13"),
        ("request.time.getMinutes('+05:45')", "45"),
        ("request.time.getMinutes('-00:30')", "30"),
        (
            "request.time.getDate('+03:00') * 100 + request.time.getHours('+03:00')",
            "2200",
        ),
        ("request.time.getDayOfWeek('+03:00')", "0"),
        ("request.time.getHours(['+01:00', '+02:00'][1])", "23"),
        ("timestamp('2024-12-31T23:30:00Z').getDayOfYear()", "365"),
        (
            "timestamp('2024-12-31T23:30:00Z').getFullYear('+01:00')",
            "2025",
        ),
        (
            "timestamp('1969-12-31T23:59:59.5Z').getMilliseconds()",
            "500",
        ),
        ("timestamp('1969-12-31T23:59:59.5Z').getDayOfWeek()", "3"),
        (
            "duration('90m').getHours() + duration('90m').getMinutes()",
            "91",
        ),
        ("/* no */ 1", ""),
    ] {
        if expected.is_empty() {
            assert!(Expression::read(text).is_err(), "{text}");
        } else {
            assert_eq!(yields(text).as_deref(), Ok(expected), "{text}");
        }
    }
}

#[test]
fn what_is_not_there_yields_nothing_but_where_the_other_side_decides() {
    let missing = Err(NoValue::Missing);
    assert_eq!(yields("response.code_details"), missing);
    assert_eq!(yields("request.headers['x-other'] == 'a'"), missing);
    assert_eq!(
        yields("request.headers['x-other'] == 'a' || true"),
        Ok("true".to_owned())
    );
    assert_eq!(
        yields("request.headers['x-other'] == 'a' && false"),
        Ok("false".to_owned())
    );
    assert_eq!(
        yields("request.headers['x-other'] == 'a' || false"),
        missing
    );
    assert_eq!(yields("1 + 'a'"), Err(NoValue::Kind));
    assert_eq!(yields("1 / 0"), Err(NoValue::Range));
    assert_eq!(yields("9223372036854775807 + 1"), Err(NoValue::Range));
    assert_eq!(yields("[1][1]"), Err(NoValue::Range));
    assert_eq!(
        yields("request.time.getHours(request.method)"),
        Err(NoValue::Range)
    );
    assert_eq!(
        yields("duration('1h').getHours('+01:00')"),
        Err(NoValue::Kind)
    );
    assert_eq!(yields("duration('1h').getFullYear()"), Err(NoValue::Kind));
    assert_eq!(yields("(1).getHours()"), Err(NoValue::Kind));
    assert!(!Expression::read("response.code").unwrap().holds(&Asked));
}

#[test]
fn nobody_can_make_it_take_long_or_become_large() {
    let list = vec!["1"; 60].join(",");
    let nested = format!("[{list}].all(a, [{list}].all(b, [{list}].all(c, true)))");
    let doubled = "['a'.replace('', 'aaaaaaaaaaaaaaaa')].map(a, a.replace('a', a).replace('a', a)\
                   .replace('a', a).replace('a', a).replace('a', a).replace('a', a))";
    let summed = "[[0]].map(a, [0,0,0,0,0,0,0,0].map(b, [0,0,0,0,0,0,0,0].map(c, \
                  [0,0,0,0,0,0,0,0].map(d, [0,0,0,0,0,0,0,0].map(e, [0,0,0,0,0,0,0,0].map(f, a))))))";
    for text in [&*nested, doubled, summed] {
        assert_eq!(yields(text), Err(NoValue::TooMuch), "{text}");
    }
}

#[test]
fn it_says_which_headers_it_asks_for() {
    let read = |text: &str| Expression::read(text).unwrap().headers();
    let found = read("request.headers['X-User'] == response.headers.server");
    assert_eq!(found.request.some, ["x-user".into()]);
    assert_eq!(found.response.some, ["server".into()]);
    assert!(!found.request.all && !found.trailers);
    assert!(read("request.headers[request.method] == ''").request.all);
    assert!(read("has(response.trailers['grpc-status'])").trailers);
    assert!(read("response.code == 200").request.is_empty());
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_or_refused_and_never_stops_us(text in "\\PC{0,60}") {
        if let Ok(read) = Expression::read(&text) {
            let _ = read.value(&Asked);
        }
    }

    #[test]
    fn so_is_what_looks_like_an_expression(words in proptest::collection::vec(prop_oneof![
        Just("request.method"), Just("response.code"), Just("request.headers"), Just("'a'"), Just("1"),
        Just("("), Just(")"), Just("["), Just("]"), Just("=="), Just("&&"), Just("in"), Just("."),
        Just("?"), Just(":"), Just("!"), Just("-"), Just("size"), Just(".map(x, x)"), Just("{"), Just("}"), Just(","),
    ], 0..40)) {
        let text = words.join(" ");
        if let Ok(read) = Expression::read(&text) {
            let _ = read.value(&Asked);
        }
    }

    #[test]
    fn sums_are_those_of_the_machine(a in -1000_i64..1000, b in 1_i64..1000, c in -1000_i64..1000) {
        let text = format!("{a} + {b} * {c} - {c} / {b} % {b}");
        prop_assert_eq!(yields(&text), Ok((a + b * c - c / b % b).to_string()));
    }
}
