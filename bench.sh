#!/usr/bin/env bash
# Prints what things cost: the circuit and its proofs, the ledger, the durable queue, FROST raw and through our
# API, and what node processes took for the same. docs/performance.md says how to read it. The same profile and
# target folder as the other scripts. About 6 minutes on 2 cores, once everything is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./testnet/get-libclang.sh
BITCOIND=$(./testnet/get-bitcoind.sh)
export BITCOIND
# The nodes' binaries come first: the last benchmark starts them as processes.
cargo build --release --locked --workspace
cargo bench --locked --workspace --bench proof --bench queue --bench nodes "$@"
