//! Deposits and spends in real blocks, and what the node says about single outputs.

use std::collections::HashSet;

use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode;
use bitcoin::opcodes::OP_TRUE;
use bitcoin::script::Builder;
use bitcoin::secp256k1::Secp256k1;
use bitcoin::taproot::{LeafVersion, TAPROOT_ANNEX_PREFIX, TaprootBuilder};
use bitcoin::transaction::Version;
use bitcoin::{
    Address, Amount, Network, OutPoint, Transaction, TxIn, TxOut, Witness, XOnlyPublicKey,
};
use chain::scan::{find_deposits, find_spend};
use serde_json::{Value, json};

use crate::bitcoind::COINBASE_MATURITY;
use crate::node_with_coins;

#[tokio::test]
async fn a_deposit_is_found_and_counted_until_it_is_spent() {
    let (mut node, _dir) = node_with_coins(2).await;
    let rpc = node.rpc();
    let address = node.new_address().await.unwrap();
    let amount = Amount::from_sat(12_345_678);
    let txid = node.fund(&address, amount).await.unwrap();
    let paid = rpc.transaction(txid, None).await.unwrap().unwrap();
    let vout = paid
        .output
        .iter()
        .position(|output| output.script_pubkey == address.script_pubkey())
        .unwrap();
    let outpoint = OutPoint::new(txid, u32::try_from(vout).unwrap());

    let in_mempool = rpc.unspent_output(outpoint, true).await.unwrap().unwrap();
    assert_eq!(in_mempool.confirmations, 0);
    assert_eq!(rpc.unspent_output(outpoint, false).await.unwrap(), None);

    let hash = node.mine(1).await.unwrap()[0];
    let block = rpc.block(hash).await.unwrap();
    let found = find_deposits(&block, &HashSet::from([address.script_pubkey()]));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].outpoint, found[0].value), (outpoint, amount));
    assert!(!found[0].coinbase);

    node.mine(2).await.unwrap();
    let confirmed = rpc.unspent_output(outpoint, false).await.unwrap().unwrap();
    assert_eq!(confirmed.value, amount);
    assert_eq!(confirmed.script_pubkey, address.script_pubkey());
    assert_eq!((confirmed.confirmations, confirmed.coinbase), (3, false));
    assert_eq!(confirmed.best_block, rpc.best_block_hash().await.unwrap());
    // Without an index of transactions, a confirmed one is found by its block only.
    assert_eq!(rpc.transaction(txid, None).await.unwrap(), None);
    assert_eq!(rpc.transaction(txid, Some(hash)).await.unwrap(), Some(paid));

    // Empty the wallet, so that the deposit is spent.
    let away = node.new_address().await.unwrap();
    // For the lock time see `bitcoind::send`.
    let params = [
        json!([away.to_string()]),
        json!(null),
        json!("unset"),
        json!(null),
        json!({"locktime": 0}),
    ];
    let sent: Value = node.miner().call("sendall", &params).await.unwrap();
    assert_eq!(rpc.unspent_output(outpoint, true).await.unwrap(), None);
    assert!(rpc.unspent_output(outpoint, false).await.unwrap().is_some());
    let hash = node.mine(1).await.unwrap()[0];
    assert_eq!(rpc.unspent_output(outpoint, false).await.unwrap(), None);
    let block = rpc.block(hash).await.unwrap();
    let spend = find_spend(&block, outpoint).unwrap();
    assert_eq!(sent["txid"], spend.txid.to_string());
    assert_eq!(
        spend.transaction.input[spend.input_index].previous_output,
        outpoint
    );
}

#[tokio::test]
async fn a_coinbase_deposit_is_marked_as_one() {
    let (node, _dir) = node_with_coins(1).await;
    let address = node.new_address().await.unwrap();
    let hash = node.mine_to(1, &address).await.unwrap()[0];
    let block = node.rpc().block(hash).await.unwrap();
    let found = find_deposits(&block, &HashSet::from([address.script_pubkey()]));
    assert_eq!(found.len(), 1);
    assert!(found[0].coinbase);
    let output = node
        .rpc()
        .unspent_output(found[0].outpoint, true)
        .await
        .unwrap()
        .unwrap();
    assert!(output.coinbase);
    assert_eq!(output.confirmations, 1);
    assert_eq!(output.value, found[0].value);
}

#[tokio::test]
async fn headers_and_heights_agree_with_blocks() {
    let (node, _dir) = node_with_coins(1).await;
    let rpc = node.rpc();
    let info = rpc.chain_info().await.unwrap();
    assert_eq!(info.blocks, COINBASE_MATURITY + 1);
    assert!(!info.pruned);
    let hash = rpc.block_hash_at(info.blocks).await.unwrap().unwrap();
    assert_eq!(hash, info.best_block);
    let header = rpc.block_header(hash).await.unwrap().unwrap();
    assert_eq!(header, rpc.block(hash).await.unwrap().header);
    let parent = rpc.block_hash_at(info.blocks - 1).await.unwrap();
    assert_eq!(parent, Some(header.prev_blockhash));
    assert_eq!(rpc.block_hash_at(info.blocks + 1).await.unwrap(), None);
}

#[tokio::test]
async fn a_block_of_nearly_four_megabytes_is_read() {
    let (mut node, _dir) = node_with_coins(1).await;
    // Anybody can spend this output with an annex (BIP-341), which may be as large as a block.
    let secp = Secp256k1::new();
    let anyone = Builder::new().push_opcode(OP_TRUE).into_script();
    let tree = TaprootBuilder::new()
        .add_leaf(0, anyone.clone())
        .unwrap()
        .finalize(&secp, nums_point())
        .unwrap();
    let address = Address::p2tr_tweaked(tree.output_key(), Network::Regtest);
    let txid = node
        .fund(&address, Amount::from_sat(1_000_000))
        .await
        .unwrap();
    let hash = node.mine(1).await.unwrap()[0];
    let block = node.rpc().block(hash).await.unwrap();
    let found = find_deposits(&block, &HashSet::from([address.script_pubkey()]));
    assert_eq!(found[0].outpoint.txid, txid);

    let control = tree
        .control_block(&(anyone.clone(), LeafVersion::TapScript))
        .unwrap();
    let mut annex = vec![0u8; 3_990_000];
    annex[0] = TAPROOT_ANNEX_PREFIX;
    let spending = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: found[0].outpoint,
            witness: Witness::from_slice(&[anyone.to_bytes(), control.serialize(), annex]),
            ..Default::default()
        }],
        output: vec![TxOut {
            value: Amount::from_sat(900_000),
            script_pubkey: address.script_pubkey(),
        }],
    };
    let params = [
        json!(address.to_string()),
        json!([encode::serialize_hex(&spending)]),
    ];
    let mined: Value = node.rpc().call("generateblock", &params).await.unwrap();
    let hash = mined["hash"].as_str().unwrap().parse().unwrap();
    let block = node.rpc().block(hash).await.unwrap();
    assert!(block.total_size() > 3_990_000, "{}", block.total_size());
    let spend = find_spend(&block, found[0].outpoint).unwrap();
    assert_eq!(spend.txid, spending.compute_txid());
}

/// BIP-341's point without a known logarithm.
fn nums_point() -> XOnlyPublicKey {
    "50929b74c1a04954b78b4b6035e97a5e078a5a0f28ec96d547bfee9ace803ac0"
        .parse()
        .unwrap()
}
