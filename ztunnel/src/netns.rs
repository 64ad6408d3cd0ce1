//! Sockets inside a pod's network namespace.
//!
//! A namespace's file descriptor enters (from the node agent); sockets leave that live in it.
//!
//! A socket belongs for ever to the namespace of the thread that made it, so a thread has to be
//! inside only for `socket(2)` itself: [`Netns::enter`] goes in, runs one short synchronous piece
//! of code, and comes back before anything else can run on that thread. Everything after
//! (options, bind, listen, connect, accept) works from outside. Measured on Linux 6.18: in and
//! out together 2.3 to 3 µs of CPU, `socket(2)` and its `close` 5 µs.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::ParseIntError;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::config::{Config, ports};
use crate::headers::random;

/// A network namespace, and how sockets in it are set up.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
    /// It is that of this process: nobody has to go anywhere.
    is_home: bool,
    options: Options,
    /// Its sockets pace what they send unless they are told otherwise; known after the first.
    paces: OnceLock<bool>,
}

/// Which namespace it is: two descriptors with equal ids are the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

/// What all our sockets have in common.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Mark on every packet: the pod's packet rules leave our own traffic alone by it.
    pub mark: u32,
    /// Keepalive: idle time, interval, probes.
    pub keepalive: Option<(Duration, Duration, u32)>,
    /// `TCP_USER_TIMEOUT`.
    pub user_timeout: Option<Duration>,
    /// Let another process bind the same ports (upgrade).
    pub reuse_port: bool,
    /// Try IPv6 at all.
    pub ipv6: bool,
}

impl Options {
    /// As the operator asked for.
    pub fn of(config: &Config) -> Self {
        let keepalive = (
            config.keepalive_time,
            config.keepalive_interval,
            config.keepalive_retries,
        );
        let patience = config.keepalive_time + config.keepalive_interval * config.keepalive_retries;
        Self {
            mark: config.packet_mark,
            keepalive: config.keepalive.then_some(keepalive),
            user_timeout: (config.keepalive && config.user_timeout).then_some(patience),
            reuse_port: config.inpod_port_reuse,
            ipv6: config.ipv6_enabled,
        }
    }
}

/// The address a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Whatever the routes say.
    Any,
    /// An address the pod has.
    Own(IpAddr),
    /// Any address at all: an application sees its client although we stand between. Needs
    /// `CAP_NET_ADMIN`; replies come back to us by the pod's packet rules.
    Foreign(IpAddr),
}

impl Netns {
    /// Takes over a namespace's descriptor.
    pub fn new(fd: OwnedFd, options: Options) -> io::Result<Self> {
        // Opened before the first visit anywhere: afterwards every thread can be brought home.
        let home = NetnsId::of(home()?)?;
        let id = NetnsId::of(fd.as_fd())?;
        Ok(Self {
            id,
            is_home: id == home,
            fd,
            options,
            paces: OnceLock::new(),
        })
    }

    /// The namespace this process runs in.
    pub fn of_this_process(options: Options) -> io::Result<Self> {
        Self::new(home()?.try_clone_to_owned()?, options)
    }

    /// Which namespace it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `inside` on this thread within the namespace. Keep it short, and never await in it:
    /// the whole thread is away meanwhile.
    ///
    /// If the way back fails the process is aborted: a thread lost in a pod would open the next
    /// pod's sockets there, and no error handling could tell whose traffic it carries.
    ///
    /// To stay where one is takes no right; to enter takes `CAP_SYS_ADMIN`, which a dedicated proxy so does without.
    pub fn enter<T>(&self, inside: impl FnOnce() -> T) -> io::Result<T> {
        if self.is_home {
            return Ok(inside());
        }
        let home = home()?;
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let way_back = WayBack(home);
        let result = inside();
        drop(way_back);
        Ok(result)
    }

    /// Opens a connection from inside the namespace. No time limit of its own.
    pub async fn connect(&self, from: From, to: SocketAddr) -> io::Result<TcpStream> {
        let ip = match from {
            From::Any => return begin(self.tcp_soon(Domain::for_address(to)).await?, to).await,
            From::Own(ip) => {
                let socket = self.tcp_soon(Domain::for_address(to)).await?;
                bind_no_port(&socket, ip)?;
                return begin(socket, to).await;
            }
            From::Foreign(ip) => ip,
        };
        for _ in 0..PORTS_TRIED {
            let socket = self.transparent(ip)?;
            socket.set_reuse_address(true)?;
            let port = FOREIGN_PORTS.start + (random() % FOREIGN_PORTS.len() as u64) as u16;
            let begun = match socket.bind(&SocketAddr::new(ip, port).into()) {
                Ok(()) => begin(socket, to).await,
                Err(error) => Err(error),
            };
            match begun {
                Err(error) if is_taken(&error) => {}
                done => return done,
            }
        }
        let socket = self.transparent(ip)?;
        bind_no_port(&socket, ip)?;
        begin(socket, to).await
    }

