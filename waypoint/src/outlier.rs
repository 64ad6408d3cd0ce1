//! Pure: which endpoints are left out for a while.
