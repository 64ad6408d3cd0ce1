//! Bodies that a processor is shown in pieces, beside everything else.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::stream::{Half, unasked};
use super::telling::Telling;
use super::{Broke, NONE, PATIENCE, goes_on_quietly};
use crate::process::{self, BodyChange, Said, Way};
use crate::request::Refused;
use crate::upstream::{Cut, Gone, Pipe, Piped, pipe};

/// Where whatever is to be shown goes in.
pub(super) type Give<B> = oneshot::Sender<B>;

/// One piece after the other, and an answer to each. `stop`: whom to tell when it must not go on.
pub(super) fn one_by_one<B>(half: Half, stop: Option<mpsc::Sender<Refused>>) -> (Give<B>, Piped)
where
    B: Body<Data = Bytes, Error = Cut> + Send + Unpin + 'static,
{
    let (give, got) = oneshot::channel::<B>();
    let (to, made) = pipe();
    let making = tokio::spawn(async move {
        let Ok(body) = got.await else { return };
        let shown = Shown {
            half,
            stop,
            showing: true,
        };
        // Whoever reads it has gone, or it has broken off.
        let _ = shown.run(body, &to).await;
    });
    (give, made.made_by(making))
}

struct Shown {
    half: Half,
    stop: Option<mpsc::Sender<Refused>>,
    /// It goes on being shown.
    showing: bool,
}

impl Shown {
    async fn run<B>(mut self, mut body: B, to: &Pipe) -> Result<(), Gone>
    where
        B: Body<Data = Bytes, Error = Cut> + Unpin,
    {
        let parts = self.half.parts();
        let bodies = parts.body == process::Body::Pieces;
        let mut ended = !bodies;
        while let Some(frame) = body.frame().await {
            match frame.map_err(|_| Gone)?.into_data() {
                Ok(piece) => {
                    let last = body.is_end_stream();
                    let piece = match bodies {
                        true => self.piece(piece, last).await?,
                        false => piece,
                    };
                    ended |= last;
                    to.data(piece).await?;
                }
                Err(frame) => {
                    let mut trailers = frame.into_trailers().unwrap_or_default();
                    if parts.trailers {
                        self.trailers(&mut trailers).await?;
                    }
                    return to.trailers(trailers).await;
                }
            }
        }
        if !ended {
            let rest = self.piece(NONE, true).await?;
            to.data(rest).await?;
        }
        to.end().await
    }

    async fn piece(&mut self, piece: Bytes, last: bool) -> Result<Bytes, Gone> {
        if !self.showing {
            return Ok(piece);
        }
        let beside = self.half.beside();
        let said = process::body(self.half.way, piece.clone(), last, beside);
        let change = match self.half.ask(said).await {
            Ok(Said::Body(common)) => Ok(common.body),
            Ok(_) => Err(unasked()),
            Err(broke) => Err(broke),
        };
        match change {
            Ok(None) => Ok(piece),
            Ok(Some(BodyChange::Bytes(other))) => Ok(other),
            Ok(Some(BodyChange::Piece(..))) => self.broke(unasked()).map(|()| piece),
            Err(broke) => self.broke(broke).map(|()| piece),
        }
    }

    async fn trailers(&mut self, trailers: &mut HeaderMap) -> Result<(), Gone> {
        if !self.showing {
            return Ok(());
        }
        let beside = self.half.beside();
        let said = process::trailers(self.half.way, trailers, beside);
        match self.half.ask(said).await {
            Ok(Said::Trailers(mutation)) => {
                mutation.apply(trailers);
                Ok(())
            }
            Ok(_) => self.broke(unasked()),
            Err(broke) => self.broke(broke),
        }
    }

    /// Ok: the rest passes as it is.
    fn broke(&mut self, broke: Broke) -> Result<(), Gone> {
        self.showing = false;
        match goes_on_quietly(&self.half.processor, broke) {
            Ok(_) => Ok(()),
            Err(refused) => {
                tell(self.stop.as_ref(), refused);
                Err(Gone)
            }
        }
    }
}

/// Before the body breaks off: so that it is known why.
fn tell(stop: Option<&mpsc::Sender<Refused>>, refused: Refused) {
    match stop {
        Some(stop) => {
            // Who was first has said it.
            let _ = stop.try_send(refused);
        }
        None => tracing::info!(why = %refused, "an answer breaks off"),
    }
}

