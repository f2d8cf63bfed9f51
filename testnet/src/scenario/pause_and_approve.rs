//! Operators that use their policy: some pause, and a large withdrawal is held until it is approved, while what is
//! in the same batch goes on without it.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null"
)]

use std::fs;

use anyhow::{Context as _, ensure};
use protocol::api::{BatchStatus, Page, RequestStatus};

use super::{STEP, Story};
use crate::network::{self, LocalNetwork};

/// Above this a withdrawal waits for approval: between the two withdrawals of the second batch.
const HOLD_ABOVE_SAT: u64 = 100_000;
/// The larger one.
const LARGE_SAT: u64 = 120_000;
const REASON: &str = "a drill";

/// How many operators can keep a batch from being signed.
async fn enough(network: &LocalNetwork) -> anyhow::Result<usize> {
    let threshold = network.client.vault().await?.threshold;
    let others = network.operators.len().saturating_sub(threshold.into());
    Ok(others.saturating_add(1))
}

/// Every operator gets another policy while it runs, and so many pause that nothing can be signed.
pub(super) async fn pause(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let text = network::policy(&format!("hold_above_sat = {HOLD_ABOVE_SAT}"));
    for node in &network.operators {
        let folder = node.settings().parent().context("a folder")?;
        fs::write(folder.join("policy.toml"), &text)?;
        node.ask(&["policy", "check"]).await?;
    }
    network
        .wait_for("the new policy", STEP, async |network| {
            for node in &network.operators {
                let shown = node.ask(&["policy", "show"]).await?;
                if shown["policy"]["withdrawals"]["hold_above_sat"] != HOLD_ABOVE_SAT {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
    story.done(format!(
        "the running operators hold withdrawals above {HOLD_ABOVE_SAT} sat from now on"
    ));
    let enough = enough(network).await?;
    for node in network.operators.iter().take(enough) {
        node.ask(&["pause", "--reason", REASON]).await?;
    }
    story.done(format!("{enough} operators are paused"));
    Ok(())
}

/// Signing waits for the paused operators, then goes on without the large withdrawal, which is approved.
pub(super) async fn resume_and_approve(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<()> {
    let enough = enough(network).await?;
    let phase = network
        .wait_for("a batch that waits", STEP, async |network| {
            let status = network.client.status().await?;
            let refusals = status.batch.map_or(0, |batch| batch.refusals.len());
            let waits = status.phase.contains("waits") && status.phase.contains(REASON);
            Ok((waits && refusals >= enough).then_some(status.phase))
        })
        .await?;
    story.done(format!("the coordinator says: {phase}"));
    // A pause outlives a restart, and what is paused signs nothing however often it is asked.
    let first = network.operators.first_mut().context("an operator")?;
    ensure!(first.stop().await, "operator-1 did not stop by itself");
    first.start()?;
    network
        .wait_for("the paused operator's return", STEP, async |network| {
            let first = network.operators.first().context("an operator")?;
            let status = first.ask(&["status"]).await.ok();
            let paused = status.and_then(|status| status["paused"].as_str().map(str::to_owned));
            Ok(paused.filter(|paused| paused.contains(REASON)))
        })
        .await?;
    for node in network.operators.iter().take(enough) {
        node.ask(&["resume"]).await?;
    }
    story.done("operator-1 was started again and still paused; all are resumed");

    let id = held(network).await?;
    let reason = network
        .wait_for("the held withdrawal", STEP, async |network| {
            let operation = network.client.operation(&id).await?;
            let reason = operation.reason.filter(|reason| reason.contains("held by"));
            Ok(reason.filter(|_| operation.status == RequestStatus::Queued))
        })
        .await?;
    story.done(format!("the coordinator says of {id}: {reason}"));
    network
        .wait_for("the rest of the batch", STEP, async |network| {
            let batches = network.client.batches(&Page::default()).await?.items;
            let newest = batches.first().context("a batch")?;
            if newest.status != BatchStatus::Broadcast {
                return Ok(None);
            }
            ensure!(
                !newest.operations.contains(&id),
                "a batch with the held withdrawal was signed"
            );
            Ok((newest.sequence == 2 && newest.operations.len() == 4).then_some(()))
        })
        .await?;
    story.done("two deposits, the transfer and the small withdrawal are signed without it");
    for node in &network.operators {
        approve(node, &id).await?;
    }
    story.done(format!("every operator's administrator approves {id}"));
    Ok(())
}

/// The withdrawal that waits at every operator that was asked for its shares.
async fn held(network: &mut LocalNetwork) -> anyhow::Result<String> {
    network
        .wait_for(
            "a withdrawal that waits for approval",
            STEP,
            async |network| {
                for node in &network.operators {
                    let listing = node.ask(&["pending"]).await?;
                    let rows = listing["pending"].as_array().context("no list")?;
                    ensure!(rows.len() <= 1, "{listing}");
                    if let Some(row) = rows.first() {
                        ensure!(row["about"]["amount_sat"] == LARGE_SAT, "{row}");
                        return Ok(row["operation"].as_str().map(str::to_owned));
                    }
                }
                Ok(None)
            },
        )
        .await
}

/// Approves at one operator, if it has seen the withdrawal.
async fn approve(node: &network::Node, id: &str) -> anyhow::Result<()> {
    let listing = node.ask(&["pending"]).await?;
    let rows = listing["pending"].as_array().context("no list")?;
    if rows.iter().any(|row| row["operation"] == id) {
        let decided = node.ask(&["approve", id]).await?;
        ensure!(decided["verdict"] == "approved", "{decided}");
    }
    Ok(())
}

/// Nothing waits any more, and what was approved is forgotten once it is final.
pub(super) async fn see_decisions(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    // The next block makes it final for the operators too.
    network.bitcoind.mine(1).await?;
    network
        .wait_for("the end of all decisions", STEP, async |network| {
            for node in &network.operators {
                let listing = node.ask(&["pending"]).await?;
                let left = [&listing["pending"], &listing["decided"]];
                if left
                    .iter()
                    .any(|rows| rows.as_array().is_none_or(|rows| !rows.is_empty()))
                {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
    story.done("it is paid and final, and no operator keeps a decision about it any more");
    Ok(())
}