    /// A socket that may bind an address of somebody else.
    fn transparent(&self, ip: IpAddr) -> io::Result<Socket> {
        let socket = self.tcp(Domain::for_address(SocketAddr::new(ip, 0)))?;
        match ip {
            IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        self.beside_an_app(&socket)?;
        Ok(socket)
    }

    /// For a socket whose other end is in this namespace too. Nothing lies between the two but memory, so it needs little
    /// room, and no congestion control that paces: BBR, where a node has it, sends small packets by a timer, at twice the
    /// processor time of a bulk. Set on a listener, both are inherited.
    fn beside_an_app(&self, socket: &Socket) -> io::Result<()> {
        socket.set_recv_buffer_size(FROM_APP)?;
        let paces = || {
            let control = getsockopt(socket, sockopt::TcpCongestion);
            control.is_ok_and(|name| name.as_encoded_bytes().starts_with(b"bbr"))
        };
        if *self.paces.get_or_init(paces) {
            // Every kernel has it, and every process may choose it; if not, the connection is only slower.
            let _ = setsockopt(socket, sockopt::TcpCongestion, &OsString::from("reno"));
        }
        Ok(())
    }

    /// Whether `ip` is an address of the namespace now: only such a one can be bound without leave for
    /// foreign ones. Takes no port. As `listen(2)` of an app would, it trusts
    /// `net.ipv4.ip_nonlocal_bind`, which is off unless somebody turned it on inside.
    pub fn has_address(&self, ip: IpAddr) -> io::Result<bool> {
        let domain = Domain::for_address(SocketAddr::new(ip, 0));
        let socket = self.enter(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)))??;
        match bind_no_port(&socket, ip) {
            Ok(()) => Ok(!ip.is_unspecified()),
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Listens on `port` of all addresses, IPv4 and IPv6 in one socket; on IPv4 alone in a
    /// namespace without IPv6.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        if self.options.ipv6 {
            match self.listen_on((Ipv6Addr::UNSPECIFIED, port).into()) {
                Err(error) if is_no_ipv6(&error) => {}
                done => return done,
            }
        }
        self.listen_on((Ipv4Addr::UNSPECIFIED, port).into())
    }

    /// Listens on exactly `address`.
    pub fn listen_on(&self, address: SocketAddr) -> io::Result<TcpListener> {
        // Keepalive, NODELAY and the mark are inherited by accepted sockets: set once here, they
        // cost no system call per connection.
        let socket = self.tcp(Domain::for_address(address))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(self.options.reuse_port)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if address.port() == ports::OUTBOUND {
            self.beside_an_app(&socket)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    /// A UDP socket bound to `address`.
    pub fn udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.enter(|| {
            Socket::new(
                Domain::for_address(address),
                Type::DGRAM.nonblocking(),
                Some(Protocol::UDP),
            )
        })??;
        socket.set_mark(self.options.mark)?;
        if address.port() != 0 {
            socket.set_reuse_port(self.options.reuse_port)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// A UDP socket that takes what the pod's packet rules send to it, whomever it was for, and says for whom.
    pub(crate) fn udp_captured(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.datagrams(address, self.options.mark)?;
        match address {
            SocketAddr::V4(_) => {
                socket.set_ip_transparent_v4(true)?;
                setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
            }
            SocketAddr::V6(_) => {
                socket.set_ip_transparent_v6(true)?;
                setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
            }
        }
        // The beginnings of all flows of the pod come here; if it cannot be had, more of a burst is lost.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &DATAGRAMS);
        socket.set_reuse_port(self.options.reuse_port)?;
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// A UDP socket from an address that may be somebody else's.
    pub(crate) fn udp_between(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        mark: u32,
    ) -> io::Result<UdpSocket> {
        let socket = self.datagrams(from, mark)?;
        match from {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        // Others may speak from there to others.
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect(&to.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// A UDP socket from an address of the pod, and any port.
    pub(crate) fn udp_to(
        &self,
        own: Option<IpAddr>,
        to: SocketAddr,
        mark: u32,
    ) -> io::Result<UdpSocket> {
        let socket = self.datagrams(to, mark)?;
        if let Some(own) = own {
            socket.bind(&SocketAddr::new(own, 0).into())?;
        }
        socket.connect(&to.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// A socket for messages of ICMP to an address of the pod. It has no mark: rules that know a packet of ours would count it
    /// as one of the connection that it is about.
    pub(crate) fn icmp(&self, to: IpAddr) -> io::Result<Socket> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        self.enter(|| Socket::new(domain, Type::RAW.nonblocking(), Some(protocol)))?
    }

    fn datagrams(&self, family: SocketAddr, mark: u32) -> io::Result<Socket> {
        let socket = self.enter(|| {
            Socket::new(
                Domain::for_address(family),
                Type::DGRAM.nonblocking(),
                Some(Protocol::UDP),
            )
        })??;
        socket.set_mark(mark)?;
        if family.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    }

    /// [`Netns::tcp`] that waits a while for a descriptor: a connection that leaves was taken with the last there was, and
    /// has lost nothing yet.
    async fn tcp_soon(&self, domain: Domain) -> io::Result<Socket> {
        for _ in 0..DESCRIPTOR_TRIES {
            match self.tcp(domain) {
                Err(error) if is_shortage(&error) => tokio::time::sleep(DESCRIPTOR_PAUSE).await,
                done => return done,
            }
        }
        self.tcp(domain)
    }

    fn tcp(&self, domain: Domain) -> io::Result<Socket> {
        let socket =
            self.enter(|| Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)))??;
        socket.set_mark(self.options.mark)?;
        socket.set_tcp_nodelay(true)?;
        if let Some((time, interval, retries)) = self.options.keepalive {
            let keepalive = TcpKeepalive::new()
                .with_time(time)
                .with_interval(interval)
                .with_retries(retries);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        if self.options.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.options.user_timeout)?;
        }
        Ok(socket)
    }
}

impl NetnsId {
    /// What it is known by: device and inode.
    pub(crate) fn numbers(self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// The namespace behind a descriptor.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = nix::sys::stat::fstat(fd)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

impl FromStr for NetnsId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (device, inode) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self {
            device: device.parse()?,
            inode: inode.parse()?,
        })
    }
}

/// Where a connection that was redirected here was going: IPv4 and IPv6, also IPv4 that came in
/// through a dual-stack listener. A connection that nobody redirected was going where it came in.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = unmapped(stream.local_addr()?);
    let socket = socket2::SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    match original {
        Ok(address) => address
            .as_socket()
            .map(unmapped)
            .ok_or_else(|| io::ErrorKind::InvalidData.into()),
        // No connection tracking for it, or none at all in this namespace.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOPROTOOPT)) => {
            Ok(local)
        }
        Err(error) => Err(error),
    }
}

/// `::ffff:10.0.0.1` as the IPv4 address it is.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether an error says that there is no IPv6 here (at all, or on loopback).
pub fn is_no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

async fn begin(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Somebody has this port, or a connection from it to the same place.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)
    )
}

