//! The store on a real disk: what is committed stays, what is refused changes nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::error::Error as _;

use bitcoin::{OutPoint, Txid, hashes::Hash as _};
use storage::{
    Changes, CommitError, Direction, LogDef, MAX_VALUE_BYTES, OpenError, QueueDef, ReadError,
    Schema, Store, Table,
};

const BATCHES: Table<u64, String> = Table::new("batches", 1);
const BATCHES_V2: Table<u64, String> = Table::new("batches", 2);
const DEPOSITS: Table<OutPoint, u64> = Table::new("deposits", 1);
const VOTES: Table<(u64, [u8; 32]), bool> = Table::new("votes", 1);
const STRANGE: Table<u64, u64> = Table::new("strange", 1);
const JOBS: QueueDef<u64, String> = QueueDef::new("jobs", 1);
const ACTS: LogDef<String> = LogDef::new("acts", 1, 5);

const SCHEMA: Schema<'static> = Schema {
    kind: "coordinator",
    network: "regtest",
    columns: &[
        BATCHES.name(),
        DEPOSITS.name(),
        VOTES.name(),
        JOBS.name(),
        ACTS.name(),
    ],
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn keys(
    store: &Store,
    range: impl std::ops::RangeBounds<u64>,
    way: Direction,
    n: usize,
) -> Vec<u64> {
    store
        .iter(&BATCHES, range, way, n)
        .unwrap()
        .map(|row| row.unwrap().0)
        .collect()
}

#[test]
fn what_is_committed_is_there_after_reopening_and_what_is_not_is_not() {
    let folder = folder();
    let point = OutPoint {
        txid: Txid::from_byte_array([7; 32]),
        vout: 3,
    };
    {
        let store = Store::open(folder.path(), &SCHEMA).unwrap();
        let mut changes = Changes::new();
        changes.put(&BATCHES, &1, &"one".to_owned());
        changes.put(&DEPOSITS, &point, &50_000);
        changes.put(&VOTES, &(1, [9; 32]), &true);
        changes.put(&BATCHES, &2, &"two".to_owned());
        changes.delete(&BATCHES, &2);
        store.commit(changes).unwrap();
        let mut never = Changes::new();
        never.put(&BATCHES, &3, &"three".to_owned());
        drop(never);
    }
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    assert_eq!(store.get(&BATCHES, &1).unwrap().as_deref(), Some("one"));
    assert_eq!(store.get(&DEPOSITS, &point).unwrap(), Some(50_000));
    assert_eq!(store.get(&VOTES, &(1, [9; 32])).unwrap(), Some(true));
    assert_eq!(store.get(&BATCHES, &2).unwrap(), None);
    assert_eq!(store.get(&BATCHES, &3).unwrap(), None);
}

#[test]
fn scans_follow_key_order_within_their_bounds() {
    let folder = folder();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    let mut changes = Changes::new();
    for key in [1, 2, 255, 256, 65_536] {
        changes.put(&BATCHES, &key, &key.to_string());
    }
    store.commit(changes).unwrap();
    use Direction::{Back, Forward};
    assert_eq!(keys(&store, .., Forward, 10), [1, 2, 255, 256, 65_536]);
    assert_eq!(keys(&store, .., Back, 2), [65_536, 256]);
    assert_eq!(keys(&store, 2..256, Forward, 10), [2, 255]);
    assert_eq!(keys(&store, 2..=256, Forward, 10), [2, 255, 256]);
    assert_eq!(keys(&store, ..=255, Back, 10), [255, 2, 1]);
    let after = (std::ops::Bound::Excluded(2), std::ops::Bound::Unbounded);
    assert_eq!(keys(&store, after, Forward, 2), [255, 256]);
    assert_eq!(keys(&store, .., Forward, 0), [0; 0]);
    assert_eq!(store.last(&BATCHES).unwrap().unwrap().0, 65_536);
}

#[test]
fn a_second_opener_is_told_that_the_database_is_in_use() {
    let folder = folder();
    let _first = Store::open(folder.path(), &SCHEMA).unwrap();
    let error = Store::open(folder.path(), &SCHEMA).unwrap_err();
    assert!(
        matches!(error, OpenError::Locked(_)),
        "{error} {:?}",
        error.source()
    );
}

#[test]
fn another_kind_or_network_is_refused_and_changes_nothing() {
    let folder = folder();
    drop(Store::open(folder.path(), &SCHEMA).unwrap());
    let operator = Schema {
        kind: "operator",
        columns: &[
            BATCHES.name(),
            DEPOSITS.name(),
            VOTES.name(),
            JOBS.name(),
            STRANGE.name(),
        ],
        ..SCHEMA
    };
    let error = Store::open(folder.path(), &operator).unwrap_err();
    assert!(matches!(error, OpenError::Kind { .. }), "{error}");
    assert!(error.to_string().contains("\"coordinator\""), "{error}");
    let mainnet = Schema {
        network: "bitcoin",
        ..SCHEMA
    };
    let error = Store::open(folder.path(), &mainnet).unwrap_err();
    assert!(matches!(error, OpenError::Network { .. }), "{error}");
    // The column that the refused schema had besides was not made: the first schema still fits.
    Store::open(folder.path(), &SCHEMA).unwrap();
}

