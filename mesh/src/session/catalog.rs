//! What a server has to send: its catalog, which sessions ask and never change.

use std::sync::Arc;

use api::WAYPOINT_TYPE;
use bytes::Bytes;

use crate::resource::key_of;

/// A resource, encoded once and shared by every stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Resource name.
    pub name: Arc<str>,
    /// Version: a function of the content.
    pub version: Arc<str>,
    /// The encoded message.
    pub encoded: Bytes,
    /// `network/ip` for every address it has; for a service its host, in whichever namespace.
    pub aliases: Box<[Arc<str>]>,
    /// For a workload: its node.
    pub node: Option<Arc<str>>,
    /// For a workload: the resource names of the services it is an endpoint of. For a waypoint's resource:
    /// those of the services that it names.
    pub services: Box<[Arc<str>]>,
}

/// Everything there is to send.
///
/// The provided methods search everything, which is right for tests; a catalog that serves
/// on-demand streams at size has indexes.
pub trait Catalog {
    /// Version of the whole, for `system_version_info`.
    fn version(&self) -> &str;

    /// Whether the type is served.
    fn serves(&self, type_url: &str) -> bool;

    /// Every resource of a type.
    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a>;

    /// The resource of that name.
    fn named(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>>;

    /// The resources that have an alias.
    fn aliased(&self, type_url: &str, alias: &str) -> Vec<&Arc<Entry>> {
        self.all(type_url)
            .filter(|entry| entry.aliases.iter().any(|held| **held == *alias))
            .collect()
    }

    /// The endpoints of a service, given by resource name.
    fn members(&self, type_url: &str, service: &str) -> Vec<&Arc<Entry>> {
        self.all(type_url)
            .filter(|entry| entry.services.iter().any(|held| **held == *service))
            .collect()
    }

    /// The resources of a gateway, given as `namespace/name`: those of type [`WAYPOINT_TYPE`] whose
    /// names begin so.
    fn of_gateway<'a>(&'a self, gateway: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        let gateway = gateway.to_owned();
        let all = self.all(WAYPOINT_TYPE);
        Box::new(all.filter(move |entry| key_of(&entry.name, &gateway).is_some()))
    }

    /// The workloads of a node.
    fn on_node(&self, type_url: &str, node: &str) -> Vec<&Arc<Entry>> {
        self.all(type_url)
            .filter(|entry| entry.node.as_deref() == Some(node))
            .collect()
    }
}
