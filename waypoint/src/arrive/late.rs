//! A client that speaks HTTP after all, when its connection is carried as bytes already because it had said nothing for so
//! long, or too little to tell: nobody may pass by what is said of requests by waiting.

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::speak::{self, Guess};
use crate::upstream::{Doubt, Known};

/// Listens on where `said` has left it open. `late` is cancelled by a request; nothing of its first line's end goes on.
pub(super) fn doubt(said: &Bytes, late: CancellationToken) -> Box<Doubt> {
    let mut said = BytesMut::from(&**said);
    Box::new(move |bytes: &[u8]| {
        if late.is_cancelled() {
            return Known::Stops;
        }
        said.extend_from_slice(bytes);
        match speak::told(&said) {
            None => Known::NotYet,
            Some(Guess::Http1 | Guess::Http2) => {
                late.cancel();
                Known::Stops
            }
            Some(Guess::Other | Guess::Broken | Guess::Gone) => Known::Passes,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known after each piece.
    fn known(said: &'static str, pieces: &[&str]) -> (Vec<Known>, bool) {
        let late = CancellationToken::new();
        let mut doubt = doubt(&Bytes::from_static(said.as_bytes()), late.clone());
        let known = pieces.iter().map(|piece| doubt(piece.as_bytes()));
        (known.collect(), late.is_cancelled())
    }

    #[test]
    fn a_request_that_comes_late_goes_no_further_and_whatever_else_does() {
        use Known::{NotYet, Passes, Stops};
        for (said, pieces, all) in [
            (
                "",
                &["GET / HTTP/1.1\r\n", "host: web"][..],
                &[Stops, Stops][..],
            ),
            (
                "",
                &["", "GE", "T / HT", "TP/1.1\r\n"],
                &[NotYet, NotYet, NotYet, Stops],
            ),
            ("GE", &["T / HTTP/1.1\r\n"], &[Stops]),
            ("PRI * HT", &["TP/2.0\r\n\r\nSM\r\n\r\n"], &[Stops]),
            ("", &["EHLO web\r\n"], &[Passes]),
            ("PING", &["\r\n"], &[Passes]),
            ("", &["\0\0\x01"], &[Passes]),
        ] {
            let (known, late) = known(said, pieces);
            assert_eq!(known, all, "{said:?} {pieces:?}");
            assert_eq!(late, all.contains(&Stops), "{said:?} {pieces:?}");
        }
    }
}
