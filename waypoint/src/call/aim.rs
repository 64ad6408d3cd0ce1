//! Which endpoint, for each try of one request.
//!
//! 1. how its service is called, as policies say                       ([`Backend`])
//! 2. what the request itself says about where it goes: session, hash  ([`Aim::by`])
//! 3. one endpoint after the other, those last that were tried already ([`Aim::choose`])
//! 4. what the client is told, so that it comes back                   ([`Aim::tell`])
//!
//! What a request occupies is given back when its answer has ended ([`Held`]).

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use api::waypoint::limits::Upgrade;
use http::Response;
use http::header::{HeaderValue, SET_COOKIE};
use mesh::{Client, Locality, Service, Snapshot};
use ops::threads::here;

use super::random;
use crate::arrive::{Arrived, To};
use crate::asked::Asked;
use crate::balance::{Choice, Endpoint, Hints, NoEndpoint};
use crate::compiled::{Backend, Config};
use crate::limit::{Connections, Permit};
use crate::outlier;
use crate::proxy::Proxy;
use crate::request::Refused;
use crate::retry::Outcome;
use crate::session::{self, Session, Wanted};
use crate::upstream::{NoWay, Over, Ticket, Tls, Way};

/// Where the tries of one request go.
pub(crate) struct Aim<'a> {
    arrived: &'a Arrived,
    to: To,
    /// None for a workload itself.
    backend: Option<Arc<Backend>>,
    session: Option<&'a Session>,
    wanted: Option<Wanted>,
    hash: Option<u64>,
    /// For a client that has none to be hashed.
    cookie: Option<HeaderValue>,
    /// Uids of endpoints, but for the newest: mostly there is no other.
    tried: Vec<Arc<str>>,
    newest: Option<Arc<str>>,
    /// Whom the client asked for, where TLS towards the endpoint asks for the same.
    name: Option<Box<str>>,
}

/// One try's endpoint.
pub(crate) struct Shot {
    pub(crate) way: Way,
    choice: Option<Choice>,
    /// For a client that stays with it.
    session: Option<session::Endpoint>,
    /// What it occupies of the room for retries.
    pub(crate) room: Option<Permit>,
    /// What it occupies of the room for connections, if it has one to itself.
    pub(crate) connection: Option<Ticket>,
}

/// What a request occupies until its answer has ended: it is only ever dropped.
#[derive(Debug, Default)]
pub(crate) struct Held {
    _choice: Option<Choice>,
    _request: Option<Permit>,
    _retry: Option<Permit>,
    _beside: Option<Permit>,
    _connection: Option<Ticket>,
}

impl<'a> Aim<'a> {
    /// At a service (all of it, or a subset that is not ""), or at a workload itself.
    pub(crate) fn at(
        arrived: &'a Arrived,
        config: &Config,
        to: To,
        subset: &str,
    ) -> Result<Self, Refused> {
        let backend = match to.service() {
            None => None,
            Some(service) => {
                let towards = config.calls.towards(&service.key());
                let backend = towards.backend(to.port(), subset, arrived.client.namespace());
                let backend = backend.map_err(|why| Refused::Uncallable(why.to_string()))?;
                callable(&backend)?;
                Some(backend)
            }
        };
        Ok(Self {
            arrived,
            to,
            backend,
            session: None,
            wanted: None,
            hash: None,
            cookie: None,
            tried: Vec::new(),
            newest: None,
            name: None,
        })
    }

    /// Whether it must know whom the client asked for.
    pub(crate) fn wants_name(&self) -> bool {
        let secured = self
            .backend
            .as_ref()
            .and_then(|backend| backend.secured.as_ref());
        secured.is_some_and(|tls| tls.asks_as_client())
    }

    /// Whom the client asked for.
    pub(crate) fn named(&mut self, name: &str) {
        self.name = Some(name.into());
    }

    /// What is spoken over a connection first.
    fn over(&self, backend: &Backend) -> Over {
        let asked = |tls: &Arc<Tls>| self.name.clone().filter(|_| tls.asks_as_client());
        let version = u8::try_from(backend.proxy_protocol).unwrap_or(2);
        let (client, to) = (self.arrived.client.address, self.to.address());
        Over {
            proxy: (version != 0).then_some((version, client, to)),
            tls: backend
                .secured
                .as_ref()
                .map(|tls| (tls.clone(), asked(tls))),
        }
    }

    /// Whether the request itself can say something about where it goes.
    pub(crate) fn listens(&self, rule: Option<&Session>) -> bool {
        let says = |backend: &Backend| {
            backend.session.is_some() || backend.group.policy().hash().is_some()
        };
        rule.is_some() || self.backend.as_deref().is_some_and(says)
    }

