//! A request is shown, part by part.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts as Head;
use http::uri::Authority;
use http::{HeaderValue, Method};
use http_body::Body as _;
use tokio::time::timeout;

use super::pieces::{Feeding, feed, heard_back, one_by_one};
use super::stream::{Half, answers, begin, unasked};
use super::telling::Telling;
use super::{Broke, PATIENCE, Shown, goes_on, stopped, watch};
use crate::asked;
use crate::authenticate::Verified;
use crate::compiled::{Processing, Service};
use crate::process::{self, Body, BodyChange, Common, Mutation, Processor, Said, Way};
use crate::report::Report;
use crate::request::Refused;
use crate::request::consult::Consulting;
use crate::request::consumer::Sent;
use crate::request::decide::decided_again;
use crate::request::process::Stopped;
use crate::route::Found;
use crate::upstream::pipe;

/// Shows a request to all processors that are for it. What they change is judged and routed anew, as everything is that
/// an app sees; processors of the rule that it then is for see it too.
pub(in crate::request) async fn processed<'s>(
    service: &'s Service,
    consulting: &mut Consulting<'_>,
    mut found: Option<Found<'s>>,
    head: &mut Head,
    by: Option<&Verified>,
    report: &mut Report,
) -> Result<(Option<Found<'s>>, Shown), Refused> {
    let mut shown = Shown::nobody();
    let mut seen: Vec<&Arc<str>> = Vec::new();
    for _ in 0..ROUNDS {
        let all = service
            .processors
            .of(found.as_ref().map(|found| &found.rule.name));
        // Named as it is: no closure may live across an await here.
        let is_new = |it: &&Processing| !seen.contains(&it.name());
        let news: Vec<&Processing> = all.iter().filter(is_new).collect();
        if news.is_empty() {
            return Ok((found, shown));
        }
        // Who may not pass is shown to nobody.
        if let Some(found) = &found {
            consulting.permitted(found.rule, head, report).await?;
        }
        let mut changed = false;
        for one in news {
            seen.push(one.name());
            let processor = one.good().map_err(|why| broken(one.name(), why, report))?;
            let sent = match &found {
                Some(found) if is_theirs(service, one) => Sent::of(found.rule, head),
                _ => None,
            };
            let now = show(consulting, processor, head, &mut shown, report).await?;
            if let (true, Some(sent)) = (now, sent) {
                shown.made.push(sent.made(head));
            }
            changed |= now;
        }
        if changed {
            found = decided_again(service, consulting, head, by, report)?;
            consulting.let_through(head, report.said());
        }
    }
    let why = "what processors change leads to further processors".to_owned();
    Err(Refused::Broken(why))
}

/// Whether it is a rule's own, where the service has some for all its requests: who has the service has written those.
fn is_theirs(service: &Service, one: &Processing) -> bool {
    let all = service.processors.of(None);
    !all.is_empty() && all.iter().all(|it| it.name() != one.name())
}

fn broken(name: &Arc<str>, why: &str, report: &mut Report) -> Refused {
    report.denied(name.clone());
    Refused::Broken(format!("{name}: {why}"))
}

/// Whether it has changed the head.
async fn show(
    consulting: &mut Consulting<'_>,
    processor: &Arc<Processor>,
    head: &mut Head,
    shown: &mut Shown,
    report: &mut Report,
) -> Result<bool, Refused> {
    if !processor.modes.there.any() && !processor.modes.back.any() {
        return Ok(false);
    }
    let (arrived, config) = (consulting.arrived, consulting.config);
    let authority = asked::authority(&head.uri, &head.headers)?;
    let telling = Telling::of(processor, head, authority, arrived.to.address(), report);
    let [there, mut back] = match begin(arrived, config, telling, head) {
        Ok(halves) => halves,
        Err(broke) => {
            answers(arrived, processor).count(broke.outcome(), Duration::ZERO);
            return goes_on(processor, broke, report).map(|()| false);
        }
    };
    if processor.watches.is_some() {
        match watch::request(there, head, authority, &mut consulting.body) {
            Ok(()) => shown.halves.push(back),
            Err(broke) => goes_on(processor, broke, report)?,
        }
        return Ok(false);
    }
    let mut showing = Showing {
        half: there,
        head,
        changed: false,
    };
    let result = showing.all(consulting, shown, report).await;
    let changed = showing.changed;
    match result {
        Ok(modes) => {
            back.modes = modes;
            shown.halves.push(back);
        }
        Err(Ended::Broke(broke)) => goes_on(processor, broke, report)?,
        Err(Ended::Refused(refused)) => {
            report.denied(processor.name.clone());
            return Err(refused);
        }
    }
    Ok(changed)
}

