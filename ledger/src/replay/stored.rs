//! Accounts as a node keeps them on its own disk, to have the ledger back without replaying it.
//!
//! ```text
//! accounts --leaf, node--> root --supply--> digest  must be the one that a confirmed transaction commits to
//! ```

use ark_ed_on_bn254::EdwardsAffine;
use bitcoin::Amount;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Account, Ledger, LedgerError};
use crate::{AccountIndex, AccountKey, DecodeError, Digest};

/// An account with both coordinates of its key: to read one takes no square root, and no check of its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAccount {
    key: [Digest; 2],
    balance: u64,
    nonce: u64,
}

impl From<&Account> for StoredAccount {
    fn from(account: &Account) -> Self {
        let point = account.key.point();
        Self {
            key: [Digest(point.x), Digest(point.y)],
            balance: account.balance.to_sat(),
            nonce: account.nonce,
        }
    }
}

/// Why stored accounts are not the ledger that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// A key is none at all.
    #[error("the key of account {0} is damaged")]
    Key(AccountIndex, #[source] DecodeError),
    /// They are no ledger's.
    #[error("the accounts make no ledger")]
    Ledger(#[from] LedgerError),
    /// They are another ledger's.
    #[error("the accounts give the digest {found}, not {expected}")]
    Digest {
        /// What they give.
        found: Digest,
        /// What was asked for.
        expected: Digest,
    },
}

impl Ledger {
    /// The ledger whose digest is `expected`, from its accounts at indices 0, 1, ... Hashes on all cores.
    ///
    /// Only curve membership of the keys is checked one by one. The rest follows: a leaf commits to its account with
    /// both coordinates, the digest to all leaves, and whoever made that digest had checked every key. So `expected`
    /// must come from where the ledger's rules were followed: a confirmed batch, never the place that has the accounts.
    ///
    /// # Errors
    /// [`StoredError`].
    pub fn from_stored(stored: &[StoredAccount], expected: &Digest) -> Result<Self, StoredError> {
        let accounts = stored
            .par_iter()
            .enumerate()
            .map(|(index, stored)| {
                let [x, y] = stored.key.map(|coordinate| coordinate.0);
                let point = EdwardsAffine::new_unchecked(x, y);
                if !point.is_on_curve() {
                    // The tree has room for 2^24 of them.
                    let index = AccountIndex(u32::try_from(index).unwrap_or(u32::MAX));
                    return Err(StoredError::Key(index, DecodeError::NotOnCurve));
                }
                Ok(Account {
                    key: AccountKey::from_known_point(point),
                    balance: Amount::from_sat(stored.balance),
                    nonce: stored.nonce,
                })
            })
            .collect::<Result<Vec<Account>, StoredError>>()?;
        let ledger = Self::from_accounts(accounts)?;
        let found = ledger.digest();
        if found != *expected {
            return Err(StoredError::Digest {
                found,
                expected: *expected,
            });
        }
        Ok(ledger)
    }
}
