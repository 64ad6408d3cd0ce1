//! A request that can be asked about.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use waypoint::asked::{self, Asked};
use waypoint::client::Client;

/// `GET http://web.shop/`, of nobody in particular, unless said otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) scheme: &'static str,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) port: u16,
    pub(crate) client: Client,
}

impl Request {
    pub(crate) fn to(path: &str) -> Self {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (path, None),
        };
        Self {
            method: Method::GET,
            scheme: "http",
            host: "web.shop".into(),
            path: path.into(),
            query,
            headers: HeaderMap::new(),
            port: 80,
            client: Client {
                identity: None,
                address: ([10, 0, 0, 1], 1).into(),
                peer: [10, 0, 0, 1].into(),
                workload: None,
                said: Default::default(),
            },
        }
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    pub(crate) fn method(mut self, method: &str) -> Self {
        self.method = method.parse().unwrap();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.headers
            .append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub(crate) fn of_namespace(mut self, namespace: &str) -> Self {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/app");
        self.client.identity = Some(identity.parse().unwrap());
        self
    }

    pub(crate) fn of_workload(mut self, uid: &str) -> Self {
        let (_, mut writer) = mesh::Mesh::new();
        let mut update = mesh::Update::default();
        update.set_workload(api::workload::Workload {
            uid: uid.to_owned(),
            addresses: vec![vec![10, 0, 0, 1].into()],
            ..Default::default()
        });
        writer.apply(update);
        let mesh = writer.mesh().load_full();
        let network = mesh::Network::new("");
        self.client.workload = mesh.workload_at(&network, self.client.peer).cloned();
        assert!(self.client.workload.is_some());
        self
    }

    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked {
            method: &self.method,
            scheme: self.scheme,
            host: &self.host,
            authority: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: self.port,
            destination: ([10, 96, 0, 1], self.port).into(),
            sni: None,
            client: &self.client,
            remote: asked::remote(self.client.address.ip(), &self.headers, 0),
            claims: None,
        }
    }
}
