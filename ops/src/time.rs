//! Times as text, without a calendar crate: instants printed as RFC 3339 in UTC, durations read as Go and Istio write them.
//!
//! A `SystemTime` enters; `2026-11-20T21:31:52Z`, or the same with microseconds, leaves. `1h30m` enters; a `Duration` leaves.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Prints an instant as RFC 3339 in UTC, with microseconds: the form of log lines.
#[derive(Clone, Copy, Debug)]
pub struct Micros(pub SystemTime);

/// Prints an instant as RFC 3339 in UTC, whole seconds: the form of certificate times.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub SystemTime);

impl fmt::Display for Micros {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        date_and_time(out, since.as_secs())?;
        write!(out, ".{:06}Z", since.subsec_micros())
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        date_and_time(out, since.as_secs())?;
        out.write_str("Z")
    }
}

fn date_and_time(out: &mut fmt::Formatter<'_>, unix: u64) -> fmt::Result {
    let (year, month, day) = civil(unix / 86_400);
    let clock = unix % 86_400;
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    )
}

/// Days since 1970-01-01 to a Gregorian date. Counts in 400-year eras that begin on 1 March, so
/// that the leap day is the last of its year and needs no special case.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    const MARCH_OF_YEAR_0_TO_1970: u64 = 719_468;
    let since_march_0 = days + MARCH_OF_YEAR_0_TO_1970;
    let (era, of_era) = (since_march_0 / DAYS_PER_ERA, since_march_0 % DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_based + 2) / 5 + 1;
    let month = if march_based < 10 {
        march_based + 3
    } else {
        march_based - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// `24h`, `1h30m`, `30s`, `100ms`: whole numbers, each with its unit. `None` for anything else, and for more than fits.
pub fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let (number, unit) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let number: u32 = number.parse().ok()?;
        let letters = unit.find(|c: char| c.is_ascii_digit());
        let (unit, next) = unit.split_at(letters.unwrap_or(unit.len()));
        let one = match unit {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        total = total.checked_add(one.checked_mul(number)?)?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_unix(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_duration_is_numbers_with_their_units_and_nothing_else() {
        for (text, millis) in [
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("2160h0m0s", 7_776_000_000),
            ("1500ms", 1_500),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "90",
            "s",
            "5d",
            "-1s",
            "1.5s",
            "5m ",
            "1h30",
            "99999999999h",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn known_instants_print_as_the_calendar_says() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_795_210_312, "2026-11-20T21:31:52Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Seconds(from_unix(unix)).to_string(), text);
        }
    }

    #[test]
    fn microseconds_are_always_six_digits() {
        let instant = from_unix(1_795_210_312) + Duration::from_micros(42);
        assert_eq!(Micros(instant).to_string(), "2026-11-20T21:31:52.000042Z");
    }
}
