//! What the design takes for granted about Bitcoin Core, shown on a real node: its reading of our
//! descriptors, refunds made by it alone, and its mempool's policy for our transactions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

mod deposit_descriptor;
mod policy;

use bitcoin::Transaction;
use bitcoin::consensus::encode;
use serde_json::{Value, json};
use tempfile::TempDir;
use testnet::bitcoind::{Bitcoind, COINBASE_MATURITY};

/// A node whose wallet has mature coins.
async fn node_with_coins() -> (Bitcoind, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Bitcoind::start(dir.path().join("bitcoind")).await.unwrap();
    node.mine(COINBASE_MATURITY + 2).await.unwrap();
    (node, dir)
}

/// Funds and signs a transaction that has outputs only, with the miner's wallet.
async fn signed_payment(node: &Bitcoind, outputs: Value) -> Transaction {
    let miner = node.miner();
    let raw: String = miner
        .call("createrawtransaction", &[json!([]), outputs])
        .await
        .unwrap();
    let options = json!({"changePosition": 0});
    let funded: Value = miner
        .call("fundrawtransaction", &[json!(raw), options])
        .await
        .unwrap();
    let unsigned = encode::deserialize_hex(funded["hex"].as_str().unwrap()).unwrap();
    signed_by_miner(node, &unsigned).await
}

async fn signed_by_miner(node: &Bitcoind, transaction: &Transaction) -> Transaction {
    let raw = [json!(encode::serialize_hex(transaction))];
    let miner = node.miner();
    let signed: Value = miner
        .call("signrawtransactionwithwallet", &raw)
        .await
        .unwrap();
    assert_eq!(signed["complete"], true, "{signed}");
    encode::deserialize_hex(signed["hex"].as_str().unwrap()).unwrap()
}
