//! How long a coordinator takes to be ready again, and what accounts and requests cost in memory and on disk, as both
//! grow tenfold: `./bench.sh recovery [full]`.
//!
//! Each figure comes from a process of its own, so that its memory is its own. The database is a real one, on disk.
//! Every account is a deposit in a confirmed batch of 1,000, whose transaction, terms and ledger are real; its proofs and
//! the digests between its chunks are blank, and it is written to the tables directly, since proving it takes days.
//! Waiting requests are signed transfers, one an account, written the same way.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

#[allow(dead_code, reason = "made for the tests of the API")]
#[path = "../tests/api/setting.rs"]
mod setting;
#[path = "../../benches/steal.rs"]
mod steal;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use coordinator::{
    confirm, events, queue,
    rebuild::Rebuilder,
    records::{
        BATCHES, OPERATIONS, OperationRecord, PENDING, Progress, REQUESTS, Request, TERMS, WATCHED,
    },
    terms,
};
use ledger::{
    AccountKey, AccountSecret, Ledger, Operation, Replayed, SequenceNumber, TransferRequest,
    chunk_count,
};
use node::{
    cost::Stopwatch,
    history::{self, BODIES, CANDIDATES, CONFIRMED, Confirmed, History, MAX_UNDO, SNAPSHOT},
};
use protocol::{
    api::RequestStatus,
    batch::{Body, Candidate},
    deposit::DepositTerms,
    identity::Identity,
    request::MAX_AT_ONCE,
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, Treasury},
};
use rand::{SeedableRng as _, rngs::StdRng};
use setting::Setting;
use steal::Steal;
use storage::{Changes, Direction};
use tokio_util::sync::CancellationToken;

/// Accounts and requests.
const SIZES: [(u32, u32); 3] = [(10_000, 1_000), (100_000, 10_000), (1_000_000, 100_000)];
/// Deposits in a batch.
const BATCH: usize = 1_000;
/// Operations written in one commit.
const GROUP: usize = 1_000;
/// The first block looked at; everything before is deep.
const START: u32 = 1_000_000;
/// Terms that are stored, in pages as they come from operators.
const TERMS_TRIED: usize = 5_000;
/// How often it is looked whether a part is done.
const LOOK: Duration = Duration::from_millis(2);
/// What a blank proof takes, in bytes.
const PROOF_BYTES: usize = 128;
/// Equal readings, half a second apart, after which files count as written.
const AT_REST: usize = 6;
const VALUE: Amount = Amount::from_sat(100_000);

fn main() {
    // Cargo adds flags of its own.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["make", to, accounts, requests] => {
            make(
                to.into(),
                accounts.parse().unwrap(),
                requests.parse().unwrap(),
            );
        }
        ["restart", at] => restart(at.into()),
        ["replay", at] => replay(at.into()),
        ["rebuild", from, to] => rebuild(from.into(), to.into()),
        _ => print(words.contains(&"full")),
    }
}

/// Runs a part in a process of its own, and gives the numbers that it prints.
fn apart(words: &[&str]) -> Vec<f64> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(words)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect()
}

fn print(is_full: bool) {
    let steal = Steal::now();
    // Under the build directory: the system's temporary folder may be memory, which syncs for free.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    println!(
        "Accounts are deposits in confirmed batches of {BATCH} with blank proofs, requests are signed transfers;\n\
         both are written to the tables directly. On {}.\n",
        folder.path().display()
    );
    println!(
        "{:<44} {:>12} {:>12} {:>12} {:>8}",
        "", "accounts", "requests", "", "x"
    );
    let mut before: Vec<(&str, f64)> = Vec::new();
    for (accounts, requests) in SIZES.into_iter().take(if is_full { 3 } else { 2 }) {
        let mut rows: Vec<(&str, f64)> = Vec::new();
        // As each comes: the last ones of the largest size take long.
        size(folder.path(), accounts, requests, &mut |what, figure| {
            let old = before.iter().find(|(name, _)| *name == what);
            let ratio = old.map_or(String::new(), |(_, old)| format!("{:.1}", figure / old));
            println!("{what:<44} {accounts:>12} {requests:>12} {figure:>12.1} {ratio:>8}");
            rows.push((what, figure));
        });
        println!();
        before = rows;
    }
    println!("{steal}");
}

