//! Takes an uncredited deposit back after the time-lock, with no help from the vault.
//!
//! ```text
//! outpoint ──own bitcoind──> amount, script, confirmations ──backup with that script──> descriptor
//!          ──> enough confirmations? ──> refund leaf: <signature> and older(CSV) ──own bitcoind──> network
//! ```

use std::collections::HashMap;

use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{Message, Secp256k1, schnorr};
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::taproot::TapLeafHash;
use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut, Txid,
    Witness, XOnlyPublicKey, absolute, taproot, transaction,
};
use chain::{BitcoinRpc, RpcError};
use miniscript::Descriptor;
use miniscript::descriptor::Tr;

use crate::deposit::BackupError;
use crate::send::{PayeeError, payee as payee_of};
use crate::{DepositBackup, FolderError, Wallet};

/// A higher fee rate is a slip of the keyboard.
pub const MAX_FEE_RATE: FeeRate = FeeRate::from_sat_per_vb_u32(5_000);
/// The lowest rate that nodes relay by default.
pub const MIN_FEE_RATE: FeeRate = FeeRate::BROADCAST_MIN;

/// What to take back and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefundOrder {
    /// The deposit.
    pub outpoint: OutPoint,
    /// A Bitcoin address of the wallet's network.
    pub to: String,
    /// What miners get.
    pub fee_rate: FeeRate,
}

/// A refund that is signed and was not handed to anyone yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// The transaction.
    pub transaction: Transaction,
    /// What miners get.
    pub fee: Amount,
    /// What the address gets.
    pub amount: Amount,
    /// Confirmations that the deposit has.
    pub confirmations: u32,
    /// Blocks until nodes take the transaction; 0 when they do.
    pub blocks_missing: u32,
}

/// Why there is no refund.
#[derive(Debug, thiserror::Error)]
pub enum RefundError {
    /// Spent, or never there.
    #[error(
        "{0} is not unspent on your node's chain; the vault may have credited it ('drawbridge deposits'), or the node is still catching up"
    )]
    NotUnspent(OutPoint),
    /// Pays a script that no saved address has.
    #[error(
        "{outpoint} pays to none of the {known} deposit addresses in this wallet's folder; open the wallet that showed the address, or restore its 'deposits' folder"
    )]
    NotOurs {
        /// As given.
        outpoint: OutPoint,
        /// Number of backups.
        known: usize,
    },
    /// The refund key in the terms is another wallet's.
    #[error("the refund key of this deposit is another wallet's")]
    OtherKey,
    /// Too early.
    #[error("too early: the time-lock needs {missing} more block(s); nothing was sent")]
    Immature {
        /// Blocks missing.
        missing: u32,
    },
    /// The fee rate is out of bounds.
    #[error("the fee rate must be from 1 to {} sat/vB", MAX_FEE_RATE.to_sat_per_vb_ceil())]
    FeeRate,
    /// Nothing would be left.
    #[error("the deposit of {} sat does not cover the fee of {} sat; use a lower --fee-rate", value.to_sat(), fee.to_sat())]
    FeeAboveValue {
        /// The deposit.
        value: Amount,
        /// The fee.
        fee: Amount,
    },
    /// The address can't be paid, or what is left is dust for it.
    #[error(transparent)]
    Payee(#[from] PayeeError),
    /// A saved address is damaged.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A saved address can't be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The descriptor can't be satisfied; the backup is checked before, so this is a bug.
    #[error("the refund leaf cannot be satisfied: {0}")]
    Satisfy(String),
    /// The own bitcoind does not answer, or refuses.
    #[error("your bitcoind does not do it")]
    Rpc(#[from] RpcError),
}

/// The coin that a refund spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds.
    pub value: Amount,
}

/// Blocks until a coin with so many confirmations can be spent after `delay` blocks (BIP-68: a
/// relative lock of n is met in the n-th block after the coin's, which then has n confirmations).
pub fn blocks_missing(delay: u16, confirmations: u32) -> u32 {
    u32::from(delay).saturating_sub(confirmations)
}

