//! The wallet takes a deposit back on a real bitcoind, from a vault whose key nobody has.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

/// The testnet crate depends on this one, so its node comes in as a module.
#[allow(dead_code, reason = "refunds need only a part of it")]
#[path = "../../testnet/src/bitcoind.rs"]
mod bitcoind;

use std::process::{Command, Output};

use bitcoin::secp256k1::{Keypair, Secp256k1, rand};
use bitcoin::{Amount, FeeRate, Network, OutPoint};
use bitcoind::{Bitcoind, COINBASE_MATURITY};
use chain::{RpcError, rpc::code};
use ledger::VaultId;
use tempfile::TempDir;
use wallet::refund::Coin;
use wallet::{DepositBackup, PinnedVault, RefundError, RefundOrder, Wallet};

const REFUND_DELAY: u16 = 12;
const DEPOSIT: Amount = Amount::from_sat(250_000);

struct Setting {
    dir: TempDir,
    node: Bitcoind,
    wallet: Wallet,
    backup: DepositBackup,
}

impl Setting {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Bitcoind::start(dir.path().join("bitcoind")).await.unwrap();
        node.mine(COINBASE_MATURITY + 1).await.unwrap();
        let wallet =
            Wallet::create(dir.path().join("wallet"), "passphrase", Network::Regtest).unwrap();
        let group = Keypair::new(&Secp256k1::new(), &mut rand::thread_rng());
        let vault = PinnedVault {
            network: Network::Regtest,
            vault_id: VaultId([9; 32]),
            group_key: group.x_only_public_key().0,
            refund_delay_blocks: REFUND_DELAY,
            min_deposit_sat: 20_000,
            deposit_fee_sat: 1_000,
        };
        let backup =
            DepositBackup::derive(&vault, wallet.account_key(), wallet.refund_key()).unwrap();
        wallet.save_backup(&backup).unwrap();
        Self {
            dir,
            node,
            wallet,
            backup,
        }
    }

    /// Pays the deposit address; unconfirmed.
    async fn pay(&self) -> OutPoint {
        let address = self.backup.bitcoin_address().unwrap();
        let txid = self.node.fund(&address, DEPOSIT).await.unwrap();
        let payment = self.node.rpc().transaction(txid, None).await.unwrap();
        let outputs = payment.unwrap().output;
        let paid = |output: &bitcoin::TxOut| output.script_pubkey == self.backup.script_pubkey;
        let vout = outputs.iter().position(paid).unwrap();
        OutPoint::new(txid, u32::try_from(vout).unwrap())
    }

    async fn order(&self, outpoint: OutPoint) -> RefundOrder {
        RefundOrder {
            outpoint,
            to: self.node.new_address().await.unwrap().to_string(),
            fee_rate: FeeRate::from_sat_per_vb(3).unwrap(),
        }
    }

    fn drawbridge(&self, arguments: &[&str]) -> Output {
        let settings = self.node.settings();
        Command::new(env!("CARGO_BIN_EXE_drawbridge"))
            .env_clear()
            .env("DRAWBRIDGE_PASSPHRASE", "passphrase")
            .env("DRAWBRIDGE_WALLET", self.dir.path().join("wallet"))
            .args(["refund", "--json", "--bitcoind", &settings.url])
            .arg("--cookie-file")
            .arg(settings.cookie_file.unwrap())
            .args(arguments)
            .output()
            .unwrap()
    }
}

