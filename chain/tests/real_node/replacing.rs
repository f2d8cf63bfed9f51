//! What a replacement must pay, as a node sees it.

use bitcoin::{Amount, FeeRate, Transaction, Weight, consensus::encode};
use chain::{
    FeeSettings, Submission,
    replace::{Replaced, Signed, raise},
    submit::submit,
};
use serde_json::{Value, json};

use crate::{bitcoind::Bitcoind, node_with_coins, submitting::payment};

const PAYMENT: u64 = 100_000;
/// What the payment's receiver pays to spend it.
const CHILD_FEE: u64 = 20_000;

async fn signed(node: &Bitcoind, unsigned: &Transaction) -> Transaction {
    let mut unsigned = unsigned.clone();
    for input in &mut unsigned.input {
        input.witness.clear();
    }
    let params = [json!(encode::serialize_hex(&unsigned))];
    let miner = node.miner();
    let signed: Value = miner
        .call("signrawtransactionwithwallet", &params)
        .await
        .unwrap();
    encode::deserialize_hex(signed["hex"].as_str().unwrap()).unwrap()
}

/// Spends the payment, before it is confirmed.
async fn child(node: &Bitcoind, parent: &Transaction) -> Transaction {
    let vout = parent
        .output
        .iter()
        .position(|output| output.value == Amount::from_sat(PAYMENT))
        .unwrap();
    let to = node.new_address().await.unwrap().to_string();
    let amount = Amount::from_sat(PAYMENT - CHILD_FEE).to_btc();
    let spent = json!([{"txid": parent.compute_txid(), "vout": vout}]);
    let raw: String = node
        .miner()
        .call("createrawtransaction", &[spent, json!([{to: amount}])])
        .await
        .unwrap();
    signed(node, &encode::deserialize_hex(&raw).unwrap()).await
}

/// The same payment with so much more for miners, out of the change.
async fn paying_more(node: &Bitcoind, parent: &Transaction, more: Amount) -> Transaction {
    let mut unsigned = parent.clone();
    let change = unsigned.output.iter_mut().max_by_key(|output| output.value);
    change.unwrap().value -= more;
    signed(node, &unsigned).await
}

#[tokio::test]
async fn a_replacement_that_pays_for_all_that_it_evicts_is_taken_and_one_that_does_not_is_refused()
{
    let (node, _dir) = node_with_coins(1).await;
    let rpc = node.rpc();
    let parent = payment(&node, PAYMENT, 5).await;
    assert!(submit(&rpc, &parent).await.unwrap().is_held());
    let child = child(&node, &parent).await;
    assert!(submit(&rpc, &child).await.unwrap().is_held());
    let entry = rpc.mempool_entry(parent.compute_txid()).await.unwrap();
    let entry = entry.unwrap();
    assert_eq!(entry.descendants, 2);
    assert_eq!(
        entry.descendant_fees,
        entry.fee + Amount::from_sat(CHILD_FEE)
    );

    let settings = FeeSettings {
        target_blocks: 2,
        margin_percent: 10,
        floor_sat_per_vb: 1,
        ceiling_sat_per_vb: 1_000,
        fallback_sat_per_vb: Some(5),
        bump_after_blocks: 6,
        bump_percent: 25,
    };
    let fee = entry.fee;
    assert_eq!(entry.ancestors, 1);
    // Whatever spends its first input is found, and nothing where nothing does.
    let spent = parent.input[0].previous_output;
    assert_eq!(
        rpc.mempool_spender(spent).await.unwrap(),
        Some(entry.clone())
    );
    let unspent = bitcoin::OutPoint::new(child.compute_txid(), 0);
    assert_eq!(rpc.mempool_spender(unspent).await.unwrap(), None);
    let of_child = rpc.mempool_entry(child.compute_txid()).await.unwrap();
    assert_eq!(of_child.unwrap().ancestors, 2);
    let replaced = Replaced {
        signed: Some(Signed {
            fee,
            weight: parent.weight(),
        }),
        entry: Some(entry),
    };
    let mempool = rpc.mempool_info().await.unwrap();
    let rate = FeeRate::from_sat_per_vb(5).unwrap();
    // A new signature may be a byte longer.
    let weight = parent.weight() + Weight::from_wu(4);
    let least = raise(&replaced, weight, rate, &mempool, &settings)
        .unwrap()
        .least;
    assert!(least > fee + Amount::from_sat(CHILD_FEE));

    let poor = paying_more(&node, &parent, Amount::from_sat(CHILD_FEE)).await;
    let refused = submit(&rpc, &poor).await.unwrap();
    assert!(
        matches!(refused, Submission::Conflict { .. }),
        "{refused:?}"
    );
    let enough = paying_more(&node, &parent, least - fee).await;
    assert_eq!(submit(&rpc, &enough).await.unwrap(), Submission::Accepted);
    for gone in [&parent, &child] {
        let entry = rpc.mempool_entry(gone.compute_txid()).await.unwrap();
        assert_eq!(entry, None);
    }
}
