//! Nodes that die at the worst moment, as in a power cut.

use std::{path::Path, time::Duration};

use anyhow::Context as _;

use super::{STEP, Story};
use crate::network::LocalNetwork;

/// SIGKILL while the batch is between two stages (it is being proven), then a fresh start.
pub(super) async fn coordinator(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    network
        .wait_for("proving", STEP, async |network| {
            let phase = network
                .client
                .status()
                .await
                .ok()
                .map(|status| status.phase);
            Ok(phase.filter(|phase| phase.starts_with("proving")))
        })
        .await?;
    network.coordinator.kill().await?;
    story.done("coordinator killed (SIGKILL) with a batch formed and not yet proven");
    tokio::time::sleep(Duration::from_secs(1)).await;
    network.coordinator.start()?;
    story.done("coordinator started again");
    network
        .wait_for("the coordinator's return", STEP, async |network| {
            Ok(network
                .client
                .is_healthy()
                .await
                .unwrap_or(false)
                .then_some(()))
        })
        .await
}

/// SIGKILL of an operator that has accepted and not signed, then a fresh start.
pub(super) async fn operator(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    // An operator that is stopped can't answer; with n - t + 1 of them gone no attempt starts before the
    // others are back, so the one that has accepted is caught between accept and sign.
    let n = network.operators.len();
    let parameters_threshold = network.client.vault().await?.threshold;
    let gone = n
        .saturating_sub(usize::from(parameters_threshold))
        .saturating_add(1);
    for node in network.operators.iter_mut().skip(1).take(gone) {
        node.kill().await?;
    }
    story.done(format!(
        "{gone} operators killed, so that signing has to wait"
    ));
    let log = network
        .operators
        .first()
        .context("an operator")?
        .log()
        .to_owned();
    let seen = accepts(&log)?;
    network
        .wait_for("an accept", STEP, async |_| {
            Ok((accepts(&log)? > seen).then_some(()))
        })
        .await?;
    let first = network.operators.first_mut().context("an operator")?;
    first.kill().await?;
    story.done("operator-1 killed (SIGKILL) after its accept, before its share");
    for node in network.operators.iter_mut().take(gone.saturating_add(1)) {
        node.start()?;
    }
    story.done("all operators started again");
    Ok(())
}

fn accepts(log: &Path) -> anyhow::Result<usize> {
    Ok(std::fs::read_to_string(log)?
        .lines()
        .filter(|line| line.contains("round1"))
        .count())
}