impl Wallet {
    /// Signs the refund of `coin`, which pays to the address in `backup`.
    ///
    /// # Errors
    /// [`RefundError`]; the time-lock is not looked at here, nodes refuse what is too early.
    pub fn refund_transaction(
        &self,
        backup: &DepositBackup,
        coin: Coin,
        to: &str,
        fee_rate: FeeRate,
    ) -> Result<Transaction, RefundError> {
        if !(MIN_FEE_RATE..=MAX_FEE_RATE).contains(&fee_rate) {
            return Err(RefundError::FeeRate);
        }
        let derived = backup.derived()?;
        let refund_key = derived.terms.refund;
        if refund_key != self.refund_key() {
            return Err(RefundError::OtherKey);
        }
        let Descriptor::Tr(tr) = &derived.descriptor else {
            return Err(RefundError::Satisfy("not a Taproot descriptor".to_owned()));
        };
        let payee = payee_of(self.network(), to, coin.value)?;
        let sequence = Sequence::from_height(derived.terms.refund_delay);
        let mut transaction = unsigned(coin, payee.script_pubkey(), sequence);
        let leaf = refund_leaf(tr, &refund_key)?;
        let witness = |signature| witness(tr, refund_key, leaf, sequence, signature);

        // Every BIP-340 signature has 64 bytes, so one of any content tells the size.
        let stand_in = schnorr::Signature::from_slice(&[0; 64])
            .map_err(|error| RefundError::Satisfy(error.to_string()))?;
        set_witness(&mut transaction, witness(stand_in)?);
        let fee = fee_rate
            .fee_wu(transaction.weight())
            .ok_or(RefundError::FeeRate)?;
        let left = coin
            .value
            .checked_sub(fee)
            .filter(|left| *left > Amount::ZERO)
            .ok_or(RefundError::FeeAboveValue {
                value: coin.value,
                fee,
            })?;
        payee_of(self.network(), to, left)?;
        if let Some(output) = transaction.output.first_mut() {
            output.value = left;
        }

        let spent = TxOut {
            value: coin.value,
            script_pubkey: derived.script_pubkey.clone(),
        };
        let signature = self.sign_leaf(&transaction, &spent, leaf)?;
        set_witness(&mut transaction, witness(signature)?);
        Ok(transaction)
    }

    fn sign_leaf(
        &self,
        transaction: &Transaction,
        spent: &TxOut,
        leaf: TapLeafHash,
    ) -> Result<schnorr::Signature, RefundError> {
        let sighash = SighashCache::new(transaction)
            .taproot_script_spend_signature_hash(
                0,
                &Prevouts::All(&[spent]),
                leaf,
                TapSighashType::Default,
            )
            .map_err(|error| RefundError::Satisfy(error.to_string()))?;
        let message = Message::from_digest(sighash.to_byte_array());
        self.secrets
            .with_refund_keypair(|pair| {
                Secp256k1::new().sign_schnorr_with_rng(&message, pair, &mut rand::rngs::OsRng)
            })
            .ok_or(RefundError::OtherKey)
    }

    /// Looks the deposit up on the user's own node and signs its refund. Nothing is sent.
    ///
    /// # Errors
    /// [`RefundError`]; a time-lock that is not over is told in [`Refund::blocks_missing`].
    pub async fn prepare_refund(
        &self,
        bitcoind: &BitcoinRpc,
        order: &RefundOrder,
    ) -> Result<Refund, RefundError> {
        let outpoint = order.outpoint;
        bitcoind.check_network(self.network()).await?;
        let coin = bitcoind.unspent_output(outpoint, true).await?;
        let coin = coin.ok_or(RefundError::NotUnspent(outpoint))?;
        let backups = self.backups()?;
        let backup = backups
            .iter()
            .find(|backup| backup.script_pubkey == coin.script_pubkey)
            .ok_or(RefundError::NotOurs {
                outpoint,
                known: backups.len(),
            })?;
        let of = Coin {
            outpoint,
            value: coin.value,
        };
        let transaction = self.refund_transaction(backup, of, &order.to, order.fee_rate)?;
        let amount = transaction.output.iter().map(|output| output.value).sum();
        Ok(Refund {
            fee: coin.value.checked_sub(amount).unwrap_or(Amount::ZERO),
            amount,
            transaction,
            confirmations: coin.confirmations,
            blocks_missing: blocks_missing(backup.terms.refund_delay_blocks, coin.confirmations),
        })
    }

