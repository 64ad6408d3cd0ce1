//! What a processor may change of headers.
//!
//! | | |
//! |---|---|
//! | how a message is carried, `x-envoy-*`, `x-forwarded-client-cert` | never |
//! | for whom a request is, and its method | where its object says so |
//! | anything else, also `:path` and `:status` | unless its object names only others, or this one as forbidden |

use api::waypoint as wire;
use wire::processor::Mutations;

use super::hear::is_ours;

/// Of one processor. As Envoy has it where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Only these; none: all.
    allow: Box<[Named]>,
    deny: Box<[Named]>,
    routing: bool,
    /// It fails with what it may not do, which is left out otherwise.
    strict: bool,
}

/// One name, or all that begin so; in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: Box<str>,
    rest: bool,
}

impl Rules {
    pub(super) fn compile(wire: &Mutations) -> Result<Self, String> {
        let named = |names: &[String]| -> Result<Box<[Named]>, String> {
            names.iter().map(|name| Named::read(name)).collect()
        };
        Ok(Self {
            allow: named(&wire.allow)?,
            deny: named(&wire.deny)?,
            routing: wire.routing,
            strict: wire.strict,
        })
    }

    /// Whether a change of it is made; `name` in lower case, `:path` and so on among them.
    ///
    /// # Errors
    /// It is not, and the processor fails with it.
    pub(super) fn allow(&self, name: &str) -> Result<bool, String> {
        let may = self.may(name);
        match may || !self.strict {
            true => Ok(may),
            false => Err(format!("it changes {name}, which it may not")),
        }
    }

    fn may(&self, name: &str) -> bool {
        let among = |names: &[Named]| names.iter().any(|it| it.is(name));
        let kind = match name {
            ":path" | ":status" => true,
            ":method" | ":authority" | "host" => self.routing,
            name => !name.starts_with(':') && !is_ours(name),
        };
        kind && (self.allow.is_empty() || among(&self.allow)) && !among(&self.deny)
    }
}

impl Named {
    fn read(name: &str) -> Result<Self, String> {
        let (name, rest) = match name.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (name, false),
        };
        if name.is_empty() && !rest {
            return Err("a header without a name".to_owned());
        }
        Ok(Self {
            name: name.to_ascii_lowercase().into(),
            rest,
        })
    }

    fn is(&self, name: &str) -> bool {
        match self.rest {
            true => name.starts_with(&*self.name),
            false => *name == *self.name,
        }
    }
}
