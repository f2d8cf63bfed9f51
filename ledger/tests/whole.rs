//! Replaying whole batches, and reading stored accounts, against applying every operation by itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

use std::sync::LazyLock;

use bitcoin::{Amount, OutPoint, ScriptBuf, hashes::Hash as _};
use ledger::{
    Account, AccountIndex, AccountKey, AccountSecret, Digest, Ledger, LedgerError, Operation,
    SequenceNumber, StoredAccount, StoredError, TransferRequest, VaultId, WithdrawRequest,
};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

const VAULT: VaultId = VaultId([7; 32]);
const KEYS: usize = 8;

static SECRETS: LazyLock<Vec<AccountSecret>> = LazyLock::new(|| {
    (0..KEYS as u64)
        .map(|seed| AccountSecret::generate(&mut ChaCha8Rng::seed_from_u64(seed)))
        .collect()
});

/// One operation: which, by whom, for whom, how much; and now and then with a wrong nonce or signer.
type Wish = (u8, usize, usize, u64, u8);

fn wishes() -> impl Strategy<Value = Vec<Vec<Wish>>> {
    let wish = (0..3_u8, 0..KEYS, 0..KEYS, 1..3_000_u64, 0..40_u8);
    prop::collection::vec(prop::collection::vec(wish, 0..24), 1..5)
}

/// The operation that a wish means on this ledger: one that may well not apply.
fn operation(
    (kind, from, to, sats, twist): Wish,
    ledger: &Ledger,
    nonces: &mut [u64],
    number: u32,
) -> Operation {
    let account = SECRETS[to].public();
    let held = ledger.account_by_key(&SECRETS[from].public());
    let (Some((sender, _)), 1..) = (held, kind) else {
        let txid = bitcoin::Txid::from_byte_array([9; 32]);
        return Operation::Deposit {
            account,
            amount: Amount::from_sat(10 * sats),
            outpoint: OutPoint::new(txid, number),
        };
    };
    let nonce = nonces[from] + u64::from(twist == 0);
    nonces[from] += 1;
    let signer = &SECRETS[(from + usize::from(twist == 1)) % KEYS];
    let (amount, fee) = (Amount::from_sat(sats), Amount::from_sat(10));
    let last_valid = SequenceNumber(100);
    if kind == 1 {
        let request = TransferRequest {
            sender,
            nonce,
            amount,
            fee,
            recipient: account,
            last_valid,
        };
        request.sign(signer, &VAULT)
    } else {
        let script_pubkey = ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([3; 20]));
        let request = WithdrawRequest {
            sender,
            nonce,
            amount,
            fee,
            script_pubkey,
            last_valid,
        };
        request.sign(signer, &VAULT)
    }
}

fn stored(ledger: &Ledger) -> Vec<StoredAccount> {
    ledger.accounts().iter().map(StoredAccount::from).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_replayed_batch_is_the_applied_one_and_so_are_the_accounts_that_it_has_stored(
        batches in wishes(),
    ) {
        let (mut applied, mut replayed) = (Ledger::new(), Ledger::new());
        let mut disk: Vec<StoredAccount> = Vec::new();
        let mut undo = Vec::new();
        for (batch, sequence) in batches.into_iter().zip(1..) {
            let mut nonces: Vec<u64> = SECRETS
                .iter()
                .map(|secret| applied.account_by_key(&secret.public()).map_or(0, |(_, a)| a.nonce))
                .collect();
            let operations: Vec<Operation> = batch
                .into_iter()
                .zip(0..)
                .map(|(wish, number)| operation(wish, &applied, &mut nonces, number))
                .collect();
            let sequence = SequenceNumber(sequence);
            let before = (replayed.state(), replayed.accounts().to_vec());
            let expected = applied.apply_batch(&operations, &VAULT, sequence);
            match (expected, replayed.replay(&operations, &VAULT, sequence)) {
                (Ok(transition), Ok(batch)) => {
                    prop_assert_eq!((transition.before, transition.after), (batch.before, batch.after));
                    prop_assert_eq!(batch.accounts(), applied.accounts().len());
                    disk.truncate(batch.accounts());
                    for (index, account) in batch.changed() {
                        let (at, row) = (index.0 as usize, StoredAccount::from(account));
                        if at == disk.len() { disk.push(row) } else { disk[at] = row }
                    }
                    undo.push((before, batch));
                }
                (Err(expected), Err(found)) => prop_assert_eq!(expected, found),
                (expected, found) => prop_assert!(false, "{expected:?} and {found:?}"),
            }
            prop_assert_eq!(replayed.state(), applied.state());
            prop_assert_eq!(replayed.accounts(), applied.accounts());
            for secret in SECRETS.iter() {
                let key = secret.public();
                prop_assert_eq!(replayed.account_by_key(&key), applied.account_by_key(&key));
            }
            let back = Ledger::from_stored(&disk, &applied.digest()).unwrap();
            prop_assert_eq!(back.state(), applied.state());
            prop_assert_eq!(back.accounts(), applied.accounts());
        }
        while let Some(((state, accounts), batch)) = undo.pop() {
            replayed.take_back(&batch).unwrap();
            prop_assert_eq!(replayed.state(), state);
            prop_assert_eq!(replayed.accounts(), accounts.as_slice());
            let is_unchanged = batch.before == batch.after;
            prop_assert!(is_unchanged || replayed.take_back(&batch).is_err());
            prop_assert_eq!(replayed.state(), state);
        }
    }
}

