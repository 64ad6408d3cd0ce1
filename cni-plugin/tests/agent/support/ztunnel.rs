//! A ztunnel as the agent sees it: says hello, acknowledges, keeps what it was sent.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};

use api::zds::workload_request::Payload;
use api::zds::{Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_response};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg,
    send, shutdown, socket,
};
use prost::Message;

/// One message of the agent.
#[derive(Clone, Debug)]
pub struct Heard {
    pub bytes: Vec<u8>,
    pub payload: Payload,
    /// Inodes of the network namespaces that came along.
    pub namespaces: Vec<u64>,
}

impl Heard {
    /// For comparisons: the kind of the message and the uid in it.
    pub fn say(&self) -> String {
        match &self.payload {
            Payload::Add(add) => format!("add {}", add.uid),
            Payload::Keep(keep) => format!("keep {}", keep.uid),
            Payload::Del(del) => format!("del {}", del.uid),
            Payload::SnapshotSent(_) => "snapshot sent".into(),
        }
    }
}

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Ack,
    /// With fields that this version does not know, in the message and around it.
    LaterAck,
    Refuse(&'static str),
    Silence,
    Garbage,
}

/// A field that nobody knows yet, of five bytes: number 14, "new".
pub const LATER: &[u8] = &[(14 << 3) | 2, 3, b'n', b'e', b'w'];

/// Decides how each message is answered.
type Judge = Box<dyn FnMut(&Heard) -> Answer + Send>;

/// A connected ztunnel; it leaves with this value.
pub struct Ztunnel {
    socket: Arc<OwnedFd>,
    heard: Receiver<Heard>,
    judge: Arc<Mutex<Judge>>,
}

impl Ztunnel {
    /// Connects and says hello.
    pub fn connect(path: &Path) -> Self {
        Self::saying(
            path,
            &ZdsHello {
                version: Version::V1.into(),
            }
            .encode_to_vec(),
        )
    }

    pub fn saying(path: &Path, hello: &[u8]) -> Self {
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        if !hello.is_empty() {
            send(socket.as_raw_fd(), hello, MsgFlags::MSG_NOSIGNAL).unwrap();
        }
        let socket = Arc::new(socket);
        let judge: Arc<Mutex<Judge>> = Arc::new(Mutex::new(Box::new(|_| Answer::Ack)));
        let (told, heard) = channel();
        let (reader, answers) = (socket.clone(), judge.clone());
        std::thread::spawn(move || {
            while let Some(message) = receive(&reader) {
                let answer = (answers.lock().unwrap())(&message);
                let _ = told.send(message);
                if let Some(bytes) = answer.bytes() {
                    let _ = send(reader.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL);
                }
            }
        });
        Self {
            socket,
            heard,
            judge,
        }
    }

    /// From now on, answers are `judge`'s.
    pub fn answering(&self, judge: impl FnMut(&Heard) -> Answer + Send + 'static) {
        *self.judge.lock().unwrap() = Box::new(judge);
    }

    /// Says something unasked.
    pub fn speak(&self, bytes: &[u8]) {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// The next message.
    pub fn next(&self) -> Heard {
        self.heard
            .recv_timeout(super::PATIENCE)
            .expect("the agent says something")
    }

    /// The next messages, up to and with SnapshotSent.
    pub fn snapshot(&self) -> Vec<Heard> {
        let mut snapshot = Vec::new();
        loop {
            snapshot.push(self.next());
            if matches!(snapshot.last().unwrap().payload, Payload::SnapshotSent(_)) {
                return snapshot;
            }
        }
    }

    /// Waits until the agent hangs up; what it says before is dropped.
    pub fn hung_up(&self) {
        while self
            .heard
            .recv_timeout(super::PATIENCE)
            .map_err(|e| assert_eq!(e, RecvTimeoutError::Disconnected))
            .is_ok()
        {}
    }

    /// Everything heard by now and not asked for yet.
    pub fn so_far(&self) -> Vec<String> {
        self.heard.try_iter().map(|heard| heard.say()).collect()
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

impl Answer {
    fn bytes(self) -> Option<Vec<u8>> {
        let error = match self {
            Answer::Ack => String::new(),
            Answer::LaterAck => return Some([&[0x0a, 5][..], LATER, LATER].concat()),
            Answer::Refuse(why) => why.to_owned(),
            Answer::Silence => return None,
            Answer::Garbage => return Some(vec![0xff; 8]),
        };
        let payload = Some(workload_response::Payload::Ack(Ack { error }));
        Some(WorkloadResponse { payload }.encode_to_vec())
    }
}

fn receive(socket: &OwnedFd) -> Option<Heard> {
    let mut buffer = [0; 2048];
    let mut space = nix::cmsg_space!([i32; 4]);
    let (bytes, fds) = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .ok()?;
        let fds: Vec<i32> = got
            .cmsgs()
            .unwrap()
            .flat_map(|message| match message {
                ControlMessageOwned::ScmRights(fds) => fds,
                _ => Vec::new(),
            })
            .collect();
        (got.bytes, fds)
    };
    if bytes == 0 {
        return None;
    }
    assert!(bytes <= 1024, "a message of {bytes} bytes");
    let namespaces = fds.into_iter().map(inode_and_close).collect();
    let bytes = buffer[..bytes].to_vec();
    let payload = WorkloadRequest::decode(&*bytes).unwrap().payload.unwrap();
    Some(Heard {
        bytes,
        payload,
        namespaces,
    })
}

#[allow(unsafe_code)]
fn inode_and_close(fd: i32) -> u64 {
    // SAFETY: the kernel has just installed this descriptor for us; nobody else knows it.
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.metadata().unwrap().ino()
}

/// Reads a golden transcript line's hex, with `<36 bytes: uid-of-NAME>` as 36 bytes of that uid.
pub fn golden_bytes(hex: &str, uid: impl Fn(&str) -> String) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = hex;
    while let Some((before, after)) = rest.split_once('<') {
        bytes.extend(from_hex(before));
        let (placeholder, after) = after.split_once('>').unwrap();
        let name = placeholder.strip_prefix("36 bytes: uid-of-").unwrap();
        let uid = uid(name);
        assert_eq!(uid.len(), 36);
        bytes.extend(uid.bytes());
        rest = after;
    }
    bytes.extend(from_hex(rest));
    bytes
}

fn from_hex(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
