//! Signers that are silent, slow or wrong in round 2, and nodes that die in the middle of it. The faulty operators
//! are processes with their real keys and folders ([`crate::saboteur`]), honest until the vault is open.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, ensure};
use protocol::api::{BlameDocument, BlameList, Page};
use tokio::process::Command;

use super::{STEP, Story};
use crate::{
    network::{LocalNetwork, Node, binary},
    saboteur::{Fault, HELD_BACK},
};

/// Most faulty operators.
const MAX_FAULTY: usize = 4;
/// What the coordinator logs at each attempt.
const REQUESTED: &str = "shares asked for";

/// Operators that signing can do without.
async fn spare(network: &LocalNetwork) -> anyhow::Result<usize> {
    let threshold = usize::from(network.client.vault().await?.threshold);
    Ok(network.operators.len().saturating_sub(threshold))
}

/// How many misbehave: as many as signing can do without, up to [`MAX_FAULTY`].
async fn faulty(network: &LocalNetwork) -> anyhow::Result<usize> {
    let faulty = spare(network).await?.min(MAX_FAULTY);
    ensure!(faulty > 0, "n must exceed t for an operator to misbehave");
    Ok(faulty)
}

/// The first `count` operators misbehave from now on.
async fn turn(network: &mut LocalNetwork, count: usize, fault: Fault) -> anyhow::Result<()> {
    for node in network.operators.iter_mut().take(count) {
        node.stop().await;
        node.set_fault(Some(fault));
        node.start()?;
    }
    until_connected(network).await
}

/// Until the coordinator is connected to every operator that runs.
async fn until_connected(network: &mut LocalNetwork) -> anyhow::Result<()> {
    network
        .wait_for("connections to all operators", STEP, async |network| {
            let Ok(status) = network.client.status().await else {
                return Ok(None);
            };
            let missing = network
                .operators
                .iter_mut()
                .any(|node| node.is_running() && !status.connected.contains(&node.name));
            Ok((!missing).then_some(()))
        })
        .await
}

fn say_who(story: &Story, count: usize, fault: Fault) {
    story.done(format!(
        "operator-1 to operator-{count} ({count}) go on as saboteurs: {}",
        fault.name()
    ));
}

/// Operators misbehave, and everybody takes part.
pub(super) async fn begin(
    network: &mut LocalNetwork,
    fault: Fault,
    story: &Story,
) -> anyhow::Result<()> {
    let count = faulty(network).await?;
    turn(network, count, fault).await?;
    say_who(story, count, fault);
    Ok(())
}

/// Operators misbehave, and so many others are stopped that the first attempt needs all who misbehave.
pub(super) async fn begin_with_no_choice(
    network: &mut LocalNetwork,
    fault: Fault,
    story: &Story,
) -> anyhow::Result<()> {
    begin(network, fault, story).await?;
    let spare = spare(network).await?;
    for node in network.operators.iter_mut().rev().take(spare) {
        node.stop().await;
    }
    story.done(format!(
        "{spare} others are stopped, so that the first attempt needs every saboteur"
    ));
    Ok(())
}

/// One operator holds its answers back, and just as many others run as an attempt needs beside it.
pub(super) async fn begin_alone(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    turn(network, 1, Fault::Silent).await?;
    let spare = spare(network).await?;
    for node in network.operators.iter_mut().rev().take(spare) {
        node.stop().await;
    }
    story.done(format!(
        "operator-1 will be caught in round 2; {spare} others are stopped, so that the first attempt needs it"
    ));
    Ok(())
}

/// So many operators are slow that no attempt can do without one.
pub(super) async fn begin_slow(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let count = spare(network).await?.saturating_add(1);
    turn(network, count, Fault::Slow).await?;
    say_who(story, count, Fault::Slow);
    Ok(())
}

/// The saboteurs of the first attempt are blamed; then the others come back.
pub(super) async fn see_blame(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let count = faulty(network).await?;
    let blamed = network
        .wait_for("blame", STEP, async |network| {
            let blamed = network.client.status().await.map(|status| status.blamed);
            Ok(blamed.ok().filter(|blamed| blamed.len() >= count))
        })
        .await?;
    story.done(format!("blamed, with evidence: {}", blamed.join(", ")));
    start_stopped(network, story)
}

