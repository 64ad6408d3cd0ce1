//! Pure but for the bells of those who wait: what was asked for, what is known of the answers, and who was needed last.
//!
//! ```text
//!            see                       hear                     nobody needs it: expire, or made room for
//!   (none) ───────▶ Waiting ─────────────────────▶ Told ───────────────────────────────────────▶ (none)
//!            asked     ▲         somebody there
//!                      │         ──────────────▶ Absent, Unreadable ──┐
//!                      └───── its time is over: asked again ──────────┘
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::names::{split_address, split_range};
use mesh::{Rejected, Update};
use tokio::sync::watch;
use tokio::time::Instant;

/// What is known of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// None has come.
    Waiting,
    /// Whoever it is stands in the mesh, and is kept up to date.
    There,
    /// Nobody; asked again from then on.
    Absent(Instant),
    /// Somebody who cannot be understood; asked again from then on.
    Unreadable(Instant),
}

/// What seeing a name leads to.
#[derive(Debug)]
pub(super) enum Seen {
    /// The answer is here.
    Known(Told),
    /// It is on its way.
    Wait(watch::Receiver<Told>),
    /// It must be asked for; `again` if it was before.
    Ask {
        name: Arc<str>,
        again: bool,
        answer: watch::Receiver<Told>,
    },
    /// There is no room for one more.
    Full,
}

/// What needs a name. Each has room of its own: questions about names, of which a pod can think up any number, and about
/// clients, who may be any number, push out nobody whom a connection goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Connection,
    Question,
}

/// The names that are followed.
#[derive(Debug)]
pub(super) struct Book {
    followed: HashMap<Arc<str>, Entry>,
    /// By what needs them, in the order in which they were needed last.
    by_need: [BTreeMap<u64, Arc<str>>; 2],
    needs: u64,
    /// How many connections may need; questions a [`QUESTIONS`]th of it.
    most: usize,
    /// Followed no more, and the control plane has not been told.
    given_up: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    told: watch::Sender<Told>,
    needed_for: For,
    need: u64,
    needed: Instant,
}

