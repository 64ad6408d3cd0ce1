//! A stream to a processor: one for each request, in two halves, one for each way.
//!
//! What it says is sorted by what it is about and waits for whoever has asked. It is held by its halves: when both have
//! gone, the processor is told that there is no more, and has a moment to say the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts as Head;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::lane::{Lane, Relay, lane};
use super::telling::Telling;
use super::{Broke, PATIENCE};
use crate::arrive::Arrived;
use crate::call;
use crate::compiled::Config;
use crate::process::{Beside, Body, Heard, Metadata, Modes, Parts, Processor, Said, Way, heard};
use crate::report::{Answers, Outcome, Who};
use crate::request::lead;
use crate::service::{self, Messages};
use crate::upstream::{Answer, Outgoing, Pipe, ReadAhead, open_pipe};

/// One way of a stream.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) processor: Arc<Processor>,
    pub(super) way: Way,
    /// What is shown from now on, both ways.
    pub(super) modes: Modes,
    /// Another protocol is to be spoken behind the heads.
    pub(super) switches: bool,
    /// What it is told beside that.
    pub(super) telling: Telling,
    /// Something was said by this one.
    told: Arc<AtomicBool>,
    out: Pipe,
    /// For one that is not waited for: the way to `out`.
    lane: Option<Lane>,
    heard: mpsc::Receiver<Result<Heard, Broke>>,
    answers: Arc<Answers>,
    _held: Arc<DropGuard>,
}

/// A stream begins. Nothing has been said yet. `telling`: of the request, whose head `about` is.
pub(super) fn begin(
    arrived: &Arc<Arrived>,
    config: &Arc<Config>,
    telling: Telling,
    about: &Head,
) -> Result<[Half; 2], Broke> {
    let processor = telling.processor.clone();
    let to = lead(arrived, &processor.service).map_err(|why| Broke::Failed(why.to_string()))?;
    let (out, body) = open_pipe();
    let (body, _) = Outgoing::piped(ReadAhead::of(body), 0);
    let request = service::call(&processor.service, METHOD, &about.headers, None).body(body);
    let request = request.map_err(|why| Broke::Failed(format!("it cannot be asked: {why}")))?;
    let gone = CancellationToken::new();
    let held = Arc::new(gone.clone().drop_guard());
    let answers = answers(arrived, &processor);
    let switches = call::switches(about);
    let watching = processor
        .watches
        .map(|after| (lane(out.clone(), processor.most), after));
    let half = |way, telling: Telling| {
        let (to, heard) = mpsc::channel(WAITING);
        let half = Half {
            processor: processor.clone(),
            way,
            modes: processor.modes,
            switches,
            telling,
            told: Arc::default(),
            out: out.clone(),
            lane: watching.as_ref().map(|((lane, ..), _)| lane.clone()),
            heard,
            answers: answers.clone(),
            _held: held.clone(),
        };
        let ear = Ear {
            to,
            told: half.told.clone(),
        };
        (ear, half)
    };
    let (there, one) = half(Way::There, telling.clone());
    let (back, other) = half(Way::Back, telling.other_way());
    let listener = Listener {
        there,
        back,
        metadata: telling.metadata,
        processor: processor.clone(),
    };
    let (arrived, config) = (arrived.clone(), config.clone());
    // It is large, and what is handed on is kept twice.
    let listening = Box::pin(async move {
        let answer = call::ask(&arrived, &config, &to, request).await;
        match answer {
            Ok(answer) => listener.listen(answer).await,
            Err(why) => listener.ended(Err(why.to_string())).await,
        }
    });
    match watching {
        None => tokio::spawn(heard_out(listening, gone)),
        Some(((_, relay, behind), after)) => {
            let begun = Instant::now();
            tokio::spawn(async move {
                let outcome = watched(listening, relay, behind, gone, after).await;
                answers.count(outcome, begun.elapsed());
            })
        }
    };
    Ok([one, other])
}

