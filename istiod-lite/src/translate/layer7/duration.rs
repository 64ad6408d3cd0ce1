//! Durations as Istio's and Gateway API's objects write them: `1.5s`, `100ms`, `1h30m`.

/// Milliseconds, rounded up: what is not nothing stays more than nothing.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    let fault = || format!("{text:?} is no duration; write 1.5s, 100ms or 1h30m");
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit() && it != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(fault)?);
        let unit = after.find(|it: char| it.is_ascii_digit());
        let (unit, after) = after.split_at(unit.unwrap_or(after.len()));
        let unit: u128 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" => 1_000,
            "ns" => 1,
            _ => return Err(fault()),
        };
        nanoseconds += scaled(number, unit).ok_or_else(fault)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(fault());
    }
    let milliseconds = nanoseconds.div_ceil(1_000_000);
    u64::try_from(milliseconds)
        .ok()
        .filter(|it| *it <= LONGEST)
        .ok_or_else(fault)
}

/// The same; 0 if there is none.
pub fn optional(text: Option<&str>) -> Result<u64, String> {
    text.map_or(Ok(0), milliseconds)
}

/// Ten thousand years, protobuf's own limit, in milliseconds.
const LONGEST: u64 = 315_576_000_000_000;

/// `1.5` of a unit.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || whole.len() > 15 || part.len() > 15 {
        return None;
    }
    let parse = |text: &str| match text {
        "" => Some(0),
        text => text.parse::<u128>().ok(),
    };
    let tenth = 10_u128.pow(u32::try_from(part.len()).ok()?);
    Some(parse(whole)? * unit + parse(part)? * unit / tenth)
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn durations_of_all_spellings_are_milliseconds() {
        for (text, expected) in [
            ("0", 0),
            ("0s", 0),
            ("1s", 1_000),
            ("1.5s", 1_500),
            ("0.000000001s", 1),
            ("100ms", 100),
            (".5s", 500),
            ("1h30m", 5_400_000),
            ("2m3.25s", 123_250),
            ("7us", 1),
        ] {
            assert_eq!(milliseconds(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "1d",
            "-1s",
            "1s ",
            ".s",
            "1.2.3s",
            "99999999999999999999s",
        ] {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }
}
