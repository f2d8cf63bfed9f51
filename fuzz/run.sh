#!/usr/bin/env bash
# One fuzz target under cargo-fuzz, for a number of seconds: fuzz/run.sh TARGET SECONDS [libFuzzer options].
# Without a sanitizer, so that the stable compiler does; target folder fuzz/libfuzzer/target unless CARGO_TARGET_DIR
# says otherwise. New inputs go to a folder beside it and not into the corpus of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
target=${1:?which target? see docs/fuzzing.md} seconds=${2:-60}
shift; shift || true
command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
folder=${CARGO_TARGET_DIR:-$PWD/libfuzzer/target}
features=()
grep -A6 "name = \"$target\"" libfuzzer/Cargo.toml | grep -q '"wire"' && features=(--features wire)
grep -A6 "name = \"$target\"" libfuzzer/Cargo.toml | grep -q '"nodes"' && features=(--features wire,nodes)
# The same versions of everything as the workspace has.
[ -f libfuzzer/Cargo.lock ] || cp ../Cargo.lock libfuzzer/Cargo.lock
mkdir -p "$folder/found/$target"
cargo fuzz run --fuzz-dir libfuzzer --sanitizer none "${features[@]}" --target-dir "$folder" "$target" \
  "$folder/found/$target" "corpus/$target" -- -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 "$@"
