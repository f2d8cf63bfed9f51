//! The operator's own ledger for others to read: asked for in pages, put together, checked, and written as one JSON
//! document. What is checked is not the sum of what the pages say: the accounts are hashed anew.

use bitcoin::{Amount, Network, Txid};
use ledger::{Account, Ledger, LedgerError, VaultId};
use protocol::transaction::Commitment;
use serde::{Deserialize, Serialize};

use crate::admin::AdminError;

/// Names layout and version of the document.
pub const FORMAT: &str = "drawbridge-ledger/1";
/// Accounts in one page: some 400 KB of JSON.
pub const PAGE_ACCOUNTS: usize = 2_000;
/// How often an export begins anew because a batch was confirmed under it.
const MAX_STARTS: usize = 10;

/// A batch, as the chain has it, and the vault it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The network.
    pub network: Network,
    /// The vault.
    pub vault: VaultId,
    /// What the batch's transaction says of the ledger; at genesis, what an empty ledger has.
    pub commitment: Commitment,
    /// The batch's transaction; `None` at genesis.
    pub txid: Option<Txid>,
    /// Height of its block; `None` at genesis.
    pub height: Option<u32>,
}

/// Some of the accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// After which batch.
    pub head: Head,
    /// How many accounts there are in all.
    pub total: usize,
    /// The accounts from the index asked for, at most [`PAGE_ACCOUNTS`].
    pub accounts: Vec<Account>,
}

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// [`FORMAT`].
    pub format: String,
    /// The network.
    pub network: Network,
    /// The vault.
    pub vault: VaultId,
    /// The ledger is the one after this many batches.
    pub sequence: u64,
    /// The last batch's transaction; `None` at genesis.
    pub txid: Option<Txid>,
    /// Height of its block; `None` at genesis.
    pub height: Option<u32>,
    /// Digest of the ledger's state, as that transaction's OP_RETURN has it.
    #[serde(with = "hex::serde")]
    pub digest: [u8; 32],
    /// Sum of all balances in sats.
    pub supply_sat: u64,
    /// All accounts, by index.
    pub accounts: Vec<Exported>,
}

/// One account of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// Its index in the tree.
    pub index: usize,
    /// Its address.
    pub account: String,
    /// What it holds, in sats.
    pub balance_sat: u64,
    /// Operations that it has signed.
    pub nonce: u64,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A page did not come.
    #[error(transparent)]
    Ask(#[from] AdminError),
    /// Batches are confirmed faster than pages come.
    #[error("the ledger changed {MAX_STARTS} times while it was read; try again")]
    Unsteady,
    /// Pages end before all accounts are there.
    #[error("a page without accounts: {got} of {total} have come")]
    Short {
        /// Accounts so far.
        got: usize,
        /// Accounts announced.
        total: usize,
    },
    /// The accounts are no ledger.
    #[error("the accounts make no ledger")]
    Ledger(#[source] LedgerError),
    /// They are another ledger than the chain's.
    #[error(
        "the accounts hash to {found} with a supply of {supply}, and the chain has {expected} with {expected_supply}"
    )]
    Digest {
        /// Digest of the accounts.
        found: String,
        /// Their sum.
        supply: Amount,
        /// Digest in the batch's transaction.
        expected: String,
        /// Supply there.
        expected_supply: Amount,
    },
}

impl Page {
    /// The page of a ledger from an index on.
    pub fn of(ledger: &Ledger, head: Head, from: usize) -> Self {
        let accounts = ledger.accounts();
        let rest = accounts.get(from..).unwrap_or_default();
        Self {
            head,
            total: accounts.len(),
            accounts: rest.iter().take(PAGE_ACCOUNTS).copied().collect(),
        }
    }
}

/// Reads all pages of one ledger and checks that it is the one that the chain commits to.
///
/// # Errors
/// [`ExportError`].
pub fn collect(
    mut ask: impl FnMut(usize) -> Result<Page, AdminError>,
) -> Result<Export, ExportError> {
    for _ in 0..MAX_STARTS {
        let Page {
            head,
            total,
            mut accounts,
        } = ask(0)?;
        let mut is_steady = true;
        while is_steady && accounts.len() < total {
            let page = ask(accounts.len())?;
            is_steady = page.head == head;
            if is_steady && page.accounts.is_empty() {
                return Err(ExportError::Short {
                    got: accounts.len(),
                    total,
                });
            }
            accounts.extend(page.accounts);
        }
        if is_steady {
            return check(&head, accounts);
        }
    }
    Err(ExportError::Unsteady)
}

