//! What proofs cost on this machine: `cargo bench -p proof`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

#[path = "../../benches/steal.rs"]
mod steal;

use std::{
    fs,
    time::{Duration, Instant},
};

use bitcoin::{Amount, OutPoint, ScriptBuf, hashes::Hash as _};
use ledger::{
    Account, AccountIndex, AccountSecret, CHUNK_ROWS, Ledger, Operation, SequenceNumber,
    TransferRequest, VaultId, WithdrawRequest,
};
use proof::{Keys, constraint_count, prove_chunk, verify_chunk, verify_chunks};
use rand::{SeedableRng as _, rngs::OsRng};
use rand_chacha::ChaCha8Rng;
use steal::Steal;

const VAULT: VaultId = VaultId([1; 32]);
const SEQUENCE: SequenceNumber = SequenceNumber(1);
const ACCOUNTS: u32 = 1_000_000;
/// Accounts that have a known secret, for signed operations.
const SENDERS: u32 = 64;
const PROOFS: usize = 5;
/// A multiple of the proofs; so many that the kernel's ticks of CPU time are small beside them.
const VERIFICATIONS: usize = 100;
const OPERATIONS: u32 = 2_000;

fn main() {
    let steal = Steal::now();
    println!("{:<52} {:>14} {:>14}", "", "wall", "cpu");
    println!("{:<52} {:>14}", "constraints per chunk", constraint_count());
    println!(
        "{:<52} {:>14}",
        "constraints per leaf update",
        constraint_count().div_ceil(CHUNK_ROWS)
    );

    let senders: Vec<AccountSecret> = (0..u64::from(SENDERS))
        .map(|i| AccountSecret::generate(&mut ChaCha8Rng::seed_from_u64(i)))
        .collect();
    let (keys, time) = timed(|| Keys::setup(&mut OsRng).unwrap());
    row("setup of the keys", time);

    proofs(&senders, &keys);
    native(&senders);
    println!("{steal}");
}

/// Chunks with every kind of row and all rows in use.
fn proofs(senders: &[AccountSecret], keys: &Keys) {
    let mut ledger = Ledger::new();
    for (i, sender) in (0u32..).zip(senders) {
        ledger.apply(&deposit(sender, i), &VAULT, SEQUENCE).unwrap();
    }
    let (mut proving, mut verified) = (Vec::new(), Vec::new());
    let mut operations = 0;
    for nonce in 0..PROOFS as u64 {
        let batch = [
            deposit(&senders[1], 1_000 + nonce as u32),
            transfer(senders, 0, nonce),
            transfer(senders, 1, nonce),
            deposit(&senders[2], 2_000 + nonce as u32),
            withdraw(senders, 3, nonce),
            deposit(&senders[4], 3_000 + nonce as u32),
        ];
        operations = batch.len();
        let transition = ledger.apply_batch(&batch, &VAULT, SEQUENCE).unwrap();
        let chunk = &transition.chunks[0];
        let (proof, time) = timed(|| prove_chunk(&keys.proving, chunk).unwrap());
        proving.push(time);
        verified.push((chunk.inputs(), proof));
    }
    let (fastest, median) = summary(&mut proving);
    row("prove one chunk, fastest", fastest);
    row("prove one chunk, median", median);
    row(
        &format!("prove, per operation ({operations} operations a chunk)"),
        median.per(operations as u32),
    );

    let (_, time) = timed(|| {
        for (inputs, proof) in verified.iter().cycle().take(VERIFICATIONS) {
            verify_chunk(&keys.verifying, inputs, proof).unwrap();
        }
    });
    row("verify one chunk", time.per(VERIFICATIONS as u32));
    let (_, time) = timed(|| {
        for _ in 0..VERIFICATIONS / PROOFS {
            verify_chunks(&keys.verifying, &verified).unwrap();
        }
    });
    row(
        &format!("verify {PROOFS} chunks at once, per chunk"),
        time.per(VERIFICATIONS as u32),
    );
}

