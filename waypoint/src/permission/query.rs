//! What an authorizer says of the parameters of a query.
//!
//! A query that it changes is written anew, as Envoy does it: parameters by their names, those of one name in the order in
//! which they came, each with `=`. Names and values are compared and written as they are: who sets one has escaped what
//! must be.

use std::collections::BTreeMap;

use api::ext_authz::OkHttpResponse;
use http::Uri;

use crate::asked::put_query;

/// Changes of parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// In the place of all of that name; of one name the last counts.
    set: Box<[(Box<str>, Box<str>)]>,
    /// All of that name, also of what is set.
    removed: Box<[Box<str>]>,
}

impl Parameters {
    /// Of a message.
    ///
    /// # Errors
    /// One of them would be another parameter, or the end of the query.
    pub(super) fn read(ok: &OkHttpResponse) -> Result<Self, String> {
        let set = ok.query_parameters_to_set.iter();
        let set = set.map(|it| {
            let whole = !it.key.contains('=') && is_one(&it.key) && is_one(&it.value);
            let unfit = || format!("parameter {:?} of the query cannot be written so", it.key);
            let pair = (it.key.as_str().into(), it.value.as_str().into());
            whole.then_some(pair).ok_or_else(unfit)
        });
        let removed = ok.query_parameters_to_remove.iter();
        Ok(Self {
            set: set.collect::<Result<_, _>>()?,
            removed: removed.map(|it| it.as_str().into()).collect(),
        })
    }

    /// Where a request goes with them; none: where it went.
    ///
    /// # Errors
    /// It cannot have such a query.
    pub fn of(&self, uri: &Uri) -> Result<Option<Uri>, String> {
        if self.set.is_empty() && self.removed.is_empty() {
            return Ok(None);
        }
        let unfit = |why: &str| format!("the query cannot be changed: {why}");
        let query = self.written(uri.query());
        let length = uri.path().len() + query.as_ref().map_or(0, |it| it.len() + 1);
        if uri.path().is_empty() {
            return Err(unfit("the request has no path"));
        }
        if length > LONGEST {
            return Err(unfit("it would be too long"));
        }
        let mut changed = uri.clone();
        put_query(&mut changed, query.as_deref()).map_err(|why| unfit(&why.to_string()))?;
        Ok(Some(changed))
    }

    /// A query after them; none where nothing is left.
    fn written(&self, query: Option<&str>) -> Option<String> {
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut rest = query.unwrap_or_default();
        while !rest.is_empty() {
            let (one, after) = rest.split_once('&').unwrap_or((rest, ""));
            let (name, value) = one.split_once('=').unwrap_or((one, ""));
            all.entry(name).or_default().push(value);
            rest = after;
        }
        for (name, value) in self.set.iter() {
            all.insert(name, vec![&**value]);
        }
        for name in self.removed.iter() {
            all.remove(&**name);
        }
        let mut pairs: Vec<String> = Vec::new();
        for (name, values) in all {
            pairs.extend(values.iter().map(|value| [name, "=", value].concat()));
        }
        (!pairs.is_empty()).then(|| pairs.join("&"))
    }
}

/// Whether it can stand in one parameter: visible ASCII but for what ends a parameter or a query, and what is never written
/// plainly.
fn is_one(text: &str) -> bool {
    let fits =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'&' | b'#' | b'"' | b'<' | b'>');
    text.bytes().all(fits)
}

/// Bytes of a path with its query, as our engines read them.
const LONGEST: usize = 65_534;
