//! A second coordinator lies to every operator in every way it knows ([`crate::liar`]), as a process of its own;
//! then the honest one goes on with the same operators.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Stdio};

use anyhow::{Context as _, ensure};
use bitcoin::{Address, Amount, secp256k1};
use ledger::AccountSecret;
use protocol::api::DepositAddressRequest;
use rand::rngs::OsRng;
use tokio::process::Command;

use super::{Holding, Story};
use crate::{
    liar::settings::Settings,
    network::{Extras, LocalNetwork, binary},
};

/// Two liars, and fees at which a drip is possible.
pub(super) const EXTRAS: Extras = Extras {
    coordinators: 2,
    tight_fees: true,
    crashes: None,
    small_disks: None,
    max_operations: None,
    quick_bumps: false,
    nonce_pool: false,
};
/// What the liar's accomplice deposits.
const DEPOSIT: u64 = 400_000;
/// The liar's folder, as the roster names it.
const LIAR: &str = "coordinator-2";
const SECOND: &str = "coordinator-3";

/// A user who will sign whatever the liar wants; its first deposit is an honest one.
pub(super) async fn accomplice(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<Vec<Holding>> {
    let secret = AccountSecret::generate(&mut OsRng);
    let (refund, _) =
        secp256k1::Keypair::new(&secp256k1::Secp256k1::new(), &mut OsRng).x_only_public_key();
    let address = secret.public().to_address(network.parameters.network);
    let offered = network
        .client
        .deposit_address(&DepositAddressRequest {
            account: address.clone(),
            refund_key: refund.to_string(),
        })
        .await?;
    let pay_to: Address = offered.address.parse::<Address<_>>()?.assume_checked();
    network
        .bitcoind
        .fund(&pay_to, Amount::from_sat(DEPOSIT))
        .await?;
    write_settings(network, &secret)?;
    story.done(format!("mallory deposits {DEPOSIT} sat to {pay_to}"));
    Ok(vec![Holding {
        name: "mallory",
        address,
        sats: DEPOSIT.saturating_sub(network.parameters.deposit_fee.to_sat()),
    }])
}

fn write_settings(network: &LocalNetwork, secret: &AccountSecret) -> anyhow::Result<()> {
    let roster = node::files::load_roster(&network.dir.join("roster.toml"))?;
    let listen = |name: &str| -> anyhow::Result<Vec<String>> {
        let member = roster.members().find(|member| member.name == name);
        Ok(member.context("no such coordinator")?.addresses.clone())
    };
    let pages = network
        .operators
        .iter()
        .map(|operator| (operator.name.clone(), operator.pages.clone()))
        .collect();
    let coordinator: toml::Table =
        fs::read_to_string(network.dir.join("coordinator-1/settings.toml"))?.parse()?;
    let keys = coordinator
        .get("keys")
        .and_then(toml::Value::as_str)
        .context("a coordinator without proof keys")?;
    let settings = Settings {
        roster: "../roster.toml".into(),
        parameters: "../vault.toml".into(),
        keys: keys.into(),
        identity: "data/identity".into(),
        listen: listen(LIAR)?,
        second_identity: PathBuf::from("..").join(SECOND).join("data/identity"),
        second_listen: listen(SECOND)?,
        accomplice: hex::encode(secret.to_bytes()),
        pages,
        caps: EXTRAS.caps(),
        bitcoind: network.bitcoind.settings(),
    };
    let path = settings_path(network);
    fs::write(&path, toml::to_string(&settings)?)?;
    // A secret is in it.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn settings_path(network: &LocalNetwork) -> PathBuf {
    network.dir.join(LIAR).join("settings.toml")
}

/// Where the liar's table is, in JSON.
pub fn table(network: &LocalNetwork) -> PathBuf {
    network.dir.join("lies.json")
}

/// The liar's run, from start to end.
pub(super) async fn lies(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    story.doing("a lying coordinator tells the operators every lie it knows (about two minutes)");
    let log = network.dir.join("logs/liar.log");
    let output = Command::new(binary("drawbridge-liar")?)
        .arg("--settings")
        .arg(settings_path(network))
        .arg("--json")
        .arg(table(network))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log)?)
        .kill_on_drop(true)
        .spawn()?
        .wait_with_output()
        .await?;
    story.tell(&String::from_utf8_lossy(&output.stdout));
    ensure!(
        output.status.success(),
        "the liar ended with {}; its log is {}",
        output.status,
        log.display()
    );
    story.done("every lie was refused by every operator, and left them as they were");
    Ok(())
}
