//! Who is calling, and as whom it may speak.
//!
//! 1. a bearer token becomes a [`Caller`]: signature, audience, end, and the pod it is bound to
//!    must still be there                                             ([`Authenticator::caller`]);
//!    by our own key without a cluster, else by the API server        ([`Judge`])
//! 2. a node's proxy may ask for the identity of a pod that its own node runs, and of no other:
//!    a stolen node yields that node's identities only                ([`Authenticator::speak_for`])
//! 3. who is no pod joins by a token of its own kind       ([`Authenticator::joining`]), and shows a
//!    certificate from then on                             ([`Authenticator::caller_on`])
//!
//! Callers learn only that they were refused. Why is in our log and in the counters: an answer
//! that tells "no such pod" from "wrong node" would let a stranger map the cluster.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hbone::Identity;
use hbone::control_plane::WORKLOAD;
use http::HeaderMap;

use crate::cluster::{self, Pods, Proven, Reviewer, account_of};
use crate::machine::{self, Connection, Machine, Machines};
use crate::roster::{Pod, Roster};
use crate::token::{Named, Tokens};

/// Who knows whether a token is good.
pub enum Judge {
    /// We: they are signed by our own key.
    Own(Box<Tokens>),
    /// The API server, which also knows of pods before we do.
    Cluster(Box<Reviewer>, Box<Pods>),
}

/// What it takes to tell.
pub struct Authenticator {
    /// Verifies tokens.
    pub tokens: Judge,
    /// The pods there are.
    pub roster: Arc<ArcSwap<Roster>>,
    /// Of every identity we speak of.
    pub trust_domain: Arc<str>,
    /// Our own cluster's name, that callers put into `clusterid`.
    pub cluster: String,
    /// Accounts (`namespace/name`) of node proxies, `CA_TRUSTED_NODE_ACCOUNTS`.
    pub trusted_nodes: Vec<String>,
    /// The book of those that are no pods, where there is one.
    pub machines: Option<Arc<Machines>>,
}

/// A caller whose token was good.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its own identity.
    pub identity: Identity,
    /// The pod its token is bound to.
    pub pod: Option<Arc<Pod>>,
    /// Whether it named our cluster.
    pub named_cluster: bool,
    /// The machine that it is, if it showed a certificate instead of a token.
    pub machine: Option<Arc<Machine>>,
}

