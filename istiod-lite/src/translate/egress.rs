//! Whom a workload may call that nobody told the mesh of: what labels and settings say, and how its ztunnel is told.
//!
//! What a workload says itself goes before what its namespace says, and that before the mesh's settings. It travels in an
//! extension of the workload, which a ztunnel of Istio passes over (docs/wire.md "Egress").

use std::str::FromStr;

use api::egress::egress::Mode as Wire;
use api::k8s::labels;
use api::workload::Extension;
use prost::Message as _;
use prost_types::Any;

use super::Labels;

/// What becomes of connections to who is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    #[default]
    Allow,
    /// They pass, and are told of.
    Log,
    /// They are refused.
    Refuse,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "allow" => Ok(Self::Allow),
            "log" => Ok(Self::Log),
            "refuse" => Ok(Self::Refuse),
            other => Err(format!("{other:?} is neither allow, log nor refuse")),
        }
    }
}

/// What a label says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// Nothing.
    #[default]
    Unsaid,
    /// This.
    Said(Mode),
    /// Nobody knows what; who wrote it wanted something else than the default, so they are refused.
    Unreadable(String),
}

impl Egress {
    /// Of a workload, or of a namespace for the workloads in it.
    pub fn read(labels: &Labels) -> Self {
        match labels.get(labels::EGRESS) {
            None => Self::Unsaid,
            Some(text) => match text.parse() {
                Ok(mode) => Self::Said(mode),
                Err(_) => Self::Unreadable(text.clone()),
            },
        }
    }

    /// What is wrong with what is written.
    pub fn fault(&self) -> Option<String> {
        let Self::Unreadable(text) = self else {
            return None;
        };
        Some(format!(
            "label {} says \"{text}\", which is neither allow, log nor refuse, and counts as refuse",
            labels::EGRESS
        ))
    }

    fn mode(&self) -> Option<Mode> {
        match self {
            Self::Unsaid => None,
            Self::Said(mode) => Some(*mode),
            Self::Unreadable(_) => Some(Mode::Refuse),
        }
    }
}

/// What its ztunnel is told of a workload in namespace `name`; nothing where it may call everybody.
///
/// The words are the same for all replicas: proxies keep what replicas have in common once.
pub fn extension(own: &Egress, name: &str, namespace: &Egress, mesh: Mode) -> Option<Extension> {
    let label = labels::EGRESS;
    let (mode, set_by) = if let Some(mode) = own.mode() {
        (mode, format!("the workload's own label {label}"))
    } else if let Some(mode) = namespace.mode() {
        (mode, format!("label {label} of namespace {name}"))
    } else {
        (mesh, "the mesh's settings".to_owned())
    };
    let mode = match mode {
        Mode::Allow => return None,
        Mode::Log => Wire::Log,
        Mode::Refuse => Wire::Refuse,
    };
    let mode = mode.into();
    Some(Extension {
        name: api::EGRESS_EXTENSION.to_owned(),
        config: Some(Any {
            type_url: api::EGRESS_TYPE.to_owned(),
            value: api::egress::Egress { mode, set_by }.encode_to_vec(),
        }),
    })
}
