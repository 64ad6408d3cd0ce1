//! A tree is asked about a subject, with a budget: so many steps, and texts of so many bytes.

use std::borrow::Cow;
use std::rc::Rc;

use super::NoValue;
use super::bind::{Each, Function, Node};
use super::parse::{Constant, Operator};
use super::reckon::{arithmetic, one, shown};
use crate::time::Zone;
use crate::{Subject, Value};

pub(super) type Yields<'s> = Result<Value<'s>, NoValue>;

/// What one expression may cost: a node is one, so are sixty-four bytes of text.
const STEPS: usize = 10_000;
/// Bytes of a text that is made.
pub(super) const LARGEST: usize = 64 << 10;

pub(super) fn value<'s>(root: &'s Node, subject: &'s dyn Subject) -> Yields<'s> {
    let mut judge = Judge {
        subject,
        left: STEPS,
        variables: Vec::new(),
    };
    judge.value(root)
}

struct Judge<'s> {
    subject: &'s dyn Subject,
    left: usize,
    variables: Vec<Value<'s>>,
}

impl<'s> Judge<'s> {
    fn pay(&mut self, steps: usize) -> Result<(), NoValue> {
        self.left = self.left.checked_sub(steps).ok_or(NoValue::TooMuch)?;
        Ok(())
    }

    fn value(&mut self, node: &'s Node) -> Yields<'s> {
        self.pay(1)?;
        match node {
            Node::Constant(constant) => Ok(constant.value()),
            Node::Duration(nanos) => Ok(Value::Duration(*nanos)),
            Node::Time(nanos) => Ok(Value::Time(*nanos)),
            Node::Attribute(attribute) => match self.subject.attribute(*attribute) {
                Value::Null => Err(NoValue::Missing),
                value => Ok(value),
            },
            Node::Fields(fields) => Ok(Value::Fields(*fields)),
            Node::Field(fields, name) => {
                let found = self.subject.field(*fields, name);
                found.map(Value::Text).ok_or(NoValue::Missing)
            }
            Node::Variable(slot) => self.variable(*slot),
            Node::Select(of, name) => {
                let of = self.value(of)?;
                self.entry(&of, &Value::Text(Cow::Borrowed(name)))
            }
            Node::Index(of) => {
                let (of, index) = (self.value(&of[0])?, self.value(&of[1])?);
                self.entry(&of, &index)
            }
            Node::List(all) => {
                let all: Result<Vec<_>, _> = all.iter().map(|it| self.value(it)).collect();
                Ok(Value::List(all?.into()))
            }
            Node::Map(all) => self.map(all),
            Node::Not(of) => Ok(Value::Bool(!self.truth(of)?)),
            Node::Negative(of) => match self.value(of)? {
                Value::Int(it) => it.checked_neg().map(Value::Int).ok_or(NoValue::Range),
                Value::Double(it) => Ok(Value::Double(-it)),
                Value::Duration(it) => Ok(Value::Duration(-it)),
                _ => Err(NoValue::Kind),
            },
            Node::Choice(of) => match self.truth(&of[0])? {
                true => self.value(&of[1]),
                false => self.value(&of[2]),
            },
            Node::Two(operator, of) => self.two(*operator, &of[0], &of[1]),
            Node::Has(of) => match self.value(of) {
                Ok(_) => Ok(Value::Bool(true)),
                Err(NoValue::Missing) => Ok(Value::Bool(false)),
                Err(why) => Err(why),
            },
            Node::Matches(of, regex) => {
                let text = self.text(of)?;
                self.pay(text.len() / 64)?;
                Ok(Value::Bool(regex.is_match(&text)))
            }
            Node::Call(function, arguments) => self.call(*function, arguments),
            Node::Each(each, of) => self.each(*each, &of[0], &of[1]),
        }
    }

    fn variable(&mut self, slot: usize) -> Yields<'s> {
        let size = self.variables.get(slot).map(size_of);
        self.pay(size.ok_or(NoValue::Missing)? / 64)?;
        self.variables.get(slot).cloned().ok_or(NoValue::Missing)
    }

