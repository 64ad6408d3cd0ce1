//! Pure: functions of one value, and what operators make of two.

use super::NoValue;
use super::bind::{Function, duration};
use super::judge::{LARGEST, Yields};
use super::parse::Operator;
use crate::time::{Hand, Zone};
use crate::{Moment, Value};

/// Functions of one value.
pub(super) fn one<'s>(function: Function, of: Value<'s>) -> Yields<'s> {
    use Function as F;
    let count = |count: usize| Ok(Value::Int(count as i64));
    match (function, of) {
        (F::Size, Value::Text(text)) => count(text.chars().count()),
        (F::Size, Value::Bytes(bytes)) => count(bytes.len()),
        (F::Size, Value::List(all)) => count(all.len()),
        (F::Size, Value::Map(all)) => count(all.len()),
        (F::Text, Value::Null | Value::Fields(_) | Value::List(_) | Value::Map(_)) => {
            Err(NoValue::Kind)
        }
        (F::Text, text @ Value::Text(_)) => Ok(text),
        (F::Text, of) => Ok(Value::text(of.to_string())),
        (F::Bool, it @ Value::Bool(_)) => Ok(it),
        (F::Bool, Value::Text(text)) => match &*text {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Value::Bool(false)),
            _ => Err(NoValue::Range),
        },
        (F::LowerAscii, Value::Text(text)) => Ok(Value::text(text.to_ascii_lowercase())),
        (F::UpperAscii, Value::Text(text)) => Ok(Value::text(text.to_ascii_uppercase())),
        (F::Trim, Value::Text(text)) => Ok(Value::text(text.trim().to_owned())),
        (F::Duration, it @ Value::Duration(_)) | (F::Time, it @ Value::Time(_)) => Ok(it),
        (F::Duration, Value::Text(text)) => {
            duration(&text).map(Value::Duration).ok_or(NoValue::Range)
        }
        (F::Time, Value::Text(text)) => {
            let moment = Moment::read(&text).ok_or(NoValue::Range)?;
            Ok(Value::Time(moment.0))
        }
        (F::Clock(hand), of) => clock(hand, &of),
        (F::Int | F::Uint | F::Double, of) => number(function, &of),
        _ => Err(NoValue::Kind),
    }
}

fn clock<'s>(hand: Hand, of: &Value<'s>) -> Yields<'s> {
    let Value::Duration(nanos) = of else {
        return shown(hand, of, Zone::UTC);
    };
    let unit = match hand {
        Hand::Hours => 3_600_000_000_000,
        Hand::Minutes => 60_000_000_000,
        Hand::Seconds => 1_000_000_000,
        Hand::Milliseconds => 1_000_000,
        _ => return Err(NoValue::Kind),
    };
    Ok(Value::Int(nanos / unit))
}

/// Of a moment, what a clock in a zone shows.
pub(super) fn shown<'s>(hand: Hand, of: &Value<'s>, zone: Zone) -> Yields<'s> {
    let Value::Time(nanos) = of else {
        return Err(NoValue::Kind);
    };
    let shown = Moment(*nanos).shows(hand, zone);
    shown.map(Value::Int).ok_or(NoValue::Range)
}

fn number<'s>(to: Function, of: &Value<'s>) -> Yields<'s> {
    let read = match of {
        Value::Text(text) if to == Function::Double => text.parse().map(Value::Double).ok(),
        Value::Text(text) if to == Function::Uint => text.parse().map(Value::Uint).ok(),
        Value::Text(text) => text.parse().map(Value::Int).ok(),
        Value::Time(nanos) if to == Function::Int => Some(Value::Int(nanos / 1_000_000_000)),
        Value::Int(_) | Value::Uint(_) | Value::Double(_) => Some(of.clone()),
        _ => return Err(NoValue::Kind),
    };
    let read = read.ok_or(NoValue::Range)?;
    match (to, &read) {
        (Function::Double, _) => read.number().map(Value::Double).ok_or(NoValue::Kind),
        (Function::Int, Value::Uint(it)) => i64::try_from(*it)
            .map(Value::Int)
            .map_err(|_| NoValue::Range),
        (Function::Uint, Value::Int(it)) => u64::try_from(*it)
            .map(Value::Uint)
            .map_err(|_| NoValue::Range),
        (Function::Int, Value::Double(it)) if it.abs() < 9.2e18 => Ok(Value::Int(*it as i64)),
        (Function::Uint, Value::Double(it)) if (0.0..1.8e19).contains(it) => {
            Ok(Value::Uint(*it as u64))
        }
        (_, Value::Double(_)) => Err(NoValue::Range),
        _ => Ok(read),
    }
}

pub(super) fn arithmetic<'s>(
    operator: Operator,
    left: &Value<'s>,
    right: &Value<'s>,
) -> Yields<'s> {
    use Operator as O;
    use Value as V;
    let ints = |a: i64, b: i64| match operator {
        O::Add => a.checked_add(b),
        O::Subtract => a.checked_sub(b),
        O::Multiply => a.checked_mul(b),
        O::Divide => a.checked_div(b),
        _ => a.checked_rem(b),
    };
    let in_range = |value: Option<V<'s>>| value.ok_or(NoValue::Range);
    let sums = matches!(operator, O::Add | O::Subtract);
    match (left, right) {
        (V::Int(a), V::Int(b)) => in_range(ints(*a, *b).map(V::Int)),
        (V::Uint(a), V::Uint(b)) => in_range(
            match operator {
                O::Add => a.checked_add(*b),
                O::Subtract => a.checked_sub(*b),
                O::Multiply => a.checked_mul(*b),
                O::Divide => a.checked_div(*b),
                _ => a.checked_rem(*b),
            }
            .map(V::Uint),
        ),
        (V::Double(a), V::Double(b)) => Ok(V::Double(match operator {
            O::Add => a + b,
            O::Subtract => a - b,
            O::Multiply => a * b,
            O::Divide => a / b,
            _ => return Err(NoValue::Kind),
        })),
        (V::Text(a), V::Text(b)) if operator == O::Add => {
            if a.len() + b.len() > LARGEST {
                return Err(NoValue::TooMuch);
            }
            Ok(V::text(format!("{a}{b}")))
        }
        (V::List(a), V::List(b)) if operator == O::Add => {
            Ok(V::List(a.iter().chain(b.iter()).cloned().collect()))
        }
        (V::Duration(a), V::Duration(b)) if sums => in_range(ints(*a, *b).map(V::Duration)),
        (V::Time(a), V::Duration(b)) if sums => in_range(ints(*a, *b).map(V::Time)),
        (V::Duration(a), V::Time(b)) if operator == O::Add => in_range(ints(*a, *b).map(V::Time)),
        (V::Time(a), V::Time(b)) if operator == O::Subtract => {
            in_range(ints(*a, *b).map(V::Duration))
        }
        _ => Err(NoValue::Kind),
    }
}
