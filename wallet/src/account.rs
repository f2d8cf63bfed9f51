//! The wallet's account, with its Merkle path checked.

use bitcoin::Amount;
use ledger::{Account, AccountIndex, AccountKey, Digest, MerklePath, State};
use protocol::api::{AccountDocument, MAX_PENDING, VaultDocument};

use crate::{Client, ClientError};

/// Account and vault are read one after the other; a batch may confirm in between, so try again.
const READS: usize = 3;

/// An account whose leaf is proven to be in the tree that the coordinator's digest opens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenAccount {
    /// Its leaf.
    pub index: AccountIndex,
    /// Balance after batch `sequence`.
    pub balance: Amount,
    /// Nonce of the next signed operation, after those that wait.
    pub nonce: u64,
    /// The batch that this is the state after.
    pub sequence: u64,
    /// Ids of the account's operations that wait.
    pub pending: Vec<String>,
    /// The ledger's digest: the treasury's OP_RETURN of that batch holds it.
    pub digest: String,
}

/// Why an account can't be told.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The coordinator did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer is about another account.
    #[error("the coordinator answers for another account")]
    OtherAccount,
    /// Root, path or digest is no hash.
    #[error("the coordinator's account document has an unreadable {0}")]
    Malformed(&'static str),
    /// The Merkle path does not lead from the leaf to the root, or root and supply not to the digest.
    #[error(
        "DO NOT TRUST this coordinator: its Merkle path does not prove the balance that it claims"
    )]
    NotProven,
    /// Batches confirm faster than account and vault can be read.
    #[error("the ledger keeps changing while it is read; try again")]
    Unsteady,
}

/// Reads an account and checks its proof; `None` while it has no leaf.
///
/// # Errors
/// [`AccountError`]; see its variants.
pub async fn read(
    client: &Client,
    key: &AccountKey,
    address: &str,
) -> Result<Option<ProvenAccount>, AccountError> {
    for _ in 0..READS {
        let Some(account) = client.account(address).await? else {
            return Ok(None);
        };
        let vault = client.vault().await?;
        if account.sequence == vault.sequence {
            return prove(key, address, account, &vault).map(Some);
        }
    }
    Err(AccountError::Unsteady)
}

/// Checks a coordinator's documents of an account and of the vault, read at the same batch.
///
/// # Errors
/// [`AccountError`]; see its variants.
pub fn prove(
    key: &AccountKey,
    address: &str,
    document: AccountDocument,
    vault: &VaultDocument,
) -> Result<ProvenAccount, AccountError> {
    if document.account != address {
        return Err(AccountError::OtherAccount);
    }
    // Each of them costs a look at the path below.
    if document.pending.len() > MAX_PENDING {
        return Err(AccountError::Malformed("list of pending operations"));
    }
    let index = AccountIndex(document.index);
    let balance = Amount::from_sat(document.balance_sat);
    let root: Digest = document
        .root
        .parse()
        .map_err(|_| AccountError::Malformed("root"))?;
    let path: MerklePath = serde_json::to_value(&document.path)
        .and_then(serde_json::from_value)
        .map_err(|_| AccountError::Malformed("path"))?;
    // The leaf holds the nonce after the last batch. Operations that wait have used up later ones,
    // whether the coordinator has counted them in already or not.
    let waiting = u64::try_from(document.pending.len()).unwrap_or(u64::MAX);
    let in_leaf = (document.nonce.saturating_sub(waiting)..=document.nonce).find(|nonce| {
        let leaf = Account {
            key: *key,
            balance,
            nonce: *nonce,
        };
        path.verify(index, leaf.leaf(), root)
    });
    let in_leaf = in_leaf.ok_or(AccountError::NotProven)?;
    let supply = Amount::from_sat(vault.supply_sat);
    let digest = State { root, supply }.digest().to_string();
    if vault.digest.as_ref() != Some(&digest) {
        return Err(AccountError::NotProven);
    }
    Ok(ProvenAccount {
        index,
        balance,
        nonce: in_leaf.saturating_add(waiting),
        sequence: document.sequence,
        pending: document.pending,
        digest,
    })
}

