//! Pure: which endpoint a request goes to.