    fn map(&mut self, all: &'s [(Node, Node)]) -> Yields<'s> {
        let entry = |(key, value): &'s (Node, Node)| Ok((self.value(key)?, self.value(value)?));
        let all: Result<Vec<_>, NoValue> = all.iter().map(entry).collect();
        Ok(Value::Map(all?.into()))
    }

    fn truth(&mut self, node: &'s Node) -> Result<bool, NoValue> {
        match self.value(node)? {
            Value::Bool(truth) => Ok(truth),
            _ => Err(NoValue::Kind),
        }
    }

    fn text(&mut self, node: &'s Node) -> Result<Cow<'s, str>, NoValue> {
        match self.value(node)? {
            Value::Text(text) => Ok(text),
            _ => Err(NoValue::Kind),
        }
    }

    fn int(&mut self, node: &'s Node) -> Result<i64, NoValue> {
        match self.value(node)? {
            Value::Int(number) => Ok(number),
            Value::Uint(number) => i64::try_from(number).map_err(|_| NoValue::Range),
            _ => Err(NoValue::Kind),
        }
    }

    fn entry(&mut self, of: &Value<'s>, index: &Value<'s>) -> Yields<'s> {
        match (of, index) {
            (Value::Fields(fields), Value::Text(name)) => {
                let name = name.to_ascii_lowercase();
                let found = self.subject.field(*fields, &name);
                found.map(Value::Text).ok_or(NoValue::Missing)
            }
            (Value::Map(all), key) => {
                self.pay(all.len())?;
                let mut found = all.iter().filter(|(it, _)| it.equals(key));
                let found = found.next().map(|(_, value)| value.clone());
                found.ok_or(NoValue::Missing)
            }
            (Value::List(all), Value::Int(at)) => {
                let at = usize::try_from(*at).map_err(|_| NoValue::Range)?;
                all.get(at).cloned().ok_or(NoValue::Range)
            }
            _ => Err(NoValue::Kind),
        }
    }

    fn two(&mut self, operator: Operator, left: &'s Node, right: &'s Node) -> Yields<'s> {
        let decides = match operator {
            Operator::Or => Some(true),
            Operator::And => Some(false),
            _ => None,
        };
        if let Some(decides) = decides {
            // One side decides, whatever the other is.
            let first = self.truth(left);
            if first == Ok(decides) || first == Err(NoValue::TooMuch) {
                return first.map(Value::Bool);
            }
            let second = self.truth(right);
            return match (first, second) {
                (_, Ok(second)) if second == decides => Ok(Value::Bool(decides)),
                (Err(why), _) | (_, Err(why)) => Err(why),
                (Ok(_), Ok(second)) => Ok(Value::Bool(second)),
            };
        }
        let (left, right) = (self.value(left)?, self.value(right)?);
        self.pay((size_of(&left) + size_of(&right)) / 64)?;
        let ordered = || left.compared(&right).ok_or(NoValue::Kind);
        Ok(Value::Bool(match operator {
            Operator::Equal => left.equals(&right),
            Operator::Unequal => !left.equals(&right),
            Operator::Less => ordered()?.is_lt(),
            Operator::LessOrEqual => ordered()?.is_le(),
            Operator::Greater => ordered()?.is_gt(),
            Operator::GreaterOrEqual => ordered()?.is_ge(),
            Operator::In => return self.within(&left, &right),
            _ => return arithmetic(operator, &left, &right),
        }))
    }

