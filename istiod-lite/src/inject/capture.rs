//! What a pod's annotations say of capture, read as the node agent reads them, as arguments of `ambit-cni-agent capture up`.
//!
//! What cannot be read is no exemption, and no pod either: one that is captured otherwise than was meant is worse.

use api::k8s::idle::{IDLE_ANNOTATIONS, IdleAnnotation};
use api::k8s::labels;
use ipnet::IpNet;
use serde_json::Value;

use super::{Refused, annotation, label};

/// What is captured, and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Capture {
    exempt_inbound: Vec<u16>,
    exempt_outbound: Vec<u16>,
    exempt_ranges: Vec<IpNet>,
    /// Where it is said: nothing is captured but what goes there.
    only: Option<Vec<IpNet>>,
    inbound: bool,
    /// Whether names are asked of the proxy, if the pod says so.
    dns: Option<bool>,
    udp: bool,
}

/// What the annotations of `pod` say; those that keep connections from capture only where that is theirs to say.
pub(super) fn read(pod: &Value, exclusions: bool) -> Result<Capture, Refused> {
    let rerouted = labels::REROUTE_VIRTUAL_INTERFACES;
    if annotation(pod, rerouted).is_some_and(|text| !text.trim().is_empty()) {
        let why = "what is behind interfaces of the pod is captured in ambient mode only";
        return Err(unreadable(rerouted, why));
    }
    let mut capture = Capture {
        exempt_inbound: Vec::new(),
        exempt_outbound: Vec::new(),
        exempt_ranges: Vec::new(),
        only: None,
        inbound: annotation(pod, labels::BYPASS_INBOUND_CAPTURE) != Some("true"),
        dns: annotation(pod, labels::DNS_CAPTURE).and_then(|text| text.parse().ok()),
        // What a namespace's label says is not known here; the pod's own goes before it anyway.
        udp: label(pod, labels::UDP) == Some(labels::UDP_ENABLED),
    };
    if exclusions {
        capture.exempt_inbound = list(pod, labels::EXCLUDE_INBOUND_PORTS, port)?;
        capture.exempt_outbound = list(pod, labels::EXCLUDE_OUTBOUND_PORTS, port)?;
        capture.exempt_ranges = list(pod, labels::EXCLUDE_OUTBOUND_RANGES, range)?;
        let only = labels::INCLUDE_OUTBOUND_RANGES;
        let everywhere = |text: &str| text.split(',').any(|part| part.trim() == "*");
        if annotation(pod, only).is_some_and(|text| !everywhere(text)) {
            capture.only = Some(list(pod, only, range)?);
        }
    }
    Ok(capture)
}

/// What the author of `pod` may believe in, and is not so.
pub(super) fn idle(pod: &Value) -> impl Iterator<Item = String> {
    let misleads = move |it: &&IdleAnnotation| {
        annotation(pod, it.name).is_some_and(|value| it.misleads(value))
    };
    let idle = IDLE_ANNOTATIONS.iter().filter(misleads);
    idle.map(|it| format!("annotation {} has no effect: {}", it.name, it.instead))
}

impl Capture {
    /// Whether names are asked of the proxy, where `chart` is what holds for pods that say nothing.
    pub(super) fn dns(&self, chart: bool) -> bool {
        self.dns.unwrap_or(chart)
    }

    /// Arguments; `doors` are the ports of the proxy itself, which stand open.
    pub(super) fn arguments(&self, doors: &[u16], chart_dns: bool) -> Vec<String> {
        let mut arguments = vec!["capture".to_owned(), "up".to_owned()];
        let mut say = |flag: &str, values: String| arguments.push(format!("--{flag}={values}"));
        let inbound = doors.iter().chain(&self.exempt_inbound);
        say("exempt-inbound-ports", joined(inbound));
        if !self.exempt_outbound.is_empty() {
            say("exempt-outbound-ports", joined(&self.exempt_outbound));
        }
        if !self.exempt_ranges.is_empty() {
            say("exempt-outbound-ranges", joined(&self.exempt_ranges));
        }
        if let Some(only) = &self.only {
            say("only-outbound-ranges", joined(only));
        }
        if !self.inbound {
            say("inbound", "false".to_owned());
        }
        if !self.dns(chart_dns) {
            say("dns", "false".to_owned());
        }
        if self.udp {
            say("udp", "true".to_owned());
        }
        arguments
    }
}

fn joined<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = all.into_iter().map(|it| it.to_string()).collect();
    texts.join(",")
}

/// The parts of an annotation, which is a list with commas.
fn list<T>(
    pod: &Value,
    name: &'static str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Refused> {
    let listed = annotation(pod, name).unwrap_or_default().split(',');
    let mut parts = Vec::new();
    for part in listed.map(str::trim).filter(|part| !part.is_empty()) {
        if parts.len() == PARTS {
            return Err(unreadable(name, &format!("more than {PARTS} entries")));
        }
        parts.push(read(part).map_err(|why| unreadable(name, &why))?);
    }
    Ok(parts)
}

fn port(text: &str) -> Result<u16, String> {
    let read = text.parse().ok().filter(|port| *port != 0);
    read.ok_or_else(|| format!("{text:?} is no port"))
}

/// A range of addresses; an address alone is one of itself.
fn range(text: &str) -> Result<IpNet, String> {
    let whole = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    let read = text.parse().ok().or_else(whole);
    read.ok_or_else(|| format!("{text:?} is no range of addresses (10.0.0.0/8)"))
}

fn unreadable(name: &'static str, why: &str) -> Refused {
    let why = why.to_owned();
    Refused::Annotation { name, why }
}

/// As the node agent has it: each becomes a rule.
const PARTS: usize = 100;
