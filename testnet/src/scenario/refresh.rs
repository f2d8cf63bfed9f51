//! All operators get new shares of the same key between two batches; one of them dies in the middle of it.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null"
)]

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{STEP, Story};
use crate::network::{LocalNetwork, Node};

/// Which operator is killed in the middle: its place in the roster.
const KILLED: usize = 1;

/// All administrators ask for the refresh, the last one while another operator is dead; that one comes back and goes on
/// where it was.
pub(super) async fn refresh(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let before = network.client.vault().await?;
    ensure!(
        before.epoch == Some(0),
        "the vault is at {:?}",
        before.epoch
    );
    let last = network.operators.len().saturating_sub(1);
    for place in 0..last {
        let begun = operator(network, place)?.ask(&["refresh"]).await?;
        ensure!(begun["epoch"] == 1, "{begun}");
    }
    let name = operator(network, last)?.name.clone();
    let asked: Vec<usize> = (0..last).collect();
    wait_until(network, &asked, |missing| missing == [name.as_str()]).await?;
    story.done(format!(
        "{last} administrators have asked for a refresh; it waits for {name}, by name"
    ));

    let killed = operator(network, KILLED)?.name.clone();
    operator(network, KILLED)?.kill().await?;
    operator(network, last)?.ask(&["refresh"]).await?;
    wait_until(network, &[0], |missing| missing.contains(&killed.as_str())).await?;
    story.done(format!(
        "{killed} is killed (SIGKILL) in the middle; the others wait for it and keep their shares"
    ));
    operator(network, KILLED)?.start()?;
    until_epoch(network, 1).await?;
    story.done("every operator and the coordinator are at epoch 1, certified by all new shares");

    let after = network.client.vault().await?;
    ensure!(
        (&after.group_key, &after.address, &after.vault_id)
            == (&before.group_key, &before.address, &before.vault_id),
        "a refresh must not change key, address or vault"
    );
    for place in 0..network.operators.len() {
        let node = operator(network, place)?;
        let folder = node.settings().parent().context("a folder")?.join("data");
        let left: Vec<String> = std::fs::read_dir(folder)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("refresh-") || name.contains("-epoch-"))
            .collect();
        ensure!(left.is_empty(), "{} has left {left:?}", node.name);
    }
    // What is on disk is the new share.
    let node = operator(network, 0)?;
    node.kill().await?;
    node.start()?;
    until_epoch(network, 1).await?;
    story.done(
        "key, address and vault are the same; old shares and seeds are gone, also after a restart",
    );
    Ok(())
}

/// The second batch was signed with the new shares.
pub(super) async fn see_signatures(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<()> {
    let mut signed = 0_usize;
    for node in &network.operators {
        let status = node.ask(&["status"]).await?;
        ensure!(status["epoch"] == 1, "{status}");
        signed = signed.saturating_add(usize::from(has_signed(&status, "batch 2")));
    }
    let threshold = usize::from(network.client.vault().await?.threshold);
    ensure!(
        signed >= threshold,
        "{signed} operators have signed batch 2, not {threshold}"
    );
    story.done(format!("{signed} operators have signed batch 2 at epoch 1"));
    Ok(())
}

/// Every administrator asks for a refresh; it ends at this epoch.
pub(super) async fn by_all(network: &mut LocalNetwork, epoch: u32) -> anyhow::Result<()> {
    for node in &network.operators {
        node.ask(&["refresh"]).await?;
    }
    until_epoch(network, epoch).await
}

/// Whether the operator with this status has signed that subject.
pub(super) fn has_signed(status: &Value, subject: &str) -> bool {
    status["verdicts"].as_array().is_some_and(|verdicts| {
        verdicts
            .iter()
            .any(|verdict| verdict["result"] == "signed" && verdict["subject"] == subject)
    })
}

/// Until these operators, still at the old epoch, wait for messages of operators of these names.
async fn wait_until(
    network: &mut LocalNetwork,
    places: &[usize],
    are_they: impl Fn(&[&str]) -> bool,
) -> anyhow::Result<()> {
    network
        .wait_for("a refresh that waits", STEP, async |network| {
            for place in places {
                let status = operator(network, *place)?.ask(&["status"]).await?;
                ensure!(
                    status["epoch"] == 0,
                    "the refresh ended without all: {status}"
                );
                let missing = status["refresh"]["missing"].as_array();
                let missing = missing.map(|missing| missing.iter().filter_map(Value::as_str));
                if !are_they(&missing.into_iter().flatten().collect::<Vec<_>>()) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
}

async fn until_epoch(network: &mut LocalNetwork, epoch: u32) -> anyhow::Result<()> {
    network
        .wait_for("the new epoch", STEP, async |network| {
            if network.client.vault().await?.epoch != Some(epoch) {
                return Ok(None);
            }
            for node in &network.operators {
                // One that was just started may not listen yet.
                let Ok(status) = node.ask(&["status"]).await else {
                    return Ok(None);
                };
                if status["epoch"] != epoch || !status["refresh"].is_null() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
}

fn operator(network: &mut LocalNetwork, place: usize) -> anyhow::Result<&mut Node> {
    network.operators.get_mut(place).context("an operator")
}
