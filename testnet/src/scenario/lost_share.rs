//! An operator's folder is lost and there is no backup: the others repair its share for a new identity on a new host, all
//! refresh, and it signs again.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use protocol::{identity::PeerKey, roster::Roster};

use super::{STEP, Story, refresh, restore::begin_quarantine};
use crate::network::{LocalNetwork, Node, PASSPHRASE};

/// Which operator is lost: its place in the roster.
const LOST: usize = 1;
/// The settings file's name in an operator's folder.
const SETTINGS: &str = "settings.toml";

/// Loses, repairs, refreshes; and stops as many others as makes the repaired share needed.
pub(super) async fn repair(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let name = lose(network, story).await?;
    let status = network
        .wait_for("the new host", STEP, async |network| {
            // It may not listen yet.
            let status = lost(network)?.ask(&["status"]).await.ok();
            Ok(status.filter(|status| status["stage"] == "share lost"))
        })
        .await?;
    ensure!(
        status["key_generation"].is_null(),
        "it has begun a key generation: {status}"
    );

    lost(network)?.ask(&["repair"]).await?;
    let threshold = usize::from(network.client.vault().await?.threshold);
    let helpers: Vec<usize> = (0..network.operators.len())
        .filter(|place| *place != LOST)
        .take(threshold)
        .collect();
    let (last, first) = helpers.split_last().context("helpers")?;
    for place in first {
        approve(network, *place, &name).await?;
    }
    let unready = network.operators.len().saturating_sub(threshold);
    network
        .wait_for("refusals without approval", STEP, async |network| {
            let status = lost(network)?.ask(&["status"]).await?;
            let missing = status["repair"]["missing"].as_array();
            let refused = status["repair"]["refused"].as_object();
            let all = missing.is_some_and(|missing| missing.len() == unready)
                && refused.is_some_and(|refused| refused.len() == unready);
            Ok((all && status["epoch"].is_null()).then_some(()))
        })
        .await?;
    story.done(format!(
        "{} administrators have approved the new key, which is one too few",
        first.len()
    ));
    approve(network, *last, &name).await?;
    network
        .wait_for("the repaired share", STEP, async |network| {
            let status = lost(network)?.ask(&["status"]).await?;
            let open = status["stage"] == "open" && status["sequence"] == 1;
            let quarantined = status["quarantine"].is_object();
            Ok((open && quarantined).then_some(()))
        })
        .await?;
    let status = begin_quarantine(network).await?;
    ensure!(
        status["epoch"] == 0 && status["refresh_due"].is_string(),
        "{status}"
    );
    story.done(format!(
        "{threshold} helpers have repaired {name}'s share; it says that a refresh is due, and waits out its quarantine"
    ));

    refresh::by_all(network, 1).await?;
    let status = lost(network)?.ask(&["status"]).await?;
    ensure!(
        status["refresh_due"].is_null() && refresh::has_signed(&status, "epoch 1"),
        "{status}"
    );
    story.done("all have new shares; the lost one is of no use to anybody who finds it");

    let surplus = network.operators.len().saturating_sub(threshold);
    let others = network.operators.iter_mut().enumerate().rev();
    for (_, node) in others.filter(|(place, _)| *place != LOST).take(surplus) {
        node.kill().await?;
    }
    story.done(format!(
        "{surplus} others are stopped, so that its share is needed"
    ));
    Ok(())
}

/// It has signed the second batch.
pub(super) async fn see_signature(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let status = lost(network)?.ask(&["status"]).await?;
    ensure!(
        refresh::has_signed(&status, "batch 2"),
        "the repaired operator has not signed: {status}"
    );
    story.done("the repaired operator has signed again");
    for node in &mut network.operators {
        if !node.is_running() {
            node.start()?;
        }
    }
    Ok(())
}

/// Deletes an operator's folder, makes a new one with a new identity, has everybody's roster name it, and starts all nodes
/// again. Gives the operator's name.
async fn lose(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<String> {
    let node = lost(network)?;
    let name = node.name.clone();
    ensure!(node.stop().await, "{name} did not stop by itself");
    let old = node.settings().parent().context("a folder")?.to_owned();
    // What is no secret of the vault comes from where the administrator keeps it.
    let settings = fs::read_to_string(node.settings())?;
    let policy = fs::read(old.join("policy.toml"))?;
    fs::remove_dir_all(&old)?;
    let folder = old.with_file_name(format!("{name}-new"));
    let made = node
        .ask(&["init", folder.to_str().context("a path")?])
        .await?;
    let key: PeerKey = made["key"].as_str().context("a key")?.parse()?;
    let mut settings: toml::Table = settings.parse()?;
    for (setting, value) in [("data_dir", "data"), ("identity", "identity")] {
        settings.insert(setting.to_owned(), value.into());
    }
    private(&folder.join("passphrase"), PASSPHRASE.as_bytes())?;
    private(&folder.join("policy.toml"), &policy)?;
    private(
        &folder.join(SETTINGS),
        toml::to_string(&settings)?.as_bytes(),
    )?;
    node.use_settings(folder.join(SETTINGS));

    let file: PathBuf = network.dir.join("roster.toml");
    let mut roster: Roster = toml::from_str(&fs::read_to_string(&file)?)?;
    let before = roster.hash();
    let member = roster.operators.get_mut(LOST).context("an operator")?;
    member.founding_key = Some(member.key);
    member.key = key;
    roster.validate()?;
    ensure!(
        roster.hash() == before,
        "a replaced identity must not make another vault"
    );
    fs::write(&file, toml::to_string(&roster)?)?;
    let nodes = network
        .operators
        .iter_mut()
        .chain([&mut network.coordinator]);
    for node in nodes {
        ensure!(node.stop().await, "{} did not stop by itself", node.name);
        node.start()?;
    }
    network
        .wait_for("the coordinator's return", STEP, async |network| {
            let healthy = network.client.is_healthy().await.unwrap_or(false);
            Ok(healthy.then_some(()))
        })
        .await?;
    story.done(format!(
        "{name}'s folder is deleted; everybody's roster names its new identity, and all nodes run again"
    ));
    Ok(name)
}

async fn approve(network: &mut LocalNetwork, place: usize, name: &str) -> anyhow::Result<()> {
    network
        .wait_for("an approval", STEP, async |network| {
            let node = network.operators.get(place).context("an operator")?;
            // It may not listen yet.
            let approved = node.ask(&["repair", "approve", name, "--yes"]).await.ok();
            Ok(approved.filter(|approved| approved["approved"] == true))
        })
        .await?;
    Ok(())
}

fn private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o600),
    )?)
}

fn lost(network: &mut LocalNetwork) -> anyhow::Result<&mut Node> {
    network.operators.get_mut(LOST).context("an operator")
}
