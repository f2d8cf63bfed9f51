//! The mempool's policy for what batches contain.

use bitcoin::secp256k1::{Keypair, Secp256k1, rand};
use bitcoin::{Address, Amount, Network};
use chain::Submission;
use chain::submit::submit;
use protocol::transaction::{COMMITMENT_BYTES, TREASURY_DUST};
use serde_json::json;

use crate::{node_with_coins, signed_by_miner, signed_payment};

#[tokio::test]
async fn a_commitment_is_within_the_default_policy() {
    let (mut node, _dir) = node_with_coins().await;
    let rpc = node.rpc();
    let outputs = json!([{"data": "ab".repeat(COMMITMENT_BYTES)}]);
    let transaction = signed_payment(&node, outputs).await;
    let verdict = rpc.test_mempool_accept(&transaction).await.unwrap();
    assert!(verdict.allowed, "{verdict:?}");
    // Nothing is counted on top of the bytes that are there.
    let vsize = u64::try_from(transaction.vsize()).unwrap();
    assert_eq!(verdict.vsize, Some(vsize));

    assert_eq!(
        submit(&rpc, &transaction).await.unwrap(),
        Submission::Accepted
    );
    let hash = node.mine(1).await.unwrap()[0];
    let block = rpc.block(hash).await.unwrap();
    assert!(
        block.txdata.contains(&transaction),
        "accepted and not mined"
    );
}

#[tokio::test]
async fn the_smallest_treasury_is_the_nodes_dust_limit() {
    let (node, _dir) = node_with_coins().await;
    let key = Keypair::new(&Secp256k1::new(), &mut rand::thread_rng());
    let address = Address::p2tr_tweaked(
        bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(key.x_only_public_key().0),
        Network::Regtest,
    );
    let outputs = json!([{address.to_string(): TREASURY_DUST.to_btc()}]);
    let enough = signed_payment(&node, outputs).await;
    let mut less = enough.clone();
    less.output[1].value -= Amount::ONE_SAT;
    let less = signed_by_miner(&node, &less).await;

    let rpc = node.rpc();
    assert!(rpc.test_mempool_accept(&enough).await.unwrap().allowed);
    let verdict = rpc.test_mempool_accept(&less).await.unwrap();
    // Core says "dust", Knots "dust-nonanchor".
    let reason = verdict.reject_reason.unwrap();
    assert!(reason.starts_with("dust"), "{reason}");
}
