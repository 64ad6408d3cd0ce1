//! What is reported of a request.