/// All of it goes to the processor as it comes.
pub(super) struct Feeding {
    _feeding: AbortOnDropHandle<()>,
    fed: CancellationToken,
    /// The body's own.
    trailers: Arc<OnceLock<HeaderMap>>,
}

/// Pieces there. Begins when the body is given.
pub(super) fn feed<B>(half: &Half) -> (Give<B>, Feeding)
where
    B: Body<Data = Bytes, Error = Cut> + Send + Unpin + 'static,
{
    let (give, got) = oneshot::channel::<B>();
    let fed = CancellationToken::new();
    let done = fed.clone().drop_guard();
    let trailers: Arc<OnceLock<HeaderMap>> = Arc::default();
    let kept = trailers.clone();
    let (mouth, way, telling) = (half.mouth(), half.way, half.telling.clone());
    let feeding = tokio::spawn(async move {
        let _done = done;
        let Ok(body) = got.await else { return };
        if fed_to(&mouth, way, &telling, body, &kept).await.is_none() {
            tracing::debug!("a body that is shown to a processor broke off");
        }
    });
    let feeding = Feeding {
        _feeding: AbortOnDropHandle::new(feeding),
        fed,
        trailers,
    };
    (give, feeding)
}

async fn fed_to<B>(
    mouth: &Pipe,
    way: Way,
    telling: &Telling,
    mut body: B,
    kept: &OnceLock<HeaderMap>,
) -> Option<()>
where
    B: Body<Data = Bytes, Error = Cut> + Unpin,
{
    let mut ended = false;
    while let Some(frame) = body.frame().await {
        let message = match frame.ok()?.into_data() {
            Ok(piece) => {
                ended = body.is_end_stream();
                process::body(way, piece, ended, telling.beside())
            }
            Err(frame) => {
                ended = true;
                let trailers = frame.into_trailers().unwrap_or_default();
                let trailers = kept.get_or_init(|| trailers);
                process::trailers(way, trailers, telling.beside())
            }
        };
        mouth.data(message.ok()?).await.ok()?;
    }
    if !ended {
        let message = process::body(way, NONE, true, telling.beside());
        mouth.data(message.ok()?).await.ok()?;
    }
    Some(())
}

/// Pieces back, as the processor likes.
pub(super) fn heard_back(
    mut half: Half,
    feeding: Feeding,
    stop: Option<mpsc::Sender<Refused>>,
) -> Piped {
    let (to, made) = pipe();
    let making = tokio::spawn(async move {
        let begun = Instant::now();
        let made = pieces_back(&mut half, &feeding, &to).await;
        half.count(&made, begun);
        if let Err(broke) = made {
            // What it had of the body is its own: there is nothing to go on with.
            let processor = &half.processor;
            let refused = match broke {
                Broke::Gone => return,
                Broke::Answered(answer) => {
                    goes_on_quietly(processor, Broke::Answered(answer)).err()
                }
                other => Some(super::closed(processor, other)),
            };
            if let Some(refused) = refused {
                tell(stop.as_ref(), refused);
            }
        }
    });
    made.made_by(making)
}

async fn pieces_back(half: &mut Half, feeding: &Feeding, to: &Pipe) -> Result<(), Broke> {
    loop {
        let said = tokio::select! {
            said = half.next() => said?,
            () = silence(feeding) => return Err(Broke::Late(PATIENCE)),
        };
        match said {
            Said::Body(common) => match common.body {
                Some(BodyChange::Piece(bytes, last)) => {
                    to.data(bytes).await.map_err(|_| Broke::Gone)?;
                    if last {
                        return to.end().await.map_err(|_| Broke::Gone);
                    }
                }
                _ => return Err(unasked()),
            },
            Said::Trailers(mutation) => {
                let mut trailers = feeding.trailers.get().cloned().unwrap_or_default();
                mutation.apply(&mut trailers);
                return to.trailers(trailers).await.map_err(|_| Broke::Gone);
            }
            Said::Longer(_) => {}
            Said::Headers(_) | Said::Immediate(_) => return Err(unasked()),
        }
    }
}

/// It has been told everything and says nothing.
async fn silence(feeding: &Feeding) {
    feeding.fed.cancelled().await;
    tokio::time::sleep(PATIENCE).await;
}
