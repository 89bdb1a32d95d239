//! The tables, and telling a file that has them from any other.

use rusqlite::{Connection, TransactionBehavior};
use std::io::Read;
use std::path::Path;

/// Version of the tables.
pub(crate) const VERSION: i64 = 1;

/// Marks our databases: `vdnn` in ASCII.
const APPLICATION: i64 = 0x7664_6e6e;

// The rollback journal of SQLite's default is kept, not a write-ahead log: writes are few and
// short, and it is one file that also works where processes share no memory.
const TABLES: &str = "
CREATE TABLE source (
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    capability TEXT NOT NULL,
    driver TEXT NOT NULL,
    cudnn TEXT NOT NULL,
    UNIQUE (device, capability, driver, cudnn)
) STRICT;
CREATE TABLE kernel (
    id INTEGER PRIMARY KEY,
    op TEXT NOT NULL,
    operands TEXT NOT NULL,
    precision TEXT NOT NULL,
    UNIQUE (op, operands, precision)
) STRICT;
CREATE TABLE time (
    source INTEGER NOT NULL REFERENCES source (id),
    kernel INTEGER NOT NULL REFERENCES kernel (id),
    algo TEXT NOT NULL,
    workspace INTEGER NOT NULL CHECK (workspace >= 0),
    ns INTEGER CHECK (ns >= 0),
    flags TEXT NOT NULL,
    day TEXT NOT NULL,
    PRIMARY KEY (source, kernel, algo)
) STRICT, WITHOUT ROWID;
";

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A sound database of this version.
    Current,
    /// One of ours, of another version.
    Version(i64),
    /// A database of something else, or an empty one.
    Foreign,
    /// One of ours whose pages do not fit together.
    Damaged(String),
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// The first 100 bytes of a file that begins as every SQLite database does; `None` of others.
pub(crate) fn header(path: &Path) -> std::io::Result<Option<[u8; 100]>> {
    let mut head = [0u8; 100];
    match std::fs::File::open(path)?.read_exact(&mut head) {
        Ok(()) => Ok(head.starts_with(b"SQLite format 3\0").then_some(head)),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// Looks at the marks only, as SQLite's file format has them (section 1.3: the user version is
/// at byte 60, the application id at byte 68, big-endian).
pub(crate) fn look_at_header(path: &Path) -> std::io::Result<Found> {
    let Some(head) = header(path)? else { return Ok(Found::Foreign) };
    let word = |at: usize| {
        i64::from(head[at]) << 24
            | i64::from(head[at + 1]) << 16
            | i64::from(head[at + 2]) << 8
            | i64::from(head[at + 3])
    };
    Ok(match (word(68), word(60)) {
        (APPLICATION, VERSION) => Found::Current,
        (APPLICATION, version) => Found::Version(version),
        _ => Found::Foreign,
    })
}

/// Looks at all of it, without writing.
pub(crate) fn look(connection: &Connection) -> rusqlite::Result<Found> {
    let (application, version) = (pragma(connection, "application_id")?, pragma(connection, "user_version")?);
    if application != APPLICATION {
        return Ok(Found::Foreign);
    }
    if version != VERSION {
        return Ok(Found::Version(version));
    }
    let verdict: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    Ok(if verdict == "ok" { Found::Current } else { Found::Damaged(verdict) })
}

/// Makes the tables in a database that has nothing in it; any other is left alone.
pub(crate) fn make(connection: &mut Connection) -> rusqlite::Result<()> {
    if pragma(connection, "application_id")? == APPLICATION {
        return Ok(());
    }
    // Another process may be doing the same: looked at again inside the transaction.
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let objects: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let unmarked = pragma(&tx, "application_id")? == 0 && pragma(&tx, "user_version")? == 0;
    if objects == 0 && unmarked {
        tx.execute_batch(TABLES)?;
        tx.pragma_update(None, "application_id", APPLICATION)?;
        tx.pragma_update(None, "user_version", VERSION)?;
    }
    tx.commit()
}
