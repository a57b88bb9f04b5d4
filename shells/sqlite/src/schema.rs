//! The file's tables, and how an older file becomes a newer one.

use std::path::Path;
use std::time::Duration;

use backfill_core::doc::FieldPath;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::failure::refusal;

/// Which fields of which collections, by name, are kept sorted: equality first, then the order.
///
/// The position is the index's id in the file. A change here needs a migration that fills or
/// empties the index; a program that does not know of it then stops writing, see [`is_current`].
pub(crate) const INDEXES: [(&str, &[FieldPath]); 4] = [
    ("messages", &[FieldPath::new("tsClient")]),
    ("outbox", &[FieldPath::new("status"), FieldPath::new("nextAttemptAt")]),
    ("threads", &[FieldPath::new("accountId"), FieldPath::new("lastMessageAt")]),
    (
        "threads",
        &[FieldPath::new("accountId"), FieldPath::new("isLid"), FieldPath::new("lastMessageAt")],
    ),
];

/// "WaBf": tells a database of ours from any other.
const APPLICATION_ID: i64 = 0x5761_4266;

/// How often a locked database is asked again, and for how long.
const BUSY_PAUSE: Duration = Duration::from_micros(500);
const BUSY_LIMIT: i32 = 20_000;

/// One step per version of the schema; a released step never changes.
const MIGRATIONS: [&str; 1] = ["
CREATE TABLE state(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    boot_id TEXT NOT NULL,
    time_offset INTEGER NOT NULL,
    horizon INTEGER NOT NULL,
    last_commit INTEGER NOT NULL,
    last_version INTEGER NOT NULL,
    commits INTEGER NOT NULL
);
INSERT INTO state VALUES(1, '', 0, 0, 0, 0, 0);
CREATE TABLE collections(
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE
);
CREATE TABLE documents(
    id INTEGER PRIMARY KEY,
    collection INTEGER NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    update_time INTEGER NOT NULL,
    fields BLOB NOT NULL,
    UNIQUE(collection, name)
);
CREATE TABLE entries(
    field_index INTEGER NOT NULL,
    collection INTEGER NOT NULL,
    key BLOB NOT NULL,
    document INTEGER NOT NULL,
    PRIMARY KEY(field_index, collection, key)
) WITHOUT ROWID;
"];

/// Opens a connection that writes, and brings the file up to date.
pub(crate) fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    let mut db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // The log is synced at every commit: what was acknowledged survives a power loss. The
    // database file itself is only written, and synced, by checkpoints.
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    db.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    db.pragma_update(None, "cache_size", -32_000)?;
    migrate(&mut db)?;
    Ok(db)
}

/// Whether the file is still what this program knows: a newer one may have migrated it since.
pub(crate) fn is_current(db: &Connection) -> rusqlite::Result<bool> {
    let version: i64 = db.prepare_cached("PRAGMA user_version")?.query_row([], |row| row.get(0))?;
    Ok(usize::try_from(version) == Ok(MIGRATIONS.len()))
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.pragma_update(None, "query_only", true)?;
    Ok(db)
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_handler(Some(wait_for_lock))?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(db)
}

/// Short, even pauses: whoever waits finds the gap between two commits of another process.
#[expect(clippy::disallowed_methods, reason = "a thread of the store's own, waiting for a lock")]
fn wait_for_lock(attempts: i32) -> bool {
    std::thread::sleep(BUSY_PAUSE);
    attempts < BUSY_LIMIT
}

fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        let known = MIGRATIONS.len();
        return Err(refusal(format!("the file has schema {version}; this program knows {known}")));
    }
    for step in &MIGRATIONS[version..] {
        tx.execute_batch(step)?;
    }
    if version < MIGRATIONS.len() {
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(
            None,
            "user_version",
            i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX),
        )?;
    }
    tx.commit()
}
