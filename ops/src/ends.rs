//! Label sets H and T as far as they are the same: what is known of the two ends of a connection or request, as text, in the
//! order of the wire (`docs/wire.md`).

use std::sync::Arc;

use crate::series::Without;

/// In place of what is not known.
pub const UNKNOWN: &str = "unknown";
/// Of a series that stands for all for which there was no room.
pub const OVERFLOW: &str = "overflow";

/// One end. `app` and `version` of the wire are the canonical names again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Side {
    /// Name of the workload's owner.
    pub workload: Arc<str>,
    /// What the workload calls its service.
    pub canonical_service: Arc<str>,
    /// What it calls its version.
    pub canonical_revision: Arc<str>,
    /// The workload's.
    pub namespace: Arc<str>,
    /// Where it runs.
    pub cluster: Arc<str>,
    /// Of its node.
    pub region: Arc<str>,
    /// Of its node.
    pub zone: Arc<str>,
    /// Its identity, if it has shown one.
    pub principal: Arc<str>,
}

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who calls.
    Source,
    /// Who is called.
    Destination,
}

/// The service that is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Towards {
    /// Its host.
    pub host: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// Both ends, and what is said of what is between them.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// Who tells.
    pub reporter: &'a str,
    /// Who calls.
    pub source: &'a Side,
    /// The service that is called.
    pub service: &'a Towards,
    /// Who is called.
    pub destination: &'a Side,
    /// What is spoken.
    pub protocol: &'a str,
    /// How it ended.
    pub flags: &'a str,
    /// Whether the source has proven who it is.
    pub secured: bool,
}

/// Who there is: whether there is a workload of that namespace and name of its owner, a service of that namespace and host.
pub struct Living<'a> {
    /// Of a workload.
    pub workload: &'a dyn Fn(&str, &str) -> bool,
    /// Of a service.
    pub service: &'a dyn Fn(&str, &str) -> bool,
}

impl<'a> Ends<'a> {
    /// All labels, in their order.
    pub fn labels(self) -> impl Iterator<Item = (&'static str, &'a str)> {
        let (source, destination) = (self.source, self.destination);
        let secured = if self.secured { "mutual_tls" } else { UNKNOWN };
        [("reporter", self.reporter)]
            .into_iter()
            .chain(source.as_source())
            .chain(self.service.labels())
            .chain(destination.as_destination())
            .chain([
                ("request_protocol", self.protocol),
                ("response_flags", self.flags),
                ("connection_security_policy", secured),
                ("source_region", &*source.region),
                ("source_zone", &*source.zone),
                ("destination_region", &*destination.region),
                ("destination_zone", &*destination.zone),
            ])
    }
}

impl Side {
    /// All the same.
    pub fn overflow(value: &Arc<str>) -> Self {
        Self {
            workload: value.clone(),
            canonical_service: value.clone(),
            canonical_revision: value.clone(),
            namespace: value.clone(),
            cluster: value.clone(),
            region: value.clone(),
            zone: value.clone(),
            principal: value.clone(),
        }
    }

    /// What is left out is the same for all.
    pub fn leave_out(&mut self, left_out: &Without, end: End) {
        let fields = [
            &mut self.workload,
            &mut self.canonical_service,
            &mut self.canonical_revision,
            &mut self.namespace,
            &mut self.cluster,
            &mut self.region,
            &mut self.zone,
            &mut self.principal,
        ];
        let labels = match end {
            End::Source => &SOURCE,
            End::Destination => &DESTINATION,
        };
        for (field, labels) in fields.into_iter().zip(labels) {
            blank(field, left_out.has_all(labels));
        }
    }

    /// Whether it names a workload that is gone.
    pub fn is_gone(&self, living: &Living<'_>) -> bool {
        is_name(&self.workload) && !(living.workload)(&self.namespace, &self.workload)
    }

