//! A depositor takes a deposit back by a reorganisation, after it was credited and its batch had paid others: the batch
//! can't be confirmed any more, and the rest of it goes into another one.

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, OutPoint, Txid};
use protocol::api::{BatchStatus, RequestStatus};
use serde_json::{Value, json};
use wallet::Wallet;

use super::{STEP, Story, WALLET_PASSPHRASE, reorg, until_all_at, until_batch};
use crate::network::LocalNetwork;

/// Bitcoin Core's wallet of the depositor.
const WALLET: &str = "mallory";
/// What is deposited, and what comes back by the double spend.
pub(super) const DEPOSIT: Amount = Amount::from_sat(500_000);
const TAKEN_BACK: Amount = Amount::from_sat(990_000);
/// The one coin of both.
const COIN: Amount = Amount::from_sat(1_000_000);

/// A deposit, and a transaction that spends the same coin.
pub(super) struct Plot {
    pub(super) outpoint: OutPoint,
    /// The account that it credits.
    pub(super) account: String,
    conflict: String,
}

/// Pays a deposit from a coin of its own, and keeps the transaction that takes it back.
pub(super) async fn deposit(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<Plot> {
    let rpc = network.bitcoind.rpc();
    let _: Value = rpc.call("createwallet", &[json!(WALLET)]).await?;
    let purse = rpc.with_wallet(WALLET);
    let regtest = network.parameters.network;
    let address = purse.new_wallet_address(regtest).await?;
    network.bitcoind.fund(&address, COIN).await?;
    network.bitcoind.mine(1).await?;
    let coins: Vec<Value> = purse.call("listunspent", &[]).await?;
    let coin = coins.first().context("a coin")?;
    let input = json!([{ "txid": coin.get("txid"), "vout": coin.get("vout") }]);
    let folder = network.dir.join("wallets").join(WALLET);
    let mallory = Wallet::create(folder, WALLET_PASSPHRASE, regtest)?;
    let terms = mallory.deposit_address(&network.client).await?;
    let target = terms.bitcoin_address()?.to_string();
    let back = purse.new_wallet_address(regtest).await?.to_string();
    let mut signed = Vec::new();
    for (to, amount) in [(target, DEPOSIT), (back, TAKEN_BACK)] {
        let mut outputs = vec![json!({ to: amount.to_btc() })];
        if amount == DEPOSIT {
            let change = purse.new_wallet_address(regtest).await?.to_string();
            let rest = TAKEN_BACK.checked_sub(DEPOSIT).context("change")?;
            outputs.push(json!({ change: rest.to_btc() }));
        }
        let raw: String = purse
            .call("createrawtransaction", &[input.clone(), json!(outputs)])
            .await?;
        let reply: Value = purse
            .call("signrawtransactionwithwallet", &[json!(raw)])
            .await?;
        let hex = reply.get("hex").and_then(Value::as_str);
        signed.push(hex.context("a signed transaction")?.to_owned());
    }
    let [payment, conflict] = signed.as_slice() else {
        anyhow::bail!("two transactions")
    };
    let txid: Txid = purse.call("sendrawtransaction", &[json!(payment)]).await?;
    story.done(format!("mallory deposits {} sat", DEPOSIT.to_sat()));
    Ok(Plot {
        outpoint: OutPoint::new(txid, 0),
        account: mallory.address(),
        conflict: conflict.clone(),
    })
}

/// Confirms the batch with that deposit, replaces its blocks and the deposit's, and waits for the next batch.
pub(super) async fn double_spend(
    network: &mut LocalNetwork,
    plot: &Plot,
    story: &Story,
) -> anyhow::Result<()> {
    until_batch(network, 2, BatchStatus::Broadcast).await?;
    network.bitcoind.mine(1).await?;
    until_all_at(network, 2).await?;
    let old = until_batch(network, 2, BatchStatus::Confirmed).await?;
    ensure!(old.outputs >= 3, "batch 2 pays nobody");
    let signed_at = network.bitcoind.rpc().chain_info().await?.blocks;
    let outpoint = plot.outpoint.to_string();
    let deposit = network.client.deposit(&outpoint).await?;
    ensure!(
        deposit.status == RequestStatus::Confirmed,
        "mallory's deposit is {:?}",
        deposit.status
    );
    let conflict = std::slice::from_ref(&plot.conflict);
    reorg::replace(network, deposit.height, conflict).await?;
    story.done(format!(
        "the blocks from {} on are replaced by others, in which mallory spends the deposit's coin otherwise",
        deposit.height
    ));

    until_all_at(network, 1).await?;
    let reason = network
        .wait_for("the deposit's refusal", STEP, async |network| {
            let deposit = network.client.deposit(&outpoint).await?;
            let refused = deposit.status == RequestStatus::Refused;
            Ok(deposit.reason.filter(|_| refused))
        })
        .await?;
    ensure!(reason.contains("double-spent"), "refused with: {reason}");
    story.done(format!(
        "all nodes are back at batch 1; mallory's deposit is refused: {reason}"
    ));
    for id in &old.operations {
        // Deposits are not found there.
        let Ok(operation) = network.client.operation(id).await else {
            continue;
        };
        ensure!(
            operation.status < RequestStatus::Confirmed,
            "an operation of the dissolved batch is {:?}",
            operation.status
        );
    }

    let new = network
        .wait_for("another batch 2", STEP, async |network| {
            let batch = network.client.batch(2).await.ok();
            Ok(batch
                .filter(|batch| batch.status == BatchStatus::Broadcast && batch.txid != old.txid))
        })
        .await?;
    let height = network.bitcoind.rpc().chain_info().await?.blocks;
    let waited = height.saturating_sub(signed_at);
    let delay = u32::from(network.parameters.replacement_delay);
    ensure!(
        waited < delay,
        "{waited} blocks have passed: the replacement delay of {delay} would have let it pass too"
    );
    story.done(format!(
        "another batch 2 with {} of its {} operations is signed, {waited} blocks after the first (S7 lets a replacement of one that can still confirm pass after {delay})",
        new.operations.len(),
        old.operations.len()
    ));
    Ok(())
}
