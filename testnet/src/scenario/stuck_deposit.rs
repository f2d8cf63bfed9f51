//! A deposit leaves the chain in a reorganisation after it was credited, and no miner takes its payment again: as one that
//! pays too little, when fees have risen. Its batch waits with it, until another one goes on without it.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use bitcoin::{Txid, consensus::encode::serialize_hex};
use protocol::api::{BatchDocument, BatchStatus, RequestStatus};

use super::{
    BLOCK_EVERY, STEP, Story,
    double_spent_deposit::{DEPOSIT, Plot},
    ending::Holding,
    reorg, until_all_at, until_batch, until_deposits, until_in_mempool,
};
use crate::network::LocalNetwork;

/// The batch with the deposit.
const SEQUENCE: u64 = 2;

/// Confirms the batch with that deposit, replaces its blocks and the deposit's by others that leave both out, and waits for
/// another batch that pays for replacing it. Then the deposit is mined again, and credited.
pub(super) async fn wait_out(
    network: &mut LocalNetwork,
    plot: &Plot,
    story: &Story,
) -> anyhow::Result<Holding> {
    until_batch(network, SEQUENCE, BatchStatus::Broadcast).await?;
    network.bitcoind.mine(1).await?;
    until_all_at(network, SEQUENCE).await?;
    let old = until_batch(network, SEQUENCE, BatchStatus::Confirmed).await?;
    let payment = plot.outpoint.txid;
    let left_out = [txid(&old)?, payment];
    let deposit = network.client.deposit(&plot.outpoint.to_string()).await?;
    let kept = mined_since(network, deposit.height, &left_out).await?;
    reorg::replace(network, deposit.height, &kept).await?;
    until_all_at(network, 1).await?;
    until_batch(network, SEQUENCE, BatchStatus::Broadcast).await?;
    for waiting in left_out {
        until_in_mempool(network, waiting).await?;
    }
    story.done(format!(
        "the blocks from {} on are replaced by others that leave out mallory's deposit and batch {SEQUENCE}; both wait in the mempool",
        deposit.height
    ));

    let replaced_at = network.bitcoind.rpc().chain_info().await?.blocks;
    let new = pass_over(network, &old).await?;
    let height = network.bitcoind.rpc().chain_info().await?.blocks;
    let waited = height.saturating_sub(replaced_at);
    see_replacement(network, &old, &new, plot).await?;
    story.done(format!(
        "{waited} blocks later another batch {SEQUENCE} with the rest of its operations has replaced it: {} inputs instead of {}, for {} sat instead of {}",
        new.inputs,
        old.inputs,
        new.fee_sat,
        old.fee_sat
    ));

    // From here on miners take everything again.
    let account = plot.account.clone();
    until_deposits(network, &[plot.outpoint], RequestStatus::Final, story).await?;
    let first = network.client.batch(SEQUENCE).await?;
    ensure!(
        first.txid == new.txid && first.height.is_some(),
        "the block has another batch {SEQUENCE}"
    );
    story.done("the deposit is in a block again, and credited by a later batch");
    let credited = DEPOSIT.checked_sub(network.parameters.deposit_fee);
    Ok(Holding {
        name: "mallory",
        address: account,
        sats: credited.context("a deposit above the fee")?.to_sat(),
    })
}

/// The transactions of the blocks from a height on, in hex, without coinbases and these.
async fn mined_since(
    network: &LocalNetwork,
    height: u32,
    left_out: &[Txid],
) -> anyhow::Result<Vec<String>> {
    let rpc = network.bitcoind.rpc();
    let mut kept = Vec::new();
    for height in height..=rpc.chain_info().await?.blocks {
        let hash = rpc.block_hash_at(height).await?.context("a block")?;
        let block = rpc.block(hash).await?;
        let paid = block.txdata.iter().skip(1);
        kept.extend(
            paid.filter(|transaction| !left_out.contains(&transaction.compute_txid()))
                .map(serialize_hex),
        );
    }
    Ok(kept)
}

/// Mines empty blocks until another batch is with the node.
async fn pass_over(
    network: &mut LocalNetwork,
    old: &BatchDocument,
) -> anyhow::Result<BatchDocument> {
    let mut mined = Instant::now();
    network
        .wait_for("a batch without the deposit", STEP, async |network| {
            let batch = network.client.batch(SEQUENCE).await.ok();
            let other = batch.filter(|batch| batch.txid.is_some() && batch.txid != old.txid);
            // Once the other one is formed, blocks are for those that sign it.
            if other.is_none() && mined.elapsed() > BLOCK_EVERY {
                network.bitcoind.mine_only(1, &[]).await?;
                mined = Instant::now();
            }
            Ok(other.filter(|batch| batch.status == BatchStatus::Broadcast))
        })
        .await
}

/// It carries all but the deposit, perhaps with what has come since, and has pushed the old one out, with a higher fee though it is smaller.
async fn see_replacement(
    network: &mut LocalNetwork,
    old: &BatchDocument,
    new: &BatchDocument,
    plot: &Plot,
) -> anyhow::Result<()> {
    until_in_mempool(network, txid(new)?).await?;
    let rpc = network.bitcoind.rpc();
    ensure!(
        rpc.mempool_entry(txid(old)?).await?.is_none(),
        "the old batch is in the mempool still"
    );
    ensure!(
        rpc.mempool_entry(plot.outpoint.txid).await?.is_some(),
        "the deposit's payment does not wait any more"
    );
    let missing = old
        .operations
        .iter()
        .filter(|id| !new.operations.contains(id));
    let missing = missing.count();
    ensure!(
        missing == 1,
        "the new batch lacks {missing} operations of the old one"
    );
    ensure!(
        new.inputs < old.inputs && new.fee_sat > old.fee_sat,
        "{} sat do not pay for replacing {} sat",
        new.fee_sat,
        old.fee_sat
    );
    let deposit = network.client.deposit(&plot.outpoint.to_string()).await?;
    ensure!(
        deposit.status < RequestStatus::Batched && deposit.reason.is_some(),
        "the deposit is {:?}, {:?}",
        deposit.status,
        deposit.reason
    );
    Ok(())
}

fn txid(batch: &BatchDocument) -> anyhow::Result<Txid> {
    Ok(batch.txid.as_ref().context("a transaction")?.parse()?)
}
