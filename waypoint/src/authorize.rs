//! Pure: whether a request may pass.
