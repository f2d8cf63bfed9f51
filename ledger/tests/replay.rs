//! The ledger's rules, each refusal, and that a refusal changes nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

use bitcoin::{Amount, OutPoint, ScriptBuf, hashes::Hash as _};
use ledger::{
    Account, AccountIndex, AccountKey, AccountSecret, Ledger, LedgerError, Operation,
    OperationError, SequenceNumber, TransferRequest, VaultId, WithdrawRequest, chunk_count,
    chunk_inputs,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

const VAULT: VaultId = VaultId([7; 32]);
const SEQUENCE: SequenceNumber = SequenceNumber(5);

fn secret(seed: u64) -> AccountSecret {
    AccountSecret::generate(&mut ChaCha8Rng::seed_from_u64(seed))
}

fn sats(n: u64) -> Amount {
    Amount::from_sat(n)
}

fn deposit(account: AccountKey, amount: u64) -> Operation {
    let outpoint = OutPoint {
        txid: bitcoin::Txid::from_byte_array([9; 32]),
        vout: 3,
    };
    Operation::Deposit {
        account,
        amount: sats(amount),
        outpoint,
    }
}

/// From account 0 to account 1.
fn transfer() -> TransferRequest {
    TransferRequest {
        sender: AccountIndex(0),
        nonce: 0,
        amount: sats(4_000),
        fee: sats(10),
        recipient: secret(1).public(),
        last_valid: SEQUENCE,
    }
}

fn withdrawal() -> WithdrawRequest {
    WithdrawRequest {
        sender: AccountIndex(0),
        nonce: 0,
        amount: sats(4_000),
        fee: sats(10),
        script_pubkey: ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([3; 20])),
        last_valid: SEQUENCE,
    }
}

/// Account 0 has 10,000, account 1 has 5,000.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new();
    ledger
        .apply(&deposit(secret(0).public(), 10_000), &VAULT, SEQUENCE)
        .unwrap();
    ledger
        .apply(&deposit(secret(1).public(), 5_000), &VAULT, SEQUENCE)
        .unwrap();
    ledger
}

#[track_caller]
fn refused(operation: &Operation) -> OperationError {
    let mut ledger = ledger();
    let (digest, accounts) = (ledger.digest(), ledger.accounts().to_vec());
    let error = ledger.apply(operation, &VAULT, SEQUENCE).unwrap_err();
    assert_eq!(ledger.check(operation, &VAULT, SEQUENCE), Err(error));
    // As the last of a batch it undoes the others as well.
    let batch = [
        deposit(secret(5).public(), 1),
        transfer_to_new().sign(&secret(1), &VAULT),
        operation.clone(),
    ];
    if operation.sender() == Some(AccountIndex(0)) {
        assert_eq!(
            ledger.apply_batch(&batch, &VAULT, SEQUENCE),
            Err((2, error))
        );
    }
    assert_eq!(ledger.digest(), digest);
    assert_eq!(ledger.accounts(), accounts);
    assert!(ledger.account_by_key(&secret(5).public()).is_none());
    error
}

fn transfer_to_new() -> TransferRequest {
    TransferRequest {
        sender: AccountIndex(1),
        recipient: secret(6).public(),
        ..transfer()
    }
}

#[test]
fn money_moves_as_it_should() {
    let mut ledger = ledger();
    let before = ledger.state();
    let batch = [
        transfer().sign(&secret(0), &VAULT),
        WithdrawRequest {
            nonce: 1,
            ..withdrawal()
        }
        .sign(&secret(0), &VAULT),
        deposit(secret(2).public(), 700),
        transfer_to_new().sign(&secret(1), &VAULT),
    ];
    let transition = ledger.apply_batch(&batch, &VAULT, SEQUENCE).unwrap();
    let balances: Vec<u64> = ledger
        .accounts()
        .iter()
        .map(|account| account.balance.to_sat())
        .collect();
    assert_eq!(
        balances,
        [10_000 - 4_010 - 4_010, 5_000 + 4_000 - 4_010, 700, 4_000]
    );
    assert_eq!(ledger.accounts()[0].nonce, 2);
    assert_eq!(ledger.supply().to_sat(), balances.iter().sum::<u64>());

    let totals = transition.totals;
    assert_eq!(
        (totals.deposited, totals.withdrawn, totals.fees),
        (sats(700), sats(4_000), sats(30))
    );
    assert_eq!(totals.transferred, sats(8_000));
    assert_eq!(
        transition.after.supply,
        transition.before.supply + sats(700) - sats(4_030)
    );
    assert_eq!(
        (transition.before, transition.after),
        (before, ledger.state())
    );
    assert_eq!(
        transition.chunk_inputs(),
        chunk_inputs(&VAULT, &batch, &transition.digests()).unwrap()
    );

    // Every update's path leads from its state to the next.
    let mut root = transition.before.root;
    for update in transition.updates() {
        let leaf =
            |account: &Option<Account>| account.map(|account| account.leaf()).unwrap_or_default();
        assert_eq!(update.path.root(update.index, leaf(&update.before)), root);
        root = update.path.root(update.index, leaf(&update.after));
    }
    assert_eq!(root, transition.after.root);
    assert_eq!(
        Ledger::from_accounts(ledger.accounts().to_vec())
            .unwrap()
            .digest(),
        ledger.digest()
    );

    ledger.revert(&transition).unwrap();
    assert_eq!(ledger.state(), before);
    assert!(ledger.revert(&transition).is_err());
    assert_eq!(ledger.state(), before);
}

