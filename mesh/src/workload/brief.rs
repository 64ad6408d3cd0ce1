//! A workload before it is a [`Workload`](super::Workload): checked, and nothing of it copied.
//!
//! Of a workload's twenty texts hardly any is new to us. So they stay where they lie, in the
//! encoding or in the decoded message, until it is known which of them must be kept.
//!
//! Two ways lead in: [`Brief::read`] from the encoding, for the usual, and [`Brief::of`] from the
//! decoded message, for everything, and with a reason where it cannot be.

use std::net::IpAddr;
use std::sync::Arc;

use api::workload as wire;

use super::{ApplicationTunnel, GatewayAddress, Template, Tunnel, WorkloadType};
use crate::egress::BriefEgress;
use crate::names::NamespacedHost;
use crate::parse::{self, BriefGateway, ParseError};
use crate::service::Port;
use crate::udp;
use crate::wire::{Content, Cursor, Unusual};

/// What one workload says of itself.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Brief<'a> {
    pub(crate) uid: &'a str,
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) hostname: &'a str,
    pub(crate) healthy: bool,
    pub(crate) host_network: bool,
    pub(crate) locality: BriefLocality<'a>,
    pub(crate) capacity: u32,
    pub(crate) common: Common<'a>,
}

/// Region, zone, subzone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BriefLocality<'a> {
    pub(crate) region: &'a str,
    pub(crate) zone: &'a str,
    pub(crate) subzone: &'a str,
}

/// What it has in common with its replicas: a [`Template`] in brief.
#[derive(Debug, Default, PartialEq, Hash)]
pub(crate) struct Common<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) service_account: &'a str,
    pub(crate) trust_domain: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) network: &'a str,
    pub(crate) canonical_name: &'a str,
    pub(crate) canonical_revision: &'a str,
    pub(crate) workload_name: &'a str,
    pub(crate) workload_type: WorkloadType,
    pub(crate) tunnel: Tunnel,
    pub(crate) native_tunnel: bool,
    pub(crate) waypoint: Option<BriefGateway<'a>>,
    pub(crate) network_gateway: Option<BriefGateway<'a>>,
    pub(crate) application_tunnel: Option<ApplicationTunnel>,
    /// In order.
    pub(crate) services: Vec<Member<'a>>,
    /// Each once.
    pub(crate) authorization_policies: Vec<&'a str>,
    pub(crate) egress: BriefEgress<'a>,
    pub(crate) udp: bool,
}

/// That it is an endpoint of a service.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Member<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) host: &'a str,
    pub(crate) ports: Vec<Port>,
}

impl<'a> Brief<'a> {
    /// From the decoded message.
    pub(crate) fn of(message: &'a wire::Workload) -> Result<Self, ParseError> {
        parse::required("uid", &message.uid)?;
        let addresses = message
            .addresses
            .iter()
            .map(|bytes| parse::ip("addresses", bytes))
            .collect::<Result<_, _>>()?;
        let network_mode: wire::NetworkMode = parse::value("network_mode", message.network_mode)?;
        let status: wire::WorkloadStatus = parse::value("status", message.status)?;
        let locality = message.locality.as_ref();
        Ok(Self {
            uid: &message.uid,
            name: &message.name,
            node: &message.node,
            addresses,
            hostname: &message.hostname,
            healthy: status == wire::WorkloadStatus::Healthy,
            host_network: network_mode == wire::NetworkMode::HostNetwork,
            locality: locality.map_or_else(BriefLocality::default, |found| BriefLocality {
                region: &found.region,
                zone: &found.zone,
                subzone: &found.subzone,
            }),
            capacity: message.capacity.unwrap_or(1),
            common: Common::of(message)?,
        })
    }

    /// From the encoding of an `Address` that holds nothing but a workload.
    pub(crate) fn read_address(encoded: &'a [u8]) -> Result<Self, Unusual> {
        let mut cursor = Cursor::new(encoded);
        match (cursor.field()?, cursor.left()) {
            (Some((1, Content::Bytes(workload))), 0) => Self::read(workload),
            _ => Err(Unusual),
        }
    }

