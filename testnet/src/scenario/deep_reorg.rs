//! What was final leaves the chain: every node stops and says so, also after a restart, until its administrator has looked.

use anyhow::{Context as _, ensure};
use protocol::api::BatchStatus;
use tokio::process::Command;

use super::{STEP, Story, reorg, until_all_alarmed, until_all_at, until_batch};
use crate::network::{LocalNetwork, binary};

/// The first batch becomes final, and its blocks are replaced by empty ones.
pub(super) async fn stop_and_clear(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<()> {
    let deeper = network.parameters.final_confirmations.saturating_sub(1);
    network.bitcoind.mine(deeper).await?;
    let batch = until_batch(network, 1, BatchStatus::Final).await?;
    let height = batch.height.context("a height")?;
    reorg::replace(network, height, &[]).await?;
    let alarm = until_all_alarmed(network, "left the chain").await?;
    story.done(format!(
        "the blocks from {height} on, with final batch 1, are replaced; all nodes stop: {alarm}"
    ));
    restart(network).await?;
    until_all_alarmed(network, "left the chain").await?;
    ensure!(
        !network.client.is_ready().await.unwrap_or(false),
        "the coordinator says that it is ready"
    );
    story.done("the alarm outlives a restart of the coordinator and of an operator");

    for node in &network.operators {
        let was = node
            .ask(&["clear-alarm", "--reason", "the scenario did it"])
            .await?;
        ensure!(was.is_string(), "there was no alarm: {was}");
    }
    network.coordinator.stop().await;
    let cleared = Command::new(binary("drawbridge-coordinator")?)
        .args(["clear-alarm", "--settings"])
        .arg(network.coordinator.settings())
        .output()
        .await?;
    ensure!(
        cleared.status.success(),
        "{}",
        String::from_utf8_lossy(&cleared.stderr)
    );
    network.coordinator.start()?;
    network
        .wait_for("readiness", STEP, async |network| {
            let ready = network.client.is_ready().await.unwrap_or(false);
            Ok(ready.then_some(()))
        })
        .await?;
    network.bitcoind.mine(1).await?;
    until_all_at(network, 1).await?;
    story.done("cleared by command on every node; batch 1 is in the chain again");
    Ok(())
}

/// Stops the first operator and the coordinator, and starts them again.
pub(super) async fn restart(network: &mut LocalNetwork) -> anyhow::Result<()> {
    let first = network.operators.first_mut().context("an operator")?;
    first.stop().await;
    first.start()?;
    network.coordinator.stop().await;
    network.coordinator.start()
}