/// As long as somebody may say something, and a moment.
async fn heard_out(mut listening: impl Future<Output = bool> + Unpin, gone: CancellationToken) {
    tokio::select! {
        _ = &mut listening => {}
        () = gone.cancelled() => {
            let _ = timeout(MOMENT, listening).await;
        }
    }
}

/// As long as somebody may say something, and for as long afterwards as it may take; what has come of it.
async fn watched(
    listening: impl Future<Output = bool>,
    relay: Relay,
    behind: CancellationToken,
    gone: CancellationToken,
    after: Duration,
) -> Outcome {
    let relaying = async {
        relay.run().await;
        std::future::pending::<()>().await;
    };
    let later = async {
        gone.cancelled().await;
        tokio::time::sleep(after).await;
    };
    tokio::select! {
        good = listening => if good { Outcome::Passes } else { Outcome::Fails },
        () = behind.cancelled() => Outcome::Late,
        () = later => Outcome::Passes,
        () = relaying => Outcome::Passes,
    }
}

/// Where what comes of asking it is counted.
pub(super) fn answers(arrived: &Arrived, processor: &Processor) -> Arc<Answers> {
    let name = processor.name.split_once('/');
    let name = name.map_or(&*processor.name, |(_, name)| name);
    arrived.proxy.reports.asked(Who::Processor, name)
}

/// Who sorts what it says.
struct Listener {
    there: Ear,
    back: Ear,
    /// Where goes what it says of the request to others.
    metadata: Metadata,
    processor: Arc<Processor>,
}

/// Where what is heard goes, and whether anything was said that it could be an answer to.
struct Ear {
    to: mpsc::Sender<Result<Heard, Broke>>,
    told: Arc<AtomicBool>,
}

impl Listener {
    /// To its end; whether that is a good one.
    async fn listen(self, answer: http::Response<Answer>) -> bool {
        let ended = self.all(answer).await;
        self.ended(ended).await
    }

    async fn all(&self, answer: http::Response<Answer>) -> Result<(), String> {
        let (head, mut body) = answer.into_parts();
        service::begun(head.status, &head.headers)?;
        if head.headers.contains_key("grpc-status") {
            return service::end(&head.headers);
        }
        let mut messages = Messages::of(self.processor.most + ROOM);
        loop {
            let frame = body.frame().await.ok_or("its answer has no end")?;
            let frame = frame.map_err(|why| format!("its answer broke off: {why}"))?;
            match frame.into_data() {
                // Nobody hears what one says that is only shown something.
                Ok(_) if self.processor.watches.is_some() => {}
                Ok(bytes) => messages.take(bytes)?,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return service::end(&trailers);
                }
            }
            while let Some(message) = messages.next()? {
                self.sort(heard(message, &self.processor.rules)?).await?;
            }
        }
    }

    /// Whoever has gone does not want to hear it.
    async fn sort(&self, mut heard: Heard) -> Result<(), String> {
        let ear = match heard.way {
            Some(Way::There) => Some(&self.there),
            Some(Way::Back) => Some(&self.back),
            None => None,
        };
        if ear.is_some_and(|ear| !ear.told.load(Relaxed)) {
            return Err(UNASKED.to_owned());
        }
        // Before whoever waits goes on.
        if let Some(words) = heard.metadata.take() {
            self.metadata.take(words, &self.processor.writable)?;
        }
        match ear {
            Some(ear) => {
                let _ = ear.to.send(Ok(heard)).await;
            }
            // It is for who waits, and who waits takes what comes: with who does not it would stay, until nobody is heard.
            None if matches!(heard.said, Said::Longer(_)) => {
                for ear in [&self.there, &self.back] {
                    if ear.told.load(Relaxed) {
                        let _ = ear.to.try_send(Ok(heard.clone()));
                    }
                }
            }
            None => {
                let _ = self.there.to.send(Ok(heard.clone())).await;
                let _ = self.back.to.send(Ok(heard)).await;
            }
        }
        Ok(())
    }

    /// Tells both; whether it was a good end.
    async fn ended(&self, ended: Result<(), String>) -> bool {
        for half in [&self.there, &self.back] {
            let why = match &ended {
                Ok(()) => Broke::Closed,
                Err(why) => Broke::Failed(why.clone()),
            };
            let _ = half.to.send(Err(why)).await;
        }
        ended.is_ok()
    }
}

