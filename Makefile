# Each target is a line or two; CI runs `make test`, as a newcomer does.
.DEFAULT_GOAL := help
PROFILE_DIR := target/release

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## ?/\t/' | expand -t 12

deps:            ## install what demo, tests and benchmarks run (Debian/Ubuntu as root; named elsewhere)
	@lab/install-deps.sh

build:           ## release binaries
	cargo build --release --workspace --bins

demo: deps       ## two nodes, real programs, the mesh between them (ONCE=1: run the tour and leave)
	cargo build --release -p lab -p ztunnel -p istiod-lite -p cni-plugin --bins
	$(PROFILE_DIR)/lab demo $(if $(ONCE),--once,)

test: deps lint  ## format, clippy, unit, property and integration tests; prints counts
	cargo build --workspace --bins
	.ci/count cargo test --workspace --no-fail-fast

lint:            ## format and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	@if cargo tree -i ring 2>/dev/null | grep -q '^ring'; then echo "ring is in the graph; the one crypto library is aws-lc-rs" >&2; exit 1; fi

deny:            ## licences, bans, sources (needs cargo-deny)
	cargo deny check bans licenses sources

bench: deps build ## measurements beside raw sockets, bare forwarders and, with PEER_ZTUNNEL=path, a peer
	$(PROFILE_DIR)/bench $(if $(PEER_ZTUNNEL),--peer $(PEER_ZTUNNEL),) $(BENCH_ARGS)

clean-lab:       ## remove every network namespace and process a crashed lab left behind
	cargo run --quiet -p lab -- clean

.PHONY: help deps build demo test lint deny bench clean-lab
