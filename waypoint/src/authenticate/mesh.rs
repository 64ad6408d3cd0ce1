//! Key sets of issuers that are services of the mesh: asked for through it, with our own identity, for they may take nothing
//! but the mesh's own TLS.
//!
//! 1. the service that the control plane names beside the address       ([`ourselves`])
//! 2. one of its endpoints, as for whatever we ask ourselves             ([`Aim`])
//! 3. a tunnel to it, and over that what is asked anywhere               ([`Http`])
//!
//! What is not in the mesh is asked as before, with the same guard: its endpoints' addresses are what somebody wrote down.
//! Where a tunnel fails nobody is asked in plain text instead: the keys would be believed.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use tokio::time::timeout;

use super::fetch::{Fetch, Fetched, Http};
use super::guard::may_be_asked;
use crate::call::{Aim, ourselves};
use crate::proxy::Proxy;
use crate::route::ServiceName;
use crate::upstream::Inside;

/// Brings documents from within the mesh, and from elsewhere.
#[derive(Default)]
pub struct Through {
    elsewhere: Http,
    /// None until there is one: before that nothing is known of the mesh either.
    proxy: OnceLock<Weak<Proxy>>,
}

impl Through {
    /// Through the mesh as a proxy knows it.
    pub fn carried_by(&self, proxy: &Arc<Proxy>) {
        // There is one in a process.
        let _ = self.proxy.set(Arc::downgrade(proxy));
    }
}

impl Fetch for Through {
    fn fetch(&self, uri: Uri, within: Duration) -> BoxFuture<'_, Fetched> {
        self.elsewhere.fetch(uri, within)
    }

    fn fetch_from(
        &self,
        service: &ServiceName,
        uri: Uri,
        within: Duration,
    ) -> BoxFuture<'_, Fetched> {
        let (http, service) = (self.elsewhere.clone(), service.clone());
        Box::pin(async move {
            let proxy = self.proxy.get().and_then(Weak::upgrade);
            let proxy = proxy.ok_or("the mesh is not known yet")?;
            // Tunnels belong to the threads that carry traffic.
            let runtime = proxy.workers.runtime(0).clone();
            let fetching = runtime.spawn(async move {
                let late = |_| Err(format!("no answer within {} ms", within.as_millis()));
                let asked = asked(&proxy, &http, &service, uri);
                timeout(within, asked).await.unwrap_or_else(late)
            });
            fetching
                .await
                .unwrap_or_else(|error| Err(error.to_string()))
        })
    }
}

async fn asked(proxy: &Arc<Proxy>, http: &Http, service: &ServiceName, uri: Uri) -> Fetched {
    let place = may_be_asked(&uri)?;
    let arrived = ourselves(proxy, service)?;
    let config = proxy.state.load_full();
    let mut aim =
        Aim::at(&arrived, &config, arrived.to.clone(), "").map_err(|it| it.to_string())?;
    if aim.wants_name() {
        aim.named(&place.host);
    }
    let shot = aim.choose().map_err(|it| it.to_string())?;
    if !shot.way.is_tunnel() {
        return http.get(uri).await;
    }
    let stream = proxy.upstreams.open(&shot.way, Inside::Http1).await;
    let stream =
        stream.map_err(|it| format!("{}/{}: {it}", service.namespace, service.hostname))?;
    http.over(stream, place, &uri).await
}
