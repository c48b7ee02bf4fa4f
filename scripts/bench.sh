#!/usr/bin/env bash
# Measures the figures of SPEC.md beside their peers. Called by `make bench`.
#   scripts/bench.sh FOLDER_OF_BINARIES [NAME]     NAME may be a part of one, such as vm, or wires; pictures go to target/bench
set -euo pipefail
bin=$(realpath "${1:?folder of the binaries}")
if [[ ${2:-} != wires ]]; then
  cargo run --release --locked -q -p mycelium-bench -- --bin "$bin" ${2:+--only "$2"}
fi
# Four rate-limited wires against one, between two network namespaces.
if [[ ${2:-wires} == wires ]]; then
  cargo test --release --locked -q -p mycelium-rhizomorph --test wires -- --nocapture four_wires
fi
[[ -n ${2:-} ]] || cargo bench --locked -q -p mycelium-store -p mycelium-controllers -p mycelium-net
