//! A batch's transaction vanishes from the mempool of the Bitcoin node, and comes back by itself.

use anyhow::{Context as _, ensure};
use bitcoin::Txid;
use protocol::api::BatchStatus;

use super::{Story, until_batch, until_in_mempool};
use crate::network::LocalNetwork;

/// Once while the coordinator is dead, so that the loss is seen before anybody mends it, and once under its eyes.
pub(super) async fn twice(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let batch = until_batch(network, 1, BatchStatus::Broadcast).await?;
    let txid: Txid = batch.txid.context("a transaction")?.parse()?;
    until_in_mempool(network, txid).await?;

    network.coordinator.kill().await?;
    network.bitcoind.forget_mempool().await?;
    network.coordinator.start()?;
    until_in_mempool(network, txid).await?;
    story.done("the node lost batch 1 while the coordinator was dead; it was submitted again");

    network.bitcoind.forget_mempool().await?;
    until_in_mempool(network, txid).await?;
    let log = std::fs::read_to_string(network.coordinator.log())?;
    ensure!(
        log.contains("the node has not got the batch any more"),
        "nobody noticed that the batch was gone"
    );
    story.done("the node lost batch 1 again; that was noticed, and it was submitted again");
    Ok(())
}
