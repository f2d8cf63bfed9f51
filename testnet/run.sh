#!/usr/bin/env bash
# The local network: gets what is missing, builds, starts bitcoind, a coordinator and operators, and plays a
# scenario with real wallets. Options: ./testnet/run.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

command -v cargo >/dev/null || { say "cargo is missing: install Rust 1.95 or later (rustup.rs)"; exit 1; }
./testnet/get-libclang.sh
BITCOIND=$(./testnet/get-bitcoind.sh)
export BITCOIND

say "building (a first build takes about 40 CPU-minutes; cargo shows how far it is)"
cargo build --release --locked --workspace
target=${CARGO_TARGET_DIR:-target}
exec "$target/release/drawbridge-testnet" "$@"
