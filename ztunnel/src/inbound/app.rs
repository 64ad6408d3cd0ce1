//! The last step to an app: a connection inside its pod's namespace, from the client's own address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::hint::Hint;
use crate::netns::From;
use crate::node::Node;
use crate::pod::Pod;
use crate::report::Report;

/// Why the app could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("connection failed: {0}")]
    Refused(io::Error),
    #[error("connection timed out: the app at {0} did not answer in {APP_TIMEOUT:?}")]
    Silent(SocketAddr),
    #[error("the client's address {0} could not be kept, as ENABLE_ORIG_SRC demands: {1}")]
    SourceLost(IpAddr, io::Error),
}

impl Unreachable {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Hint {
        match self {
            Self::Refused(_) => Hint::AppRefuses,
            Self::Silent(_) => Hint::AppSilent,
            Self::SourceLost(..) => Hint::SourceAddress,
        }
    }
}

/// The app is in this very namespace: what does not answer in this time has a full backlog and a bigger problem.
const APP_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to the app inside its namespace, from the client's own address, so that it sees its client although we
/// stand between. Where that address cannot be had the report says so.
pub(crate) async fn reach(
    node: &Node,
    pod: &Pod,
    client: IpAddr,
    app: SocketAddr,
    report: &mut Report,
) -> Result<TcpStream, Unreachable> {
    let wanted = node.config.require_original_source != Some(false);
    if wanted && client.is_ipv4() == app.is_ipv4() {
        match connect(pod, From::Foreign(client), app).await {
            Err(Unreachable::Refused(why)) if is_about_the_source(&why) => {
                if node.config.require_original_source == Some(true) {
                    return Err(Unreachable::SourceLost(client, why));
                }
            }
            done => return done,
        }
    }
    report.note("the app sees this pod's address instead of the client's");
    connect(pod, From::Any, app).await
}

async fn connect(pod: &Pod, from: From, app: SocketAddr) -> Result<TcpStream, Unreachable> {
    match tokio::time::timeout(APP_TIMEOUT, pod.netns.connect(from, app)).await {
        Ok(connected) => connected.map_err(Unreachable::Refused),
        Err(_) => Err(Unreachable::Silent(app)),
    }
}

/// No capability for foreign addresses, or none of this kind here.
fn is_about_the_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::EADDRNOTAVAIL | libc::EINVAL)
    )
}
