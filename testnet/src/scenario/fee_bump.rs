//! Blocks pass a batch over, because it pays too little: it is replaced by one that pays more, and pays for what is pushed
//! out of the mempool with it, too, though the coordinator dies before that is signed; at the ceiling that ends, and the
//! batch says so. A reorganisation then has the cheaper one confirmed.

use anyhow::{Context as _, ensure};
use bitcoin::{
    Address, Amount, OutPoint, Transaction, Txid, address::NetworkUnchecked,
    consensus::encode::deserialize_hex,
};
use protocol::api::{BatchDocument, BatchStatus};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{STEP, Story, reorg, until_all_at, until_batch, until_in_mempool};
use crate::network::{BUMP_AFTER_BLOCKS, Extras, LocalNetwork};

pub(super) const EXTRAS: Extras = Extras {
    coordinators: 0,
    tight_fees: false,
    crashes: None,
    small_disks: None,
    max_operations: None,
    quick_bumps: true,
    nonce_pool: false,
};
/// The batch.
const SEQUENCE: u64 = 2;
/// Its treasury, deposits and top-up.
const INPUTS: usize = 4;
/// The larger of what the vault is topped up with: enough for the surplus not to be low.
const TOP_UP: Amount = Amount::from_sat(300_000);
/// The smaller one, which stays where it is.
const SMALL_TOP_UP: Amount = Amount::from_sat(40_000);
/// The payout that its receiver spends at once.
const PAYOUT: Amount = Amount::from_sat(120_000);
/// What the receiver pays to miners for that.
const FEE: Amount = Amount::from_sat(20_000);
/// What he pays the second time: more than the coordinator's ceiling allows it to push out.
const LARGE_FEE: Amount = Amount::from_sat(110_000);

/// Pays the vault twice; the larger is enough.
pub(super) async fn top_up(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let vault = network.client.vault().await?;
    let address: Address<NetworkUnchecked> = vault.address.context("an address")?.parse()?;
    let address = address.require_network(network.parameters.network)?;
    for amount in [TOP_UP, SMALL_TOP_UP] {
        network.bitcoind.fund(&address, amount).await?;
    }
    story.done(format!(
        "the vault is topped up with {TOP_UP} and {SMALL_TOP_UP}"
    ));
    Ok(())
}