impl Book {
    /// Of at most so many names that connections need.
    pub(super) fn new(most: usize) -> Self {
        Self {
            followed: HashMap::new(),
            by_need: Default::default(),
            needs: 0,
            most,
            given_up: HashSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.followed.len()
    }

    /// Somebody needs to know who has that name.
    pub(super) fn see(&mut self, name: &str, needed_for: For, now: Instant) -> Seen {
        if !self.need(name, now) {
            return self.enter(name, needed_for, now);
        }
        if needed_for == For::Connection {
            self.keep_for_connections(name);
        }
        let Some((name, entry)) = self.followed.get_key_value(name) else {
            return Seen::Full;
        };
        let told = *entry.told.borrow();
        match told {
            Told::There => Seen::Known(told),
            Told::Absent(until) | Told::Unreadable(until) if now < until => Seen::Known(told),
            Told::Waiting => Seen::Wait(entry.told.subscribe()),
            Told::Absent(_) | Told::Unreadable(_) => {
                entry.told.send_replace(Told::Waiting);
                Seen::Ask {
                    name: name.clone(),
                    again: true,
                    answer: entry.told.subscribe(),
                }
            }
        }
    }

    /// What was told of that name does not hold any more: it is as if nobody had been there, and that long ago.
    pub(super) fn doubt(&mut self, name: &str, now: Instant) {
        if let Some(entry) = self.followed.get(name) {
            entry.told.send_if_modified(|told| {
                let doubted = *told == Told::There;
                if doubted {
                    *told = Told::Absent(now);
                }
                doubted
            });
        }
    }

    /// It is needed now as well. Whether it is followed at all.
    pub(super) fn need(&mut self, name: &str, now: Instant) -> bool {
        let Some((name, entry)) = self.followed.get_key_value(name) else {
            return false;
        };
        let (name, before) = (name.clone(), entry.need);
        self.needs += 1;
        let by_need = &mut self.by_need[entry.needed_for as usize];
        by_need.remove(&before);
        by_need.insert(self.needs, name.clone());
        if let Some(entry) = self.followed.get_mut(&name) {
            (entry.need, entry.needed) = (self.needs, now);
        }
        true
    }

    /// What is known of that name, if it is followed and that holds; then it is needed now as well.
    pub(super) fn known(&mut self, name: &str, now: Instant) -> Option<Told> {
        if !self.need(name, now) {
            return None;
        }
        let told = *self.followed.get(name)?.told.borrow();
        match told {
            Told::There => Some(told),
            Told::Absent(until) | Told::Unreadable(until) => (now < until).then_some(told),
            Told::Waiting => None,
        }
    }

    /// What a question was about before counts among what connections need from now on, if there is room.
    fn keep_for_connections(&mut self, name: &str) {
        let asked_about = |entry: &&Entry| entry.needed_for == For::Question;
        if self.followed.get(name).filter(asked_about).is_none() || !self.make_room(For::Connection)
        {
            return;
        }
        if let Some(entry) = self.followed.get_mut(name) {
            entry.needed_for = For::Connection;
            let [connections, questions] = &mut self.by_need;
            connections.extend(questions.remove_entry(&entry.need));
        }
    }

    fn enter(&mut self, name: &str, needed_for: For, now: Instant) -> Seen {
        // As many more may be on their way out, and some where that is few.
        if self.given_up.len() >= self.most + SPARE || !self.make_room(needed_for) {
            return Seen::Full;
        }
        let name: Arc<str> = name.into();
        let (told, answer) = watch::channel(Told::Waiting);
        self.needs += 1;
        self.by_need[needed_for as usize].insert(self.needs, name.clone());
        let entry = Entry {
            told,
            needed_for,
            need: self.needs,
            needed: now,
        };
        self.followed.insert(name.clone(), entry);
        // The control plane has not been told that it was given up: for it, this is a repeated question.
        let again = self.given_up.remove(&name);
        Seen::Ask {
            name,
            again,
            answer,
        }
    }

    /// Whether there is room for one more: who was not needed for longest makes it, unless somebody waits for him.
    fn make_room(&mut self, needed_for: For) -> bool {
        let most = match needed_for {
            For::Connection => self.most,
            For::Question => (self.most / QUESTIONS).max(1),
        };
        let by_need = &self.by_need[needed_for as usize];
        if by_need.len() < most {
            return true;
        }
        let waited_for = |name: &Arc<str>| {
            let entry = self.followed.get(name);
            entry.is_some_and(|entry| entry.told.receiver_count() > 0)
        };
        let oldest = by_need.first_key_value().map(|(_, name)| name.clone());
        match oldest.filter(|oldest| !waited_for(oldest)) {
            Some(oldest) => {
                self.give_up(&oldest);
                true
            }
            None => false,
        }
    }

    /// It could not be asked for after all.
    pub(super) fn unasked(&mut self, name: &str, again: bool) {
        let Some(entry) = self.followed.remove(name) else {
            return;
        };
        self.by_need[entry.needed_for as usize].remove(&entry.need);
        if again {
            self.given_up.insert(name.into());
        }
    }

    fn give_up(&mut self, name: &Arc<str>) {
        if let Some(entry) = self.followed.remove(name) {
            self.by_need[entry.needed_for as usize].remove(&entry.need);
            self.given_up.insert(name.clone());
        }
    }

    /// Gives up what was not needed since.
    pub(super) fn expire(&mut self, since: Instant) {
        for needed_for in [For::Connection, For::Question] {
            while let Some((_, name)) = self.by_need[needed_for as usize].first_key_value() {
                let needed = self.followed.get(name).map(|entry| entry.needed);
                if needed.is_some_and(|needed| needed >= since) {
                    break;
                }
                let name = name.clone();
                self.give_up(&name);
            }
        }
    }

    /// What was given up, for the control plane to be told.
    pub(super) fn take_given_up(&mut self) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.given_up)
    }

    /// How many were given up that the control plane has not been told of.
    pub(super) fn given_up(&self) -> usize {
        self.given_up.len()
    }

    pub(super) fn follows(&self, name: &str) -> bool {
        self.followed.contains_key(name)
    }

    /// Whether an address of that range is followed.
    pub(super) fn follows_within(&self, network: &str, range: &dyn Fn(IpAddr) -> bool) -> bool {
        let mut names = self.followed.keys();
        names.any(|name| is_within(name, network, range))
    }

    /// Whether an answer is on its way.
    pub(super) fn is_waiting(&self) -> bool {
        let mut entries = self.followed.values();
        entries.any(|entry| *entry.told.borrow() == Told::Waiting)
    }

    /// Whether that name is followed, and no answer has come.
    pub(super) fn waits_for(&self, name: &str) -> bool {
        let entry = self.followed.get(name);
        entry.is_some_and(|entry| *entry.told.borrow() == Told::Waiting)
    }

    /// Of whom no answer has come.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Arc<str>> {
        let all = self.followed.iter();
        let waiting = all.filter(|(_, entry)| *entry.told.borrow() == Told::Waiting);
        waiting.map(|(name, _)| name)
    }

    /// Takes in what the control plane has told.
    pub(super) fn hear(&mut self, heard: Heard, asked_again_after: Duration, now: Instant) {
        let until = now + asked_again_after;
        for name in &heard.absent {
            self.tell(name, Told::Absent(until));
        }
        let refused = |name: &Arc<str>| heard.refused.contains(name);
        // What was refused counts last: of several who have an address, nobody is left out.
        for readable in [true, false] {
            let told = if readable {
                Told::There
            } else {
                Told::Unreadable(until)
            };
            for name in heard.set.iter().filter(|name| refused(name) != readable) {
                self.tell(name, told);
            }
            let aliases = heard.aliases.iter();
            for (_, alias) in aliases.filter(|(name, _)| refused(name) != readable) {
                self.tell(alias, told);
                self.tell_within(alias, told);
            }
        }
    }

    fn tell(&self, name: &str, told: Told) {
        if let Some(entry) = self.followed.get(name) {
            entry.told.send_replace(told);
        }
    }

    /// Tells those who asked for an address of that range.
    fn tell_within(&self, alias: &str, told: Told) {
        let Some((network, range)) = split_range(alias) else {
            return;
        };
        let (names, range) = (self.followed.iter(), |ip| range.contains(&ip));
        for (_, entry) in names.filter(|(name, _)| is_within(name, network, &range)) {
            entry.told.send_replace(told);
        }
    }
}

