//! The `drawbridge` command as a user runs it: exit codes, error lines, JSON.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

struct Setting {
    _dir: tempfile::TempDir,
    wallet: PathBuf,
}

impl Setting {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wallet = dir.path().join("w");
        Self { _dir: dir, wallet }
    }

    fn with_key() -> Self {
        let setting = Self::new();
        let output = setting.run("pass", &["new-key", "--network", "regtest"]);
        assert!(output.status.success(), "{output:?}");
        setting
    }

    fn run(&self, passphrase: &str, arguments: &[&str]) -> Output {
        self.run_at("http://127.0.0.1:1", passphrase, arguments)
    }

    fn run_at(&self, coordinator: &str, passphrase: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_drawbridge"))
            .env_clear()
            .env("DRAWBRIDGE_PASSPHRASE", passphrase)
            .arg("--wallet")
            .arg(&self.wallet)
            .args(["--coordinator", coordinator])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The code of a failed command, from its JSON, after the plain form was checked.
    fn code(&self, passphrase: &str, arguments: &[&str]) -> String {
        let plain = self.run(passphrase, arguments);
        let line = String::from_utf8(plain.stderr).unwrap();
        assert_eq!(plain.status.code(), Some(1), "{line}");
        assert!(
            line.starts_with("error: ") && line.trim_end().lines().count() == 1,
            "{line}"
        );
        assert!(plain.stdout.is_empty());
        let output = self.run(passphrase, &[&["--json"], arguments].concat());
        error_code(&output)
    }
}

fn error_code(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    error["error"]["code"].as_str().unwrap().to_owned()
}

fn reply(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

const TXID: &str = "9a3e000000000000000000000000000000000000000000000000000000000077";

#[test]
fn a_new_key_prints_account_and_refund_key_and_is_not_overwritten() {
    let setting = Setting::new();
    let made = reply(&setting.run("pass", &["new-key", "--network", "regtest", "--json"]));
    let account = made["account"].as_str().unwrap();
    assert!(account.starts_with("zkbcrt1"));
    assert_eq!(made["refund_key"].as_str().unwrap().len(), 64);
    assert_eq!(
        reply(&setting.run("", &["address", "--json"]))["account"],
        account
    );
    let plain = setting.run("", &["address"]);
    assert_eq!(String::from_utf8(plain.stdout).unwrap().trim_end(), account);

    let before = fs::read(setting.wallet.join("wallet.key")).unwrap();
    let code = setting.code("pass", &["new-key", "--network", "regtest"]);
    assert_eq!(code, "key_file_exists");
    assert_eq!(fs::read(setting.wallet.join("wallet.key")).unwrap(), before);
}

#[test]
fn each_mistake_has_its_own_code() {
    let setting = Setting::new();
    assert_eq!(setting.code("pass", &["balance"]), "wallet_missing");
    assert_eq!(setting.code("pass", &["new-key"]), "no_network");
    assert_eq!(
        setting.code("", &["new-key", "--network", "regtest"]),
        "empty_passphrase"
    );

    let setting = Setting::with_key();
    let to = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
    let withdraw = |to, amount| setting.code("pass", &["withdraw", "--to", to, "--amount", amount]);
    assert_eq!(
        setting.code("wrong", &["deposit-address"]),
        "wrong_passphrase"
    );
    assert_eq!(
        setting.code("pass", &["deposit-address"]),
        "coordinator_unreachable"
    );
    assert_eq!(
        setting.code("pass", &["balance", "--network", "signet"]),
        "wrong_network"
    );
    assert_eq!(
        withdraw("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "5000"),
        "wrong_network"
    );
    assert_eq!(withdraw(to, "293"), "below_dust");
    assert_eq!(withdraw(to, "5000"), "coordinator_unreachable");
    assert_eq!(withdraw("x", "5000"), "bad_bitcoin_address");
    let program = bitcoin::WitnessProgram::new(bitcoin::WitnessVersion::V2, &[2; 32]).unwrap();
    let future = bitcoin::Address::from_witness_program(program, bitcoin::Network::Regtest);
    assert_eq!(withdraw(&future.to_string(), "5000"), "non_standard_script");
    assert_eq!(
        setting.code("pass", &["transfer", "--to", "zkbcrt1x", "--amount", "1"]),
        "bad_account_address"
    );
    assert_eq!(
        setting.code("pass", &["import-descriptor"]),
        "no_deposit_address"
    );
    let refund = [
        "refund",
        "--outpoint",
        &format!("{TXID}:0"),
        "--to",
        to,
        "--fee-rate",
        "1",
    ];
    let cookie = ["--cookie-file", "/nonexistent/.cookie"];
    assert_eq!(
        setting.code("pass", &[&refund[..], &cookie].concat()),
        "bitcoind_unreachable"
    );
}

#[test]
fn a_truncated_key_file_is_told_from_a_wrong_passphrase() {
    let setting = Setting::with_key();
    let path = setting.wallet.join("wallet.key");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(
        setting.code("pass", &["deposit-address"]),
        "key_file_truncated"
    );
    fs::write(
        &path,
        [&whole[..whole.len() - 1], &[!whole[whole.len() - 1]]].concat(),
    )
    .unwrap();
    assert_eq!(
        setting.code("pass", &["deposit-address"]),
        "key_file_damaged"
    );
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let setting = Setting::with_key();
    for arguments in [
        &["transfer", "--to", "x"][..],
        &["transfer", "--to", "x", "--amount", "-1"],
        &["wait", "xyz"],
        &["--vault-id", "12", "balance"],
        &["refund", "--outpoint", "x"],
        &["no-such-command"],
    ] {
        assert_eq!(
            setting.run("pass", arguments).status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
}

#[test]
fn every_command_has_an_example_in_its_help() {
    let setting = Setting::new();
    for command in [
        "new-key",
        "deposit-address",
        "deposits",
        "transfer",
        "withdraw",
        "wait",
        "refund",
        "import-descriptor",
    ] {
        let help = setting.run("", &[command, "--help"]);
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains(&format!("drawbridge {command}")), "{help}");
    }
    let help = String::from_utf8(setting.run("secret-word", &["--help"]).stdout).unwrap();
    assert!(!help.contains("secret-word"));
}

#[test]
fn a_passphrase_file_is_read_up_to_its_first_line_end() {
    let setting = Setting::with_key();
    let file = setting.wallet.join("passphrase");
    for text in ["pass", "pass\n", "pass\r\n"] {
        fs::write(&file, text).unwrap();
        let code = setting.code("", &["deposit-address", "--passphrase-file", path(&file)]);
        assert_eq!(code, "coordinator_unreachable", "{text:?}");
    }
    let code = setting.code(
        "pass",
        &["deposit-address", "--passphrase-file", "/nonexistent"],
    );
    assert_eq!(code, "passphrase_file");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_problem_document_keeps_its_code() {
    let problem = json!({
        "type": "/problems/too_many_requests", "title": "Too many requests", "status": 429,
        "detail": "wait a minute", "code": "too_many_requests",
    });
    let router = axum::Router::new().fallback(async move || {
        (
            axum::http::StatusCode::TOO_MANY_REQUESTS,
            axum::Json(problem),
        )
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let asked = tokio::task::spawn_blocking(move || {
        let setting = Setting::with_key();
        setting.run_at(&url, "pass", &["deposits", "--json"])
    });
    assert_eq!(error_code(&asked.await.unwrap()), "too_many_requests");
}
