//! Opening the database, and reading from it.

use std::{
    collections::{BTreeSet, HashMap},
    marker::PhantomData,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBIterator, DBRecoveryMode,
    ErrorKind, IteratorMode, LogLevel, Options, ReadOptions, WriteOptions,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    commit::Committer,
    key::Key,
    queue::Shared,
    table::{ColumnName, DecodeError, Table, decode_value, encode_value},
};

/// Layout of the whole database: which columns there are and what queues keep in theirs. A
/// database of another layout is refused.
pub const FORMAT: u32 = 1;
/// Files that RocksDB may hold open; the rest is opened when needed.
const MAX_OPEN_FILES: i32 = 256;
/// Memory for rows that are not in table files yet, per column and in all, in bytes.
const COLUMN_BUFFER_BYTES: usize = 4 * 1024 * 1024;
const ALL_BUFFERS_BYTES: usize = 32 * 1024 * 1024;
/// Log that is kept for recovery before its rows go to table files, in bytes.
const MAX_WAL_BYTES: u64 = 64 * 1024 * 1024;
/// RocksDB's own text logs: how many, and how large each, in bytes.
const MAX_TEXT_LOGS: usize = 4;
const MAX_TEXT_LOG_BYTES: usize = 1024 * 1024;
/// RocksDB's background threads.
const BACKGROUND_JOBS: i32 = 2;

const META: &str = "meta";
const META_KEY: &[u8] = b"meta";
const META_VERSION: u8 = 1;
/// RocksDB insists on this column; nothing is kept in it.
const DEFAULT: &str = "default";
/// RocksDB's file that names the manifest in force.
const HEAD: &str = "CURRENT";

/// What a node expects of its database.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    /// Whose database it is: "coordinator" or "operator".
    pub kind: &'a str,
    /// Which network or vault it belongs to, in the caller's words.
    pub network: &'a str,
    /// Every table and queue that the node uses.
    pub columns: &'a [ColumnName],
}

/// The marker that says whose database this is.
#[derive(Serialize, Deserialize)]
struct Meta {
    format: u32,
    kind: String,
    network: String,
}

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or read.
    #[error("cannot make or read the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error(
        "{0} is in use by another process: stop that one first, or give this one its own folder"
    )]
    Locked(PathBuf),
    /// Written by a release with another layout.
    #[error(
        "{path} has database format {found}, this program uses {FORMAT}: run the release that wrote it, \
         or move the folder away and let the node fetch its data again"
    )]
    Format {
        /// The folder.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The database of another kind of node.
    #[error(
        "{path} belongs to a node of kind \"{found}\", not \"{expected}\": check the data folder in the settings"
    )]
    Kind {
        /// The folder.
        path: PathBuf,
        /// The kind found.
        found: String,
        /// The kind asked for.
        expected: String,
    },
    /// The database of another network or vault.
    #[error(
        "{path} belongs to \"{found}\", not \"{expected}\": check the data folder and the network in the settings"
    )]
    Network {
        /// The folder.
        path: PathBuf,
        /// The network found.
        found: String,
        /// The network asked for.
        expected: String,
    },
    /// It has data, but no marker of ours.
    #[error("{0} is not a Drawbridge database: check the data folder in the settings")]
    Foreign(PathBuf),
    /// It has a column that this program does not know.
    #[error(
        "{path} has a column \"{column}\" that this program does not know: run the release that wrote it"
    )]
    UnknownColumn {
        /// The folder.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// The marker cannot be read.
    #[error("the marker of {path} is damaged")]
    Marker {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// There is no room.
    #[error(
        "the disk is full: make room for {path}, then start this node again; nothing that it acknowledged is lost"
    )]
    Full {
        /// The folder.
        path: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// A file is damaged, or missing, where no crash can have done it.
    #[error(
        "the database {path} is damaged, and this node does not guess what was in it: leave the folder as it is, and see docs/crashes.md          for how this kind of node gets its data back ({reason})"
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What RocksDB said, or what is missing.
        reason: String,
    },
    /// RocksDB refuses for another reason.
    #[error("cannot open the database {path}")]
    Database {
        /// The folder.
        path: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
}

/// Why a row could not be read. A damaged row is a local fault: the node stops rather than guesses.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The column was not in the [`Schema`].
    #[error("column {0} is not in the schema this database was opened with")]
    NoColumn(ColumnName),
    /// The row is there but cannot be understood.
    #[error("a row of {column} cannot be read")]
    Row {
        /// The column.
        column: ColumnName,
        /// What is wrong.
        source: DecodeError,
    },
    /// RocksDB failed, for example on a checksum.
    #[error("reading {column} failed")]
    Database {
        /// The column.
        column: ColumnName,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
}

/// Which end a scan starts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Back,
}

/// An open database. Clones share it.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) db: DB,
    pub(crate) committer: Committer,
    pub(crate) queues: Mutex<HashMap<ColumnName, Arc<Shared>>>,
    /// Number of the newest entry of each log that was looked at.
    pub(crate) logs: Mutex<HashMap<ColumnName, u64>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.inner.db.path().display())
    }
}

