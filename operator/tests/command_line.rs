//! The command as people and programs meet it, without a network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use threshold::seal::{self, Cost};

fn operator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drawbridge-operator"))
        .args(arguments)
        .env_remove("DRAWBRIDGE_OPERATOR_SETTINGS")
        .env("DRAWBRIDGE_PASSPHRASE", "correct horse")
        .env("DRAWBRIDGE_BACKUP_PASSPHRASE", "another horse")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The reason that a command gives for failing, which must be the same with and without --json.
fn failure(arguments: &[&str]) -> String {
    let plain = operator(arguments);
    assert_eq!(plain.status.code(), Some(1), "{arguments:?}");
    assert!(plain.stdout.is_empty());
    let words = String::from_utf8(plain.stderr).unwrap();
    let output = operator(&[arguments, &["--json"]].concat());
    let message = json(&output.stderr)["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(words.trim_end(), format!("error: {message}"));
    message
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn init_makes_a_private_folder_once_and_show_prints_its_entry() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("operator");
    let made = operator(&["init", text(&folder), "--json"]);
    assert!(made.status.success());
    for (name, mode) in [("", 0o700), ("identity", 0o600), ("operator.toml", 0o600)] {
        let found = fs::metadata(folder.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
    let identity = fs::read(folder.join("identity")).unwrap();
    assert!(failure(&["init", text(&folder)]).contains("nothing was changed"));
    assert_eq!(fs::read(folder.join("identity")).unwrap(), identity);

    let settings = folder.join("operator.toml");
    let shown = operator(&["show", "--settings", text(&settings), "--json"]);
    assert_eq!(json(&shown.stdout)["key"], json(&made.stdout)["key"]);
    fs::set_permissions(folder.join("identity"), fs::Permissions::from_mode(0o640)).unwrap();
    let open = failure(&["show", "--settings", text(&settings)]);
    assert!(open.contains("chmod 600"), "{open}");
}

#[test]
fn a_command_for_a_running_operator_says_when_none_is_running() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("operator");
    assert!(operator(&["init", text(&folder)]).status.success());
    let settings = folder.join("operator.toml");
    let ledger = dir.path().join("ledger.json");
    for arguments in [
        vec!["status", "-s", text(&settings)],
        vec!["export-ledger", text(&ledger), "-s", text(&settings)],
    ] {
        let reason = failure(&arguments);
        assert!(reason.contains("no operator is running"), "{reason}");
    }
    assert!(!ledger.exists());
}

#[test]
fn what_is_wrong_with_a_backup_is_said_and_nothing_is_laid_out() {
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("backup"), dir.path().join("restored"));
    let seal = |passphrase: &str, purpose: &str| {
        seal::seal_at(Cost::Fast, b"\x07 not of this version", passphrase, purpose).unwrap()
    };
    let whole = seal("another horse", "operator-backup");
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    let mut later = whole.clone();
    later[4] = 9;
    for (bytes, reason) in [
        (seal("whose horse", "operator-backup"), "wrong passphrase"),
        (
            seal("another horse", "wallet"),
            "for \"wallet\", not for \"operator-backup\"",
        ),
        (whole[..whole.len() - 1].to_vec(), "truncated"),
        (damaged, "damaged"),
        (later, "version 9 is unknown"),
        (b"something else altogether".to_vec(), "not a sealed file"),
        (whole, "backup format 7 is unknown"),
    ] {
        fs::write(&file, bytes).unwrap();
        for arguments in [
            vec!["verify-backup", text(&file)],
            vec!["restore", text(&file), text(&folder)],
        ] {
            let said = failure(&arguments);
            assert!(said.contains(reason), "{said}, not {reason}");
        }
        assert!(!folder.exists());
    }
}
