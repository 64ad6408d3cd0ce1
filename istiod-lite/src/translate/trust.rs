//! Trust domains that are one and the same.
//!
//! A mesh that is renamed has identities of its old name in its policies, and peers that still prove
//! them. What names an identity of one of these domains means that identity in all of them.

/// Our trust domain and its aliases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustDomains(Vec<String>);

impl TrustDomains {
    /// `own` first.
    pub fn new(own: &str, aliases: &[String]) -> Self {
        let mut all = vec![own.to_owned()];
        for alias in aliases {
            if !alias.is_empty() && !all.contains(alias) {
                all.push(alias.clone());
            }
        }
        Self(all)
    }

    /// The same principals, `domain/ns/…`, in every domain. A pattern for the domain itself stays as
    /// it is.
    pub fn principals(&self, principals: &[String]) -> Vec<String> {
        self.everywhere("", principals)
    }

    /// The same names of certificates, `spiffe://domain/ns/…`, in every domain.
    pub fn names(&self, names: &[String]) -> Vec<String> {
        self.everywhere("spiffe://", names)
    }

    fn everywhere(&self, scheme: &str, texts: &[String]) -> Vec<String> {
        if self.0.len() < 2 {
            return texts.to_vec();
        }
        let mut all = Vec::with_capacity(texts.len() * self.0.len());
        for text in texts {
            let parts = text.strip_prefix(scheme).and_then(|it| it.split_once('/'));
            let ours = parts.filter(|(domain, _)| self.0.iter().any(|it| it == domain));
            let same: Vec<String> = match ours {
                Some((_, rest)) => {
                    let domains = self.0.iter();
                    domains.map(|it| format!("{scheme}{it}/{rest}")).collect()
                }
                None => vec![text.clone()],
            };
            for text in same {
                if !all.contains(&text) {
                    all.push(text);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::TrustDomains;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn an_identity_means_the_same_in_every_trust_domain_that_is_ours() {
        let domains = TrustDomains::new("new.org", &texts(&["old.org", "new.org", ""]));
        let named = [
            "old.org/ns/a/sa/b",
            "new.org/ns/a/sa/b",
            "else.org/ns/a/sa/b",
            "old.org/ns/a/*",
            "*/sa/b",
            "*",
        ];
        assert_eq!(
            domains.principals(&texts(&named)),
            [
                "new.org/ns/a/sa/b",
                "old.org/ns/a/sa/b",
                "else.org/ns/a/sa/b",
                "new.org/ns/a/*",
                "old.org/ns/a/*",
                "*/sa/b",
                "*",
            ]
        );
        assert_eq!(
            domains.names(&texts(&[
                "spiffe://old.org/ns/a/sa/b",
                "old.org/x",
                "web.example.com"
            ])),
            [
                "spiffe://new.org/ns/a/sa/b",
                "spiffe://old.org/ns/a/sa/b",
                "old.org/x",
                "web.example.com"
            ]
        );
    }

    #[test]
    fn without_an_alias_nothing_is_rewritten() {
        let named = texts(&["new.org/ns/a/sa/b", "new.org/ns/a/sa/b"]);
        assert_eq!(TrustDomains::new("new.org", &[]).principals(&named), named);
    }
}
