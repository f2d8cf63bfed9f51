//! What becomes of submitted transactions, and fee rates on a node that has no estimate.

use bitcoin::{Amount, FeeRate, Network, Transaction};
use chain::fees::current_fee_rate;
use chain::submit::submit;
use chain::{FeeError, FeeSettings, Submission};
use serde_json::{Value, json};

use crate::bitcoind::Bitcoind;
use crate::node_with_coins;

/// A signed, unsent transaction of the miner's wallet that spends its first coin.
pub(crate) async fn payment(node: &Bitcoind, sats: u64, sat_per_vb: u64) -> Transaction {
    let address = node.new_address().await.unwrap().to_string();
    let coins: Vec<Value> = node.miner().call("listunspent", &[]).await.unwrap();
    let mut coins: Vec<_> = coins
        .iter()
        .map(|coin| json!({"txid": coin["txid"], "vout": coin["vout"]}))
        .collect();
    coins.sort_by_key(|coin| coin.to_string());
    let amount = Amount::from_sat(sats).to_btc();
    let miner = node.miner();
    let raw: String = miner
        .call(
            "createrawtransaction",
            &[json!([coins[0]]), json!([{address: amount}])],
        )
        .await
        .unwrap();
    let options = json!({"fee_rate": sat_per_vb, "add_inputs": false, "replaceable": true});
    let funded: Value = miner
        .call("fundrawtransaction", &[json!(raw), options])
        .await
        .unwrap();
    let signed: Value = miner
        .call("signrawtransactionwithwallet", &[funded["hex"].clone()])
        .await
        .unwrap();
    bitcoin::consensus::encode::deserialize_hex(signed["hex"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn submitting_again_is_harmless_in_every_state() {
    let (mut node, _dir) = node_with_coins(1).await;
    let rpc = node.rpc();
    let transaction = payment(&node, 100_000, 10).await;
    let verdict = rpc.test_mempool_accept(&transaction).await.unwrap();
    assert!(verdict.allowed);
    assert_eq!(
        submit(&rpc, &transaction).await.unwrap(),
        Submission::Accepted
    );
    assert_eq!(
        submit(&rpc, &transaction).await.unwrap(),
        Submission::AlreadyKnown
    );
    let entry = rpc
        .mempool_entry(transaction.compute_txid())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(entry.wtxid, transaction.compute_wtxid());
    assert!(entry.fee.to_sat() >= entry.vsize * 10);
    node.mine(1).await.unwrap();
    assert_eq!(
        submit(&rpc, &transaction).await.unwrap(),
        Submission::Confirmed
    );
    assert_eq!(
        rpc.mempool_entry(transaction.compute_txid()).await.unwrap(),
        None
    );
}

#[tokio::test]
async fn the_higher_fee_wins_and_the_other_is_a_conflict() {
    let (mut node, _dir) = node_with_coins(1).await;
    let rpc = node.rpc();
    let cheap = payment(&node, 100_000, 5).await;
    let dear = payment(&node, 100_000, 20).await;
    assert_eq!(
        cheap.input[0].previous_output,
        dear.input[0].previous_output
    );
    assert!(submit(&rpc, &cheap).await.unwrap().is_held());
    assert_eq!(submit(&rpc, &dear).await.unwrap(), Submission::Accepted);
    let outbid = submit(&rpc, &cheap).await.unwrap();
    assert!(matches!(outbid, Submission::Conflict { .. }), "{outbid:?}");
    node.mine(1).await.unwrap();
    let spent = submit(&rpc, &cheap).await.unwrap();
    assert!(matches!(spent, Submission::Conflict { .. }), "{spent:?}");
}

#[tokio::test]
async fn a_bad_transaction_is_rejected_with_the_reason() {
    let (node, _dir) = node_with_coins(1).await;
    let mut transaction = payment(&node, 100_000, 10).await;
    transaction.output[0].value += Amount::ONE_SAT;
    let rejected = submit(&node.rpc(), &transaction).await.unwrap();
    let Submission::Rejected { reason, .. } = &rejected else {
        panic!("{rejected:?}");
    };
    assert!(
        reason.contains("Invalid Schnorr signature") || reason.contains("script-verify"),
        "{reason}"
    );
    assert!(rejected.is_unsigned(), "{rejected:?}");
    let verdict = node.rpc().test_mempool_accept(&transaction).await.unwrap();
    assert!(!verdict.allowed);
    assert!(verdict.reject_reason.is_some());

    let cheap = payment(&node, 100_000, 1).await;
    let mut free = cheap.clone();
    let inputs = Amount::from_sat(5_000_000_000);
    free.output[0].value = inputs - free.output.iter().skip(1).map(|o| o.value).sum();
    let params = [json!(bitcoin::consensus::encode::serialize_hex(&free))];
    let signed: Value = node
        .miner()
        .call("signrawtransactionwithwallet", &params)
        .await
        .unwrap();
    let free: Transaction =
        bitcoin::consensus::encode::deserialize_hex(signed["hex"].as_str().unwrap()).unwrap();
    let rejected = submit(&node.rpc(), &free).await.unwrap();
    let Submission::Rejected { reason, .. } = &rejected else {
        panic!("{rejected:?}");
    };
    assert!(reason.contains("fee not met"), "{reason}");
    assert!(!rejected.is_unsigned(), "its signatures are right");
}

#[tokio::test]
async fn without_an_estimate_only_a_configured_fallback_gives_a_rate() {
    let (node, _dir) = node_with_coins(1).await;
    let rpc = node.rpc();
    assert_eq!(rpc.estimate_fee_rate(2).await.unwrap(), None);
    let mut settings = FeeSettings {
        target_blocks: 2,
        margin_percent: 10,
        floor_sat_per_vb: 1,
        ceiling_sat_per_vb: 100,
        fallback_sat_per_vb: None,
        bump_after_blocks: 6,
        bump_percent: 25,
    };
    let error = current_fee_rate(&rpc, &settings, Network::Regtest)
        .await
        .unwrap_err();
    assert!(matches!(error, FeeError::NoEstimate), "{error}");
    settings.fallback_sat_per_vb = Some(7);
    let rate = current_fee_rate(&rpc, &settings, Network::Regtest)
        .await
        .unwrap();
    assert_eq!(Some(rate), FeeRate::from_sat_per_vb(7));
}