fn check(head: &Head, accounts: Vec<Account>) -> Result<Export, ExportError> {
    let ledger = Ledger::from_accounts(accounts).map_err(ExportError::Ledger)?;
    let (digest, expected) = (ledger.digest().to_bytes(), head.commitment);
    if digest != expected.digest || ledger.supply() != expected.supply {
        return Err(ExportError::Digest {
            found: hex::encode(digest),
            supply: ledger.supply(),
            expected: hex::encode(expected.digest),
            expected_supply: expected.supply,
        });
    }
    let accounts = ledger.accounts().iter().enumerate();
    Ok(Export {
        format: FORMAT.to_owned(),
        network: head.network,
        vault: head.vault,
        sequence: expected.sequence.0,
        txid: head.txid,
        height: head.height,
        digest,
        supply_sat: ledger.supply().to_sat(),
        accounts: accounts
            .map(|(index, account)| Exported {
                index,
                account: account.key.to_address(head.network),
                balance_sat: account.balance.to_sat(),
                nonce: account.nonce,
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use ledger::{AccountKey, SequenceNumber};

    use super::*;
    use crate::testing;

    fn ledger(count: usize) -> Ledger {
        let accounts = AccountKey::sequence(count).into_iter().zip(1..);
        let accounts = accounts.map(|(key, number)| Account {
            key,
            balance: Amount::from_sat(number),
            nonce: number,
        });
        Ledger::from_accounts(accounts.collect()).unwrap()
    }

    fn head(ledger: &Ledger) -> Head {
        Head {
            network: Network::Regtest,
            vault: testing::vault().id(),
            commitment: Commitment {
                sequence: SequenceNumber(3),
                supply: ledger.supply(),
                digest: ledger.digest().to_bytes(),
            },
            txid: None,
            height: Some(9),
        }
    }

    fn pages(ledger: &Ledger) -> impl FnMut(usize) -> Result<Page, AdminError> {
        |from| Ok(Page::of(ledger, head(ledger), from))
    }

    #[test]
    fn all_pages_make_the_ledger_that_the_chain_commits_to() {
        for count in [0, 1, PAGE_ACCOUNTS, PAGE_ACCOUNTS + 1] {
            let ledger = ledger(count);
            let export = collect(pages(&ledger)).unwrap();
            assert_eq!(export.accounts.len(), count);
            assert_eq!(export.digest, ledger.digest().to_bytes());
            assert_eq!(export.supply_sat, ledger.supply().to_sat());
            let json = serde_json::to_string(&export).unwrap();
            assert_eq!(serde_json::from_str::<Export>(&json).unwrap(), export);
        }
    }

    #[test]
    fn one_sat_more_or_a_missing_account_is_found() {
        let ledger = ledger(3);
        let mut richer = Page::of(&ledger, head(&ledger), 0);
        richer.accounts[1].balance += Amount::from_sat(1);
        let mut fewer = Page::of(&ledger, head(&ledger), 0);
        fewer.accounts.pop();
        fewer.total = 2;
        let mut nonce = Page::of(&ledger, head(&ledger), 0);
        nonce.accounts[0].nonce += 1;
        for page in [richer, fewer, nonce] {
            let export = collect(|_| Ok(page.clone()));
            assert!(matches!(export, Err(ExportError::Digest { .. })));
        }
        let mut short = Page::of(&ledger, head(&ledger), 0);
        short.accounts.clear();
        let export = collect(|_| Ok(short.clone()));
        assert!(matches!(export, Err(ExportError::Short { .. })));
    }

    #[test]
    fn a_batch_that_is_confirmed_in_between_starts_it_anew() {
        let (before, after) = (ledger(PAGE_ACCOUNTS + 5), ledger(PAGE_ACCOUNTS + 6));
        let mut asked = 0;
        let export = collect(|from| {
            asked += 1;
            let now = if asked == 1 { &before } else { &after };
            pages(now)(from)
        });
        assert_eq!(export.unwrap().accounts.len(), PAGE_ACCOUNTS + 6);
        let mut turn = false;
        let never = collect(|from| {
            turn = !turn;
            pages(if turn { &before } else { &after })(from)
        });
        assert!(matches!(never, Err(ExportError::Unsteady)));
    }
}
