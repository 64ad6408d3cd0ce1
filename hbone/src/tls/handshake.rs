//! The handshake of our own record layer: rustls makes it, and then gives up the connection.
//!
//! A socket and a configuration enter. rustls is driven without buffers of its own (`Connection::step`):
//!
//! 1. it is shown one record at a time, so that it never opens what belongs to us
//! 2. the traffic secrets are caught as they are derived (`Caught`, one for each handshake, so that
//!    secrets meet their connection)
//! 3. when it is done it is taken apart for its record numbers and thrown away; on the client's side what
//!    can read the server's tickets stays, until data comes
//!
//! What leaves is a direction out, a direction in, the bytes that had come behind the handshake, and who
//! the peer has proven to be. Failures and what the peer is told of them are those of `tokio-rustls`.
//!
//! What we say last, the client's proof or the server's tickets, can be left to whoever sends the first
//! records: both then leave as one.

use std::{
    fmt, io, mem,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    CipherSuite, ClientConfig, CommonState, ExtractedSecrets, KeyLog, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Session, TlsError, session};
use crate::records::{self, Opener, RecordError, Sealer, Secret, Side, Suite, TicketReader};

/// What a handshake leaves.
#[derive(Debug)]
pub struct Established {
    /// Our direction.
    pub sealer: Sealer,
    /// The peer's direction.
    pub opener: Opener,
    /// What the peer sent behind its handshake, not opened yet.
    pub unread: Vec<u8>,
    /// What of our handshake has not been sent. It goes before the first record.
    pub(crate) unsent: Vec<u8>,
    /// What was proven.
    pub session: Session,
}

/// The server's side of a handshake on `io`.
///
/// # Errors
/// Whose fault it was. The peer has been told.
pub async fn accept<T>(io: &mut T, config: &ServerConfig) -> Result<Established, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut established = accept_as(io, config.clone(), session).await?;
    send(io, &mut established.unsent).await?;
    Ok(established)
}

/// [`accept`] with the configuration of this connection alone; `confirm` says who the peer is. The last
/// that we say is left unsent.
pub(super) async fn accept_as<T>(
    io: &mut T,
    mut config: ServerConfig,
    confirm: impl FnOnce(&CommonState) -> Result<Session, TlsError>,
) -> Result<Established, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let caught = Arc::new(Caught::default());
    config.key_log = caught.clone();
    config.enable_secret_extraction = true;
    let connection = UnbufferedServerConnection::new(Arc::new(config)).map_err(refused)?;
    let (connection, rest) = shake_hands(io, Box::new(connection)).await?;
    let session = confirm(connection.common())?;
    let (established, _) = establish(connection, session, &caught, Side::Server, rest)?;
    Ok(established)
}

/// The client's side of a handshake on `io`.
///
/// # Errors
/// As for [`accept`].
pub async fn connect<T>(io: &mut T, config: &ClientConfig) -> Result<Established, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut established = connect_as(io, config.clone(), true, session).await?;
    send(io, &mut established.unsent).await?;
    Ok(established)
}

/// [`connect`] with the configuration of this connection alone; `confirm` says who the peer is. With
/// `tickets` the configuration's store is given those that come. The last that we say is left unsent.
pub(super) async fn connect_as<T>(
    io: &mut T,
    mut config: ClientConfig,
    tickets: bool,
    confirm: impl FnOnce(&CommonState) -> Result<Session, TlsError>,
) -> Result<Established, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let caught = Arc::new(Caught::default());
    config.key_log = caught.clone();
    config.enable_secret_extraction = true;
    // Never sent and never looked at: the expected identities are in the verifier.
    let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let connection = UnbufferedClientConnection::new(Arc::new(config), nobody).map_err(refused)?;
    let (connection, mut rest) = shake_hands(io, Box::new(connection)).await?;
    let session = match confirm(connection.common()) {
        Ok(session) => session,
        Err(error) => {
            // Of us the server is to know all that it was promised; that we leave it will see.
            let _ = send(io, &mut rest.unsent).await;
            return Err(error);
        }
    };
    let (mut established, reader) = establish(connection, session, &caught, Side::Client, rest)?;
    if let Some(reader) = reader.filter(|_| tickets) {
        established.opener = established.opener.with_tickets(reader);
    }
    Ok(established)
}

