//! Figures for a person.

/// `1.5 MiB`
pub(crate) fn amount(bytes: f64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    let (mut left, mut unit) = (bytes / 1024.0, units[0]);
    for next in &units[1..] {
        if left < 1024.0 {
            break;
        }
        (left, unit) = (left / 1024.0, next);
    }
    format!("{left:.1} {unit}")
}

/// Of so many milliseconds: `850ms`, `12s`, `3m5s`, `2h10m`, `4d3h`.
pub(crate) fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.0 KiB"),
            (1.5 * 1024.0 * 1024.0, "1.5 MiB"),
            (5e15, "4547.5 TiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
        for (millis, text) in [
            (5, "5ms"),
            (1999, "1s"),
            (61_000, "1m1s"),
            (3_660_000, "1h1m"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(span(millis), text);
        }
    }
}
