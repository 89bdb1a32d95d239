//! The database of measured kernel times: one SQLite file that several processes may read and
//! write at once, and that outlives drivers and libraries by keeping them in its keys.
//!
//! A text table ([`vdnn_cost::Measured`]) holds the times of one device with one set of
//! libraries; it is what the database is filled from ([`BenchDb::add`]) and read as
//! ([`BenchDb::times`]).
//!
//! ```text
//! source(device, capability, driver, cudnn)                   unique
//! kernel(op, operands, precision)                             unique
//! time(source, kernel, algo, workspace, ns, flags, day)       one per source, kernel, algo
//! ```
//!
//! Texts are those of the table; `algo` is `-` where an op has only one kernel; `ns` is null
//! where the algorithm was tried and does not run, so that it is not tried again. Workspaces
//! are in bytes. Times are taken with as much workspace as an algorithm wants: a limit is a
//! choice among rows.

mod schema;
#[cfg(test)]
mod tests;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vdnn_cost::{Measured, MeasuredOn};
use vdnn_ir::{Bytes, Nanos};

/// How long a process waits for another one's transaction.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a database cannot be used. A file that is refused is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// There is no such file.
    #[error("{}: there is no such database", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Another kind of file.
    #[error("{}: not a database of kernel times", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Made by another version.
    #[error(
        "{}: the database has schema version {found}, this program uses {known}; name another file, or \
         export it with the program that made it and import the table", path.display(), known = schema::VERSION
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// Its pages or rows are not what they should be.
    #[error("{}: the database is damaged ({why}); name another file, or delete it and measure again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file cannot be read, or the folder of a new one cannot be made.
    #[error("{}: {why}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// Anything else SQLite reports, such as a full disk.
    #[error("{}: {why}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: rusqlite::Error,
    },
}

impl DbError {
    fn of(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |why| {
            use rusqlite::ErrorCode as Code;
            let path = path.to_owned();
            match why.sqlite_error_code() {
                Some(Code::NotADatabase) => Self::NotOurs { path },
                Some(Code::DatabaseCorrupt) => Self::Damaged { path, why: why.to_string() },
                _ => Self::Sqlite { path, why },
            }
        }
    }
}

/// An open database.
#[derive(Debug)]
pub struct BenchDb {
    connection: Connection,
    path: PathBuf,
}