    /// What the request says; `rule`: how its rule keeps sessions, which goes before how its service does.
    pub(crate) fn by(&mut self, asked: &Asked<'_>, rule: Option<&'a Session>) {
        let Some(backend) = &self.backend else {
            return;
        };
        self.session = rule;
        let session = rule.or(backend.session.as_ref());
        self.wanted = session.and_then(|it| it.wanted(asked.headers, SystemTime::now()));
        let Some(by) = backend.group.policy().hash() else {
            return;
        };
        self.hash = by.of(asked);
        if self.hash.is_none()
            && let Some((hash, cookie)) = by.new_cookie(asked, random())
        {
            (self.hash, self.cookie) = (Some(hash), Some(cookie));
        }
    }

    /// The same of a connection that nobody looks into: who its client is.
    pub(crate) fn by_client(&mut self) {
        let by = self
            .backend
            .as_ref()
            .and_then(|it| it.group.policy().hash());
        self.hash = by.and_then(|by| by.of_connection(self.arrived.client.address.ip()));
    }

    /// What its service is, as the client meant it.
    pub(crate) fn to(&self) -> &To {
        &self.to
    }

    /// Room for the request. None where nothing limits it.
    pub(crate) fn enter(&self) -> Result<Option<Permit>, Refused> {
        let Some(backend) = &self.backend else {
            return Ok(None);
        };
        if let Some(budget) = &backend.budget {
            budget.request(passed());
        }
        let permit = backend.gates.requests.enter();
        permit.map(Some).ok_or(Refused::Full)
    }

    /// Room for a connection that speaks another protocol. None where nothing limits it, or where it waits for room as requests
    /// do.
    pub(crate) fn enter_switching(&self) -> Result<Option<Permit>, Refused> {
        let waits = self.backend.as_ref().is_some_and(|it| it.gates.counts());
        if waits { Ok(None) } else { self.enter_alone() }
    }

    /// Room for a connection of bytes. None where nothing limits it.
    pub(crate) fn enter_alone(&self) -> Result<Option<Permit>, Refused> {
        let Some(backend) = &self.backend else {
            return Ok(None);
        };
        let permit = backend.gates.connections.enter();
        permit.map(Some).ok_or(Refused::Full)
    }

    /// What holds for each of its connections; none for a workload itself.
    pub(crate) fn each(&self) -> Option<Connections> {
        self.backend.as_ref().map(|backend| backend.gates.each)
    }

    /// When HTTP/2 is spoken to it.
    pub(crate) fn upgrade(&self) -> Upgrade {
        let backend = self.backend.as_ref();
        backend.map_or(Upgrade::AsDeclared, |it| it.gates.each.http2)
    }

    /// Whether its service has room for one more retry; the room, if it is counted.
    pub(crate) fn enter_again(&self) -> Result<Option<Permit>, Refused> {
        let Some(backend) = &self.backend else {
            return Ok(None);
        };
        let permit = backend.gates.retries.enter().ok_or(Refused::Full)?;
        match &backend.budget {
            Some(budget) if !budget.retry(passed()) => Err(Refused::Full),
            _ => Ok(Some(permit)),
        }
    }

    /// The next endpoint.
    pub(crate) fn choose(&mut self) -> Result<Shot, Refused> {
        let address = self.to.address();
        let (service, backend) = match (&self.to, &self.backend) {
            (To::Workload { workload, .. }, _) => {
                let way = Way::to(workload, Some(address.ip()), address.port(), None)?;
                return Ok(Shot::at(way));
            }
            (To::Service { service, .. }, Some(backend)) => (service, backend),
            (To::Service { .. }, None) => return Err(NoEndpoint::NoPort(self.to.port()).into()),
        };
        let proxy = &self.arrived.proxy;
        let snapshot = proxy.mesh.load();
        let members = snapshot.members(&service.namespace, &service.hostname);
        let members = members.ok_or(NoEndpoint::NoPort(self.to.port()))?;
        let own = own(proxy, &snapshot, address.is_ipv6());
        self.tried.extend(self.newest.take());
        let prefer = self.wanted.map(|wanted| wanted.endpoint);
        let hints = Hints {
            hash: self.hash,
            prefer: prefer.filter(|_| self.tried.is_empty()),
            avoid: &self.tried,
            only_here: self.arrived.from_abroad,
        };
        let now = Instant::now();
        let chosen = backend.group.choose(&members, &own, &hints, random(), now);
        let choice = match chosen {
            Ok(choice) => choice,
            Err(NoEndpoint::Passthrough) => {
                let way = Way::plain(address).over(self.over(backend));
                let way = way.within(backend.gates.each.patience());
                return Ok(Shot::at(way.bound_by(&backend.gates)));
            }
            Err(why) => return Err(why.into()),
        };
        let workload = &choice.endpoint.workload;
        let way = self.way(&choice.endpoint, service, backend)?;
        self.newest = Some(workload.uid.clone());
        let stays = self.session.is_some() || backend.session.is_some();
        let session = stays.then(|| {
            let (namespace, host) = (&service.namespace, &service.hostname);
            session::Endpoint::of(namespace, host, &workload.uid)
        });
        Ok(Shot {
            session,
            choice: Some(choice),
            ..Shot::at(way)
        })
    }