    /// The labels of a source, in their order; locality stands elsewhere.
    pub fn as_source(&self) -> [(&'static str, &str); 8] {
        [
            ("source_workload", &self.workload),
            ("source_canonical_service", &self.canonical_service),
            ("source_canonical_revision", &self.canonical_revision),
            ("source_workload_namespace", &self.namespace),
            ("source_principal", &self.principal),
            ("source_app", &self.canonical_service),
            ("source_version", &self.canonical_revision),
            ("source_cluster", &self.cluster),
        ]
    }

    /// Those of a destination.
    pub fn as_destination(&self) -> [(&'static str, &str); 8] {
        [
            ("destination_workload", &self.workload),
            ("destination_canonical_service", &self.canonical_service),
            ("destination_canonical_revision", &self.canonical_revision),
            ("destination_workload_namespace", &self.namespace),
            ("destination_principal", &self.principal),
            ("destination_app", &self.canonical_service),
            ("destination_version", &self.canonical_revision),
            ("destination_cluster", &self.cluster),
        ]
    }
}

impl Towards {
    /// All the same.
    pub fn overflow(value: &Arc<str>) -> Self {
        Self {
            host: value.clone(),
            namespace: value.clone(),
            name: value.clone(),
        }
    }

    /// What is left out is the same for all.
    pub fn leave_out(&mut self, left_out: &Without) {
        let fields = [&mut self.host, &mut self.namespace, &mut self.name];
        for (field, label) in fields.into_iter().zip(SERVICE) {
            blank(field, left_out.has(label));
        }
    }

    /// Whether it names a service that is gone.
    pub fn is_gone(&self, living: &Living<'_>) -> bool {
        is_name(&self.host) && !(living.service)(&self.namespace, &self.host)
    }

    fn labels(&self) -> [(&'static str, &str); 3] {
        let [host, namespace, name] = SERVICE;
        [
            (host, &*self.host),
            (namespace, &*self.namespace),
            (name, &*self.name),
        ]
    }
}

/// A value that names something: neither unknown, nor left out, nor one for all the rest.
fn is_name(value: &str) -> bool {
    !value.is_empty() && value != UNKNOWN && value != OVERFLOW
}

fn blank(value: &mut Arc<str>, is_left_out: bool) {
    if is_left_out {
        *value = "".into();
    }
}

/// The labels of a service, in the order of [`Towards`]' fields.
const SERVICE: [&str; 3] = [
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
];

/// The labels of an end, in the order of [`Side`]'s fields.
type SideLabels = [&'static [&'static str]; 8];

const SOURCE: SideLabels = [
    &["source_workload"],
    &["source_canonical_service", "source_app"],
    &["source_canonical_revision", "source_version"],
    &["source_workload_namespace"],
    &["source_cluster"],
    &["source_region"],
    &["source_zone"],
    &["source_principal"],
];
const DESTINATION: SideLabels = [
    &["destination_workload"],
    &["destination_canonical_service", "destination_app"],
    &["destination_canonical_revision", "destination_version"],
    &["destination_workload_namespace"],
    &["destination_cluster"],
    &["destination_region"],
    &["destination_zone"],
    &["destination_principal"],
];

#[cfg(test)]
mod tests {
    use super::*;

    fn side() -> Side {
        Side {
            workload: "web".into(),
            ..Side::overflow(&"shop".into())
        }
    }

    #[test]
    fn an_end_is_gone_when_it_names_somebody_who_is_not_there() {
        let nobody = |_: &str, _: &str| false;
        let web = |namespace: &str, name: &str| (namespace, name) == ("shop", "web");
        let (empty, full) = (
            Living {
                workload: &nobody,
                service: &nobody,
            },
            Living {
                workload: &web,
                service: &web,
            },
        );
        assert!(side().is_gone(&empty) && !side().is_gone(&full));
        for nobodys in [UNKNOWN, OVERFLOW, ""] {
            let value: Arc<str> = nobodys.into();
            assert!(!Side::overflow(&value).is_gone(&empty), "{nobodys}");
            assert!(!Towards::overflow(&value).is_gone(&empty), "{nobodys}");
        }
        let service = Towards {
            host: "web".into(),
            ..Towards::overflow(&"shop".into())
        };
        assert!(service.is_gone(&empty) && !service.is_gone(&full));
    }

    #[test]
    fn what_two_labels_say_is_left_out_when_both_are() {
        for (left_out, is_left_out) in [
            ("source_app", false),
            ("source_app,source_canonical_service", true),
            ("destination_app,destination_canonical_service", false),
        ] {
            let mut side = side();
            side.leave_out(&Without::parse(left_out).unwrap(), End::Source);
            assert_eq!(side.canonical_service.is_empty(), is_left_out, "{left_out}");
            assert_eq!(&*side.workload, "web");
        }
    }
}
