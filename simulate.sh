#!/usr/bin/env bash
# Drives the protocol's state machines through random schedules of delays, losses, restarts and lies:
# ./simulate.sh signing --schedules 100000 --real 1000 --large 5
# and the whole bridge, with reorganisations, fees, double-spends, lost disks and thefts on top:
# ./simulate.sh vault --schedules 1000000 --real 2000
# ./simulate.sh mutants breaks machines and nodes in 35 ways, one at a time, and fails if the invariants miss one.
# ./simulate.sh candidates goes through every run of S2 and S7 in a few small vaults, then breaks them in 10 ways.
# A violation prints the seed that replays it: ./simulate.sh signing --kind fake --seed 7, ./simulate.sh vault --seed 7
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./testnet/get-libclang.sh
# The whole workspace, so that dependencies are built with the same features as by the other scripts.
cargo build --release --locked --workspace --bin drawbridge-simulate >&2
exec "${CARGO_TARGET_DIR:-target}/release/drawbridge-simulate" "$@"
