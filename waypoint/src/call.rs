//! A request is sent on.
//!
//! 1. an endpoint is chosen                                            ([`Call::answered`])
//! 2. the head is written anew for what the endpoint speaks            (`head`)
//! 3. sent; a connection that turned out to be closed costs nothing    (`send`)
//! 4. an answer that switches protocols joins both connections         (`switch`)

mod head;
mod switch;

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use mesh::service::AppProtocol;
use mesh::{Client, NoEndpoint};

pub use self::head::is_grpc;
use crate::arrive::{Arrived, To};
use crate::report::Report;
use crate::request::Refused;
use crate::upstream::{Answer, Failed, Outgoing, Way};

/// A request that was let through.
pub struct Call<'a> {
    arrived: &'a Arc<Arrived>,
    head: Parts,
    body: Outgoing,
}

impl<'a> Call<'a> {
    /// To whom it was addressed.
    pub fn new(arrived: &'a Arc<Arrived>, head: Parts, body: Outgoing) -> Self {
        Self {
            arrived,
            head,
            body,
        }
    }

    /// The answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn answered(self, report: &mut Report) -> Result<Response<Answer>, Refused> {
        let way = choose(self.arrived)?;
        if let (Some(workload), Some(address)) = (&way.workload, way.known_address()) {
            report.tried(workload, address, way.identity()?.as_ref());
        }
        let wish = switch::wish(&self.head);
        if let Some(wish) = wish {
            return switch::answered(self, &way, wish).await;
        }
        if self.head.method == Method::CONNECT {
            return Err(Refused::Connect);
        }
        self.send(&way).await
    }

    async fn send(mut self, way: &Way) -> Result<Response<Answer>, Refused> {
        let http2 = speaks_http2(self.arrived.to.protocol(), &self.head);
        if http2 {
            head::for_http2(&mut self.head)?;
        } else {
            head::for_http1(&mut self.head)?;
        }
        let upstreams = &self.arrived.proxy.upstreams;
        let again = self.again();
        let sent = upstreams.send(way, http2, Request::from_parts(self.head, self.body));
        let mut answer = match (sent.await, again) {
            // The endpoint closed a connection that we were about to use once more.
            (Err(Failed::Stale(_)), Some(again)) => upstreams.send(way, http2, again).await?,
            (sent, _) => sent?,
        };
        head::of_answer(&mut answer);
        Ok(answer)
    }

    /// The same request, if it may be sent twice.
    fn again(&self) -> Option<Request<Outgoing>> {
        if !self.head.method.is_idempotent() {
            return None;
        }
        let mut again = Request::new(self.body.again()?);
        *again.method_mut() = self.head.method.clone();
        *again.uri_mut() = self.head.uri.clone();
        *again.version_mut() = self.head.version;
        *again.headers_mut() = self.head.headers.clone();
        Some(again)
    }
}

/// An endpoint of what a connection is for.
pub(crate) fn choose(arrived: &Arrived) -> Result<Way, Refused> {
    let proxy = &arrived.proxy;
    let snapshot = proxy.mesh.load();
    let address = arrived.to.address();
    let service = match &arrived.to {
        To::Service { service, .. } => service,
        To::Workload { workload, .. } => {
            return Ok(Way::to(workload, Some(address.ip()), address.port(), None)?);
        }
    };
    let own = snapshot.workload_at(&proxy.network, proxy.config.own_ip());
    let nowhere = mesh::Locality::default();
    let client = match own {
        Some(own) => Client::of(own, address.is_ipv6()),
        None => Client {
            network: &proxy.network,
            locality: &nowhere,
            node: &proxy.config.node_name,
            cluster: &proxy.config.cluster_id,
            namespace: &proxy.config.pod_namespace,
            ipv6: address.is_ipv6(),
        },
    };
    match mesh::pick(&snapshot, service, arrived.to.port(), &client, random()) {
        Ok(found) => Ok(Way::to(
            &found.workload,
            found.address,
            found.target_port,
            Some(service),
        )?),
        Err(NoEndpoint::Passthrough) => Ok(Way::plain(address)),
        Err(why) => Err(why.into()),
    }
}

/// Whether an endpoint is spoken to in HTTP/2: as declared; where nothing is, as the client speaks. gRPC has no other
/// way.
fn speaks_http2(declared: AppProtocol, head: &Parts) -> bool {
    match declared {
        AppProtocol::Http2 | AppProtocol::Grpc => true,
        AppProtocol::Http11 => head.version == Version::HTTP_2 && is_grpc(&head.headers),
        _ => head.version == Version::HTTP_2,
    }
}

/// Numbers that need not be secret: draws, ids. One generator a thread (SplitMix64).
pub(crate) fn random() -> u64 {
    thread_local!(static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish()));
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// Both ends of a switched connection, until both have ended; the bytes (to the client, from it).
pub(crate) async fn join(
    client: hyper::upgrade::Upgraded,
    endpoint: hyper::upgrade::Upgraded,
) -> std::io::Result<(u64, u64)> {
    let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
    let (received, sent) = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await?;
    Ok((sent, received))
}

/// Fields of one name, as one.
pub(crate) fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut texts = values.filter_map(|value| value.to_str().ok());
    texts.any(|text| {
        text.split(',')
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    })
}
