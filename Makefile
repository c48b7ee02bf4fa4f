# The same verbs on a laptop and in CI. Each does all its own set-up.
SHELL := /bin/bash
.DEFAULT_GOAL := help
TARGET := target/$(shell rustc -vV | sed -n 's/^host: //p')
# Programs that Debian does not have, or only too old: scripts/tools.sh. Kept over `make clean`.
export TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mycelium/bin
export PATH := $(TOOLS):$(PATH):/usr/sbin:/sbin

.PHONY: help run build test conformance rehearse vm-check vm-demo chaos lint bench sim fuzz clean setup

help: ## Show the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: ## Install the packages that building and running need
	@scripts/setup.sh run

build: setup ## Build the release binary
	cargo build --release --locked -p mycelium -p symphainy-platform
	@ls -lh $(TARGET)/release/mycelium | awk '{print "built " $$NF " (" $$5 ")"}'

run: build ## Start the engine, run the example platform on it, show it working, stop (KEEP=1 leaves it running)
	@scripts/run.sh $(TARGET)/release

test: ## Run every test
	@scripts/setup.sh test
	cargo build --locked --workspace
	cargo test --locked --workspace --no-fail-fast

conformance: ## Build the conformance tests of Kubernetes 1.35 from the Go module proxy and run them (FOCUS=sig-apps SKIP=... PROCS=2)
	@scripts/setup.sh test
	cargo build --release --locked -p mycelium
	@scripts/conformance.sh $(TARGET)/release

rehearse: ## make run and make test from a clean clone on a new Debian root file system with only Rust (VERBS="run test")
	@scripts/setup.sh test
	@scripts/rehearse.sh $(VERBS)

vm-check: ## The engine on a Debian with cgroup v2 only, in a virtual machine (QEMU; KVM where it works)
	@scripts/setup.sh vm
	cargo build --locked -p mycelium
	@scripts/vm-check.sh $(TARGET)/debug

vm-demo: ## Three hosts as namespaces, a virtual machine, two power cuts, and a conversation that lives on (KILLS=2)
	@scripts/setup.sh vm
	cargo build --release --locked -p mycelium --bin mycelium --example numbering-guest --example numbering-client
	@scripts/vm/demo.sh $(TARGET)/release $(KILLS)

chaos: ## Virtual machines whose hosts are killed, parted and harmed, many times (KILLS=200 PG_KILLS=30 ROUNDS=30 EPOCHS=4500 MEMORY=4096 SEEDS=20000 SEED=...)
	@scripts/setup.sh test
	MYCELIUM_CHAOS_KILLS=$${KILLS:-200} MYCELIUM_CHAOS_POSTGRES_KILLS=$${PG_KILLS:-30} \
	  MYCELIUM_CHAOS_MIGRATIONS=$${ROUNDS:-30} MYCELIUM_CHAOS_PARTITIONS=$${ROUNDS:-30} MYCELIUM_CHAOS_PHASES=$$((6 * $${ROUNDS:-30})) \
	  MYCELIUM_CHAOS_WIRE=$${ROUNDS:-30} MYCELIUM_CHAOS_STALLS=$${ROUNDS:-30} \
	  MYCELIUM_CHAOS_MEMORY=$${MEMORY:-4096} MYCELIUM_CHAOS_MEMORY_KILLS=3 $(if $(SEED),MYCELIUM_CHAOS_SEED=$(SEED)) \
	  cargo test --release --locked -p mycelium --test vm -- --nocapture
	MYCELIUM_EPOCHS=$${EPOCHS:-4500} MYCELIUM_SIM_SEEDS=$${SEEDS:-20000} \
	  cargo test --release --locked -p mycelium -p mycelium-endophyte -p mycelium-rhizomorph \
	  --lib --test machine --test replay --test disk --test wires --test link -- --nocapture

lint: setup ## Formatting, clippy, layering, tidiness, licences and advisories (where cargo-deny is installed)
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo xtask layering
	cargo xtask tidy
	@if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; else echo "cargo-deny is not installed: cargo install cargo-deny"; fi

bench: ## Measure the figures of SPEC.md beside their peers
	@scripts/setup.sh bench
	cargo build --release --locked -p mycelium -p symphainy-platform
	@scripts/bench.sh $(TARGET)/release

sim: ## Run the simulation: make sim SEEDS=1000 FROM=1
	cargo run --release --locked -p mycelium-sim -- --seeds $${SEEDS:-1000} --from-seed $${FROM:-1}

fuzz: ## Feed random and mutated bytes to every decoder: make fuzz RUNS=20000 SEED=1 (guided by coverage: fuzz/guided.sh)
	cd fuzz && cargo run --release -- all $${RUNS:-20000} $${SEED:-1}

clean: ## Remove what was built
	cargo clean