impl Half {
    /// What goes with its next message beside what that shows.
    pub(super) fn beside(&self) -> Beside {
        self.telling.beside()
    }

    /// What it is shown this way.
    pub(super) fn parts(&self) -> Parts {
        match self.way {
            Way::There => self.modes.there,
            Way::Back => self.modes.back,
        }
    }

    /// Whether no more is to be shown to it than there will be.
    pub(super) fn showable(&self) -> Result<(), Broke> {
        match [self.modes.there.body, self.modes.back.body] {
            [Body::None, Body::None] => Ok(()),
            _ => self.replaceable(),
        }
    }

    /// Whether what follows is a body.
    pub(super) fn replaceable(&self) -> Result<(), Broke> {
        match self.switches {
            true => Err(Broke::Failed(SWITCHES.to_owned())),
            false => Ok(()),
        }
    }

    /// Says something, and waits for the answer to it.
    pub(super) async fn ask(&mut self, message: Result<Bytes, String>) -> Result<Said, Broke> {
        let begun = Instant::now();
        let answer = self.asked(message).await;
        self.count(&answer, begun);
        answer
    }

    async fn asked(&mut self, message: Result<Bytes, String>) -> Result<Said, Broke> {
        // What is there already is no answer.
        while let Ok(early) = self.heard.try_recv() {
            match early?.said {
                Said::Longer(_) => {}
                Said::Immediate(answer) => return Err(Broke::Answered(answer.into())),
                _ => return Err(unasked()),
            }
        }
        self.say(message).await?;
        self.answer().await
    }

    /// Says something.
    pub(super) async fn say(&mut self, message: Result<Bytes, String>) -> Result<(), Broke> {
        let message = message.map_err(Broke::Failed)?;
        self.told.store(true, Relaxed);
        let within = self.processor.timeout;
        match timeout(within, self.out.data(message)).await {
            Ok(Ok(())) => Ok(()),
            // It may have said why.
            Ok(Err(_)) => Err(match self.heard.recv().await {
                Some(Err(why)) => why,
                _ => Broke::Failed("it does not listen".to_owned()),
            }),
            Err(_) => Err(Broke::Late(within)),
        }
    }

    /// Says something to one that is not waited for.
    pub(super) fn mention(&mut self, message: Result<Bytes, String>) -> Result<(), Broke> {
        if let Ok(Err(why)) = self.heard.try_recv() {
            return Err(why);
        }
        let message = message.map_err(Broke::Failed)?;
        let behind = |_| Broke::Failed("it does not keep up".to_owned());
        match &self.lane {
            Some(lane) => lane.put(message).map_err(behind),
            None => Ok(()),
        }
    }

    /// What it says to what it was told, in time.
    pub(super) async fn answer(&mut self) -> Result<Said, Broke> {
        let mut within = self.processor.timeout;
        let begun = Instant::now();
        let mut longer = self.processor.longest;
        loop {
            let Ok(said) = timeout_at(begun + within, self.next()).await else {
                return Err(Broke::Late(within));
            };
            match (said?, longer) {
                // Once, and no longer than it may.
                (Said::Longer(wanted), Some(longest)) => {
                    within = wanted.min(longest);
                    longer = None;
                }
                (Said::Longer(_), None) => {}
                (said, _) => return Ok(said),
            }
        }
    }

