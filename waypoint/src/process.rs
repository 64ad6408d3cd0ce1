//! Pure: what an external processor is shown of a request and of its answer, and what its words mean.