/// Enough for all cores to hash.
#[test]
fn a_batch_of_many_accounts_replays_to_the_tree_of_all_of_them() {
    let keys = AccountKey::sequence(1_000);
    let deposits: Vec<Operation> = keys
        .iter()
        .zip(0..)
        .map(|(account, vout)| Operation::Deposit {
            account: *account,
            amount: Amount::from_sat(5),
            outpoint: OutPoint::new(bitcoin::Txid::from_byte_array([9; 32]), vout),
        })
        .collect();
    let mut ledger = Ledger::new();
    let first = ledger
        .replay(&deposits[..300], &VAULT, SequenceNumber(1))
        .unwrap();
    ledger
        .replay(&deposits[200..], &VAULT, SequenceNumber(2))
        .unwrap();
    let all: Vec<Account> = ledger.accounts().to_vec();
    assert_eq!(all.len(), 1_000);
    assert_eq!(
        Ledger::from_accounts(all).unwrap().digest(),
        ledger.digest()
    );
    assert!(ledger.take_back(&first).is_err(), "it is not the last one");
}

#[test]
fn stored_accounts_that_were_changed_are_not_the_ledger() {
    let accounts: Vec<Account> = AccountKey::sequence(21)
        .into_iter()
        .map(|key| Account {
            key,
            balance: Amount::from_sat(7),
            nonce: 3,
        })
        .collect();
    let ledger = Ledger::from_accounts(accounts.clone()).unwrap();
    let (good, digest) = (stored(&ledger), ledger.digest());
    assert_eq!(
        Ledger::from_stored(&good, &digest).unwrap().accounts(),
        accounts
    );
    let changed = |change: &dyn Fn(&mut Vec<StoredAccount>)| {
        let mut rows = good.clone();
        change(&mut rows);
        Ledger::from_stored(&rows, &digest).unwrap_err()
    };
    let is_other = |error| matches!(error, StoredError::Digest { .. });
    let row = |change: &dyn Fn(&mut Account)| {
        let mut account = accounts[4];
        change(&mut account);
        StoredAccount::from(&account)
    };
    assert!(is_other(changed(
        &|rows| rows[4] = row(&|a| a.balance = Amount::from_sat(8))
    )));
    assert!(is_other(changed(&|rows| rows[4] = row(&|a| a.nonce = 4))));
    assert!(is_other(changed(
        &|rows| rows[4] = row(&|a| a.key = SECRETS[0].public())
    )));
    assert!(is_other(changed(&|rows| rows.swap(4, 5))));
    assert!(is_other(changed(&|rows| rows.truncate(20))));
    assert_eq!(
        changed(&|rows| rows[4] = rows[5]),
        StoredError::Ledger(LedgerError::RepeatedKey(AccountIndex(5)))
    );
    // A bit of a coordinate: the key is no point any more. Coordinates come first in a row.
    let mut bytes = postcard::to_stdvec(&good[4]).unwrap();
    bytes[1] ^= 1;
    let bent: StoredAccount = postcard::from_bytes(&bytes).unwrap();
    assert!(matches!(
        changed(&|rows| rows[4] = bent),
        StoredError::Key(AccountIndex(4), _)
    ));
    assert!(is_other(
        Ledger::from_stored(&good, &Digest::default()).unwrap_err()
    ));
}
