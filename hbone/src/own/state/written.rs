//! A connection as bytes: written when it is frozen, read when another process goes on with it.
//!
//! ```text
//!  peer, key exchange group, cipher suite: texts | resumed 1
//!  | 0, or 1 and what the peer has shown (`tls/evidence`) | accused 1 or 5
//!  | of a client's connection: 0, or 1 and its place in a pool (`handover/berth`)
//!  | direction out, direction in (`records`), HTTP/2 (`frames`): each behind its length
//!  | read and not opened, sealed and not sent: each behind its length
//!  | streams 4 + n x (number 4 | theirs, ours: how each direction stands | what it is | what waits for the app)
//!
//!  what it is:  0 | method | authority | 5 headers         a request that nobody has seen
//!               1 | how the app's and the tunnel's direction ended | moved 8 + 8 | why writing failed 1
//! ```
//!
//! Whoever reads believes nothing: what the parts say of each stream must agree.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    task::Waker,
};

use super::{Arrival, Late, Phase, Role, State, batch};
use crate::{
    copy::HalfEnd,
    frames::{Code, Method, Mux, RequestHead, StreamId},
    gauge::Gauge,
    handover::{
        NotFrozen, ThawError,
        berth::Berth,
        wire::{self, Kind, Reader, Writer, Written, ensure},
    },
    limits::DATA,
    own::{
        LEFT,
        flow::{Direction, Flow},
        output::{Io, Output},
    },
    records::{Opener, Sealer, Side},
    request::RequestHeaders,
    tls::{Evidence, Session},
};

/// A connection that somebody has written down.
pub(crate) struct Thawing {
    pub(crate) role: Role,
    pub(crate) session: Session,
    accused: Option<Code>,
    pub(crate) berth: Option<Berth>,
    sealer: Sealer,
    opener: Opener,
    pub(crate) mux: Mux,
    input: Vec<u8>,
    unsent: Vec<u8>,
    pub(crate) flows: Vec<ThawingFlow>,
}

/// One of its streams.
pub(crate) struct ThawingFlow {
    pub(crate) stream: StreamId,
    receiving: Direction,
    sending: Direction,
    what: What,
    /// What came, and is not with the app's socket yet.
    unread: Vec<u8>,
}

/// What a stream is to whoever goes on with it.
enum What {
    /// A request that nobody has seen.
    Arrived(RequestHead),
    /// A copy between it and an app's socket.
    Copied(ThawingCopy),
}

/// A copy that has stopped.
#[derive(Debug, Clone)]
pub(crate) struct ThawingCopy {
    /// How the app's and the tunnel's direction ended, if they have.
    pub(crate) up: Option<HalfEnd>,
    pub(crate) down: Option<HalfEnd>,
    /// Bytes (sent, received).
    pub(crate) moved: (u64, u64),
    /// The driver's write to the app has failed.
    pub(crate) broken: Option<io::ErrorKind>,
}

