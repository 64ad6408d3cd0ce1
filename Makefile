# Each target is a line or two; CI runs `make test` and `make e2e`, as a newcomer does.
.DEFAULT_GOAL := help
PROFILE_DIR := target/release
# Of the images. dev shares the build of `make test`; in release the plugin, which runs on nodes of any kind, is static.
PROFILE ?= release
export BASE HUB TAG PUSH SKOPEO_ARGS
# Programs as the tests need them. With the examples cargo takes the features of dev-dependencies, as it does for tests:
# else tokio and all above it would be compiled twice. e2e/run builds in the same words.
DEV_BUILD := cargo build --workspace --bins --examples

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## ?/\t/' | expand -t 12

deps:            ## install what demo, tests and benchmarks run (Debian/Ubuntu as root; named elsewhere)
	@lab/install-deps.sh

build:           ## release binaries
	cargo build --release --workspace --bins

demo: deps       ## two nodes, real programs, the mesh between them (ONCE=1: run the tour and leave)
	cargo build --release -p lab -p ztunnel -p waypoint -p istiod-lite -p cni-plugin --bins
	$(PROFILE_DIR)/lab demo $(if $(ONCE),--once,)

test: deps lint  ## format, clippy, unit, property and integration tests; prints counts
	$(DEV_BUILD)
	.ci/tests

lint:            ## format and clippy, warnings denied; plain YAML made from the chart as it is
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	@manifests/render --check
	@if cargo tree -i ring 2>/dev/null | grep -q '^ring'; then echo "ring is in the graph; the one crypto library is aws-lc-rs" >&2; exit 1; fi

deny:            ## licences, bans, sources (needs cargo-deny)
	cargo deny check bans licenses sources

e2e:             ## tests on a real three-node cluster, made and removed here (E2E_KEEP=1: kept; e2e/run says more)
	e2e/run

conformance:     ## the Gateway API's conformance suite, on a cluster that is there or made for it; report in docs/conformance
	e2e/run conformance

bench: deps build ## measurements beside raw sockets, bare forwarders and, with PEER_ZTUNNEL= and PEER_ENVOY=path, peers
	$(PROFILE_DIR)/bench $(if $(PEER_ZTUNNEL),--peer $(PEER_ZTUNNEL),) $(if $(PEER_ENVOY),--envoy $(PEER_ENVOY),) $(BENCH_ARGS)

images:          ## images of the parts (BASE=image|debootstrap HUB= TAG= PROFILE=release|dev PUSH=1); prints digests
	$(if $(filter dev,$(PROFILE)),$(DEV_BUILD),cargo build --profile $(PROFILE) --workspace --bins)
	$(if $(filter release,$(PROFILE)),cargo rustc --release -p cni-plugin --bin ambit-cni -- -C target-feature=+crt-static)
	$(if $(filter dev,$(PROFILE)),GZIP_LEVEL=1) manifests/images/build target/$(PROFILE:dev=debug) target/images

manifests:       ## manifests/ambit.yaml anew from the chart, and what helm says of it
	manifests/render

clean-lab:       ## remove every network namespace and process a crashed lab left behind
	cargo run --quiet -p lab -- clean

.PHONY: help deps build demo test lint deny e2e conformance bench images manifests clean-lab
