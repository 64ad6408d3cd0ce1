//! Lines of a log, and values of tags: text in which Envoy's command operators stand for what is known of a request.
//!
//! 1. text is split at `%…%`                                   ([`Format::read`])
//! 2. each operator is known, or refused                        (`operator`)
//! 3. a subject fills it in: as text, or with its own kind in JSON  ([`Format::text`], [`Template::json`])
//!
//! What is not there is `-` in a text, and null in JSON. What Envoy knows and nobody here has is never there.

mod operator;

use std::fmt::Write as _;

use serde_json::Value as Json;

use self::operator::Operator;
use crate::cel::Headers;
use crate::{Moment, Subject};

/// A text with operators.
#[derive(Debug, Clone, PartialEq)]
pub struct Format(Box<[Part]>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(Box<str>),
    /// And how many characters of it.
    Known(Operator, Option<usize>),
}

/// What is the same for all that is written at that moment.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// When it is written.
    pub time: Moment,
    /// Where.
    pub hostname: &'a str,
}

impl Format {
    /// Reads it.
    ///
    /// # Errors
    /// What of it is not understood.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("longer than {LONGEST} bytes"));
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            let (operator, longest, length) = operator::read(after)?;
            parts.push(Part::Known(operator, longest));
            rest = &after[length..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self(parts.into()))
    }

    /// Filled in.
    pub fn text(&self, subject: &dyn Subject, now: Now<'_>) -> String {
        let mut line = String::with_capacity(256);
        for part in &self.0 {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Known(operator, longest) => {
                    let start = line.len();
                    match operator.value(subject, now) {
                        Json::Null => line.push('-'),
                        Json::String(text) => line.push_str(&text),
                        other => {
                            let _ = write!(line, "{other}");
                        }
                    }
                    let most = longest.unwrap_or(MOST).min(MOST);
                    let end = line[start..].floor_char_boundary(most);
                    line.truncate(start + end);
                }
            }
            if line.len() > LARGEST {
                line.truncate(line.floor_char_boundary(LARGEST));
                break;
            }
        }
        line
    }

    /// Filled in; one operator alone keeps its kind.
    pub fn json(&self, subject: &dyn Subject, now: Now<'_>) -> Json {
        match &*self.0 {
            [Part::Known(operator, None)] => match operator.value(subject, now) {
                Json::String(mut text) => {
                    text.truncate(text.floor_char_boundary(MOST));
                    text.into()
                }
                value => value,
            },
            _ => self.text(subject, now).into(),
        }
    }

    /// Headers that it asks for.
    pub fn headers(&self) -> Headers {
        let mut headers = Headers::default();
        for part in &self.0 {
            if let Part::Known(operator, _) = part {
                operator.headers(&mut headers);
            }
        }
        headers
    }
}

/// A JSON object whose texts have operators.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Node);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Constant(Json),
    Text(Format),
    List(Vec<Node>),
    Map(Vec<(Box<str>, Node)>),
}

impl Template {
    /// Reads it.
    ///
    /// # Errors
    /// What of it is not understood.
    pub fn read(template: &Json) -> Result<Self, String> {
        match template {
            Json::Object(_) => Node::read(template, 0).map(Self),
            _ => Err("a JSON object is expected".to_owned()),
        }
    }

    /// Filled in.
    pub fn json(&self, subject: &dyn Subject, now: Now<'_>) -> Json {
        self.0.json(subject, now)
    }

    /// Headers that it asks for.
    pub fn headers(&self) -> Headers {
        let mut headers = Headers::default();
        self.0.headers(&mut headers);
        headers
    }
}

impl Node {
    fn read(from: &Json, depth: usize) -> Result<Self, String> {
        if depth > DEEPEST {
            return Err("too deep".to_owned());
        }
        Ok(match from {
            Json::String(text) => Self::Text(Format::read(text)?),
            Json::Array(all) => {
                let all = all.iter().map(|it| Self::read(it, depth + 1));
                Self::List(all.collect::<Result<_, _>>()?)
            }
            Json::Object(all) => {
                let entry = |(key, value): (&String, &Json)| {
                    let value = Self::read(value, depth + 1);
                    Ok((
                        key.as_str().into(),
                        value.map_err(|why| format!("{key}: {why}"))?,
                    ))
                };
                Self::Map(all.iter().map(entry).collect::<Result<_, String>>()?)
            }
            constant => Self::Constant(constant.clone()),
        })
    }

    fn json(&self, subject: &dyn Subject, now: Now<'_>) -> Json {
        match self {
            Self::Constant(it) => it.clone(),
            Self::Text(format) => format.json(subject, now),
            Self::List(all) => all.iter().map(|it| it.json(subject, now)).collect(),
            Self::Map(all) => {
                let all = all.iter();
                all.map(|(key, it)| (key.to_string(), it.json(subject, now)))
                    .collect()
            }
        }
    }

    fn headers(&self, found: &mut Headers) {
        match self {
            Self::Constant(_) => {}
            Self::Text(format) => found.merge(format.headers()),
            Self::List(all) => all.iter().for_each(|it| it.headers(found)),
            Self::Map(all) => all.iter().for_each(|(_, it)| it.headers(found)),
        }
    }
}

/// Bytes of a format.
const LONGEST: usize = 16 << 10;
/// Bytes that one operator yields.
const MOST: usize = 4_096;
/// Bytes of a line.
const LARGEST: usize = 32 << 10;
/// Objects within objects.
const DEEPEST: usize = 8;