impl Store {
    /// Opens the database in the folder `path`, making it if it is not there.
    ///
    /// # Errors
    /// [`OpenError`] says what to do. Nothing is changed in a database that is refused.
    pub fn open(path: impl AsRef<Path>, schema: &Schema<'_>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        std::fs::create_dir_all(path).map_err(|source| OpenError::Folder {
            path: path.to_owned(),
            source,
        })?;
        let wanted = column_names(schema);
        let is_new = !path.join(HEAD).exists();
        if is_new {
            check_is_empty(path)?;
        }
        let existing = if is_new {
            wanted.clone()
        } else {
            DB::list_cf(&Options::default(), path)
                .map_err(|source| database_error(path, source))?
                .into_iter()
                .collect()
        };
        let columns = existing
            .iter()
            .map(|name| ColumnFamilyDescriptor::new(name.clone(), column_options()));
        let mut db = DB::open_cf_descriptors(&database_options(), path, columns)
            .map_err(|source| database_error(path, source))?;
        check_marker(&db, path, schema)?;
        if let Some(column) = existing.difference(&wanted).next() {
            return Err(OpenError::UnknownColumn {
                path: path.to_owned(),
                column: column.clone(),
            });
        }
        for name in wanted.difference(&existing) {
            db.create_cf(name, &column_options())
                .map_err(|source| database_error(path, source))?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                db,
                committer: Committer::default(),
                queues: Mutex::new(HashMap::new()),
                logs: Mutex::new(HashMap::new()),
            }),
        })
    }

    /// One row.
    ///
    /// # Errors
    /// [`ReadError`] when the database or the row is damaged, or the table is not in the schema.
    pub fn get<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        key: &K,
    ) -> Result<Option<V>, ReadError> {
        let column = table.name();
        let family = self.inner.family(column)?;
        let bytes = self
            .inner
            .db
            .get_pinned_cf(family, key.to_bytes())
            .map_err(|source| ReadError::Database { column, source })?;
        bytes
            .map(|bytes| decode_value(table.version(), &bytes))
            .transpose()
            .map_err(|source| ReadError::Row { column, source })
    }

    /// At most `limit` rows whose keys are in `range`, in key order from the end that `direction`
    /// names. Sees the table as it was when the scan began.
    ///
    /// # Errors
    /// [`ReadError::NoColumn`] here; the items carry what goes wrong later.
    pub fn iter<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        range: impl RangeBounds<K>,
        direction: Direction,
        limit: usize,
    ) -> Result<Scan<'_, K, V>, ReadError> {
        let column = table.name();
        let family = self.inner.family(column)?;
        let mut options = ReadOptions::default();
        if let Some(bound) = lower_bound(range.start_bound()) {
            options.set_iterate_lower_bound(bound);
        }
        if let Some(bound) = upper_bound(range.end_bound()) {
            options.set_iterate_upper_bound(bound);
        }
        let mode = match direction {
            Direction::Forward => IteratorMode::Start,
            Direction::Back => IteratorMode::End,
        };
        let rows = self.inner.db.iterator_cf_opt(family, options, mode);
        Ok(Scan {
            rows,
            left: limit,
            version: table.version(),
            column,
            types: PhantomData,
        })
    }

    /// How many rows a table has: goes through all of them, and decodes none.
    ///
    /// # Errors
    /// [`ReadError`] when the database is damaged, or the table is not in the schema.
    pub fn count<K, V>(&self, table: &Table<K, V>) -> Result<usize, ReadError> {
        let column = table.name();
        let mut rows = self.inner.db.raw_iterator_cf(self.inner.family(column)?);
        let mut count = 0_usize;
        rows.seek_to_first();
        while rows.valid() {
            count = count.saturating_add(1);
            rows.next();
        }
        let ended = rows.status();
        ended.map_err(|source| ReadError::Database { column, source })?;
        Ok(count)
    }

    /// The row with the largest key.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn last<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
    ) -> Result<Option<(K, V)>, ReadError> {
        self.iter(table, .., Direction::Back, 1)?.next().transpose()
    }
}

impl Inner {
    pub(crate) fn family(&self, column: ColumnName) -> Result<&ColumnFamily, ReadError> {
        self.db
            .cf_handle(&column.to_string())
            .ok_or(ReadError::NoColumn(column))
    }
}

/// Rows of a table in key order; see [`Store::iter`].
pub struct Scan<'a, K, V> {
    rows: DBIterator<'a>,
    left: usize,
    version: u8,
    column: ColumnName,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: DeserializeOwned> Iterator for Scan<'_, K, V> {
    type Item = Result<(K, V), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let column = self.column;
        let row = match self.rows.next()? {
            Ok(row) => row,
            Err(source) => return Some(Err(ReadError::Database { column, source })),
        };
        let (key, value) = (K::decode(&row.0), decode_value(self.version, &row.1));
        Some(match (key, value) {
            (Some(key), Ok(value)) => Ok((key, value)),
            (None, _) => Err(ReadError::Row {
                column,
                source: DecodeError::Key,
            }),
            (_, Err(source)) => Err(ReadError::Row { column, source }),
        })
    }
}

