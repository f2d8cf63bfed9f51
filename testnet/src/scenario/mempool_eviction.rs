//! A batch's transaction vanishes from the mempool of the Bitcoin node, and comes back by itself.

use anyhow::Context as _;
use bitcoin::Txid;
use protocol::api::BatchStatus;

use super::{STEP, Story, until_batch, until_in_mempool};
use crate::network::LocalNetwork;

/// How often the mempool is lost under the coordinator's eyes, if an operator is faster than it each time.
const TRIES: usize = 6;

/// Once while the coordinator is dead, so that only operators can mend it, and then under the coordinator's eyes.
pub(super) async fn twice(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let batch = until_batch(network, 1, BatchStatus::Broadcast).await?;
    let txid: Txid = batch.txid.context("a transaction")?.parse()?;
    until_in_mempool(network, txid).await?;

    network.coordinator.kill().await?;
    network.bitcoind.forget_mempool().await?;
    // An operator may be faster than a look: that it was lost is known, its file was deleted.
    until_in_mempool(network, txid).await?;
    story
        .done("the node lost batch 1 while the coordinator was dead; operators submitted it again");

    network.coordinator.start()?;
    network
        .wait_for("the coordinator's return", STEP, async |network| {
            let healthy = network.client.is_healthy().await.unwrap_or(false);
            Ok(healthy.then_some(()))
        })
        .await?;
    for _ in 0..TRIES {
        network.bitcoind.forget_mempool().await?;
        until_in_mempool(network, txid).await?;
        let log = std::fs::read_to_string(network.coordinator.log())?;
        if log.contains("the node has not got the batch any more") {
            story.done(
                "the node lost batch 1 again; the coordinator noticed, and submitted it again",
            );
            return Ok(());
        }
    }
    anyhow::bail!("the coordinator did not notice that the batch was gone")
}
