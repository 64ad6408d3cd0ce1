//! Whom we hang up on hears why.
//!
//! TLS 1.3 lets a client speak before it is believed: its request for a tunnel may lie unread behind the certificate for which it is
//! refused. A socket that is closed over unread bytes is reset (RFC 9293, 3.10.4; RFC 2525, 2.17), and a reset is all that some
//! peers see, and that whoever carries their bytes passes on: an alert on its way is lost to it. So our direction is ended, and
//! what comes is read and thrown away until the peer ends its own.
//!
//! That is a favour, and costs what a peer with bad intentions would like to take: a descriptor and a small task. So it takes
//! [`LONGEST`] at most, and [`MOST`] bytes, and no more than [`PLACES`] have it at a time: the next ones are closed at once, as all
//! were without it, and have cost us a handshake before, which is the dearer part. Nobody waits for it: the verdict has been told and
//! the place among handshakes given back. It ends by the handshake's own deadline, so that nobody holds a socket longer than by
//! saying nothing at all.
//!
//! A client that refuses a server needs none: a server that keeps to the protocol has nothing more to say before it is answered.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// How long a peer may take to read why, and to hang up.
pub(crate) const LONGEST: Duration = Duration::from_secs(1);
/// Bytes of it that are thrown away: requests that had been made in good faith, and what an app has said with them.
const MOST: usize = 256 << 10;
/// Peers of this process that have that at a time.
static PLACES: Semaphore = Semaphore::const_new(128);

/// Ends `io`, to which all has been said, by that time at the latest.
pub(crate) fn farewell<T>(io: T, by: Instant)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    farewell_in(&PLACES, io, by);
}

fn farewell_in<T>(places: &'static Semaphore, io: T, by: Instant)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (Ok(place), Ok(runtime)) = (places.try_acquire(), Handle::try_current()) else {
        return;
    };
    let by = by.min(Instant::now() + LONGEST);
    runtime.spawn(async move {
        let _place = place;
        let _ = timeout_at(by, hear_out(io)).await;
    });
}

/// Ends our direction and waits for the end of the other one.
async fn hear_out<T>(mut io: T)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    if io.shutdown().await.is_err() {
        return;
    }
    let (mut piece, mut left) = ([0; 4 << 10], MOST);
    while let Ok(n @ 1..) = io.read(&mut piece).await {
        match left.checked_sub(n) {
            Some(less) => left = less,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_is_thrown_away_until_the_peer_hangs_up() {
        static PLACES: Semaphore = Semaphore::const_new(1);
        let (near, mut far) = duplex(1 << 10);
        farewell_in(&PLACES, near, later());
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "our end, at once");
        far.write_all(&[0; 100 << 10]).await.unwrap();
        assert_eq!(PLACES.available_permits(), 0);
        let began = Instant::now();
        drop(far);
        let _back = PLACES.acquire().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "no longer than it takes");
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_is_left_in_time_and_who_goes_on_talking_before() {
        static PLACES: Semaphore = Semaphore::const_new(1);
        let tenth = Duration::from_millis(100);
        for (left, within) in [(2 * LONGEST, LONGEST), (tenth, tenth)] {
            let (near, far) = duplex(1 << 10);
            let began = Instant::now();
            farewell_in(&PLACES, near, began + left);
            drop(PLACES.acquire().await.unwrap());
            // A timer of tokio's is of whole milliseconds.
            let took = began.elapsed();
            assert!(took >= within && took < within + tenth, "{took:?}");
            drop(far);
        }
        let (near, mut far) = duplex(1 << 10);
        farewell_in(&PLACES, near, later());
        let began = Instant::now();
        far.write_all(&vec![0; 2 * MOST]).await.unwrap_err();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_flood_the_next_ones_are_closed_at_once() {
        static PLACES: Semaphore = Semaphore::const_new(2);
        let mut kept = Vec::new();
        for _ in 0..2 {
            let (near, far) = duplex(1 << 10);
            farewell_in(&PLACES, near, later());
            kept.push(far);
        }
        let (near, mut far) = duplex(1 << 10);
        farewell_in(&PLACES, near, later());
        far.write_all(&[0]).await.unwrap_err();
        kept[0].write_all(&[0]).await.unwrap();
    }
}