fn size(folder: &Path, accounts: u32, requests: u32, say: &mut dyn FnMut(&'static str, f64)) {
    let old = folder.join(format!("{accounts}"));
    let new = folder.join(format!("{accounts}-anew"));
    let (old_text, new_text) = (old.to_str().unwrap(), new.to_str().unwrap());
    let made = apart(&[
        "make",
        old_text,
        &accounts.to_string(),
        &requests.to_string(),
    ]);
    let open = apart(&["restart", old_text]);
    let (each_account, each_request) = (f64::from(accounts), f64::from(requests));
    say("restart: ledger, s", open[0]);
    say("restart: ledger, s of CPU", open[1]);
    say("restart: queues and records, s", open[2]);
    say("restart: open to ready, s", open[0] + open[2]);
    say("memory, MiB", open[5] / 1024.0);
    say(
        "memory, bytes an account",
        1024.0 * (open[4] - open[3]) / each_account,
    );
    say(
        "memory, bytes a request",
        1024.0 * (open[5] - open[4]).max(0.0) / each_request,
    );
    say("disk, MiB", made[1] / f64::from(1 << 20));
    say("disk, bytes an account", made[0] / each_account);
    say(
        "disk, bytes a request",
        (made[1] - made[0]).max(0.0) / each_request,
    );
    let replay = apart(&["replay", old_text]);
    say("restart without a snapshot: ledger, s", replay[0]);
    say("restart without a snapshot: ledger, s of CPU", replay[1]);
    let anew = apart(&["rebuild", old_text, new_text]);
    say("rebuild: batches taken, s", anew[0]);
    say("rebuild: batches taken, s of CPU", anew[1]);
    say("rebuild: records written, s", anew[2]);
    say("rebuild: requests taken, s", anew[3]);
    say("rebuild: all of these, s", anew[0] + anew[2] + anew[3]);
    say("rebuild: all of these, s of CPU", anew[1] + anew[4]);
    say("rebuild: addresses stored, a second", anew[5]);
    say("rebuild: memory, MiB", anew[6] / 1024.0);
}

/// All files under a folder.
fn bytes_in(folder: &Path) -> f64 {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    // One that is being replaced may be gone by now.
    files
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.len() as f64)
        .sum()
}

/// [`bytes_in`] an open database once it has stopped merging its files.
fn bytes_at_rest(folder: &Path) -> f64 {
    let mut readings = Vec::new();
    loop {
        readings.push(bytes_in(folder));
        let last = readings.iter().rev().take(AT_REST);
        if readings.len() >= AT_REST && last.clone().all(|bytes| Some(bytes) == readings.last()) {
            return bytes_in(folder);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Resident memory in KiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1))
        .map_or(f64::NAN, |number| number.parse().unwrap())
}

/// Those that send have a known secret; the others' keys are multiples of the generator, one addition each.
fn secret(number: u32) -> AccountSecret {
    AccountSecret::generate(&mut StdRng::seed_from_u64(number.into()))
}

fn outpoint(number: usize) -> OutPoint {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    OutPoint::new(Txid::from_byte_array(bytes), 0)
}

fn make(folder: PathBuf, accounts: u32, requests: u32) {
    std::fs::create_dir_all(&folder).unwrap();
    let setting = Setting::at(folder.clone());
    terms::watch_all(&setting.reader.store, &setting.vault.group_key()).unwrap();
    let mut keys: Vec<AccountKey> = (0..requests)
        .map(|number| secret(number).public())
        .collect();
    keys.extend(AccountKey::sequence((accounts - requests) as usize));
    let mut ledger = Ledger::new();
    let genesis = setting.vault.genesis_output();
    let mut head = Treasury {
        outpoint: genesis.outpoint,
        value: genesis.amount,
        commitment: Commitment {
            sequence: SequenceNumber(0),
            supply: Amount::ZERO,
            digest: ledger.digest().to_bytes(),
        },
    };
    let mut settling = VecDeque::new();
    for (number, keys) in keys.chunks(BATCH).enumerate() {
        let mut changes = Changes::new();
        let replayed;
        (head, replayed) = confirm_batch(
            &setting,
            &mut ledger,
            &head,
            number * BATCH,
            keys,
            &mut changes,
        );
        settling.push_back((head.commitment.sequence, replayed));
        // The snapshot, as the history writes it behind the batches that can be undone.
        if settling.len() > MAX_UNDO {
            let (sequence, batch) = settling.pop_front().unwrap();
            history::settle(&mut changes, sequence, &batch);
        }
        setting.reader.store.commit(changes).unwrap();
    }
    drop(setting);
    // Opened again, so that what was in the log file is in tables, as it will be when it is looked at.
    let setting = Setting::at(folder.clone());
    println!("{}", bytes_at_rest(&folder));
    let all: Vec<u32> = (0..requests).collect();
    for group in all.chunks(GROUP) {
        let mut changes = Changes::new();
        for number in group {
            wait(&setting, *number, &mut changes);
        }
        setting.reader.store.commit(changes).unwrap();
    }
    drop(setting);
    let _setting = Setting::at(folder.clone());
    println!("{}", bytes_at_rest(&folder));
}