impl BenchDb {
    /// Opens a database to read and write; makes it, with its folder, if there is none.
    ///
    /// # Errors
    /// If the file is something else or damaged, or cannot be written.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        if path.metadata().is_ok_and(|m| m.len() > 0) {
            // Looked at before anything may write to it. Not by SQLite, which may first have to
            // undo what a process that was killed had begun, and writes for that. A process that
            // is just making the tables keeps a journal: then SQLite, which waits, looks.
            let journal = path.with_file_name(format!("{}-journal", name(path)));
            if !journal.exists() {
                Self::is_ours(path)?;
            }
        } else if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|why| DbError::Io { path: folder.to_owned(), why })?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Self::connect(path, flags)?;
        schema::make(&mut db.connection).map_err(DbError::of(path))?;
        db.verify()?;
        Ok(db)
    }

    /// Opens a database that exists, never to write.
    ///
    /// # Errors
    /// If there is none, or the file is something else or damaged.
    pub fn open_to_read(path: &Path) -> Result<Self, DbError> {
        if !path.is_file() {
            return Err(DbError::Missing { path: path.to_owned() });
        }
        Self::is_ours(path)?;
        let open = |access| {
            let db = Self::connect(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            db.verify().map(|()| db)
        };
        match open(OpenFlags::SQLITE_OPEN_READ_ONLY) {
            // A process that was killed left a transaction to be undone, which is no change.
            Err(DbError::Sqlite { why, .. }) if unfinished(&why) => open(OpenFlags::SQLITE_OPEN_READ_WRITE),
            other => other,
        }
    }

    fn is_ours(path: &Path) -> Result<(), DbError> {
        let here = || path.to_owned();
        match schema::look_at_header(path).map_err(|why| DbError::Io { path: here(), why })? {
            schema::Found::Foreign => Err(DbError::NotOurs { path: here() }),
            schema::Found::Version(found) => Err(DbError::Version { path: here(), found }),
            schema::Found::Current | schema::Found::Damaged(_) => Ok(()),
        }
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, DbError> {
        let connection = Connection::open_with_flags(path, flags).map_err(DbError::of(path))?;
        connection.busy_timeout(PATIENCE).map_err(DbError::of(path))?;
        Ok(Self { connection, path: path.to_owned() })
    }

    fn verify(&self) -> Result<(), DbError> {
        let path = || self.path.clone();
        match schema::look(&self.connection).map_err(DbError::of(&self.path))? {
            schema::Found::Current => Ok(()),
            schema::Found::Foreign => Err(DbError::NotOurs { path: path() }),
            schema::Found::Version(found) => Err(DbError::Version { path: path(), found }),
            schema::Found::Damaged(why) => Err(DbError::Damaged { path: path(), why }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes over every row of a table, in one transaction; rows of the same source, kernel
    /// and algorithm are replaced.
    ///
    /// # Errors
    /// If the file cannot be written; it is then as it was.
    pub fn add(&mut self, table: &Measured) -> Result<(), DbError> {
        self.write(table).map_err(DbError::of(&self.path))
    }

    fn write(&mut self, table: &Measured) -> rusqlite::Result<()> {
        // Immediate: a transaction that reads first and then writes could deadlock with another.
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let MeasuredOn { device, capability, driver, cudnn, date } = &table.on;
            tx.execute(
                "INSERT OR IGNORE INTO source (device, capability, driver, cudnn) VALUES (?1, ?2, ?3, ?4)",
                params![device, capability, driver, cudnn],
            )?;
            let source: i64 = tx.query_row(
                "SELECT id FROM source WHERE device = ?1 AND capability = ?2 AND driver = ?3 AND cudnn = ?4",
                params![device, capability, driver, cudnn],
                |row| row.get(0),
            )?;
            let mut add =
                tx.prepare("INSERT OR IGNORE INTO kernel (op, operands, precision) VALUES (?1, ?2, ?3)")?;
            let mut find =
                tx.prepare("SELECT id FROM kernel WHERE op = ?1 AND operands = ?2 AND precision = ?3")?;
            let mut put = tx.prepare(
                "INSERT INTO time (source, kernel, algo, workspace, ns, flags, day) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (source, kernel, algo) DO UPDATE SET \
                 workspace = excluded.workspace, ns = excluded.ns, flags = excluded.flags, day = excluded.day",
            )?;
            for kernel in table.kernels() {
                let (op, operands) = (kernel.op.to_string(), kernel.signature());
                let key = params![op, operands, kernel.precision.name()];
                add.execute(key)?;
                let id: i64 = find.query_row(key, |row| row.get(0))?;
                for row in kernel.rows {
                    let algo = row.algo.map_or_else(|| "-".to_owned(), |a| a.to_string());
                    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                    let ns = row.time.map(|t| whole(t.0));
                    put.execute(params![
                        source,
                        id,
                        algo,
                        whole(row.workspace.0),
                        ns,
                        row.flags.join(","),
                        date
                    ])?;
                }
            }
        }
        tx.commit()
    }

    /// Everything measured on one device with one driver and cuDNN; the day is the latest.
    ///
    /// # Errors
    /// If the file cannot be read, or a row of it is none.
    pub fn times(&self, on: &MeasuredOn) -> Result<Measured, DbError> {
        let of = DbError::of(&self.path);
        let mut query = self
            .connection
            .prepare(
                "SELECT precision, op, operands, algo, workspace, ns, flags, day FROM time \
                 JOIN kernel ON kernel.id = time.kernel JOIN source ON source.id = time.source \
                 WHERE device = ?1 AND capability = ?2 AND driver = ?3 AND cudnn = ?4 \
                 ORDER BY op, operands, precision, algo",
            )
            .map_err(&of)?;
        let MeasuredOn { device, capability, driver, cudnn, .. } = on;
        let mut rows = query.query(params![device, capability, driver, cudnn]).map_err(&of)?;
        let mut table = Measured::new(MeasuredOn { date: String::new(), ..on.clone() });
        while let Some(row) = rows.next().map_err(&of)? {
            let text = |i| row.get_ref(i).and_then(|v| Ok(v.as_str()?)).map_err(&of);
            let number = |i| row.get::<_, Option<i64>>(i).map(|n| n.map(i64::unsigned_abs)).map_err(&of);
            let values = (Bytes(number(4)?.unwrap_or(0)), number(5)?.map(Nanos));
            table
                .insert_text(text(0)?, text(1)?, text(2)?, text(3)?, values, text(6)?)
                .map_err(|why| DbError::Damaged { path: self.path.clone(), why })?;
            if text(7)? > table.on.date.as_str() {
                text(7)?.clone_into(&mut table.on.date);
            }
        }
        Ok(table)
    }

    /// What there are times of, by name, with the number of rows of each and the latest day.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn sources(&self) -> Result<Vec<(MeasuredOn, u64)>, DbError> {
        let read = || {
            let mut query = self.connection.prepare(
                "SELECT device, capability, driver, cudnn, max(day), count(*) FROM source \
                 JOIN time ON time.source = source.id GROUP BY source.id \
                 ORDER BY device, capability, driver, cudnn",
            )?;
            let rows = query.query_map([], |row| {
                let on = MeasuredOn {
                    device: row.get(0)?,
                    capability: row.get(1)?,
                    driver: row.get(2)?,
                    cudnn: row.get(3)?,
                    date: row.get(4)?,
                };
                Ok((on, row.get::<_, i64>(5)?.unsigned_abs()))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(DbError::of(&self.path))
    }
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// True for what SQLite says where it may not write, but must to undo an unfinished transaction.
fn unfinished(why: &rusqlite::Error) -> bool {
    matches!(why.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::CannotOpen))
}

/// True if the file begins as every SQLite database does.
pub fn looks_like_database(path: &Path) -> bool {
    schema::header(path).is_ok_and(|head| head.is_some())
}