impl State {
    /// Everything about the connection, with descriptors of its own: first the connection's socket, then
    /// those of the apps in the order of their streams. It must be at rest.
    pub(crate) fn write(
        &self,
        session: &Session,
        berth: Option<&Berth>,
    ) -> Result<Written, NotFrozen> {
        let (sealer, unsent) = self.output.state();
        let opener = self.opener.state().ok_or(NotFrozen::Over)?;
        let mux = self.mux.state().ok_or(NotFrozen::Over)?;
        let mut flows: Vec<_> = self.flows.iter().map(|(id, flow)| (*id, flow)).collect();
        flows.sort_unstable_by_key(|(id, _)| *id);

        let socket = (*self.io).tcp().ok_or(NotFrozen::Socket)?;
        let mut descriptors = vec![duplicate(socket)?];
        for (_, flow) in &flows {
            if let (Some(_), Some(app)) = (&flow.parked, &flow.app) {
                descriptors.push(duplicate(app.tcp())?);
            }
        }

        let waiting: usize = flows.iter().map(|(_, flow)| waits(flow)).sum();
        let heads = 80 * flows.len() + self.arrivals.iter().map(size_of_head).sum::<usize>();
        let peer = session.peer.to_string();
        let texts = peer.len() + session.group.len() + session.cipher.len() + TEXTS * flows.len();
        let berth = berth.map(|berth| (berth, berth.texts()));
        let texts = texts + berth.as_ref().map_or(0, |(_, texts)| Berth::size(texts));
        let evidence = session.evidence.as_deref();
        let texts = texts + evidence.map_or(0, Evidence::size);
        let states = sealer.as_ref().len() + opener.as_ref().len() + mux.len();
        let room = 128 + texts + states + self.input.len() + unsent.len() + heads + waiting;
        let kind = match self.role {
            Role::Client => Kind::Dialled,
            Role::Server => Kind::Accepted,
        };
        let mut out = Writer::new(kind, room);
        out.text(&peer);
        out.text(session.group);
        out.text(session.cipher);
        out.u8(session.resumed.into());
        out.u8(evidence.is_some().into());
        evidence.into_iter().for_each(|it| it.write(&mut out));
        match self.accused {
            None => out.u8(0),
            Some(Code(code)) => {
                out.u8(1);
                out.u32(code);
            }
        }
        if self.role == Role::Client {
            out.u8(berth.is_some().into());
            if let Some((berth, texts)) = &berth {
                berth.write(&mut out, texts);
            }
        }
        out.string(sealer.as_ref());
        out.string(opener.as_ref());
        out.string(&mux);
        out.string(&self.input);
        out.string(unsent);
        out.count(flows.len());
        for (id, flow) in &flows {
            self.write_flow(&mut out, *id, flow)?;
        }
        let streams = flows.iter().filter(|(_, flow)| flow.parked.is_some());
        let streams = streams.map(|(id, _)| id.0).collect();
        Ok(out.done(descriptors, streams))
    }

    fn write_flow(&self, out: &mut Writer, id: StreamId, flow: &Flow) -> Result<(), NotFrozen> {
        out.u32(id.0);
        write_direction(out, &flow.receiving);
        write_direction(out, &flow.sending);
        let arrival = self.arrivals.iter().find(|arrival| arrival.stream == id);
        match (&flow.parked, arrival) {
            (None, None) => return Err(NotFrozen::Busy(1)),
            (Some(parked), _) => {
                out.u8(1);
                out.half_end(parked.up.as_ref());
                out.half_end(parked.down.as_ref());
                out.u64(parked.moved.0);
                out.u64(parked.moved.1);
                let broken = flow.app.as_ref().and_then(|app| app.broken());
                out.error_kind(broken);
            }
            (None, Some(arrival)) => {
                out.u8(0);
                write_head(out, &arrival.head);
            }
        }
        out.count(waits(flow));
        let taken = flow.parked.iter().flat_map(|parked| &parked.waiting);
        taken.for_each(|chunk| out.bytes(chunk));
        flow.waiting().for_each(|chunk| out.bytes(chunk));
        Ok(())
    }

    /// Goes on where another stopped. Its copies begin before or after, as they like.
    pub(crate) fn thawed(io: Box<dyn Io>, parts: Thawing, gauge: Arc<Gauge>) -> Self {
        if parts.mux.going_away() {
            gauge.goes_away();
        }
        let (mut flows, mut arrivals) = (HashMap::default(), VecDeque::new());
        for parts in parts.flows {
            let mut flow = Flow::new();
            flow.receiving = parts.receiving;
            flow.sending = parts.sending;
            flow.unread = parts.unread.len();
            parts.unread.chunks(DATA).for_each(|chunk| flow.push(chunk));
            match parts.what {
                What::Arrived(head) => arrivals.push_back(Arrival {
                    stream: parts.stream,
                    head,
                }),
                // Somebody on the other side has been answered, and so have we.
                What::Copied(_) => flow.answer = Some(200),
            }
            flows.insert(parts.stream, flow);
        }
        Self {
            role: parts.role,
            batch: batch(&*io),
            io,
            opener: parts.opener,
            output: Output::new(parts.sealer, parts.unsent),
            mux: parts.mux,
            input: parts.input,
            preface: 0,
            heard: None,
            flows,
            arrivals,
            line: VecDeque::new(),
            openers: Vec::new(),
            driver: Waker::noop().clone(),
            phase: Phase::Open,
            parting: None,
            accused: parts.accused,
            // Whoever goes on with it has an `Opener` of a client's connection, or drops it.
            unwanted: false,
            pong: false,
            gauge,
            late: Late::No,
            freezing: None,
            awake: Vec::new(),
        }
    }
}