/// RocksDB's lower bound is inclusive. The next byte string after `k` is `k` with a zero appended.
fn lower_bound<K: Key>(bound: Bound<&K>) -> Option<Vec<u8>> {
    match bound {
        Bound::Included(key) => Some(key.to_bytes()),
        Bound::Excluded(key) => Some(successor(key)),
        Bound::Unbounded => None,
    }
}

/// RocksDB's upper bound is exclusive.
fn upper_bound<K: Key>(bound: Bound<&K>) -> Option<Vec<u8>> {
    match bound {
        Bound::Included(key) => Some(successor(key)),
        Bound::Excluded(key) => Some(key.to_bytes()),
        Bound::Unbounded => None,
    }
}

fn successor<K: Key>(key: &K) -> Vec<u8> {
    let mut bytes = key.to_bytes();
    bytes.push(0);
    bytes
}

fn column_names(schema: &Schema<'_>) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = schema.columns.iter().map(ToString::to_string).collect();
    names.insert(DEFAULT.to_owned());
    names.insert(META.to_owned());
    names
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_db_write_buffer_size(ALL_BUFFERS_BYTES);
    options.set_max_total_wal_size(MAX_WAL_BYTES);
    options.set_keep_log_file_num(MAX_TEXT_LOGS);
    options.set_max_log_file_size(MAX_TEXT_LOG_BYTES);
    options.set_log_level(LogLevel::Warn);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    // A torn last record is what a power cut leaves, and was never acknowledged. Damage before the
    // end is lost data: refuse to open, rather than drop everything after it as the default does.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options
}

fn column_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(COLUMN_BUFFER_BYTES);
    options.set_compression_type(DBCompressionType::None);
    options
}

fn database_error(path: &Path, source: rocksdb::Error) -> OpenError {
    let text = source.to_string();
    if text.contains("lock hold") || text.contains("While lock file") {
        return OpenError::Locked(path.to_owned());
    }
    let path = path.to_owned();
    if is_full(&source) {
        OpenError::Full { path, source }
    } else if source.kind() == ErrorKind::Corruption {
        let reason = source.to_string();
        OpenError::Damaged { path, reason }
    } else {
        OpenError::Database { path, source }
    }
}

/// Without its head RocksDB takes a database for a new one, and writes over what is there. A crash while it is made
/// leaves neither a log nor a table.
fn check_is_empty(path: &Path) -> Result<(), OpenError> {
    let folder = |source| OpenError::Folder {
        path: path.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(path).map_err(folder)? {
        let name = entry.map_err(folder)?.file_name();
        let name = Path::new(&name);
        if name
            .extension()
            .is_some_and(|end| end == "log" || end == "sst")
        {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                reason: format!("it has {} and no file {HEAD}", name.display()),
            });
        }
    }
    Ok(())
}

/// Reads the marker, or writes it if the database is new. Runs while we hold the lock, and before
/// any column is made, so that a refused database stays as it was.
fn check_marker(db: &DB, path: &Path, schema: &Schema<'_>) -> Result<(), OpenError> {
    let foreign = || OpenError::Foreign(path.to_owned());
    let family = db.cf_handle(META).ok_or_else(foreign)?;
    let found = db
        .get_cf(family, META_KEY)
        .map_err(|source| database_error(path, source))?;
    let Some(bytes) = found else {
        // New, or a crash between making the columns and writing the marker: then all is empty.
        return write_marker(db, path, schema);
    };
    let damaged = |source| OpenError::Marker {
        path: path.to_owned(),
        source,
    };
    let meta: Meta = decode_value(META_VERSION, &bytes).map_err(damaged)?;
    let path = path.to_owned();
    if meta.format != FORMAT {
        return Err(OpenError::Format {
            path,
            found: meta.format,
        });
    }
    if meta.kind != schema.kind {
        return Err(OpenError::Kind {
            path,
            found: meta.kind,
            expected: schema.kind.to_owned(),
        });
    }
    if meta.network != schema.network {
        let expected = schema.network.to_owned();
        return Err(OpenError::Network {
            path,
            found: meta.network,
            expected,
        });
    }
    Ok(())
}

fn write_marker(db: &DB, path: &Path, schema: &Schema<'_>) -> Result<(), OpenError> {
    let foreign = || OpenError::Foreign(path.to_owned());
    if db.latest_sequence_number() != 0 {
        return Err(foreign());
    }
    let meta = Meta {
        format: FORMAT,
        kind: schema.kind.to_owned(),
        network: schema.network.to_owned(),
    };
    let family = db.cf_handle(META).ok_or_else(foreign)?;
    let value = encode_value(META_VERSION, &meta).map_err(|_| foreign())?;
    db.put_cf_opt(family, META_KEY, value, &synced())
        .map_err(|source| database_error(path, source))
}

/// Whether the system has refused for want of room, or of quota.
pub(crate) fn is_full(error: &rocksdb::Error) -> bool {
    let text = error.to_string();
    let words = [
        "No space left on device",
        "Disk quota exceeded",
        "File too large",
    ];
    words.iter().any(|words| text.contains(words))
}

/// Every write reaches the disk before it is acknowledged (S11).
pub(crate) fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}
