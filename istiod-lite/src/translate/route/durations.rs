//! Durations as Gateway API writes them (GEP-2257): `1h30m`, `10s`, `250ms`.

/// Milliseconds; an error if it is none.
pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no duration: up to four numbers of up to five digits, each with h, m, s or ms"
        )
    };
    let mut rest = text;
    let mut sum = 0u64;
    for part in 0.. {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let factor = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let unit = factor.into_iter().find(|(unit, _)| after.starts_with(unit));
        let (Some((unit, factor)), 1..=5, 0..=3) = (unit, digits, part) else {
            return Err(wrong());
        };
        sum += number.parse::<u64>().map_err(|_| wrong())? * factor;
        rest = &after[unit.len()..];
        if rest.is_empty() {
            break;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn what_the_specification_allows_is_read() {
        for (text, expected) in [
            ("0s", 0),
            ("0h", 0),
            ("1h", 3_600_000),
            ("30m", 1_800_000),
            ("10s500ms", 10_500),
            ("2h30m", 9_000_000),
            ("150m", 9_000_000),
            ("7230s", 7_230_000),
            ("1h30m10s", 5_410_000),
            ("10s30m1h", 5_410_000),
            ("100ms200ms300ms", 600),
            ("99999h99999h99999h99999h", 4 * 99_999 * 3_600_000),
        ] {
            assert_eq!(milliseconds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_it_does_not_is_refused() {
        for text in [
            "",
            "1",
            "h",
            "1d",
            "1.5h",
            "-15m",
            " 1s",
            "1s ",
            "1S",
            "100000s",
            "1h1h1h1h1h",
            "10s 1m",
            "1us",
            "１s",
        ] {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }
}
