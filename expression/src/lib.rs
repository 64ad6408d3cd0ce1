//! What users write to say which requests are reported, and what of them.
//!
//! | | |
//! |---|---|
//! | [`cel`] | expressions: `response.code >= 400 && request.method != "GET"` |
//! | [`format`] | lines: `%REQ(:METHOD)% %RESPONSE_CODE%`, as text or JSON |
//!
//! Both are read once, by the control plane to say what is wrong with them and by the proxy to use them, and then asked
//! about one [`Subject`] after the other. Both are bounded: in length and depth when they are read, in steps and bytes
//! when they are asked, so that whoever may write one cannot stop the proxy with it.
//!
//! Of the Common Expression Language there is what conditions about one request need; what is left out is refused when
//! it is read: messages, `dyn`, time zones by name.

pub mod cel;
pub mod format;
mod subject;
mod time;
mod value;

pub use subject::{Attribute, Fields, Subject};
pub use time::{Moment, Pattern};
pub use value::Value;
