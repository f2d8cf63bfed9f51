//! SIGKILL at any moment loses nothing that was acknowledged, and tears nothing apart. The writer is
//! this test binary, started again with an environment variable set.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use storage::{Changes, Direction, QueueDef, QueueLimits, Schema, Store, Table};

const FOLDER: &str = "STORAGE_TEST_SIGKILL_FOLDER";
const ROUNDS: u64 = 6;
const ACKNOWLEDGED_BEFORE_KILL: usize = 40;
/// Threads of the writer: the kill must also hit commits that share a disk sync.
const WRITERS: u64 = 4;

const ACCEPTED: Table<u64, u64> = Table::new("accepted", 1);
const FINISHED: Table<u64, u64> = Table::new("finished", 1);
const FIRST: QueueDef<u64, u64> = QueueDef::new("first", 1).limits(QueueLimits {
    max_len: 100_000,
    remember_done: 100_000,
});
const SECOND: QueueDef<u64, u64> = QueueDef::new("second", 1).limits(QueueLimits {
    max_len: 100_000,
    remember_done: 100_000,
});
const SCHEMA: Schema<'static> = Schema {
    kind: "coordinator",
    network: "regtest",
    columns: &[
        ACCEPTED.name(),
        FINISHED.name(),
        FIRST.name(),
        SECOND.name(),
    ],
};

/// Does nothing as a test; is the writer when the parent test starts it.
#[test]
fn writer() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let store = Store::open(folder, &SCHEMA).unwrap();
    let last = store.last(&ACCEPTED).unwrap().map_or(0, |(key, _)| key);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = store.clone();
            scope.spawn(move || write_forever(&store, last + 1 + writer));
        }
    });
}

/// Accepts an item (row and queue), then moves one from the first queue to the second (row and both
/// queues), and says on standard output what has been acknowledged.
fn write_forever(store: &Store, first_key: u64) {
    let (first, second) = (store.queue(&FIRST).unwrap(), store.queue(&SECOND).unwrap());
    for key in (first_key..).step_by(WRITERS as usize) {
        let mut changes = Changes::new();
        changes.put(&ACCEPTED, &key, &(key * 3));
        first.push(&mut changes, &key, &(key * 3)).unwrap();
        store.commit(changes).unwrap();
        say("accepted", key);
        if let Some(lease) = first.lease(0, 1_000).unwrap() {
            let mut changes = Changes::new();
            let moved = lease.key;
            changes.put(&FINISHED, &moved, &lease.item);
            second.push(&mut changes, &moved, &lease.item).unwrap();
            first.ack(&mut changes, lease);
            store.commit(changes).unwrap();
            say("moved", moved);
        }
    }
}

fn say(what: &str, key: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{what} {key}").unwrap();
    out.flush().unwrap();
}

/// Runs the writer until it has acknowledged enough, kills it, and returns all it acknowledged.
fn run_and_kill(folder: &Path) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut accepted, mut moved) = (BTreeSet::new(), BTreeSet::new());
    let mut killed = false;
    // Reading on after the kill: what was said before it counts too.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.split_once(' ') {
            Some(("accepted", key)) => accepted.extend(key.parse::<u64>()),
            Some(("moved", key)) => moved.extend(key.parse::<u64>()),
            _ => {}
        }
        if !killed && accepted.len() >= ACKNOWLEDGED_BEFORE_KILL {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(
        killed && status.code().is_none(),
        "the writer ended by itself: {status}"
    );
    (accepted, moved)
}

#[test]
fn sigkill_loses_nothing_acknowledged_and_tears_nothing_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (mut accepted, mut moved) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..ROUNDS {
        let (a, m) = run_and_kill(folder.path());
        accepted.extend(a);
        moved.extend(m);
        let store = Store::open(folder.path(), &SCHEMA).unwrap();
        let (first, second) = (store.queue(&FIRST).unwrap(), store.queue(&SECOND).unwrap());
        let rows = |table| -> BTreeSet<u64> {
            let scan = store
                .iter(table, .., Direction::Forward, usize::MAX)
                .unwrap();
            scan.map(|row| {
                let (key, value) = row.unwrap();
                assert_eq!(value, key * 3);
                key
            })
            .collect()
        };
        let keys = |items: Vec<(u64, u64)>| items.into_iter().map(|(key, _)| key).collect();
        let in_first: BTreeSet<u64> = keys(first.items(usize::MAX).unwrap());
        let in_second: BTreeSet<u64> = keys(second.items(usize::MAX).unwrap());
        let (rows_accepted, rows_finished) = (rows(&ACCEPTED), rows(&FINISHED));
        assert!(accepted.is_subset(&rows_accepted), "accepted, then lost");
        assert!(moved.is_subset(&in_second), "moved, then lost");
        assert_eq!(rows_finished, in_second, "half of a move");
        assert!(in_first.is_disjoint(&in_second), "in both queues");
        let in_either: BTreeSet<u64> = in_first.union(&in_second).copied().collect();
        assert_eq!(in_either, rows_accepted, "in neither queue");
    }
    assert!(accepted.len() as u64 >= ROUNDS * ACKNOWLEDGED_BEFORE_KILL as u64);
    assert!(!moved.is_empty());
}
