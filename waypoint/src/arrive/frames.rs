//! Pure: frames of HTTP/2 that carry nothing, counted as they come.
//!
//! The engine answers PING and SETTINGS and keeps windows without counting. What it costs is little a frame, and a client
//! may send millions; so each has a price, paid from a budget that time refills and, as WINDOW_UPDATE goes, what the client
//! was sent. Requests, bodies, and the resets and empty frames that the engine counts itself cost nothing here.

use tokio::time::Instant;

/// What comes on one connection.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes until the next frame's head.
    skip: u32,
    head: [u8; 9],
    have: usize,
    left: u32,
    /// Credit that may still be given back for what was sent.
    owed: u32,
    refilled: Option<Instant>,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE,
            head: [0; 9],
            have: 0,
            left: BURST,
            owed: OWED,
            refilled: None,
        }
    }
}

impl Frames {
    /// Bytes came. False when there was too much of nothing in them; `now` is asked at first, and when the budget seems used
    /// up.
    pub(super) fn read(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> bool {
        let mut enough = false;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = bytes.len().min(self.skip as usize);
                self.skip -= n as u32; // n <= skip
                bytes = &bytes[n..];
                continue;
            }
            let n = bytes.len().min(9 - self.have);
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == 9 {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.skip = u32::from_be_bytes([0, a, b, c]);
                enough |= !self.pay(price(kind, flags), kind, &now);
            }
        }
        !enough
    }

    /// So many bytes went out.
    pub(super) fn wrote(&mut self, bytes: usize) {
        let earned = u32::try_from(bytes / BYTES_A_CREDIT + 2).unwrap_or(OWED);
        self.owed = self.owed.saturating_add(earned).min(OWED);
    }

    fn pay(&mut self, price: u32, kind: u8, now: &impl Fn() -> Instant) -> bool {
        if kind == WINDOW_UPDATE && self.owed > 0 {
            self.owed -= 1;
            return true;
        }
        if self.left < price || self.refilled.is_none() {
            self.refill(now());
        }
        let paid = self.left >= price;
        self.left -= price.min(self.left);
        paid
    }

    fn refill(&mut self, now: Instant) {
        // Time counts from the first frame, and not from the end of the burst: who stays below the rate is to be served for as
        // long as it likes.
        let last = self.refilled.replace(now).unwrap_or(now);
        let earned = now.duration_since(last).as_millis() * u128::from(A_SECOND) / 1000;
        let earned = u32::try_from(earned).unwrap_or(BURST);
        self.left = self.left.saturating_add(earned).min(BURST);
    }
}

/// What one costs.
fn price(kind: u8, flags: u8) -> u32 {
    match kind {
        DATA | HEADERS | CONTINUATION => 0,
        RST_STREAM => 5,
        SETTINGS if flags & ACK == 0 => 20,
        _ => 1,
    }
}

const PREFACE: u32 = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
/// For a client that measures the way with a PING each round trip, and one that gives up requests by the thousand.
const BURST: u32 = 20_000;
const A_SECOND: u32 = 4_000;
/// WINDOW_UPDATE frames that cost nothing.
const OWED: u32 = 10_000;
/// Sent bytes for which one more of them is expected: clients send two for a small frame at most.
const BYTES_A_CREDIT: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, 0, 0, 0, 0, 0];
        bytes.extend(vec![7; length.into()]);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::default();
        assert!(frames.read(&[b'P'; PREFACE as usize], Instant::now));
        frames
    }

    /// How many of them pass at once.
    fn pass(frames: &mut Frames, piece: &[u8], now: Instant) -> usize {
        (0..100_000)
            .take_while(|_| frames.read(piece, || now))
            .count()
    }

    #[test]
    fn what_carries_nothing_has_a_burst_and_a_rate() {
        let start = Instant::now();
        for (kind, length, burst) in [
            (6, 8, 20_000),
            (4, 6, 1000),
            (3, 4, 4000),
            (0xbb, 1, 20_000),
        ] {
            let mut frames = begun();
            assert_eq!(
                pass(&mut frames, &frame(kind, length), start),
                burst,
                "{kind}"
            );
            let later = start + Duration::from_millis(500);
            assert_eq!(pass(&mut frames, &frame(kind, length), later), burst / 10);
        }
        let mut frames = begun();
        assert_eq!(pass(&mut frames, &frame(DATA, 100), start), 100_000);
    }

    #[test]
    fn nobody_is_cut_off_for_the_age_of_a_connection() {
        let start = Instant::now();
        let mut frames = begun();
        // Of a day: each second a call that is given up, and a PING.
        let said = [frame(3, 4), frame(6, 8)].concat();
        for second in 0..86_400 {
            let now = start + Duration::from_secs(second);
            assert!(frames.read(&said, || now), "after {second} seconds");
        }
    }

    #[test]
    fn credit_is_free_for_what_was_sent() {
        let start = Instant::now();
        let mut frames = begun();
        assert_eq!(pass(&mut frames, &frame(WINDOW_UPDATE, 4), start), 30_000);
        frames.wrote(16 * 98);
        assert_eq!(pass(&mut frames, &frame(WINDOW_UPDATE, 4), start), 100);
    }

    #[test]
    fn it_is_the_same_in_pieces() {
        let start = Instant::now();
        let (mut whole, mut parted) = (begun(), begun());
        let bytes: Vec<u8> = [frame(6, 8), frame(1, 200), frame(4, 6), frame(0, 0)].concat();
        for _ in 0..500 {
            assert!(whole.read(&bytes, || start));
            assert!(bytes.iter().all(|byte| parted.read(&[*byte], || start)));
        }
        assert_eq!(whole.left, parted.left);
        assert_eq!(whole.left, BURST - 500 * 21);
    }
}