/// Writes a batch that credits each key once, as if it had been confirmed.
fn confirm_batch(
    setting: &Setting,
    ledger: &mut Ledger,
    head: &Treasury,
    first: usize,
    keys: &[AccountKey],
    changes: &mut Changes,
) -> (Treasury, Replayed) {
    let vault = &setting.vault;
    let sequence = SequenceNumber(head.commitment.sequence.0 + 1);
    let refund = vault.group_key();
    let parameters = &setting.reader.parameters;
    let terms: Vec<DepositTerms> = keys
        .iter()
        .map(|key| DepositTerms::offered(vault.id(), parameters, *key, refund))
        .collect();
    let operations: Vec<Operation> = keys
        .iter()
        .enumerate()
        .map(|(at, key)| Operation::Deposit {
            account: *key,
            amount: VALUE - parameters.deposit_fee,
            outpoint: outpoint(first + at),
        })
        .collect();
    let replayed = ledger.replay(&operations, &vault.id(), sequence).unwrap();
    let chunks = chunk_count(&operations);
    let mut digests = vec![[0; 32]; chunks + 1];
    digests[0] = replayed.before.digest().to_bytes();
    digests[chunks] = replayed.after.digest().to_bytes();
    let deposits: Vec<Swept> = terms
        .iter()
        .enumerate()
        .map(|(at, terms)| Swept {
            outpoint: outpoint(first + at),
            value: VALUE,
            address: terms.address(&refund).unwrap(),
        })
        .collect();
    let plan = BatchPlan {
        treasury: head,
        deposits: &deposits,
        top_ups: &[],
        withdrawals: &[],
        next: Commitment {
            sequence,
            supply: replayed.after.supply,
            digest: digests[chunks],
        },
        fee: Amount::from_sat(1_000),
    };
    let built = BatchTransaction::build(vault.key(), &plan).unwrap();
    let body = Body {
        vault: vault.id(),
        sequence,
        operations,
        proofs: vec![vec![0; PROOF_BYTES]; chunks],
        digests,
        terms,
    };
    let encoded = body.encode();
    let txid = built.unsigned.compute_txid();
    let candidate = Candidate {
        vault: vault.id(),
        sequence,
        parent: head.outpoint,
        body: Body::hash_encoded(&encoded),
        top_ups: Vec::new(),
        fee: plan.fee,
        txid,
    };
    history::keep_in(changes, &candidate, &encoded);
    let confirmed = Confirmed {
        treasury: built.treasury,
        height: 100 + u32::try_from(sequence.0).unwrap(),
        txid,
    };
    changes.put(&CONFIRMED, &sequence.0, &confirmed);
    for swept in &deposits {
        terms::put(changes, &swept.address);
    }
    (built.treasury, replayed)
}

/// Writes a signed transfer that waits for a batch.
fn wait(setting: &Setting, number: u32, changes: &mut Changes) {
    let secret = secret(number);
    let operation = TransferRequest {
        sender: ledger::AccountIndex(number),
        nonce: 0,
        amount: Amount::from_sat(1_000),
        fee: setting.reader.parameters.transfer_fee,
        recipient: secret.public(),
        last_valid: SequenceNumber(u64::MAX),
    }
    .sign(&secret, &setting.vault.id());
    let id = operation.id(&setting.vault.id());
    let record = OperationRecord {
        operation,
        progress: Progress::new(RequestStatus::Queued, 1),
    };
    events::put_operation(changes, None, id, &record);
    changes.put(&PENDING, &(number, 0), &id.0);
    queue::enqueue(&setting.reader.store, changes, id, 0, Request::Signed(id)).unwrap();
}

fn restart(folder: PathBuf) {
    let watch = Stopwatch::process();
    let setting = Setting::at(folder);
    let empty = resident();
    let store = setting.reader.store.clone();
    let history = History::open(store.clone(), setting.vault.clone(), START).unwrap();
    assert!(history.is_current());
    terms::watch_all(&store, &setting.vault.group_key()).unwrap();
    let (ledger, with_ledger) = (watch.cost(), resident());
    let started = Instant::now();
    let waiting = store.queue(&REQUESTS).unwrap();
    let mut changes = Changes::new();
    confirm::take(&store, &history, 6, &mut changes).unwrap();
    events::announce(&store, &history, true, &mut changes).unwrap();
    store.commit(changes).unwrap();
    let (queues, ready) = (started.elapsed().as_secs_f64(), resident());
    let watched = store.count(&WATCHED).unwrap();
    assert!(waiting.lengths().waiting > 0 && watched == history.ledger().accounts().len());
    println!(
        "{} {} {queues} {empty} {with_ledger} {ready}",
        ledger.wall.as_secs_f64(),
        ledger.cpu.as_secs_f64(),
    );
}

