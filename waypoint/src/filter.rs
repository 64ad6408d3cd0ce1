//! Pure: what a rule changes of a request and its answer.
