//! Blocks pass a batch over, because it pays too little: it is replaced by one that pays more, and pays for what is pushed
//! out of the mempool with it, too; at the ceiling that ends, and the batch says so.

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, OutPoint, Transaction, Txid, consensus::encode::deserialize_hex};
use protocol::api::{BatchDocument, BatchStatus};
use serde_json::{Value, json};

use super::{STEP, Story, until_batch, until_in_mempool};
use crate::network::{BUMP_AFTER_BLOCKS, Extras, LocalNetwork};

pub(super) const EXTRAS: Extras = Extras {
    coordinators: 0,
    tight_fees: false,
    max_operations: None,
    quick_bumps: true,
};
/// The batch.
const SEQUENCE: u64 = 2;
/// The payout that its receiver spends at once.
const PAYOUT: Amount = Amount::from_sat(120_000);
/// What the receiver pays to miners for that.
const FEE: Amount = Amount::from_sat(20_000);
/// What he pays the second time: more than the coordinator's ceiling allows it to push out.
const LARGE_FEE: Amount = Amount::from_sat(110_000);

/// Mines blocks without the second batch, twice.
pub(super) async fn pass_over(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let first = until_batch(network, SEQUENCE, BatchStatus::Broadcast).await?;
    until_in_mempool(network, txid(&first)?).await?;
    let child = spend_payout(network, &first, FEE).await?;
    story.done(format!(
        "batch {SEQUENCE} pays {} sat to miners; a payout is spent before it is confirmed, for {FEE}",
        first.fee_sat
    ));
    network
        .bitcoind
        .mine_only(BUMP_AFTER_BLOCKS.into(), &[])
        .await?;
    let second = network
        .wait_for("a higher fee", STEP, async |network| {
            let batch = network.client.batch(SEQUENCE).await?;
            Ok((batch.candidates.len() == 2).then_some(batch))
        })
        .await?;
    until_in_mempool(network, txid(&second)?).await?;
    for gone in [txid(&first)?, child] {
        ensure!(
            network.bitcoind.rpc().mempool_entry(gone).await?.is_none(),
            "{gone} is still in the mempool"
        );
    }
    see_replacement(&first, &second)?;
    story.done(format!(
        "{BUMP_AFTER_BLOCKS} blocks pass it over; a replacement is signed that pays {} sat, for itself and for what it pushes out; payouts and proofs are the same",
        second.fee_sat
    ));

    spend_payout(network, &second, LARGE_FEE).await?;
    network
        .bitcoind
        .mine_only(BUMP_AFTER_BLOCKS.into(), &[])
        .await?;
    let why = network
        .wait_for("the ceiling", STEP, async |network| {
            let batch = network.client.batch(SEQUENCE).await?;
            ensure!(
                batch.candidates.len() == 2,
                "a fee above the ceiling was signed"
            );
            Ok(batch.fee_bump)
        })
        .await?;
    ensure!(why.contains("ceiling"), "the fee is not raised: {why}");
    story.done(format!("no third one: {why}"));
    Ok(())
}

/// Only the treasury and the fee may differ.
fn see_replacement(first: &BatchDocument, second: &BatchDocument) -> anyhow::Result<()> {
    let (before, after) = (transaction(first)?, transaction(second)?);
    let raised = second.fee_sat.saturating_sub(first.fee_sat);
    ensure!(
        raised > FEE.to_sat(),
        "{raised} sat more do not pay for what was pushed out"
    );
    ensure!(
        first.treasury_sat.checked_sub(raised) == Some(second.treasury_sat)
            && second.treasury_sat >= second.supply_sat,
        "the treasury went from {} to {} sat",
        first.treasury_sat,
        second.treasury_sat
    );
    ensure!(
        before.output.iter().skip(1).eq(after.output.iter().skip(1)),
        "payouts or commitment have changed"
    );
    let spent = |transaction: &Transaction| -> Vec<OutPoint> {
        let inputs = transaction.input.iter();
        inputs.map(|input| input.previous_output).collect()
    };
    ensure!(spent(&before) == spent(&after), "the inputs have changed");
    ensure!(
        first.body_hash == second.body_hash && first.proofs == second.proofs,
        "the batch was proven again"
    );
    Ok(())
}

/// The replacement is what was confirmed.
pub(super) async fn see_confirmed(network: &LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let batch = network.client.batch(SEQUENCE).await?;
    let latest = batch.candidates.last().context("candidates")?;
    ensure!(
        batch.txid.as_ref() == Some(&latest.txid) && batch.fee_sat == latest.fee_sat,
        "batch {SEQUENCE} is not its replacement"
    );
    ensure!(batch.fee_bump.is_none(), "a confirmed batch waits");
    story.done(format!(
        "the replacement of batch {SEQUENCE} is what was confirmed"
    ));
    Ok(())
}

/// Spends the payout of a batch that is not confirmed.
async fn spend_payout(
    network: &LocalNetwork,
    batch: &BatchDocument,
    fee: Amount,
) -> anyhow::Result<Txid> {
    let paying = transaction(batch)?;
    let vout = paying
        .output
        .iter()
        .position(|output| output.value == PAYOUT)
        .context("no such payout")?;
    let miner = network.bitcoind.miner();
    let to = network.bitcoind.new_address().await?.to_string();
    let left = PAYOUT.checked_sub(fee).context("a larger payout")?;
    let spent = json!([{"txid": paying.compute_txid(), "vout": vout}]);
    let raw: String = miner
        .call(
            "createrawtransaction",
            &[spent, json!([{to: left.to_btc()}])],
        )
        .await?;
    let signed: Value = miner
        .call("signrawtransactionwithwallet", &[json!(raw)])
        .await?;
    let hex = signed.get("hex").and_then(Value::as_str);
    let child: Transaction = deserialize_hex(hex.context("a signed transaction")?)?;
    Ok(network.bitcoind.rpc().send_transaction(&child).await?)
}

fn transaction(batch: &BatchDocument) -> anyhow::Result<Transaction> {
    let hex = batch.transaction.as_ref().context("a transaction")?;
    Ok(deserialize_hex(hex)?)
}

fn txid(batch: &BatchDocument) -> anyhow::Result<Txid> {
    Ok(batch.txid.as_ref().context("a transaction")?.parse()?)
}
