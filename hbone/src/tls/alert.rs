//! Alerts in words (RFC 8446, 6.2): what one end of a connection says to the other before it hangs up.

use std::fmt;

/// An alert that came, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alert(pub u8);

impl Alert {
    /// The certificate that was shown, or that of an authority above it, is on a list of revoked ones there.
    pub const CERTIFICATE_REVOKED: Self = Self(44);
    /// The certificate that was shown is not valid now, by the clock there.
    pub const CERTIFICATE_EXPIRED: Self = Self(45);
    /// The certificate that was shown leads to no root that is trusted there.
    pub const UNKNOWN_CA: Self = Self(48);

    /// Something is not signed by whose name stands there: mostly, of two roots of one name the other is trusted there.
    pub const DECRYPT_ERROR: Self = Self(51);

    /// It is about what was shown, or not shown: whoever comes again with the same is refused again.
    pub fn is_about_the_certificate(self) -> bool {
        matches!(self.0, 42..=46 | 48 | 49 | 51 | 116)
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            10 => "unexpected message",
            20 => "bad record mac",
            22 => "record overflow",
            40 => "handshake failure",
            42 => "bad certificate",
            43 => "unsupported certificate",
            44 => "certificate revoked",
            // Says more than its name.
            45 => {
                "certificate expired or not valid yet by its clock; compare the clocks of both ends"
            }
            46 => "certificate unknown",
            47 => "illegal parameter",
            48 => "unknown ca",
            49 => "access denied",
            50 => "decode error",
            51 => "decrypt error",
            70 => "protocol version",
            71 => "insufficient security",
            80 => "internal error",
            90 => "user canceled",
            109 => "missing extension",
            110 => "unsupported extension",
            112 => "unrecognised name",
            116 => "certificate required",
            120 => "no application protocol",
            other => return write!(f, "alert {other}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription as A;

    use super::*;

    #[test]
    fn those_about_a_certificate_are_told_apart_by_their_numbers() {
        for (alert, own, words) in [
            (A::CertificateRevoked, true, "certificate revoked"),
            (A::UnknownCA, true, "unknown ca"),
            (A::DecryptError, true, "decrypt error"),
            (A::CertificateUnknown, true, "certificate unknown"),
            (A::AccessDenied, true, "access denied"),
            (A::CertificateRequired, true, "certificate required"),
            (A::BadRecordMac, false, "bad record mac"),
            (A::HandshakeFailure, false, "handshake failure"),
            (A::UserCanceled, false, "user canceled"),
            (A::Unknown(200), false, "alert 200"),
        ] {
            let alert = Alert(alert.into());
            assert_eq!(alert.is_about_the_certificate(), own, "{alert}");
            assert_eq!(alert.to_string(), words);
        }
        let named = [
            (Alert::CERTIFICATE_REVOKED, A::CertificateRevoked),
            (Alert::CERTIFICATE_EXPIRED, A::CertificateExpired),
            (Alert::UNKNOWN_CA, A::UnknownCA),
            (Alert::DECRYPT_ERROR, A::DecryptError),
        ];
        for (ours, theirs) in named {
            assert_eq!(ours, Alert(theirs.into()));
        }
    }
}
