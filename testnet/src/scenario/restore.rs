//! An operator's host is lost, and the operator is restored from its backup on another one: ledger and batches come
//! from its peers, it honours the quarantine of one that has lost its promises (S7), and then it signs again.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null"
)]

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use node::clock::now_ms;
use serde_json::Value;

use super::{STEP, Story};
use crate::network::{LocalNetwork, Node};

/// Which operator is lost: its place in the roster.
const LOST: usize = 1;
/// The settings file's name in a restored folder.
const SETTINGS: &str = "settings.toml";

/// Backs one operator up, deletes its folder, restores it elsewhere, and stops as many others as makes its share
/// needed.
pub(super) async fn restore(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let file = network.dir.join("operator.backup");
    let node = lost(network)?;
    let name = node.name.clone();
    let made = node.ask(&["backup", text(&file)?]).await?;
    ensure!(made["epoch"] == 0 && made["vault"].is_string(), "{made}");
    let read = node.ask(&["verify-backup", text(&file)?]).await?;
    ensure!(
        read == made,
        "verify-backup says {read}, backup said {made}"
    );
    story.done(format!("{name} is backed up, and the backup is verified"));

    ensure!(node.stop().await, "{name} did not stop by itself");
    let old = node.settings().parent().context("a folder")?.to_owned();
    // What is no secret of the vault comes from where the administrator keeps it.
    let settings = fs::read_to_string(node.settings())?;
    let others = plain_files(&old)?;
    fs::remove_dir_all(&old)?;
    let folder = old.with_file_name(format!("{name}-restored"));
    node.ask(&["restore", text(&file)?, text(&folder)?]).await?;
    adapt(&folder, &settings, &others)?;
    node.use_settings(folder.join(SETTINGS));
    node.start()?;
    story.done(format!(
        "{name}'s folder is deleted; it is restored in another and started"
    ));

    let status = network
        .wait_for("the restored operator's ledger", STEP, async |network| {
            // It may not listen yet.
            let status = lost(network)?.ask(&["status"]).await.ok();
            Ok(status.filter(|status| {
                status["stage"] == "open"
                    && status["sequence"] == 1
                    && status["quarantine"].is_object()
            }))
        })
        .await?;
    ensure!(
        status["quarantine"]["until_height"].is_null(),
        "no block is younger than the restore, and the quarantine is measured: {status}"
    );
    let status = begin_quarantine(network).await?;
    story.done(format!(
        "it has caught up with batch 1 from its peers; its quarantine lasts until height {}",
        status["quarantine"]["until_height"]
    ));
    compare_ledgers(network, story).await?;

    let threshold = network.client.vault().await?.threshold;
    let surplus = network
        .operators
        .len()
        .saturating_sub(usize::from(threshold));
    let others = network.operators.iter_mut().enumerate().rev();
    for (_, node) in others.filter(|(place, _)| *place != LOST).take(surplus) {
        node.kill().await?;
    }
    story.done(format!(
        "{surplus} others are stopped, so that its share is needed"
    ));
    Ok(())
}

/// The first block that is younger than the loss comes, and the quarantine counts from there.
pub(super) async fn begin_quarantine(network: &mut LocalNetwork) -> anyhow::Result<Value> {
    // The time in a block is in whole seconds, and the loss is on disk by now.
    let lost_s = now_s();
    let mut is_mined = false;
    network
        .wait_for("a quarantine that is measured", STEP, async |network| {
            if !is_mined && now_s() > lost_s {
                network.bitcoind.mine(1).await?;
                is_mined = true;
            }
            let status = lost(network)?.ask(&["status"]).await?;
            let is_measured = status["quarantine"]["until_height"].is_u64();
            Ok(is_measured.then_some(status))
        })
        .await
}

fn now_s() -> u64 {
    now_ms() / 1_000
}

/// The second batch is proposed, and the restored operator refuses it as long as no block comes.
pub(super) async fn see_quarantine(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<()> {
    network
        .wait_for("a refusal under S7", STEP, async |network| {
            let status = lost(network)?.ask(&["status"]).await?;
            let refused = has_verdict(&status, |verdict| {
                verdict["subject"] == "batch 2"
                    && verdict["result"] == "refused"
                    && verdict["rule"] == "S7"
            });
            Ok(refused.then_some(()))
        })
        .await?;
    story.done("it refuses batch 2 under S7: it may have signed another before it was lost");
    Ok(())
}

/// It has signed the second batch, after its quarantine.
pub(super) async fn see_signature(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let status = lost(network)?.ask(&["status"]).await?;
    ensure!(
        has_verdict(&status, |verdict| {
            verdict["subject"] == "batch 2" && verdict["result"] == "signed"
        }),
        "the restored operator has signed nothing: {status}"
    );
    ensure!(
        status["quarantine"].is_null(),
        "the quarantine does not end: {status}"
    );
    story.done("its quarantine is over, and it has signed again");
    for node in &mut network.operators {
        if !node.is_running() {
            node.start()?;
        }
    }
    Ok(())
}

/// The ledger that the restored operator has put together is the one of an operator that was never lost.
async fn compare_ledgers(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let mut ledgers = Vec::new();
    for place in [0, LOST] {
        let node = network.operators.get(place).context("an operator")?;
        let file = network.dir.join(format!("ledger-of-{}.json", node.name));
        node.ask(&["export-ledger", text(&file)?]).await?;
        ledgers.push(fs::read_to_string(&file)?);
    }
    ensure!(
        ledgers.first() == ledgers.last(),
        "the restored operator's ledger is another"
    );
    story.done("its exported ledger is the same as another operator's");
    Ok(())
}

fn lost(network: &mut LocalNetwork) -> anyhow::Result<&mut Node> {
    network.operators.get_mut(LOST).context("an operator")
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}

fn has_verdict(status: &Value, is_it: impl Fn(&Value) -> bool) -> bool {
    status["verdicts"]
        .as_array()
        .is_some_and(|verdicts| verdicts.iter().any(is_it))
}

/// The files right in a folder, but for the settings.
fn plain_files(folder: &Path) -> anyhow::Result<Vec<(OsString, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name() != SETTINGS {
            files.push((entry.file_name(), fs::read(entry.path())?));
        }
    }
    Ok(files)
}

/// Puts the administrator's settings into a restored folder, with what is different there.
fn adapt(folder: &Path, settings: &str, others: &[(OsString, Vec<u8>)]) -> anyhow::Result<()> {
    let restored: toml::Table = fs::read_to_string(folder.join("operator.toml"))?.parse()?;
    let mut settings: toml::Table = settings.parse()?;
    for name in ["data_dir", "identity", "scan_from"] {
        let value = restored
            .get(name)
            .with_context(|| format!("the restored settings have no {name}"))?;
        settings.insert(name.to_owned(), value.clone());
    }
    let private = |path: PathBuf, bytes: &[u8]| -> anyhow::Result<()> {
        fs::write(&path, bytes)?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o600),
        )?)
    };
    for (name, bytes) in others {
        private(folder.join(name), bytes)?;
    }
    private(
        folder.join(SETTINGS),
        toml::to_string(&settings)?.as_bytes(),
    )
}
