//! What conditions can know: of a request, or of a connection that carries something else.

use std::cell::OnceCell;
use std::net::SocketAddr;

use hbone::Identity;

use super::Connection;
use super::path::Readings;
use crate::asked::{Asked, Claim, Host, Remote, host};
use crate::client::Client;
use crate::process::Metadata;

/// A request or a connection, and what was worked out about it so far.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) client: &'a Client,
    pub(super) destination: SocketAddr,
    pub(super) port: u16,
    pub(super) sni: Option<&'a str>,
    /// There may be a server's name that nobody could read.
    pub(super) unread: bool,
    pub(super) remote: Remote,
    /// None: not HTTP, or not to be read.
    pub(super) http: Option<Http<'a>>,
}

/// What only a request has.
#[derive(Debug)]
pub(super) struct Http<'a> {
    pub(super) asked: &'a Asked<'a>,
    pub(super) path: Readings<'a>,
    /// What was said of it by those who were asked.
    pub(super) said: Option<&'a Metadata>,
    port: OnceCell<Option<Option<u16>>>,
    underscores: OnceCell<bool>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(asked: &'a Asked<'a>) -> Self {
        Self {
            client: asked.client,
            destination: asked.destination,
            port: asked.port,
            sni: asked.sni,
            unread: false,
            remote: asked.remote,
            http: Some(Http {
                asked,
                path: Readings::of(asked.path),
                said: None,
                port: OnceCell::new(),
                underscores: OnceCell::new(),
            }),
        }
    }

    /// The same once somebody was asked, and has said something of it.
    pub(super) fn told(asked: &'a Asked<'a>, said: &'a Metadata) -> Self {
        let mut facts = Self::of(asked);
        if let Some(http) = &mut facts.http {
            http.said = Some(said);
        }
        facts
    }

    pub(super) fn of_connection(connection: &Connection<'a>) -> Self {
        Self {
            client: connection.client,
            destination: connection.destination,
            port: connection.port,
            sni: connection.sni,
            unread: connection.unread,
            remote: Remote {
                address: connection.client.address.ip().to_canonical(),
                claim: Claim::Nothing,
            },
            http: None,
        }
    }

    pub(super) fn identity(&self) -> Option<&'a Identity> {
        self.client.identity.as_ref()
    }
}

impl Http<'_> {
    /// The port that the authority names, if it names one; None when the authority cannot be read.
    pub(super) fn named_port(&self) -> Option<Option<u16>> {
        let read = || {
            host(self.asked.authority)
                .ok()
                .map(|Host { port, .. }| port)
        };
        *self.port.get_or_init(read)
    }

    /// Whether a header's name has an underscore: apps that know headers as variables (CGI, WSGI) read it as a dash.
    pub(super) fn has_underscores(&self) -> bool {
        let find = || {
            self.asked
                .headers
                .keys()
                .any(|name| name.as_str().contains('_'))
        };
        *self.underscores.get_or_init(find)
    }
}