impl Thawing {
    /// What [`State::write`] has written.
    pub(crate) fn read(role: Role, from: &mut Reader<'_>) -> Result<Self, ThawError> {
        let session = read_session(role, from)?;
        let accused = match from.bool()? {
            true => Some(Code(from.u32()?)),
            false => None,
        };
        let berth = match role == Role::Client && from.bool()? {
            true => Some(Berth::read(from, &session.peer)?),
            false => None,
        };
        let sealer = Sealer::from_state(from.string()?)?;
        let opener = Opener::from_state(from.string()?)?;
        let mux = Mux::from_state(from.string()?)?;
        let (input, unsent) = (from.string()?.to_vec(), from.string()?.to_vec());
        let client = role == Role::Client;
        let sides = (opener.side() == Side::Client) == client && mux.is_client() == client;
        ensure(sides, "parts of different sides")?;
        ensure(input.len() < LEFT, "more than a record that is not opened")?;
        let mut flows: Vec<ThawingFlow> = Vec::new();
        for _ in 0..from.u32()? {
            let flow = ThawingFlow::read(from)?;
            let in_order = flows.last().is_none_or(|last| last.stream < flow.stream);
            ensure(in_order, "streams out of order")?;
            flow.is_possible(client, &mux)?;
            flows.push(flow);
        }
        let open = flows.iter().filter(|flow| flow.is_open()).count();
        ensure(open == mux.streams(), "a stream that is nobody's")?;
        let unread: u64 = flows.iter().map(|flow| flow.unread.len() as u64).sum();
        ensure(unread <= mux.unread(), "more bytes than ever came")?;
        Ok(Self {
            role,
            session,
            accused,
            berth,
            sealer,
            opener,
            mux,
            input,
            unsent,
            flows,
        })
    }

    /// Descriptors that belong to it.
    pub(crate) fn sockets(&self) -> usize {
        1 + self
            .flows
            .iter()
            .filter(|flow| flow.copy().is_some())
            .count()
    }
}

impl ThawingFlow {
    fn read(from: &mut Reader<'_>) -> Result<Self, ThawError> {
        let stream = StreamId(from.u32()?);
        let (receiving, sending) = (read_direction(from)?, read_direction(from)?);
        let what = match from.u8()? {
            0 => What::Arrived(read_head(from)?),
            1 => What::Copied(ThawingCopy {
                up: from.half_end()?,
                down: from.half_end()?,
                moved: (from.u64()?, from.u64()?),
                broken: from.error_kind()?,
            }),
            _ => return Err(ThawError::Impossible("a stream that is nothing known")),
        };
        Ok(Self {
            stream,
            receiving,
            sending,
            what,
            unread: from.string()?.to_vec(),
        })
    }

    /// The copy, unless it is a request that nobody has seen.
    pub(crate) fn copy(&self) -> Option<&ThawingCopy> {
        match &self.what {
            What::Arrived(_) => None,
            What::Copied(copy) => Some(copy),
        }
    }

    fn is_open(&self) -> bool {
        self.receiving.is_open() || self.sending.is_open()
    }

    /// What copy, stream and HTTP/2 say of it agrees.
    fn is_possible(&self, client: bool, mux: &Mux) -> Result<(), ThawError> {
        let ended = self.is_open().then_some((
            self.receiving == Direction::Ended,
            self.sending == Direction::Ended,
        ));
        let agreed = mux.ended_of(self.stream) == ended;
        ensure(agreed, "a stream stands in two ways at once")?;
        let possible = match &self.what {
            What::Arrived(_) => !client && self.sending != Direction::Ended,
            What::Copied(ThawingCopy { up, down, .. }) => {
                let finished = |end: &Option<HalfEnd>| *end == Some(HalfEnd::Finished);
                let up_is = match up {
                    None => self.sending != Direction::Ended,
                    Some(HalfEnd::Finished) => self.sending == Direction::Ended,
                    Some(end) => matches!(end, HalfEnd::Tunnel(_)),
                };
                let all_gone = self.receiving == Direction::Ended && self.unread.is_empty();
                let down_is = match down {
                    None => true,
                    Some(HalfEnd::Finished) => all_gone,
                    Some(end) => matches!(end, HalfEnd::Socket(_)),
                };
                up_is && down_is && !(finished(up) && finished(down))
            }
        };
        ensure(possible, "a copy that has ended otherwise than its stream")
    }
}

