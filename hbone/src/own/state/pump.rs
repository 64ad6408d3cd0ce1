//! The short way up: an app's bytes are read to where they are sealed, and leave from there.

use std::{
    io::{self, IoSliceMut},
    task::{Context, Poll},
};

use super::{Phase, State};
use crate::{
    frames::{HEAD, StreamId},
    own::{
        app::App,
        flow::Direction,
        output::SMALL,
        scratch::{self, BEFORE, PAYLOAD, RECORD, RECORDS},
    },
    records,
    tunnel::TunnelError,
};

/// What one step of a pump came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// So many bytes are on their way; true if the socket filled all the room there was.
    Moved(usize, bool),
    /// So many bytes are on their way, which were the app's last, and so is the end of its direction.
    Last(usize),
    /// The app has ended its direction.
    End,
    /// The socket has nothing.
    Dry,
}

/// Why a pump stops.
#[derive(Debug)]
pub(crate) enum Stuck {
    Socket(io::ErrorKind),
    Tunnel(TunnelError),
}

impl State {
    /// Sends what the app's socket has now: as many records as peer and socket allow, and at most
    /// `records`. With one record it counts as a small message, which need not wait behind larger ones.
    /// With `may_end` the end of the app's direction goes along if it has come already.
    pub(crate) fn pump(
        &mut self,
        stream: StreamId,
        cx: &mut Context<'_>,
        app: &App,
        records: usize,
        may_end: bool,
    ) -> Poll<Result<Pumped, Stuck>> {
        let lost = |why| Poll::Ready(Err(Stuck::Tunnel(why)));
        let Some(flow) = self.flows.get(&stream) else {
            return lost(TunnelError::Ended);
        };
        match &flow.sending {
            Direction::Open => {}
            Direction::Ended => return lost(TunnelError::Ended),
            Direction::Failed(why) => return lost((**why).clone()),
        }
        let most = match records {
            1 if self.output.full(usize::MAX) => SMALL,
            n => self.batch.payload(n.min(self.output.at_once())),
        };
        let room = self.mux.window(stream);
        if room > 0 && self.output.full(most) {
            self.stand_in_line(stream, cx);
            return Poll::Pending;
        }
        self.leave_line(stream);
        if room > 0 {
            let ended = || may_end && has_ended(app, cx);
            return Poll::Ready(self.read_and_send(stream, app, most.min(room), ended));
        }
        // What the socket holds has to wait; that it has ended or failed has not.
        match app.ended() {
            Ok(true) => return Poll::Ready(Ok(Pumped::End)),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Poll::Ready(Ok(Pumped::Dry));
            }
            Err(error) => return Poll::Ready(Err(Stuck::Socket(error.kind()))),
        }
        self.wait_for_credit(stream, cx);
        Poll::Pending
    }

    fn read_and_send(
        &mut self,
        stream: StreamId,
        app: &App,
        most: usize,
        ended: impl FnOnce() -> bool,
    ) -> Result<Pumped, Stuck> {
        // What has to go first goes now, also a change of our key.
        self.seal_control();
        let records = self.output.records();
        let records = records.inspect_err(|error| self.lost(&error.to_string()));
        self.write_now();
        let (Ok(records), Phase::Open) = (records, &self.phase) else {
            return Ok(Pumped::Dry); // the next step finds the end
        };
        let most = most.min(records.saturating_mul(PAYLOAD));
        scratch::with(|scratch| {
            let bytes = &mut scratch.bytes[..RECORDS * RECORD];
            let n = match app.try_read(&mut payloads(bytes, most)[..most.div_ceil(PAYLOAD)]) {
                Ok(0) => return Ok(Pumped::End),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pumped::Dry),
                Err(error) => return Err(Stuck::Socket(error.kind())),
            };
            // Where there was room for more, the end may be all that there is.
            let last = n < most && ended();
            let end = self
                .seal_in_place(stream, bytes, n, last)
                .map_err(Stuck::Tunnel)?;
            if let (true, Some(flow)) = (last, self.flows.get_mut(&stream)) {
                flow.sending = Direction::Ended;
            }
            let mut driver = Context::from_waker(&self.driver);
            let sent = self
                .output
                .sealed(&bytes[..end], &mut *self.io, &mut driver);
            if let Err(error) = sent {
                self.hung_up(&error);
            }
            Ok(match last {
                true => Pumped::Last(n),
                false => Pumped::Moved(n, n == most),
            })
        })
    }

    /// Makes records of `n` bytes of payload, the stream's `last` or not, and says where the last one ends.
    fn seal_in_place(
        &mut self,
        stream: StreamId,
        bytes: &mut [u8],
        n: usize,
        last: bool,
    ) -> Result<usize, TunnelError> {
        let (mut left, mut end) = (n, 0);
        while left > 0 {
            let payload = left.min(PAYLOAD);
            let head = self.mux.data(stream, payload, last && payload == left);
            let head = head.ok_or(TunnelError::Ended)?;
            let record = &mut bytes[end..end + BEFORE + payload + records::TAIL];
            record[BEFORE - HEAD..BEFORE].copy_from_slice(&head);
            if let Err(error) = self.output.seal_in_place(record) {
                self.lost(&error.to_string());
                return Err(TunnelError::ConnectionLost(error.to_string()));
            }
            end += record.len();
            left -= payload;
        }
        Ok(end)
    }
}

