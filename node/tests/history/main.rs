//! The ledger's snapshot on disk: a start with it, without it, or with a damaged one gives the ledger of the best chain,
//! whatever the chain did and wherever the process died.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

mod chain;

use ::chain::Step;
use chain::{Batch, Branch, open, store};
use ledger::{AccountIndex, AccountKey, SequenceNumber, StoredAccount};
use node::history::{ACCOUNTS, BODIES, History, MAX_UNDO, SNAPSHOT, Snapshot};
use proptest::prelude::*;
use storage::{Changes, Direction, Store, Table};

/// Batches of the branch that most tests start with, and of those the ones that the snapshot has.
const BATCHES: usize = MAX_UNDO + SETTLED;
const SETTLED: usize = 4;

/// A history that has followed a branch of [`BATCHES`].
fn grown(store: &Store) -> (History, Branch) {
    let (mut history, mut branch) = (open(store), Branch::default());
    for _ in 0..BATCHES {
        grow(&mut history, store, &mut branch);
    }
    (history, branch)
}

fn grow(history: &mut History, store: &Store, branch: &mut Branch) {
    let batch = branch.grow();
    batch.keep(store);
    take(history, batch.joins());
}

fn leave(history: &mut History, branch: &mut Branch) {
    let batch = branch.batches.pop().unwrap();
    take(history, batch.leaves());
}

fn take(history: &mut History, step: Step) {
    history.take(step).unwrap();
}

#[track_caller]
fn check(history: &History, branch: &Branch) {
    let expected = branch.ledger();
    assert!(history.is_current());
    assert_eq!(history.applied(), branch.batches.len() as u64);
    assert_eq!(history.ledger().state(), expected.state());
    assert_eq!(history.ledger().accounts(), expected.accounts());
    for (index, account) in (0..).map(AccountIndex).zip(expected.accounts()) {
        let found = history.ledger().account_by_key(&account.key);
        assert_eq!(found, Some((index, account)));
    }
}

/// The accounts that are stored, and the batch that they are of.
fn stored(store: &Store) -> (Option<Snapshot>, Vec<StoredAccount>) {
    let snapshot = store.get(&SNAPSHOT, &()).unwrap();
    let count = snapshot.map_or(0, |snapshot| snapshot.accounts);
    let rows = store
        .iter(&ACCOUNTS, ..count, Direction::Forward, usize::MAX)
        .unwrap();
    (snapshot, rows.map(|row| row.unwrap().1).collect())
}

#[track_caller]
fn check_stored(store: &Store, batch: &Batch) {
    let (snapshot, rows) = stored(store);
    assert_eq!(snapshot.map(|row| row.sequence), Some(batch.sequence()));
    let accounts = batch.ledger.accounts().iter();
    assert_eq!(rows, accounts.map(StoredAccount::from).collect::<Vec<_>>());
}

/// Without these bodies nobody can replay from the genesis.
fn forget_bodies(store: &Store, batches: &[Batch]) {
    let mut changes = Changes::new();
    for batch in batches {
        changes.delete(&BODIES, &batch.candidate.body.0);
    }
    store.commit(changes).unwrap();
}

#[test]
fn a_start_replays_only_what_the_snapshot_has_not() {
    let (_folder, store) = store();
    let (history, branch) = grown(&store);
    check(&history, &branch);
    check_stored(&store, &branch.batches[SETTLED - 1]);
    drop(history);
    forget_bodies(&store, &branch.batches[..SETTLED]);
    check(&open(&store), &branch);
}

#[test]
fn a_reorganisation_right_after_a_start_is_undone_in_memory() {
    let (_folder, store) = store();
    let (history, mut branch) = grown(&store);
    drop(history);
    forget_bodies(&store, &branch.batches[..SETTLED]);
    let mut history = open(&store);
    for _ in 0..MAX_UNDO {
        leave(&mut history, &mut branch);
        check(&history, &branch);
    }
    for _ in 0..BATCHES {
        grow(&mut history, &store, &mut branch);
    }
    check(&history, &branch);
    drop(history);
    check(&open(&store), &branch);
}

#[test]
fn a_reorganisation_across_the_snapshot_replays_from_the_genesis() {
    let (_folder, store) = store();
    let (mut history, mut branch) = grown(&store);
    let of_the_old = stored(&store);
    for _ in 0..=MAX_UNDO {
        leave(&mut history, &mut branch);
    }
    check(&history, &branch);
    // Killed here: the snapshot is of a batch that has left the chain.
    assert_eq!(stored(&store), of_the_old);
    drop(history);
    let mut history = open(&store);
    check(&history, &branch);
    // In the place of that batch comes another one.
    grow(&mut history, &store, &mut branch);
    check(&history, &branch);
    assert_eq!(stored(&store), of_the_old);
    drop(history);
    let mut history = open(&store);
    check(&history, &branch);
    while branch.batches.len() < BATCHES {
        grow(&mut history, &store, &mut branch);
        check(&history, &branch);
    }
    check_stored(&store, &branch.batches[SETTLED - 1]);
    drop(history);
    forget_bodies(&store, &branch.batches[..SETTLED]);
    check(&open(&store), &branch);
}

#[test]
fn a_kill_between_the_write_of_a_block_and_its_replay_costs_nothing() {
    let (_folder, store) = store();
    let (history, mut branch) = grown(&store);
    drop(history);
    for batch in [branch.grow(), branch.grow()] {
        batch.keep(&store);
        batch.confirm(&store);
    }
    check_stored(&store, &branch.batches[SETTLED - 1]);
    check(&open(&store), &branch);
    check_stored(&store, &branch.batches[SETTLED + 1]);
}

