//! Pure: how the address of the control plane is written.

/// Where it is if nothing is said.
pub const DEFAULT_ADDRESS: &str = "https://istiod.istio-system.svc:15012";

/// `host:port`, `https://host:port` or `http://host:port` into a URL. Empty means the default: charts leave variables empty.
///
/// # Errors
/// What is wrong with it.
pub fn address(text: &str) -> Result<String, String> {
    let text = if text.is_empty() {
        DEFAULT_ADDRESS
    } else {
        text
    };
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: http::Uri = url.parse().map_err(|error| format!("{text:?}: {error}"))?;
    match (uri.scheme_str(), uri.port_u16()) {
        (Some("http" | "https"), Some(_)) => Ok(url.trim_end_matches('/').to_owned()),
        (Some("http" | "https"), None) => Err(format!("{text:?}: the port is missing")),
        _ => Err(format!("{text:?}: use host:port or https://host:port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_urls() {
        for (given, url) in [
            (
                "istiod.istio-system.svc:15012",
                Some("https://istiod.istio-system.svc:15012"),
            ),
            ("https://localhost:15012/", Some("https://localhost:15012")),
            ("http://127.0.0.1:15010", Some("http://127.0.0.1:15010")),
            ("https://[fd00::1]:15012", Some("https://[fd00::1]:15012")),
            ("", Some(DEFAULT_ADDRESS)),
            ("https://localhost", None),
            ("unix:///run/x:1", None),
        ] {
            assert_eq!(address(given).ok().as_deref(), url, "{given}");
        }
    }
}