struct Showing<'h> {
    half: Half,
    head: &'h mut Head,
    changed: bool,
}

enum Ended {
    /// What follows is for its object to say.
    Broke(Broke),
    /// The request.
    Refused(Refused),
}

impl From<Broke> for Ended {
    fn from(broke: Broke) -> Self {
        Self::Broke(broke)
    }
}

impl From<Refused> for Ended {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl Showing<'_> {
    /// What it is shown of the answer.
    async fn all(
        &mut self,
        consulting: &mut Consulting<'_>,
        shown: &Shown,
        report: &mut Report,
    ) -> Result<process::Modes, Ended> {
        let this = self;
        let ends = consulting.body.is_end_stream();
        this.half.showable()?;
        if this.half.modes.there.body == Body::Duplex && !ends {
            return this.duplex(consulting, shown, report).await;
        }
        if this.half.modes.there.headers {
            let message = this.told(ends)?;
            let said = this.half.ask(message).await?;
            let replaced = this.headers(said)?;
            if let Some(whole) = replaced {
                consulting.body.become_whole(whole);
                return Ok(this.half.modes);
            }
            this.half.showable()?;
        }
        let parts = this.half.modes.there;
        match parts.body {
            _ if ends || this.half.switches => {}
            Body::Whole | Body::Beginning => this.read_ahead(consulting).await?,
            Body::None | Body::Duplex if !parts.trailers => {}
            Body::None | Body::Duplex | Body::Pieces => {
                return Ok(this.pieces(consulting, shown, report));
            }
        }
        Ok(this.half.modes)
    }

    fn told(&self, ends: bool) -> Result<Result<Bytes, String>, Refused> {
        let authority = asked::authority(&self.head.uri, &self.head.headers)?;
        let headers = process::request_headers(self.head, authority);
        Ok(process::headers(
            Way::There,
            headers,
            ends,
            self.half.beside(),
        ))
    }

    /// Does what it says of the head; the whole body, if it is another now.
    fn headers(&mut self, said: Said) -> Result<Option<Bytes>, Ended> {
        let Said::Headers(common) = said else {
            return Err(unasked().into());
        };
        self.change(&common.mutation)?;
        if self.half.modes.there.body != Body::None {
            self.head.headers.remove(CONTENT_LENGTH);
        }
        if !common.replaces {
            return Ok(None);
        }
        self.half.replaceable()?;
        self.head.headers.remove(CONTENT_LENGTH);
        match common.body {
            None => Ok(Some(Bytes::new())),
            Some(BodyChange::Bytes(bytes)) => Ok(Some(bytes)),
            Some(BodyChange::Piece(..)) => Err(unasked().into()),
        }
    }

    fn change(&mut self, mutation: &Mutation) -> Result<(), Ended> {
        if mutation.is_empty() {
            return Ok(());
        }
        self.changed = true;
        mutation.apply(&mut self.head.headers);
        if let Some(method) = &mutation.method {
            // Whether its answer has a body is known by its method, to client and app alike.
            if [Method::HEAD, Method::CONNECT].contains(&self.head.method) {
                let why = format!("no {} becomes {method}", self.head.method);
                return Err(Broke::Failed(why).into());
            }
            self.head.method = method.clone();
        }
        if let Some(authority) = &mutation.authority {
            self.redirect(authority)?;
        }
        if let Some(path) = &mutation.path {
            let unfit = || Broke::Failed(format!("{path:?} is no path"));
            let uri = self.head.uri.clone();
            let mut parts = uri.into_parts();
            parts.path_and_query = Some(path.parse().map_err(|_| unfit())?);
            let uri = http::Uri::from_parts(parts).map_err(|_| unfit())?;
            let one = asked::target(&self.head.method, &uri, asked::Form::default());
            let one = one.map_err(|_| unfit())?.into_owned();
            self.head.uri = uri;
            asked::put_path(&mut self.head.uri, &one).map_err(|_| unfit())?;
        }
        Ok(())
    }