#[test]
fn a_batch_whose_data_comes_late_is_in_the_snapshot_as_any_other() {
    let (_folder, store) = store();
    let (mut history, mut branch) = (open(&store), Branch::default());
    for _ in 0..BATCHES {
        take(&mut history, branch.grow().joins());
    }
    for batch in &branch.batches {
        assert!(!history.is_current());
        // Another batch under its name is refused, and leaves no trace.
        let lie = branch.clone().grow();
        let (mut candidate, body) = (batch.candidate.clone(), lie.body.encode());
        candidate.body = lie.candidate.body;
        assert!(!history.adopt(&candidate, &body).unwrap());
        // The operations lead where the chain says, but the transaction paid another fee.
        let mut cheaper = batch.candidate.clone();
        cheaper.fee -= bitcoin::Amount::from_sat(1);
        assert!(!history.adopt(&cheaper, &batch.body.encode()).unwrap());
        assert!(
            history
                .adopt(&batch.candidate, &batch.body.encode())
                .unwrap()
        );
    }
    check(&history, &branch);
    check_stored(&store, &branch.batches[SETTLED - 1]);
    drop(history);
    check(&open(&store), &branch);
}

/// What can be wrong with a snapshot, by what was done to it.
fn damages(branch: &Branch) -> Vec<(&'static str, Changes)> {
    const EARLIER_ACCOUNTS: Table<u32, StoredAccount> = Table::new("accounts", 0);
    const EARLIER_SNAPSHOT: Table<(), Snapshot> = Table::new("snapshot", 0);
    const BYTES: Table<u32, [u8; 3]> = Table::new("accounts", 1);
    let settled = &branch.batches[SETTLED - 1];
    let accounts = settled.ledger.accounts();
    let count = u32::try_from(accounts.len()).unwrap();
    let good = Snapshot {
        sequence: settled.sequence(),
        accounts: count,
    };
    let change = |change: &dyn Fn(&mut Changes)| {
        let mut changes = Changes::new();
        change(&mut changes);
        changes
    };
    let row = |change: &dyn Fn(&mut ledger::Account)| {
        let mut account = accounts[1];
        change(&mut account);
        StoredAccount::from(&account)
    };
    let richer = row(&|account| account.balance += bitcoin::Amount::from_sat(1));
    let another = row(&|account| account.key = AccountKey::sequence(99)[98]);
    let snapshot = |sequence: u64, accounts: u32| Snapshot {
        sequence: SequenceNumber(sequence),
        accounts,
    };
    vec![
        (
            "another balance",
            change(&|to| to.put(&ACCOUNTS, &1, &richer)),
        ),
        ("another key", change(&|to| to.put(&ACCOUNTS, &1, &another))),
        (
            "a row that is no account",
            change(&|to| to.put(&BYTES, &1, &[1, 2, 3])),
        ),
        (
            "a row of an earlier format",
            change(&|to| to.put(&EARLIER_ACCOUNTS, &1, &row(&|_| {}))),
        ),
        (
            "an earlier format",
            change(&|to| to.put(&EARLIER_SNAPSHOT, &(), &good)),
        ),
        (
            "a missing account",
            change(&|to| to.delete(&ACCOUNTS, &(count - 1))),
        ),
        (
            "a missing first account",
            change(&|to| to.delete(&ACCOUNTS, &0)),
        ),
        (
            "too few accounts",
            change(&|to| to.put(&SNAPSHOT, &(), &snapshot(good.sequence.0, count - 1))),
        ),
        (
            "another batch",
            change(&|to| to.put(&SNAPSHOT, &(), &snapshot(good.sequence.0 + 1, count))),
        ),
        (
            "a batch that is not there",
            change(&|to| to.put(&SNAPSHOT, &(), &snapshot(1_000, count))),
        ),
        (
            "no batch",
            change(&|to| to.put(&SNAPSHOT, &(), &snapshot(0, 0))),
        ),
        ("nothing", change(&|to| to.delete(&SNAPSHOT, &()))),
    ]
}

#[test]
fn a_damaged_snapshot_or_one_of_an_earlier_format_leads_to_a_replay_that_repairs_it() {
    let (_folder, store) = store();
    let (history, branch) = grown(&store);
    drop(history);
    for (what, damage) in damages(&branch) {
        println!("{what}");
        store.commit(damage).unwrap();
        check(&open(&store), &branch);
        check_stored(&store, &branch.batches[SETTLED - 1]);
    }
}

/// What the chain does, or the process.
#[derive(Clone, Copy, Debug)]
enum Event {
    Batch,
    Reorganisation(usize),
    Restart,
    /// Killed after a block was written and before it was replayed.
    Kill,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        12 => Just(Event::Batch),
        2 => (1..4_usize).prop_map(Event::Reorganisation),
        1 => (1..30_usize).prop_map(Event::Reorganisation),
        2 => Just(Event::Restart),
        1 => Just(Event::Kill),
    ];
    prop::collection::vec(event, 30..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn whatever_happens_the_ledger_is_that_of_the_best_chain(events in events()) {
        let (_folder, store) = store();
        let (mut history, mut branch) = (open(&store), Branch::default());
        for event in events {
            match event {
                Event::Batch => grow(&mut history, &store, &mut branch),
                Event::Reorganisation(depth) => {
                    for _ in 0..depth.min(branch.batches.len()) {
                        leave(&mut history, &mut branch);
                    }
                }
                Event::Restart => {
                    drop(history);
                    history = open(&store);
                }
                Event::Kill => {
                    let batch = branch.grow();
                    batch.keep(&store);
                    batch.confirm(&store);
                    drop(history);
                    history = open(&store);
                }
            }
            check(&history, &branch);
        }
        drop(history);
        check(&open(&store), &branch);
    }
}