    /// Signs the refund and hands it to the user's own node.
    ///
    /// # Errors
    /// [`RefundError::Immature`] before the time-lock is over; nothing is sent then.
    pub async fn refund(
        &self,
        bitcoind: &BitcoinRpc,
        order: &RefundOrder,
    ) -> Result<(Refund, Txid), RefundError> {
        let refund = self.prepare_refund(bitcoind, order).await?;
        if refund.blocks_missing > 0 {
            return Err(RefundError::Immature {
                missing: refund.blocks_missing,
            });
        }
        let txid = bitcoind.send_transaction(&refund.transaction).await?;
        Ok((refund, txid))
    }
}

fn unsigned(coin: Coin, script_pubkey: ScriptBuf, sequence: Sequence) -> Transaction {
    Transaction {
        // BIP-68 applies from version 2.
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin.outpoint,
            script_sig: ScriptBuf::new(),
            sequence,
            witness: Witness::new(),
        }],
        output: vec![TxOut {
            value: coin.value,
            script_pubkey,
        }],
    }
}

/// The leaf that the refund key can sign.
fn refund_leaf(
    tr: &Tr<XOnlyPublicKey>,
    refund: &XOnlyPublicKey,
) -> Result<TapLeafHash, RefundError> {
    tr.spend_info()
        .leaves()
        .find(|leaf| leaf.miniscript().iter_pk().any(|key| key == *refund))
        .map(|leaf| leaf.leaf_hash())
        .ok_or_else(|| RefundError::Satisfy("no leaf holds the refund key".to_owned()))
}

/// Signature, script and control block, as miniscript orders them.
fn witness(
    tr: &Tr<XOnlyPublicKey>,
    refund: XOnlyPublicKey,
    leaf: TapLeafHash,
    sequence: Sequence,
    signature: schnorr::Signature,
) -> Result<Vec<Vec<u8>>, RefundError> {
    let signature = taproot::Signature {
        signature,
        sighash_type: TapSighashType::Default,
    };
    let signatures = HashMap::from([((refund, leaf), signature)]);
    let (stack, _) = tr
        .get_satisfaction(&(signatures, sequence))
        .map_err(|error| RefundError::Satisfy(error.to_string()))?;
    Ok(stack)
}