/// Replay on a large tree, on one core as an operator does it.
fn native(senders: &[AccountSecret]) {
    let account = |key| Account {
        key,
        balance: Amount::from_sat(1_000_000),
        nonce: 0,
    };
    let mut accounts: Vec<Account> = senders
        .iter()
        .map(|sender| account(sender.public()))
        .collect();
    // The other accounts' keys are never used: multiples of the generator, one addition each.
    let (rest, time) = timed(|| ledger::AccountKey::sequence(ACCOUNTS as usize - accounts.len()));
    accounts.extend(rest.into_iter().map(account));
    row("make keys for the tree", time);
    let (ledger, time) = timed(|| Ledger::from_accounts(accounts).unwrap());
    row("build a tree of 1,000,000 accounts", time);
    let mut ledger = ledger;

    let deposits: Vec<Operation> = (0..OPERATIONS)
        .map(|i| deposit(&senders[(i % SENDERS) as usize], i))
        .collect();
    rate(&mut ledger, "deposits", &deposits);
    let transfers: Vec<Operation> = (0..OPERATIONS)
        .map(|i| transfer(senders, i % SENDERS, u64::from(i / SENDERS)))
        .collect();
    rate(&mut ledger, "transfers", &transfers);
}

fn rate(ledger: &mut Ledger, name: &str, operations: &[Operation]) {
    let (transition, time) = timed(|| ledger.apply_batch(operations, &VAULT, SEQUENCE).unwrap());
    let [wall, cpu] =
        [time.wall, time.cpu].map(|time| operations.len() as f64 / time.as_secs_f64());
    println!(
        "{:<52} {wall:>12.0}/s {cpu:>12.0}/s",
        format!("replay {name}, 1,000,000 accounts")
    );
    let (_, time) = timed(|| ledger.revert(&transition).unwrap());
    row(&format!("undo {} {name}", operations.len()), time);
    ledger.apply_batch(operations, &VAULT, SEQUENCE).unwrap();
}

fn deposit(to: &AccountSecret, vout: u32) -> Operation {
    Operation::Deposit {
        account: to.public(),
        amount: Amount::from_sat(100_000),
        outpoint: OutPoint {
            txid: bitcoin::Txid::from_byte_array([5; 32]),
            vout,
        },
    }
}

fn transfer(senders: &[AccountSecret], sender: u32, nonce: u64) -> Operation {
    let recipient = senders[((sender + 1) % SENDERS) as usize].public();
    let (amount, fee) = (Amount::from_sat(1_000), Amount::from_sat(10));
    let request = TransferRequest {
        sender: AccountIndex(sender),
        nonce,
        amount,
        fee,
        recipient,
        last_valid: SEQUENCE,
    };
    request.sign(&senders[sender as usize], &VAULT)
}

fn withdraw(senders: &[AccountSecret], sender: u32, nonce: u64) -> Operation {
    WithdrawRequest {
        sender: AccountIndex(sender),
        nonce,
        amount: Amount::from_sat(1_000),
        fee: Amount::from_sat(10),
        script_pubkey: ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([3; 20])),
        last_valid: SEQUENCE,
    }
    .sign(&senders[sender as usize], &VAULT)
}

/// Wall time, and the time that this process's threads were on a CPU.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

impl Cost {
    fn per(self, count: u32) -> Self {
        Self {
            wall: self.wall / count,
            cpu: self.cpu / count,
        }
    }
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Cost) {
    let (start, cpu) = (Instant::now(), process_cpu());
    let out = run();
    (
        out,
        Cost {
            wall: start.elapsed(),
            cpu: process_cpu().saturating_sub(cpu),
        },
    )
}

/// User and system time of this process, in the kernel's ticks of 10 ms; zero where there is no `/proc`.
fn process_cpu() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15; the name in field 2 ends with the last bracket.
    let fields = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(10 * ticks)
}

/// Fastest and median.
fn summary(times: &mut [Cost]) -> (Cost, Cost) {
    times.sort();
    (times[0], times[times.len() / 2])
}

fn row(name: &str, cost: Cost) {
    let [wall, cpu] = [cost.wall, cost.cpu].map(|time| time.as_secs_f64() * 1_000.0);
    println!("{name:<52} {wall:>11.1} ms {cpu:>11.1} ms");
}
