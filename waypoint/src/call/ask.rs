//! Requests of our own: somebody is asked, and what he answers is for us.

use std::sync::Arc;

use http::{Request, Response};

use super::{TRIES, again, head, outcome, over_http2};
use crate::arrive::{Arrived, To};
use crate::call::Aim;
use crate::client::{Baggage, Client};
use crate::compiled::{Config, Front};
use crate::proxy::Proxy;
use crate::request::Refused;
use crate::route::ServiceName;
use crate::upstream::{Answer, Outgoing, Unanswered};

/// Towards a service, with ourselves as the client: for what we ask on nobody's behalf.
///
/// # Errors
/// It is not known, or has no such port.
pub(crate) fn ourselves(proxy: &Arc<Proxy>, name: &ServiceName) -> Result<Arc<Arrived>, String> {
    let snapshot = proxy.mesh.load();
    let unknown = |what: &str| {
        let place = format!("{}/{}:{}", name.namespace, name.hostname, name.port);
        format!("{place} {what}")
    };
    let service = snapshot.service(&name.namespace, &name.hostname);
    let service = service.ok_or_else(|| unknown("is not known"))?;
    let port = service.port(name.port);
    let port = *port.ok_or_else(|| unknown("has no such port"))?;
    let own = proxy.config.own_ip();
    let client = Arc::new(Client {
        identity: Some(proxy.identity.clone()),
        address: (own, 0).into(),
        peer: own,
        workload: snapshot.workload_at(&proxy.network, own).cloned(),
        said: Baggage::default(),
    });
    Ok(Arc::new(Arrived {
        share: proxy.load.ours(),
        caller: proxy.reports.caller(client.clone()),
        proxy: proxy.clone(),
        client,
        to: To::of(service, port, None),
        front: Front::default(),
        from_abroad: false,
    }))
}

/// An answer of that service's. Asked once; again where nobody has seen the question.
///
/// # Errors
/// When there is none.
pub(crate) async fn ask(
    arrived: &Arc<Arrived>,
    config: &Config,
    to: &To,
    mut request: Request<Outgoing>,
) -> Result<Response<Answer>, Refused> {
    let mut aim = Aim::at(arrived, config, to.clone(), "")?;
    let http2 = over_http2(&aim, &request);
    head::rewrite(&mut request, http2)?;
    if let Some(service) = to.service().filter(|_| aim.wants_name()) {
        aim.named(&service.hostname);
    }
    let room = aim.enter()?;
    let mut made = 0;
    loop {
        made += 1;
        let spare = again(&request);
        let shot = aim.choose()?;
        let sending = arrived.proxy.upstreams.send(&shot.way, http2, request);
        let sent = sending.await;
        shot.ended(outcome(&sent));
        match sent {
            Ok(mut answer) => {
                head::of_answer(&mut answer);
                answer.body_mut().hold(shot.held(room, None));
                return Ok(answer);
            }
            Err(Unanswered {
                why,
                request: unsent,
            }) => {
                let next = unsent.map(|unsent| *unsent).or(spare);
                match next.filter(|_| why.costs_nothing() && made < TRIES) {
                    Some(next) => request = next,
                    None => return Err(why.into()),
                }
            }
        }
    }
}