/// The caller stays unknown.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// No `authorization`, or another scheme than `Bearer`, spelled so.
    #[error("no bearer token")]
    NoToken,
    /// Wrong signature, audience or issuer, or expired.
    #[error("token refused: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    /// The same, in the API server's words.
    #[error("token refused: {0}")]
    Refused(#[from] cluster::Refused),
    /// Nobody could say whether it is good: not the caller's fault, who should come again.
    #[error("token not judged: {0}")]
    Unanswered(#[from] cluster::Unanswered),
    /// Not the token of a service account.
    #[error("token of {0:?}, which is not a service account")]
    Subject(String),
    /// The pod was deleted, or another one has its name now.
    #[error("token bound to pod {namespace}/{name}, which is not there (any more)")]
    PodGone {
        /// Of the pod.
        namespace: String,
        /// Of the pod.
        name: String,
    },
    /// We know nothing about that cluster's pods.
    #[error("cluster {0:?} is not ours")]
    Cluster(String),
    /// A machine that is not believed.
    #[error(transparent)]
    Machine(#[from] machine::Refused),
}

/// A machine does not join.
#[derive(Debug)]
pub enum Joining<E> {
    /// Its request has no key that could be signed.
    Key(E),
    /// It is not believed.
    Unknown(Unknown),
}

/// The caller is known but may not speak for that identity.
#[derive(Debug, thiserror::Error)]
pub enum NotEntitled {
    /// Not `spiffe://…/ns/…/sa/…`.
    #[error("{0:?} is no identity")]
    Malformed(String),
    /// Istio signs these; nobody who trusts our root could tell the domains apart.
    #[error("{0} lies in another trust domain than ours")]
    TrustDomain(Identity),
    /// An ordinary workload speaks for itself only.
    #[error("{0} is not a trusted node account")]
    NotTrusted(Identity),
    /// Without the cluster's name the pods to look among are not known.
    #[error("no clusterid in the request's metadata")]
    NoCluster,
    /// A token without a pod has no node.
    #[error("the token is not bound to a pod")]
    NoPod,
    /// The proxy's own pod is not scheduled.
    #[error("pod {0} of the caller has no node")]
    NoNode(String),
    /// A machine speaks for itself only.
    #[error(transparent)]
    Machine(#[from] machine::Refused),
    /// The usual refusal: no pod of that account there.
    #[error("node {node} runs no pod of {identity}")]
    NotOnNode {
        /// The caller's node.
        node: String,
        /// What it asked for.
        identity: Identity,
    },
}

impl Authenticator {
    /// The caller behind a request's metadata.
    ///
    /// # Errors
    /// Why it stays unknown.
    pub async fn caller(&self, metadata: &HeaderMap) -> Result<Caller, Unknown> {
        let token = bearer(metadata).ok_or(Unknown::NoToken)?;
        let named_cluster = self.names_our_cluster(metadata)?;
        let proven = self.tokens.judge(token).await?;
        let (namespace, account) = (&proven.namespace, &proven.service_account);
        let identity = Identity::new(&self.trust_domain, namespace, account)
            .map_err(|_| Unknown::Subject(format!("{namespace}:{account}")))?;
        let pod = match &proven.pod {
            None => None,
            Some(bound) => Some(self.pod_of(&proven, bound).await?),
        };
        Ok(Caller {
            identity,
            pod,
            named_cluster,
            machine: None,
        })
    }

    /// The caller behind a request on a connection: who has no token may have shown a certificate.
    ///
    /// # Errors
    /// Why it stays unknown.
    pub async fn caller_on(
        &self,
        connection: &Connection,
        metadata: &HeaderMap,
    ) -> Result<Caller, Unknown> {
        let shown = connection.shown.as_deref();
        let (Some(shown), Some(machines), None) = (shown, &self.machines, bearer(metadata)) else {
            return self.caller(metadata).await;
        };
        let named_cluster = self.names_our_cluster(metadata)?;
        let machine = machines
            .known(workload(metadata), shown, connection)
            .await?;
        self.caller_of(machine, named_cluster)
    }

    fn caller_of(&self, machine: Arc<Machine>, named_cluster: bool) -> Result<Caller, Unknown> {
        let join = &machine.join;
        let identity = Identity::new(&self.trust_domain, &join.namespace, &join.service_account);
        let identity = identity.map_err(|_| Unknown::Subject(machine.reference()))?;
        Ok(Caller {
            identity,
            pod: None,
            named_cluster,
            machine: Some(machine),
        })
    }

    /// The identity of the machine that joins now, if the token is for that. `key` is asked for only then: the
    /// fingerprint of the key that it joins with.
    ///
    /// # Errors
    /// Why it does not join.
    pub async fn joining<E>(
        &self,
        connection: &Connection,
        metadata: &HeaderMap,
        key: impl FnOnce() -> Result<String, E>,
    ) -> Result<Option<Caller>, Joining<E>> {
        let token = bearer(metadata).filter(|token| Machines::is_for_joining(token));
        let (Some(token), Some(machines)) = (token, &self.machines) else {
            return Ok(None);
        };
        let named_cluster = self.names_our_cluster(metadata).map_err(Joining::Unknown)?;
        let key = key().map_err(Joining::Key)?;
        let joined = machines
            .join(token, &key, workload(metadata), connection)
            .await;
        let machine = joined.map_err(|error| Joining::Unknown(error.into()))?;
        let caller = self.caller_of(machine, named_cluster);
        Ok(Some(caller.map_err(Joining::Unknown)?))
    }

    /// The pod a token is bound to, if it is (still) that one.
    async fn pod_of(&self, proven: &Proven, bound: &Named) -> Result<Arc<Pod>, Unknown> {
        let (namespace, name) = (&*proven.namespace, &*bound.name);
        let same =
            |pod: &Pod| pod.uid == bound.uid && pod.service_account == proven.service_account;
        let known = self.roster.load().pod(namespace, name).cloned();
        if let Some(pod) = known.filter(|pod| same(pod)) {
            return Ok(pod);
        }
        let asked = match &self.tokens {
            Judge::Own(_) => None,
            Judge::Cluster(_, pods) => pods.pod(namespace, name, &bound.uid).await,
        };
        let gone = || Unknown::PodGone {
            namespace: namespace.into(),
            name: name.into(),
        };
        asked.filter(same).map(Arc::new).ok_or_else(gone)
    }

    /// The identity to certify, when `caller` asks for one that may be another's.
    ///
    /// # Errors
    /// Why not.
    pub async fn speak_for(&self, caller: &Caller, wanted: &str) -> Result<Identity, NotEntitled> {
        let malformed = |_| NotEntitled::Malformed(wanted.into());
        let identity: Identity = wanted.parse().map_err(malformed)?;
        let own = &caller.identity;
        if let Some(machine) = &caller.machine {
            // It asks for what it is given anyway, or for what it is not.
            machine.says("identity", wanted, &own.to_string())?;
            return Ok(identity);
        }
        let account = format!("{}/{}", own.namespace(), own.service_account());
        if !self.trusted_nodes.contains(&account) {
            return Err(NotEntitled::NotTrusted(own.clone()));
        }
        if identity.trust_domain() != &*self.trust_domain {
            return Err(NotEntitled::TrustDomain(identity));
        }
        if !caller.named_cluster {
            return Err(NotEntitled::NoCluster);
        }
        let pod = caller.pod.as_deref().ok_or(NotEntitled::NoPod)?;
        if pod.node.is_empty() {
            return Err(NotEntitled::NoNode(pod.name.clone()));
        }
        if !self.runs(&pod.node, &identity).await {
            let node = pod.node.clone();
            return Err(NotEntitled::NotOnNode { node, identity });
        }
        Ok(identity)
    }

    async fn runs(&self, node: &str, identity: &Identity) -> bool {
        let (namespace, account) = (identity.namespace(), identity.service_account());
        if self.roster.load().runs(node, namespace, account) {
            return true;
        }
        match &self.tokens {
            Judge::Own(_) => false,
            Judge::Cluster(_, pods) => pods.runs(node, namespace, account).await,
        }
    }

    /// Missing or empty is allowed, except for those who speak for others.
    fn names_our_cluster(&self, metadata: &HeaderMap) -> Result<bool, Unknown> {
        match metadata.get("clusterid").map(|value| value.to_str()) {
            None | Some(Ok("")) => Ok(false),
            Some(Ok(cluster)) if cluster == self.cluster => Ok(true),
            Some(cluster) => Err(Unknown::Cluster(cluster.unwrap_or("?").into())),
        }
    }
}

/// Which workload a machine says that it is.
fn workload(metadata: &HeaderMap) -> &str {
    let value = metadata.get(WORKLOAD);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn bearer(metadata: &HeaderMap) -> Option<&str> {
    let value = metadata.get(http::header::AUTHORIZATION)?;
    let token = value.to_str().ok()?.strip_prefix("Bearer ")?;
    (!token.is_empty()).then_some(token)
}

impl Judge {
    /// What a token says, if it is good.
    async fn judge(&self, token: &str) -> Result<Proven, Unknown> {
        let tokens = match self {
            Self::Cluster(reviewer, _) => return Ok(reviewer.review(token).await??),
            Self::Own(tokens) => tokens,
        };
        let claims = tokens.verify(token)?;
        let odd = || Unknown::Subject(claims.sub.clone());
        let (namespace, service_account) = account_of(&claims.sub).ok_or_else(odd)?;
        Ok(Proven {
            namespace: namespace.into(),
            service_account: service_account.into(),
            pod: claims.kubernetes.pod,
        })
    }
}

impl Unknown {
    /// What the caller is told. `text` says only that it was refused; that nobody could judge is
    /// told apart, or an operator would look at tokens while the API server is down.
    pub fn status(&self, text: &'static str) -> tonic::Status {
        match self {
            Self::Machine(machine::Refused::Store(_)) => {
                tonic::Status::unavailable("the book of machines cannot be read")
            }
            // Who holds the token or the key is told what an operator has to do.
            Self::Machine(error) => {
                tonic::Status::unauthenticated(format!("{text}: {}", error.advice()))
            }
            Self::Unanswered(_) => {
                tonic::Status::unavailable("the API server cannot be asked about the token")
            }
            _ => tonic::Status::unauthenticated(text),
        }
    }
}

impl From<Tokens> for Judge {
    fn from(tokens: Tokens) -> Self {
        Self::Own(Box::new(tokens))
    }
}
