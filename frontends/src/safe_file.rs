//! Files replaced only as a whole.
//!
//! Every file the compiler writes goes to a temporary beside its target first, is flushed to
//! the disk, and takes the target's name in one rename. A reader therefore sees the old file
//! or the new one, never a part, and a failed write leaves the old file as it was.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a file could not be written. The target still holds what it held before.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {step}: {source}; the file is unchanged", path.display())]
pub struct SafeFileError {
    /// The file that was to be written.
    pub path: PathBuf,
    /// What was being done.
    pub step: &'static str,
    /// What the system said.
    pub source: io::Error,
}

/// Buffer between the caller's small writes and the file, in bytes.
const BUFFER: usize = 1 << 18;

/// Attempts at an unused temporary name: collisions come only from leftovers of dead processes.
const NAME_ATTEMPTS: u32 = 1000;

/// Temporaries of this process that exist now.
static REGISTRY: Registry = Registry::new();

/// Writes `path` as a whole: `fill` writes the content, then the file appears under its name.
///
/// # Errors
/// Any failure, that of `fill` included, removes the temporary and leaves `path` as it was.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), SafeFileError> {
    let mut file = StagedFile::create(path)?;
    file.write_with(fill)?;
    file.commit()
}

/// Removes every temporary this process is writing.
///
/// Meant for the thread that handles ctrl-c: hold the result until the process exits. While it
/// is held, no other thread can create a temporary or rename one, so nothing half-written and
/// nothing named `*.tmp` is left behind. Must not be called from an asynchronous signal handler
/// proper (it takes a lock and calls the file system).
pub fn remove_temporaries() -> TemporariesRemoved {
    TemporariesRemoved { _lock: REGISTRY.clear() }
}

/// Blocks writers until dropped; see [`remove_temporaries`].
pub struct TemporariesRemoved {
    _lock: MutexGuard<'static, BTreeSet<PathBuf>>,
}

/// A file being written beside its target; dropped without [`StagedFile::commit`], it vanishes.
///
/// Two files that belong together are staged both, then committed one after the other.
pub struct StagedFile {
    target: PathBuf,
    temporary: Option<PathBuf>,
    writer: Option<BufWriter<File>>,
    registry: &'static Registry,
}

impl StagedFile {
    /// Starts a file that will replace `path`.
    ///
    /// A symbolic link is followed, so the file it names is replaced rather than the link. A
    /// target that exists and is not a regular file (`/dev/stdout`, a pipe) is written directly.
    ///
    /// # Errors
    /// If the folder is missing or not writable, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self, SafeFileError> {
        Self::create_in(path, &REGISTRY)
    }

    fn create_in(path: &Path, registry: &'static Registry) -> Result<Self, SafeFileError> {
        let error = |step, source| SafeFileError { path: path.to_owned(), step, source };
        let old = match fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(error("looking at it", e)),
        };
        if old.as_ref().is_some_and(fs::Metadata::is_dir) || path.file_name().is_none() {
            let source = io::Error::new(io::ErrorKind::IsADirectory, "this is a folder; name a file in it");
            return Err(error("looking at it", source));
        }
        if old.as_ref().is_some_and(|m| !m.is_file()) {
            let file =
                OpenOptions::new().write(true).open(path).map_err(|e| error("opening the device", e))?;
            let writer = Some(BufWriter::with_capacity(BUFFER, file));
            return Ok(Self { target: path.to_owned(), temporary: None, writer, registry });
        }
        let target = match old {
            Some(_) => fs::canonicalize(path).map_err(|e| error("resolving its name", e))?,
            None => path.to_owned(),
        };
        let (temporary, file) =
            registry.create(parent(&target)).map_err(|e| error("creating a temporary beside it", e))?;
        let staged = Self {
            target,
            temporary: Some(temporary),
            writer: Some(BufWriter::with_capacity(BUFFER, file)),
            registry,
        };
        if let (Some(old), Some(temporary)) = (old, &staged.temporary) {
            fs::set_permissions(temporary, old.permissions())
                .map_err(|e| error("copying its permissions", e))?;
        }
        Ok(staged)
    }

    /// Lets `fill` write to the temporary.
    ///
    /// # Errors
    /// The error of `fill`, with the target's name.
    pub fn write_with(
        &mut self,
        fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), SafeFileError> {
        let result = match &mut self.writer {
            Some(writer) => fill(writer),
            None => Err(io::Error::other("already committed")),
        };
        result.map_err(|e| self.error("writing", e))
    }

    /// Flushes the temporary to the disk and gives it the target's name.
    ///
    /// # Errors
    /// If flushing or renaming fails; the temporary is removed.
    pub fn commit(mut self) -> Result<(), SafeFileError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(self.error("writing", io::Error::other("already committed")));
        };
        writer.flush().map_err(|e| self.error("writing", e))?;
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        writer.get_ref().sync_all().map_err(|e| self.error("flushing to the disk", e))?;
        drop(writer);
        self.registry.rename(temporary, &self.target).map_err(|e| self.error("renaming", e))?;
        self.temporary = None;
        sync_folder(parent(&self.target)).map_err(|e| self.error("flushing the folder", e))
    }

    fn error(&self, step: &'static str, source: io::Error) -> SafeFileError {
        SafeFileError { path: self.target.clone(), step, source }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // The file is closed first: some systems cannot remove an open one. What is left in
        // the buffer is thrown away rather than written.
        if let Some(writer) = self.writer.take() {
            drop(writer.into_parts());
        }
        if let Some(temporary) = &self.temporary {
            self.registry.remove(temporary);
        }
    }
}