/// The app has said its last. Asked of the kernel only when it has something to say to that: a reset is no
/// end, though both look alike from afar.
fn has_ended(app: &App, cx: &mut Context<'_>) -> bool {
    // What could not be written to the app makes its end a failure.
    if app.broken().is_some() || app.poll_readable(cx).is_pending() {
        return false;
    }
    match app.ended() {
        Ok(ended) => ended,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => {
            // The kernel says so once: whoever reads next would take it for an end.
            app.fail(error.kind());
            false
        }
    }
}

/// Where the payloads of records go, `most` bytes in all.
fn payloads(bytes: &mut [u8], most: usize) -> [IoSliceMut<'_>; RECORDS] {
    let mut places = bytes.chunks_exact_mut(RECORD);
    let mut left = most;
    std::array::from_fn(|_| {
        let place = places.next().unwrap_or_default();
        let n = left.min(PAYLOAD);
        left -= n;
        match place.get_mut(BEFORE..BEFORE + n) {
            Some(payload) => IoSliceMut::new(payload),
            None => IoSliceMut::new(&mut []),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, task::Waker, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        Authority, Connect, Identity,
        frames::{Mux, Settings},
        gauge::Gauge,
        own::state::Role,
        records::{Opened, Opener, Sealer, Secret, Side, Suite},
        tls::{Session, handshake::Established},
    };

    const SAID: usize = 60_000;

    fn secret() -> Secret {
        Secret::new(Suite::Aes128Gcm, &[7; 32]).unwrap()
    }

    /// A client's end, whose keys last for so many records.
    fn client(io: impl crate::own::output::Io + 'static, records: u64) -> State {
        let sealer = Sealer::new(secret(), 0).unwrap();
        let keys = Established {
            sealer: sealer.renewed_after(records),
            opener: Opener::new(Side::Client, secret(), 0).unwrap(),
            unread: Vec::new(),
            unsent: Vec::new(),
            session: Session {
                peer: Identity::new("cluster.local", "default", "server").unwrap(),
                group: "",
                cipher: "",
                resumed: false,
                evidence: None,
            },
        };
        let mux = Mux::client(&Settings::client());
        State::new(Role::Client, Box::new(io), keys, mux, Gauge::new())
    }

    /// An app that has said something, and our end of its connection.
    async fn app() -> (TcpStream, App) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (app, ours) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut app, (ours, _)) = (app.unwrap(), ours.unwrap());
        app.write_all(&[7; SAID]).await.unwrap();
        let mut said = vec![0; SAID];
        let all = async {
            while ours.peek(&mut said).await.unwrap() < SAID {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let all = tokio::time::timeout(Duration::from_secs(60), all).await;
        all.expect("what the app has said arrives");
        (app, App::new(ours, Arc::default()))
    }

    /// What a peer finds in these bytes, and the most records that came under one key.
    fn heard(mut wire: Vec<u8>) -> (Vec<u8>, u64) {
        let mut opener = Opener::new(Side::Server, secret(), 0).unwrap();
        let (mut said, mut at, mut records, mut most) = (Vec::new(), 0, 0, 0);
        while at < wire.len() {
            let rest = &mut wire[at..];
            at += match opener.next(rest).unwrap() {
                Opened::Data { used, plain } => {
                    said.extend_from_slice(&rest[plain]);
                    records += 1;
                    most = most.max(records);
                    used
                }
                Opened::Update { used, .. } => {
                    records = 0;
                    used
                }
                other => panic!("{other:?}"),
            };
        }
        (said, most)
    }

    #[tokio::test]
    async fn frames_that_go_before_an_apps_bytes_take_no_record_from_them_that_a_key_has_left() {
        for records in 1..=9 {
            let (io, mut peer) = tokio::io::duplex(1 << 20);
            let mut state = client(io, records);
            let mut cx = Context::from_waker(Waker::noop());
            let to = Connect::to("10.0.0.1:80".parse::<Authority>().unwrap());
            let Poll::Ready(Ok((stream, _))) = state.open(&to, None, &[], &mut cx) else {
                panic!("no stream");
            };
            let (_app, ours) = app().await;
            let mut sent = 0;
            while sent < SAID {
                state.mux.ping([0; 8]);
                match state.pump(stream, &mut cx, &ours, RECORDS, false) {
                    Poll::Ready(Ok(Pumped::Moved(n, _))) => sent += n,
                    other => panic!("{records} records a key, {sent} bytes sent: {other:?}"),
                }
            }
            drop(state);
            let mut wire = Vec::new();
            peer.read_to_end(&mut wire).await.unwrap();
            let (said, most) = heard(wire);
            assert!(said.iter().filter(|byte| **byte == 7).count() >= SAID);
            assert!(most <= records, "{most} under a key for {records}");
        }
    }
}
