//! 1. the bytes are the header block of a request, and the text of an authority
//! 2. a destination that is found in them, asked for by us, is understood as the same at the other end

use std::time::Instant;

use hbone::{
    Authority, Connect,
    frames::{Event, Head, Mux, RequestHead, Settings, StreamId, flag, kind},
};

use super::frames::begin;

/// See the file's head.
pub fn connect(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(authority) = text.parse::<Authority>()
    {
        asked_again(&authority, None);
    }
    let now = Instant::now();
    let mut server = begin(false, true, now);
    let head = Head {
        length: data.len().min(16_000) as u32, // as it says
        kind: kind::HEADERS,
        flags: flag::END_HEADERS,
        stream: StreamId(1),
    };
    let request = [&head.bytes()[..], &data[..head.length as usize]].concat();
    let Some(head) = requested(&mut server, &request, now) else {
        return;
    };
    // What reports are made of must not trip over anything either.
    let _ = (head.headers.forwarded_for(), head.headers.forwarded_host());
    let Ok(authority) = head.authority.parse::<Authority>() else {
        return;
    };
    asked_again(&authority, Some(&head));
}

fn asked_again(authority: &Authority, head: Option<&RequestHead>) {
    let now = Instant::now();
    let mut ask = Connect::to(authority.clone());
    if let Some(head) = head {
        ask.baggage = head.headers.baggage.as_deref().map(String::from);
        ask.forwarded = head.headers.forwarded.as_deref().map(String::from);
    }
    let mut client = Mux::client(&Settings::client());
    client.open(&ask).expect("what a peer may say, we may say");
    let mut server = Mux::server(&Settings::server());
    let said = std::mem::take(client.out());
    let heard = requested(&mut server, &said, now).expect("our own request");
    assert_eq!(heard.authority.parse::<Authority>().as_ref(), Ok(authority));
    if let Some(head) = head {
        assert_eq!(heard.headers.baggage, head.headers.baggage);
        assert_eq!(heard.headers.forwarded, head.headers.forwarded);
    }
}

/// The request in these bytes, if there is one.
fn requested(server: &mut Mux, mut bytes: &[u8], now: Instant) -> Option<RequestHead> {
    while !bytes.is_empty() {
        let taken = server.take(bytes, now).ok()?;
        if let Some(Event::Request { head, .. }) = taken.event {
            return Some(head);
        }
        bytes = &bytes[taken.used..];
    }
    None
}