/// What is left of a handshake that is done.
struct Rest {
    /// Came behind it.
    unread: Vec<u8>,
    /// Is still to be sent.
    unsent: Vec<u8>,
}

/// Gives what is done, and what is left. Sends only when it must wait for the peer, so that what rustls says
/// piece by piece leaves as one.
async fn shake_hands<T, C>(io: &mut T, mut connection: Box<C>) -> Result<(Box<C>, Rest), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
    C: Connection,
{
    let (mut input, mut out) = (Vec::new(), Vec::new());
    // How much of the input rustls is shown, and where the record ends that it was shown last.
    let (mut shown, mut end) = (0, 0);
    loop {
        let (used, step) = connection.step(&mut input[..shown], &mut out);
        input.drain(..used);
        (shown, end) = (shown - used, end - used);
        match step {
            Ok(Step::Encoded) => {}
            Ok(Step::Closed) => return Err(TlsError::Io(io::ErrorKind::UnexpectedEof)),
            Ok(Step::Blocked) if !connection.common().is_handshaking() => break,
            Ok(Step::Blocked) => match next_record(&input, end) {
                Some(next) if shown == end => end = next,
                _ => {
                    send(io, &mut out).await?;
                    read(io, &mut input).await?;
                }
            },
            Err(error) => {
                last_words(&mut *connection, &mut out);
                // The peer may have hung up, and the reason we have is better than that.
                let _ = send(io, &mut out).await;
                return Err(refused(error));
            }
        }
        shown = end.min(input.len());
    }
    // Nothing is left of what rustls was shown: a handshake ends where a record does.
    input.drain(..shown);
    let rest = Rest {
        unread: input,
        unsent: out,
    };
    Ok((connection, rest))
}

fn establish<C: Connection>(
    connection: Box<C>,
    session: Session,
    caught: &Caught,
    side: Side,
    rest: Rest,
) -> Result<(Established, Option<TicketReader>), TlsError> {
    let suite = connection.common().negotiated_cipher_suite();
    let suite = match suite.map(|suite| suite.suite()) {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => Suite::Aes128Gcm,
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => Suite::Aes256Gcm,
        _ => return Err(TlsError::Protocol("a cipher suite that is not ours".into())),
    };
    // Taken for the record numbers; the keys with them are dropped, and overwritten, at once.
    let (ExtractedSecrets { tx, rx }, reader) = connection.take_apart().map_err(refused)?;
    let (client, server) = caught.take(suite)?;
    let (ours, theirs) = match side {
        Side::Client => (client, server),
        Side::Server => (server, client),
    };
    let established = Established {
        sealer: Sealer::new(ours, tx.0).map_err(failed)?,
        opener: Opener::new(side, theirs, rx.0).map_err(failed)?,
        unread: rest.unread,
        unsent: rest.unsent,
        session,
    };
    Ok((established, reader))
}

/// Where the record ends that starts at `at`, if its head is there.
fn next_record(input: &[u8], at: usize) -> Option<usize> {
    let head = input.get(at..)?.first_chunk::<{ records::HEAD }>()?;
    let length = u16::from_be_bytes([head[3], head[4]]);
    Some(at + records::HEAD + usize::from(length))
}

/// What rustls has to say to the peer after an error. It must not be asked for more than there is:
/// it would look at the bad record again.
fn last_words<C: Connection>(connection: &mut C, out: &mut Vec<u8>) {
    while connection.common().wants_write() {
        if !matches!(connection.step(&mut [], out).1, Ok(Step::Encoded)) {
            return;
        }
    }
}

async fn read<T: AsyncRead + Unpin>(io: &mut T, input: &mut Vec<u8>) -> Result<(), TlsError> {
    /// A ClientHello with a post-quantum share, or a server's whole flight, in one call.
    const ROOM: usize = 8 << 10;
    input.reserve(ROOM);
    match io.read_buf(input).await {
        Ok(0) => Err(TlsError::Io(io::ErrorKind::UnexpectedEof)),
        Ok(_) => Ok(()),
        Err(error) => Err(TlsError::Io(error.kind())),
    }
}

