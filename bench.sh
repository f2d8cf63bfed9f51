#!/usr/bin/env bash
# Prints what things cost. docs/performance.md says how to read it. The same profile and target folder as the other
# scripts.
#   ./bench.sh          the circuit and its proofs, the ledger, the durable queue, signing sessions in short, and FROST
#                       raw, through our API and as node processes took it. 4 to 7 minutes on 2 cores, once built.
#   ./bench.sh signing  sessions beside raw FROST: 3-of-5, 12-of-16 and 67-of-100, up to 1,000 inputs.
#   ./bench.sh roast    ROAST's experiment: signers that drop out after the nonce round.
#   ./bench.sh dkg      key generation at 5, 16, 50 and 100 operators.
#   ./bench.sh queue    pushes a second to the durable queue at 1, 8 and 32 producers, beside the disk's syncs.
#   ./bench.sh recovery [full]  a coordinator's restart, its rebuild from operators, memory and disk, at 10^4 and 10^5
#                       accounts with a tenth as many requests waiting; with "full" also at 10^6, which takes 30 minutes of CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./testnet/get-libclang.sh
case ${1:-} in
signing | roast | dkg)
  exec cargo bench --locked --workspace --bench signing -- "$@"
  ;;
queue)
  exec cargo bench --locked --workspace --bench queue
  ;;
recovery)
  exec cargo bench --locked --workspace --bench recovery -- "$@"
  ;;
esac
BITCOIND=$(./testnet/get-bitcoind.sh)
export BITCOIND
# The nodes' binaries come first: the last benchmark starts them as processes.
cargo build --release --locked --workspace
cargo bench --locked --workspace --bench proof --bench queue --bench signing --bench nodes "$@"
