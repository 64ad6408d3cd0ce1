//! Pure: how the values of flags and variables are written.

use std::path::PathBuf;
use std::time::Duration;

use hbone::Engine;

/// Threads for traffic: a number, or a share of the machine's cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// That many.
    Count(usize),
    /// That many hundredths of the cores.
    Percent(usize),
}

impl Workers {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is neither a number of threads nor a percentage such as 50%");
        let (number, kind): (&str, fn(usize) -> Self) = match text.strip_suffix('%') {
            Some(percent) => (percent, Self::Percent),
            None => (text, Self::Count),
        };
        let number: usize = number.parse().map_err(|_| bad())?;
        if number == 0 {
            Err(bad())
        } else {
            Ok(kind(number))
        }
    }
}

/// For whom this runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The pods of a node.
    Shared,
    /// One workload, in our own network namespace.
    Dedicated,
}

impl Mode {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "" | "shared" => Ok(Self::Shared),
            "dedicated" => Ok(Self::Dedicated),
            _ => Err(format!("{text:?} is neither shared nor dedicated")),
        }
    }
}

/// The one workload of a dedicated proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its account.
    pub service_account: String,
}

/// `namespace/name/service account`, as Istio's has it.
pub(super) fn workload(text: &str) -> Result<WorkloadInfo, String> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [namespace, name, account] if !parts.contains(&"") => Ok(WorkloadInfo {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: account.to_owned(),
        }),
        _ => Err(format!(
            "{text:?} is not <namespace>/<name>/<service account>"
        )),
    }
}

/// What carries tunnels, by name. Empty means the default: charts leave variables empty.
pub(super) fn engine(text: &str) -> Result<Engine, String> {
    if text.is_empty() {
        return Ok(Engine::default());
    }
    let named = ENGINES
        .into_iter()
        .find(|&known| engine_name(known) == text);
    named.ok_or_else(|| format!("{text:?} is neither h2 nor own"))
}

/// As [`engine`] reads it, and as it is shown.
pub fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::H2 => "h2",
        Engine::Own => "own",
    }
}

const ENGINES: [Engine; 2] = [Engine::H2, Engine::Own];

/// A file of root certificates, or the system's. Empty means the default.
pub(super) fn root(text: &str) -> Result<PathBuf, String> {
    Ok(match text {
        "" => DEFAULT_ROOT,
        "SYSTEM" => "/etc/ssl/certs/ca-certificates.crt",
        path => path,
    }
    .into())
}

/// How many there may be: one at least.
pub(super) fn count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| format!("{text:?} is not a number above 0"))
}

/// As it is, also empty.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

/// Anything but an empty text.
pub(super) fn filled(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("must not be empty".into())
    } else {
        Ok(text.to_owned())
    }
}

/// `0x539` or `1337`.
pub(super) fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not a number"))
}

/// `90`, `90s`, `1500ms`, `5m`, `24h`; also joined, as Go prints them: `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    ops::time::duration(text)
        .ok_or_else(|| format!("{text:?} is not a duration such as 90s, 1500ms, 5m or 1h30m"))
}

pub(super) const DEFAULT_ROOT: &str = "/var/run/secrets/istio/root-cert.pem";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_and_people_write_them() {
        for (text, millis) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("1500ms", 1_500),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "5x", "-1s", "1.5s", "5m ", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn engines_are_called_by_their_names_alone() {
        for known in ENGINES {
            assert_eq!(engine(engine_name(known)), Ok(known));
        }
        assert_eq!(engine(""), Ok(Engine::Own));
        for bad in ["H2", "own ", "true", "http2"] {
            let refused = engine(bad).unwrap_err();
            assert!(refused.contains(bad) && refused.lines().count() == 1);
        }
    }

    #[test]
    fn impossible_worker_counts_are_refused() {
        for bad in ["0", "0%", "many", "-1"] {
            assert!(Workers::parse(bad).is_err(), "{bad}");
        }
    }
}
