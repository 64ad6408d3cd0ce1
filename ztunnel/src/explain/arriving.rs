//! What the destination's end would do: which policies apply, which decides, and what would have to change.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Authority, Identity};
use mesh::{Connection, DeniedBy, SourceIdentity, Tunnel, Verdict, Workload};
use serde::Serialize;

use super::conditions::{self, ALLOW, DENY, Said};
use super::{Person, Spoken, View};
use crate::arrival::{self, Misdirected};
use crate::hint::{Hint, Origin};
use crate::report::Failure as _;
use crate::route::OWN_PORTS;
use crate::traffic::Flag;

/// A connection on its way to a workload's own address.
#[derive(Debug, Clone)]
pub(super) struct Arriving {
    pub(super) workload: Arc<Workload>,
    pub(super) at: SocketAddr,
    /// Proven, if it comes by a tunnel or from a pod of the same node.
    pub(super) identity: Option<Identity>,
    pub(super) from: IpAddr,
    pub(super) spoken: Spoken,
}

/// What becomes of it there.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Destination {
    /// The pod is one of this ztunnel's: what is said is what it does.
    here: bool,
    workload: Person,
    address: SocketAddr,
    /// `tunnel` or `plain`
    arrives: &'static str,
    source_identity: Option<String>,
    source_address: IpAddr,
    /// `STRICT` here, or `PERMISSIVE`.
    plain_text: &'static str,
    /// Those that apply.
    policies: Vec<Said>,
    /// Policies that its workload names and nobody has sent.
    missing: Vec<String>,
    verdict: Judgement,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    because: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    /// What would have to change for the opposite.
    to_change: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Judgement {
    Allowed,
    Denied,
    /// It is not for this pod.
    Misdirected,
    /// Nothing of the mesh stands before it.
    Unguarded,
}

impl Destination {
    pub(super) fn of(view: &View<'_>, arriving: &Arriving) -> Self {
        let Arriving {
            workload,
            identity,
            from,
            spoken,
            ..
        } = arriving;
        let (at, misdirected) = arrived(view, arriving);
        let connection = Connection {
            source: identity.as_ref().map(|identity| SourceIdentity {
                trust_domain: identity.trust_domain(),
                namespace: identity.namespace(),
                service_account: identity.service_account(),
            }),
            source_ip: *from,
            destination_ip: at.ip(),
            destination_port: at.port(),
        };
        let applicable = view.snapshot.policies_of(workload);
        let policies = conditions::said(&applicable, &connection);
        let missing = applicable.unknown().map(ToString::to_string).collect();
        let mut it = Self {
            here: (view.is_here)(workload),
            workload: Person::of(workload),
            address: at,
            arrives: if identity.is_some() {
                "tunnel"
            } else {
                "plain"
            },
            source_identity: identity.as_ref().map(ToString::to_string),
            source_address: *from,
            plain_text: plain_text(view, arriving),
            policies,
            missing,
            verdict: Judgement::Allowed,
            by: None,
            because: String::new(),
            flag: None,
            hint: None,
            to_change: Vec::new(),
        };
        match it.unguarded(workload, *spoken) {
            Some(why) => {
                (it.verdict, it.because) = (Judgement::Unguarded, why);
                it.policies.clear();
                if workload.tunnel == Tunnel::Hbone && !spoken.is_carried(workload) {
                    it.to_change.push(OPT_IN.to_owned());
                }
            }
            None => match misdirected {
                Some(why) => {
                    (it.verdict, it.because) = (Judgement::Misdirected, why.to_string());
                    it.refused(Flag::Connect, why.hint());
                }
                None => it.judge(mesh::judge(&applicable, &connection)),
            },
        }
        it
    }

    fn unguarded(&self, workload: &Workload, spoken: Spoken) -> Option<String> {
        if workload.tunnel != Tunnel::Hbone {
            Some("the destination is not in the mesh: no ztunnel stands before it".to_owned())
        } else if workload.native_tunnel {
            Some("the destination takes tunnels itself, and judges them itself".to_owned())
        } else if !spoken.is_carried(workload) {
            Some("the destination has not opted in (label ambit.io/udp): no ztunnel stands before its datagrams".to_owned())
        } else {
            None
        }
    }

    fn refused(&mut self, flag: Flag, hint: Option<Hint>) {
        self.flag = Some(flag.label());
        self.hint = hint.map(Hint::text);
    }