#[tokio::test]
async fn a_refund_confirms_after_the_time_lock_and_is_refused_before() {
    let mut setting = Setting::new().await;
    let outpoint = setting.pay().await;
    let order = setting.order(outpoint).await;
    let rpc = setting.node.rpc();

    // The wallet counts down with each block and sends nothing; the node agrees with it.
    for confirmations in 0..u32::from(REFUND_DELAY) {
        let error = setting.wallet.refund(&rpc, &order).await.unwrap_err();
        let RefundError::Immature { missing } = error else {
            panic!("{error}");
        };
        assert_eq!(missing, u32::from(REFUND_DELAY) - confirmations);
        let early = setting.wallet.prepare_refund(&rpc, &order).await.unwrap();
        assert_eq!(
            (early.confirmations, early.blocks_missing),
            (confirmations, missing)
        );
        match rpc.send_transaction(&early.transaction).await.unwrap_err() {
            RpcError::Rpc { code, message, .. } => {
                assert_eq!(code, code::VERIFY_REJECTED);
                assert!(message.contains("non-BIP68-final"), "{message}");
            }
            error => panic!("{error}"),
        }
        setting.node.mine(1).await.unwrap();
    }

    let (refund, txid) = setting.wallet.refund(&rpc, &order).await.unwrap();
    assert_eq!(refund.blocks_missing, 0);
    assert_eq!(refund.amount + refund.fee, DEPOSIT);
    let entry = rpc.mempool_entry(txid).await.unwrap().unwrap();
    assert_eq!(entry.fee, refund.fee);
    assert_eq!(
        entry.fee.to_sat(),
        entry.vsize * 3,
        "the fee rate that was asked for"
    );

    let block = setting.node.mine(1).await.unwrap()[0];
    let block = rpc.block(block).await.unwrap();
    assert!(block.txdata.contains(&refund.transaction));
    let again = setting.wallet.refund(&rpc, &order).await.unwrap_err();
    assert!(matches!(again, RefundError::NotUnspent(_)), "{again}");
}

#[tokio::test]
async fn a_witness_for_other_terms_is_invalid() {
    let mut setting = Setting::new().await;
    let outpoint = setting.pay().await;
    let order = setting.order(outpoint).await;
    setting.node.mine(REFUND_DELAY.into()).await.unwrap();
    let rpc = setting.node.rpc();
    let good = setting.wallet.prepare_refund(&rpc, &order).await.unwrap();
    assert!(
        rpc.test_mempool_accept(&good.transaction)
            .await
            .unwrap()
            .allowed
    );

    // The same wallet's address of another vault: its leaf is in another tree.
    let other = PinnedVault {
        network: Network::Regtest,
        vault_id: VaultId([8; 32]),
        group_key: setting.backup.group_key,
        refund_delay_blocks: REFUND_DELAY - 1,
        min_deposit_sat: 20_000,
        deposit_fee_sat: 1_000,
    };
    let (account, refund) = (setting.wallet.account_key(), setting.wallet.refund_key());
    let other = DepositBackup::derive(&other, account, refund).unwrap();
    let coin = Coin {
        outpoint,
        value: DEPOSIT,
    };
    let foreign = setting
        .wallet
        .refund_transaction(&other, coin, &order.to, order.fee_rate)
        .unwrap();
    let mut shortened = good.transaction.clone();
    shortened.input[0].sequence = bitcoin::Sequence::from_height(REFUND_DELAY - 1);
    let mut redirected = good.transaction.clone();
    redirected.output[0].script_pubkey = setting.node.new_address().await.unwrap().script_pubkey();
    for bad in [foreign, shortened, redirected] {
        let verdict = rpc.test_mempool_accept(&bad).await.unwrap();
        assert!(!verdict.allowed);
        let reason = verdict.reject_reason.unwrap();
        assert!(reason.contains("script-verify-flag-failed"), "{reason}");
    }
}

#[tokio::test]
async fn the_drawbridge_command_refunds_without_a_coordinator() {
    let mut setting = Setting::new().await;
    let outpoint = setting.pay().await.to_string();
    setting.node.mine(1).await.unwrap();
    let to = setting.node.new_address().await.unwrap().to_string();
    let arguments = ["--outpoint", &outpoint, "--to", &to, "--fee-rate", "1.5"];

    let early = setting.drawbridge(&arguments);
    assert_eq!(early.status.code(), Some(1));
    let error: serde_json::Value = serde_json::from_slice(&early.stderr).unwrap();
    assert_eq!(error["error"]["code"], "time_lock");
    setting.node.mine((REFUND_DELAY - 1).into()).await.unwrap();

    let dry = setting.drawbridge(&[&arguments[..], &["--dry-run"]].concat());
    let dry: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(
        (&dry["sent"], &dry["blocks_missing"]),
        (&false.into(), &0.into())
    );
    let sent = setting.drawbridge(&arguments);
    assert!(sent.status.success(), "{sent:?}");
    let sent: serde_json::Value = serde_json::from_slice(&sent.stdout).unwrap();
    let txid = sent["txid"].as_str().unwrap().parse().unwrap();
    let entry = setting.node.rpc().mempool_entry(txid).await.unwrap();
    assert_eq!(
        entry.unwrap().fee.to_sat(),
        sent["fee_sat"].as_u64().unwrap()
    );
}