    fn way(
        &self,
        endpoint: &Endpoint,
        service: &Arc<Service>,
        backend: &Backend,
    ) -> Result<Way, NoWay> {
        let way = Way::to(
            &endpoint.workload,
            endpoint.address,
            endpoint.target_port,
            Some((service, self.to.port())),
        )?;
        Ok(way
            .over(self.over(backend))
            .within(backend.gates.each.patience())
            .bound_by(&backend.gates))
    }

    /// Connects to endpoints that have come since requests of this thread last went to the service, so that the first that is
    /// sent to one does not wait for a tunnel.
    pub(crate) fn greet(&self, http2: bool) {
        let (To::Service { service, .. }, Some(backend)) = (&self.to, &self.backend) else {
            return;
        };
        for endpoint in backend.group.newcomers(here()) {
            let way = self.way(&endpoint, service, backend);
            // Connections that say whose they are can be had by nobody else, and gateways lead to whom they like.
            let fits = |_: &Way| backend.proxy_protocol == 0 && endpoint.gateway().is_none();
            let Some(way) = way.ok().filter(fits) else {
                continue;
            };
            let proxy = self.arrived.proxy.clone();
            tokio::spawn(async move { proxy.upstreams.warm(&way, http2).await });
        }
    }

    /// Whether the endpoint that a client stays with is one of those that it may choose.
    pub(crate) fn has(&self, wanted: &Wanted) -> bool {
        let (To::Service { service, .. }, Some(backend)) = (&self.to, &self.backend) else {
            return false;
        };
        let proxy = &self.arrived.proxy;
        let snapshot = proxy.mesh.load();
        let Some(members) = snapshot.members(&service.namespace, &service.hostname) else {
            return false;
        };
        let own = own(proxy, &snapshot, self.to.address().is_ipv6());
        let now = Instant::now();
        backend.group.has(&members, &own, &wanted.endpoint, now)
    }

    /// Whether the client has an endpoint that it stays with.
    pub(crate) fn is_bound(&self) -> bool {
        self.wanted.is_some()
    }

    /// Tells the client with whom it stays: with who answered.
    pub(crate) fn tell<B>(&self, shot: &Shot, answer: &mut Response<B>) {
        let own = || self.backend.as_ref()?.session.as_ref();
        if let (Some(session), Some(endpoint)) = (self.session.or_else(own), shot.session)
            && let Some((name, value)) =
                session.keep(endpoint, self.wanted.as_ref(), SystemTime::now())
        {
            answer.headers_mut().append(name, value);
        }
        if let Some(cookie) = &self.cookie {
            answer.headers_mut().append(SET_COOKIE, cookie.clone());
        }
    }
}

impl Shot {
    /// At what nobody had to choose.
    fn at(way: Way) -> Self {
        Self {
            way,
            choice: None,
            session: None,
            room: None,
            connection: None,
        }
    }

    /// What came of it, for whoever leaves bad endpoints out.
    pub(crate) fn ended(&self, outcome: Outcome) {
        let Some(choice) = &self.choice else {
            return;
        };
        // Its time has passed before there was a connection for it: that its endpoint has much to do is no fault.
        if self.way.is_waiting() && outcome == Outcome::Timeout {
            return;
        }
        let outcome = match outcome {
            Outcome::Answered { status, grpc } => outlier::Outcome::answered(status.as_u16(), grpc),
            Outcome::ConnectFailure => outlier::Outcome::ConnectFailure,
            Outcome::Timeout => outlier::Outcome::Timeout,
            Outcome::RefusedStream | Outcome::Reset => outlier::Outcome::Reset,
            Outcome::Overflow => return, // it was not asked
        };
        if choice.ended(outcome, Instant::now()) {
            let workload = &choice.endpoint.workload.uid;
            tracing::info!(%workload, "an endpoint is left out for its errors");
        }
    }

    /// Its endpoint is busy as long as this is there.
    pub(crate) fn held(self, request: Option<Permit>, retry: Option<Permit>) -> Held {
        Held {
            _choice: self.choice,
            _request: request,
            _retry: retry,
            _beside: self.room,
            _connection: self.connection,
        }
    }
}

/// What is asked for and cannot be understood is not done in another way.
fn callable(backend: &Backend) -> Result<(), Refused> {
    match &backend.broken {
        Some(why) => Err(Refused::Uncallable(why.clone())),
        None => Ok(()),
    }
}

/// Where this proxy is.
fn own<'s>(proxy: &'s Proxy, snapshot: &'s Snapshot, ipv6: bool) -> Client<'s> {
    match snapshot.workload_at(&proxy.network, proxy.config.own_ip()) {
        Some(own) => Client::of(own, ipv6),
        None => Client {
            network: &proxy.network,
            locality: &NOWHERE,
            node: &proxy.config.node_name,
            cluster: &proxy.config.cluster_id,
            namespace: &proxy.config.pod_namespace,
            ipv6,
        },
    }
}

/// Since the process began to count.
fn passed() -> Duration {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGAN.elapsed()
}

/// Of a proxy that does not know where it runs.
static NOWHERE: LazyLock<Locality> = LazyLock::new(Locality::default);
