//! Bitcoin Core reads our deposit descriptors as we do, and refunds with nothing else.

use bitcoin::consensus::encode;
use bitcoin::secp256k1::{Keypair, Secp256k1, rand};
use bitcoin::{Amount, Network, OutPoint, Transaction};
use chain::submit::submit;
use chain::{BitcoinRpc, Submission};
use ledger::VaultId;
use protocol::deposit::NUMS;
use serde_json::{Value, json};
use tempfile::TempDir;
use testnet::bitcoind::Bitcoind;
use wallet::{DepositBackup, PinnedVault, Wallet};

use crate::node_with_coins;

const REFUND_DELAY: u16 = 10;

/// A wallet with a deposit address of a vault whose key nobody here has.
fn wallet_with_address(dir: &TempDir) -> (Wallet, DepositBackup) {
    let wallet = Wallet::create(dir.path().join("wallet"), "passphrase", Network::Regtest).unwrap();
    let group = Keypair::new(&Secp256k1::new(), &mut rand::thread_rng());
    let vault = PinnedVault {
        network: Network::Regtest,
        vault_id: VaultId([7; 32]),
        group_key: group.x_only_public_key().0,
        refund_delay_blocks: REFUND_DELAY,
        min_deposit_sat: 20_000,
        deposit_fee_sat: 1_000,
    };
    let address = DepositBackup::derive(&vault, wallet.account_key(), wallet.refund_key()).unwrap();
    (wallet, address)
}

#[tokio::test]
async fn core_derives_the_same_address_from_the_printed_descriptor() {
    let (node, dir) = node_with_coins().await;
    let (wallet, backup) = wallet_with_address(&dir);
    let (body, checksum) = backup.descriptor.split_once('#').unwrap();
    assert_eq!(
        body,
        format!(
            "tr({},{{and_v(v:pk({}),older({REFUND_DELAY})),and_v(v:pk({NUMS}),sha256({}))}})",
            backup.group_key,
            wallet.refund_key(),
            backup.terms_hash
        )
    );
    let derived: Vec<String> = node
        .rpc()
        .call("deriveaddresses", &[json!(backup.descriptor)])
        .await
        .unwrap();
    assert_eq!(derived, [backup.address]);
    let info: Value = node
        .rpc()
        .call("getdescriptorinfo", &[json!(body)])
        .await
        .unwrap();
    assert_eq!(info["checksum"], checksum);
    assert_eq!(info["issolvable"], true);
}

#[tokio::test]
async fn core_alone_refunds_after_the_delay_and_not_before() {
    let (mut node, dir) = node_with_coins().await;
    let (wallet, backup) = wallet_with_address(&dir);
    let import = wallet.core_import(&backup).unwrap();
    let rpc = node.rpc();

    // The steps that `CoreImport::instructions` prints.
    // By position: name, without private keys, blank.
    let blank = [json!("refund"), json!(false), json!(true)];
    let _: Value = rpc.call("createwallet", &blank).await.unwrap();
    let core = rpc.with_wallet("refund");
    let request = json!([{"desc": *import.secret_descriptor, "timestamp": 0}]);
    let imported: Value = core.call("importdescriptors", &[request]).await.unwrap();
    assert_eq!(imported[0]["success"], true, "{imported}");

    let outpoint = deposit(&mut node, &backup, Amount::from_sat(500_000)).await;
    let coins: Vec<Value> = core.call("listunspent", &[]).await.unwrap();
    assert_eq!(coins.len(), 1);
    assert_eq!(coins[0]["txid"], outpoint.txid.to_string());
    assert_eq!(coins[0]["vout"], outpoint.vout);

    let refund = signed_by_core(&node, &core, outpoint, REFUND_DELAY.into()).await;
    // Signature, leaf script and control block: the script path, since nobody has GROUP here.
    assert_eq!(refund.input[0].witness.len(), 3);
    // One confirmation now; the lock is met in the block that gives it one more than the delay.
    for _ in 1..REFUND_DELAY {
        let early = submit(&rpc, &refund).await.unwrap();
        let Submission::Rejected { reason, .. } = early else {
            panic!("{early:?}");
        };
        assert!(reason.contains("non-BIP68-final"), "{reason}");
        node.mine(1).await.unwrap();
    }
    // A smaller sequence is signed by nobody: the leaf asks for the whole delay.
    let hasty = try_signed_by_core(&node, &core, outpoint, u32::from(REFUND_DELAY) - 1).await;
    assert_eq!(hasty["complete"], false);

    assert_eq!(submit(&rpc, &refund).await.unwrap(), Submission::Accepted);
    let hash = node.mine(1).await.unwrap()[0];
    let block = rpc.block(hash).await.unwrap();
    assert!(block.txdata.contains(&refund), "accepted and not mined");
}

/// Pays the deposit address and confirms it once.
async fn deposit(node: &mut Bitcoind, backup: &DepositBackup, amount: Amount) -> OutPoint {
    let address = backup.bitcoin_address().unwrap();
    let txid = node.fund(&address, amount).await.unwrap();
    let hash = node.mine(1).await.unwrap()[0];
    let block = node.rpc().block(hash).await.unwrap();
    let watched = [address.script_pubkey()].into_iter().collect();
    let found = chain::scan::find_deposits(&block, &watched);
    assert_eq!((found.len(), found[0].outpoint.txid), (1, txid));
    found[0].outpoint
}

async fn try_signed_by_core(
    node: &Bitcoind,
    core: &BitcoinRpc,
    outpoint: OutPoint,
    sequence: u32,
) -> Value {
    let to = node.new_address().await.unwrap().to_string();
    let inputs = json!([{"txid": outpoint.txid, "vout": outpoint.vout, "sequence": sequence}]);
    let psbt: String = core
        .call("createpsbt", &[inputs, json!([{to: 0.00499}])])
        .await
        .unwrap();
    let processed: Value = core
        .call("walletprocesspsbt", &[json!(psbt)])
        .await
        .unwrap();
    core.call("finalizepsbt", &[processed["psbt"].clone()])
        .await
        .unwrap()
}

async fn signed_by_core(
    node: &Bitcoind,
    core: &BitcoinRpc,
    outpoint: OutPoint,
    sequence: u32,
) -> Transaction {
    let finalized = try_signed_by_core(node, core, outpoint, sequence).await;
    assert_eq!(finalized["complete"], true, "{finalized}");
    encode::deserialize_hex(finalized["hex"].as_str().unwrap()).unwrap()
}
