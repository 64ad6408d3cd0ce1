//! The door: why a resource was refused, and the readers of the small values all resources share.

use std::net::IpAddr;
use std::sync::Arc;

use api::workload as wire;
use ipnet::IpNet;

use crate::names::{Interner, NamespacedHost};
use crate::wire::{Cursor, Unusual};
use crate::workload::{GatewayAddress, GatewayTarget};

/// A resource that was refused; the last good version of that name, if any, stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Resource name, as the control plane gave it.
    pub name: Arc<str>,
    /// What was wrong.
    pub reason: ParseError,
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// What is wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The bytes are not the message they claim to be.
    #[error("undecodable: {0}")]
    Undecodable(String),
    /// The resource is of a type nobody asked for.
    #[error("of type {0}, which was not asked for")]
    ForeignType(String),
    /// A field without which the resource means nothing.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// An IP must have 4 or 16 bytes.
    #[error("field {field}: an address of {length} bytes")]
    AddressLength {
        /// Where.
        field: &'static str,
        /// Number of bytes found.
        length: usize,
    },
    /// A prefix longer than the address.
    #[error("field {field}: prefix length {length} is too long")]
    PrefixLength {
        /// Where.
        field: &'static str,
        /// Length found, in bits.
        length: u32,
    },
    /// A port must fit 16 bits.
    #[error("field {field}: {value} is not a port")]
    Port {
        /// Where.
        field: &'static str,
        /// Number found.
        value: u32,
    },
    /// A value this version does not know; guessing its meaning would be worse than the last good version.
    #[error("field {field}: unknown value {value}")]
    UnknownValue {
        /// Where.
        field: &'static str,
        /// Number found.
        value: i32,
    },
    /// A string match without a kind.
    #[error("field {0}: a match of no kind")]
    EmptyMatch(&'static str),
    /// The resource name and the content disagree.
    #[error("content is named {0}")]
    NameMismatch(String),
    /// It can be read, and what it says cannot be done.
    #[error("{0}")]
    Meaningless(String),
}

pub(crate) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ParseError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6)),
        Err(_) => Err(ParseError::AddressLength {
            field,
            length: bytes.len(),
        }),
    }
}

/// A network in canonical form: host bits are dropped.
pub(crate) fn net(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, ParseError> {
    let too_long = ParseError::PrefixLength { field, length };
    let prefix = u8::try_from(length).map_err(|_| too_long.clone())?;
    IpNet::new(ip(field, bytes)?, prefix)
        .map(|net| net.trunc())
        .map_err(|_| too_long)
}

pub(crate) fn port(field: &'static str, value: u32) -> Result<u16, ParseError> {
    u16::try_from(value).map_err(|_| ParseError::Port { field, value })
}

pub(crate) fn value<T: TryFrom<i32>>(field: &'static str, value: i32) -> Result<T, ParseError> {
    T::try_from(value).map_err(|_| ParseError::UnknownValue { field, value })
}

pub(crate) fn required(field: &'static str, text: &str) -> Result<(), ParseError> {
    if text.is_empty() {
        Err(ParseError::Missing(field))
    } else {
        Ok(())
    }
}

/// A gateway's address as it stands in a message, nothing of it copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BriefGateway<'a> {
    target: BriefTarget<'a>,
    hbone_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum BriefTarget<'a> {
    /// Namespace and host.
    Host(&'a str, &'a str),
    /// Network and address.
    Address(&'a str, IpAddr),
}

impl<'a> BriefGateway<'a> {
    pub(crate) fn of(
        field: &'static str,
        gateway: &'a wire::GatewayAddress,
    ) -> Result<Self, ParseError> {
        let destination = gateway.destination.as_ref();
        let target = match destination.ok_or(ParseError::Missing(field))? {
            wire::gateway_address::Destination::Hostname(host) => {
                required(field, &host.namespace)?;
                required(field, &host.hostname)?;
                BriefTarget::Host(&host.namespace, &host.hostname)
            }
            wire::gateway_address::Destination::Address(address) => {
                BriefTarget::Address(&address.network, ip(field, &address.address)?)
            }
        };
        Ok(Self {
            target,
            hbone_port: port(field, gateway.hbone_mtls_port)?,
        })
    }

    /// From the encoding.
    pub(crate) fn read(encoded: &'a [u8]) -> Result<Self, Unusual> {
        let (mut target, mut hbone_port) = (None, 0);
        let mut cursor = Cursor::new(encoded);
        while let Some((number, content)) = cursor.field()? {
            match number {
                // Of two the second counts, or is merged with the first.
                1 | 2 if target.is_some() => return Err(Unusual),
                1 => target = Some(BriefTarget::host(content.bytes()?)?),
                2 => target = Some(BriefTarget::address(content.bytes()?)?),
                3 => hbone_port = content.number()? as u32, // as protobuf has it
                _ => {}
            }
        }
        Ok(Self {
            target: target.ok_or(Unusual)?,
            hbone_port: u16::try_from(hbone_port).map_err(|_| Unusual)?,
        })
    }

    /// Whether it is that one.
    pub(crate) fn is(&self, held: &GatewayAddress) -> bool {
        self.hbone_port == held.hbone_port
            && match (&self.target, &held.target) {
                (BriefTarget::Host(namespace, host), GatewayTarget::Host(held)) => {
                    *host == &*held.host && *namespace == &*held.namespace
                }
                (BriefTarget::Address(network, ip), GatewayTarget::Address(held, held_ip)) => {
                    ip == held_ip && *network == held.as_str()
                }
                _ => false,
            }
    }

    /// To be kept.
    pub(crate) fn keep(&self, names: &mut Interner) -> GatewayAddress {
        let target = match self.target {
            BriefTarget::Host(namespace, host) => GatewayTarget::Host(NamespacedHost {
                namespace: names.text(namespace),
                host: names.text(host),
            }),
            BriefTarget::Address(network, ip) => GatewayTarget::Address(names.network(network), ip),
        };
        GatewayAddress {
            target,
            hbone_port: self.hbone_port,
        }
    }
}

impl<'a> BriefTarget<'a> {
    fn host(encoded: &'a [u8]) -> Result<Self, Unusual> {
        let (mut namespace, mut host) = ("", "");
        let mut cursor = Cursor::new(encoded);
        while let Some((number, content)) = cursor.field()? {
            match number {
                1 => namespace = content.text()?,
                2 => host = content.text()?,
                _ => {}
            }
        }
        if namespace.is_empty() || host.is_empty() {
            return Err(Unusual);
        }
        Ok(Self::Host(namespace, host))
    }

    fn address(encoded: &'a [u8]) -> Result<Self, Unusual> {
        let (mut network, mut address) = ("", &[][..]);
        let mut cursor = Cursor::new(encoded);
        while let Some((number, content)) = cursor.field()? {
            match number {
                1 => network = content.text()?,
                2 => address = content.bytes()?,
                3 => {
                    content.number()?; // a gateway is one address
                }
                _ => {}
            }
        }
        let ip = ip("gateway", address).map_err(|_| Unusual)?;
        Ok(Self::Address(network, ip))
    }
}
