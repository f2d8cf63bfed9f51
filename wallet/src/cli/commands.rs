//! One function a command: asks the library, and words the reply.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Amount, Network};
use chain::{BitcoinRpc, RpcSettings};
use ledger::AccountKey;
use protocol::api::Page;
use protocol::parameters::Parameters;
use serde_json::{Value, json};
use wallet::wait::status_name;
use wallet::{
    Client, Folder, Identity, RefundOrder, Request, SendOptions, Sent, Target, Wallet, account,
    vault, wait,
};

use super::args::{Arguments, Command, Common, RefundArguments, Send};
use super::error::CliError;
use super::progress::Display;
use super::{Reply, passphrase};

/// Longest file of vault parameters.
const MAX_PARAMETERS_BYTES: u64 = 64 * 1024;

/// Runs one command.
pub async fn execute(arguments: &Arguments) -> Result<Reply, CliError> {
    let common = &arguments.common;
    match &arguments.command {
        Command::NewKey => new_key(common),
        Command::Address => address(common),
        Command::DepositAddress => deposit_address(common).await,
        Command::Deposits { limit, after } => deposits(common, *limit, after.clone()).await,
        Command::Balance => balance(common).await,
        Command::Transfer { to, send } => {
            let wallet = open(common)?;
            let client = client(common)?;
            let sent = wallet
                .transfer(&client, to, send.amount, options(send))
                .await?;
            Ok(accepted("transfer", to, &sent))
        }
        Command::Withdraw { to, send } => {
            let wallet = open(common)?;
            let client = client(common)?;
            let sent = wallet
                .withdraw(&client, to, send.amount, options(send))
                .await?;
            Ok(accepted("withdrawal", to, &sent))
        }
        Command::Wait {
            request,
            target,
            timeout,
        } => {
            let timeout = Duration::from_secs(*timeout);
            wait_for(common, *request, (*target).into(), timeout).await
        }
        Command::Status => status(common).await,
        Command::Refund(arguments) => refund(common, arguments).await,
        Command::ImportDescriptor {
            address,
            show_secret,
        } => import_descriptor(common, address.as_deref(), *show_secret),
    }
}

fn new_key(common: &Common) -> Result<Reply, CliError> {
    let network = common.network.ok_or(CliError::NoNetwork)?;
    let dir = folder_path(common)?;
    // Ask for nothing when it would be in vain.
    let key_file = dir.join(wallet::key_file::KEY_FILE);
    if key_file.exists() {
        return Err(wallet::KeyFileError::Exists(key_file).into());
    }
    let passphrase = passphrase::choose(common.passphrase_file.as_deref())?;
    let wallet = Wallet::create(dir, &passphrase, network)?;
    let (account, refund_key) = (wallet.address(), wallet.refund_key());
    let path = key_file.display();
    Ok(Reply {
        text: format!(
            "account     {account}\nrefund key  {refund_key}\nkey file    {path}\n\n\
             Without the key file and its passphrase the money is lost: back up the folder."
        ),
        json: json!({
            "network": network.to_string(),
            "account": account,
            "refund_key": refund_key.to_string(),
            "key_file": path.to_string(),
        }),
    })
}

fn address(common: &Common) -> Result<Reply, CliError> {
    let identity = identity(common)?;
    Ok(Reply {
        text: identity.account.clone(),
        json: json!({ "network": identity.network.to_string(), "account": identity.account }),
    })
}

async fn deposit_address(common: &Common) -> Result<Reply, CliError> {
    let wallet = open(common)?;
    let deposit = wallet.deposit_address(&client(common)?).await?;
    let terms = &deposit.terms;
    let text = format!(
        "{}\n\n\
         vault            {}\naccount          {}\nsmallest deposit {} sat (less is not credited)\n\
         deposit fee      {} sat\nrefund after     {} blocks, with 'drawbridge refund'\n\
         descriptor       {}\n\n\
         Derived here and equal to the coordinator's. Backed up in {}; keep a copy of the folder.",
        deposit.address,
        terms.vault_id,
        terms.account,
        terms.min_deposit_sat,
        terms.deposit_fee_sat,
        terms.refund_delay_blocks,
        deposit.descriptor,
        wallet.folder().path().display(),
    );
    Ok(Reply {
        text,
        json: value(&deposit.document()),
    })
}

async fn deposits(common: &Common, limit: u16, after: Option<String>) -> Result<Reply, CliError> {
    let account = identity(common)?.account;
    let page = Page {
        limit: Some(usize::from(limit)),
        after,
        account: Some(account),
    };
    let list = client(common)?.deposits(&page).await?;
    let mut text = String::new();
    for deposit in &list.items {
        let credited = deposit
            .credited_sat
            .map_or("too small".to_owned(), |sat| format!("{sat} sat"));
        let status = status_name(Some(deposit.status));
        let reason = deposit.reason.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "{}  {} sat, credited {credited}  {status} {reason}",
            deposit.outpoint, deposit.value_sat
        );
    }
    if list.items.is_empty() {
        text.push_str("no deposits seen");
    }
    if let Some(next) = &list.next {
        let _ = writeln!(text, "more with: --after {next}");
    }
    Ok(Reply {
        text: clean(&text),
        json: value(&list),
    })
}