    /// From the encoding.
    pub(crate) fn read(encoded: &'a [u8]) -> Result<Self, Unusual> {
        let mut brief = Self {
            healthy: true,
            ..Self::default()
        };
        let (mut locality, mut capacity) = (None, None);
        let common = &mut brief.common;
        let mut cursor = Cursor::new(encoded);
        while let Some((number, content)) = cursor.field()? {
            match number {
                1 => brief.name = content.text()?,
                2 => common.namespace = content.text()?,
                3 => brief.addresses.push(ip(content)?),
                4 => common.network = content.text()?,
                5 => common.tunnel = value::<wire::TunnelProtocol>(content)?.into(),
                6 => common.trust_domain = content.text()?,
                7 => common.service_account = content.text()?,
                8 => once(&mut common.waypoint, BriefGateway::read(content.bytes()?)?)?,
                9 => brief.node = content.text()?,
                10 => common.canonical_name = content.text()?,
                11 => common.canonical_revision = content.text()?,
                12 => common.workload_type = value::<wire::WorkloadType>(content)?.into(),
                13 => common.workload_name = content.text()?,
                14 => common.native_tunnel = content.number()? != 0,
                16 => add(&mut common.authorization_policies, content.text()?),
                17 => brief.healthy = wire::WorkloadStatus::Healthy == value(content)?,
                18 => common.cluster = content.text()?,
                19 => once(
                    &mut common.network_gateway,
                    BriefGateway::read(content.bytes()?)?,
                )?,
                20 => brief.uid = content.text()?,
                21 => brief.hostname = content.text()?,
                22 => common.services.push(Member::read(content.bytes()?)?),
                23 => once(
                    &mut common.application_tunnel,
                    application_tunnel(content.bytes()?)?,
                )?,
                24 => once(&mut locality, BriefLocality::read(content.bytes()?)?)?,
                25 => brief.host_network = wire::NetworkMode::HostNetwork == value(content)?,
                26 => {
                    let extension = content.bytes()?;
                    if let Some(egress) = BriefEgress::read(extension)? {
                        common.egress = egress;
                    }
                    common.udp |= udp::says(extension)?;
                }
                27 => once(&mut capacity, wrapped(content.bytes()?)?)?,
                _ => {}
            }
        }
        if brief.uid.is_empty() || !common.put_in_order() {
            return Err(Unusual);
        }
        brief.locality = locality.unwrap_or_default();
        brief.capacity = capacity.unwrap_or(1);
        Ok(brief)
    }
}

impl<'a> Common<'a> {
    fn of(message: &'a wire::Workload) -> Result<Self, ParseError> {
        let gateway = |field, found: &'a Option<_>| {
            found
                .as_ref()
                .map(|found| BriefGateway::of(field, found))
                .transpose()
        };
        let mut common = Self {
            namespace: &message.namespace,
            service_account: &message.service_account,
            trust_domain: &message.trust_domain,
            cluster: &message.cluster_id,
            network: &message.network,
            canonical_name: &message.canonical_name,
            canonical_revision: &message.canonical_revision,
            workload_name: &message.workload_name,
            workload_type: WorkloadType::from(parse::value::<wire::WorkloadType>(
                "workload_type",
                message.workload_type,
            )?),
            tunnel: Tunnel::from(parse::value::<wire::TunnelProtocol>(
                "tunnel_protocol",
                message.tunnel_protocol,
            )?),
            native_tunnel: message.native_tunnel,
            waypoint: gateway("waypoint", &message.waypoint)?,
            network_gateway: gateway("network_gateway", &message.network_gateway)?,
            application_tunnel: message
                .application_tunnel
                .map(ApplicationTunnel::parse)
                .transpose()?,
            services: message
                .services
                .iter()
                .map(Member::of)
                .collect::<Result<_, _>>()?,
            authorization_policies: Vec::new(),
            egress: BriefEgress::of(&message.extensions),
            udp: udp::is_said(&message.extensions),
        };
        for name in &message.authorization_policies {
            add(&mut common.authorization_policies, name);
        }
        common.put_in_order(); // keys of a map: each once
        Ok(common)
    }

    /// Returns whether each service is there once.
    fn put_in_order(&mut self) -> bool {
        let key = |member: &Member<'a>| (member.namespace, member.host);
        self.services.sort_unstable_by_key(key);
        self.services
            .windows(2)
            .all(|pair| key(&pair[0]) != key(&pair[1]))
    }

    /// Whether a template says the same.
    pub(crate) fn is(&self, template: &Template) -> bool {
        // In this order: what differs most often between templates comes first.
        let texts = [
            (self.workload_name, &template.workload_name),
            (self.namespace, &template.namespace),
            (self.service_account, &template.service_account),
            (self.canonical_name, &template.canonical_name),
            (self.canonical_revision, &template.canonical_revision),
            (self.cluster, &template.cluster),
            (self.trust_domain, &template.trust_domain),
            (self.network, template.network.as_arc()),
        ];
        let gateway = |brief: &Option<BriefGateway<'_>>, held: &Option<Arc<GatewayAddress>>| match (
            brief, held,
        ) {
            (Some(brief), Some(held)) => brief.is(held),
            (None, None) => true,
            _ => false,
        };
        texts.iter().all(|(text, held)| *text == &***held)
            && self.workload_type == template.workload_type
            && self.tunnel == template.tunnel
            && self.native_tunnel == template.native_tunnel
            && self.application_tunnel == template.application_tunnel
            && gateway(&self.waypoint, &template.waypoint)
            && gateway(&self.network_gateway, &template.network_gateway)
            && self.services.len() == template.services.len()
            && self
                .services
                .iter()
                .zip(&template.services)
                .all(|(brief, held)| {
                    *brief.host == *held.service.host
                        && *brief.namespace == *held.service.namespace
                        && *brief.ports == *held.ports
                })
            && self.authorization_policies.len() == template.authorization_policies.len()
            && self
                .authorization_policies
                .iter()
                .zip(&template.authorization_policies)
                .all(|(brief, held)| **brief == **held)
            && self.egress.is(&template.egress)
            && self.udp == template.udp
    }
}

