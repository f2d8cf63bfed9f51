//! The Bitcoin node is stopped in the middle of a batch: every node says so, waits, and goes on by itself.

use super::{STEP, Story};
use crate::network::LocalNetwork;

/// Stops bitcoind while the first batch is being proven, until all nodes have noticed.
pub(super) async fn for_a_while(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    network
        .wait_for("proving", STEP, async |network| {
            let status = network.client.status().await.ok();
            let phase = status.map(|status| status.phase);
            Ok(phase.filter(|phase| phase.starts_with("proving")))
        })
        .await?;
    network.bitcoind.stop().await?;
    until_all_reach_it(network, false).await?;
    story.done("bitcoind is stopped in the middle of a batch; coordinator and operators say that it does not answer");
    network.bitcoind.restart().await?;
    until_all_reach_it(network, true).await?;
    story.done("bitcoind is started again; coordinator and operators are ready by themselves");
    Ok(())
}

/// Waits until every node says of its Bitcoin node that it answers, or that it does not.
async fn until_all_reach_it(network: &mut LocalNetwork, reached: bool) -> anyhow::Result<()> {
    network
        .wait_for("all nodes' word on bitcoind", STEP, async |network| {
            let mut all = network.client.is_ready().await.unwrap_or(!reached) == reached;
            for node in &network.operators {
                let shown = node.ask(&["status"]).await.ok();
                let own = shown.and_then(|status| status.get("bitcoind_reachable")?.as_bool());
                all &= own == Some(reached);
            }
            Ok(all.then_some(()))
        })
        .await
}
