//! Expressions: a part of the Common Expression Language.
//!
//! 1. text into tokens                                        (`lex`)
//! 2. tokens into a tree, by precedence                       (`parse`)
//! 3. names into attributes, functions and variables          (`bind`): what is not known is refused here
//! 4. the tree is asked about a subject                       (`judge`, `reckon`), with a budget of steps
//!
//! What is missing (a response's code where there was no response) makes its expression fail, but for `||` and `&&`
//! whose other side decides, as CEL has it. A condition that fails does not hold.

mod bind;
mod judge;
mod lex;
mod parse;
mod reckon;

use std::fmt;

use crate::{Subject, Value};

/// An expression that can be asked.
#[derive(Debug, Clone)]
pub struct Expression {
    text: Box<str>,
    root: bind::Node,
}

/// It cannot be read: why, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// For whoever wrote it.
    pub why: String,
    /// Bytes from its beginning.
    pub at: usize,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}: {}", self.at, self.why)
    }
}

impl std::error::Error for Unreadable {}

/// Why there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoValue {
    /// Something that it asks for is not there.
    Missing,
    /// It does not fit together: `1 + "a"`.
    Kind,
    /// A number is too large, or divided by zero.
    Range,
    /// It takes too long, or is too large.
    TooMuch,
}

impl Expression {
    /// Reads it.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        if text.len() > LONGEST {
            let why = format!("longer than {LONGEST} bytes");
            return Err(Unreadable { why, at: LONGEST });
        }
        let root = bind::bind(parse::parse(text)?)?;
        Ok(Self {
            text: text.into(),
            root,
        })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it yields.
    ///
    /// # Errors
    /// Why there is nothing.
    pub fn value<'s>(&'s self, subject: &'s dyn Subject) -> Result<Value<'s>, NoValue> {
        judge::value(&self.root, subject)
    }

    /// Whether it holds. What yields nothing, or no truth, does not.
    pub fn holds(&self, subject: &dyn Subject) -> bool {
        matches!(self.value(subject), Ok(Value::Bool(true)))
    }

    /// Headers of requests and of answers that it asks for.
    pub fn headers(&self) -> Headers {
        let mut headers = Headers::default();
        self.root.headers(&mut headers);
        headers
    }
}

/// Two are one if they are written alike.
impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Which headers are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Of requests.
    pub request: Names,
    /// Of answers.
    pub response: Names,
    /// Of answers' trailers: whether any is.
    pub trailers: bool,
}

/// Which of all names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// These, in lower case.
    pub some: Vec<Box<str>>,
    /// All there are.
    pub all: bool,
}

impl Names {
    /// Those, too.
    pub fn merge(&mut self, other: Self) {
        self.some.extend(other.some);
        self.some.sort();
        self.some.dedup();
        self.all |= other.all;
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        !self.all && self.some.is_empty()
    }
}

impl Headers {
    /// Those, too.
    pub fn merge(&mut self, other: Self) {
        self.request.merge(other.request);
        self.response.merge(other.response);
        self.trailers |= other.trailers;
    }
}

/// Bytes of an expression.
pub const LONGEST: usize = 4_096;
