//! A request whose client has said how long its body is, and then says nothing.
//!
//! It holds an app's attention and a place among all requests. A stream whose length nobody has said may be silent for as
//! long as it likes: that is what streams are for.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body::Body;

use crate::report::Meter;

/// Bytes that are yet to come, if that was said.
pub(super) fn awaited(body: &impl Body) -> Option<u64> {
    body.size_hint().exact().filter(|bytes| *bytes > 0)
}

/// Ends when nothing has come for too long, while there was something to come.
pub(super) fn of(
    awaited: Option<u64>,
    moving: Option<Arc<Meter>>,
) -> Option<impl Future<Output = ()>> {
    let (awaited, meter) = (awaited?, moving?);
    Some(async move {
        let (mut before, mut looks) = (0, 0);
        loop {
            tokio::time::sleep(LONGEST / LOOKS).await;
            let now = meter.bytes();
            looks = if now == before { looks + 1 } else { 0 };
            before = now;
            if now >= awaited {
                // All is there; what takes so long is the app.
                return std::future::pending().await;
            }
            if looks >= LOOKS {
                return;
            }
        }
    })
}

/// Without a byte.
const LONGEST: Duration = Duration::from_secs(300);
const LOOKS: u32 = 5;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_for_five_minutes_is_given_up_and_who_is_slow_is_not() {
        let meter = Arc::new(Meter::default());
        let begun = Instant::now();
        let silent = of(Some(10), Some(meter.clone())).unwrap();
        silent.await;
        assert_eq!(begun.elapsed(), LONGEST);

        let (begun, drips) = (Instant::now(), meter.clone());
        tokio::spawn(async move {
            for _ in 0..9 {
                tokio::time::sleep(Duration::from_secs(200)).await;
                drips.add(1);
            }
        });
        of(Some(10), Some(meter.clone())).unwrap().await;
        assert!(begun.elapsed() > Duration::from_secs(1800 + 240));

        meter.add(1);
        let all = of(Some(10), Some(meter)).unwrap();
        let waited = tokio::time::timeout(Duration::from_secs(86_400), all).await;
        assert!(waited.is_err(), "it was the app that was slow");
    }

    #[test]
    fn a_stream_and_a_request_without_body_are_not_looked_at() {
        assert!(of(None, Some(Arc::default())).is_none());
        assert!(awaited(&http_body_util::Empty::<bytes::Bytes>::new()).is_none());
    }
}
