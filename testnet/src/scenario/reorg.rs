//! Blocks with deposits and batches leave the chain, shallower than final: the ledger goes back, nothing is formed anew,
//! and the same transactions come back.

use anyhow::{Context as _, ensure};
use bitcoin::Txid;
use protocol::api::{BatchDocument, BatchStatus, Page, RequestStatus};

use super::{STEP, Story, until_all_at, until_batch, until_in_mempool};
use crate::network::LocalNetwork;

/// The first batch is confirmed; then its block, and those with its deposits, are replaced by empty ones, and the node
/// loses its mempool too, so that the batch comes back only if somebody submits it again.
pub(super) async fn deposits_and_batch(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<()> {
    let before = confirmed(network, 1).await?;
    let deposits = network.client.deposits(&Page::default()).await?.items;
    let first = deposits
        .iter()
        .map(|deposit| deposit.height)
        .min()
        .context("deposits")?;
    replace(network, first, &[]).await?;
    let txid = txid(&before)?;
    network.bitcoind.forget_mempool().await?;
    story.done(format!(
        "the blocks from {first} on, with three deposits and batch 1, are replaced by empty ones; the mempool is lost"
    ));

    until_all_at(network, 0).await?;
    let batch = until_batch(network, 1, BatchStatus::Broadcast).await?;
    ensure!(batch.height.is_none(), "batch 1 is shown in a block");
    for deposit in &deposits {
        let now = network.client.deposit(&deposit.outpoint).await?;
        ensure!(
            now.status == RequestStatus::Broadcast && now.reason.is_some(),
            "a deposit of a batch that left the chain is {:?}, {:?}",
            now.status,
            now.reason
        );
        ensure!(
            network.client.account(&deposit.account).await?.is_none(),
            "the ledger did not go back"
        );
    }
    story.done("coordinator and operators are back at batch 0; the batch is shown as broadcast, with the reason");
    until_in_mempool(network, txid).await?;
    story.done("the same transaction was submitted again, with the deposits still unconfirmed");
    Ok(())
}

/// The second batch's block alone is replaced, when the coordinator knows the batch from others only.
pub(super) async fn batch(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let before = confirmed(network, 2).await?;
    lose_database(network).await?;
    let again = network
        .wait_for("the batch's transaction", STEP, async |network| {
            let batch = network.client.batch(2).await.ok();
            Ok(batch.filter(|batch| batch.transaction.is_some()))
        })
        .await?;
    ensure!(
        again.transaction == before.transaction && again.status == BatchStatus::Confirmed,
        "batch 2 came back as another one"
    );
    story.done("the coordinator has lost its disk; it has batch 2 from others, and the signed transaction from its block");
    let height = before.height.context("a height")?;
    replace(network, height, &[]).await?;
    until_all_at(network, 1).await?;
    let batch = until_batch(network, 2, BatchStatus::Broadcast).await?;
    ensure!(batch.txid == before.txid, "batch 2 was formed anew");
    until_in_mempool(network, txid(&before)?).await?;
    story.done(format!(
        "block {height} with batch 2 is replaced by empty ones; all are back at batch 1, its transaction waits"
    ));
    Ok(())
}

/// Kills the coordinator, and starts it with an empty disk.
async fn lose_database(network: &mut LocalNetwork) -> anyhow::Result<()> {
    network.coordinator.kill().await?;
    let settings = network.coordinator.settings().parent();
    let database = settings.context("a folder")?.join("data").join("db");
    std::fs::remove_dir_all(&database)?;
    network.coordinator.start()?;
    network
        .wait_for("the coordinator's return", STEP, async |network| {
            let is_ready = network.client.is_ready().await.unwrap_or(false);
            Ok(is_ready.then_some(()))
        })
        .await
}

/// Waits for the batch, mines it, and waits until every node has seen that.
async fn confirmed(network: &mut LocalNetwork, sequence: u64) -> anyhow::Result<BatchDocument> {
    until_batch(network, sequence, BatchStatus::Broadcast).await?;
    network.bitcoind.mine(1).await?;
    until_all_at(network, sequence).await?;
    until_batch(network, sequence, BatchStatus::Confirmed).await
}

/// Replaces all blocks from a height on by one more, the first with these transactions and nothing else.
pub(super) async fn replace(
    network: &mut LocalNetwork,
    height: u32,
    transactions: &[String],
) -> anyhow::Result<()> {
    let rpc = network.bitcoind.rpc();
    let tip = rpc.chain_info().await?.blocks;
    let block = rpc.block_hash_at(height).await?.context("a block")?;
    network.bitcoind.invalidate(block).await?;
    let gone = tip.saturating_add(1).saturating_sub(height);
    network
        .bitcoind
        .mine_only(gone.saturating_add(1), transactions)
        .await?;
    Ok(())
}

fn txid(batch: &BatchDocument) -> anyhow::Result<Txid> {
    Ok(batch.txid.as_ref().context("a transaction")?.parse()?)
}
