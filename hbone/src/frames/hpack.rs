//! Header compression (RFC 7541).

/// Size of a header table before anybody says otherwise.
pub(super) const FIRST_TABLE: u32 = 4096;
