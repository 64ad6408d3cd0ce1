//! Clients that do not keep to the rules, and ends in the middle.
