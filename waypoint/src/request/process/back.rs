//! An answer is shown, part by part.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::Body as _;
use tokio::time::timeout;

use super::pieces::{feed, heard_back, one_by_one};
use super::stream::{Half, unasked};
use super::{Broke, PATIENCE, goes_on, watch};
use crate::process::{self, Body, BodyChange, Common, Said, Way};
use crate::report::Report;
use crate::request::Refused;
use crate::upstream::{Answer, ReadAhead};

/// Shows it to one processor.
pub(super) async fn shown(
    half: Half,
    answer: &mut Response<Answer>,
    report: &mut Report,
) -> Result<(), Refused> {
    let processor = half.processor.clone();
    half.telling.of_answer(answer, report);
    if processor.watches.is_some() {
        let shown = watch::answer(half, answer);
        return shown.or_else(|broke| goes_on(&processor, broke, report));
    }
    let mut showing = Showing { half, answer };
    match showing.all().await {
        Ok(()) => Ok(()),
        Err(Ended::Broke(broke)) => goes_on(&processor, broke, report),
        Err(Ended::Lost(broke)) => {
            report.denied(processor.name.clone());
            Err(super::closed(&processor, broke))
        }
    }
}

struct Showing<'a> {
    half: Half,
    answer: &'a mut Response<Answer>,
}

enum Ended {
    /// What follows is for its object to say.
    Broke(Broke),
    /// There is no body any more to go on with.
    Lost(Broke),
}

impl From<Broke> for Ended {
    fn from(broke: Broke) -> Self {
        Self::Broke(broke)
    }
}

impl Showing<'_> {
    async fn all(&mut self) -> Result<(), Ended> {
        let ends = self.answer.body().is_end_stream();
        if self.half.modes.back.body == Body::Duplex && !ends {
            return self.duplex().await;
        }
        if self.half.modes.back.headers {
            let message = self.told(ends);
            let said = self.half.ask(message).await?;
            if let Some(whole) = self.headers(said)? {
                self.length_unknown();
                *self.answer.body_mut() = Answer::whole(whole);
                return Ok(());
            }
            self.half.showable()?;
        }
        let parts = self.half.modes.back;
        match parts.body {
            _ if ends || self.half.switches => {}
            Body::Whole | Body::Beginning => self.read_ahead().await?,
            Body::None | Body::Duplex if !parts.trailers => {}
            Body::None | Body::Duplex | Body::Pieces => self.pieces(),
        }
        Ok(())
    }

    fn told(&self, ends: bool) -> Result<Bytes, String> {
        let headers = process::answer_headers(self.answer.status(), self.answer.headers());
        process::headers(Way::Back, headers, ends, self.half.beside())
    }

    fn length_unknown(&mut self) {
        self.answer.headers_mut().remove(CONTENT_LENGTH);
    }

    fn take_body(&mut self) -> Answer {
        std::mem::replace(self.answer.body_mut(), Answer::empty())
    }

    fn change(&mut self, mutation: &process::Mutation) {
        if mutation.is_empty() {
            return;
        }
        mutation.apply(self.answer.headers_mut());
        if let Some(status) = mutation.status {
            *self.answer.status_mut() = status;
        }
    }

    /// Does what it says of the head; the whole body, if it is another now.
    fn headers(&mut self, said: Said) -> Result<Option<Bytes>, Broke> {
        let Said::Headers(common) = said else {
            return Err(unasked());
        };
        self.change(&common.mutation);
        if !common.replaces {
            return Ok(None);
        }
        self.half.replaceable()?;
        match common.body {
            None => Ok(Some(Bytes::new())),
            Some(BodyChange::Bytes(bytes)) => Ok(Some(bytes)),
            Some(BodyChange::Piece(..)) => Err(unasked()),
        }
    }

    async fn read_ahead(&mut self) -> Result<(), Broke> {
        let mut body = ReadAhead::of(self.take_body());
        let shown = self.looked(&mut body).await;
        *self.answer.body_mut() = Answer::seen(body);
        shown
    }

    async fn looked(&mut self, body: &mut ReadAhead<Answer>) -> Result<(), Broke> {
        let (most, parts) = (self.half.processor.most, self.half.modes.back);
        let looked = timeout(PATIENCE, body.look(most)).await;
        let broke = || Broke::Failed("the answer's body did not come".to_owned());
        let sample = looked.map_err(|_| broke())?.map_err(|_| broke())?;
        if !sample.whole && parts.body == Body::Whole {
            let why = format!("the answer's body has more than {most} bytes");
            return Err(Broke::Failed(why));
        }
        let last = sample.whole && body.trailers().is_none();
        let message = process::body(Way::Back, sample.bytes, last, self.half.beside());
        let Said::Body(Common {
            mutation,
            body: change,
            ..
        }) = self.half.ask(message).await?
        else {
            return Err(unasked());
        };
        self.change(&mutation);
        match change {
            None => {}
            Some(BodyChange::Bytes(bytes)) => {
                body.replace(most, bytes);
                self.length_unknown();
            }
            Some(BodyChange::Piece(..)) => return Err(unasked()),
        }
        if let Some(trailers) = body.trailers().filter(|_| parts.trailers) {
            let message = process::trailers(Way::Back, trailers, self.half.beside());
            match self.half.ask(message).await? {
                Said::Trailers(mutation) => mutation.apply(trailers),
                _ => return Err(unasked()),
            }
        }
        Ok(())
    }

    fn pieces(&mut self) {
        if self.half.modes.back.body == Body::Pieces {
            self.length_unknown();
        }
        let (give, made) = one_by_one::<Answer>(self.half.handed_on(), None);
        let body = std::mem::replace(self.answer.body_mut(), Answer::piped(made));
        let _ = give.send(body);
    }

    async fn duplex(&mut self) -> Result<(), Ended> {
        let headers = self.half.modes.back.headers;
        if headers {
            let message = self.told(false);
            self.half.say(message).await?;
        }
        self.length_unknown();
        let (give, feeding) = feed::<Answer>(&self.half);
        let _ = give.send(self.take_body());
        if headers {
            let said = self.half.late().await;
            match said.and_then(|said| self.headers(said)) {
                Ok(None) => {}
                Ok(Some(whole)) => {
                    *self.answer.body_mut() = Answer::whole(whole);
                    return Ok(());
                }
                Err(Broke::Answered(answer)) => return Err(Broke::Answered(answer).into()),
                Err(broke) => return Err(Ended::Lost(broke)),
            }
        }
        let made = heard_back(self.half.handed_on(), feeding, None);
        *self.answer.body_mut() = Answer::piped(made);
        Ok(())
    }
}
