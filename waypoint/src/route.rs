//! Pure: which rule a request belongs to.