async fn balance(common: &Common) -> Result<Reply, CliError> {
    let Identity {
        network,
        account: address,
    } = identity(common)?;
    let key = AccountKey::from_address(network, &address).map_err(|_| CliError::Identity)?;
    let Some(found) = account::read(&client(common)?, &key, &address).await? else {
        return Ok(Reply {
            text: "0 sat (this account has received nothing yet)".to_owned(),
            json: json!({ "account": address, "index": null, "balance_sat": 0, "pending": [] }),
        });
    };
    let mut text = format!(
        "{} sat after batch {} (account {}, nonce {}; proof checked)",
        found.balance.to_sat(),
        found.sequence,
        found.index,
        found.nonce,
    );
    for id in &found.pending {
        let _ = write!(text, "\nwaits: {id}");
    }
    Ok(Reply {
        text: clean(&text),
        json: json!({
            "account": address,
            "index": found.index.0,
            "balance_sat": found.balance.to_sat(),
            "nonce": found.nonce,
            "sequence": found.sequence,
            "digest": found.digest,
            "pending": found.pending,
        }),
    })
}

fn options(send: &Send) -> SendOptions {
    SendOptions {
        fee: send.fee,
        valid_for: send.valid_for,
    }
}

fn accepted(kind: &str, to: &str, sent: &Sent) -> Reply {
    let Sent {
        id,
        operation,
        document,
    } = sent;
    let last_valid = operation.last_valid().map_or(0, |sequence| sequence.0);
    Reply {
        text: format!(
            "{kind} of {} sat to {to}, fee {} sat, valid until batch {last_valid}\n{id}\n\n\
             Accepted ({}). Follow it with: drawbridge wait {id}",
            operation.amount().to_sat(),
            operation.fee().to_sat(),
            status_name(Some(document.status)),
        ),
        json: value(document),
    }
}

async fn wait_for(
    common: &Common,
    request: Request,
    target: Target,
    timeout: Duration,
) -> Result<Reply, CliError> {
    let client = client(common)?;
    let mut display = Display::new(common.json);
    let waited = wait::wait(&client, request, target, timeout, |seen| display.show(seen)).await;
    display.finish();
    let found = waited?;
    let mut text = format!("{request} is {}", status_name(found.status));
    let start = found.steps.first().map_or(0, |step| step.at_ms);
    for step in &found.steps {
        let seconds = Duration::from_millis(step.at_ms.saturating_sub(start)).as_secs_f64();
        let _ = write!(
            text,
            "\n  {:<10} +{seconds:.1} s",
            status_name(Some(step.status))
        );
    }
    if let Some(txid) = &found.txid {
        let _ = write!(text, "\ntransaction {txid}");
    }
    Ok(Reply {
        text: clean(&text),
        json: value(&found),
    })
}

async fn status(common: &Common) -> Result<Reply, CliError> {
    let client = client(common)?;
    let (status, found, fees) = (
        client.status().await?,
        client.vault().await?,
        client.fees().await?,
    );
    let pinned = match Folder::open(folder_path(common)?) {
        Ok(folder) => vault::pinned(&folder)?,
        Err(_) => None,
    };
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none yet".to_owned());
    let mut text = format!(
        "coordinator  {} (version {}): {}, {}\nnetwork      {}, height {}\n\
         vault        {}, {} of {} operators sign, {} connected\ngroup key    {}\n\
         treasury     {} sat for a supply of {} sat\nsequence     {}, {} request(s) wait\n\
         fees         deposit {} sat, transfer {} sat, withdrawal {} sat; smallest deposit {} sat\n\
         pinned vault {}",
        client.url(),
        status.version,
        if status.ready { "ready" } else { "NOT READY" },
        status.phase,
        found.network,
        status.height,
        or_none(&found.vault_id),
        found.threshold,
        found.operators,
        status.connected.len(),
        or_none(&found.group_key),
        found.treasury_sat,
        found.supply_sat,
        status.sequence,
        status.queued,
        fees.deposit_fee_sat,
        fees.transfer_fee_sat,
        fees.withdraw_fee_sat,
        fees.min_deposit_sat,
        pinned
            .as_ref()
            .map_or("none yet".to_owned(), |pinned| pinned.vault_id.to_string()),
    );
    if let Some(alarm) = &status.alarm {
        let _ = write!(text, "\nALARM        {alarm}");
    }
    let json = json!({ "status": status, "vault": found, "fees": fees, "pinned": pinned });
    Ok(Reply {
        text: clean(&text),
        json,
    })
}