impl<'a> Member<'a> {
    fn of((key, list): (&'a String, &wire::PortList)) -> Result<Self, ParseError> {
        let (namespace, host) =
            NamespacedHost::split(key).ok_or(ParseError::Missing("services: namespace/host"))?;
        let ports = list.ports.iter().copied().map(Port::parse);
        Ok(Self {
            namespace,
            host,
            ports: ports.collect::<Result<_, _>>()?,
        })
    }

    /// An entry of the map.
    fn read(encoded: &'a [u8]) -> Result<Self, Unusual> {
        let (mut key, mut list) = ("", None);
        let mut cursor = Cursor::new(encoded);
        while let Some((number, content)) = cursor.field()? {
            match number {
                1 => key = content.text()?,
                2 => once(&mut list, ports(content.bytes()?)?)?,
                _ => {}
            }
        }
        let (namespace, host) = NamespacedHost::split(key).ok_or(Unusual)?;
        Ok(Self {
            namespace,
            host,
            ports: list.unwrap_or_default(),
        })
    }
}

impl<'a> BriefLocality<'a> {
    fn read(encoded: &'a [u8]) -> Result<Self, Unusual> {
        let mut found = Self::default();
        let mut cursor = Cursor::new(encoded);
        while let Some((number, content)) = cursor.field()? {
            match number {
                1 => found.region = content.text()?,
                2 => found.zone = content.text()?,
                3 => found.subzone = content.text()?,
                _ => {}
            }
        }
        Ok(found)
    }
}

fn ports(encoded: &[u8]) -> Result<Vec<Port>, Unusual> {
    let mut ports = Vec::new();
    let mut cursor = Cursor::new(encoded);
    while let Some((number, content)) = cursor.field()? {
        if number == 1 {
            ports.push(port(content.bytes()?)?);
        }
    }
    Ok(ports)
}

fn port(encoded: &[u8]) -> Result<Port, Unusual> {
    let mut found = wire::Port::default();
    let mut cursor = Cursor::new(encoded);
    while let Some((number, content)) = cursor.field()? {
        match number {
            1 => found.service_port = content.number()? as u32, // as protobuf has it
            2 => found.target_port = content.number()? as u32,
            3 => found.app_protocol = content.number()? as i32,
            _ => {}
        }
    }
    Port::parse(found).map_err(|_| Unusual)
}

fn application_tunnel(encoded: &[u8]) -> Result<ApplicationTunnel, Unusual> {
    let mut found = wire::ApplicationTunnel::default();
    let mut cursor = Cursor::new(encoded);
    while let Some((number, content)) = cursor.field()? {
        match number {
            1 => found.protocol = content.number()? as i32,
            2 => found.port = content.number()? as u32,
            _ => {}
        }
    }
    ApplicationTunnel::parse(found).map_err(|_| Unusual)
}

/// A `UInt32Value`.
fn wrapped(encoded: &[u8]) -> Result<u32, Unusual> {
    let mut value = 0;
    let mut cursor = Cursor::new(encoded);
    while let Some((number, content)) = cursor.field()? {
        if number == 1 {
            value = content.number()? as u32;
        }
    }
    Ok(value)
}

fn ip(content: Content<'_>) -> Result<IpAddr, Unusual> {
    parse::ip("addresses", content.bytes()?).map_err(|_| Unusual)
}

fn value<T: TryFrom<i32>>(content: Content<'_>) -> Result<T, Unusual> {
    T::try_from(content.number()? as i32).map_err(|_| Unusual)
}

/// A message that comes twice is merged, which is left to the generated decoder.
fn once<T>(place: &mut Option<T>, found: T) -> Result<(), Unusual> {
    match place.replace(found) {
        None => Ok(()),
        Some(_) => Err(Unusual),
    }
}

fn add<'a>(names: &mut Vec<&'a str>, name: &'a str) {
    if !names.contains(&name) {
        names.push(name);
    }
}

#[cfg(test)]
mod tests;
