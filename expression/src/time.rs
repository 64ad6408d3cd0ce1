//! Moments as text, in UTC; and what a clock shows then, here or so many hours from here.

use std::fmt;

/// Nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub i64);

/// A moment's parts.
struct Parts {
    year: i64,
    month: i64,
    day: i64,
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
    nanos: i64,
}

impl Moment {
    fn parts(self) -> Parts {
        let (seconds, nanos) = (self.0.div_euclid(SECOND), self.0.rem_euclid(SECOND));
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Howard Hinnant's days to a civil date: years begin in March, so that the day of a leap year is the last.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Parts {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            weekday: (days + 4).rem_euclid(7),
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            nanos,
        }
    }

    /// Reads `2026-11-21T21:00:00.5Z`, or with `+01:00`.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (date, time) = text.split_once(['T', 't'])?;
        let mut date = date.splitn(3, '-').map(digits);
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let zone = time.rfind(['Z', 'z', '+', '-'])?;
        let (time, zone) = time.split_at(zone);
        let mut time = time.splitn(3, ':');
        let (hour, minute) = (digits(time.next()?)?, digits(time.next()?)?);
        let second = time.next()?;
        let (second, nanos) = match second.split_once('.') {
            None => (second, 0),
            Some((second, part)) => (second, fraction(part)?),
        };
        let second = digits(second)?;
        let east = match zone {
            "Z" | "z" => 0,
            _ => {
                let (hours, minutes) = zone[1..].split_once(':')?;
                let east = digits(hours)? * 3_600 + digits(minutes)? * 60;
                if zone.starts_with('-') { -east } else { east }
            }
        };
        let fits = (1..=9_999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 61;
        let days = days(year, month, day);
        let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - east;
        let nanos = seconds.checked_mul(SECOND)?.checked_add(nanos)?;
        fits.then_some(Self(nanos))
    }
}

/// What clocks and calendars show of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hand {
    Year,
    /// From 0.
    Month,
    /// Of the month, from 1.
    Date,
    /// Of the month, from 0.
    DayOfMonth,
    /// From 0, a Sunday.
    DayOfWeek,
    /// From 0.
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// How far east of UTC a clock is: its nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zone(i64);

impl Zone {
    pub(crate) const UTC: Self = Self(0);

    /// Reads `UTC`, `+02:00`, `-08:30`, `02:00`. Names of places are for whoever has the table of their laws.
    pub(crate) fn read(text: &str) -> Option<Self> {
        if matches!(text, "UTC" | "GMT") {
            return Some(Self::UTC);
        }
        let (west, plain) = match text.strip_prefix('-') {
            Some(plain) => (true, plain),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (hours, minutes) = plain.split_once(':')?;
        let two = |text: &str| digits(text).filter(|_| text.len() == 2);
        let (hours, minutes) = (two(hours)?, two(minutes)?);
        let east = (hours < 24 && minutes < 60).then_some((hours * 60 + minutes) * 60 * SECOND)?;
        Some(Self(if west { -east } else { east }))
    }
}

impl Moment {
    /// What a clock in a zone shows; none beyond the end of time.
    pub(crate) fn shows(self, hand: Hand, zone: Zone) -> Option<i64> {
        let it = Self(self.0.checked_add(zone.0)?).parts();
        Some(match hand {
            Hand::Year => it.year,
            Hand::Month => it.month - 1,
            Hand::Date => it.day,
            Hand::DayOfMonth => it.day - 1,
            Hand::DayOfWeek => it.weekday,
            Hand::DayOfYear => days(it.year, it.month, it.day) - days(it.year, 1, 1),
            Hand::Hours => it.hour,
            Hand::Minutes => it.minute,
            Hand::Seconds => it.second,
            Hand::Milliseconds => it.nanos / 1_000_000,
        })
    }
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn digits(text: &str) -> Option<i64> {
    let all = !text.is_empty() && text.len() <= 9 && text.bytes().all(|it| it.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

fn fraction(text: &str) -> Option<i64> {
    let number = digits(text)?;
    let places = u32::try_from(text.len()).ok()?;
    Some(number * 10_i64.pow(9 - places))
}

/// `2026-11-21T21:00:00.000Z`
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = self.parts();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            it.year,
            it.month,
            it.day,
            it.hour,
            it.minute,
            it.second,
            it.nanos / 1_000_000
        )
    }
}

/// How a moment is written: strftime's letters, as far as logs use them.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern(Box<[Piece]>);

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(Box<str>),
    Letter(char),
    /// Digits of a second's part, behind the seconds and a point or without them.
    Fraction {
        digits: u32,
        seconds: bool,
    },
}

impl Pattern {
    /// Reads it.
    ///
    /// # Errors
    /// A letter that is not known.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            let mut letters = after.chars();
            let unknown = || format!("the time format {text:?} has an unknown letter");
            let piece = match letters.next().ok_or_else(unknown)? {
                'E' => {
                    let digit = letters.next().and_then(|it| it.to_digit(10));
                    let digits = digit.filter(|_| letters.next() == Some('S'));
                    Piece::Fraction {
                        digits: digits.filter(|it| *it <= 9).ok_or_else(unknown)?,
                        seconds: true,
                    }
                }
                'f' => Piece::Fraction {
                    digits: 9,
                    seconds: false,
                },
                digit @ '1'..='9' if letters.next() == Some('f') => Piece::Fraction {
                    digits: digit.to_digit(10).unwrap_or(9),
                    seconds: false,
                },
                letter if "YmdHMSsbaTFeZz%".contains(letter) => Piece::Letter(letter),
                _ => return Err(unknown()),
            };
            pieces.push(piece);
            rest = letters.as_str();
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        Ok(Self(pieces.into()))
    }

    /// A moment by it.
    pub fn write(&self, moment: Moment) -> String {
        let it = moment.parts();
        self.0.iter().map(|piece| piece.of(&it, moment)).collect()
    }
}

impl Piece {
    fn of(&self, it: &Parts, moment: Moment) -> String {
        match self {
            Self::Text(text) => text.to_string(),
            Self::Fraction { digits, seconds } => {
                let part = it.nanos / 10_i64.pow(9 - digits);
                let width = *digits as usize;
                match (seconds, digits) {
                    (true, 0) => format!("{:02}", it.second),
                    (true, _) => format!("{:02}.{part:0width$}", it.second),
                    (false, _) => format!("{part:0width$}"),
                }
            }
            Self::Letter(letter) => match letter {
                'Y' => format!("{:04}", it.year),
                'm' => format!("{:02}", it.month),
                'd' => format!("{:02}", it.day),
                'e' => format!("{:2}", it.day),
                'H' => format!("{:02}", it.hour),
                'M' => format!("{:02}", it.minute),
                'S' => format!("{:02}", it.second),
                's' => moment.0.div_euclid(SECOND).to_string(),
                'T' => format!("{:02}:{:02}:{:02}", it.hour, it.minute, it.second),
                'F' => format!("{:04}-{:02}-{:02}", it.year, it.month, it.day),
                'b' => MONTHS[usize::try_from(it.month - 1).unwrap_or(0) % 12].to_owned(),
                'a' => DAYS[usize::try_from(it.weekday).unwrap_or(0) % 7].to_owned(),
                'Z' => "UTC".to_owned(),
                'z' => "+0000".to_owned(),
                _ => "%".to_owned(),
            },
        }
    }
}

const SECOND: i64 = 1_000_000_000;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
