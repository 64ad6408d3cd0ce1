//! What went differently, in the letters that Envoy's users know (label `response_flags`, log field `flags`).

use std::fmt;

/// Something about a request or connection that a person should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Flag {
    /// No endpoint that could take it.
    NoHealthyUpstream,
    /// The endpoint could not be connected to.
    UpstreamConnectFailure,
    /// A limit of circuit breaking was reached.
    UpstreamOverflow,
    /// No rule is for it.
    NoRoute,
    /// What the rule leads to does not exist.
    NoCluster,
    /// It was tried as often as allowed.
    RetriesExhausted,
    /// The client went away.
    DownstreamClosed,
    /// The client did not keep to the protocol.
    DownstreamProtocolError,
    /// The endpoint cut the connection.
    UpstreamClosed,
    /// The endpoint reset the stream.
    UpstreamReset,
    /// This proxy reset the stream.
    LocalReset,
    /// The endpoint did not keep to the protocol.
    UpstreamProtocolError,
    /// The request's time was up.
    UpstreamTimeout,
    /// The whole time that was allowed was up, while an answer was coming.
    DurationTimeout,
    /// No byte for too long.
    IdleTimeout,
    /// A delay was injected.
    DelayInjected,
    /// A fault was injected.
    FaultInjected,
    /// A limit on the rate.
    RateLimited,
    /// The rate limit service could not be asked.
    RateLimitServiceError,
    /// An authorizer said no.
    Unauthorized,
    /// This proxy has too much to do.
    Overloaded,
    /// A name could not be resolved.
    NameUnresolved,
    /// It was slow, and asked once more of another endpoint.
    Hedged,
    /// A certificate was revoked: the endpoint's, or ours, as the endpoint's proxy says. Ztunnels have the word too.
    CertificateRevoked,
}

const ALL: [(Flag, &str); 24] = [
    (Flag::NoHealthyUpstream, "UH"),
    (Flag::UpstreamConnectFailure, "UF"),
    (Flag::UpstreamOverflow, "UO"),
    (Flag::NoRoute, "NR"),
    (Flag::NoCluster, "NC"),
    (Flag::RetriesExhausted, "URX"),
    (Flag::DownstreamClosed, "DC"),
    (Flag::DownstreamProtocolError, "DPE"),
    (Flag::UpstreamClosed, "UC"),
    (Flag::UpstreamReset, "UR"),
    (Flag::LocalReset, "LR"),
    (Flag::UpstreamProtocolError, "UPE"),
    (Flag::UpstreamTimeout, "UT"),
    (Flag::DurationTimeout, "DT"),
    (Flag::IdleTimeout, "SI"),
    (Flag::DelayInjected, "DI"),
    (Flag::FaultInjected, "FI"),
    (Flag::RateLimited, "RL"),
    (Flag::RateLimitServiceError, "RLSE"),
    (Flag::Unauthorized, "UAEX"),
    (Flag::Overloaded, "OM"),
    (Flag::NameUnresolved, "DF"),
    (Flag::Hedged, "HG"),
    (Flag::CertificateRevoked, "CERT_REVOKED"),
];

impl Flag {
    /// Its letters.
    pub fn letters(self) -> &'static str {
        ALL[self as usize].1
    }

    /// Whether this alone makes a request worth a warning: injected faults are wanted, and so is a second request.
    fn is_trouble(self) -> bool {
        !matches!(
            self,
            Self::DelayInjected | Self::FaultInjected | Self::Hedged
        )
    }
}

/// Several of them; prints as `UF,URX`, or `-` where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

impl Flags {
    /// These, and that one.
    #[must_use]
    pub fn with(self, flag: Flag) -> Self {
        Self(self.0 | 1 << flag as u8)
    }

    /// Whether that one is among them.
    pub fn has(self, flag: Flag) -> bool {
        self.0 & 1 << flag as u8 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether one of them says that something failed.
    pub fn are_trouble(self) -> bool {
        self.each().any(Flag::is_trouble)
    }

    fn each(self) -> impl Iterator<Item = Flag> {
        let all = ALL.into_iter().map(|(flag, _)| flag);
        all.filter(move |flag| self.has(*flag))
    }
}

impl From<Flag> for Flags {
    fn from(flag: Flag) -> Self {
        Self::default().with(flag)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (at, flag) in self.each().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            f.write_str(flag.letters())?;
        }
        Ok(())
    }
}