fn start_stopped(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    for node in &mut network.operators {
        if !node.is_running() {
            node.start()?;
        }
    }
    story.done("all others run again");
    Ok(())
}

/// SIGKILL of a signer that has promised and made its shares, before they left.
pub(super) async fn kill_signer(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let log = victim(network)?.log().to_owned();
    network
        .wait_for("a share that is held back", STEP, async |_| {
            Ok((lines_with(&log, HELD_BACK)? > 0).then_some(()))
        })
        .await?;
    victim(network)?.kill().await?;
    story.done(
        "operator-1 killed (SIGKILL) in round 2: its promise is on disk, its shares are lost",
    );
    for node in network.operators.iter_mut().skip(1) {
        if !node.is_running() {
            node.start()?;
        }
    }
    story.done("the others that were stopped run again; operator-1 stays away");
    Ok(())
}

/// The killed signer, on the same folder, as an honest operator.
pub(super) async fn bring_back(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let victim = victim(network)?;
    victim.set_fault(None);
    victim.start()?;
    until_connected(network).await?;
    story.done("operator-1 is back, and honest");
    Ok(())
}

fn victim(network: &mut LocalNetwork) -> anyhow::Result<&mut Node> {
    network.operators.first_mut().context("an operator")
}

/// SIGKILL of the coordinator while signers are at work, then a fresh start.
pub(super) async fn kill_coordinator(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<()> {
    let log = network.coordinator.log().to_owned();
    let before = lines_with(&log, REQUESTED)?;
    network
        .wait_for("a sign request", STEP, async |_| {
            Ok((lines_with(&log, REQUESTED)? > before).then_some(()))
        })
        .await?;
    network.coordinator.kill().await?;
    ensure!(
        lines_with(&log, "batch signed")? == 0,
        "the coordinator was killed too late"
    );
    story.done("coordinator killed (SIGKILL) between its sign request and the aggregation");
    network.coordinator.start()?;
    story.done("coordinator started again");
    Ok(())
}

fn lines_with(log: &Path, what: &str) -> anyhow::Result<usize> {
    let text = std::fs::read_to_string(log)?;
    Ok(text.lines().filter(|line| line.contains(what)).count())
}

/// No batch was signed with an operator that is silent or wrong.
pub(super) async fn see_signers(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let count = faulty(network).await?;
    let batches = network.client.batches(&Page::default()).await?.items;
    for batch in &batches {
        for node in network.operators.iter().take(count) {
            ensure!(
                !batch.signers.contains(&node.name),
                "batch {} names {} as a signer",
                batch.sequence,
                node.name
            );
        }
    }
    story.done("no saboteur is among the signers of any batch");
    Ok(())
}

/// Takes the evidence from the API, as anybody can, and has the command check it.
pub(super) async fn check_evidence(
    network: &LocalNetwork,
    story: &Story,
) -> anyhow::Result<Vec<String>> {
    let url = network.client.url().join("v1/blame")?;
    let list: BlameList = reqwest::get(url.clone()).await?.json().await?;
    let mut items: Vec<BlameDocument> = Vec::new();
    for blame in &list.items {
        let one = format!("{url}/{}", blame.id);
        items.push(reqwest::get(one).await?.error_for_status()?.json().await?);
    }
    let file = network.dir.join("blame.json");
    std::fs::write(&file, serde_json::to_string_pretty(&BlameList { items })?)?;
    let output = Command::new(binary("drawbridge-coordinator")?)
        .arg("check-evidence")
        .arg(&file)
        .arg("--roster")
        .arg(network.dir.join("roster.toml"))
        .stdin(Stdio::null())
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "check-evidence: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<String> = String::from_utf8(output.stdout)?
        .lines()
        .map(str::to_owned)
        .collect();
    let count = faulty(network).await?;
    for node in network.operators.iter().take(count) {
        let start = format!("{} ", node.name);
        ensure!(
            lines.iter().any(|line| line.starts_with(&start)),
            "there is no evidence against {}",
            node.name
        );
    }
    for node in network.operators.iter().skip(count) {
        ensure!(
            list.items.iter().all(|blame| blame.operator != node.name),
            "{} is honest and was blamed",
            node.name
        );
    }
    story.done(format!(
        "check-evidence: {} pieces of evidence hold",
        lines.len()
    ));
    Ok(lines)
}