async fn send<T: AsyncWrite + Unpin>(io: &mut T, out: &mut Vec<u8>) -> Result<(), TlsError> {
    let lost = |error: io::Error| TlsError::Io(error.kind());
    if out.is_empty() {
        return Ok(());
    }
    io.write_all(out).await.map_err(lost)?;
    io.flush().await.map_err(lost)?;
    out.clear();
    Ok(())
}

fn refused(error: rustls::Error) -> TlsError {
    TlsError::from_rustls(&error)
}

fn failed(error: RecordError) -> TlsError {
    TlsError::Protocol(error.to_string())
}

/// What rustls wants next.
enum Step {
    /// To go on: something was put into the output, or all of it may be sent.
    Encoded,
    /// More input, unless the handshake is done.
    Blocked,
    /// Nothing: the peer hung up.
    Closed,
}

/// What client and server have in common, which rustls has no word for.
trait Connection {
    /// Shows rustls the input. Gives how much of it is done with, and what comes next.
    fn step(&mut self, input: &mut [u8], out: &mut Vec<u8>)
    -> (usize, Result<Step, rustls::Error>);
    fn common(&self) -> &CommonState;
    /// The secrets, and on the client's side what can read tickets.
    fn take_apart(self: Box<Self>) -> Result<Parts, rustls::Error>;
}

type Parts = (ExtractedSecrets, Option<TicketReader>);

impl Connection for UnbufferedClientConnection {
    fn step(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, rustls::Error>) {
        take_step(self.process_tls_records(input), out)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn take_apart(self: Box<Self>) -> Result<Parts, rustls::Error> {
        let (secrets, mut rest) = self.dangerous_into_kernel_connection()?;
        let reader = move |ticket: &[u8]| {
            // One that cannot be read is of no use; nothing else depends on it.
            if let Err(error) = rest.handle_new_session_ticket(ticket) {
                tracing::debug!(%error, "a ticket that cannot be read");
            }
        };
        Ok((secrets, Some(Box::new(reader))))
    }
}

impl Connection for UnbufferedServerConnection {
    fn step(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, rustls::Error>) {
        take_step(self.process_tls_records(input), out)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn take_apart(self: Box<Self>) -> Result<Parts, rustls::Error> {
        Ok((self.dangerous_into_kernel_connection()?.0, None))
    }
}

fn take_step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
) -> (usize, Result<Step, rustls::Error>) {
    let step = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut message) => {
            let start = out.len();
            if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
                out.resize(start + size.required_size, 0);
            }
            let encoded = message.encode(&mut out[start..]);
            encoded.map_err(|error| rustls::Error::General(error.to_string()))?;
            Ok(Step::Encoded)
        }
        ConnectionState::TransmitTlsData(message) => {
            message.done();
            Ok(Step::Encoded)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(Step::Blocked),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        // Early data is not accepted, and later data is not shown.
        state => Err(rustls::Error::General(format!("unexpected {state:?}"))),
    });
    (status.discard, step)
}

/// The traffic secrets of one handshake. Nothing else that rustls would tell is listened to.
#[derive(Default)]
struct Caught(Mutex<[Option<Secret>; 2]>);

/// Labels of the secrets of client and server (the NSS key log format).
const LABELS: [&str; 2] = ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"];

impl Caught {
    /// The client's and the server's secret.
    fn take(&self, suite: Suite) -> Result<(Secret, Secret), TlsError> {
        let mut caught = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match mem::take(&mut *caught) {
            [Some(client), Some(server)] if client.suite() == suite && server.suite() == suite => {
                Ok((client, server))
            }
            _ => Err(TlsError::Protocol("no traffic secrets".into())),
        }
    }
}

impl KeyLog for Caught {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        // The two suites have hashes of different length; `take` compares with what was agreed.
        let secret = [Suite::Aes128Gcm, Suite::Aes256Gcm]
            .into_iter()
            .find_map(|suite| Secret::new(suite, secret).ok());
        if let Some(at) = LABELS.iter().position(|known| *known == label) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)[at] = secret;
        }
    }

    fn will_log(&self, label: &str) -> bool {
        LABELS.contains(&label)
    }
}

impl fmt::Debug for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caught")
    }
}

#[cfg(test)]
mod tests;
