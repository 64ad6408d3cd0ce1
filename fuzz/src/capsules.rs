//! 1. the first two bytes say in what pieces the rest comes; the rest is what a peer says in a tunnel for datagrams
//! 2. the same datagrams are found in it in these pieces as in one, or it is refused both ways, with the same words
//! 3. each of them is one that UDP can have, and what we would say of it is understood as that and nothing else

use bytes::Bytes;
use hbone::datagrams::{Capsules, TooLarge, capsule};

/// Bytes of payload that a datagram of UDP may have (RFC 9298, 5).
const MOST: usize = 65_527;

/// See the file's head.
pub fn capsules(data: &[u8]) {
    let Some((&[one, other], rest)) = data.split_first_chunk() else {
        return;
    };
    let (whole, refused) = found(rest, &[rest.len().max(1)]);
    let (pieces, again) = found(rest, &[usize::from(one) + 1, usize::from(other) * 64 + 1]);
    assert_eq!((&whole, &refused), (&pieces, &again));
    for datagram in &whole {
        assert!(datagram.len() <= MOST);
        let said = capsule(datagram);
        assert_eq!(found(&said, &[said.len()]), (vec![datagram.clone()], None));
    }
}

/// Datagrams until the end, or until it is refused.
fn found(mut bytes: &[u8], lengths: &[usize]) -> (Vec<Vec<u8>>, Option<TooLarge>) {
    let (mut capsules, mut found) = (Capsules::default(), Vec::new());
    for length in lengths.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
        bytes = rest;
        let mut chunk = Bytes::copy_from_slice(piece);
        loop {
            match capsules.next(&mut chunk) {
                Ok(Some(datagram)) => found.push(datagram.to_vec()),
                Ok(None) => break,
                Err(why) => return (found, Some(why)),
            }
        }
        assert!(chunk.is_empty(), "what is not read is lost");
    }
    (found, None)
}
