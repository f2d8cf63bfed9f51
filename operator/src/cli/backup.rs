//! `backup`, `verify-backup` and `restore`. None of them needs a running operator, and none touches its database
//! while it runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bitcoin::Network;
use clap::Args;
use node::{certificate, clock, files, history};
use operator::{
    admin::{self, AdminError, Request},
    backup::{self, Backup, Facts},
    keys::KeyFiles,
    passphrase::{self, Source},
    restore,
    run::{self, DATABASE},
    settings::Settings,
    status::Status,
};
use protocol::{parameters::Parameters, roster::Roster};
use serde_json::json;
use threshold::seal::Cost;

use super::{Own, Reply};

const HOUR_MS: u64 = 3_600_000;

/// The passphrase of a backup.
#[derive(Args)]
pub(super) struct BackupSecret {
    /// A file with the backup's passphrase, readable by its owner only. Without it the passphrase comes from the
    /// variable DRAWBRIDGE_BACKUP_PASSPHRASE, or is asked for.
    #[arg(long, value_name = "FILE")]
    backup_passphrase_file: Option<PathBuf>,
}

impl BackupSecret {
    fn source(&self) -> Source<'_> {
        Source {
            what: "the backup",
            file: self.backup_passphrase_file.as_deref(),
            option: "--backup-passphrase-file",
            variable: passphrase::BACKUP_VARIABLE,
        }
    }
}

/// What is known of the vault beside the key.
#[derive(Default)]
struct Known {
    vault: Option<ledger::VaultId>,
    genesis_height: Option<u32>,
}

pub(super) fn backup(
    own: &Own,
    file: &Path,
    secret: &BackupSecret,
    same_passphrase: bool,
) -> anyhow::Result<Reply> {
    let settings = own.load()?;
    let roster = files::load_roster(&settings.roster)?;
    let parameters = files::load_parameters(&settings.parameters)?;
    settings.check_network(parameters.network)?;
    let identity = files::load_identity(&settings.identity)?;
    let own_passphrase = settings.passphrase().get()?;
    let cost: Cost = settings.sealing.into();
    let keys = KeyFiles::new(settings.data_dir.clone(), own_passphrase.clone(), cost);
    let share = keys
        .load_share()?
        .context("there is no key share yet: key generation has not finished")?;
    let known = known(&settings, &roster, &parameters)?;
    let passphrase = secret.source().choose()?;
    if *passphrase == *own_passphrase && !same_passphrase {
        bail!(
            "this is the passphrase of the node: whoever learns it from the host could open the backup. Choose another \
             one, or give --same-passphrase if that is meant"
        );
    }
    let group = share.group();
    let own_key = identity.public();
    let member = roster.operators.iter().find(|member| member.key == own_key);
    let facts = Facts {
        created_ms: clock::now_ms(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: member.map_or_else(String::new, |member| member.name.clone()),
        identity: own_key,
        signer: share.signer(),
        network: parameters.network,
        group_key: group.group_key(),
        epoch: group.epoch(),
        threshold: group.threshold(),
        signers: group.signers().len(),
        roster_hash: roster.hash(),
        parameters_hash: parameters.hash(),
        vault: known.vault,
        genesis_height: known.genesis_height,
    };
    let made = Backup {
        facts,
        identity,
        share,
    };
    backup::write(file, &made, &passphrase, cost)?;
    // What can't be read back is no backup.
    let read = backup::read(file, &passphrase)?;
    let mut reply = describe(file, &read.facts)?;
    reply.text.push_str(
        "\nWritten and read back. Keep it and its passphrase in two places, both off this host. A refresh of the shares \
         makes it useless: make a new one then.",
    );
    Ok(reply)
}

/// Asks the running operator, or its database if none is running.
fn known(settings: &Settings, roster: &Roster, parameters: &Parameters) -> anyhow::Result<Known> {
    match admin::ask(&settings.data_dir.join(admin::SOCKET), &Request::Status {}) {
        Ok(status) => {
            let status: Status = serde_json::from_value(status)
                .context("the running operator is another version than this command")?;
            let vault = status.vault.as_deref().map(str::parse).transpose();
            Ok(Known {
                vault: vault.ok().flatten(),
                genesis_height: status.followed_from,
            })
        }
        Err(AdminError::NotRunning(_)) if settings.data_dir.join(DATABASE).is_dir() => {
            let store = run::open_store(&settings.data_dir, roster, parameters)?;
            let certificate = certificate::load(&store)?;
            let position = store.get(&history::POSITION, &())?;
            Ok(Known {
                vault: certificate.map(|certificate| certificate.genesis.vault_id()),
                genesis_height: position.map(|position| position.start()),
            })
        }
        Err(AdminError::NotRunning(_)) => Ok(Known::default()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn verify(file: &Path, secret: &BackupSecret) -> anyhow::Result<Reply> {
    let read = backup::read(file, &secret.source().get()?)?;
    let mut reply = describe(file, &read.facts)?;
    reply.text.push_str(
        "\nIt opens, and the share belongs to this signer of this group key. Nothing was changed. Compare the epoch with \
         the one that 'status' shows: after a refresh only a newer backup is of use.",
    );
    Ok(reply)
}

pub(super) fn restore(
    file: &Path,
    folder: &Path,
    secret: &BackupSecret,
    passphrase_file: Option<&Path>,
) -> anyhow::Result<Reply> {
    let read = backup::read(file, &secret.source().get()?)?;
    let node = Source {
        what: "the restored key share",
        file: passphrase_file,
        option: "--passphrase-file",
        variable: passphrase::NODE_VARIABLE,
    };
    let passphrase = node.choose()?;
    // Throw-away networks have throw-away keys.
    let cost = match read.facts.network {
        Network::Regtest => Cost::Fast,
        _ => Cost::Standard,
    };
    restore::restore(&read, folder, passphrase, cost)?;
    let mut reply = describe(file, &read.facts)?;
    reply.text.push_str(&format!(
        "\nRestored into {}. Before it runs: make sure that the old one never starts again; put your policy.toml, the roster, \
         the vault parameters and the verifying key where {}/operator.toml says, and name the own bitcoind there. It fetches \
         certificate and batches from its peers, and signs no batch before its quarantine is over (see 'status'). A pause \
         and what was approved or rejected are not in a backup: decide again.",
        folder.display(),
        folder.display()
    ));
    Ok(reply)
}

fn describe(file: &Path, facts: &Facts) -> anyhow::Result<Reply> {
    let age_h = clock::now_ms().saturating_sub(facts.created_ms) / HOUR_MS;
    let vault = facts
        .vault
        .map_or_else(|| "none yet".to_owned(), |vault| vault.to_string());
    let scan_from = facts
        .genesis_height
        .map_or_else(|| "unknown".to_owned(), |height| height.to_string());
    let text = format!(
        "backup       {}\nmade         {age_h} hours ago, by version {}\noperator     {} ({})\nsigner       {}\n\
         network      {}\nvault        {vault}\ngroup key    {}, {} of {}\nepoch        {}\nroster       {}\n\
         parameters   {}\nfollows from {scan_from}",
        file.display(),
        facts.version,
        facts.name,
        facts.identity,
        facts.signer,
        facts.network,
        facts.group_key,
        facts.threshold,
        facts.signers,
        facts.epoch,
        hex::encode(facts.roster_hash),
        hex::encode(facts.parameters_hash),
    );
    let mut json = serde_json::to_value(facts)?;
    if let Some(object) = json.as_object_mut() {
        object.insert("file".to_owned(), json!(file.display().to_string()));
    }
    Ok(Reply { text, json })
}
