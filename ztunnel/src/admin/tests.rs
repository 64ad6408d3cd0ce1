//! `/config_dump` against what Istio's ztunnel printed, member by member.
