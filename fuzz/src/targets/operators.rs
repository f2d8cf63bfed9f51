//! What an operator reads from its administrator and from its own files.

use std::{fs, path::Path, sync::LazyLock};

use bitcoin::Network;
use operator::{
    admin::Request,
    backup::{self, Backup, Facts},
    policy::{self, Policy},
    settings::{self, Settings},
};
use tempfile::TempDir;
use threshold::{
    KeyShare,
    seal::{self, Cost},
};

use super::{select, selected};
use crate::{
    Target, Verdict,
    honest::{self, honest},
};

pub(super) const TARGETS: [Target; 3] = [
    Target {
        name: "admin_request",
        run: request,
        honest: honest_requests,
        executions: 100_000,
        memory: 1 << 20,
    },
    Target {
        name: "operator_files",
        run: files,
        honest: honest_files,
        executions: 5_000,
        memory: 4 << 20,
    },
    Target {
        name: "operator_backup",
        run: backup,
        honest: honest_backup,
        executions: 4_000,
        memory: 4 << 20,
    },
];

const PASSPHRASE: &str = "correct horse";

/// A line on the admin socket.
fn request(bytes: &[u8]) -> Verdict {
    match serde_json::from_slice::<Request>(bytes) {
        Ok(request) => {
            let line = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&line).unwrap(), request);
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

fn honest_requests() -> Vec<(&'static str, Vec<u8>)> {
    let line = |request: Request| serde_json::to_vec(&request).unwrap();
    vec![
        ("status", line(Request::Status {})),
        ("ledger", line(Request::Ledger { from: 7 })),
    ]
}

/// Where targets put what can only be read from a file.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().unwrap());

/// Policy, settings and identity.
fn files(bytes: &[u8]) -> Verdict {
    let (which, rest) = select(bytes);
    let path = FOLDER.path().join("file");
    match which % 3 {
        0 => {
            let Ok(text) = std::str::from_utf8(rest) else {
                return Verdict::Refused;
            };
            let parameters = honest().vault.parameters();
            super::verdict(Policy::parse(Path::new("policy.toml"), text, parameters))
        }
        1 => {
            fs::write(&path, rest).unwrap();
            super::verdict(Settings::load(&path))
        }
        _ => {
            let private = FOLDER.path().join("identity");
            if !private.exists() {
                node::files::create_identity(&private).unwrap();
            }
            fs::write(&private, rest).unwrap();
            super::verdict(node::files::load_identity(&private))
        }
    }
}

fn honest_files() -> Vec<(&'static str, Vec<u8>)> {
    let identity = hex::encode(honest::identity(0).secret_bytes().as_slice());
    vec![
        ("policy", selected(0, policy::template().as_bytes())),
        ("settings", selected(1, settings::template().as_bytes())),
        ("identity", selected(2, identity.as_bytes())),
    ]
}

/// The plaintext of a backup, sealed here: only somebody with the passphrase could have made it. What is accepted fits
/// together, and is the operator's own if its share is.
fn backup(bytes: &[u8]) -> Verdict {
    let path = FOLDER.path().join("backup");
    let sealed = seal::seal_at(Cost::Fast, bytes, PASSPHRASE, backup::PURPOSE).unwrap();
    fs::write(&path, sealed).unwrap();
    let Ok(read) = backup::read(&path, PASSPHRASE) else {
        return Verdict::Refused;
    };
    let share = read.share.to_secret_bytes().unwrap();
    if share == honest().shares[0].to_secret_bytes().unwrap() {
        assert_eq!(read.facts.signer, honest::signer(0));
        assert_eq!(read.facts.group_key, read.share.group().group_key());
    }
    assert_eq!(read.identity.public(), read.facts.identity);
    Verdict::Accepted
}

fn honest_backup() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest();
    let share = honest.shares[0].to_secret_bytes().unwrap();
    let share = KeyShare::from_secret_bytes(&share).unwrap();
    let (group, vault) = (share.group(), &honest.vault);
    let facts = Facts {
        created_ms: 1_700_000_000_000,
        version: "0.1.0".to_owned(),
        name: "operator-0".to_owned(),
        identity: honest::identity(0).public(),
        signer: honest::signer(0),
        network: Network::Regtest,
        group_key: group.group_key(),
        epoch: group.epoch(),
        threshold: group.threshold(),
        signers: group.signers().len(),
        roster_hash: honest::roster().hash(),
        parameters_hash: vault.parameters().hash(),
        vault: Some(vault.id()),
        genesis_height: Some(101),
    };
    let made = Backup {
        facts,
        identity: honest::identity(0),
        share,
    };
    let path = FOLDER.path().join("honest-backup");
    let _ = fs::remove_file(&path);
    backup::write(&path, &made, PASSPHRASE, Cost::Fast).unwrap();
    let sealed = fs::read(&path).unwrap();
    let plaintext = seal::open(&sealed, PASSPHRASE, backup::PURPOSE).unwrap();
    vec![("backup", plaintext.to_vec())]
}
