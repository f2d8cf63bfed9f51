//! One tampered witness for each thing that the circuit proves; each must fail. And the other way round: whatever
//! the ledger does satisfies the circuit, with the digests and commitments that native code computes.

use ark_ec::{AffineRepr as _, CurveGroup as _};
use ark_ed_on_bn254::{EdwardsAffine, Fr as Scalar};
use ark_ff::{BigInteger as _, Field as _, One as _, PrimeField, Zero};
use ark_serialize::CanonicalDeserialize as _;
use bitcoin::{Amount, OutPoint, ScriptBuf, hashes::Hash as _};
use ledger::{
    AccountIndex, AccountKey, AccountSecret, CHUNK_ROWS, ChunkInputs, ChunkWitness, Digest, Field,
    Ledger, Operation, SequenceNumber, State, TransferRequest, Transition, Tree, VaultId,
    WithdrawRequest, chunk_inputs,
    poseidon::Native,
    statement::{self, Kind, Row},
};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::{
    bits::low_bits,
    chunk::{CONSTRAINTS, ChunkAssignment, assign, fitting_inputs, padding, public},
    curve::SCALAR_BITS,
    row::RowAssignment,
};

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

fn script(byte: u8) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([byte; 20]))
}

fn withdraw(from: &AccountSecret, sender: u32, nonce: u64, amount: u64, fee: u64) -> Operation {
    WithdrawRequest {
        sender: AccountIndex(sender),
        nonce,
        amount: sats(amount),
        fee: sats(fee),
        script_pubkey: script(3),
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

/// The rows of the one chunk under test, by position: see [`batch`].
const DEPOSIT_NEW: usize = 0;
const DEPOSIT: usize = 1;
const SEND: usize = 2;
const RECEIVE: usize = 3;
const WITHDRAW: usize = 6;
const PADDING: usize = 7;

/// A cheating prover: changes what it likes, then makes everything else fit again, so that only the rule under
/// test is broken.
fn cheat(tamper: impl FnOnce(&mut Vec<RowAssignment>)) -> ChunkAssignment {
    let transition = transition();
    let mut chunk = ChunkAssignment::from(&transition.chunks[0]);
    tamper(&mut chunk.rows);
    let mut tree = Tree::from_leaves(
        ledger()
            .accounts()
            .iter()
            .map(ledger::Account::leaf)
            .collect(),
    );
    for row in &mut chunk.rows {
        rebuild_path(row, &mut tree);
    }
    chunk
}

/// Puts the row's children in place as the tree has them, and its leaf after into the tree.
fn rebuild_path(row: &mut RowAssignment, tree: &mut Tree) {
    let index = row
        .index_bits
        .iter()
        .rev()
        .fold(0, |sum, bit| 2 * sum + u32::from(!bit.is_zero()));
    let index = AccountIndex(index);
    row.children = tree.path(index).children(index, tree.leaf(index)).0;
    let (mut balance, mut nonce, mut active) = (row.balance, row.nonce, Field::zero());
    for (flag, kind) in row.flags.iter().zip(&Kind::ALL[1..]) {
        let effect = kind.effect();
        let change = effect.balance;
        balance +=
            *flag * (Field::from(change.amount) * row.amount + Field::from(change.fee) * row.fee);
        nonce += *flag * Field::from(effect.signed);
        active += flag;
    }
    if !row.used.is_zero() || !active.is_zero() {
        let leaf = statement::leaf(&mut Native, row.key, balance, nonce);
        assert!(tree.set(index, leaf.into()));
    }
}

/// Constraints that one broken rule breaks, at most: a row's key, say, is compared in two coordinates, and so is the
/// signature that it should have made.
const MOST_BROKEN: usize = 8;

/// The constraints of the tampered rule fail, and no others.
#[track_caller]
fn refused(chunk: &ChunkAssignment) {
    let variables = assign(fitting_inputs(chunk), chunk);
    let broken = (0..CONSTRAINTS.len())
        .filter(|&i| !holds(i, &variables))
        .count();
    assert!(broken > 0, "the circuit accepts the tampered witness");
    assert!(
        broken <= MOST_BROKEN,
        "{broken} constraints fail: something else is broken as well"
    );
}

#[track_caller]
fn cheat_is_refused(tamper: impl FnOnce(&mut Vec<RowAssignment>)) {
    refused(&cheat(tamper));
}

/// Replaces a row's signature by a valid one over other content.
fn sign_instead(row: &mut RowAssignment, operation: &Operation) {
    let signature = operation.signature().unwrap();
    row.nonce_point = [signature.nonce_point().x, signature.nonce_point().y];
    row.scalar_bits = low_bits(&signature.scalar(), SCALAR_BITS);
}

/// Replaces a row's content, and signs it rightly.
fn sign_row(rows: &mut [RowAssignment], at: usize, operation: &Operation) {
    let (row, _) = Row::of(operation, &VAULT);
    let target = &mut rows[at];
    (target.amount, target.fee) = (row.amount.into(), row.fee.into());
    (target.target, target.detail) = (row.target, row.detail);
    sign_instead(target, operation);
}

fn send_request() -> TransferRequest {
    TransferRequest {
        sender: AccountIndex(0),
        nonce: 0,
        amount: sats(7_000),
        fee: sats(10),
        recipient: secret(1).public(),
        last_valid: SequenceNumber(9),
    }
}

fn withdraw_request() -> WithdrawRequest {
    WithdrawRequest {
        sender: AccountIndex(3),
        nonce: 0,
        amount: sats(9_000),
        fee: sats(30),
        script_pubkey: script(3),
        last_valid: SequenceNumber(9),
    }
}

#[test]
fn a_cheat_that_changes_nothing_is_the_honest_witness() {
    let chunk = cheat(|_| ());
    let inputs = transition().chunks[0].inputs();
    assert_eq!(fitting_inputs(&chunk), public(&inputs));
    assert!(satisfied(&inputs, &chunk));
}

#[test]
fn signature() {
    cheat_is_refused(|rows| rows[SEND].scalar_bits[7] = Field::one() - rows[SEND].scalar_bits[7]);
    cheat_is_refused(|rows| rows[SEND].nonce_point[0] += Field::one());
    cheat_is_refused(|rows| rows[SEND].nonce_point[1] += Field::one());
    cheat_is_refused(|rows| rows[SEND].nonce_point = rows[WITHDRAW].nonce_point);
    // R off the curve, and of small order.
    cheat_is_refused(|rows| rows[WITHDRAW].nonce_point = [Field::zero(), -Field::one()]);
    // Somebody else's signature of the same message.
    cheat_is_refused(|rows| {
        sign_instead(&mut rows[SEND], &send_request().sign(&secret(1), &VAULT))
    });
    cheat_is_refused(|rows| {
        sign_instead(
            &mut rows[WITHDRAW],
            &withdraw_request().sign(&secret(0), &VAULT),
        )
    });
}

#[test]
fn each_signed_field_of_a_transfer() {
    let sign = |change: &dyn Fn(&mut TransferRequest)| {
        let mut request = send_request();
        change(&mut request);
        let operation = request.sign(&secret(0), &VAULT);
        cheat_is_refused(|rows| sign_instead(&mut rows[SEND], &operation));
    };
    sign(&|request| request.sender = AccountIndex(1));
    sign(&|request| request.nonce = 1);
    sign(&|request| request.amount = sats(6_999));
    sign(&|request| request.fee = sats(9));
    sign(&|request| request.recipient = secret(2).public());
    sign(&|request| request.last_valid = SequenceNumber(8));
    // Another vault, and another operation type.
    cheat_is_refused(|rows| {
        sign_instead(
            &mut rows[SEND],
            &send_request().sign(&secret(0), &VaultId([8; 32])),
        )
    });
    let withdrawal = WithdrawRequest {
        sender: AccountIndex(0),
        ..withdraw_request()
    };
    let withdrawal = WithdrawRequest {
        amount: sats(7_000),
        fee: sats(10),
        ..withdrawal
    };
    cheat_is_refused(|rows| sign_instead(&mut rows[SEND], &withdrawal.sign(&secret(0), &VAULT)));
    // The right request is accepted: what fails above is the changed field.
    let same =
        cheat(|rows| sign_instead(&mut rows[SEND], &send_request().sign(&secret(0), &VAULT)));
    assert!(
        CONSTRAINTS
            .unsatisfied(&assign(fitting_inputs(&same), &same))
            .is_none()
    );
}

#[test]
fn each_signed_field_of_a_withdrawal() {
    let sign = |change: &dyn Fn(&mut WithdrawRequest)| {
        let mut request = withdraw_request();
        change(&mut request);
        let operation = request.sign(&secret(3), &VAULT);
        cheat_is_refused(|rows| sign_instead(&mut rows[WITHDRAW], &operation));
    };
    sign(&|request| request.sender = AccountIndex(2));
    sign(&|request| request.nonce = 1);
    sign(&|request| request.amount = sats(8_999));
    sign(&|request| request.fee = sats(29));
    sign(&|request| request.script_pubkey = script(4));
    sign(&|request| {
        request.script_pubkey = ScriptBuf::from_bytes([script(3).as_bytes(), &[0]].concat())
    });
    sign(&|request| request.last_valid = SequenceNumber(10));
    cheat_is_refused(|rows| {
        sign_instead(
            &mut rows[WITHDRAW],
            &withdraw_request().sign(&secret(3), &VaultId([8; 32])),
        );
    });
}

#[test]
fn a_signed_row_that_claims_another_kind() {
    // A transfer's signature used to burn, and a withdrawal's to pay an account.
    cheat_is_refused(|rows| rows[WITHDRAW].flags = rows[SEND].flags);
    cheat_is_refused(|rows| rows[SEND].flags = rows[WITHDRAW].flags);
    // A debit's row presented as a credit needs no signature, but its key is not the target.
    cheat_is_refused(|rows| rows[WITHDRAW].flags = rows[DEPOSIT].flags);
}

#[test]
fn balance() {
    // 100,000 in the account; signed rightly for more than that, with and without the fee.
    for (amount, fee) in [
        (100_001, 0),
        (100_000, 1),
        (1, 100_000),
        (u64::MAX, u64::MAX),
    ] {
        let operation = withdraw(&secret(3), 3, 0, amount, fee);
        cheat_is_refused(|rows| sign_row(rows, WITHDRAW, &operation));
    }
    let all = withdraw(&secret(3), 3, 0, 99_999, 1);
    let all = cheat(|rows| sign_row(rows, WITHDRAW, &all));
    assert!(
        CONSTRAINTS
            .unsatisfied(&assign(fitting_inputs(&all), &all))
            .is_none()
    );
    // More than the leaf says.
    cheat_is_refused(|rows| rows[WITHDRAW].balance += Field::one());
}

#[test]
fn nonce() {
    // The leaf's nonce is 0, and the row's must be the same.
    cheat_is_refused(|rows| {
        rows[WITHDRAW].nonce = Field::one();
        sign_instead(&mut rows[WITHDRAW], &withdraw(&secret(3), 3, 1, 9_000, 30));
    });
    // The same transfer twice: its nonce has been used.
    cheat_is_refused(|rows| {
        let balance = rows[SEND].balance - rows[SEND].amount - rows[SEND].fee;
        rows[WITHDRAW] = RowAssignment {
            balance,
            nonce: Field::one(),
            ..rows[SEND].clone()
        };
        rows[PADDING] = RowAssignment {
            balance: rows[RECEIVE].balance + rows[RECEIVE].amount,
            ..rows[RECEIVE].clone()
        };
    });
    // A leaf after whose nonce has not gone up.
    another_account_after(|account| account.nonce -= 1);
}

#[test]
fn amount_overflow() {
    let too_much = Field::from(u128::from(u64::MAX) + 6);
    for amount in [too_much, -Field::from(5u8)] {
        cheat_is_refused(|rows| rows[DEPOSIT].amount = amount);
        cheat_is_refused(|rows| rows[DEPOSIT_NEW].amount = amount);
    }
    // A fee below zero would mint.
    cheat_is_refused(|rows| {
        rows[DEPOSIT].fee = -Field::from(5u8);
    });
    // A balance of 2^64 and more, by an amount of less.
    cheat_is_refused(|rows| rows[DEPOSIT].amount = Field::from(u64::MAX));
    // A supply of 2^64 and more, all balances below.
    cheat_is_refused(|rows| rows[DEPOSIT_NEW].amount = Field::from(u64::MAX - 100_000));
}

#[test]
fn sibling() {
    for (height, child) in [(0, 1), (0, 3), (3, 2), (11, 3)] {
        let mut chunk = cheat(|_| ());
        chunk.rows[SEND].children[height][child] += Field::one();
        refused(&chunk);
    }
}

#[test]
fn wrong_leaf() {
    // Another index than the leaf's.
    for bit in [0, 1, 5, 23] {
        let mut chunk = cheat(|_| ());
        chunk.rows[DEPOSIT].index_bits[bit] = Field::one() - chunk.rows[DEPOSIT].index_bits[bit];
        refused(&chunk);
    }
    // Another account's leaf: the key must be the target.
    cheat_is_refused(|rows| {
        let other = rows[WITHDRAW].clone();
        let row = &mut rows[DEPOSIT];
        (row.key, row.balance, row.nonce) = (other.key, other.balance, other.nonce);
        row.index_bits = other.index_bits;
    });
    // A leaf that is not in the tree.
    cheat_is_refused(|rows| rows[DEPOSIT].nonce += Field::one());
}

#[test]
fn leaf_reset() {
    // A used leaf as if it were unused: to forget its balance, or give it to another key.
    cheat_is_refused(|rows| {
        (
            rows[DEPOSIT].used,
            rows[DEPOSIT].balance,
            rows[DEPOSIT].nonce,
        ) = Default::default();
    });
    cheat_is_refused(|rows| {
        (
            rows[PADDING].used,
            rows[PADDING].balance,
            rows[PADDING].nonce,
        ) = Default::default();
    });
    // An unused leaf that starts with a balance or a nonce.
    cheat_is_refused(|rows| rows[DEPOSIT_NEW].balance = Field::one());
    cheat_is_refused(|rows| rows[DEPOSIT_NEW].nonce = Field::one());
    // Neither used nor unused.
    cheat_is_refused(|rows| rows[DEPOSIT].used = Field::from(2u8));
    // A debit of an unused leaf.
    cheat_is_refused(|rows| rows[DEPOSIT_NEW].flags = rows[WITHDRAW].flags);
    // A tree after in which the leaf is 0.
    let transition = transition();
    let mut inputs = transition.chunks[0].inputs();
    let mut leaves: Vec<Digest> = transition_ledger()
        .accounts()
        .iter()
        .map(ledger::Account::leaf)
        .collect();
    leaves[3] = Digest::default();
    inputs.digest_after = State {
        root: Tree::from_leaves(leaves).root(),
        ..transition.after
    }
    .digest();
    assert!(!satisfied(&inputs, &cheat(|_| ())));
}

#[test]
fn key_change() {
    cheat_is_refused(|rows| {
        let key = secret(20).public().point();
        rows[DEPOSIT].key = [key.x, key.y];
        rows[DEPOSIT].target = rows[DEPOSIT].key;
    });
    cheat_is_refused(|rows| {
        let key = secret(20).public().point();
        rows[PADDING].key = [key.x, key.y];
    });
    another_account_after(|account| account.key = secret(20).public());
}

/// The honest witness does not lead to a state in which the withdrawing account is another.
#[track_caller]
fn another_account_after(change: impl FnOnce(&mut ledger::Account)) {
    let transition = transition();
    let mut inputs = transition.chunks[0].inputs();
    let mut accounts = transition_ledger().accounts().to_vec();
    change(&mut accounts[3]);
    inputs.digest_after = Ledger::from_accounts(accounts).unwrap().digest();
    assert!(!satisfied(&inputs, &cheat(|_| ())));
}

fn transition_ledger() -> Ledger {
    let mut ledger = ledger();
    ledger.apply_batch(&batch(), &VAULT, SEQUENCE).unwrap();
    ledger
}

#[test]
fn supply() {
    let transition = transition();
    let mut inputs = transition.chunks[0].inputs();
    for supply in [
        transition.after.supply + sats(1),
        transition.after.supply - sats(1),
        transition.before.supply,
    ] {
        inputs.digest_after = State {
            supply,
            ..transition.after
        }
        .digest();
        assert!(!satisfied(&inputs, &cheat(|_| ())));
    }
    let mut chunk = cheat(|_| ());
    chunk.supply += Field::one();
    assert!(!satisfied(&transition.chunks[0].inputs(), &chunk));
    // A supply that would go below zero: the chunk's end is out of range.
    let mut chunk = cheat(|_| ());
    chunk.supply = Field::one();
    chunk.rows[DEPOSIT_NEW].amount = Field::zero();
    refused(&chunk);
}

#[test]
fn carry_amount() {
    cheat_is_refused(|rows| rows[RECEIVE].amount += Field::one());
    cheat_is_refused(|rows| rows[RECEIVE].amount = Field::zero());
}

#[test]
fn carry_recipient() {
    // Credited to another account, with the target changed to its key.
    cheat_is_refused(|rows| {
        let other = rows[WITHDRAW].clone();
        let row = &mut rows[RECEIVE];
        (row.key, row.balance, row.nonce) = (other.key, other.balance, other.nonce);
        (row.index_bits, row.target) = (other.index_bits, other.key);
        let amount = rows[RECEIVE].amount;
        rows[WITHDRAW].balance += amount;
    });
    // The right target, but another leaf.
    cheat_is_refused(|rows| {
        let other = rows[WITHDRAW].clone();
        let row = &mut rows[RECEIVE];
        (row.key, row.balance, row.nonce) = (other.key, other.balance, other.nonce);
        row.index_bits = other.index_bits;
        let amount = rows[RECEIVE].amount;
        rows[WITHDRAW].balance += amount;
    });
    cheat_is_refused(|rows| rows[RECEIVE].target[1] = -rows[RECEIVE].target[1]);
}

#[test]
fn carry_not_taken_by_the_next_row() {
    let padding = |row: &RowAssignment| RowAssignment {
        flags: Default::default(),
        amount: Field::zero(),
        target: Default::default(),
        ..row.clone()
    };
    // Padding in the credit's place, and in the debit's.
    cheat_is_refused(|rows| rows[RECEIVE] = padding(&rows[RECEIVE]));
    cheat_is_refused(|rows| rows[RECEIVE].flags = Default::default());
    // A credit that follows no debit.
    cheat_is_refused(|rows| rows[DEPOSIT].flags = rows[RECEIVE].flags);
    // A deposit in the credit's place: would mint.
    cheat_is_refused(|rows| rows[RECEIVE].flags = rows[DEPOSIT].flags);
    // Another row between the two.
    cheat_is_refused(|rows| {
        let between = RowAssignment {
            used: Field::one(),
            ..padding(&rows[PADDING])
        };
        rows.insert(RECEIVE, between);
        rows.pop();
    });
}

/// A chunk of padding on account 0, with one row in another's place.
fn lone_row(at: usize, row: &RowAssignment) -> ChunkAssignment {
    cheat(|rows| {
        let mut idle = rows[PADDING].clone();
        (idle.balance, idle.nonce) = (Field::from(100_000u32), Field::zero());
        let mut row = row.clone();
        (row.balance, row.nonce) = (idle.balance, idle.nonce);
        *rows = vec![idle; CHUNK_ROWS];
        rows[at] = row;
    })
}

#[test]
fn carry_at_the_ends() {
    let rows = cheat(|_| ()).rows;
    // A chunk that starts with a credit, or ends with a debit.
    refused(&lone_row(0, &rows[RECEIVE]));
    refused(&lone_row(CHUNK_ROWS - 1, &rows[SEND]));
    // Another row at the same places is accepted.
    for at in [0, CHUNK_ROWS - 1] {
        let mut chunk = lone_row(at, &rows[DEPOSIT]);
        assert!(
            CONSTRAINTS
                .unsatisfied(&assign(fitting_inputs(&chunk), &chunk))
                .is_none()
        );
        chunk.rows[at].flags = rows[RECEIVE].flags;
        refused(&chunk);
    }
}

#[test]
fn commitment() {
    let transition = transition();
    let honest_inputs = transition.chunks[0].inputs();
    // Other operations with the same effect on the state: another last valid number, another outpoint.
    let mut other = batch();
    other[4] = WithdrawRequest {
        last_valid: SequenceNumber(8),
        ..withdraw_request()
    }
    .sign(&secret(3), &VAULT);
    other[0] = deposit(secret(10).public(), 5_000, 99);
    let other = ledger().apply_batch(&other, &VAULT, SEQUENCE).unwrap();
    assert_eq!(other.after, transition.after);
    assert!(!satisfied(
        &honest_inputs,
        &ChunkAssignment::from(&other.chunks[0])
    ));
    // The same deposits for another vault.
    let deposits = |vault: &VaultId| {
        ledger()
            .apply_batch(&batch()[..2], vault, SEQUENCE)
            .unwrap()
    };
    let (here, there) = (deposits(&VAULT), deposits(&VaultId([8; 32])));
    assert_eq!(here.after, there.after);
    assert!(!satisfied(
        &here.chunks[0].inputs(),
        &ChunkAssignment::from(&there.chunks[0])
    ));
    let mut chunk = cheat(|_| ());
    chunk.start += Field::one();
    assert!(!satisfied(&honest_inputs, &chunk));
    // Rows in another order that leads to the same state.
    let mut swapped = batch();
    swapped.swap(2, 3);
    let swapped = ledger().apply_batch(&swapped, &VAULT, SEQUENCE).unwrap();
    assert_eq!(swapped.after, transition.after);
    assert!(!satisfied(
        &honest_inputs,
        &ChunkAssignment::from(&swapped.chunks[0])
    ));
    // A row of padding that claims to move something.
    cheat_changes_the_commitment(|rows| rows[PADDING].amount = Field::one());
    cheat_changes_the_commitment(|rows| rows[PADDING].target[0] = Field::one());
}

#[track_caller]
fn cheat_changes_the_commitment(tamper: impl FnOnce(&mut Vec<RowAssignment>)) {
    let inputs = transition().chunks[0].inputs();
    assert!(!satisfied(&inputs, &cheat(tamper)));
}

/// `value + modulus` in `count` bits, if it fits.
fn alias<F: PrimeField>(value: F, count: usize) -> Option<Vec<Field>> {
    let mut sum = value.into_bigint();
    let carry = sum.add_with_carry(&F::MODULUS);
    let fits = !carry && sum.num_bits() as usize <= count;
    fits.then(|| {
        sum.to_bits_le()
            .into_iter()
            .take(count)
            .map(Field::from)
            .collect()
    })
}

#[test]
fn aliased_encodings() {
    // The signature's scalar plus the group order: the same point.
    let (operation, bits) = std::iter::repeat_with(|| withdraw_request().sign(&secret(3), &VAULT))
        .find_map(|operation| {
            let bits = alias(operation.signature()?.scalar(), SCALAR_BITS)?;
            Some((operation, bits))
        })
        .unwrap();
    cheat_is_refused(|rows| {
        sign_instead(&mut rows[WITHDRAW], &operation);
        rows[WITHDRAW].scalar_bits = bits;
    });

    // The challenge hash plus the modulus: other low bits, so another challenge, signed for with the secret.
    let scalar = Scalar::deserialize_compressed(secret(3).to_bytes().as_slice()).unwrap();
    let key = secret(3).public().point();
    let (row, _) = Row::of(&withdraw_request().sign(&secret(3), &VAULT), &VAULT);
    let (point, response, bits) = (1u64..)
        .find_map(|nonce| {
            let nonce = Scalar::from(nonce);
            let point = (EdwardsAffine::generator() * nonce).into_affine();
            let hash =
                statement::challenge_hash(&mut Native, [point.x, point.y], key.x, row.message());
            let bits = alias(hash, Field::MODULUS_BIT_SIZE as usize)?;
            let c = bits[..128].iter().rev().fold(Scalar::zero(), |sum, bit| {
                sum + sum
                    + if bit.is_zero() {
                        Scalar::zero()
                    } else {
                        Scalar::one()
                    }
            });
            let e = Scalar::from(2u8).pow([128]) + c + c + Scalar::one();
            Some((point, nonce + e * scalar, bits))
        })
        .unwrap();
    cheat_is_refused(|rows| {
        rows[WITHDRAW].nonce_point = [point.x, point.y];
        rows[WITHDRAW].scalar_bits = low_bits(&response, SCALAR_BITS);
        rows[WITHDRAW].hash_bits = Some(bits);
    });

    // Bits that are none: 2 + 0 * 2 for 0 + 1 * 2.
    let mut chunk = cheat(|_| ());
    let bits = &mut chunk.rows[PADDING - 1].index_bits;
    (bits[0], bits[1]) = (bits[0] + Field::from(2u8), bits[1] - Field::one());
    refused(&chunk);
    cheat_is_refused(|rows| {
        let bits = &mut rows[SEND].scalar_bits;
        (bits[0], bits[1]) = (bits[0] + Field::from(2u8), bits[1] - Field::one());
    });
    // Two kinds at once, and fractions of kinds.
    cheat_is_refused(|rows| {
        rows[DEPOSIT].flags = [Field::one(), Field::zero(), Field::zero(), Field::one()]
    });
    cheat_is_refused(|rows| {
        rows[DEPOSIT].flags = [
            Field::from(2u8),
            Field::zero(),
            Field::zero(),
            -Field::one(),
        ];
    });
    cheat_is_refused(|rows| {
        rows[DEPOSIT].flags = [Field::from(2u8), Zero::zero(), Zero::zero(), Zero::zero()]
    });
}

/// No variable is free: each is pinned by the others and the public inputs.
#[test]
fn every_variable_is_constrained() {
    let chunk = &transition().chunks[0];
    let mut variables = assign(public(&chunk.inputs()), &ChunkAssignment::from(chunk));
    let mut users = vec![Vec::new(); variables.len()];
    for matrix in &CONSTRAINTS.matrices {
        for (constraint, terms) in matrix.iter().enumerate() {
            for (_, variable) in terms {
                users[*variable].push(constraint);
            }
        }
    }
    for (variable, users) in users.iter().enumerate().skip(1) {
        let value = variables[variable];
        variables[variable] += Field::from(3u8);
        assert!(
            users.iter().any(|&i| !holds(i, &variables)),
            "variable {variable} is free"
        );
        variables[variable] = value;
    }
}

fn holds(constraint: usize, variables: &[Field]) -> bool {
    let [a, b, c] = [0, 1, 2].map(|side| {
        let terms = &CONSTRAINTS.matrices[side][constraint];
        terms
            .iter()
            .map(|(coefficient, variable)| *coefficient * variables[*variable])
            .sum::<Field>()
    });
    a * b == c
}

/// One operation by numbers, valid or not.
fn random_operation(ledger: &Ledger, (kind, who, whom, amount): (u8, u64, u64, u64)) -> Operation {
    let sender = secret(who);
    let (index, nonce) = ledger
        .account_by_key(&sender.public())
        .map_or((0, 0), |(index, account)| (index.0, account.nonce));
    match kind {
        0 => deposit(secret(whom).public(), amount, amount as u32),
        1 => transfer(
            &sender,
            index,
            nonce,
            secret(whom).public(),
            amount,
            amount / 7,
        ),
        _ => withdraw(&sender, index, nonce, amount, amount / 5),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn native_code_and_circuit_agree(
        numbers in proptest::collection::vec((0u8..3, 0u64..7, 0u64..7, 1u64..60_000), 1..24)
    ) {
        let start = ledger();
        let mut ledger = start.clone();
        let mut operations = Vec::new();
        for numbers in numbers {
            let operation = random_operation(&ledger, numbers);
            let before = ledger.digest();
            match ledger.apply(&operation, &VAULT, SEQUENCE) {
                Ok(_) => operations.push(operation),
                Err(_) => prop_assert_eq!(before, ledger.digest()),
            }
        }
        let mut replayed = start.clone();
        let transition = replayed.apply_batch(&operations, &VAULT, SEQUENCE).unwrap();
        prop_assert_eq!(ledger.digest(), replayed.digest());
        prop_assert_eq!(transition.chunk_inputs(), chunk_inputs(&VAULT, &operations, &transition.digests()).unwrap());
        for chunk in &transition.chunks {
            let assignment = ChunkAssignment::from(chunk);
            prop_assert_eq!(fitting_inputs(&assignment), public(&chunk.inputs()));
            prop_assert!(satisfied(&chunk.inputs(), &assignment));
        }
        let supply: Amount = replayed.accounts().iter().map(|account| account.balance).sum();
        prop_assert_eq!(supply, replayed.supply());
        replayed.revert(&transition).unwrap();
        prop_assert_eq!(replayed.digest(), start.digest());
        prop_assert_eq!(replayed.accounts(), start.accounts());
    }
}
