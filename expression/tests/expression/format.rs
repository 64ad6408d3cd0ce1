//! Lines.

use expression::Moment;
use expression::format::{Format, Now, Template};
use serde_json::json;

use super::Asked;

const NOW: Now<'static> = Now {
    time: Moment(1_795_294_801_000_000_000),
    hostname: "way-1",
};

fn line(text: &str) -> String {
    Format::read(text).unwrap().text(&Asked, NOW)
}

#[test]
fn operators_are_filled_in() {
    for (text, expected) in [
        (
            "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE%",
            "[2026-11-21T21:00:00.250Z] \"GET /cart?item=7 HTTP/1.1\" 404",
        ),
        (
            "%REQ(X-USER)% %REQ(X-OTHER?X-USER)% %REQ(NONE)%",
            "anna anna -",
        ),
        ("%RESP(SERVER)% %TRAILER(A)%", "app -"),
        ("%REQ(X-USER):2%", "an"),
        ("%DURATION% %BYTES_RECEIVED% %RESPONSE_FLAGS%", "12 0 -"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS% %UPSTREAM_HOST%",
            "10.0.0.7:4711 [fd00::1]:8080",
        ),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.7"),
        (
            "%START_TIME(%s.%3f %Y/%m/%dT%H:%M:%S%z)%",
            "1795294800.250 2026/11/21T21:00:00+0000",
        ),
        (
            "%EMIT_TIME(%F %T %a %b)% %HOSTNAME%",
            "2026-11-21 21:00:01 Sat Nov way-1",
        ),
        (
            "%QUERY_PARAM(item)% %QUERY_PARAM(x)% %PATH(NQ)%",
            "7 - /cart",
        ),
        (
            "%REQ_WITHOUT_QUERY(:PATH)% %REQ_WITHOUT_QUERY(X-PATH)%",
            "/cart /a",
        ),
        (
            "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%",
            "NotFound NOT_FOUND 5",
        ),
        (
            "%DYNAMIC_METADATA(com.example.scan:verdict)% %DYNAMIC_METADATA(com.example.scan:tries)% %METADATA(DYNAMIC:com.example.scan:score)%",
            "clean 3 0.5",
        ),
        (
            "%DYNAMIC_METADATA(com.example.scan:from)% %DYNAMIC_METADATA(com.example.scan:from:ip):4% %DYNAMIC_METADATA(com.example.scan:marks)%",
            "{\"ip\":\"10.0.0.9\"} 10.0 [true]",
        ),
        (
            "%DYNAMIC_METADATA(other)% %DYNAMIC_METADATA(com.example.scan:verdict:more)% %METADATA(ROUTE:com.example.scan)%",
            "- - -",
        ),
        (
            "%CEL(request.method + (has(request.referer) ? 'r' : 'n'))%",
            "GETn",
        ),
        (
            "%FILTER_STATE(downstream_peer:FIELD:namespace)% %FILTER_STATE(x:PLAIN)%",
            "shop -",
        ),
        ("100%% %CONNECTION_ID%", "100% -"),
        ("", ""),
    ] {
        assert_eq!(line(text), expected, "{text}");
    }
}

#[test]
fn in_json_numbers_stay_numbers_and_what_is_not_there_is_null() {
    let template = Template::read(&json!({
        "code": "%RESPONSE_CODE%",
        "both": "%RESPONSE_CODE% %PROTOCOL%",
        "none": "%REQ(NONE)%",
        "deep": { "user": "%REQ(X-USER)%", "list": ["%DURATION%", 1, true] },
    }));
    assert_eq!(
        template.unwrap().json(&Asked, NOW),
        json!({
            "code": 404,
            "both": "404 HTTP/1.1",
            "none": null,
            "deep": { "user": "anna", "list": [12, 1, true] },
        })
    );
}

#[test]
fn a_line_ends_somewhere() {
    let long = "%CEL('a'.replace('', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa').replace('a', request.path.replace('', request.path)))%";
    assert!(line(long).len() <= 4_096);
    assert!(line(&long.repeat(50)).len() <= 32 << 10);
}

#[test]
fn days_are_those_of_the_calendar() {
    for (nanos, expected) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400_000_000_000, "2000-02-29T00:00:00.000Z"),
        (4_107_542_399_999_000_000, "2100-02-28T23:59:59.999Z"),
        (-1_000_000, "1969-12-31T23:59:59.999Z"),
    ] {
        assert_eq!(Moment(nanos).to_string(), expected);
    }
}