async fn refund(common: &Common, arguments: &RefundArguments) -> Result<Reply, CliError> {
    let wallet = open(common)?;
    let url = arguments
        .bitcoind
        .clone()
        .unwrap_or_else(|| default_bitcoind(wallet.network()));
    let settings = RpcSettings {
        url,
        cookie_file: arguments.cookie_file.clone(),
        user: arguments.rpc_user.clone(),
        password: arguments.rpc_password.clone(),
    };
    let bitcoind = BitcoinRpc::new(&settings)?;
    let order = RefundOrder {
        outpoint: arguments.outpoint,
        to: arguments.to.clone(),
        fee_rate: arguments.fee_rate,
    };
    let refund = if arguments.dry_run {
        wallet.prepare_refund(&bitcoind, &order).await?
    } else {
        wallet.refund(&bitcoind, &order).await?.0
    };
    let hex = serialize_hex(&refund.transaction);
    let txid = refund.transaction.compute_txid();
    let sats = |amount: Amount| amount.to_sat();
    let text = if arguments.dry_run {
        let when = match refund.blocks_missing {
            0 => "Not sent. The time-lock is over: nodes take it now.".to_owned(),
            missing => format!("Not sent. Nodes take it in {missing} more block(s)."),
        };
        format!(
            "{hex}\n\n{when}\npays {} sat, fee {} sat",
            sats(refund.amount),
            sats(refund.fee)
        )
    } else {
        format!(
            "sent {txid}\npays {} sat to {}, fee {} sat",
            sats(refund.amount),
            order.to,
            sats(refund.fee)
        )
    };
    Ok(Reply {
        text,
        json: json!({
            "txid": txid.to_string(),
            "transaction": hex,
            "sent": !arguments.dry_run,
            "amount_sat": sats(refund.amount),
            "fee_sat": sats(refund.fee),
            "confirmations": refund.confirmations,
            "blocks_missing": refund.blocks_missing,
        }),
    })
}

fn import_descriptor(
    common: &Common,
    address: Option<&str>,
    show_secret: bool,
) -> Result<Reply, CliError> {
    let wallet = open(common)?;
    let mut backups = wallet.backups()?;
    backups.retain(|backup| address.is_none_or(|address| address == backup.address));
    if backups.is_empty() {
        return Err(CliError::NoBackup(if address.is_some() {
            " of this name"
        } else {
            ""
        }));
    }
    let mut text = String::new();
    let mut items = Vec::new();
    for backup in &backups {
        let import = wallet.core_import(backup)?;
        let _ = writeln!(text, "{}", *import.instructions(show_secret));
        let secret = show_secret.then(|| import.secret_descriptor.to_string());
        items.push(json!({
            "address": import.address,
            "refund_delay_blocks": import.refund_delay_blocks,
            "descriptor": import.public_descriptor,
            "secret_descriptor": secret,
        }));
    }
    Ok(Reply {
        text,
        json: json!({ "items": items }),
    })
}

fn client(common: &Common) -> Result<Client, CliError> {
    Ok(Client::new(&common.coordinator)?)
}

fn folder_path(common: &Common) -> Result<PathBuf, CliError> {
    match &common.wallet {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::home_dir()
            .ok_or(CliError::NoHome)?
            .join(".drawbridge")),
    }
}

/// Network and account, for commands that sign nothing.
fn identity(common: &Common) -> Result<Identity, CliError> {
    let identity = Folder::open(folder_path(common)?)?.identity()?;
    check_network(common, identity.network)?;
    Ok(identity)
}

fn open(common: &Common) -> Result<Wallet, CliError> {
    let dir = folder_path(common)?;
    // A missing or open folder is told before a passphrase is asked for.
    Folder::open(&dir)?;
    let passphrase = passphrase::ask(common.passphrase_file.as_deref())?;
    let mut wallet = Wallet::open(dir, &passphrase)?;
    check_network(common, wallet.network())?;
    if let Some(vault_id) = common.vault_id {
        wallet = wallet.expecting_vault(vault_id);
    }
    if let Some(path) = &common.vault_parameters {
        wallet = wallet.expecting_parameters(parameters(path)?);
    }
    Ok(wallet)
}

fn check_network(common: &Common, wallet: Network) -> Result<(), CliError> {
    match common.network {
        Some(asked) if asked != wallet => Err(CliError::OtherNetwork { wallet, asked }),
        _ => Ok(()),
    }
}

fn parameters(path: &Path) -> Result<Parameters, CliError> {
    let wrong = |reason: String| CliError::Parameters {
        path: path.to_owned(),
        reason,
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_PARAMETERS_BYTES).read_to_string(&mut text))
        .map_err(|error| wrong(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

fn default_bitcoind(network: Network) -> String {
    let port = match network {
        Network::Bitcoin => 8332,
        Network::Testnet => 18332,
        Network::Testnet4 => 48332,
        Network::Signet => 38332,
        Network::Regtest => 18443,
    };
    format!("http://127.0.0.1:{port}")
}

/// Text with a coordinator's words in it, without what could rewrite a terminal.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}

/// A document as JSON; these types always have one.
fn value(document: &impl serde::Serialize) -> Value {
    serde_json::to_value(document).unwrap_or(Value::Null)
}