#[test]
fn another_format_is_refused_with_what_to_do() {
    let folder = folder();
    drop(Store::open(folder.path(), &SCHEMA).unwrap());
    {
        // A marker as a later release would write it: value version 1, format 2.
        let options = rocksdb::Options::default();
        let columns = rocksdb::DB::list_cf(&options, folder.path()).unwrap();
        let db = rocksdb::DB::open_cf(&options, folder.path(), columns).unwrap();
        let meta = postcard::to_extend(&(2_u32, "coordinator", "regtest"), vec![1]).unwrap();
        db.put_cf(db.cf_handle("meta").unwrap(), b"meta", meta)
            .unwrap();
    }
    let error = Store::open(folder.path(), &SCHEMA).unwrap_err();
    assert!(
        matches!(error, OpenError::Format { found: 2, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("run the release that wrote it"),
        "{error}"
    );
}

#[test]
fn a_foreign_database_is_refused() {
    let folder = folder();
    drop(rocksdb::DB::open_default(folder.path()).unwrap());
    let error = Store::open(folder.path(), &SCHEMA).unwrap_err();
    assert!(matches!(error, OpenError::Foreign(_)), "{error}");
}

#[test]
fn a_new_table_is_added_and_an_unknown_one_is_refused() {
    let folder = folder();
    drop(Store::open(folder.path(), &SCHEMA).unwrap());
    let newer = Schema {
        columns: &[
            BATCHES.name(),
            DEPOSITS.name(),
            VOTES.name(),
            JOBS.name(),
            ACTS.name(),
            STRANGE.name(),
        ],
        ..SCHEMA
    };
    drop(Store::open(folder.path(), &newer).unwrap());
    let error = Store::open(folder.path(), &SCHEMA).unwrap_err();
    assert!(matches!(error, OpenError::UnknownColumn { .. }), "{error}");
}

#[test]
fn a_row_of_another_version_is_refused_instead_of_misread() {
    let folder = folder();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    let mut changes = Changes::new();
    changes.put(&BATCHES, &1, &"one".to_owned());
    store.commit(changes).unwrap();
    let error = store.get(&BATCHES_V2, &1).unwrap_err();
    assert!(matches!(error, ReadError::Row { .. }));
    let why = error.source().unwrap().to_string();
    assert_eq!(why, "value has format version 1, this program reads 2");
}

#[test]
fn a_failed_commit_writes_nothing_and_stops_the_store() {
    let folder = folder();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    let mut changes = Changes::new();
    changes.put(&BATCHES, &1, &"one".to_owned());
    changes.put(&STRANGE, &1, &1);
    let error = store.commit(changes).unwrap_err();
    assert!(matches!(error, CommitError::NoColumn(_)), "{error}");
    assert_eq!(store.get(&BATCHES, &1).unwrap(), None);
    let mut fine = Changes::new();
    fine.put(&BATCHES, &2, &"two".to_owned());
    assert!(matches!(store.commit(fine), Err(CommitError::Stopped)));
    assert_eq!(store.get(&BATCHES, &2).unwrap(), None);
}

#[test]
fn a_value_above_the_bound_is_not_written() {
    let folder = folder();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    let mut changes = Changes::new();
    changes.put(&BATCHES, &1, &"x".repeat(MAX_VALUE_BYTES));
    assert!(matches!(
        store.commit(changes),
        Err(CommitError::Encode { .. })
    ));
    assert_eq!(store.get(&BATCHES, &1).unwrap(), None);
}

#[test]
fn commits_from_many_threads_all_arrive() {
    const THREADS: u64 = 8;
    const EACH: u64 = 25;
    let folder = folder();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = store.clone();
            scope.spawn(move || {
                for i in 0..EACH {
                    let mut changes = Changes::new();
                    changes.put(&BATCHES, &(thread * EACH + i), &i.to_string());
                    store.commit(changes).unwrap();
                }
            });
        }
    });
    let found = keys(&store, .., Direction::Forward, 1_000);
    assert_eq!(found, (0..THREADS * EACH).collect::<Vec<_>>());
}

fn acts(store: &Store, after: u64) -> Vec<(u64, String)> {
    store.entries(&ACTS, after, 100).unwrap()
}

#[test]
fn a_logs_numbers_go_on_after_a_restart_and_the_oldest_entries_go() {
    let folder = folder();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    assert_eq!(store.last_number(&ACTS).unwrap(), 0);
    let mut changes = Changes::new();
    for act in ["a", "b", "c"] {
        changes.append(&ACTS, &act.to_owned());
    }
    changes.put(&BATCHES, &1, &"with them".to_owned());
    assert!(acts(&store, 0).is_empty(), "not before the commit");
    store.commit(changes).unwrap();
    assert_eq!(acts(&store, 1), [(2, "b".into()), (3, "c".into())]);
    drop(store);

    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    assert_eq!(store.last_number(&ACTS).unwrap(), 3);
    for act in ["d", "e", "f", "g"] {
        let mut changes = Changes::new();
        changes.append(&ACTS, &act.to_owned());
        store.commit(changes).unwrap();
    }
    let numbers = |rows: Vec<(u64, String)>| rows.into_iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(numbers(acts(&store, 0)), [3, 4, 5, 6, 7]);
    assert_eq!(store.last_number(&ACTS).unwrap(), 7);
    let back = |before, limit| numbers(store.newest_entries(&ACTS, before, limit).unwrap());
    assert_eq!(
        (back(None, 2), back(Some(6), 9)),
        (vec![7, 6], vec![5, 4, 3])
    );
    assert_eq!(store.get(&BATCHES, &1).unwrap(), Some("with them".into()));
}

#[test]
fn entries_of_many_threads_get_numbers_without_gap_or_twin() {
    const THREADS: u64 = 8;
    const WIDE: LogDef<u64> = LogDef::new("acts", 1, 1_000);
    let folder = folder();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..10 {
                    let mut changes = Changes::new();
                    changes.append(&WIDE, &thread);
                    changes.append(&WIDE, &thread);
                    store.commit(changes).unwrap();
                }
            });
        }
    });
    let all = store.entries(&WIDE, 0, 1_000).unwrap();
    let numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=THREADS * 20).collect::<Vec<_>>());
}