/// A start that finds no snapshot.
fn replay(folder: PathBuf) {
    let setting = Setting::at(folder);
    let store = setting.reader.store.clone();
    let mut changes = Changes::new();
    changes.delete(&SNAPSHOT, &());
    store.commit(changes).unwrap();
    let watch = Stopwatch::process();
    let history = History::open(store, setting.vault.clone(), START).unwrap();
    let cost = watch.cost();
    assert!(history.is_current());
    println!("{} {}", cost.wall.as_secs_f64(), cost.cpu.as_secs_f64());
}

/// What the chain says is there; batches and requests come from another node's database, as its answers would.
fn rebuild(from: PathBuf, to: PathBuf) {
    std::fs::create_dir_all(&to).unwrap();
    let (theirs, ours) = (Setting::at(from), Setting::at(to));
    let (source, store) = (&theirs.reader.store, &ours.reader.store);
    let rows: Vec<(u64, Confirmed)> = source
        .iter(&CONFIRMED, .., Direction::Forward, usize::MAX)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for group in rows.chunks(GROUP) {
        let mut changes = Changes::new();
        for (sequence, confirmed) in group {
            changes.put(&CONFIRMED, sequence, confirmed);
        }
        store.commit(changes).unwrap();
    }
    let operations: Vec<Operation> = source
        .iter(&OPERATIONS, .., Direction::Forward, usize::MAX)
        .unwrap()
        .map(|row| row.unwrap().1.operation)
        .collect();
    let addresses = addresses_a_second(&theirs, &ours);

    let watch = Stopwatch::process();
    let mut history = History::open(store.clone(), ours.vault.clone(), START).unwrap();
    for (_, confirmed) in &rows {
        let candidate = source.get(&CANDIDATES, &confirmed.txid).unwrap().unwrap();
        let body = source.get(&BODIES, &candidate.body.0).unwrap().unwrap();
        assert!(history.adopt(&candidate, &body).unwrap());
    }
    assert!(history.is_current());
    let batches = watch.cost();
    *ours.reader.history.write().unwrap() = Some(history);
    ours.live
        .send_modify(|live| live.vault = Some(ours.vault.clone()));
    let watch = Stopwatch::process();
    let (records, requests) = bring_back(&ours, rows.len() as u64, operations);
    println!(
        "{} {} {records} {requests} {} {addresses} {}",
        batches.wall.as_secs_f64(),
        batches.cpu.as_secs_f64(),
        watch.cost().cpu.as_secs_f64(),
        resident()
    );
}

/// How fast terms from operators are checked and stored: one write a page.
fn addresses_a_second(theirs: &Setting, ours: &Setting) -> f64 {
    let source = &theirs.reader.store;
    let rows = source
        .iter(&TERMS, .., Direction::Forward, TERMS_TRIED)
        .unwrap();
    let terms: Vec<DepositTerms> = rows.map(|row| row.unwrap().1).collect();
    let started = Instant::now();
    for page in terms.chunks(MAX_AT_ONCE) {
        let addresses = page
            .iter()
            .map(|terms| terms.address(&ours.vault.group_key()));
        let addresses: Vec<_> = addresses.map(Result::unwrap).collect();
        ours.reader.shown.keep_all(&addresses, None).unwrap();
    }
    terms.len() as f64 / started.elapsed().as_secs_f64()
}

/// Lets the coordinator's own task write records and take requests. Seconds for either.
fn bring_back(ours: &Setting, batches: u64, operations: Vec<Operation>) -> (f64, f64) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let expected = operations.len();
    let identity = Identity::from_secret(&[9; 32]);
    let settings = p2p::Settings {
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        peers: Vec::new(),
        network: "bench".to_owned(),
        heartbeat: p2p::HEARTBEAT_INTERVAL,
    };
    let started = p2p::start(&identity, &settings);
    let (network, _events) = runtime.block_on(started).unwrap();
    let rebuilder = Rebuilder {
        network: network.clone(),
        reader: ours.reader.clone(),
        writing: ours.reader.writing.clone(),
        vault: ours.vault.clone(),
        operations,
        recorded: None,
    };
    let stop = CancellationToken::new();
    let started = Instant::now();
    let running = runtime.spawn(rebuilder.run(stop.clone()));
    let store = &ours.reader.store;
    let waiting = store.queue(&REQUESTS).unwrap();
    // From outside the runtime, whose clock stands still while one of its threads is at the disk.
    let wait_until = |is_done: &dyn Fn() -> bool| {
        while !is_done() {
            std::thread::sleep(LOOK);
        }
        started.elapsed().as_secs_f64()
    };
    let records = wait_until(&|| store.get(&BATCHES, &batches).unwrap().is_some());
    let all = wait_until(&|| waiting.lengths().ready >= expected);
    stop.cancel();
    runtime.block_on(running).unwrap();
    runtime.block_on(network.shutdown());
    (records, all - records)
}