/// No descriptor is left, of ours or of the machine's.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Binds the address but leaves the port to `connect`, which may use the same port for different
/// destinations. Without this the kernel looks for a port that is free for all of them: slow
/// beyond some thousand connections, and an error beyond 28,000.
fn bind_no_port(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(ip, 0).into())
}

/// Brings the thread home, whatever happened inside, a panic included.
struct WayBack(BorrowedFd<'static>);

impl Drop for WayBack {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // Not through the log: its thread may never get to write it.
            let message =
                format!("cannot return to the proxy's own network namespace: {error}; aborting\n");
            let _ = nix::unistd::write(io::stderr(), message.as_bytes());
            std::process::abort();
        }
    }
}

fn home() -> io::Result<BorrowedFd<'static>> {
    static HOME: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home.as_fd());
    }
    // Threads inherit the namespace of the one that spawned them, and visits end before anything
    // else runs: whichever thread comes here first is at home.
    let fd: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net")?.into();
    Ok(HOME.get_or_init(|| fd).as_fd())
}

/// Where the port of a connection under a foreign address is taken from: outside of what a kernel by default gives to
/// clients. The pod's connection tracking may have the client's own connection to the same place; under the same
/// port ours would be taken for it, go where it goes (to us) and cut it, and the client would not even hear of it.
const FOREIGN_PORTS: Range<u16> = 1024..32768;
/// With three quarters of these ports open to one place from one address, one connection in a hundred tries them all.
const PORTS_TRIED: usize = 16;

/// Eight seconds in all, within which those who wait for the connection have patience and still learn the true reason.
const DESCRIPTOR_TRIES: u32 = 400;
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(20);

/// Bytes that an app in the same namespace may have sent and we have not read. There is no distance between the two,
/// so more would not make them faster: left alone, the kernel lets it grow to megabytes, and the app's own buffer with it, and
/// all of that is full when nobody reads at the other end.
const FROM_APP: usize = 256 << 10;

/// Bytes of datagrams that wait in the kernel until we read them.
const DATAGRAMS: usize = 1 << 20;

/// 500 connections at once must not wait for a retransmitted SYN: as much as the kernel's default
/// `somaxconn` allows.
const BACKLOG: i32 = 4096;
