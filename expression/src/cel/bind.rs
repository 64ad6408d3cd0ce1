//! Names into what they are: attributes of a subject, functions, variables. What nobody knows is refused here.

use regex::{Regex, RegexBuilder};

use super::parse::{Constant, Of, Operator, Tree};
use super::{Headers, Unreadable};
use crate::time::{Hand, Zone};
use crate::{Attribute, Fields, Moment};

/// A node that can be asked.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Constant(Constant),
    Duration(i64),
    Time(i64),
    Attribute(Attribute),
    Fields(Fields),
    Field(Fields, Box<str>),
    /// Counted from the outermost.
    Variable(usize),
    Select(Box<Node>, Box<str>),
    Index(Box<[Node; 2]>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Not(Box<Node>),
    Negative(Box<Node>),
    Choice(Box<[Node; 3]>),
    Two(Operator, Box<[Node; 2]>),
    Has(Box<Node>),
    Matches(Box<Node>, Regex),
    Call(Function, Vec<Node>),
    /// Something about each of a list's, with its variable.
    Each(Each, Box<[Node; 2]>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Each {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    StartsWith,
    EndsWith,
    Contains,
    Text,
    Int,
    Uint,
    Double,
    Bool,
    Duration,
    Time,
    LowerAscii,
    UpperAscii,
    Trim,
    Replace,
    Split,
    Substring,
    IndexOf,
    Join,
    /// Of a moment, where a clock is set so; of a duration, how many in all.
    Clock(Hand),
}

/// Name, how many arguments at least and at most, with the one that it is a method of.
const FUNCTIONS: [(&str, usize, usize, Function); 29] = [
    ("size", 1, 1, Function::Size),
    ("startsWith", 2, 2, Function::StartsWith),
    ("endsWith", 2, 2, Function::EndsWith),
    ("contains", 2, 2, Function::Contains),
    ("string", 1, 1, Function::Text),
    ("int", 1, 1, Function::Int),
    ("uint", 1, 1, Function::Uint),
    ("double", 1, 1, Function::Double),
    ("bool", 1, 1, Function::Bool),
    ("duration", 1, 1, Function::Duration),
    ("timestamp", 1, 1, Function::Time),
    ("lowerAscii", 1, 1, Function::LowerAscii),
    ("upperAscii", 1, 1, Function::UpperAscii),
    ("trim", 1, 1, Function::Trim),
    ("replace", 3, 3, Function::Replace),
    ("split", 2, 2, Function::Split),
    ("substring", 2, 3, Function::Substring),
    ("indexOf", 2, 2, Function::IndexOf),
    ("join", 1, 2, Function::Join),
    ("getFullYear", 1, 2, Function::Clock(Hand::Year)),
    ("getMonth", 1, 2, Function::Clock(Hand::Month)),
    ("getDate", 1, 2, Function::Clock(Hand::Date)),
    ("getDayOfMonth", 1, 2, Function::Clock(Hand::DayOfMonth)),
    ("getDayOfWeek", 1, 2, Function::Clock(Hand::DayOfWeek)),
    ("getDayOfYear", 1, 2, Function::Clock(Hand::DayOfYear)),
    ("getHours", 1, 2, Function::Clock(Hand::Hours)),
    ("getMinutes", 1, 2, Function::Clock(Hand::Minutes)),
    ("getSeconds", 1, 2, Function::Clock(Hand::Seconds)),
    ("getMilliseconds", 1, 2, Function::Clock(Hand::Milliseconds)),
];

pub(super) fn bind(tree: Tree) -> Result<Node, Unreadable> {
    Binder::default().node(tree)
}

fn wrong<T>(at: usize, why: impl Into<String>) -> Result<T, Unreadable> {
    let why = why.into();
    Err(Unreadable { why, at })
}

#[derive(Default)]
struct Binder {
    variables: Vec<Box<str>>,
}

impl Binder {
    fn boxed(&mut self, tree: Tree) -> Result<Box<Node>, Unreadable> {
        self.node(tree).map(Box::new)
    }

    fn pair(&mut self, trees: [Tree; 2]) -> Result<Box<[Node; 2]>, Unreadable> {
        let [first, second] = trees;
        Ok(Box::new([self.node(first)?, self.node(second)?]))
    }

    fn all(&mut self, trees: Vec<Tree>) -> Result<Vec<Node>, Unreadable> {
        trees.into_iter().map(|tree| self.node(tree)).collect()
    }

    fn node(&mut self, tree: Tree) -> Result<Node, Unreadable> {
        let at = tree.at;
        if let Some(known) = self.known(&tree) {
            return Ok(known);
        }
        Ok(match tree.is {
            Of::Constant(constant) => Node::Constant(constant),
            Of::Name(name) => return wrong(at, format!("{name} is not known")),
            Of::Select(of, name) => {
                let path = self.path(&of);
                if let Some(path) = path.filter(|path| !is_known(path)) {
                    return wrong(at, format!("{path}.{name} is not known"));
                }
                Node::Select(self.boxed(*of)?, name)
            }
            Of::Index(of, index) => Node::Index(self.pair([*of, *index])?),
            Of::List(all) => Node::List(self.all(all)?),
            Of::Map(all) => {
                let entry = |(key, value)| Ok((self.node(key)?, self.node(value)?));
                Node::Map(all.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
            Of::Not(of) => Node::Not(self.boxed(*of)?),
            Of::Negative(of) => Node::Negative(self.boxed(*of)?),
            Of::Choice(of) => {
                let [asked, yes, no] = *of;
                Node::Choice(Box::new([
                    self.node(asked)?,
                    self.node(yes)?,
                    self.node(no)?,
                ]))
            }
            Of::Two(operator, of) => Node::Two(operator, self.pair(*of)?),
            Of::Call(name, None, arguments) if &*name == "has" => self.has(arguments, at)?,
            Of::Call(name, Some(of), arguments) => self.method(&name, *of, arguments, at)?,
            Of::Call(name, None, arguments) => self.function(&name, arguments, at)?,
        })
    }

    /// `request.headers["x"]` and the like, `a.b` of the subject, a variable.
    fn known(&self, tree: &Tree) -> Option<Node> {
        if let Of::Name(name) = &tree.is
            && let Some(slot) = self.variables.iter().rposition(|it| it == name)
        {
            return Some(Node::Variable(slot));
        }
        let path = self.path(tree)?;
        if let Some(attribute) = Attribute::named(&path) {
            return Some(Node::Attribute(attribute));
        }
        if let Some(fields) = Fields::named(&path) {
            return Some(Node::Fields(fields));
        }
        let (of, name) = match &tree.is {
            Of::Select(of, name) => (of, name),
            Of::Index(of, index) => match &index.is {
                Of::Constant(Constant::Text(name)) => (of, name),
                _ => return None,
            },
            _ => return None,
        };
        let fields = Fields::named(&self.path(of)?)?;
        Some(Node::Field(fields, name.to_ascii_lowercase().into()))
    }

    /// `a.b.c`, also where it is written `a["b"].c`; none of what begins with a variable.
    fn path(&self, tree: &Tree) -> Option<String> {
        match &tree.is {
            Of::Name(name) if !self.variables.contains(name) => Some(name.to_string()),
            Of::Select(of, name) => Some(format!("{}.{name}", self.path(of)?)),
            Of::Index(of, index) => match &index.is {
                Of::Constant(Constant::Text(name)) => Some(format!("{}.{name}", self.path(of)?)),
                _ => None,
            },
            _ => None,
        }
    }

    fn has(&mut self, mut arguments: Vec<Tree>, at: usize) -> Result<Node, Unreadable> {
        match (arguments.pop(), arguments.is_empty()) {
            (Some(one), true) if matches!(one.is, Of::Select(..) | Of::Index(..)) => {
                Ok(Node::Has(self.boxed(one)?))
            }
            _ => wrong(at, "has() asks for one name with a point: has(a.b)"),
        }
    }

    fn method(
        &mut self,
        name: &str,
        of: Tree,
        mut arguments: Vec<Tree>,
        at: usize,
    ) -> Result<Node, Unreadable> {
        let each = match name {
            "all" => Some(Each::All),
            "exists" => Some(Each::Exists),
            "exists_one" => Some(Each::ExistsOne),
            "filter" => Some(Each::Filter),
            "map" => Some(Each::Map),
            _ => None,
        };
        if let (Some(each), 2) = (each, arguments.len()) {
            let (body, variable) = (arguments.pop(), arguments.pop());
            let (Some(body), Some(Of::Name(variable))) = (body, variable.map(|it| it.is)) else {
                return wrong(at, format!("{name}() needs a variable's name first"));
            };
            let list = self.node(of)?;
            self.variables.push(variable);
            let body = self.node(body);
            self.variables.pop();
            return Ok(Node::Each(each, Box::new([list, body?])));
        }
        arguments.insert(0, of);
        self.function(name, arguments, at)
    }

    fn function(
        &mut self,
        name: &str,
        arguments: Vec<Tree>,
        at: usize,
    ) -> Result<Node, Unreadable> {
        if name == "matches" {
            return self.matches(arguments, at);
        }
        let mut known = FUNCTIONS.iter().filter(|(known, ..)| *known == name);
        let Some((_, least, most, function)) = known.next() else {
            return wrong(at, format!("{name}() is not known"));
        };
        if !(*least..=*most).contains(&arguments.len()) {
            return wrong(at, format!("{name}() has another number of arguments"));
        }
        let arguments = self.all(arguments)?;
        // What is known already is read once.
        if let (Function::Duration | Function::Time, [Node::Constant(Constant::Text(text))]) =
            (function, arguments.as_slice())
        {
            let read = match function {
                Function::Duration => duration(text).map(Node::Duration),
                _ => Moment::read(text).map(|it| Node::Time(it.0)),
            };
            return read.map_or_else(|| wrong(at, format!("{text:?} is no {name}")), Ok);
        }
        if let (Function::Clock(_), [_, Node::Constant(Constant::Text(zone))]) =
            (function, arguments.as_slice())
            && Zone::read(zone).is_none()
        {
            let why = "is no time zone that is known here: UTC, or hours and minutes from it as in +02:00";
            return wrong(at, format!("{zone:?} {why}"));
        }
        Ok(Node::Call(*function, arguments))
    }

    /// Patterns are compiled when they are read, and never by a request.
    fn matches(&mut self, arguments: Vec<Tree>, at: usize) -> Result<Node, Unreadable> {
        let mut arguments = arguments.into_iter();
        let (Some(of), Some(pattern), None) =
            (arguments.next(), arguments.next(), arguments.next())
        else {
            return wrong(at, "matches() has another number of arguments");
        };
        let Of::Constant(Constant::Text(pattern)) = pattern.is else {
            return wrong(at, "matches() needs a pattern that is written out");
        };
        let regex = RegexBuilder::new(&pattern).size_limit(REGEX).build();
        match regex {
            Ok(regex) => Ok(Node::Matches(self.boxed(of)?, regex)),
            Err(why) => {
                let why = why.to_string();
                let last = why.lines().last().unwrap_or_default();
                wrong(at, format!("pattern {pattern:?}: {last}"))
            }
        }
    }
}

fn is_known(path: &str) -> bool {
    Attribute::named(path).is_some() || Fields::named(path).is_some() || is_said(path)
}

/// Whoever writes metadata names what is in it.
fn is_said(path: &str) -> bool {
    let within = path.strip_prefix("metadata.filter_metadata");
    within.is_some_and(|it| it.starts_with('.'))
}

impl Node {
    pub(super) fn headers(&self, found: &mut Headers) {
        let names = |fields: &Fields, found: &mut Headers, name: Option<&str>| {
            let names = match fields {
                Fields::RequestHeaders => &mut found.request,
                Fields::ResponseHeaders => &mut found.response,
                Fields::ResponseTrailers => {
                    found.trailers = true;
                    return;
                }
            };
            match name {
                Some(name) => names.some.push(name.into()),
                None => names.all = true,
            }
        };
        match self {
            Self::Field(fields, name) => names(fields, found, Some(name)),
            Self::Fields(fields) => names(fields, found, None),
            Self::Attribute(Attribute::Referer) => found.request.some.push("referer".into()),
            Self::Select(of, _)
            | Self::Not(of)
            | Self::Negative(of)
            | Self::Has(of)
            | Self::Matches(of, _) => of.headers(found),
            Self::Index(of) | Self::Two(_, of) | Self::Each(_, of) => {
                of.iter().for_each(|it| it.headers(found));
            }
            Self::Choice(of) => of.iter().for_each(|it| it.headers(found)),
            Self::List(all) | Self::Call(_, all) => all.iter().for_each(|it| it.headers(found)),
            Self::Map(all) => all.iter().for_each(|(key, value)| {
                key.headers(found);
                value.headers(found);
            }),
            Self::Constant(_)
            | Self::Duration(_)
            | Self::Time(_)
            | Self::Attribute(_)
            | Self::Variable(_) => {}
        }
    }
}

/// `1h2m3.5s`, in nanoseconds.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut total = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let length = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let number: f64 = rest[..length].parse().ok()?;
        rest = &rest[length..];
        let units = [
            ("ns", 1.0),
            ("us", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 6e10),
            ("h", 3.6e12),
        ];
        let (unit, nanos) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += number * nanos;
    }
    let total = if negative { -total } else { total };
    (total.abs() < 9e18).then_some(total as i64)
}

/// Bytes of a compiled pattern.
const REGEX: usize = 256 << 10;
