//! Things by host: the more a rule says of it, the sooner it is found.

use imbl::HashMap;

/// A host that a rule is for, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Is(Box<str>),
    /// With the dot: `*.example.org` is `.example.org`, and stands for one label or more before it.
    EndsIn(Box<str>),
}

impl Host {
    pub(super) fn compile(host: &str) -> Result<Self, String> {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some(rest) if rest.starts_with('.') && rest.len() > 1 && !rest.contains('*') => {
                Ok(Self::EndsIn(rest.into()))
            }
            None if !host.is_empty() && !host.contains('*') => Ok(Self::Is(host.into())),
            _ => Err(format!("host {host:?}: a name, or *. and a name")),
        }
    }
}

/// One thing for each host, each wildcard, and for all. Copies share what is equal between them.
#[derive(Debug, Clone)]
pub(super) struct Hosts<T> {
    names: HashMap<Box<str>, T>,
    endings: HashMap<Box<str>, T>,
    all: Option<T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self {
            names: HashMap::new(),
            endings: HashMap::new(),
            all: None,
        }
    }
}

impl<T> Hosts<T> {
    /// What is for this host, the most specific first.
    pub(super) fn of<'t, 'h>(
        &'t self,
        host: &'h str,
    ) -> impl Iterator<Item = &'t T> + use<'t, 'h, T> {
        // Mostly there is but one for all, and nothing is hashed.
        let name = (!self.names.is_empty()).then(|| self.names.get(host));
        let ending = (!self.endings.is_empty()).then_some(host);
        let dots = ending.into_iter().flat_map(|host| host.match_indices('.'));
        let endings = dots
            .filter(|(at, _)| *at > 0)
            .filter_map(move |(at, _)| self.endings.get(&host[at..]));
        name.flatten().into_iter().chain(endings).chain(&self.all)
    }

    /// What is for no host in particular.
    pub(super) fn of_all(&self) -> Option<&T> {
        self.all.as_ref()
    }
}

impl<T: Clone + Default> Hosts<T> {
    /// The one of that host; None: of all.
    pub(super) fn entry(&mut self, host: Option<&Host>) -> &mut T {
        match host {
            Some(Host::Is(name)) => self.names.entry(name.clone()).or_default(),
            Some(Host::EndsIn(ending)) => self.endings.entry(ending.clone()).or_default(),
            None => self.all.get_or_insert_default(),
        }
    }

    /// Lets `take` take something out of the one of that host, and say whether nothing is left.
    pub(super) fn take_out(&mut self, host: Option<&Host>, take: impl FnOnce(&mut T) -> bool) {
        let (things, host) = match host {
            Some(Host::Is(name)) => (&mut self.names, name),
            Some(Host::EndsIn(ending)) => (&mut self.endings, ending),
            None => {
                self.all.take_if(take);
                return;
            }
        };
        if things.get_mut(host).is_some_and(take) {
            things.remove(host);
        }
    }

    /// There is none.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.endings.is_empty() && self.all.is_none()
    }
}