    fn judge(&mut self, verdict: Verdict) {
        let denied = |why: DeniedBy| {
            let by = match &why {
                DeniedBy::Explicit(policy) | DeniedBy::UnknownPolicy(policy) => {
                    Some(policy.clone())
                }
                DeniedBy::NoAllowMatched => None,
            };
            (Judgement::Denied, by, why.to_string(), Some(why))
        };
        let (verdict, by, because, why) = match verdict {
            Verdict::Allowed { by: Some(by) } => {
                let because = format!("allowed by {by}");
                (Judgement::Allowed, Some(by), because, None)
            }
            Verdict::Allowed { by: None } => {
                let because = "no ALLOW policy applies, and no DENY policy matches".to_owned();
                (Judgement::Allowed, None, because, None)
            }
            Verdict::Denied { by } => denied(by),
            // Held for a moment, then denied.
            Verdict::Undecided { missing } => denied(DeniedBy::UnknownPolicy(missing)),
        };
        for said in &mut self.policies {
            said.decides = by.as_deref() == Some(&*said.policy) && !said.dry_run;
        }
        self.verdict = verdict;
        self.because = because;
        self.by = by.map(|by| by.to_string());
        if let Some(why) = &why {
            self.refused(Flag::Deny, Some(Hint::of_denial(why)));
        }
        self.to_change = match &why {
            None => self.to_be_denied(),
            Some(_) => self.to_be_allowed(),
        };
    }

    /// The policies of one action that count.
    fn counting<'a>(&'a self, action: &'a str) -> impl Iterator<Item = &'a Said> {
        let counts = move |said: &&Said| !said.dry_run && said.action == action;
        self.policies.iter().filter(counts)
    }

    fn to_be_allowed(&self) -> Vec<String> {
        let mut all = Vec::new();
        for said in self.counting(DENY).filter(|said| said.matches) {
            all.push(match Origin::of(&said.policy) {
                Origin::AuthorizationPolicy => {
                    format!("{} must not match any more; it does by {}", said.object, said.why())
                }
                Origin::PeerAuthentication => format!(
                    "the caller must come through the mesh (label istio.io/dataplane-mode=ambient), or {} must be PERMISSIVE for port {}",
                    said.object,
                    self.address.port()
                ),
                Origin::WaypointOnly => {
                    "the caller must call the Service, whose waypoint then connects, or label ambit.io/waypoint-only must go".to_owned()
                }
            });
        }
        for name in &self.missing {
            all.push(format!("policy {name} must arrive from the control plane, or the workload must name it no more"));
        }
        let allow: Vec<_> = self.counting(ALLOW).collect();
        if !allow.is_empty() && !allow.iter().any(|said| said.matches) {
            let each = allow
                .iter()
                .map(|said| format!("{}: {}", said.object, said.lacks()));
            all.push(match allow.len() {
                1 => format!(
                    "the ALLOW policy must match, which lacks: {}",
                    each.collect::<String>()
                ),
                _ => format!(
                    "one of the ALLOW policies must match, which lack: {}",
                    each.collect::<Vec<_>>().join("; ")
                ),
            });
        }
        all
    }

    fn to_be_denied(&self) -> Vec<String> {
        let matching: Vec<_> = self.counting(ALLOW).filter(|said| said.matches).collect();
        let allow = match &matching[..] {
            [] => "an ALLOW policy for the destination that does not match: then nobody else may"
                .to_owned(),
            [only] => format!(
                "{} must not match any more; it does by {}",
                only.object,
                only.why()
            ),
            several => {
                let names: Vec<_> = several.iter().map(|said| said.object.as_str()).collect();
                format!("none of these may match any more: {}", names.join(", "))
            }
        };
        vec![allow, "or a DENY policy that matches".to_owned()]
    }
}

/// Whether connections without an identity may come to this port at all, for what PeerAuthentications say.
fn plain_text(view: &View<'_>, arriving: &Arriving) -> &'static str {
    let connection = Connection {
        source: None,
        source_ip: arriving.from,
        destination_ip: arriving.at.ip(),
        destination_port: arriving.at.port(),
    };
    let mut policies = view.snapshot.policies_of(&arriving.workload).known();
    let is_strict = |policy: &&Arc<mesh::Policy>| {
        Origin::of(&policy.key) == Origin::PeerAuthentication && policy.matches(&connection)
    };
    match policies.find(is_strict) {
        Some(_) => "STRICT",
        None => "PERMISSIVE",
    }
}

/// Where in the pod it goes, and whether it is for this pod at all.
fn arrived(view: &View<'_>, arriving: &Arriving) -> (SocketAddr, Option<Misdirected>) {
    let Arriving {
        workload,
        at,
        identity,
        spoken,
        ..
    } = arriving;
    if identity.is_none() {
        let port = at.port();
        let why = match spoken {
            Spoken::Tcp if OWN_PORTS.contains(&port) => Some(Misdirected::SelfCall),
            Spoken::Tcp if arrival::takes_tunnels_only(workload, port) => {
                Some(Misdirected::Framed(port))
            }
            _ => None,
        };
        return (*at, why);
    }
    match arrival::arrival(view.snapshot, workload, *at, &Authority::Ip(*at)) {
        Ok(arrival) => (SocketAddr::new(at.ip(), arrival.port), None),
        Err(why) => (*at, Some(why)),
    }
}

const OPT_IN: &str = "label ambit.io/udp=enabled of the destination's pod or namespace: then its policies count for datagrams too";
