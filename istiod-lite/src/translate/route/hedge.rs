//! Requests made once more beside a slow one: annotations of an HTTPRoute or GRPCRoute, for Gateway API has no field for
//! that.

use api::k8s::labels::{HEDGE_AFTER, HEDGE_AT_MOST};
use api::k8s::objects::{Kind, ObjectMeta};
use api::waypoint as wire;

use super::durations::milliseconds;

/// What annotations ask for, or why that cannot be done; none if they ask for nothing.
pub(super) fn read(kind: Kind, metadata: &ObjectMeta) -> Option<Result<wire::Hedge, String>> {
    let annotations = metadata.annotations.as_ref()?;
    let (after, at_most) = (annotations.get(HEDGE_AFTER), annotations.get(HEDGE_AT_MOST));
    let named = after.map(|_| HEDGE_AFTER);
    let named = named.or(at_most.map(|_| HEDGE_AT_MOST))?;
    if !matches!(kind, Kind::HttpRoute | Kind::GrpcRoute) {
        return Some(Err(format!(
            "{named}: requests of an HTTPRoute and calls of a GRPCRoute are made twice, and nothing of a {} is",
            kind.name()
        )));
    }
    let Some(after) = after else {
        return Some(Err(format!("{named} says nothing without {HEDGE_AFTER}")));
    };
    let calls = kind == Kind::GrpcRoute;
    Some(hedge(after, at_most.map(String::as_str), calls))
}

fn hedge(after: &str, at_most: Option<&str>, calls: bool) -> Result<wire::Hedge, String> {
    let after = match milliseconds(after) {
        Ok(0) => return Err(format!("{HEDGE_AFTER}: 0 would make every request twice")),
        Ok(after) => after,
        Err(why) => return Err(format!("{HEDGE_AFTER}: {why}")),
    };
    let at_most = match at_most {
        None | Some("1") => 1,
        Some("2") => 2,
        Some("3") => 3,
        Some(other) => return Err(format!("{HEDGE_AT_MOST}: {other:?} is not 1, 2 or 3")),
    };
    Ok(wire::Hedge {
        after,
        at_most,
        calls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(kind: Kind, annotations: &[(&str, &str)]) -> Option<Result<wire::Hedge, String>> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let metadata = ObjectMeta {
            annotations: Some(annotations.iter().map(own).collect()),
            ..ObjectMeta::default()
        };
        read(kind, &metadata)
    }

    #[test]
    fn what_can_be_read_is_and_the_rest_is_said() {
        let read = |annotations: &[(&str, &str)]| read_of(Kind::HttpRoute, annotations);
        let of = |after, at_most, calls| {
            Some(Ok(wire::Hedge {
                after,
                at_most,
                calls,
            }))
        };
        let hedge = |after, at_most| of(after, at_most, false);
        assert_eq!(read(&[("other", "1")]), None);
        assert_eq!(read(&[(HEDGE_AFTER, "50ms")]), hedge(50, 1));
        assert_eq!(
            read(&[(HEDGE_AFTER, "1s500ms"), (HEDGE_AT_MOST, "3")]),
            hedge(1500, 3)
        );
        for wrong in [
            &[(HEDGE_AFTER, "")][..],
            &[(HEDGE_AFTER, "0s")],
            &[(HEDGE_AFTER, "50")],
            &[(HEDGE_AT_MOST, "1")],
            &[(HEDGE_AFTER, "1s"), (HEDGE_AT_MOST, "0")],
            &[(HEDGE_AFTER, "1s"), (HEDGE_AT_MOST, "4")],
            &[(HEDGE_AFTER, "1s"), (HEDGE_AT_MOST, "+1")],
            &[(HEDGE_AFTER, "1s"), (HEDGE_AT_MOST, "")],
        ] {
            assert!(read(wrong).is_some_and(|it| it.is_err()), "{wrong:?}");
        }
        let calls = read_of(Kind::GrpcRoute, &[(HEDGE_AFTER, "1s")]);
        assert_eq!(calls, of(1000, 1, true));
        let bytes = read_of(Kind::TcpRoute, &[(HEDGE_AFTER, "1s")]);
        assert!(bytes.is_some_and(|it| it.is_err()));
    }
}
