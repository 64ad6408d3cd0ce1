//! Names of hosts in Istio's objects.

/// A host as written in `namespace`, complete: a name without a dot is a Service of that namespace.
pub fn complete(host: &str, namespace: &str, domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host == "*" {
        host
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// Whether a host, that may begin with `*`, means this one.
pub fn matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(end) => host.len() > end.len() && host.ends_with(end) || pattern == host,
        None => pattern == host,
    }
}

/// How specific a host is: one that says it whole before any other, then the longer.
pub fn rank(pattern: &str) -> (bool, usize) {
    (!pattern.starts_with('*'), pattern.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_a_service_of_the_namespace() {
        let complete = |host| complete(host, "shop", "cluster.local");
        assert_eq!(complete("Web"), "web.shop.svc.cluster.local");
        assert_eq!(complete("web.other"), "web.other");
        assert_eq!(complete("*"), "*");
    }

    #[test]
    fn a_star_stands_for_at_least_one_character() {
        assert!(matches("*", "web.shop"));
        assert!(matches("*.shop", "web.shop"));
        assert!(!matches("*.shop", ".shop"));
        assert!(!matches("*.shop", "shop"));
        assert!(!matches("web", "web.shop"));
        assert!(matches("*.shop", "*.shop"));
        assert!(rank("a.b") > rank("*.very.long.name") && rank("*.b.c") > rank("*.c"));
    }
}
