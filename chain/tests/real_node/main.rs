//! The crate on a real bitcoind, which `testnet/get-bitcoind.sh` finds or fetches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

// The crate `testnet` uses this one, so it cannot be a dependency here without a cycle that would
// make these tests wait for the whole workspace to build.
#[allow(dead_code)]
#[path = "../../../testnet/src/bitcoind.rs"]
mod bitcoind;

mod connecting;
mod following;
mod outputs;
mod replacing;
mod submitting;

use std::time::Duration;

use bitcoind::Bitcoind;
use tempfile::TempDir;

/// Bound of every wait in these tests.
const PATIENCE: Duration = Duration::from_secs(60);

async fn node() -> (Bitcoind, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let node = Bitcoind::start(dir.path()).await.unwrap();
    (node, dir)
}

/// A node whose wallet has `coins` mature coinbase outputs.
async fn node_with_coins(coins: u32) -> (Bitcoind, TempDir) {
    let (mut node, dir) = node().await;
    node.mine(bitcoind::COINBASE_MATURITY + coins)
        .await
        .unwrap();
    (node, dir)
}
