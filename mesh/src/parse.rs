//! The door: why a resource was refused, and the readers of the small values all resources share.

use std::net::IpAddr;
use std::sync::Arc;

use api::workload as wire;
use ipnet::IpNet;

use crate::names::{Interner, NamespacedHost, Network};
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

pub(crate) fn gateway(
    field: &'static str,
    gateway: wire::GatewayAddress,
    names: &mut Interner,
) -> Result<Arc<GatewayAddress>, ParseError> {
    let target = match gateway.destination.ok_or(ParseError::Missing(field))? {
        wire::gateway_address::Destination::Hostname(host) => {
            required(field, &host.namespace)?;
            required(field, &host.hostname)?;
            GatewayTarget::Host(NamespacedHost {
                namespace: names.text(&host.namespace),
                host: names.text(&host.hostname),
            })
        }
        wire::gateway_address::Destination::Address(address) => GatewayTarget::Address(
            network(&address.network, names),
            ip(field, &address.address)?,
        ),
    };
    let hbone_port = port(field, gateway.hbone_mtls_port)?;
    Ok(names.gateway(GatewayAddress { target, hbone_port }))
}

fn network(name: &str, names: &mut Interner) -> Network {
    names.network(name)
}