#[cfg(test)]
mod tests {
    use bitcoin::{Network, OutPoint};
    use ledger::{AccountSecret, Ledger, Operation, SequenceNumber, VaultId};

    use super::*;

    fn answers() -> (AccountKey, String, AccountDocument, VaultDocument) {
        let key = AccountSecret::generate(&mut rand::rngs::OsRng).public();
        let address = key.to_address(Network::Regtest);
        let mut ledger = Ledger::new();
        let deposit = Operation::Deposit {
            account: key,
            amount: Amount::from_sat(5_000),
            outpoint: OutPoint::null(),
        };
        ledger
            .apply(&deposit, &VaultId([1; 32]), SequenceNumber(1))
            .unwrap();
        let (index, account) = ledger.account_by_key(&key).unwrap();
        let path = ledger.path(index).unwrap();
        let document = AccountDocument {
            account: address.clone(),
            index: index.0,
            balance_sat: account.balance.to_sat(),
            nonce: account.nonce,
            sequence: 1,
            root: ledger.state().root.to_string(),
            path: path
                .siblings()
                .iter()
                .map(|level| level.iter().map(ToString::to_string).collect())
                .collect(),
            pending: Vec::new(),
        };
        let mut vault = crate::vault::tests::document();
        vault.sequence = 1;
        vault.supply_sat = 5_000;
        vault.digest = Some(ledger.digest().to_string());
        (key, address, document, vault)
    }

    #[test]
    fn a_balance_needs_a_path_to_the_digest() {
        let (key, address, document, vault) = answers();
        let proven = prove(&key, &address, document.clone(), &vault).unwrap();
        assert_eq!(proven.balance, Amount::from_sat(5_000));

        type Change<'a> = &'a dyn Fn(&mut AccountDocument, &mut VaultDocument);
        let refused = |change: Change| {
            let (mut document, mut vault) = (document.clone(), vault.clone());
            change(&mut document, &mut vault);
            prove(&key, &address, document, &vault).unwrap_err()
        };
        let not_proven: [Change; 6] = [
            &|document, _| document.balance_sat += 1,
            &|document, _| document.nonce += 1,
            &|document, _| document.index += 1,
            &|document, _| document.path[3][0] = document.root.clone(),
            &|_, vault| vault.supply_sat += 1,
            &|_, vault| vault.digest = None,
        ];
        for (i, change) in not_proven.into_iter().enumerate() {
            let error = refused(change);
            assert!(matches!(error, AccountError::NotProven), "{i}: {error}");
        }
        let error = refused(&|document, _| document.account.push('x'));
        assert!(matches!(error, AccountError::OtherAccount), "{error}");
        let error = refused(&|document, _| document.path.truncate(3));
        assert!(matches!(error, AccountError::Malformed("path")), "{error}");
    }

    #[test]
    fn a_list_of_pending_operations_beyond_the_bound_is_not_worked_through() {
        let (key, address, mut document, vault) = answers();
        document.pending = vec![String::new(); MAX_PENDING];
        prove(&key, &address, document.clone(), &vault).unwrap();
        document.pending.push(String::new());
        let error = prove(&key, &address, document, &vault).unwrap_err();
        assert!(matches!(error, AccountError::Malformed(_)), "{error}");
    }

    #[test]
    fn operations_that_wait_use_up_nonces_however_they_are_counted() {
        let (key, address, mut document, vault) = answers();
        document.pending = vec!["a".to_owned(), "b".to_owned()];
        for counted in [0, 2] {
            document.nonce = counted;
            let proven = prove(&key, &address, document.clone(), &vault).unwrap();
            assert_eq!(proven.nonce, 2);
        }
    }
}
