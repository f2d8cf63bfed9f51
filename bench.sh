#!/usr/bin/env bash
# Prints what things cost: the circuit and its proofs, the ledger, FROST raw and through our API, the durable
# queue. docs/performance.md says how to read it. The same profile and target folder as the other scripts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./testnet/get-libclang.sh
cargo bench --locked --workspace --bench proof --bench frost --bench queue "$@"
