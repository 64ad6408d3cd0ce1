//! What an authorizer says of headers.

use api::ext_authz::HeaderValueOption;
use api::ext_authz::header_value_option::HeaderAppendAction as Wire;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

/// One header is to be another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub name: HeaderName,
    /// What it becomes.
    pub value: HeaderValue,
    /// How.
    pub action: Action,
}

/// How a header is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// One value more.
    Append,
    /// This value, if there is none.
    AddIfAbsent,
    /// This value, and no other.
    Set,
    /// The same, if there is one.
    SetIfPresent,
}

impl Change {
    /// Of a message; none for what frames a message, which is only for who sends it. `otherwise`: what is meant where
    /// nothing is said.
    pub(crate) fn read(
        option: &HeaderValueOption,
        otherwise: Action,
    ) -> Result<Option<Self>, String> {
        let header = option.header.as_ref().ok_or("a change of no header")?;
        let unfit = || format!("header {:?} cannot be written", header.key);
        let name: HeaderName = header.key.parse().map_err(|_| unfit())?;
        let value = match header.value.as_bytes() {
            [] => &header.raw_value,
            value => value,
        };
        let value = HeaderValue::from_bytes(value).map_err(|_| unfit())?;
        let action = match (option.append, Wire::try_from(option.append_action)) {
            (Some(true), _) => Action::Append,
            (Some(false), _) => Action::Set,
            (None, Ok(Wire::AppendIfExistsOrAdd)) => otherwise,
            (None, Ok(Wire::AddIfAbsent)) => Action::AddIfAbsent,
            (None, Ok(Wire::OverwriteIfExistsOrAdd)) => Action::Set,
            (None, Ok(Wire::OverwriteIfExists)) => Action::SetIfPresent,
            (None, Err(_)) => {
                return Err(format!("header {name}: nobody knows how to change it so"));
            }
        };
        Ok((!is_framing(&name)).then_some(Self {
            name,
            value,
            action,
        }))
    }

    /// Changes it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let (name, value) = (self.name.clone(), self.value.clone());
        match self.action {
            Action::Append => {
                headers.append(name, value);
            }
            Action::AddIfAbsent if headers.contains_key(&name) => {}
            Action::SetIfPresent if !headers.contains_key(&name) => {}
            Action::AddIfAbsent | Action::Set | Action::SetIfPresent => {
                headers.insert(name, value);
            }
        }
    }
}

/// Whether a header says how a message is carried, or where to: nothing that an authorizer could decide.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    const CARRIED: [HeaderName; 7] = [
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    CARRIED.contains(name)
        || matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "http2-settings"
        )
}
