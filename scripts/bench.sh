#!/usr/bin/env bash
# Measures the figures of SPEC.md beside their peers. Called by `make bench`.
#   scripts/bench.sh FOLDER_OF_BINARIES [NAME]     NAME may be a part of one, such as vm; pictures go to target/bench
set -euo pipefail
bin=$(realpath "${1:?folder of the binaries}")
cargo run --release --locked -q -p mycelium-bench -- --bin "$bin" ${2:+--only "$2"}
[[ -n ${2:-} ]] || cargo bench --locked -q -p mycelium-store -p mycelium-controllers -p mycelium-net