    fn within(&mut self, one: &Value<'s>, all: &Value<'s>) -> Yields<'s> {
        Ok(Value::Bool(match (one, all) {
            (_, Value::List(all)) => {
                self.pay(all.len())?;
                all.iter().any(|it| it.equals(one))
            }
            (_, Value::Map(all)) => {
                self.pay(all.len())?;
                all.iter().any(|(key, _)| key.equals(one))
            }
            (Value::Text(name), Value::Fields(fields)) => {
                let name = name.to_ascii_lowercase();
                self.subject.field(*fields, &name).is_some()
            }
            _ => return Err(NoValue::Kind),
        }))
    }

    fn each(&mut self, each: Each, list: &'s Node, body: &'s Node) -> Yields<'s> {
        let list = self.value(list)?;
        self.pay(size_of(&list) / 64)?;
        let all: Vec<Value<'s>> = match list {
            Value::List(all) => all.to_vec(),
            Value::Map(all) => all.iter().map(|(key, _)| key.clone()).collect(),
            _ => return Err(NoValue::Kind),
        };
        self.pay(all.len())?;
        let (mut found, mut failed, mut kept) = (0, None, Vec::new());
        for one in all {
            self.variables.push(one.clone());
            let said = match each {
                Each::Map => self.value(body).map(|value| {
                    kept.push(value);
                    true
                }),
                _ => self.truth(body),
            };
            self.variables.pop();
            match (each, said) {
                (_, Err(NoValue::TooMuch)) => return Err(NoValue::TooMuch),
                (Each::All, Ok(false)) => return Ok(Value::Bool(false)),
                (Each::Exists, Ok(true)) => return Ok(Value::Bool(true)),
                (Each::Filter, Ok(true)) => kept.push(one),
                (_, Ok(said)) => found += usize::from(said),
                (_, Err(why)) => failed = Some(why),
            }
        }
        match (failed, each) {
            (Some(why), _) => Err(why),
            (None, Each::All) => Ok(Value::Bool(true)),
            (None, Each::Exists) => Ok(Value::Bool(false)),
            (None, Each::ExistsOne) => Ok(Value::Bool(found == 1)),
            (None, Each::Filter | Each::Map) => Ok(Value::List(kept.into())),
        }
    }

    fn call(&mut self, function: Function, arguments: &'s [Node]) -> Yields<'s> {
        let [first, rest @ ..] = arguments else {
            return Err(NoValue::Kind);
        };
        match (function, rest) {
            (Function::StartsWith, [part]) => Ok(Value::Bool(
                self.text(first)?.starts_with(&*self.text(part)?),
            )),
            (Function::EndsWith, [part]) => {
                Ok(Value::Bool(self.text(first)?.ends_with(&*self.text(part)?)))
            }
            (Function::Contains, [part]) => {
                let (text, part) = (self.text(first)?, self.text(part)?);
                self.pay(text.len() / 64)?;
                Ok(Value::Bool(text.contains(&*part)))
            }
            (Function::IndexOf, [part]) => {
                let (text, part) = (self.text(first)?, self.text(part)?);
                self.pay(text.len() / 64)?;
                let found = text.find(&*part);
                let found = found.map_or(-1, |at| text[..at].chars().count() as i64);
                Ok(Value::Int(found))
            }
            (Function::Replace, [part, by]) => self.replace(first, part, by),
            (Function::Split, [by]) => {
                let (text, by) = (self.text(first)?, self.text(by)?);
                self.made(text.len())?;
                let parts: Vec<Value<'s>> = text
                    .split(&*by)
                    .map(|it| Value::text(it.to_owned()))
                    .collect();
                self.pay(parts.len())?;
                Ok(Value::List(parts.into()))
            }
            (Function::Substring, [from]) => {
                let (text, from) = (self.text(first)?, self.int(from)?);
                self.part(&text, from, i64::MAX)
            }
            (Function::Substring, [from, to]) => {
                let (text, from, to) = (self.text(first)?, self.int(from)?, self.int(to)?);
                self.part(&text, from, to)
            }
            (Function::Join, rest) => self.join(first, rest.first()),
            (Function::Clock(hand), [zone]) => {
                let (of, zone) = (self.value(first)?, self.text(zone)?);
                shown(hand, &of, Zone::read(&zone).ok_or(NoValue::Range)?)
            }
            (function, _) => {
                let of = self.value(first)?;
                self.made(size_of(&of))?;
                one(function, of)
            }
        }
    }

    fn replace(&mut self, text: &'s Node, part: &'s Node, by: &'s Node) -> Yields<'s> {
        let (text, part, by) = (self.text(text)?, self.text(part)?, self.text(by)?);
        let times = text.matches(&*part).count();
        self.made(text.len() + times * by.len())?;
        Ok(Value::text(text.replace(&*part, &by)))
    }

    /// A text of that size may be made.
    fn made(&mut self, size: usize) -> Result<(), NoValue> {
        if size > LARGEST {
            return Err(NoValue::TooMuch);
        }
        self.pay(size / 64)
    }

    fn part(&mut self, text: &str, from: i64, to: i64) -> Yields<'s> {
        self.made(text.len())?;
        let from = usize::try_from(from).map_err(|_| NoValue::Range)?;
        let to = usize::try_from(to).map_err(|_| NoValue::Range)?;
        let length = to.checked_sub(from).ok_or(NoValue::Range)?;
        let part: String = text.chars().skip(from).take(length).collect();
        Ok(Value::text(part))
    }

    fn join(&mut self, list: &'s Node, by: Option<&'s Node>) -> Yields<'s> {
        let by = match by {
            Some(by) => self.text(by)?,
            None => Cow::Borrowed(""),
        };
        let Value::List(all) = self.value(list)? else {
            return Err(NoValue::Kind);
        };
        let mut text = String::new();
        for (at, part) in all.iter().enumerate() {
            let Value::Text(part) = part else {
                return Err(NoValue::Kind);
            };
            if at > 0 {
                text.push_str(&by);
            }
            text.push_str(part);
            self.made(part.len() + by.len())?;
            if text.len() > LARGEST {
                return Err(NoValue::TooMuch);
            }
        }
        Ok(Value::text(text))
    }
}

impl Constant {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(it) => Value::Bool(*it),
            Self::Int(it) => Value::Int(*it),
            Self::Uint(it) => Value::Uint(*it),
            Self::Double(it) => Value::Double(*it),
            Self::Text(it) => Value::Text(Cow::Borrowed(it)),
            Self::Bytes(it) => Value::Bytes(Rc::from(&**it)),
        }
    }
}

fn size_of(value: &Value<'_>) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(all) => all.iter().map(size_of).sum::<usize>() + all.len() * 64,
        Value::Map(all) => all.len() * 128,
        _ => 1,
    }
}
