//! Of `waypoint::filter`: what is changed, what is answered, and for which share of requests.

#[path = "filter/address.rs"]
mod address;
#[path = "filter/cors.rs"]
mod cors;
#[path = "filter/fault.rs"]
mod fault;
#[path = "filter/headers.rs"]
mod headers;
#[path = "filter/order.rs"]
mod order;

use api::waypoint as wire;
use api::waypoint::filter::Filter as Kind;
use http::{Request, request, response};
use waypoint::filter::{About, Filters, Passed};
use waypoint::route::Matched;

fn filters(kinds: impl IntoIterator<Item = Kind>) -> Filters {
    compile(kinds).unwrap()
}

fn compile(kinds: impl IntoIterator<Item = Kind>) -> Result<Filters, String> {
    let wire = kinds
        .into_iter()
        .map(|kind| wire::Filter { filter: Some(kind) });
    Filters::compile(&wire.collect::<Vec<_>>())
}

fn header(name: &str, value: &str) -> wire::Header {
    wire::Header {
        name: name.into(),
        value: value.into(),
    }
}

/// `GET` of that target at web.shop.
fn get(target: &str) -> request::Parts {
    let request = Request::builder().uri(target).header("host", "web.shop");
    request.body(()).unwrap().into_parts().0
}

fn ok() -> response::Parts {
    http::Response::new(()).into_parts().0
}

const ABOUT: About<'_> = About {
    scheme: "http",
    host: "web.shop",
    port: 80,
    matched: Matched {
        length: 0,
        segments: true,
    },
};

/// Runs them with draws that never hit a share below the whole.
fn run<'r>(filters: &'r Filters, parts: &mut request::Parts) -> Passed<'r> {
    filters.request(parts, &ABOUT, || u64::MAX)
}