    /// What it says next, whenever that is.
    pub(super) async fn next(&mut self) -> Result<Said, Broke> {
        let Some(heard) = self.heard.recv().await else {
            return Err(Broke::Failed("its stream has gone".to_owned()));
        };
        let heard = heard?;
        if let (Some(modes), Said::Headers(_), true) =
            (&heard.modes, &heard.said, self.processor.overridable)
        {
            self.modes = self.modes.overridden(modes);
        }
        match heard.said {
            Said::Immediate(answer) => Err(Broke::Answered(answer.into())),
            said => Ok(said),
        }
    }

    /// What it says to a head when it likes.
    pub(super) async fn late(&mut self) -> Result<Said, Broke> {
        let begun = Instant::now();
        let said = timeout(PATIENCE, self.next()).await;
        let said = said.unwrap_or(Err(Broke::Late(PATIENCE)));
        self.count(&said, begun);
        said
    }

    /// What has come of asking it.
    pub(super) fn count<T>(&self, answer: &Result<T, Broke>, since: Instant) {
        let outcome = answer
            .as_ref()
            .err()
            .map_or(Outcome::Passes, Broke::outcome);
        self.answers.count(outcome, since.elapsed());
    }

    /// This half, for somebody who goes on with it; nothing is heard here any more.
    pub(super) fn handed_on(&mut self) -> Self {
        let (_, nothing) = mpsc::channel(1);
        Self {
            processor: self.processor.clone(),
            way: self.way,
            modes: self.modes,
            switches: self.switches,
            telling: self.telling.clone(),
            told: self.told.clone(),
            out: self.out.clone(),
            lane: self.lane.clone(),
            heard: std::mem::replace(&mut self.heard, nothing),
            answers: self.answers.clone(),
            _held: self._held.clone(),
        }
    }

    /// Another hand for the same mouth.
    pub(super) fn mouth(&self) -> Pipe {
        self.told.store(true, Relaxed);
        self.out.clone()
    }
}

/// An answer to something else.
pub(super) fn unasked() -> Broke {
    Broke::Failed(UNASKED.to_owned())
}

const UNASKED: &str = "it says what nobody has asked";
const SWITCHES: &str =
    "what follows a switch of protocols is no body that could be shown or changed";
const METHOD: &str = "envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// Messages that wait for whoever has asked.
const WAITING: usize = 16;
/// Of a message beside the body: headers.
const ROOM: usize = 256 << 10;
/// To say that there is no more.
const MOMENT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use api::waypoint as wire;
    use futures_util::FutureExt;

    use super::*;

    fn ear(told: bool) -> (Ear, mpsc::Receiver<Result<Heard, Broke>>) {
        let (to, heard) = mpsc::channel(WAITING);
        let told = Arc::new(AtomicBool::new(told));
        (Ear { to, told }, heard)
    }

    fn processor() -> Processor {
        let service = wire::ServiceRef {
            namespace: "shop".to_owned(),
            hostname: "clerk.shop.svc.cluster.local".to_owned(),
            port: 9000,
        };
        let wire = wire::Processing {
            processor: Some(wire::Processor {
                service: Some(service),
                ..wire::Processor::default()
            }),
            ..wire::Processing::default()
        };
        Processor::compile(&wire::Origin::default(), &wire).unwrap()
    }

    #[test]
    fn who_asks_for_more_time_with_each_piece_is_heard_all_the_same() {
        let ((there, mut waits), (back, _later)) = (ear(true), ear(false));
        let listener = Listener {
            there,
            back,
            metadata: Metadata::default(),
            processor: processor().into(),
        };
        for piece in 0..3 * WAITING {
            let heard = Heard {
                way: None,
                said: Said::Longer(Duration::from_secs(1)),
                modes: None,
                metadata: None,
            };
            let sorted = listener.sort(heard).now_or_never();
            assert_eq!(sorted, Some(Ok(())), "{piece}: it waits for nobody");
            let said = waits.try_recv().unwrap().unwrap().said;
            assert_eq!(said, Said::Longer(Duration::from_secs(1)), "{piece}");
        }
    }
}