/// The folder of a file; a bare name is in the current one.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a rename durable. Only Unix can open a folder; elsewhere the rename alone must do.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        return match File::open(folder)?.sync_all() {
            // Some network and overlay file systems refuse to flush a folder.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
            result => result,
        };
    }
    Ok(())
}

/// The set of temporaries that exist; its lock orders creation, rename and removal.
struct Registry {
    paths: Mutex<BTreeSet<PathBuf>>,
    next: AtomicU64,
}

impl Registry {
    const fn new() -> Self {
        Self { paths: Mutex::new(BTreeSet::new()), next: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // A panicking writer leaves the set itself intact.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, folder: &Path) -> io::Result<(PathBuf, File)> {
        // Absolute, so that a later change of the current folder does not lose it.
        let folder = std::path::absolute(folder)?;
        let mut paths = self.lock();
        for _ in 0..NAME_ATTEMPTS {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".vdnnc-{}-{number}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    paths.insert(path.clone());
                    return Ok((path, file));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many leftover .vdnnc-*.tmp files; remove them"))
    }

    fn rename(&self, temporary: &Path, target: &Path) -> io::Result<()> {
        let mut paths = self.lock();
        fs::rename(temporary, target)?;
        paths.remove(temporary);
        Ok(())
    }

    fn remove(&self, temporary: &Path) {
        let mut paths = self.lock();
        if paths.remove(temporary) {
            // Nothing can be done about a failure in a destructor.
            let _ = fs::remove_file(temporary);
        }
    }

    fn clear(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        let mut paths = self.lock();
        for path in std::mem::take(&mut *paths) {
            let _ = fs::remove_file(path);
        }
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn writes_and_replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomic(&path, |w| w.write_all(b"one")).unwrap();
        write_atomic(&path, |w| w.write_all(b"second")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        fs::write(&path, b"old").unwrap();
        let error = write_atomic(&path, |w| {
            w.write_all(b"half")?;
            Err(io::Error::other("disk on fire"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("a.bin") && error.to_string().contains("disk on fire"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_panicking_writer_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let result = std::panic::catch_unwind(|| {
            write_atomic(&path, |w| {
                w.write_all(b"half")?;
                panic!("writer failed")
            })
        });
        assert!(result.is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn refuses_folders_and_missing_folders() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(folder.path(), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("folder"), "{error}");
        assert!(write_atomic(&folder.path().join("no/such/a.bin"), |_| Ok(())).is_err());
        assert!(write_atomic(Path::new(""), |_| Ok(())).is_err());
    }

    #[test]
    fn clearing_removes_temporaries_and_stops_renames() {
        static LOCAL: Registry = Registry::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        fs::write(&path, b"old").unwrap();
        let mut staged = StagedFile::create_in(&path, &LOCAL).unwrap();
        staged.write_with(|w| w.write_all(b"new")).unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        drop(LOCAL.clear());
        assert_eq!(names(folder.path()), ["a.bin"]);
        assert!(staged.commit().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn two_staged_files_appear_only_on_commit() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let first = StagedFile::create(&a).unwrap();
        let second = StagedFile::create(&b).unwrap();
        assert!(!a.exists() && !b.exists());
        first.commit().unwrap();
        drop(second);
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn follows_links_and_keeps_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, b"old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_atomic(&link, |w| w.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        write_atomic(Path::new("/dev/null"), |w| w.write_all(b"gone")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
