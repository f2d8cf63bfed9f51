//! As many key shares as sign are abused together, outside all rules: the treasury goes to a stranger. Nobody can prevent
//! that; every node stops and says so (S14).

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut, Witness,
    absolute::LockTime,
    hashes::Hash as _,
    sighash::{Prevouts, SighashCache},
    taproot,
    transaction::Version,
};
use node::files;
use operator::keys::KeyFiles;
use protocol::vault::VaultKey;
use rand::rngs::OsRng;
use threshold::{
    KeyShare,
    seal::Cost,
    sign::{Message, Package, aggregate, commit, sign},
};

use super::{Story, deep_reorg::restart, until_all_alarmed};
use crate::network::{LocalNetwork, PASSPHRASE};

/// What the thief leaves to the miner.
const FEE: Amount = Amount::from_sat(2_000);

/// Steals the treasury and watches the nodes.
pub(super) async fn steal(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let vault = network.client.vault().await?;
    let needed = usize::from(vault.threshold);
    let mut shares = Vec::new();
    for node in network.operators.iter().take(needed) {
        let folder = node.settings().parent().context("a folder")?.join("data");
        let files = KeyFiles::new(folder, PASSPHRASE.to_owned().into(), Cost::Fast);
        shares.push(files.load_share()?.context("a key share")?);
    }
    let treasury: OutPoint = vault.treasury.context("a treasury")?.parse()?;
    let value = Amount::from_sat(vault.treasury_sat);
    let thief = network.bitcoind.new_address().await?.script_pubkey();
    let roster = files::load_roster(&network.dir.join("roster.toml"))?;
    let theft = theft(&shares, network, roster, treasury, value, thief)?;
    let txid = network.bitcoind.rpc().send_transaction(&theft).await?;
    network.bitcoind.mine(1).await?;
    let alarm = until_all_alarmed(network, &txid.to_string()).await?;
    story.done(format!(
        "{needed} shares sign {txid} outside all rules; all nodes stop: {alarm}"
    ));
    restart(network).await?;
    until_all_alarmed(network, &txid.to_string()).await?;
    ensure!(
        !network.client.is_ready().await.unwrap_or(false),
        "the coordinator says that it is ready"
    );
    for node in &network.operators {
        let cleared = node.ask(&["clear-alarm", "--reason", "let us go on"]).await;
        let refusal = cleared.err().context("the alarm can be cleared")?;
        ensure!(refusal.to_string().contains("the alarm stays"), "{refusal}");
    }
    story.done("the alarm outlives restarts, and can't be cleared while the treasury is gone");
    Ok(())
}

/// A transaction that spends the treasury, signed by these shares.
fn theft(
    shares: &[KeyShare],
    network: &LocalNetwork,
    roster: protocol::roster::Roster,
    treasury: OutPoint,
    value: Amount,
    thief: ScriptBuf,
) -> anyhow::Result<Transaction> {
    let group = shares.first().context("a share")?.group().clone();
    let vault = VaultKey::new(group.clone(), network.parameters.clone(), roster)?;
    let mut transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: treasury,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![TxOut {
            value: value.checked_sub(FEE).context("a treasury above the fee")?,
            script_pubkey: thief,
        }],
    };
    let prevouts = [TxOut {
        value,
        script_pubkey: vault.script_pubkey().clone(),
    }];
    let sighash_type = TapSighashType::Default;
    let sighash = SighashCache::new(&transaction).taproot_key_spend_signature_hash(
        0,
        &Prevouts::All(&prevouts),
        sighash_type,
    )?;
    let message = Message {
        digest: sighash.to_byte_array(),
        tweak: *vault.tweak(),
    };
    let mut commitments = BTreeMap::new();
    let mut nonces = Vec::new();
    for share in shares {
        let (nonce, commitment) = commit(share, 1, &mut OsRng)?;
        nonces.push(nonce);
        commitments.insert(share.signer(), commitment);
    }
    let package = Package {
        messages: vec![message],
        commitments,
    };
    let mut given = BTreeMap::new();
    for (share, nonce) in shares.iter().zip(nonces) {
        given.insert(share.signer(), sign(share, nonce, &package)?);
    }
    let signatures = aggregate(&group, &package, &given)?;
    let signature = taproot::Signature {
        signature: *signatures.first().context("a signature")?,
        sighash_type,
    };
    for input in &mut transaction.input {
        input.witness = Witness::p2tr_key_spend(&signature);
    }
    Ok(transaction)
}
