//! Pure: how many requests may pass.