#[test]
fn a_transfer_to_oneself_costs_the_fee() {
    let mut ledger = ledger();
    let request = TransferRequest {
        recipient: secret(0).public(),
        amount: sats(9_990),
        ..transfer()
    };
    let updates = ledger
        .apply(&request.sign(&secret(0), &VAULT), &VAULT, SEQUENCE)
        .unwrap();
    assert_eq!(updates.len(), 2);
    assert_eq!(updates[0].after, updates[1].before);
    assert_eq!(ledger.accounts()[0].balance, sats(9_990));
    assert_eq!(ledger.accounts()[0].nonce, 1);
}

#[test]
fn each_bad_transfer_has_its_error() {
    let sign = |request: TransferRequest| request.sign(&secret(0), &VAULT);
    let unknown = sign(TransferRequest {
        sender: AccountIndex(2),
        ..transfer()
    });
    assert_eq!(
        refused(&unknown),
        OperationError::UnknownSender(AccountIndex(2))
    );
    let future = sign(TransferRequest {
        nonce: 1,
        ..transfer()
    });
    assert_eq!(
        refused(&future),
        OperationError::FutureNonce {
            expected: 0,
            found: 1
        }
    );
    let expired = sign(TransferRequest {
        last_valid: SequenceNumber(4),
        ..transfer()
    });
    let error = OperationError::Expired {
        last_valid: SequenceNumber(4),
        sequence: SEQUENCE,
    };
    assert_eq!(refused(&expired), error);
    let too_much = sign(TransferRequest {
        amount: sats(9_991),
        ..transfer()
    });
    assert_eq!(
        refused(&too_much),
        OperationError::InsufficientBalance {
            balance: 10_000,
            needed: 10_001
        }
    );
    let huge = sign(TransferRequest {
        amount: sats(u64::MAX),
        fee: sats(u64::MAX),
        ..transfer()
    });
    assert_eq!(
        refused(&huge),
        OperationError::InsufficientBalance {
            balance: 10_000,
            needed: u64::MAX
        }
    );
    let zero = sign(TransferRequest {
        amount: sats(0),
        ..transfer()
    });
    assert_eq!(refused(&zero), OperationError::ZeroAmount);
    assert_eq!(
        refused(&transfer().sign(&secret(1), &VAULT)),
        OperationError::BadSignature
    );
    assert_eq!(
        refused(&transfer().sign(&secret(0), &VaultId([8; 32]))),
        OperationError::BadSignature
    );

    let mut changed = sign(transfer());
    if let Operation::Transfer { amount, .. } = &mut changed {
        *amount = sats(4_001);
    }
    assert_eq!(refused(&changed), OperationError::BadSignature);
}

#[test]
fn a_nonce_serves_once() {
    let mut ledger = ledger();
    let operation = transfer().sign(&secret(0), &VAULT);
    ledger.apply(&operation, &VAULT, SEQUENCE).unwrap();
    let error = ledger.apply(&operation, &VAULT, SEQUENCE).unwrap_err();
    assert_eq!(
        error,
        OperationError::StaleNonce {
            expected: 1,
            found: 0
        }
    );
}

#[test]
fn each_bad_withdrawal_has_its_error() {
    let sign = |request: WithdrawRequest| request.sign(&secret(0), &VAULT);
    let dust = sign(WithdrawRequest {
        amount: sats(293),
        ..withdrawal()
    });
    assert_eq!(refused(&dust), OperationError::Dust { minimum: sats(294) });
    for script in [
        ScriptBuf::new(),
        ScriptBuf::new_op_return([1, 2, 3]),
        ScriptBuf::from_bytes(vec![0x51, 0x02, 0x4e, 0x73]),
        ScriptBuf::from_bytes(vec![0x52; 34]),
        ScriptBuf::from_bytes(vec![0x6a; 5_000]),
    ] {
        let odd = sign(WithdrawRequest {
            script_pubkey: script,
            ..withdrawal()
        });
        assert_eq!(refused(&odd), OperationError::NonStandardScript);
    }
    let too_much = sign(WithdrawRequest {
        amount: sats(10_000),
        ..withdrawal()
    });
    assert_eq!(
        refused(&too_much),
        OperationError::InsufficientBalance {
            balance: 10_000,
            needed: 10_010
        }
    );
    let mut changed = sign(withdrawal());
    if let Operation::Withdraw { script_pubkey, .. } = &mut changed {
        *script_pubkey = ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([4; 20]));
    }
    assert_eq!(refused(&changed), OperationError::BadSignature);
}

