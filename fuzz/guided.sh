#!/usr/bin/env bash
# Runs targets under libFuzzer, guided by coverage, with the stable compiler and a C++ compiler for libFuzzer itself.
#   fuzz/guided.sh SECONDS [TARGET...]        (all targets if none is named)
#   BUILD=--no-default-features fuzz/guided.sh SECONDS     (only those that compile fast)
# What was found lies in fuzz/artifacts, what reaches new code in fuzz/corpus. No sanitizer of memory is linked: it would
# need a nightly compiler's flag, and what is fuzzed is safe Rust. The program is not static, as our others are, since
# libFuzzer stands in for functions of libc.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?usage: fuzz/guided.sh SECONDS [TARGET...]}
shift

# Code that counts its edges and shows what it compares, as libFuzzer reads it.
flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/guided
command -v c++ >/dev/null || { echo "guided: libFuzzer needs a C++ compiler: apt-get install g++" >&2; exit 1; }
RUSTFLAGS="${flags[*]}" cargo build --release --locked ${BUILD:-} --features libfuzzer --bin guided
guided=$(ls "$CARGO_TARGET_DIR"/*/release/guided)

names=("$@")
((${#names[@]})) || mapfile -t names < <("$guided" 2>/dev/null)
failed=()
for name in "${names[@]}"; do
  mkdir -p "corpus/$name" artifacts
  log=$(mktemp)
  if FUZZ_TARGET=$name FUZZ_SEEDS=corpus/$name "$guided" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
    -artifact_prefix="artifacts/$name-" "corpus/$name" >"$log" 2>&1; then
    echo "$name: $(grep -E '^Done ' "$log"), $(grep -oE 'cov: [0-9]+' "$log" | tail -1)"
  else
    tail -30 "$log"
    failed+=("$name")
  fi
  rm -f "$log"
done
((${#failed[@]} == 0)) || { echo "guided: failed: ${failed[*]}" >&2; exit 1; }