/// What responses told, up to the moment at which it is seen.
#[derive(Debug, Default)]
pub(super) struct Heard {
    set: Vec<Arc<str>>,
    aliases: Vec<(Arc<str>, String)>,
    absent: Vec<Arc<str>>,
    refused: HashSet<Arc<str>>,
}

impl Heard {
    /// Takes down what an update is about to tell.
    pub(super) fn note(&mut self, update: &Update) {
        let addresses = &update.addresses;
        let set = addresses.set.iter().map(|(name, _)| name.clone());
        self.set.extend(set);
        let aliases = update.aliases.iter();
        let aliases = aliases.map(|alias| (alias.of.clone(), alias.as_str().to_owned()));
        self.aliases.extend(aliases);
        self.absent.extend(addresses.removed.iter().cloned());
    }

    /// Takes down what of it could not be understood.
    pub(super) fn refused(&mut self, rejected: &[Rejected]) {
        let names = rejected.iter().map(|rejected| rejected.name.clone());
        self.refused.extend(names);
    }
}

/// Of names that the control plane has not been told that they were given up.
const SPARE: usize = 1024;
/// Questions have this part of the room that connections have.
const QUESTIONS: usize = 4;

fn is_within(name: &str, network: &str, range: &dyn Fn(IpAddr) -> bool) -> bool {
    split_address(name).is_some_and(|(of, ip)| of == network && range(ip))
}
