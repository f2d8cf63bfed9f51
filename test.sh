#!/usr/bin/env bash
# All tests: unit, property, published vectors, tampered witnesses, and node processes on a real bitcoind.
# Options go to cargo nextest: ./test.sh -E 'package(protocol)'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "$*" >&2; }

command -v cargo >/dev/null || { say "cargo is missing: install Rust 1.95 or later (rustup.rs)"; exit 1; }
./testnet/get-libclang.sh
BITCOIND=$(./testnet/get-bitcoind.sh)
export BITCOIND

# The same profile and target folder as testnet/run.sh, so that dependencies are built once. The binaries come
# first: end-to-end tests start them as processes.
cargo build --release --locked --workspace
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --release --locked --workspace "$@"
else
  say "cargo-nextest is missing; using cargo test"
  cargo test --release --locked --workspace -- --test-threads=1
fi