    /// For somebody else, wherever that is said.
    fn redirect(&mut self, authority: &Authority) -> Result<(), Ended> {
        let unfit = || Broke::Failed(format!("{authority} is no host"));
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| unfit())?;
        if self.head.uri.authority().is_some() {
            let mut parts = self.head.uri.clone().into_parts();
            parts.authority = Some(authority.clone());
            self.head.uri = http::Uri::from_parts(parts).map_err(|_| unfit())?;
        }
        if self.head.uri.authority().is_none() || self.head.headers.contains_key(HOST) {
            self.head.headers.insert(HOST, host);
        }
        Ok(())
    }

    /// All of the body, or its beginning.
    async fn read_ahead(&mut self, consulting: &mut Consulting<'_>) -> Result<(), Ended> {
        let (most, parts) = (self.half.processor.most, self.half.modes.there);
        let looked = timeout(PATIENCE, consulting.body.look(most)).await;
        let sample = looked
            .map_err(|_| Broke::Unread)?
            .map_err(|_| Broke::Unread)?;
        if !sample.whole && parts.body == Body::Whole {
            return Err(Broke::TooLarge.into());
        }
        let trailers = consulting.body.trailers().is_some();
        let last = sample.whole && !trailers;
        let message = process::body(Way::There, sample.bytes, last, self.half.beside());
        let Said::Body(Common { mutation, body, .. }) = self.half.ask(message).await? else {
            return Err(unasked().into());
        };
        self.change(&mutation)?;
        match body {
            None => {}
            Some(BodyChange::Bytes(bytes)) => {
                consulting.body.replace(most, bytes);
                self.head.headers.remove(CONTENT_LENGTH);
            }
            Some(BodyChange::Piece(..)) => return Err(unasked().into()),
        }
        if let Some(trailers) = consulting.body.trailers().filter(|_| parts.trailers) {
            let message = process::trailers(Way::There, trailers, self.half.beside());
            match self.half.ask(message).await? {
                Said::Trailers(mutation) => mutation.apply(trailers),
                _ => return Err(unasked().into()),
            }
        }
        Ok(())
    }

    /// Piece by piece, beside everything else.
    fn pieces(
        &mut self,
        consulting: &mut Consulting<'_>,
        shown: &Shown,
        report: &mut Report,
    ) -> process::Modes {
        let modes = self.half.modes;
        self.head.headers.remove(CONTENT_LENGTH);
        let (half, stop) = (self.half.handed_on(), Some(shown.stop.clone()));
        // Whoever has the body goes when what is made of it does.
        if consulting.body.is_client_s() {
            let (give, made) = one_by_one(half, stop);
            let body = consulting.body.become_made(made);
            let _ = give.send(report.received(body));
        } else {
            let (give, made) = one_by_one(half, stop);
            let _ = give.send(consulting.body.become_made(made));
        }
        modes
    }

    /// All of the body goes there; what comes back is all there is then.
    fn feeding(&self, consulting: &mut Consulting<'_>, report: &mut Report) -> Feeding {
        let (_, nothing) = pipe();
        if consulting.body.is_client_s() {
            let (give, feeding) = feed(&self.half);
            let body = consulting.body.become_made(nothing);
            let _ = give.send(report.received(body));
            feeding
        } else {
            let (give, feeding) = feed(&self.half);
            let _ = give.send(consulting.body.become_made(nothing));
            feeding
        }
    }

    /// Its pieces there, others back; the head may be answered late.
    async fn duplex(
        &mut self,
        consulting: &mut Consulting<'_>,
        shown: &Shown,
        report: &mut Report,
    ) -> Result<process::Modes, Ended> {
        let headers = self.half.modes.there.headers;
        if headers {
            let message = self.told(false)?;
            self.half.say(message).await?;
        }
        self.head.headers.remove(CONTENT_LENGTH);
        let feeding = self.feeding(consulting, report);
        if headers {
            let said = match self.half.late().await {
                Ok(said) => self.headers(said),
                Err(broke) => Err(broke.into()),
            };
            match said {
                Ok(None) => {}
                Ok(Some(whole)) => {
                    consulting.body.become_whole(whole);
                    return Ok(self.half.modes);
                }
                Err(ended) => return Err(self.lost(ended)),
            }
        }
        let modes = self.half.modes;
        let half = self.half.handed_on();
        let made = heard_back(half, feeding, Some(shown.stop.clone()));
        consulting.body.become_made(made);
        Ok(modes)
    }

    /// There is no body any more to go on with.
    fn lost(&self, ended: Ended) -> Ended {
        let processor = &self.half.processor;
        match ended {
            Ended::Broke(Broke::Answered(answer)) => {
                Ended::Refused(stopped(processor, Stopped::Answered(*answer)))
            }
            Ended::Broke(broke) => Ended::Refused(super::closed(processor, broke)),
            refused => refused,
        }
    }
}

/// The rule that a request is for may be another after the first.
const ROUNDS: usize = 3;