/// Mines blocks without the second batch, twice; then one with it, and then other blocks with what it has replaced.
pub(super) async fn pass_over(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let first = until_batch(network, SEQUENCE, BatchStatus::Broadcast).await?;
    until_in_mempool(network, txid(&first)?).await?;
    ensure!(
        first.inputs == INPUTS,
        "batch {SEQUENCE} has {} inputs, not {INPUTS}",
        first.inputs
    );
    let child = spend_payout(network, &first, FEE).await?;
    story.done(format!(
        "batch {SEQUENCE} collects one of the top-ups and pays {}; a payout is spent before it is confirmed, for {FEE}",
        paid(&first)?
    ));
    let kept = die_before_signing(network, story).await?;
    let second = network
        .wait_for("a higher fee", STEP, async |network| {
            let Ok(batch) = network.client.batch(SEQUENCE).await else {
                return Ok(None);
            };
            Ok((batch.candidates.len() == 2).then_some(batch))
        })
        .await?;
    ensure!(
        second.fee_sat == kept.to_sat(),
        "{} sat are paid, {kept} was on disk",
        second.fee_sat
    );
    let log = std::fs::read_to_string(network.coordinator.log())?;
    ensure!(
        log.matches("raising the miner fee").count() == 1,
        "the candidate was made anew"
    );
    until_in_mempool(network, txid(&second)?).await?;
    for gone in [txid(&first)?, child] {
        ensure!(
            network.bitcoind.rpc().mempool_entry(gone).await?.is_none(),
            "{gone} is still in the mempool"
        );
    }
    see_replacement(&first, &second)?;
    see_event(network, txid(&second)?).await?;
    story.done(format!(
        "the candidate that was on disk is signed: {} before, {} after, for itself and for what it pushes out; payouts and proofs are the same",
        paid(&first)?,
        paid(&second)?
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
    confirm_both(network, &first, &second, story).await
}

/// The stream of events says that the batch is another transaction now.
async fn see_event(network: &LocalNetwork, txid: Txid) -> anyhow::Result<()> {
    let url = network.client.url().join("v1/events?after=0&topic=batch")?;
    let mut stream = reqwest::get(url).await?.error_for_status()?;
    let mut said = Vec::new();
    let read = async {
        while let Some(bytes) = stream.chunk().await? {
            said.extend(bytes);
            if String::from_utf8_lossy(&said).contains(&txid.to_string()) {
                return Ok(());
            }
        }
        anyhow::bail!("the events end without {txid}")
    };
    timeout(STEP, read)
        .await
        .context("no event of the higher fee")?
}

/// So few operators are left that the higher fee can't be signed; and the coordinator dies when it has written and
/// proposed it. Gives the fee.
async fn die_before_signing(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<Amount> {
    let threshold = network.client.vault().await?.threshold;
    let spare = network.operators.len().saturating_sub(threshold.into());
    let gone = spare.saturating_add(1);
    for node in network.operators.iter_mut().take(gone) {
        node.kill().await?;
    }
    network
        .bitcoind
        .mine_only(BUMP_AFTER_BLOCKS.into(), &[])
        .await?;
    let words = format!("raising the miner fee of batch {SEQUENCE} to ");
    let fee = network
        .wait_for("a higher fee on disk", STEP, async |network| {
            let phase = network.client.status().await?.phase;
            let fee = phase.strip_prefix(&words);
            Ok(fee.map(str::parse::<Amount>).transpose()?)
        })
        .await?;
    network.coordinator.kill().await?;
    story.done(format!(
        "{BUMP_AFTER_BLOCKS} blocks pass it over; the coordinator is killed (SIGKILL) with a candidate for {fee} on disk, of which {gone} operators are too dead to sign anything"
    ));
    for node in network.operators.iter_mut().take(gone) {
        node.start()?;
    }
    network.coordinator.start()?;
    Ok(fee)
}

/// The replacement is confirmed; then its block is replaced by one that has the first transaction.
async fn confirm_both(
    network: &mut LocalNetwork,
    first: &BatchDocument,
    second: &BatchDocument,
    story: &Story,
) -> anyhow::Result<()> {
    network.bitcoind.mine(1).await?;
    let confirmed = until_batch(network, SEQUENCE, BatchStatus::Confirmed).await?;
    until_all_at(network, SEQUENCE).await?;
    ensure!(
        confirmed.txid == second.txid && confirmed.fee_bump.is_none(),
        "batch {SEQUENCE} is not its replacement"
    );
    story.done(format!(
        "a block has the replacement, {}",
        txid(&confirmed)?
    ));
    let height = confirmed.height.context("a height")?;
    let older = first.transaction.clone().context("a transaction")?;
    reorg::replace(network, height, &[older]).await?;
    let other = network
        .wait_for("the other candidate in the chain", STEP, async |network| {
            let batch = network.client.batch(SEQUENCE).await?;
            let is_first = batch.txid == first.txid && batch.status == BatchStatus::Confirmed;
            Ok(is_first.then_some(batch))
        })
        .await?;
    ensure!(
        (other.fee_sat, other.treasury_sat) == (first.fee_sat, first.treasury_sat),
        "fee and treasury of batch {SEQUENCE} are another candidate's"
    );
    until_all_at(network, SEQUENCE).await?;
    story.done(format!(
        "block {height} is replaced by one with the first transaction, {}: now that is batch {SEQUENCE}",
        txid(&other)?
    ));
    Ok(())
}

/// Fee and rate.
fn paid(batch: &BatchDocument) -> anyhow::Result<String> {
    let vbytes = u64::try_from(transaction(batch)?.vsize())?.max(1);
    let hundredths = batch.fee_sat.saturating_mul(100).div_euclid(vbytes);
    let (whole, rest) = (hundredths.div_euclid(100), hundredths.rem_euclid(100));
    Ok(format!("{} sat ({whole}.{rest:02} sat/vB)", batch.fee_sat))
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

/// What the chain has in the end is the batch, and it has collected what it says.
pub(super) async fn see_confirmed(network: &LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let batch = network.client.batch(SEQUENCE).await?;
    let oldest = batch.candidates.first().context("candidates")?;
    ensure!(
        batch.txid.as_ref() == Some(&oldest.txid)
            && batch.fee_sat == oldest.fee_sat
            && batch.candidates.len() == 2,
        "batch {SEQUENCE} is not its first candidate, or has lost the other"
    );
    story.done(format!(
        "batch {SEQUENCE} is final with {}, the first of its two candidates",
        paid(&batch)?
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
