//! Requests of our own: somebody is asked, and what he answers is for us.

use std::sync::Arc;

use http::{Request, Response};

use super::{TRIES, again, head, outcome, speaks_http2};
use crate::arrive::{Arrived, To};
use crate::call::Aim;
use crate::compiled::Config;
use crate::request::Refused;
use crate::upstream::{Answer, Outgoing, Unanswered};

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
    let http2 = speaks_http2(to.protocol(), &request);
    head::rewrite(&mut request, http2)?;
    let mut aim = Aim::at(arrived, config, to.clone(), "")?;
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
