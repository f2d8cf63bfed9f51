//! What a crash leaves is mended; what no crash can have done is refused, and stays as it is.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use storage::{Changes, Direction, OpenError, Schema, Store, Table};

const ROWS: Table<u64, String> = Table::new("rows", 1);
const SCHEMA: Schema<'static> = Schema {
    kind: "operator",
    network: "regtest",
    columns: &[ROWS.name()],
};
/// Rows of each test, one a commit.
const COMMITS: u64 = 5;
/// Long enough that the damage hits what it is meant for.
const ROW_BYTES: usize = 500;

/// A database whose rows are in its log only, closed.
fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    for key in 0..COMMITS {
        put(&store, key);
    }
    folder
}

fn put(store: &Store, key: u64) {
    let mut changes = Changes::new();
    changes.put(&ROWS, &key, &"x".repeat(ROW_BYTES));
    store.commit(changes).unwrap();
}

fn keys(store: &Store) -> Vec<u64> {
    let rows = store.iter(&ROWS, .., Direction::Forward, usize::MAX);
    rows.unwrap().map(|row| row.unwrap().0).collect()
}

/// The largest file with that ending.
fn largest(folder: &Path, ending: &str) -> PathBuf {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

fn garble(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    for byte in &mut bytes[at..at + 16] {
        *byte ^= 0x5a;
    }
    fs::write(file, bytes).unwrap();
}

fn assert_damaged(folder: &Path) {
    // The second time as the first: nothing was mended, or dropped, on the way.
    for _ in 0..2 {
        let error = Store::open(folder, &SCHEMA).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("docs/crashes.md"), "{error}");
    }
}

#[test]
fn a_torn_last_record_is_what_a_crash_leaves_and_all_before_it_is_there() {
    for torn in [1, 7, ROW_BYTES / 2, ROW_BYTES] {
        let folder = written();
        let log = largest(folder.path(), "log");
        let length = fs::metadata(&log).unwrap().len();
        let file = fs::File::options().write(true).open(&log).unwrap();
        file.set_len(length - torn as u64).unwrap();
        drop(file);
        let store = Store::open(folder.path(), &SCHEMA).unwrap();
        assert_eq!(keys(&store), [0, 1, 2, 3], "torn by {torn} bytes");
        // And it is a database like any other.
        put(&store, 9);
        drop(store);
        let store = Store::open(folder.path(), &SCHEMA).unwrap();
        assert_eq!(keys(&store), [0, 1, 2, 3, 9]);
    }
}

#[test]
fn a_last_record_of_zeros_is_what_a_crash_leaves_too() {
    let folder = written();
    let log = largest(folder.path(), "log");
    let mut bytes = fs::read(&log).unwrap();
    bytes.extend([0; 3 * ROW_BYTES]);
    fs::write(&log, bytes).unwrap();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    assert_eq!(keys(&store), [0, 1, 2, 3, 4]);
}

#[test]
fn a_garbled_record_is_refused_wherever_it_is_in_the_log() {
    let folder = written();
    let log = largest(folder.path(), "log");
    let length = fs::read(&log).unwrap().len();
    // In the first row, in the middle, and in the last row, which was acknowledged.
    for at in [
        length - COMMITS as usize * ROW_BYTES,
        length / 2,
        length - 40,
    ] {
        let folder = written();
        garble(&largest(folder.path(), "log"), at);
        assert_damaged(folder.path());
    }
}

#[test]
fn a_damaged_table_file_is_refused_or_not_read() {
    let folder = written();
    // A start moves what was in the log to a table file.
    drop(Store::open(folder.path(), &SCHEMA).unwrap());
    let table = largest(folder.path(), "sst");
    garble(&table, 100);
    let read = Store::open(folder.path(), &SCHEMA)
        .map(|store| store.get(&ROWS, &0).map_err(|error| error.to_string()));
    assert!(!matches!(read, Ok(Ok(_))), "{read:?}");
}

#[test]
fn a_database_without_its_head_is_not_taken_for_a_new_one() {
    let folder = written();
    fs::remove_file(folder.path().join("CURRENT")).unwrap();
    assert_damaged(folder.path());

    // A crash while it was made leaves a manifest, and nothing that was acknowledged.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("MANIFEST-000001"), "").unwrap();
    let store = Store::open(folder.path(), &SCHEMA).unwrap();
    put(&store, 1);
}
