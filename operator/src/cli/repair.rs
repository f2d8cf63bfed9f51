//! `repair`: for the operator that has lost its share; `repair approve`: for those that are to help it.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use operator::{admin::Request, repair::Candidate};
use serde_json::{Value, json};

use super::{Own, Reply};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Approve that the holder of an operator's new identity key gets that operator's key share, at this epoch.
    ///
    /// Ask the operator's people on another way than this network whether the key is theirs: whoever has it gets a
    /// share of the vault.
    Approve {
        /// The operator's name in the roster, or its new key.
        operator: String,
        #[command(flatten)]
        own: Own,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn repair(own: &Own) -> anyhow::Result<Reply> {
    own.ask(&Request::Repair {})?;
    Ok(Reply {
        text: "The repair has begun. It goes on once the administrators of as many operators as sign have approved this \
               operator's key; 'status' shows who has not. A refresh must follow."
            .to_owned(),
        json: json!({ "begun": true }),
    })
}

pub(super) fn approve(own: &Own, operator: &str, yes: bool) -> anyhow::Result<Reply> {
    let operator = operator.to_owned();
    let shown = candidate(own.ask(&Request::RepairCandidate { operator })?)?;
    if !yes && !confirm(&shown)? {
        bail!("nothing was approved");
    }
    let answer = own.ask(&Request::RepairApprove {
        key: shown.key.clone(),
        epoch: shown.epoch,
    })?;
    let approved = candidate(answer.clone())?;
    Ok(Reply {
        text: format!(
            "{}\nApproved until the next refresh, which should follow the repair soon.",
            words(&approved)
        ),
        json: answer,
    })
}

fn candidate(answer: Value) -> anyhow::Result<Candidate> {
    serde_json::from_value(answer)
        .context("the running operator is another version than this command")
}

fn words(candidate: &Candidate) -> String {
    let Candidate {
        name,
        key,
        founding_key,
        signer,
        epoch,
        ..
    } = candidate;
    format!(
        "operator      {name}\nnew key       {key}\nfounding key  {founding_key}\nsigner        {signer}\nepoch         {epoch}"
    )
}

/// Shows whom it is about, and asks.
fn confirm(candidate: &Candidate) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask at: look at the key, and run this with --yes");
    }
    let mut error = io::stderr().lock();
    writeln!(error, "{}", words(candidate))?;
    write!(
        error,
        "The holder of the new key will get this operator's share. Approve? Type yes: "
    )?;
    error.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