/// What a stream's texts may come to, beside a head: why each direction ended.
const TEXTS: usize = 4 * (4 + wire::WORDS);

/// Bytes that wait for the app.
fn waits(flow: &Flow) -> usize {
    let taken = flow.parked.iter().flat_map(|parked| &parked.waiting);
    let taken: usize = taken.map(|chunk| chunk.len()).sum();
    taken + flow.waiting().map(<[u8]>::len).sum::<usize>()
}

fn duplicate(socket: &impl AsFd) -> Result<OwnedFd, NotFrozen> {
    let duplicate = socket.as_fd().try_clone_to_owned();
    duplicate.map_err(|error| NotFrozen::Descriptors(error.kind()))
}

fn write_direction(out: &mut Writer, direction: &Direction) {
    match direction {
        Direction::Open => out.u8(0),
        Direction::Ended => out.u8(1),
        Direction::Failed(why) => {
            out.u8(2);
            out.tunnel_error(why);
        }
    }
}

/// What a handshake agreed on is one of few things, and only shown.
fn read_session(role: Role, from: &mut Reader<'_>) -> Result<Session, ThawError> {
    const KNOWN: [&str; 5] = [
        "X25519MLKEM768",
        "X25519",
        "secp256r1",
        "TLS13_AES_256_GCM_SHA384",
        "TLS13_AES_128_GCM_SHA256",
    ];
    let known = |text: &str| KNOWN.into_iter().find(|known| *known == text);
    let peer = from.text()?.parse();
    Ok(Session {
        peer: peer.map_err(|_| ThawError::Impossible("a peer without a name"))?,
        group: known(from.text()?).unwrap_or("unknown"),
        cipher: known(from.text()?).unwrap_or("unknown"),
        resumed: from.bool()?,
        evidence: match from.bool()? {
            true => Some(Arc::new(Evidence::read(from, role == Role::Server)?)),
            false => None,
        },
    })
}

fn read_direction(from: &mut Reader<'_>) -> Result<Direction, ThawError> {
    match from.u8()? {
        0 => Ok(Direction::Open),
        1 => Ok(Direction::Ended),
        2 => from.tunnel_error().map(Direction::because),
        _ => Err(ThawError::Impossible(
            "a direction that stands in no known way",
        )),
    }
}

fn headers(headers: &RequestHeaders) -> [&Option<Box<str>>; 5] {
    [
        &headers.baggage,
        &headers.forwarded,
        &headers.traceparent,
        &headers.x_forwarded_network,
        &headers.x_istio_source,
    ]
}

fn size_of_head(arrival: &Arrival) -> usize {
    let head = &arrival.head;
    let texts = headers(&head.headers).into_iter().flatten();
    let method = match &head.method {
        Method::Connect => 0,
        Method::Extended { protocol, .. } => protocol.len(),
        Method::Other(other) => other.len(),
    };
    method + head.authority.len() + texts.map(|text| text.len()).sum::<usize>()
}

fn write_head(out: &mut Writer, head: &RequestHead) {
    match &head.method {
        Method::Connect => out.u8(1),
        // Ways for datagrams are not handed over: whoever reads this turns it away, and it is asked for again.
        Method::Extended { protocol, .. } => {
            out.u8(2);
            out.text(protocol);
        }
        Method::Other(other) => {
            out.u8(2);
            out.text(other);
        }
    }
    out.text(&head.authority);
    for value in headers(&head.headers) {
        match value {
            None => out.u8(0),
            Some(value) => {
                out.u8(1);
                out.text(value);
            }
        }
    }
}

fn read_head(from: &mut Reader<'_>) -> Result<RequestHead, ThawError> {
    let method = match from.u8()? {
        1 => Method::Connect,
        2 => Method::Other(from.text()?.into()),
        _ => return Err(ThawError::Impossible("a request without a method")),
    };
    let authority = from.text()?.into();
    let mut value = || match from.bool()? {
        true => from.text().map(|text| Some(text.into())),
        false => Ok::<Option<Box<str>>, ThawError>(None),
    };
    Ok(RequestHead {
        method,
        authority,
        headers: RequestHeaders {
            baggage: value()?,
            forwarded: value()?,
            traceparent: value()?,
            x_forwarded_network: value()?,
            x_istio_source: value()?,
        },
    })
}
