//! One tampered witness for each thing that the circuit proves; each must fail. And the other way round: whatever
//! the ledger does satisfies the circuit, with the digests and commitments that native code computes.

use bitcoin::{Amount, OutPoint, ScriptBuf, hashes::Hash as _};
use ledger::{
    AccountIndex, AccountKey, AccountSecret, CHUNK_ROWS, ChunkInputs, ChunkWitness, Ledger,
    Operation, SequenceNumber, TransferRequest, Transition, VaultId, WithdrawRequest, chunk_inputs,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::chunk::{CONSTRAINTS, ChunkAssignment, assign, padding, public};

const VAULT: VaultId = VaultId([7; 32]);
const SEQUENCE: SequenceNumber = SequenceNumber(5);

fn secret(seed: u64) -> AccountSecret {
    AccountSecret::generate(&mut ChaCha8Rng::seed_from_u64(seed))
}

fn sats(n: u64) -> Amount {
    Amount::from_sat(n)
}

fn deposit(account: AccountKey, amount: u64, vout: u32) -> Operation {
    Operation::Deposit {
        account,
        amount: sats(amount),
        outpoint: OutPoint {
            txid: bitcoin::Txid::from_byte_array([9; 32]),
            vout,
        },
    }
}

fn transfer(
    from: &AccountSecret,
    sender: u32,
    nonce: u64,
    recipient: AccountKey,
    amount: u64,
    fee: u64,
) -> Operation {
    TransferRequest {
        sender: AccountIndex(sender),
        nonce,
        amount: sats(amount),
        fee: sats(fee),
        recipient,
        last_valid: SequenceNumber(9),
    }
    .sign(from, &VAULT)
}

fn withdraw(from: &AccountSecret, sender: u32, nonce: u64, amount: u64, fee: u64) -> Operation {
    WithdrawRequest {
        sender: AccountIndex(sender),
        nonce,
        amount: sats(amount),
        fee: sats(fee),
        script_pubkey: ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([3; 20])),
        last_valid: SequenceNumber(9),
    }
    .sign(from, &VAULT)
}

/// Four accounts with money, as before the batch under test.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new();
    for i in 0..4 {
        ledger
            .apply(
                &deposit(secret(i).public(), 100_000, i as u32),
                &VAULT,
                SEQUENCE,
            )
            .unwrap();
    }
    ledger
}

/// One chunk with every kind of row: deposit to a new key, deposit to an old one, transfer, transfer to a new key,
/// withdrawal, padding.
fn batch() -> Vec<Operation> {
    vec![
        deposit(secret(10).public(), 5_000, 10),
        deposit(secret(1).public(), 6_000, 11),
        transfer(&secret(0), 0, 0, secret(1).public(), 7_000, 10),
        transfer(&secret(2), 2, 0, secret(11).public(), 8_000, 20),
        withdraw(&secret(3), 3, 0, 9_000, 30),
    ]
}

fn transition() -> Transition {
    ledger().apply_batch(&batch(), &VAULT, SEQUENCE).unwrap()
}

fn satisfied(inputs: &ChunkInputs, chunk: &ChunkAssignment) -> bool {
    CONSTRAINTS
        .unsatisfied(&assign(public(inputs), chunk))
        .is_none()
}

fn honest(chunk: &ChunkWitness) -> bool {
    satisfied(&chunk.inputs(), &ChunkAssignment::from(chunk))
}

#[test]
fn a_leaf_update_costs_at_most_12_000_constraints() {
    let per_row = CONSTRAINTS.len().div_ceil(CHUNK_ROWS);
    assert!(per_row <= 12_000, "{per_row} constraints per leaf update");
}

#[test]
fn padding_and_every_kind_of_row_satisfy_the_circuit() {
    assert!(honest(&padding()));
    let transition = transition();
    assert_eq!(transition.chunks.len(), 1);
    assert!(transition.chunks.iter().all(honest));
    assert_eq!(
        transition.chunk_inputs(),
        chunk_inputs(&VAULT, &batch(), &transition.digests()).unwrap()
    );
}
