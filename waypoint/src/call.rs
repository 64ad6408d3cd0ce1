//! One request is answered by tries: timeouts, retries, hedging.
