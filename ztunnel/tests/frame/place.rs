//! The lab's network namespaces, as the proxy is given them.

use std::os::fd::OwnedFd;

use lab::Place;
use ztunnel::netns::{Netns, Options};

/// A namespace with its loopback up.
pub(crate) fn place() -> Place {
    Place::new("frame").unwrap()
}

/// What the node agent hands over of a place.
pub(crate) trait HandedOver {
    fn fd(&self) -> OwnedFd;

    /// As the proxy sees it.
    fn netns(&self) -> Netns {
        Netns::new(self.fd(), options()).unwrap()
    }
}

impl HandedOver for Place {
    fn fd(&self) -> OwnedFd {
        self.open().unwrap().into()
    }
}

pub(crate) fn options() -> Options {
    Options {
        mark: 0x539,
        keepalive: None,
        user_timeout: None,
        reuse_port: true,
        ipv6: true,
    }
}

/// What an application sends to port 80 goes to the proxy.
pub(crate) const REDIRECT: &str = "table inet t {
  chain output { type nat hook output priority -100
    meta mark & 0xfff != 0x539 tcp dport 80 redirect to :15001
  }
}";
