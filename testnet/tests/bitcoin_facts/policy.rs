//! The mempool's policy for what batches contain.

use bitcoin::secp256k1::{Keypair, Secp256k1, rand};
use bitcoin::{Address, Network};
use chain::submit::submit;
use chain::{BitcoinRpc, Submission};
use protocol::transaction::{COMMITMENT_BYTES, TREASURY_DUST};
use serde_json::json;

use crate::{node_with_coins, signed_payment};

#[tokio::test]
async fn a_commitment_is_within_the_default_policy_and_81_bytes_are_not() {
    let (mut node, _dir) = node_with_coins().await;
    let verdict = async |rpc: &BitcoinRpc, bytes: usize| {
        let outputs = json!([{"data": "ab".repeat(bytes)}]);
        let transaction = signed_payment(&node, outputs).await;
        (
            rpc.test_mempool_accept(&transaction).await.unwrap(),
            transaction,
        )
    };
    let rpc = node.rpc();
    let (accepted, transaction) = verdict(&rpc, COMMITMENT_BYTES).await;
    assert!(accepted.allowed, "{accepted:?}");
    // Nothing is counted on top of the bytes that are there.
    let vsize = u64::try_from(transaction.vsize()).unwrap();
    assert_eq!(accepted.vsize, Some(vsize));
    assert!(verdict(&rpc, 80).await.0.allowed);
    // Knots refuses this one by default; recent versions of Core take it.
    let (refused, _) = verdict(&rpc, 81).await;
    if !refused.allowed {
        assert_eq!(refused.reject_reason.as_deref(), Some("scriptpubkey"));
    }

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
    let dust = TREASURY_DUST.to_sat();
    for (sats, allowed) in [(dust, true), (dust - 1, false)] {
        let amount = bitcoin::Amount::from_sat(sats).to_btc();
        let outputs = json!([{address.to_string(): amount}]);
        let transaction = signed_payment(&node, outputs).await;
        let verdict = node.rpc().test_mempool_accept(&transaction).await.unwrap();
        assert_eq!(verdict.allowed, allowed, "{sats} sat: {verdict:?}");
    }
}