#[test]
fn a_deposit_that_overflows_is_refused() {
    assert_eq!(
        refused(&deposit(secret(0).public(), u64::MAX)),
        OperationError::Overflow
    );
    assert_eq!(
        refused(&deposit(secret(8).public(), u64::MAX - 14_999)),
        OperationError::Overflow
    );
    assert_eq!(
        refused(&deposit(secret(8).public(), 0)),
        OperationError::ZeroAmount
    );
}

#[test]
fn a_transfer_never_splits_over_chunks() {
    let mut operations: Vec<Operation> = (0..7).map(|i| deposit(secret(i).public(), 100)).collect();
    assert_eq!(chunk_count(&operations), 1);
    operations.push(transfer().sign(&secret(0), &VAULT));
    assert_eq!(chunk_count(&operations), 2);
    let transition = ledger().apply_batch(&operations, &VAULT, SEQUENCE).unwrap();
    assert_eq!(transition.chunks.len(), 2);
    assert!(
        transition
            .chunks
            .iter()
            .all(|chunk| chunk.updates.len() == ledger::CHUNK_ROWS)
    );
    assert_eq!(
        transition.chunk_inputs(),
        chunk_inputs(&VAULT, &operations, &transition.digests()).unwrap()
    );
    assert!(chunk_inputs(&VAULT, &operations, &transition.digests()[1..]).is_err());
    assert_eq!(chunk_count(&[]), 0);
}

#[test]
fn an_operation_id_names_content_and_vault_but_not_the_signature() {
    let first = transfer().sign(&secret(0), &VAULT);
    let second = transfer().sign(&secret(0), &VAULT);
    assert_ne!(first, second, "nonces are randomised");
    assert_eq!(first.id(&VAULT), second.id(&VAULT));
    assert_ne!(first.id(&VAULT), first.id(&VaultId([8; 32])));
    let other = TransferRequest {
        last_valid: SequenceNumber(6),
        ..transfer()
    };
    assert_ne!(first.id(&VAULT), other.sign(&secret(0), &VAULT).id(&VAULT));
    let deposit = |vout| Operation::Deposit {
        account: secret(0).public(),
        amount: sats(1),
        outpoint: OutPoint {
            txid: bitcoin::Txid::from_byte_array([9; 32]),
            vout,
        },
    };
    assert_ne!(deposit(1).id(&VAULT), deposit(2).id(&VAULT));
}

#[test]
fn a_transition_survives_the_wire() {
    let operations = [
        transfer_to_new().sign(&secret(1), &VAULT),
        withdrawal().sign(&secret(0), &VAULT),
    ];
    let transition = ledger().apply_batch(&operations, &VAULT, SEQUENCE).unwrap();
    let bytes = postcard::to_stdvec(&transition).unwrap();
    assert_eq!(
        postcard::from_bytes::<ledger::Transition>(&bytes).unwrap(),
        transition
    );
    for operation in operations.iter().chain([&deposit(secret(0).public(), 5)]) {
        let bytes = postcard::to_stdvec(operation).unwrap();
        assert_eq!(
            &postcard::from_bytes::<Operation>(&bytes).unwrap(),
            operation
        );
        let json = serde_json::to_string(operation).unwrap();
        assert_eq!(
            &serde_json::from_str::<Operation>(&json).unwrap(),
            operation
        );
        let unknown = json.replacen("\"amount\"", "\"extra\":1,\"amount\"", 1);
        assert!(serde_json::from_str::<Operation>(&unknown).is_err());
    }
}

#[test]
fn accounts_that_are_no_ledger_are_refused() {
    let account = |seed: u64, balance| Account {
        key: secret(seed).public(),
        balance: sats(balance),
        nonce: 0,
    };
    let twice = vec![account(0, 1), account(1, 1), account(0, 1)];
    assert_eq!(
        Ledger::from_accounts(twice).unwrap_err(),
        LedgerError::RepeatedKey(AccountIndex(2))
    );
    let much = vec![account(0, u64::MAX), account(1, 1)];
    assert_eq!(
        Ledger::from_accounts(much).unwrap_err(),
        LedgerError::Overflow
    );
}
