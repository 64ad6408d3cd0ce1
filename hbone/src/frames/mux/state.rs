//! A connection is given up as bytes, and gone on with. The layout is in [`crate::frames::state`].

use super::{Decoder, Leaving, Mux, Remote, Settings, StreamId, Streams, Window, is};
use crate::frames::{
    abuse::Abuse,
    settings::{FIRST_WINDOW, LARGEST_WINDOW},
    state::{Reader, StateError, VERSION, ensure, put_string, put_u32},
};

/// What is true or not of a connection.
mod mark {
    pub(super) const CLIENT: u8 = 1;
    pub(super) const GREETED: u8 = 2;
    pub(super) const ACKNOWLEDGED: u8 = 4;
    pub(super) const SHRINK: u8 = 8;
    pub(super) const SHRUNK: u8 = 16;
    pub(super) const ALL: u8 = 31;
}

impl Mux {
    /// Gives up the connection, so that another may go on with it; none when it is over. What was given
    /// to [`Mux::take`] must have been used, all of it. Bytes that nobody has read are not in there:
    /// whoever goes on with them gives them back ([`Mux::consumed`]).
    #[must_use]
    pub fn into_state(self) -> Option<Vec<u8>> {
        self.state()
    }

    /// What [`Mux::into_state`] gives, of one that nobody uses meanwhile.
    pub(crate) fn state(&self) -> Option<Vec<u8>> {
        if self.over.is_some() || self.leaving == Leaving::Gone {
            return None;
        }
        let mut to = Vec::with_capacity(256);
        to.extend_from_slice(&[VERSION, self.marks()]);
        self.settings.write(&mut to);
        self.remote.write(&mut to);
        put_u32(&mut to, self.newest.0);
        put_u32(&mut to, u32::try_from(self.send).ok()?);
        put_u32(&mut to, u32::try_from(self.most_send).ok()?);
        self.receive.write(&mut to)?;
        put_u32(&mut to, self.abuse.earned());
        match self.leaving {
            Leaving::No => to.push(0),
            Leaving::Announced => to.push(1),
            Leaving::Said(last) => put_behind(&mut to, 2, last),
            Leaving::Gone => return None,
        }
        match self.told {
            None => to.push(0),
            Some(last) => put_behind(&mut to, 1, last),
        }
        self.streams.write(&mut to);
        // Those that ended while they waited are left out.
        let queue = || {
            self.queue
                .iter()
                .filter(|id| self.streams.get(**id).is_some())
        };
        put_u32(&mut to, queue().count() as u32); // each stream once
        queue().for_each(|id| put_u32(&mut to, id.0));
        self.decoder.write(&mut to);
        self.input.write(&mut to);
        put_string(&mut to, &self.out);
        Some(to)
    }

    /// Goes on where another stopped. The budgets for what a peer may do in vain begin anew.
    ///
    /// # Errors
    /// When the bytes are not what [`Mux::into_state`] gives.
    pub fn from_state(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(bytes)?;
        let from = &mut reader;
        let marks = from.u8()?;
        ensure(marks & !mark::ALL == 0, "a mark that no connection has")?;
        let is = |bit| marks & bit != 0;
        let settings = Settings::restore(from)?;
        let mut mux = Self {
            client: is(mark::CLIENT),
            greeted: is(mark::GREETED),
            acknowledged: is(mark::ACKNOWLEDGED),
            shrunk: is(mark::SHRUNK),
            remote: Remote::restore(is(mark::SHRINK), from)?,
            newest: from.stream()?,
            send: from.u32()?.into(),
            most_send: from.u32()?.into(),
            receive: Window::restore(settings.connection_window.max(FIRST_WINDOW), from)?,
            abuse: Abuse::restore(from)?,
            leaving: leaving(from)?,
            told: told(from)?,
            ..Self::new(&settings, is(mark::CLIENT))
        };
        mux.streams = Streams::restore(mux.client, &settings, mux.newest, from)?;
        mux.restore_queue(from)?;
        mux.decoder = Decoder::restore(mux.acknowledged, from)?;
        mux.is_possible()?;
        mux.restore_input(from)?;
        mux.out = from.string()?.to_vec();
        reader.end()?;
        Ok(mux)
    }

    fn marks(&self) -> u8 {
        [
            (self.client, mark::CLIENT),
            (self.greeted, mark::GREETED),
            (self.acknowledged, mark::ACKNOWLEDGED),
            (self.remote.shrink, mark::SHRINK),
            (self.shrunk, mark::SHRUNK),
        ]
        .iter()
        .filter(|(is, _)| *is)
        .fold(0, |marks, (_, mark)| marks | mark)
    }

    /// Each that stands there waits, and stands there once.
    fn restore_queue(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        for _ in 0..from.u32()? {
            let id = from.stream()?;
            let what = "a stream is queued that does not wait";
            let stream = self.streams.get_mut(id);
            let stream = stream.ok_or(StateError::Impossible(what))?;
            ensure(stream.is(is::WAITING) && !stream.is(is::QUEUED), what)?;
            stream.state |= is::QUEUED;
            self.queue.push_back(id);
        }
        let mut forgotten = self
            .streams
            .iter()
            .filter(|stream| stream.is(is::WAITING) && !stream.is(is::QUEUED) && stream.send > 0);
        ensure(
            forgotten.next().is_none(),
            "a stream waits and is not queued",
        )
    }

    /// What no part can say by itself.
    fn is_possible(&self) -> Result<(), StateError> {
        let odd = self.newest == StreamId::CONNECTION || self.newest.0 % 2 == 1;
        ensure(odd, "the newest stream is none of a client")?;
        let most = i64::from(FIRST_WINDOW)..=i64::from(LARGEST_WINDOW);
        let sound = self.send <= self.most_send && most.contains(&self.most_send);
        ensure(sound, "a connection window of the peer's is too large")?;
        ensure(
            self.remote.shrink || !self.shrunk,
            "a table nobody asked for",
        )?;
        let surplus = !self.client && self.streams.len() > self.settings.streams as usize;
        ensure(!surplus, "more streams than may be open")?;
        let ours = match self.leaving {
            Leaving::Announced => !self.client,
            Leaving::Said(last) if self.client => last == StreamId::CONNECTION,
            Leaving::Said(last) => last <= self.newest,
            Leaving::No | Leaving::Gone => true,
        };
        ensure(ours, "we cannot have gone so")?;
        let last = self.streams.iter().last().map(|stream| stream.id);
        let forgotten = !self.client || self.told.is_none_or(|told| last <= Some(told));
        ensure(forgotten, "a stream is open that the peer does not look at")?;
        let unheard = !self.acknowledged
            && self.told.is_none()
            && self.remote == Remote::new()
            && self.decoder.is_new()
            && (self.client || self.newest == StreamId::CONNECTION);
        ensure(self.greeted || unheard, "heard of a peer that said nothing")
    }
}

fn put_behind(to: &mut Vec<u8>, tag: u8, stream: StreamId) {
    to.push(tag);
    put_u32(to, stream.0);
}

fn leaving(from: &mut Reader<'_>) -> Result<Leaving, StateError> {
    match from.u8()? {
        0 => Ok(Leaving::No),
        1 => Ok(Leaving::Announced),
        2 => from.stream().map(Leaving::Said),
        _ => Err(StateError::Impossible("we go in a way that is none")),
    }
}

fn told(from: &mut Reader<'_>) -> Result<Option<StreamId>, StateError> {
    match from.bool()? {
        true => from.stream().map(Some),
        false => Ok(None),
    }
}