fn set_witness(transaction: &mut Transaction, stack: Vec<Vec<u8>>) {
    if let Some(input) = transaction.input.first_mut() {
        input.witness = Witness::from_slice(&stack);
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;
    use bitcoin::script::Script;
    use miniscript::interpreter::{Interpreter, SatisfiedConstraint};

    use super::*;
    use crate::PinnedVault;
    use crate::vault::tests::document;

    const TO: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

    fn setting() -> (tempfile::TempDir, Wallet, DepositBackup, Coin) {
        let dir = tempfile::tempdir().unwrap();
        let wallet = Wallet::create(dir.path().join("w"), "pass", Network::Regtest).unwrap();
        let vault = PinnedVault::from_document(Network::Regtest, &document()).unwrap();
        let backup =
            DepositBackup::derive(&vault, wallet.account_key(), wallet.refund_key()).unwrap();
        let outpoint = OutPoint::new(Txid::from_byte_array([6; 32]), 3);
        let coin = Coin {
            outpoint,
            value: Amount::from_sat(50_000),
        };
        (dir, wallet, backup, coin)
    }

    fn rate(sat_per_vb: u64) -> FeeRate {
        FeeRate::from_sat_per_vb(sat_per_vb).unwrap()
    }

    /// Runs the spend through miniscript's script interpreter, signatures included.
    fn run(
        transaction: &Transaction,
        spent: &TxOut,
        sequence: Sequence,
    ) -> Result<Vec<SatisfiedConstraint>, miniscript::interpreter::Error> {
        let secp = Secp256k1::new();
        let prevouts = [spent.clone()];
        let interpreter = Interpreter::from_txdata(
            &spent.script_pubkey,
            Script::new(),
            &transaction.input[0].witness,
            sequence,
            transaction.lock_time,
        )?;
        interpreter
            .iter(&secp, transaction, 0, &Prevouts::All(&prevouts))
            .collect()
    }

    #[test]
    fn a_refund_satisfies_its_script_and_nothing_less_does() {
        let (_dir, wallet, backup, coin) = setting();
        let transaction = wallet
            .refund_transaction(&backup, coin, TO, rate(3))
            .unwrap();
        let spent = TxOut {
            value: coin.value,
            script_pubkey: backup.script_pubkey.clone(),
        };
        let sequence = transaction.input[0].sequence;
        assert_eq!(
            sequence,
            Sequence::from_height(backup.terms.refund_delay_blocks)
        );
        let satisfied = run(&transaction, &spent, sequence).unwrap();
        assert!(
            satisfied
                .iter()
                .any(|c| matches!(c, SatisfiedConstraint::PublicKey { .. }))
        );
        assert!(
            satisfied
                .iter()
                .any(|c| matches!(c, SatisfiedConstraint::RelativeTimelock { .. }))
        );

        let shorter = Sequence::from_height(backup.terms.refund_delay_blocks - 1);
        assert!(run(&transaction, &spent, shorter).is_err());
        let mut more = transaction.clone();
        more.output[0].value += Amount::ONE_SAT;
        assert!(run(&more, &spent, sequence).is_err());
        let other_value = TxOut {
            value: spent.value + Amount::ONE_SAT,
            ..spent.clone()
        };
        assert!(run(&transaction, &other_value, sequence).is_err());
    }

    #[test]
    fn a_refund_pays_the_fee_rate_to_the_satoshi() {
        let (_dir, wallet, backup, coin) = setting();
        for sat_per_vb in [1, 2, 7, 100] {
            let transaction = wallet
                .refund_transaction(&backup, coin, TO, rate(sat_per_vb))
                .unwrap();
            let fee = coin.value - transaction.output[0].value;
            let expected = rate(sat_per_vb).fee_wu(transaction.weight()).unwrap();
            assert_eq!(fee, expected);
        }
    }

    #[test]
    fn a_refund_that_makes_no_sense_is_refused() {
        let (_dir, wallet, backup, coin) = setting();
        let refund = |coin, to: &str, fee_rate| {
            wallet
                .refund_transaction(&backup, coin, to, fee_rate)
                .unwrap_err()
        };
        assert!(matches!(
            refund(coin, TO, FeeRate::ZERO),
            RefundError::FeeRate
        ));
        assert!(matches!(
            refund(coin, TO, FeeRate::MAX),
            RefundError::FeeRate
        ));
        let little = Coin {
            value: Amount::from_sat(1_000),
            ..coin
        };
        assert!(matches!(
            refund(little, TO, rate(100)),
            RefundError::FeeAboveValue { .. }
        ));
        let error = refund(little, TO, rate(6));
        assert!(
            matches!(error, RefundError::Payee(PayeeError::Dust { .. })),
            "{error}"
        );
        let error = refund(coin, "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", rate(1));
        assert!(
            matches!(error, RefundError::Payee(PayeeError::WrongNetwork { .. })),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_backup_and_another_wallets_are_refused() {
        let (_dir, wallet, backup, coin) = setting();
        let changes: [&dyn Fn(&mut DepositBackup); 7] = [
            &|backup| backup.terms.refund_delay_blocks += 1,
            &|backup| backup.terms.deposit_fee_sat += 1,
            &|backup| backup.terms.vault_id = hex::encode([1; 32]),
            &|backup| backup.terms_hash = hex::encode([1; 32]),
            &|backup| backup.descriptor.push('x'),
            &|backup| backup.address.push('x'),
            &|backup| backup.script_pubkey = ScriptBuf::new(),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut damaged = backup.clone();
            change(&mut damaged);
            let error = wallet
                .refund_transaction(&damaged, coin, TO, rate(1))
                .unwrap_err();
            assert!(matches!(error, RefundError::Backup(_)), "{i}: {error}");
        }
        let (_dir, other, _, _) = setting();
        let error = other
            .refund_transaction(&backup, coin, TO, rate(1))
            .unwrap_err();
        assert!(matches!(error, RefundError::OtherKey), "{error}");
    }

    #[test]
    fn a_lock_of_n_blocks_is_over_with_n_confirmations() {
        assert_eq!(blocks_missing(144, 0), 144);
        assert_eq!(blocks_missing(144, 143), 1);
        assert_eq!(blocks_missing(144, 144), 0);
        assert_eq!(blocks_missing(144, 1_000), 0);
    }
}
